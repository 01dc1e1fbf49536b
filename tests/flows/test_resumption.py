"""Tickets: given, kept, shown once, and refused."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.flows.scripted import ScriptedInitiator, ScriptedResponder, clear
from tests.kit import certs
from tests.kit.certs import authority, entity
from tests.kit.pair import Pair, Wire
from tests.kit.policies import client, gateway, psk_local, psk_peer, quiet, road_warrior
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.x509 import TrustStore
from tunnelwrap.iana import ExchangeType, NotifyType
from tunnelwrap.ike.outputs import Closed, Established, Lease, Rekeyed
from tunnelwrap.ike.policy import (
    CertificateCredential,
    ConnectionPolicy,
    Limits,
    LocalAuthentication,
    PeerAuthentication,
    Ppk,
)
from tunnelwrap.path import Carrier
from tunnelwrap.wire.message import IkeHeader
from tunnelwrap.wire.payloads import KeyExchange, Nonce, Notify, Payload

LEASE = Lease((ip_address("10.9.0.2"),))
RESUME = ExchangeType.IKE_SESSION_RESUME


def lose(pair: Pair) -> None:
    """The initiator takes the responder for dead; that one knows nothing of it."""
    pair.wire.filter = lambda _sender, _header, _octets: False
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(150.0)
    closed = pair.i.fact(Closed)
    assert closed is not None
    assert closed.is_failure
    pair.wire.filter = None


def exchanges(pair: Pair) -> list[int]:
    """What the initiator has begun, in order."""
    found = []
    for datagram in pair.i.sent:
        header = IkeHeader.decode(datagram.octets)
        if not header.is_response and (not found or found[-1] != header.exchange):
            found.append(header.exchange)
    return found


def established(pair: Pair) -> int:
    return len([fact for fact in pair.r.facts if isinstance(fact, Established)])


def lost_pair(ours: ConnectionPolicy | None = None, theirs: ConnectionPolicy | None = None) -> Pair:
    pair = Pair(ours or quiet(client()), theirs or quiet(gateway()))
    pair.connect()
    lose(pair)
    pair.i.sent.clear()
    return pair


@pytest.mark.rfc("5723", "4.3")
@pytest.mark.parametrize("carrier", [Carrier.UDP, Carrier.TLS])
def test_a_lost_ike_sa_is_resumed_without_key_exchange(carrier: Carrier) -> None:
    pair = Pair(quiet(client()), quiet(gateway()), carrier=carrier)
    pair.connect()
    lose(pair)
    pair.path = replace(pair.path, id=pair.path.id + 1) if carrier.is_reliable else pair.path
    pair.i.sent.clear()
    pair.connect()
    assert exchanges(pair) == [RESUME, ExchangeType.IKE_AUTH]
    first = clear(pair.i.sent[0].octets)
    assert first.find(KeyExchange) is None
    assert first.find(Nonce) is not None
    assert established(pair) == 2
    assert len(pair.i.plane.installed) == 1
    assert pair.agreed()


@pytest.mark.rfc("5723", "4.3.4")
def test_the_old_ike_sa_goes_without_a_delete() -> None:
    pair = lost_pair()
    pair.r.sent.clear()
    pair.connect()
    reasons = [fact.reason for fact in pair.r.facts if isinstance(fact, Closed)]
    assert reasons == ["resumed"]
    kinds = {IkeHeader.decode(each.octets).exchange for each in pair.r.sent}
    assert kinds == {RESUME, ExchangeType.IKE_AUTH}


@pytest.mark.rfc("5723", "4.2")
@pytest.mark.rfc("5723", "4.3.3")
def test_it_is_resumed_again_and_again_with_a_new_ticket_each_time() -> None:
    pair = lost_pair()
    pair.connect()
    lose(pair)
    pair.i.sent.clear()
    pair.connect()
    assert exchanges(pair)[0] == RESUME
    assert established(pair) == 3
    assert pair.agreed()


def test_the_keys_are_new() -> None:
    pair = lost_pair()
    before = next(iter(pair.r.plane.installed.values()))
    pair.connect()
    after = next(iter(pair.r.plane.installed.values()))
    assert before.keys_in != after.keys_in


@pytest.mark.rfc("5723", "5")
def test_addresses_are_asked_for_anew_and_kept() -> None:
    ours, theirs = road_warrior()
    pair = Pair(quiet(ours), quiet(theirs), lease=LEASE)
    pair.connect()
    lose(pair)
    pair.connect()
    assert established(pair) == 2
    fact = pair.i.fact(Established)
    assert fact is not None
    assert fact.lease == LEASE
    assert pair.agreed()


@pytest.mark.rfc("5723", "4.2")
@pytest.mark.rfc("5723", "4.3.3")
def test_with_certificates_none_is_shown_again() -> None:
    root = authority("Root")
    mine = entity("CN=client", root, number=2, sans=["client@example.org"])
    its = entity("CN=gateway", root, number=1, sans=["vpn.example.org"])
    ours, theirs = (
        replace(
            quiet(policy),
            local=LocalAuthentication(policy.local.identity, CertificateCredential(e.chain, e.key)),
            peer=PeerAuthentication(policy.peer.identity, None, TrustStore([root.certificate])),
        )
        for policy, e in ((client(), mine), (gateway(), its))
    )
    pair = Pair(ours, theirs, wall_now=certs.NOW)
    pair.connect()
    lose(pair)
    pair.i.sent.clear()
    pair.connect()
    assert exchanges(pair) == [RESUME, ExchangeType.IKE_AUTH]
    assert max(len(each.octets) for each in pair.i.sent) < 500
    assert pair.agreed()


@pytest.mark.rfc("5723", "6.2")
@pytest.mark.parametrize("who", ["i", "r"])
def test_a_rekeyed_ike_sa_has_another_ticket(who: str) -> None:
    pair = Pair(quiet(client()), quiet(gateway()))
    pair.connect()
    pair.do(pair.i if who == "i" else pair.r, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(2.0)
    lose(pair)
    pair.i.sent.clear()
    pair.connect()
    assert exchanges(pair) == [RESUME, ExchangeType.IKE_AUTH]
    assert len(pair.r.plane.installed) == 1
    assert pair.agreed()


@pytest.mark.rfc("5723", "6.2")
@pytest.mark.parametrize("who", ["i", "r"])
def test_after_a_good_end_there_is_no_ticket(who: str) -> None:
    pair = Pair(quiet(client()), quiet(gateway()))
    pair.connect()
    host = pair.i if who == "i" else pair.r
    pair.do(host, lambda endpoint, sa, now: endpoint.close(sa, "done", now))
    pair.run(2.0)
    pair.i.sent.clear()
    pair.connect()
    assert exchanges(pair)[0] == ExchangeType.IKE_SA_INIT


def test_no_ticket_is_shown_while_its_ike_sa_lives() -> None:
    pair = Pair(replace(quiet(client()), reauth_s=60.0), quiet(gateway()))
    pair.connect()
    pair.run(60.0)
    assert established(pair) == 2
    assert RESUME not in exchanges(pair), "proving again means proving"


# --- tickets that are not taken ---------------------------------------------------------------


@pytest.mark.rfc("5723", "4.3.2")
def test_a_gateway_that_has_lost_its_keys_is_met_as_for_the_first_time() -> None:
    pair = lost_pair()
    pair.restart(pair.r)
    pair.connect()
    assert exchanges(pair) == [RESUME, ExchangeType.IKE_SA_INIT, ExchangeType.IKE_AUTH]
    assert pair.agreed()
    assert pair.i.plane.installed


def test_the_same_on_a_bad_network() -> None:
    pair = lost_pair()
    pair.restart(pair.r)
    pair.wire.loss, pair.wire.duplication, pair.wire.jitter = 0.3, 0.3, 0.05
    pair.connect(until=60.0)
    assert pair.agreed()
    assert pair.i.plane.installed


@pytest.mark.rfc("5723", "4.3.1")
def test_an_expired_ticket_is_not_shown() -> None:
    theirs = replace(quiet(gateway()), reauth_s=100.0)  # bounds the lifetime of tickets
    pair = lost_pair(theirs=theirs)
    pair.connect()
    assert exchanges(pair)[0] == ExchangeType.IKE_SA_INIT
    assert pair.agreed()


@pytest.mark.parametrize("who", ["i", "r"])
def test_who_does_not_want_it_does_not_do_it(who: str) -> None:
    ours = replace(quiet(client()), resumption=who != "i")
    theirs = replace(quiet(gateway()), resumption=who != "r")
    pair = lost_pair(ours, theirs)
    pair.connect()
    assert exchanges(pair)[0] == ExchangeType.IKE_SA_INIT


def test_a_changed_policy_of_ours_asks_for_new_proof() -> None:
    pair = lost_pair()
    pair.policy = replace(pair.policy, local=psk_local("someone@example.org"))
    pair.connect(until=1.0)
    assert exchanges(pair)[0] == ExchangeType.IKE_SA_INIT


# --- what can be done with a stolen or old one ------------------------------------------------


def ticket_of(peer: ScriptedInitiator) -> Notify:
    """A ticket that the endpoint gives."""
    response = peer.connect()
    assert response is not None
    notify = response.notify(NotifyType.TICKET_LT_OPAQUE)
    assert notify is not None
    assert int.from_bytes(notify.data[:4], "big") > 0
    return Notify.of(NotifyType.TICKET_OPAQUE, notify.data[4:])


def show(peer: ScriptedInitiator, ticket: Notify, spi: int) -> Payload | None:
    """Begin with a ticket; what the endpoint has to say of it."""
    message = replace(
        peer.sa.message(RESUME, 0, [Nonce(bytes(32)), ticket]),
        spi_i=spi.to_bytes(8, "big"),
        spi_r=bytes(8),
    )
    (answer,) = peer.deliver(message.encode())
    return clear(answer).payloads[0]


NACK = Notify.of(NotifyType.TICKET_NACK)


@pytest.mark.rfc("5723", "6.1")
@pytest.mark.rfc("5723", "9.9")
def test_a_ticket_that_is_changed_cut_or_old_is_refused() -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    ticket = ticket_of(peer)
    spoiled = bytearray(ticket.data)
    spoiled[-1] ^= 1
    other_key = bytearray(ticket.data)
    other_key[3] ^= 1
    cut = (b"", ticket.data[:7], ticket.data[:-1])
    for number, data in enumerate((bytes(spoiled), bytes(other_key), *cut)):
        assert show(peer, replace(ticket, data=data), number + 1) == NACK
    assert isinstance(show(peer, ticket, 50), Nonce)
    peer.now += 86401.0
    assert show(peer, ticket, 51) == NACK
    peer.now += 86400.0 * 3
    assert show(peer, ticket, 52) == NACK


@pytest.mark.rfc("5723", "9.1")
@pytest.mark.rfc("5723", "9.10")
def test_a_ticket_shows_nobody_what_is_in_it() -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    ticket = ticket_of(peer).data
    names = b"client@example.org", b"vpn.example.org", b"clients"
    for inside in (*names, peer.sa.keys.sk_d.reveal()):
        assert inside not in ticket


@pytest.mark.rfc("5723", "9.10")
@pytest.mark.rfc("5723", "4.3.1")
def test_a_ticket_is_good_once() -> None:
    pair = lost_pair()
    pair.connect()
    replayed = clear(pair.i.sent[0].octets)
    assert replayed.exchange == RESUME
    pair.r.sent.clear()
    pair.inject(pair.r, replace(replayed, spi_i=b"\5" * 8).encode())
    (answer,) = pair.r.sent
    assert clear(answer.octets).payloads == (NACK,)


def test_of_two_that_show_it_at_once_the_first_to_prove_itself_has_it() -> None:
    pair = lost_pair()
    pair.i.authenticates = False
    one = pair.initiate()
    two = pair.initiate()
    pair.run(1.0)
    for each in (one, two):
        pair.i.endpoint.authenticate(each, pair.now)
        pair.drain(pair.i)
    pair.run(1.0)
    assert established(pair) == 2
    assert [f.sa for f in pair.i.facts if isinstance(f, Closed)][-1] == two
    assert "used before" in pair.r.text() + str(pair.r.fact(Closed))
    assert pair.agreed()


@pytest.mark.rfc("5723", "9.1")
def test_who_does_not_know_the_keys_gets_nothing() -> None:
    """AUTH of a stolen ticket cannot even be sealed: it is dropped in silence."""
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    ticket = ticket_of(peer)
    assert isinstance(show(peer, ticket, 50), Nonce)
    (established_once,) = [f for f in peer.facts if isinstance(f, Established)]
    peer.wait(60.0)
    assert [f for f in peer.facts if isinstance(f, Established)] == [established_once]


@pytest.mark.rfc("5723", "7")
@pytest.mark.rfc("5723", "4.3.2")
def test_a_gateway_that_knows_no_tickets_is_asked_in_vain() -> None:
    peer = ScriptedInitiator(quiet(client()), replace(quiet(gateway()), resumption=False))
    response = peer.connect()
    assert response is not None
    assert response.notify(NotifyType.TICKET_NACK) is not None
    assert response.notify(NotifyType.TICKET_LT_OPAQUE) is None
    assert peer.fact(Established) is not None


@pytest.mark.rfc("5723", "7")
@pytest.mark.rfc("5723", "4.1")
def test_a_ticket_is_given_at_any_time() -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    peer.connect()
    answer = peer.ask(ExchangeType.INFORMATIONAL, Notify.of(NotifyType.TICKET_REQUEST))
    assert answer is not None
    assert answer.notify(NotifyType.TICKET_LT_OPAQUE) is not None


@pytest.mark.rfc("5723", "4.1")
def test_only_the_initiator_gets_tickets() -> None:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()))
    peer.connect()
    answer = peer.ask(ExchangeType.INFORMATIONAL, Notify.of(NotifyType.TICKET_REQUEST))
    assert answer is not None
    assert answer.payloads == ()


def test_a_forged_refusal_of_the_ticket_costs_a_key_exchange() -> None:
    """Whoever can answer for the gateway can have us begin anew, and no more."""
    pair = lost_pair()
    (request,) = [pair.initiate()]
    header = IkeHeader.decode(pair.i.sent[0].octets)
    asked = clear(pair.i.sent[0].octets)
    forged = replace(asked, is_response=True, is_initiator=False, payloads=(NACK,))
    pair.inject(pair.i, forged.encode())
    pair.run(3.0)
    assert header.exchange == RESUME
    assert request == pair.sa_i
    assert pair.agreed()
    assert pair.i.plane.installed


@pytest.mark.parametrize("seed", range(6))
def test_resumption_on_a_bad_network(seed: int) -> None:
    pair = Pair(quiet(client()), quiet(gateway()), seed=seed)
    pair.connect()
    lose(pair)
    pair.wire = Wire(loss=0.3, duplication=0.3, jitter=0.1, seed=seed)
    pair.connect(until=60.0)
    assert pair.agreed()
    assert len(pair.i.plane.installed) == 1


@pytest.mark.rfc("5723", "9.7")
def test_peers_of_other_names_cannot_use_it() -> None:
    theirs = [
        quiet(gateway()),
        replace(quiet(gateway()), name="others", peer=psk_peer("*.example.net")),
    ]
    pair = Pair(quiet(client()), theirs)
    pair.connect()
    lose(pair)
    pair.connect()
    fact = pair.r.fact(Established)
    assert fact is not None
    assert fact.connection == "clients"


@pytest.mark.rfc("5723", "4.3.2")
@pytest.mark.parametrize("takes_ticket", [True, False])
def test_under_load_a_ticket_needs_a_cookie_too(takes_ticket: bool) -> None:  # noqa: FBT001 (a column)
    pair = Pair(quiet(client()), quiet(gateway()), limits=Limits(cookie_threshold=0))
    pair.connect()
    lose(pair)
    if not takes_ticket:
        pair.restart(pair.r)
    pair.i.sent.clear()
    pair.connect()
    assert pair.agreed()
    assert pair.i.plane.installed
    first = [clear(each.octets) for each in pair.i.sent if each.octets[18] == RESUME]
    assert [m.notify(NotifyType.COOKIE) is not None for m in first] == [False, True][: len(first)]
    assert (ExchangeType.IKE_SA_INIT in exchanges(pair)) is not takes_ticket


def test_long_proofs_of_a_resumed_ike_sa_come_in_fragments() -> None:
    """What the peers can do is found out anew."""
    ours, theirs = (replace(quiet(p), fragment_size=300) for p in (client(), gateway()))
    pair = lost_pair(ours, theirs)
    pair.connect()
    assert pair.agreed()
    longest = max(
        len(each.octets) for each in (*pair.i.sent, *pair.r.sent) if each.octets[18] == 35
    )
    assert longest <= 300


HYBRID = "aes128gcm16-prfsha256-x25519-ke1_ecp256"


@pytest.mark.rfc("9370", "2.2.5")
@pytest.mark.rfc("9370", "2.2.4")
@pytest.mark.parametrize("rekeyer", [None, "i", "r"])
def test_an_ike_sa_with_additional_key_exchanges_is_resumed_without_any(
    rekeyer: str | None,
) -> None:
    """Its ticket is of its last keys: after a rekey it comes with the last IKE_FOLLOWUP_KE."""
    pair = Pair(quiet(client(HYBRID)), quiet(gateway(HYBRID)))
    pair.connect()
    if rekeyer is not None:
        pair.do(pair.i if rekeyer == "i" else pair.r, lambda e, sa, now: e.rekey(sa, now))
        pair.run(2.0)
        assert pair.i.fact(Rekeyed) is not None
    lose(pair)
    pair.i.sent.clear()
    pair.connect()
    assert exchanges(pair) == [RESUME, ExchangeType.IKE_AUTH]
    assert established(pair) == 2
    assert pair.agreed()
    assert len(pair.i.plane.installed) == 1


@pytest.mark.rfc("8784", "3")
def test_a_resumed_ike_sa_needs_no_ppk_again() -> None:
    """It is in the old SK_d, and MUST NOT be mixed in once more."""
    key = Ppk(b"shared", Secret(bytes(32)), is_required=True)
    ours, theirs = replace(quiet(client()), ppk=key), replace(quiet(gateway()), ppk=key)
    pair = lost_pair(ours, theirs)
    pair.connect()
    assert exchanges(pair) == [RESUME, ExchangeType.IKE_AUTH]
    assert established(pair) == 2
    assert pair.agreed()
