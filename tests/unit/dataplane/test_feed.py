"""Aliases of stream clients."""

from ipaddress import IPv4Address

import pytest

from tunnelwrap.dataplane.feed import REST_S, Aliases
from tunnelwrap.errors import DataPlaneError

ENTRANCE = IPv4Address("127.64.0.1")
NEARLY_LAST = IPv4Address("127.64.255.252")


def test_no_two_clients_have_one_and_none_has_the_entrance() -> None:
    aliases = Aliases(ENTRANCE)
    given = [aliases.take(0.0) for _ in range(1000)]
    assert len(set(given)) == 1000
    assert given[:2] == [IPv4Address("127.64.0.2"), IPv4Address("127.64.0.3")]


def test_fresh_ones_come_before_used_ones() -> None:
    aliases = Aliases(ENTRANCE)
    first = aliases.take(0.0)
    aliases.give_back(first, 0.0)
    assert aliases.take(REST_S * 2) != first


def test_a_used_one_rests_before_it_is_given_again() -> None:
    aliases = Aliases(NEARLY_LAST)
    first, second = aliases.take(0.0), aliases.take(0.0)
    assert second == IPv4Address("127.64.255.254")
    aliases.give_back(second, 10.0)
    aliases.give_back(first, 20.0)
    with pytest.raises(DataPlaneError, match=r"no alias is free"):
        aliases.take(10.0 + REST_S - 0.1)
    assert aliases.take(10.0 + REST_S) == second
    with pytest.raises(DataPlaneError):
        aliases.take(10.0 + REST_S)
    assert aliases.take(20.0 + REST_S) == first
