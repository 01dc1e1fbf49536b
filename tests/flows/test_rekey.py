"""CREATE_CHILD_SA and deletes between two endpoints in memory: alone, crossing, lossy."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.kit.pair import Host, Pair, Wire
from tests.kit.policies import client, gateway, quiet, selectors
from tunnelwrap.iana import ExchangeType
from tunnelwrap.ike.outputs import Closed, Rekeyed
from tunnelwrap.ike.policy import ChildLifetime, ConnectionPolicy
from tunnelwrap.path import Carrier
from tunnelwrap.wire.message import IkeHeader


def connected(wire: Wire | None = None, esp: str = "aes128gcm16") -> Pair:
    pair = Pair(quiet(client(esp=esp)), quiet(gateway(esp=esp)), wire)
    pair.connect()
    assert pair.agreed()
    return pair


def rekey_child(pair: Pair, host: Host) -> None:
    """A soft limit is reached at a host."""
    child = host.plane.sending
    assert child is not None
    sa = pair.sa_i if host is pair.i else pair.sa_r
    host.endpoint.limit_reached(sa, child.spi_in, pair.now, is_hard=False)


def rekey_ike(pair: Pair, host: Host) -> None:
    host.endpoint.rekey(pair.sa_i if host is pair.i else pair.sa_r, pair.now)


def settled(pair: Pair) -> None:
    """All lingers are over, and both sides hold one and the same Child SA."""
    pair.run(60.0)
    assert len(pair.i.plane.installed) == 1
    assert len(pair.r.plane.installed) == 1
    assert pair.agreed()
    assert pair.i.fact(Closed) is None
    assert pair.r.fact(Closed) is None


@pytest.mark.rfc("7296", "1.3.3")
@pytest.mark.parametrize("who", ["i", "r"])
@pytest.mark.parametrize("esp", ["aes128gcm16", "aes128gcm16-x25519"])
def test_a_child_sa_is_rekeyed_by_either_side(who: str, esp: str) -> None:
    pair = connected(esp=esp)
    before = pair.i.plane.sending
    host = pair.i if who == "i" else pair.r
    rekey_child(pair, host)
    pair.drain(host)
    pair.run(1.0)
    after = pair.i.plane.sending
    assert before is not None
    assert after is not None
    assert after.spi_in != before.spi_in
    assert after.keys_out != before.keys_out
    assert before.spi_in in pair.i.plane.installed, "packets under way are still taken"
    settled(pair)


@pytest.mark.rfc("7296", "2.8")
def test_the_answering_side_sends_in_the_new_child_sa_only_when_the_old_is_deleted() -> None:
    pair = connected()
    old = pair.r.plane.sending
    assert old is not None
    pair.wire.filter = lambda sender, header, octets: header.exchange != ExchangeType.INFORMATIONAL
    rekey_child(pair, pair.i)
    pair.drain(pair.i)
    pair.run(0.5)
    assert pair.r.plane.sending == old
    pair.run(5.0)
    assert pair.r.plane.sending != old, "but it does not wait for ever"
    pair.wire.filter = None
    settled(pair)


def test_a_child_sa_that_waits_for_its_use_and_is_rekeyed_itself_is_not_used_any_more() -> None:
    pair = connected()
    pair.wire.filter = lambda sender, header, octets: (
        sender == "r" or header.exchange != ExchangeType.INFORMATIONAL
    )
    rekey_child(pair, pair.i)
    pair.drain(pair.i)
    pair.run(1.0)
    waiting = [*pair.r.plane.installed][-1]
    pair.do(pair.r, lambda e, sa, now: e.limit_reached(sa, waiting, now, is_hard=False))
    pair.run(1.0)
    newest = pair.r.plane.sending
    assert newest is not None
    assert newest.spi_in != waiting
    pair.run(5.0)
    assert pair.r.plane.sending == newest


@pytest.mark.parametrize("esp", ["aes128gcm16", "aes128gcm16-x25519"])
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.rfc("7296", "2.8.1")
def test_both_rekey_the_same_child_sa_at_once(seed: int, esp: str) -> None:
    pair = Pair(
        quiet(client(esp=esp)), quiet(gateway(esp=esp)), Wire(jitter=0.05, seed=seed), seed=seed * 7
    )
    pair.connect()
    rekey_child(pair, pair.i)
    rekey_child(pair, pair.r)
    pair.drain(pair.i)
    pair.drain(pair.r)
    pair.run(1.0)
    assert pair.agreed()
    settled(pair)


@pytest.mark.rfc("7296", "1.3.2")
@pytest.mark.parametrize("who", ["i", "r"])
@pytest.mark.rfc("7296", "2.18")
def test_the_ike_sa_is_rekeyed_by_either_side(who: str) -> None:
    pair = connected()
    host = pair.i if who == "i" else pair.r
    rekey_ike(pair, host)
    pair.drain(host)
    pair.run(1.0)
    ours, theirs = pair.i.fact(Rekeyed), pair.r.fact(Rekeyed)
    assert ours is not None
    assert theirs is not None
    assert (ours.spi_i, ours.spi_r) == (theirs.spi_i, theirs.spi_r)
    rekey_child(pair, host)
    pair.drain(host)
    settled(pair)
    assert pair.i.plane.history.count("move") == 0


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.rfc("7296", "2.8.2")
def test_both_rekey_the_ike_sa_at_once(seed: int) -> None:
    pair = Pair(quiet(client()), quiet(gateway()), Wire(jitter=0.05, seed=seed), seed=seed * 5)
    pair.connect()
    rekey_ike(pair, pair.i)
    rekey_ike(pair, pair.r)
    pair.drain(pair.i)
    pair.drain(pair.r)
    pair.run(2.0)
    assert len(pair.i.plane.installed) == 1
    settled(pair)
    ours, theirs = pair.i.fact(Rekeyed), pair.r.fact(Rekeyed)
    assert ours is not None
    assert theirs is not None
    assert (ours.spi_i, ours.spi_r) == (theirs.spi_i, theirs.spi_r), "they chose the same one"
    rekey_child(pair, pair.i)
    pair.drain(pair.i)
    settled(pair)


@pytest.mark.rfc("7296", "2.25.2")
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.rfc("7296", "2.25")
def test_rekeys_of_both_kinds_cross(seed: int) -> None:
    pair = Pair(quiet(client()), quiet(gateway()), Wire(jitter=0.05, seed=seed), seed=seed)
    pair.connect()
    rekey_ike(pair, pair.i)
    rekey_child(pair, pair.r)
    pair.drain(pair.i)
    pair.drain(pair.r)
    settled(pair)


def delete_child(pair: Pair, host: Host) -> None:
    """A hard limit is reached at a host."""
    child = host.plane.sending
    assert child is not None
    sa = pair.sa_i if host is pair.i else pair.sa_r
    host.endpoint.limit_reached(sa, child.spi_in, pair.now, is_hard=True)


def create_child(pair: Pair, host: Host) -> None:
    policy = quiet(client() if host is pair.i else gateway()).child
    host.endpoint.create_child(pair.sa_i if host is pair.i else pair.sa_r, policy, pair.now)


def close_ike(pair: Pair, host: Host) -> None:
    host.endpoint.close(pair.sa_i if host is pair.i else pair.sa_r, "wanted", pair.now)


ACTIONS = [rekey_child, rekey_ike, delete_child, create_child, close_ike]
LEAST_AND_MOST = {
    rekey_child: (0, 0),
    rekey_ike: (0, 0),
    delete_child: (-1, 0),
    create_child: (1, 1),
}


def lose(pair: Pair, numbers: set[int]) -> None:
    """Of the messages from now on some are lost, counted from 0."""
    count = itertools.count()
    pair.wire.filter = lambda sender, header, octets: next(count) not in numbers


LOSSES = [set(), *({number} for number in range(8)), {0, 1}, {2, 3}, {0, 2}, {1, 3}]


@pytest.mark.rfc("7296", "2.25.1")
@pytest.mark.parametrize("lost", LOSSES, ids=str)
@pytest.mark.parametrize("theirs", ACTIONS, ids=lambda action: action.__name__)
@pytest.mark.parametrize("ours", ACTIONS, ids=lambda action: action.__name__)
@pytest.mark.rfc("7296", "2.25")
def test_everything_crosses_everything(
    ours: Callable[[Pair, Host], None], theirs: Callable[[Pair, Host], None], lost: set[int]
) -> None:
    """Both sides begin something at once, and any one of the messages that follow is lost."""
    pair = connected(Wire(jitter=0.015, seed=len(lost)))
    lose(pair, lost)
    ours(pair, pair.i)
    theirs(pair, pair.r)
    pair.drain(pair.i)
    pair.drain(pair.r)
    pair.run(150.0)
    assert pair.agreed()
    if close_ike in (ours, theirs):
        assert pair.i.closed == {pair.sa_i}
        assert pair.r.closed == {pair.sa_r}
        assert not pair.i.plane.installed
        return
    assert not pair.i.closed | pair.r.closed
    (least, most), (least_of_theirs, most_of_theirs) = LEAST_AND_MOST[ours], LEAST_AND_MOST[theirs]
    least, most = least + least_of_theirs, most + most_of_theirs
    assert max(0, 1 + least) <= len(pair.i.plane.installed) <= 1 + most
    for host in (pair.i, pair.r):  # both still speak of the same IKE SA
        rekey_ike(pair, host)
        pair.drain(host)
        pair.run(10.0)
    assert pair.agreed()
    assert not pair.i.closed | pair.r.closed


@pytest.mark.parametrize("theirs", ACTIONS, ids=lambda action: action.__name__)
@pytest.mark.parametrize("ours", ACTIONS, ids=lambda action: action.__name__)
def test_everything_crosses_everything_on_a_stream(
    ours: Callable[[Pair, Host], None], theirs: Callable[[Pair, Host], None]
) -> None:
    """Nothing is lost nor repeated there."""
    pair = Pair(quiet(client()), quiet(gateway()), carrier=Carrier.TCP)
    pair.connect()
    ours(pair, pair.i)
    theirs(pair, pair.r)
    pair.drain(pair.i)
    pair.drain(pair.r)
    pair.run(50.0)
    assert pair.agreed()
    is_closed = close_ike in (ours, theirs)
    assert bool(pair.i.closed) is bool(pair.r.closed) is is_closed


def lose_response(pair: Pair, sender: str) -> None:
    """The first response of CREATE_CHILD_SA by one side is lost."""
    left = [1]

    def passes(who: str, header: IkeHeader, octets: bytes) -> bool:
        is_it = header.exchange == ExchangeType.CREATE_CHILD_SA and header.is_response
        if who != sender or not is_it or not left:
            return True
        left.clear()
        return False

    pair.wire.filter = passes


@pytest.mark.parametrize("make", [rekey_child, create_child], ids=lambda action: action.__name__)
@pytest.mark.parametrize("then", [rekey_child, delete_child], ids=lambda action: action.__name__)
def test_what_the_peer_does_next_overtakes_the_response_that_makes_a_child_sa(
    make: Callable[[Pair, Host], None], then: Callable[[Pair, Host], None]
) -> None:
    pair = connected()
    lose_response(pair, "r")
    make(pair, pair.i)
    pair.drain(pair.i)
    pair.run(0.03)
    newest = [*pair.r.plane.installed][-1]
    pair.do(
        pair.r,
        lambda e, sa, now: e.limit_reached(sa, newest, now, is_hard=then is delete_child),
    )
    pair.run(60.0)
    assert pair.agreed()
    assert newest not in pair.r.plane.installed
    expected = {rekey_child: 1, delete_child: 0}[then] + (make is create_child)
    assert len(pair.i.plane.installed) == expected


@pytest.mark.rfc("7296", "2.18")
def test_on_a_stream_a_new_ike_sa_is_used_when_the_peer_is_sure_to_know_it() -> None:
    """What waits in the queue of the side that answered a rekey waits for a sign of that."""
    pair = Pair(quiet(client()), quiet(gateway()), carrier=Carrier.TLS)
    pair.connect()
    lose_response(pair, "r")
    rekey_ike(pair, pair.i)
    pair.drain(pair.i)
    pair.run(0.02)
    before = len(pair.r.sent)
    rekey_child(pair, pair.r)
    pair.drain(pair.r)
    pair.run(5.0)
    assert len(pair.r.sent) == before
    pair.wire.broken.add(0)
    path = replace(pair.path, id=1)
    pair.do(pair.i, lambda e, sa, now: e.path_up(sa, path, now))
    pair.run(5.0)
    assert len(pair.r.sent) > before
    settled(pair)


@pytest.mark.parametrize("seed", range(6))
def test_hours_of_rekeys_on_a_bad_network(seed: int) -> None:
    def busy(policy: ConnectionPolicy) -> ConnectionPolicy:
        lifetime = ChildLifetime(rekey_s=40.0, hard_s=400.0)
        return replace(
            policy, rekey_s=110.0, hard_s=4000.0, child=replace(policy.child, lifetime=lifetime)
        )

    wire = Wire(delay=0.03, jitter=0.2, loss=0.08, duplication=0.1, seed=seed)
    pair = Pair(busy(client()), busy(gateway()), wire, seed=seed)
    pair.connect(until=30.0)
    pair.run(3000.0)
    assert pair.i.fact(Closed) is None, pair.i.fact(Closed)
    assert pair.r.fact(Closed) is None
    assert pair.i.plane.sending is not None
    assert pair.agreed() or (pair.run(20.0) is None and pair.agreed())


@pytest.mark.rfc("7296", "1.4.1")
@pytest.mark.parametrize("who", ["i", "r"])
def test_a_close_deletes_on_both_sides(who: str) -> None:
    pair = connected()
    host, sa = (pair.i, pair.sa_i) if who == "i" else (pair.r, pair.sa_r)
    host.endpoint.close(sa, "wanted", pair.now)
    pair.drain(host)
    pair.run(1.0)
    for side in (pair.i, pair.r):
        closed = side.fact(Closed)
        assert closed is not None
        assert not closed.is_failure
        assert not side.plane.installed
        assert side.endpoint.next_timeout() is None, "nothing is left to do"


@pytest.mark.rfc("7296", "2.25.2")
def test_both_close_at_once() -> None:
    pair = connected()
    pair.i.endpoint.close(pair.sa_i, "wanted", pair.now)
    pair.r.endpoint.close(pair.sa_r, "wanted", pair.now)
    pair.drain(pair.i)
    pair.drain(pair.r)
    pair.run(1.0)
    assert pair.i.fact(Closed) is not None
    assert pair.r.fact(Closed) is not None


@pytest.mark.rfc("7296", "1.4")
@pytest.mark.rfc("7296", "2.4")
def test_a_dead_peer_is_found_by_liveness_checks() -> None:
    pair = Pair(replace(quiet(client()), liveness_s=10.0), quiet(gateway()))
    pair.connect()
    pair.run(100.0)
    assert pair.i.fact(Closed) is None
    pair.wire.loss = 1.0
    pair.run(200.0)
    closed = pair.i.fact(Closed)
    assert closed is not None
    assert closed.is_failure


def test_traffic_replaces_liveness_checks() -> None:
    pair = Pair(replace(quiet(client()), liveness_s=10.0), quiet(gateway()))
    pair.connect()
    before = len(pair.i.sent)
    for _ in range(30):
        pair.i.last_in = pair.now
        pair.run(5.0)
    assert len(pair.i.sent) == before
    pair.run(30.0)
    assert len(pair.i.sent) > before


def test_nothing_is_repeated_with_another_content() -> None:
    """A message ID is used for one message only, in each direction and role."""
    wire = Wire(delay=0.02, jitter=0.1, loss=0.15, duplication=0.2, seed=3)
    pair = Pair(client(), gateway(), wire)
    pair.connect(until=60.0)
    for _ in range(10):
        for host in (pair.i, pair.r):
            if host.plane.sending is not None:
                rekey_child(pair, host)
                pair.drain(host)
        pair.run(20.0)
    for host in (pair.i, pair.r):
        seen: dict[tuple[bytes, bytes, int, bool, bool], bytes] = {}
        for datagram in host.sent:
            h = IkeHeader.decode(datagram.octets)
            key = (h.spi_i, h.spi_r, h.message_id, h.is_response, h.is_initiator)
            assert seen.setdefault(key, datagram.octets) == datagram.octets


@pytest.mark.rfc("7296", "2.9.2")
def test_a_rekeyed_child_sa_keeps_its_selectors() -> None:
    """What was narrowed once is asked for again, not what the policy would allow."""
    wide = replace(client().child, ts_peer=selectors("10.0.0.0/8"))
    pair = Pair(quiet(replace(client(), child=wide)), quiet(gateway()))
    pair.connect()
    before = pair.i.plane.sending

    for host in (pair.i, pair.r):
        spi = host.plane.sending.spi_in
        pair.do(host, lambda end, sa, now, spi=spi: end.limit_reached(sa, spi, now, is_hard=False))
        pair.run(5.0)

    after = pair.i.plane.sending
    assert after.spi_in != before.spi_in
    assert after.ts_peer == before.ts_peer == selectors("10.2.0.0/24")
    assert pair.r.plane.sending.ts_local == before.ts_peer
    assert pair.agreed()
