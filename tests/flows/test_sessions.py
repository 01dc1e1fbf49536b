"""How many IKE SAs a peer has, and how one takes the place of another."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.flows.scripted import ScriptedInitiator
from tests.kit.pair import Pair
from tests.kit.policies import client, gateway, psk_peer, quiet, road_warrior
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.outputs import Closed, Established, Lease, ReauthenticationDue
from tunnelwrap.ike.policy import ConnectionPolicy, Unique
from tunnelwrap.path import Carrier
from tunnelwrap.wire.message import IkeHeader
from tunnelwrap.wire.payloads import Notify, Payload

LEASE = Lease((ip_address("10.9.0.2"),))


def unique(policy: ConnectionPolicy, value: Unique) -> ConnectionPolicy:
    return replace(quiet(policy), unique=value)


def established(pair: Pair) -> int:
    return len([fact for fact in pair.r.facts if isinstance(fact, Established)])


def ends(pair: Pair) -> list[Closed]:
    return [fact for fact in pair.r.facts if isinstance(fact, Closed)]


def connect_twice(ours: ConnectionPolicy, theirs: ConnectionPolicy) -> Pair:
    pair = Pair(ours, theirs)
    pair.connect()
    pair.connect()
    return pair


# --- uniqueness -------------------------------------------------------------------------------


@pytest.mark.rfc("7296", "2.4")
def test_a_new_ike_sa_of_the_same_identity_replaces_the_old_one_with_a_delete() -> None:
    pair = connect_twice(quiet(client()), unique(gateway(), Unique.REPLACE))
    assert established(pair) == 2
    (end,) = ends(pair)
    assert "replaced" in end.reason
    assert not end.is_failure
    assert pair.i.fact(Closed) is not None, "by a delete"
    assert len(pair.i.plane.installed) == 1
    assert pair.agreed()


def test_until_then_both_carry_packets() -> None:
    pair = Pair(quiet(client()), unique(gateway(), Unique.REPLACE))
    pair.connect()
    pair.connect(until=0.2)
    assert len(pair.i.plane.installed) == len(pair.r.plane.installed) == 2
    assert pair.agreed()
    old = pair.r.plane.sending
    pair.run(0.8)
    assert pair.r.plane.sending != old, "the old one may be dead"
    assert pair.i.plane.sending == pair.i.plane.installed[max(pair.i.plane.outbound[-1:])]
    assert pair.agreed()


def test_keep_keeps_both() -> None:
    pair = connect_twice(quiet(client()), unique(gateway(), Unique.KEEP))
    assert established(pair) == 2
    assert ends(pair) == []
    assert len(pair.r.plane.installed) == 2


def test_never_refuses_the_second() -> None:
    pair = connect_twice(quiet(client()), unique(gateway(), Unique.NEVER))
    assert established(pair) == 1
    (end,) = ends(pair)
    assert "client@example.org has an IKE SA of clients already" in end.reason
    closed = pair.i.fact(Closed)
    assert closed is not None
    assert closed.notify == NotifyType.AUTHENTICATION_FAILED
    assert pair.agreed()


def test_another_identity_or_connection_is_another_peer() -> None:
    theirs = [unique(gateway(), Unique.REPLACE)]
    theirs.append(replace(theirs[0], name="others", peer=psk_peer("*@example.net")))
    pair = Pair(quiet(client()), theirs)
    pair.connect()
    stranger = replace(pair.policy.local, identity=theirs[0].local.identity)
    other = replace(stranger, identity=type(stranger.identity).parse("someone@example.net"))
    pair.policy = replace(pair.policy, local=other)
    pair.connect()
    assert established(pair) == 2
    assert ends(pair) == []


def test_a_rekeyed_ike_sa_is_replaced_too() -> None:
    pair = Pair(quiet(client()), unique(gateway(), Unique.REPLACE))
    pair.connect()
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(2.0)
    pair.connect(until=8.0)
    assert len(ends(pair)) == 1
    assert len(pair.r.plane.installed) == 1
    assert pair.agreed()


@pytest.mark.rfc("7296", "2.4")
@pytest.mark.parametrize("value", Unique)
def test_initial_contact_ends_what_the_peer_does_not_know_any_more(value: Unique) -> None:
    pair = Pair(quiet(client()), unique(gateway(), value))
    pair.connect()
    pair.i.endpoint.abandon(pair.sa_i, "crashed")
    pair.drain(pair.i)
    pair.connect(until=1.0)
    assert established(pair) == 2
    (end,) = ends(pair)
    assert end.reason == "the peer has begun anew"
    assert len(pair.r.plane.installed) == 1
    assert pair.agreed()


def without_initial_contact(payloads: list[Payload]) -> list[Payload]:
    assert Notify.of(NotifyType.INITIAL_CONTACT) in payloads
    return [p for p in payloads if p != Notify.of(NotifyType.INITIAL_CONTACT)]


@pytest.mark.rfc("7296", "2.4")
def test_initial_contact_is_said_by_the_first_ike_sa_only() -> None:
    peer = ScriptedInitiator(client(), gateway())
    peer.connect(without_initial_contact)
    assert peer.sa.context.peers.has(client().local.identity, client().peer.identity) is False
    sharing = ScriptedInitiator(replace(client(), unique=Unique.KEEP), gateway())
    with pytest.raises(AssertionError):
        sharing.connect(without_initial_contact)


# --- leases -----------------------------------------------------------------------------------


def test_who_replaces_its_ike_sa_keeps_its_addresses() -> None:
    ours, theirs = road_warrior()
    pair = Pair(quiet(ours), quiet(theirs), lease=LEASE)
    pair.connect()
    pair.connect(until=8.0)
    assert len(pair.r.asks) == 1, "the pool is not asked again"
    (end,) = ends(pair)
    assert end.lease is None, "the new IKE SA has it"
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.close(sa, "done", now))
    pair.run(2.0)
    assert ends(pair)[-1].lease == LEASE


def test_after_initial_contact_addresses_are_given_anew() -> None:
    ours, theirs = road_warrior()
    pair = Pair(quiet(ours), quiet(theirs), lease=LEASE)
    pair.connect()
    pair.i.endpoint.abandon(pair.sa_i, "crashed")
    pair.drain(pair.i)
    pair.connect()
    assert ends(pair)[0].lease == LEASE
    assert len(pair.r.asks) == 2


# --- authenticating again ---------------------------------------------------------------------


@pytest.mark.rfc("7296", "2.8.3")
@pytest.mark.parametrize("carrier", [Carrier.UDP, Carrier.TCP])
def test_the_initiator_authenticates_again_make_before_break(carrier: Carrier) -> None:
    ours, theirs = road_warrior()
    pair = Pair(replace(quiet(ours), reauth_s=60.0), quiet(theirs), carrier=carrier, lease=LEASE)
    pair.connect()
    pair.run(58.0)
    first = pair.i.fact(Established)
    assert first is not None
    assert first.replaces is not None
    assert first.lease == LEASE
    assert pair.i.plane.history[:3] == ["install", "install", "remove"]
    assert len(pair.r.asks) == 1
    assert len(pair.i.plane.installed) == 1
    assert pair.agreed()
    assert all(not end.is_failure for end in ends(pair))


def test_it_does_so_again_and_again_and_over_rekeys() -> None:
    ours = replace(quiet(client()), reauth_s=60.0, rekey_s=25.0)
    pair = Pair(ours, quiet(gateway()))
    pair.connect()
    pair.run(300.0)
    assert established(pair) in {6, 7}
    assert pair.agreed()
    assert len(pair.i.plane.installed) == 1


def test_further_child_sas_come_along() -> None:
    ours = quiet(client())
    pair = Pair(replace(ours, reauth_s=60.0), quiet(gateway()))
    pair.connect()
    more = replace(ours.child, name="more")
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.create_child(sa, more, now))
    pair.run(62.0)
    assert sorted(child.name for child in pair.i.plane.installed.values()) == ["more", "net"]
    assert pair.agreed()


@pytest.mark.rfc("4478", "3")
def test_a_responder_says_how_long_it_trusts_and_is_obeyed() -> None:
    pair = Pair(quiet(client()), replace(quiet(gateway()), reauth_s=60.0))
    pair.connect()
    pair.run(55.0)
    assert established(pair) == 2
    assert pair.agreed()


@pytest.mark.rfc("4478", "3")
def test_a_responder_ends_what_is_not_authenticated_again_in_time() -> None:
    pair = Pair(quiet(client()), replace(quiet(gateway()), reauth_s=60.0))

    def is_no_new_ike_sa(sender: str, header: IkeHeader, _: bytes) -> bool:
        return sender != "i" or header.exchange != 34 or pair.now < 1010.0

    pair.wire.filter = is_no_new_ike_sa
    pair.connect()
    pair.run(65.0)
    (end,) = ends(pair)
    assert "did not authenticate itself again in time" in end.reason


def test_where_nothing_comes_of_it_it_is_asked_for_again() -> None:
    pair = Pair(replace(quiet(client()), reauth_s=60.0), quiet(gateway()))

    def is_early_or_late(sender: str, header: IkeHeader, _: bytes) -> bool:
        return sender != "i" or header.exchange != 34 or not 1010.0 < pair.now < 1100.0

    pair.wire.filter = is_early_or_late
    pair.connect()
    pair.run(120.0)
    assert len([f for f in pair.i.facts if isinstance(f, ReauthenticationDue)]) >= 2
    assert established(pair) >= 2
    assert len(pair.i.plane.installed) == 1
    assert pair.agreed()
