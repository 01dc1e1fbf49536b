"""Leases across sessions and restarts."""

import stat
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network
from pathlib import Path

import pytest

from tunnelwrap.errors import PoolExhausted, StoreError
from tunnelwrap.ike.outputs import AskLease
from tunnelwrap.path import IpAddress
from tunnelwrap.store.leases import IN_MEMORY, Leases
from tunnelwrap.store.pool import Pool

SMALL = Pool([IPv4Network("10.0.0.0/29")])  # five addresses for peers
DUAL = Pool([ip_network("10.1.0.0/24"), ip_network("fd00::/64")])
POOLS = {"small": SMALL, "dual": DUAL}


def ask(
    identity: str, pool: str = "small", *, requested: tuple[IpAddress, ...] = (), ipv6: bool = False
) -> AskLease:
    return AskLease(1, 1, pool, identity, True, ipv6, requested)


def test_one_address_of_each_wanted_version() -> None:
    with Leases(IN_MEMORY, POOLS) as leases:
        both = leases.lease(ask("a", "dual", ipv6=True), 0)
        one = leases.lease(ask("b", "dual"), 0)

        assert [address.version for address in both] == [4, 6]
        assert [address.version for address in one] == [4]
        assert all(address in DUAL for address in (*both, *one))


def test_a_wanted_version_that_the_pool_lacks_is_left_out() -> None:
    with Leases(IN_MEMORY, POOLS) as leases:
        assert [a.version for a in leases.lease(ask("a", ipv6=True), 0)] == [4]
        with pytest.raises(StoreError, match=r"pool small \(10\.0\.0\.0/29\) has no address"):
            leases.lease(AskLease(1, 1, "small", "a", False, True, ()), 0)


def test_two_sessions_of_one_identity_have_different_addresses_and_get_them_again() -> None:
    with Leases(IN_MEMORY, POOLS) as leases:
        first, second = leases.lease(ask("a"), 0), leases.lease(ask("a"), 1)
        leases.release("small", [*first, *second], 2)
        again = {*leases.lease(ask("a"), 3), *leases.lease(ask("a"), 4)}

        assert first != second
        assert again == {*first, *second}


def test_a_restart_forgets_the_sessions_and_remembers_the_addresses(tmp_path: Path) -> None:
    path = tmp_path / "state" / "leases.db"
    with Leases(path, POOLS) as leases:
        # b's address is not the one that its name alone would give it.
        leases.lease(ask("a", requested=SMALL_OWN_OF_B), 0)
        had = leases.lease(ask("b"), 1)

    with Leases(path, POOLS) as leases:
        assert leases.active("small") == {}
        assert leases.lease(ask("b"), 2) == had
        assert leases.active("small") == {had[0]: "b"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


SMALL_OWN_OF_B = (SMALL.choose("b", 4, set()),)


def test_a_requested_address_is_given_unless_it_is_somebody_elses() -> None:
    wish = IPv4Address("10.0.0.4")
    with Leases(IN_MEMORY, POOLS) as leases:
        assert leases.lease(ask("a", requested=(wish,)), 0) == (wish,)
        assert leases.lease(ask("b", requested=(wish,)), 1) != (wish,)
        leases.release("small", [wish], 2)
        assert leases.lease(ask("c", requested=(wish,)), 3) != (wish,)
        assert leases.lease(ask("a"), 4) == (wish,)


def test_the_address_left_longest_ago_is_given_when_no_fresh_one_is_left() -> None:
    with Leases(IN_MEMORY, POOLS) as leases:
        had = {name: leases.lease(ask(name), 0)[0] for name in "abcde"}
        for now, name in enumerate("cade", 1):
            leases.release("small", [had[name]], now)

        assert leases.lease(ask("f"), 10) == (had["c"],)
        assert leases.lease(ask("d"), 11) == (had["d"],)
        assert leases.lease(ask("c"), 12) == (had["a"],)
        assert leases.lease(ask("g"), 13) == (had["e"],)
        with pytest.raises(PoolExhausted, match=r"all IPv4 addresses of pool small .* are taken"):
            leases.lease(ask("h"), 14)
        owners = {had["b"]: "b", had["c"]: "f", had["d"]: "d", had["a"]: "c", had["e"]: "g"}
        assert leases.active("small") == owners


def test_all_or_nothing() -> None:
    narrow = Pool([ip_network("10.0.0.0/24"), ip_network("fd00::1/128")])
    with Leases(IN_MEMORY, {"narrow": narrow}) as leases:
        first = leases.lease(ask("a", "narrow", ipv6=True), 0)
        with pytest.raises(PoolExhausted, match="IPv6"):
            leases.lease(ask("b", "narrow", ipv6=True), 1)

        assert first[1] == IPv6Address("fd00::1")
        assert leases.active("narrow") == dict.fromkeys(first, "a")


def test_releasing_is_idempotent() -> None:
    with Leases(IN_MEMORY, POOLS) as leases:
        (address,) = leases.lease(ask("a"), 0)
        (other,) = leases.lease(ask("b"), 0)
        leases.release("small", [address], 1)
        leases.release("small", [address, IPv4Address("10.9.9.9")], 5)
        leases.release("unknown", [other], 5)

        assert leases.active("small") == {other: "b"}


def test_pools_do_not_meet() -> None:
    with Leases(IN_MEMORY, {"one": SMALL, "two": SMALL}) as leases:
        one, two = leases.lease(ask("a", "one"), 0), leases.lease(ask("a", "two"), 0)
        leases.release("one", one, 1)

        assert one == two
        assert leases.active("two") == {two[0]: "a"}
        with pytest.raises(StoreError, match=r"no pool three \(there are one, two\)"):
            leases.lease(ask("a", "three"), 0)


def test_addresses_that_a_pool_no_longer_has_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    with Leases(path, {"small": Pool([IPv4Network("10.9.0.0/30")])}) as leases:
        assert leases.lease(ask("a"), 0) == (IPv4Address("10.9.0.2"),)

    with Leases(path, POOLS) as leases:
        (address,) = leases.lease(ask("a"), 1)
        assert address in SMALL


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "leases.db"
    path.write_text("this is not a database, but a text of some length\n" * 20)

    with pytest.raises(StoreError, match=r"leases\.db: file is not a database"):
        Leases(path, POOLS)
    with pytest.raises(StoreError, match="leases begin anew"):
        Leases(path / "below" / "leases.db", POOLS)
