"""Address arithmetic of a pool."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelwrap.errors import PoolExhausted
from tunnelwrap.path import IpAddress
from tunnelwrap.store.pool import Pool


def fill(pool: Pool, version: int) -> list[IpAddress]:
    """All addresses that a pool gives away, until it is exhausted."""
    given: list[IpAddress] = []
    while True:
        try:
            given.append(pool.choose(f"peer {len(given)}", version, set(given)))
        except PoolExhausted:
            return given


@pytest.mark.parametrize(
    ("network", "gateways", "for_peers"),
    [
        ("10.0.0.0/29", ["10.0.0.1"], [f"10.0.0.{n}" for n in range(2, 7)]),
        ("10.0.0.0/30", ["10.0.0.1"], ["10.0.0.2"]),
        ("10.0.0.0/31", ["10.0.0.0"], ["10.0.0.1"]),
        ("10.0.0.7/32", [], ["10.0.0.7"]),
        ("fd00::/126", ["fd00::1"], ["fd00::2", "fd00::3"]),
        ("fd00::/127", ["fd00::"], ["fd00::1"]),
        ("fd00::7/128", [], ["fd00::7"]),
    ],
)
def test_every_address_is_given_once_save_those_with_a_task(
    network: str, gateways: list[str], for_peers: list[str]
) -> None:
    pool = Pool([ip_network(network)])

    given = fill(pool, ip_network(network).version)

    assert sorted(map(str, given)) == for_peers
    assert list(map(str, pool.gateways)) == gateways
    assert all(address in pool for address in given)
    assert not any(gateway in pool for gateway in pool.gateways)


def test_the_same_identity_is_given_the_same_address() -> None:
    one, again = (Pool([IPv4Network("10.0.0.0/16")]) for _ in range(2))

    addresses = {one.choose(f"peer {n}", 4, set()) for n in range(50)}

    assert len(addresses) > 40  # different peers seldom have the same in mind
    assert addresses == {again.choose(f"peer {n}", 4, set()) for n in range(50)}


def test_a_taken_address_is_replaced_by_the_next_free_one() -> None:
    pool = Pool([IPv4Network("10.0.0.0/16")])
    own = pool.choose("peer", 4, set())

    assert pool.choose("peer", 4, {own, own + 1}) == own + 2


def test_a_requested_address_is_given_when_it_can_be_had() -> None:
    pool = Pool([IPv4Network("10.0.0.0/24")], reserved=[IPv4Address("10.0.0.9")])
    wish = IPv4Address("10.0.0.77")

    assert pool.choose("peer", 4, set(), [IPv6Address("fd00::1"), wish]) == wish
    for impossible in ("10.0.0.0", "10.0.0.1", "10.0.0.9", "10.0.0.255", "10.0.1.5", "fd00::77"):
        address = pool.choose("peer", 4, {wish}, [ip_address(impossible), wish])
        assert address == pool.choose("peer", 4, {wish})


def test_reserved_addresses_are_never_given() -> None:
    reserved = [IPv4Address("10.0.0.3"), IPv4Address("10.0.0.5")]
    pool = Pool([IPv4Network("10.0.0.0/29")], reserved)

    assert not set(reserved) & set(fill(pool, 4))
    assert len(fill(pool, 4)) == 3
    assert reserved[0] not in pool


def test_a_huge_network_costs_no_more_than_a_small_one() -> None:
    pool = Pool([IPv6Network("fd00::/8")])

    address = pool.choose("peer", 6, set())

    assert address in pool
    assert pool.choose("peer", 6, {address}) == address + 1


def test_networks_are_used_one_after_the_other_and_by_version() -> None:
    pool = Pool([ip_network(n) for n in ("10.0.0.0/30", "fd00::/126", "10.1.0.0/30")])

    assert fill(pool, 4) == [IPv4Address("10.0.0.2"), IPv4Address("10.1.0.2")]
    assert set(fill(pool, 6)) == {IPv6Address("fd00::2"), IPv6Address("fd00::3")}
    assert pool.has(4)
    assert not Pool([IPv6Network("fd00::/64")]).has(4)


def test_exhaustion_names_the_pool() -> None:
    pool = Pool([IPv4Network("10.0.0.0/30")])

    with pytest.raises(PoolExhausted, match=r"no IPv4 address is free in 10\.0\.0\.0/30"):
        pool.choose("peer", 4, {IPv4Address("10.0.0.2")})
    with pytest.raises(PoolExhausted, match="no IPv6 address"):
        pool.choose("peer", 6, set())


@settings(max_examples=40)
@given(
    prefix=st.integers(22, 32),
    taken=st.sets(st.integers(0, 1023), max_size=60),
    identity=st.text(max_size=20),
)
def test_what_is_chosen_can_be_given_and_is_free(
    prefix: int, taken: set[int], identity: str
) -> None:
    network = ip_network((int(IPv4Address("10.0.0.0")), prefix))
    pool = Pool([network])
    occupied = {IPv4Address("10.0.0.0") + n for n in taken}

    try:
        address = pool.choose(identity, 4, occupied)
    except PoolExhausted:
        assert all(address in occupied for address in network if address in pool)
    else:
        assert address in pool
        assert address not in occupied
