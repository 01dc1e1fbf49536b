"""The configuration payload: addresses from a pool, DNS, both IP versions. RFC 7296 §3.15."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.kit.pair import Pair
from tests.kit.policies import road_warrior, selectors
from tunnelwrap.errors import InternalAddressFailure
from tunnelwrap.iana import ExchangeType
from tunnelwrap.ike.outputs import ChildRefused, Closed, Established, Lease
from tunnelwrap.path import IpAddress
from tunnelwrap.wire.message import IkeHeader

V4, V6 = ip_address("10.9.0.2"), ip_address("fd00:9::2")
DNS = (ip_address("10.9.0.1"), ip_address("fd00:9::1"))


def leased(lease: Lease, *, ipv4: bool = True, ipv6: bool = False) -> Pair:
    inside, outside = road_warrior()
    inside = replace(
        inside,
        requests_ipv4=ipv4,
        requests_ipv6=ipv6,
        child=replace(inside.child, ts_peer=selectors("0.0.0.0/0", "::/0")),
    )
    outside = replace(
        outside, child=replace(outside.child, ts_local=selectors("0.0.0.0/0", "::/0"))
    )
    pair = Pair(inside, outside, lease=lease)
    pair.connect()
    return pair


@pytest.mark.rfc("7296", "3.15")
@pytest.mark.rfc("7296", "2.19")
@pytest.mark.parametrize(
    ("addresses", "ts"),
    [
        ((V4,), ["10.9.0.2/32"]),
        ((V6,), ["fd00:9::2/128"]),
        ((V4, V6), ["10.9.0.2/32", "fd00:9::2/128"]),
    ],
)
def test_addresses_are_leased_and_selectors_follow(
    addresses: tuple[IpAddress, ...], ts: list[str]
) -> None:
    ipv4, ipv6 = V4 in addresses, V6 in addresses
    lease = Lease(addresses, DNS, ("corp.example",))
    pair = leased(lease, ipv4=ipv4, ipv6=ipv6)
    ours, theirs = pair.i.fact(Established), pair.r.fact(Established)
    assert ours is not None
    assert theirs is not None
    assert ours.lease == theirs.lease == lease
    (ask,) = pair.r.asks
    assert (ask.pool, ask.wants_ipv4, ask.wants_ipv6) == ("office", ipv4, ipv6)
    assert ask.peer_identity == "client@example.org"
    assert pair.i.plane.sending is not None
    assert pair.i.plane.sending.ts_local == selectors(*ts)
    assert pair.agreed()


def test_the_lease_stays_through_rekeys_and_is_given_back_at_the_end() -> None:
    lease = Lease((V4,))
    pair = leased(lease)
    for _ in range(2):
        pair.do(pair.i, lambda endpoint, sa, now: endpoint.rekey(sa, now))
        pair.run(2.0)
    spi = pair.i.plane.sending.spi_in if pair.i.plane.sending else 0
    pair.do(pair.i, lambda e, sa, now: e.limit_reached(sa, spi, now, is_hard=False))
    pair.run(10.0)
    assert pair.i.plane.sending is not None
    assert pair.i.plane.sending.ts_local == selectors("10.9.0.2/32")
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.close(sa, "wanted", now))
    pair.run(1.0)
    closed = pair.r.fact(Closed)
    assert closed is not None
    assert closed.lease == lease


def test_while_a_lease_is_fetched_repeated_requests_are_absorbed() -> None:
    inside, outside = road_warrior()
    pair = Pair(inside, outside, lease=Lease((V4,)))
    pair.r.answers_leases = False
    pair.connect(until=4.0)
    assert pair.i.fact(Established) is None
    assert len(pair.r.asks) == 1
    heads = [IkeHeader.decode(datagram.octets) for datagram in pair.i.sent]
    assert len([h for h in heads if h.exchange == ExchangeType.IKE_AUTH]) > 1
    pair.r.endpoint.answer(pair.r.asks[0], pair.r.lease, pair.now)
    pair.drain(pair.r)
    pair.run(1.0)
    assert pair.i.fact(Established) is not None
    assert pair.agreed()
    pair.r.endpoint.answer(pair.r.asks[0], pair.r.lease, pair.now)
    assert pair.r.endpoint.outputs() == [], "a question is answered once"


def test_a_lease_that_comes_too_late_changes_nothing() -> None:
    inside, outside = road_warrior()
    pair = Pair(inside, outside, lease=Lease((V4,)))
    pair.r.answers_leases = False
    pair.connect(until=40.0)
    assert pair.r.fact(Closed) is not None
    pair.r.endpoint.answer(pair.r.asks[0], pair.r.lease, pair.now)
    assert pair.r.endpoint.outputs() == []


@pytest.mark.rfc("7296", "3.15.4")
def test_an_exhausted_pool_is_named_on_both_sides() -> None:
    inside, outside = road_warrior()
    pair = Pair(inside, outside, lease=InternalAddressFailure("pool office is full"))
    pair.connect()
    ours, theirs = pair.i.fact(ChildRefused), pair.r.fact(ChildRefused)
    assert ours is not None
    assert theirs is not None
    assert "INTERNAL_ADDRESS_FAILURE" in ours.reason
    assert "client@example.org at udp 192.0.2.1:4500: pool office is full" in theirs.reason


def test_a_pool_wants_to_be_asked() -> None:
    inside, outside = road_warrior()
    pair = Pair(replace(inside, requests_ipv4=False), outside)
    pair.connect()
    ours, theirs = pair.i.fact(ChildRefused), pair.r.fact(ChildRefused)
    assert ours is not None
    assert theirs is not None
    assert "FAILED_CP_REQUIRED" in ours.reason
    assert "the peer asked for none" in theirs.reason
