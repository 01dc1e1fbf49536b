"""Redirects: from whom they are taken, and who is sent away."""

from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator, ScriptedResponder, clear
from tests.kit.pair import Host, Pair, address
from tests.kit.policies import client, gateway, quiet
from tunnelwrap.errors import InvalidSyntax
from tunnelwrap.iana import ExchangeType, NotifyType
from tunnelwrap.ike.outputs import Closed, Established, Redirected
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.ike.redirect import decoded, encoded
from tunnelwrap.wire.payloads import Auth, Nonce, Notify, Payload
from tunnelwrap.wire.proposal import SaPayload

OTHER = "vpn2.example.org"


def sent_to(host: Host) -> str | None:
    fact = host.fact(Redirected)
    return fact.gateway if fact is not None else None


def closed(host: Host) -> Closed:
    fact = host.fact(Closed)
    assert fact is not None
    return fact


def stubborn(policy: ConnectionPolicy) -> ConnectionPolicy:
    return replace(quiet(policy), follows_redirects=False)


@pytest.mark.rfc("5685", "3")
@pytest.mark.parametrize("gateway_name", [OTHER, "192.0.2.77", "2001:db8::77"])
def test_whoever_comes_is_sent_away_in_ike_sa_init(gateway_name: str) -> None:
    pair = Pair(quiet(client()), quiet(gateway()), redirect_to=gateway_name)
    pair.connect()
    assert sent_to(pair.i) == gateway_name
    assert not closed(pair.i).is_failure
    assert len(pair.r.sent) == 1
    assert pair.r.facts == [], "nothing is kept of it"


@pytest.mark.rfc("5685", "9.1")
@pytest.mark.parametrize("follows", [True, False])
def test_who_can_follow_says_so(follows: bool) -> None:  # noqa: FBT001 (a column)
    pair = Pair(replace(quiet(client()), follows_redirects=follows), quiet(gateway()))
    pair.initiate()
    said = clear(pair.i.sent[0].octets).notify(NotifyType.REDIRECT_SUPPORTED)
    assert (said is not None) is follows
    assert said is None or (said.protocol, said.spi, said.data) == (0, b"", b"")


@pytest.mark.rfc("5685", "3")
def test_who_cannot_follow_is_served() -> None:
    pair = Pair(stubborn(client()), quiet(gateway()), redirect_to=OTHER)
    pair.connect()
    assert pair.agreed()
    assert pair.i.fact(Established) is not None


@pytest.mark.rfc("5685", "9.3")
def test_who_was_sent_says_from_where_and_may_be_sent_on() -> None:
    pair = Pair(quiet(client()), quiet(gateway()), redirect_to=OTHER)
    came_from = address("192.0.2.99").ip
    pair.i.endpoint.initiate(pair.policy, pair.path, pair.now, redirected_from=came_from)
    pair.drain(pair.i)
    message = clear(pair.i.sent[0].octets)
    notify = message.notify(NotifyType.REDIRECTED_FROM)
    assert notify is not None
    assert notify.data == encoded("192.0.2.99") == b"\x01\x04\xc0\x00\x02\x63"
    assert message.notify(NotifyType.REDIRECT_SUPPORTED) is None
    pair.run(1.0)
    assert sent_to(pair.i) == OTHER


@pytest.mark.rfc("5685", "6")
def test_some_are_sent_away_when_they_are_known() -> None:
    pair = Pair(quiet(client()), replace(quiet(gateway()), redirect_to=OTHER))
    pair.connect()
    assert sent_to(pair.i) == OTHER
    assert not closed(pair.i).is_failure
    assert not closed(pair.r).is_failure, "the IKE SA is deleted"
    assert pair.i.fact(Established) is None
    assert pair.r.fact(Established) is None
    assert pair.i.plane.history == pair.r.plane.history == []


@pytest.mark.rfc("5685", "6")
def test_a_peer_that_does_not_go_is_forgotten() -> None:
    peer = ScriptedInitiator(quiet(client()), replace(quiet(gateway()), redirect_to=OTHER))
    response = peer.connect()
    assert response is not None
    assert response.find(Auth) is not None
    assert response.find(SaPayload) is None
    peer.wait(40.0)
    assert peer.fact(Closed) is not None


def test_of_those_that_are_known_too_only_who_can_follow_is_sent() -> None:
    pair = Pair(stubborn(client()), replace(quiet(gateway()), redirect_to=OTHER))
    pair.connect()
    assert pair.agreed()
    assert pair.r.fact(Established) is not None


@pytest.mark.rfc("5685", "5")
@pytest.mark.parametrize("is_rekeyed", [False, True])
def test_an_established_peer_is_sent_away(is_rekeyed: bool) -> None:  # noqa: FBT001 (a column)
    pair = Pair(quiet(client()), quiet(gateway()))
    pair.connect()
    if is_rekeyed:
        pair.do(pair.i, lambda endpoint, sa, now: endpoint.rekey(sa, now))
        pair.run(1.0)
    assert pair.r.endpoint.redirect(pair.sa_r, OTHER, pair.now)
    pair.drain(pair.r)
    pair.run(1.0)
    assert sent_to(pair.i) == OTHER
    assert not closed(pair.r).is_failure
    assert not pair.r.plane.installed


def test_one_that_cannot_follow_stays() -> None:
    pair = Pair(stubborn(client()), quiet(gateway()))
    pair.connect()
    assert not pair.r.endpoint.redirect(pair.sa_r, OTHER, pair.now)
    pair.run(1.0)
    assert pair.agreed()
    assert pair.i.plane.installed


@pytest.mark.rfc("5685", "10")
def test_an_initiator_sends_nobody_away() -> None:
    pair = Pair(quiet(client()), quiet(gateway()))
    pair.connect()
    assert not pair.i.endpoint.redirect(pair.sa_i, OTHER, pair.now)
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    peer.connect()
    peer.ask(ExchangeType.INFORMATIONAL, Notify.of(NotifyType.REDIRECT, encoded(OTHER)))
    assert peer.fact(Redirected) is None
    assert peer.fact(Closed) is None


# --- redirects that are none ------------------------------------------------------------------


def redirect(data: bytes) -> Notify:
    return Notify.of(NotifyType.REDIRECT, data)


@pytest.mark.rfc("5685", "3")
@pytest.mark.parametrize("nonce", [b"", bytes(32)], ids=["none", "another"])
def test_without_our_nonce_a_redirect_is_not_believed(nonce: bytes) -> None:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()))
    request = clear(peer.first)
    peer.sa.spi_i = request.spi_i
    forged = peer.sa.reply(ExchangeType.IKE_SA_INIT, 0, [redirect(encoded(OTHER, nonce))])
    peer.deliver(forged.encode())
    assert peer.fact(Redirected) is None
    assert peer.fact(Closed) is None, "the true answer may still come"
    own = request.find(Nonce)
    assert own is not None
    true = peer.sa.reply(ExchangeType.IKE_SA_INIT, 0, [redirect(encoded(OTHER, own.data))])
    peer.deliver(true.encode())
    assert peer.fact(Redirected) == Redirected(peer.name, OTHER)


def test_who_did_not_ask_is_not_redirected() -> None:
    peer = ScriptedResponder(stubborn(client()), quiet(gateway()))
    own = clear(peer.first).find(Nonce)
    assert own is not None
    peer.sa.spi_i = clear(peer.first).spi_i
    told = peer.sa.reply(ExchangeType.IKE_SA_INIT, 0, [redirect(encoded(OTHER, own.data))])
    peer.deliver(told.encode())
    assert peer.fact(Redirected) is None


def in_place_of_the_child(payloads: list[Payload]) -> list[Payload]:
    kept = [p for p in payloads if not isinstance(p, SaPayload)]
    return [*kept, redirect(encoded(OTHER))]


def with_another_auth(payloads: list[Payload]) -> list[Payload]:
    spoiled = [Auth(p.method, bytes(32)) if isinstance(p, Auth) else p for p in payloads]
    return in_place_of_the_child(spoiled)


@pytest.mark.rfc("5685", "6")
def test_in_ike_auth_the_gateway_must_have_proved_itself() -> None:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()))
    peer.connect(with_another_auth)
    assert peer.fact(Redirected) is None
    fact = peer.fact(Closed)
    assert fact is not None
    assert fact.notify == NotifyType.AUTHENTICATION_FAILED


def test_in_ike_auth_who_did_not_ask_is_not_redirected() -> None:
    peer = ScriptedResponder(stubborn(client()), quiet(gateway()))
    peer.connect(in_place_of_the_child)
    assert peer.fact(Redirected) is None
    fact = peer.fact(Closed)
    assert fact is not None
    assert fact.notify == NotifyType.INVALID_SYNTAX


@pytest.mark.rfc("5685", "5")
@pytest.mark.parametrize("data", [b"", b"\x01\x03abc", encoded(OTHER, bytes(16)), b"\x07\x01a"])
def test_in_informational_what_is_no_redirect_changes_nothing(data: bytes) -> None:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()))
    peer.connect()
    assert peer.ask(ExchangeType.INFORMATIONAL, redirect(data)) is not None
    assert peer.fact(Redirected) is None
    assert peer.fact(Closed) is None


@pytest.mark.rfc("5685", "9.2")
@pytest.mark.parametrize(
    "data", [b"", b"\x03\x00", b"\x03\x04a\nb.", b"\x01\x05abcde", b"\x02\x04abcd", b"\x03\x09abc"]
)
def test_gateways_that_are_none(data: bytes) -> None:
    with pytest.raises(InvalidSyntax):
        decoded(data)


@pytest.mark.rfc("5685", "9.2")
@pytest.mark.parametrize("name", [OTHER, "192.0.2.1", "2001:db8::1"])
def test_gateways_that_are(name: str) -> None:
    assert decoded(encoded(name, b"nonce")) == (name, b"nonce")
