"""Child SAs on demand: none before there is something to carry, none when there is nothing more."""

from dataclasses import replace

import pytest

from tests.kit.pair import Pair
from tests.kit.policies import client, gateway, quiet, road_warrior
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.outputs import ChildRefused, Closed, Established, Lease
from tunnelwrap.ike.policy import Childless, ChildLifetime, ConnectionPolicy

IDLE_S = 40.0


def demanding(policy: ConnectionPolicy, idle_s: float | None = None) -> ConnectionPolicy:
    """A connection whose Child SA waits for traffic."""
    return replace(policy, child=replace(policy.child, on_demand=True, idle_s=idle_s))


def idling(policy: ConnectionPolicy, idle_s: float = IDLE_S) -> ConnectionPolicy:
    return replace(policy, child=replace(policy.child, idle_s=idle_s))


def create(pair: Pair) -> None:
    """Traffic has come."""
    pair.do(pair.i, lambda e, sa, now: e.create_child(sa, pair.policy.child, now))
    pair.run(1.0)


def carry(pair: Pair, packets: int = 1) -> None:
    """Packets go through the newest Child SA, from one plane into the other."""
    i, r = pair.i.plane.sending, pair.r.plane.sending
    assert i is not None
    assert r is not None
    pair.i.carried[i.spi_in] = pair.i.carried.get(i.spi_in, 0) + packets
    pair.r.carried[r.spi_in] = pair.r.carried.get(r.spi_in, 0) + packets


# --- the beginning ----------------------------------------------------------------------------


@pytest.mark.rfc("6023", "3")
def test_the_ike_sa_begins_without_a_child_sa_and_gets_one_on_demand() -> None:
    pair = Pair(demanding(quiet(client())), quiet(gateway()))
    pair.connect()

    assert pair.i.fact(Established) is not None
    assert not pair.i.plane.installed
    assert pair.i.fact(ChildRefused) is None

    create(pair)
    assert pair.i.plane.sending is not None
    assert pair.agreed()


def test_the_lease_is_there_before_the_child_sa() -> None:
    ours, theirs = road_warrior()
    lease = Lease(tuple(each.start for each in client().child.ts_local))
    pair = Pair(demanding(quiet(ours)), quiet(theirs), lease=lease)
    pair.connect()

    established = pair.i.fact(Established)
    assert established is not None
    assert established.lease == lease
    assert not pair.i.plane.installed

    create(pair)
    assert pair.i.plane.sending is not None
    assert [each.start for each in pair.i.plane.sending.ts_local] == [*lease.addresses]


@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_a_peer_that_cannot_begin_so_gets_the_first_child_sa_at_once(who: str) -> None:
    ours, theirs = demanding(quiet(client())), quiet(gateway())
    if who == "ours":
        ours = replace(ours, childless=Childless.NEVER)
    else:
        theirs = replace(theirs, childless=Childless.NEVER)
    pair = Pair(ours, theirs)
    pair.connect()

    assert pair.i.plane.sending is not None
    assert pair.agreed()


@pytest.mark.parametrize("has_child", [False, True])
def test_authenticated_again_it_has_a_child_sa_if_it_had_one(*, has_child: bool) -> None:
    pair = Pair(replace(demanding(quiet(client())), reauth_s=100.0), quiet(gateway()))
    pair.connect()
    if has_child:
        create(pair)

    pair.run(120.0)

    assert pair.i.fact(Closed) is not None, "the old one"
    assert bool(pair.i.plane.installed) is has_child
    assert pair.agreed()


# --- idle -------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["i", "r"])
def test_a_child_sa_without_packets_ends_and_the_ike_sa_stays(who: str) -> None:
    ours, theirs = quiet(client()), quiet(gateway())
    pair = Pair(*((idling(ours), theirs) if who == "i" else (ours, idling(theirs))))
    pair.connect(until=1.0)

    pair.run(IDLE_S - 2.0)
    assert pair.agreed()
    assert pair.i.plane.installed
    pair.run(4.0)

    assert not pair.i.plane.installed
    assert not pair.r.plane.installed
    assert pair.i.fact(Closed) is None
    assert "it has nothing to carry" in getattr(pair, who).text()


def test_packets_keep_it_and_it_ends_soon_after_the_last() -> None:
    pair = Pair(idling(quiet(client())), quiet(gateway()))
    pair.connect(until=1.0)
    for _ in range(20):
        pair.run(IDLE_S / 4)
        carry(pair)
    last = pair.now

    while pair.i.plane.installed:
        pair.run(1.0)

    assert IDLE_S <= pair.now - last <= IDLE_S * 1.25 + 1.0


def test_liveness_checks_are_no_packets() -> None:
    pair = Pair(replace(idling(quiet(client())), liveness_s=5.0), quiet(gateway()))
    pair.connect()

    pair.run(IDLE_S * 1.5)

    assert not pair.i.plane.installed
    assert pair.i.fact(Closed) is None


def test_rekeys_do_not_make_it_busy() -> None:
    lifetime = ChildLifetime(rekey_s=15.0, hard_s=60.0)
    pair = Pair(idling(quiet(client(), lifetime)), quiet(gateway()))
    pair.connect(until=1.0)

    pair.run(IDLE_S * 1.3)

    assert not pair.i.plane.installed
    assert not pair.r.plane.installed


def test_what_was_carried_before_a_rekey_counts_after_it() -> None:
    lifetime = ChildLifetime(rekey_s=100.0, hard_s=300.0)
    pair = Pair(idling(quiet(client(), lifetime)), quiet(gateway()))
    pair.connect(until=1.0)
    first = pair.i.plane.sending
    while pair.i.plane.sending is first:  # a packet just before each poll of the data plane
        carry(pair)
        pair.run(1.0)
    rekeyed_at = pair.now

    while pair.i.plane.installed:
        pair.run(1.0)

    assert pair.now - rekeyed_at >= IDLE_S - 1.0


def test_ended_for_want_of_traffic_it_comes_back_on_demand() -> None:
    pair = Pair(demanding(quiet(client()), IDLE_S), quiet(gateway()))
    pair.connect()
    create(pair)
    pair.run(IDLE_S * 1.3)
    assert not pair.i.plane.installed

    create(pair)

    assert pair.i.plane.sending is not None
    assert pair.agreed()


def test_a_child_sa_is_closed_on_request_and_the_ike_sa_stays() -> None:
    pair = Pair(quiet(client()), quiet(gateway()))
    pair.connect()
    child = pair.i.plane.sending
    assert child is not None

    pair.do(pair.i, lambda e, sa, now: e.close_child(sa, child.spi_in, "no need", now))
    pair.run(1.0)

    assert not pair.i.plane.installed
    assert not pair.r.plane.installed
    assert pair.i.fact(Closed) is None
    assert "no need" in pair.i.text()


def test_closing_what_is_gone_is_fine() -> None:
    pair = Pair(quiet(client()), quiet(gateway()))
    pair.connect()

    pair.do(pair.i, lambda e, sa, now: e.close_child(sa, 0x1234, "no need", now))
    pair.do(pair.i, lambda e, sa, now: e.close_child(sa + 1, 0x1234, "no need", now))
    pair.run(1.0)

    assert pair.agreed()
    assert pair.i.plane.installed


# --- SPIs of the host -------------------------------------------------------------------------


def test_each_spi_is_asked_of_the_host_at_the_address_it_is_for() -> None:
    pair = Pair(quiet(client()), quiet(gateway()))
    pair.connect()

    ours, theirs = pair.i.plane.sending, pair.r.plane.sending
    assert ours is not None
    assert theirs is not None
    assert [(spi, path.local) for spi, path in pair.i.reserved] == [(ours.spi_in, pair.path.local)]
    assert [(spi, path.local) for spi, path in pair.r.reserved] == [(theirs.spi_in, pair.path.peer)]
    assert pair.i.released == pair.r.released == []


def test_the_spi_of_a_refused_child_sa_is_given_back() -> None:
    pair = Pair(client(esp="aes128gcm16"), gateway(esp="aes256-sha256"))
    pair.connect()

    assert pair.i.released == [spi for spi, _ in pair.i.reserved]
    assert len(pair.i.released) == 1
    refused = pair.i.fact(ChildRefused)
    assert refused is not None
    assert NotifyType.NO_PROPOSAL_CHOSEN.name in refused.reason
