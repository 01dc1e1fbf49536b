"""Cookies by themselves; how they are used stands in tests/flows/test_cookie.py."""

import random
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelwrap.ike.cookie import SECRET_S, Asker, Cookies

ASKER = Asker(bytes(range(8)), ip_address("192.0.2.1"), bytes(32))

addresses = st.ip_addresses()
askers = st.builds(Asker, st.binary(min_size=8, max_size=8), addresses, st.binary(max_size=256))


def cookies(seed: int = 1) -> Cookies:
    return Cookies(random.Random(seed).randbytes)


@given(askers, askers)
def test_a_cookie_is_good_for_whom_it_was_made(one: Asker, other: Asker) -> None:
    jar = cookies()
    cookie = jar.make(one, 5.0)
    assert jar.accepts(cookie, one, 6.0)
    assert jar.accepts(cookie, other, 6.0) is (one == other)


@given(st.binary(max_size=64))
def test_no_other_octets_are_a_cookie(octets: bytes) -> None:
    jar = cookies()
    assert jar.accepts(octets, ASKER, 5.0) is (octets == jar.make(ASKER, 5.0))


def test_no_cookie_is_good_before_one_was_made() -> None:
    empty = b"\x00" + bytes(32)
    assert not cookies().accepts(empty, ASKER, 5.0)


def test_the_secret_changes_and_the_one_before_is_still_good() -> None:
    jar = cookies()
    first = jar.make(ASKER, 0.0)
    second = jar.make(ASKER, SECRET_S)
    assert first[0] != second[0], "the version tells which secret it was"
    assert jar.accepts(first, ASKER, SECRET_S + 1)
    assert jar.accepts(second, ASKER, SECRET_S + 1)
    jar.make(ASKER, 2 * SECRET_S)
    assert not jar.accepts(first, ASKER, 2 * SECRET_S + 1)
    assert jar.accepts(second, ASKER, 2 * SECRET_S + 1)


@pytest.mark.parametrize("pause_s", [2 * SECRET_S, 100 * SECRET_S])
def test_after_a_long_silence_old_cookies_are_worth_nothing(pause_s: float) -> None:
    jar = cookies()
    cookie = jar.make(ASKER, 0.0)
    assert not jar.accepts(cookie, ASKER, pause_s)


def test_versions_go_round() -> None:
    jar = cookies()
    versions = {jar.make(ASKER, number * SECRET_S)[0] for number in range(600)}
    assert versions == set(range(256))


def test_two_responders_do_not_know_each_others_cookies() -> None:
    assert not cookies(2).accepts(cookies(1).make(ASKER, 0.0), ASKER, 0.0)
