"""A peer that has lost its state: what it says, and what is believed."""

import random
import struct
from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator, ScriptedResponder, clear
from tests.kit.pair import NOW, Host, Pair
from tests.kit.policies import client, gateway, quiet
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.iana import ExchangeType, NotifyType, PayloadType, ProtocolId
from tunnelwrap.ike.crash import offer
from tunnelwrap.ike.endpoint import Endpoint
from tunnelwrap.ike.outputs import Closed, Established
from tunnelwrap.path import Path
from tunnelwrap.wire.message import IkeHeader, Message
from tunnelwrap.wire.payloads import Delete, Notify

SECRET = Secret(b"survives the crash of its endpoint")


def pair_of(*, makes_tokens: bool = True) -> Pair:
    pair = Pair(quiet(client()), quiet(gateway()), token_secret=SECRET if makes_tokens else None)
    pair.connect()
    return pair


def crash(pair: Pair, host: Host, *, makes_tokens: bool = True) -> None:
    """It begins anew, with nothing but its configuration and its secret."""
    pair.restart(host, token_secret=SECRET if makes_tokens else None)


def liveness(pair: Pair, host: Host) -> None:
    """Say something that wants an answer."""
    pair.do(host, lambda endpoint, sa, now: endpoint.rekey(sa, now))


def closed(host: Host) -> Closed | None:
    return host.fact(Closed)


@pytest.mark.rfc("6290", "4.2")
@pytest.mark.rfc("6290", "3")
@pytest.mark.parametrize("name", ["i", "r"])
def test_who_has_lost_its_state_shows_its_token_and_is_believed(name: str) -> None:
    pair = pair_of()
    lost, other = (pair.i, pair.r) if name == "i" else (pair.r, pair.i)
    crash(pair, lost)
    liveness(pair, other)
    pair.run(0.1)
    end = closed(other)
    assert end is not None
    assert end.reason == "the peer has lost its state"
    assert not other.plane.installed


@pytest.mark.rfc("6290", "4.3")
@pytest.mark.parametrize("name", ["i", "r"])
@pytest.mark.parametrize("rekeyer", ["i", "r"])
def test_a_rekeyed_ike_sa_has_a_token_of_its_own(name: str, rekeyer: str) -> None:
    pair = pair_of()
    pair.do(pair.i if rekeyer == "i" else pair.r, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(2.0)
    lost, other = (pair.i, pair.r) if name == "i" else (pair.r, pair.i)
    crash(pair, lost)
    liveness(pair, other)
    pair.run(0.1)
    end = closed(other)
    assert end is not None
    assert end.reason == "the peer has lost its state"


@pytest.mark.rfc("5723", "9.4")
@pytest.mark.rfc("7296", "2.21.4")
def test_without_a_token_nothing_is_believed() -> None:
    pair = pair_of(makes_tokens=False)
    crash(pair, pair.r, makes_tokens=False)
    liveness(pair, pair.i)
    pair.run(5.0)
    assert closed(pair.i) is None, "it goes on asking"
    assert pair.i.plane.installed


def test_esp_of_a_forgotten_child_sa_brings_it_to_light() -> None:
    """ESP is told INVALID_SPI, that leads to a liveness check, and its answer has the token."""
    pair = pair_of()
    sending = pair.i.plane.sending
    assert sending is not None
    crash(pair, pair.r)
    pair.r.endpoint.unknown_esp(sending.spi_out.to_bytes(4, "big"), mirrored(pair), pair.now)
    pair.drain(pair.r)
    pair.run(0.1)
    end = closed(pair.i)
    assert end is not None
    assert end.reason == "the peer has lost its state"


def mirrored(pair: Pair) -> Path:
    return replace(pair.path, local=pair.path.peer, peer=pair.path.local)


@pytest.mark.rfc("7296", "1.5")
def test_unknown_esp_of_a_known_peer_is_told_inside_the_ike_sa() -> None:
    pair = pair_of()
    before = len(pair.r.sent)
    pair.r.endpoint.unknown_esp(b"\1\2\3\4", mirrored(pair), pair.now)
    pair.drain(pair.r)
    pair.run(0.1)
    (told,) = pair.r.sent[before:]
    header = IkeHeader.decode(told.octets)
    assert header.spi_i == IkeHeader.decode(pair.i.sent[0].octets).spi_i
    assert not header.is_initiator
    assert "knows no ESP with SPI 01020304" in pair.i.text()
    assert closed(pair.i) is None
    assert pair.agreed()


@pytest.mark.rfc("7296", "1.5")
def test_a_request_of_an_unknown_ike_sa_is_answered_with_its_own_spis() -> None:
    peer = ScriptedInitiator(client(), gateway())
    peer.connect()
    peer.endpoint = Endpoint(random.Random(10).randbytes, lambda: NOW)
    (answer,) = peer.deliver(peer.request(ExchangeType.INFORMATIONAL))
    message = clear(answer)
    assert message.is_response
    assert not message.is_initiator
    assert (message.spi_i, message.spi_r) == (peer.sa.spi_i, peer.sa.spi_r)
    assert message.exchange == ExchangeType.INFORMATIONAL
    assert message.message_id == peer.next_id - 1
    assert message.payloads == (Notify.of(NotifyType.INVALID_IKE_SPI),)


def test_what_comes_late_to_an_ike_sa_that_has_ended_is_not_answered() -> None:
    peer = ScriptedInitiator(client(), gateway())
    peer.connect()
    assert peer.ask(ExchangeType.INFORMATIONAL, Delete(ProtocolId.IKE, ())) is not None
    assert peer.fact(Closed) is not None
    peer.next_id -= 1
    assert peer.deliver(peer.request(ExchangeType.INFORMATIONAL)) == []


@pytest.mark.rfc("7296", "2.21.4")
def test_what_is_clear_or_a_response_is_not_answered() -> None:
    peer = ScriptedInitiator(client(), gateway())
    peer.init()
    stranger = replace(peer.sa.message(ExchangeType.INFORMATIONAL, 5, ()), spi_r=b"\7" * 8)
    assert peer.deliver(stranger.encode()) == []
    sealed = peer.sa.agreed[2].seal(replace(stranger, is_response=True))
    assert peer.deliver(sealed) == []
    assert peer.deliver(peer.sa.agreed[2].seal(replace(stranger, spi_r=bytes(8)))) == []
    assert len(peer.deliver(peer.sa.agreed[2].seal(stranger))) == 1


@pytest.mark.rfc("6290", "8.1")
@pytest.mark.rfc("7296", "2.21.4")
def test_answers_to_strangers_are_few() -> None:
    peer = ScriptedInitiator(client(), gateway())
    peer.init()
    stranger = replace(peer.sa.message(ExchangeType.INFORMATIONAL, 5, ()), spi_r=b"\7" * 8)
    octets = peer.sa.agreed[2].seal(stranger)
    assert len([octets for _ in range(100) if peer.deliver(octets)]) == 20
    peer.now += 1.0
    assert len([octets for _ in range(100) if peer.deliver(octets)]) == 10


@pytest.mark.rfc("6290", "9.2")
@pytest.mark.parametrize("flags", [0x00, 0x08, 0x20, 0x28])
@pytest.mark.parametrize("name", ["i", "r"])
def test_no_token_is_shown_while_its_ike_sa_lives(name: str, flags: int) -> None:
    """Nor to who turns the flag around that tells whose SPI is whose."""
    pair = pair_of()
    host = pair.i if name == "i" else pair.r
    before = len(host.sent)
    known = host.sent[-1].octets
    kind = bytes([PayloadType.SK, 0x20, ExchangeType.INFORMATIONAL, flags])
    pair.inject(host, known[:16] + kind + struct.pack("!II", 9, 80) + bytes(52))
    assert len(host.sent) == before
    pair.run(30.0)
    assert closed(pair.i) is closed(pair.r) is None


# --- what a stranger can do -------------------------------------------------------------------


def connected() -> ScriptedResponder:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()))
    peer.sa.context.token_secret = SECRET
    peer.connect()
    assert peer.fact(Established) is not None
    return peer


def forged(peer: ScriptedResponder, *payloads: Notify, is_response: bool = True) -> Message:
    return Message(
        peer.sa.spi_i,
        peer.sa.spi_r,
        ExchangeType.INFORMATIONAL,
        is_response=is_response,
        is_initiator=False,
        message_id=7,
        payloads=payloads,
    )


INVALID = Notify.of(NotifyType.INVALID_IKE_SPI)


def token(data: bytes) -> Notify:
    return Notify.of(NotifyType.QUICK_CRASH_DETECTION, data, ProtocolId.IKE)


def the_right_one(peer: ScriptedResponder) -> Notify:
    (notify,) = offer(peer.sa)
    assert isinstance(notify, Notify)
    return notify


@pytest.mark.rfc("6290", "4.1")
@pytest.mark.rfc("6290", "5")
@pytest.mark.rfc("6290", "5.1")
def test_a_token_is_of_its_ike_sa_and_of_a_secret() -> None:
    peer = connected()
    right = the_right_one(peer)
    assert right.encode()[:4] == bytes([ProtocolId.IKE, 0]) + (16419).to_bytes(2, "big")
    assert 16 <= len(right.data) <= 128
    assert the_right_one(peer) == right, "it can be made again"
    peer.sa.spi_r = bytes(8)
    assert the_right_one(peer) != right
    peer = connected()
    assert the_right_one(peer) == right
    peer.sa.context.token_secret = Secret(bytes(32))
    assert the_right_one(peer) != right


@pytest.mark.rfc("6290", "5")
@pytest.mark.parametrize("length", [15, 129])
def test_a_token_of_another_length_is_none(length: int) -> None:
    peer = connected()
    peer.ask(ExchangeType.INFORMATIONAL, token(bytes(length)))
    assert peer.deliver(forged(peer, INVALID, token(bytes(length))).encode()) != []
    assert peer.fact(Closed) is None
    peer.deliver(forged(peer, INVALID, the_right_one(peer)).encode())
    assert peer.fact(Closed) is not None, "the one before is still the right one"


@pytest.mark.rfc("6290", "8.1")
@pytest.mark.rfc("6290", "4.5")
def test_a_wrong_token_ends_nothing_and_asks_once_in_a_while() -> None:
    peer = connected()
    octets = forged(peer, INVALID, token(bytes(32))).encode()
    (check,) = peer.deliver(octets)
    assert peer.open(check).exchange == ExchangeType.INFORMATIONAL
    assert peer.open(check).payloads == ()
    assert peer.deliver(octets) == []
    peer.respond(check)
    assert peer.deliver(octets) == [], "not at every whim"
    peer.now += 10.0
    assert len(peer.deliver(octets)) == 1
    assert peer.fact(Closed) is None


@pytest.mark.rfc("6290", "4.5")
def test_the_right_one_among_four_counts_and_a_fifth_does_not() -> None:
    peer = connected()
    right = the_right_one(peer)
    wrong = token(bytes(32))
    peer.deliver(forged(peer, INVALID, wrong, wrong, wrong, wrong, right).encode())
    assert peer.fact(Closed) is None
    peer.deliver(forged(peer, INVALID, wrong, wrong, wrong, right).encode())
    assert peer.fact(Closed) is not None


def test_a_token_alone_or_in_a_request_says_nothing() -> None:
    peer = connected()
    right = the_right_one(peer)
    for message in (forged(peer, right), forged(peer, INVALID, right, is_response=False)):
        assert peer.deliver(message.encode()) == []
    assert peer.fact(Closed) is None
    assert peer.endpoint.counters["dropped_clear"] == 2


@pytest.mark.rfc("6290", "4.2")
def test_an_ike_sa_without_token_cannot_be_ended() -> None:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()))
    peer.connect()
    peer.deliver(forged(peer, INVALID, token(b"")).encode())
    assert peer.fact(Closed) is None


@pytest.mark.rfc("7296", "1.5")
def test_a_hint_from_elsewhere_is_no_hint() -> None:
    pair = pair_of()
    hint = Message(
        b"\5" * 8,
        bytes(8),
        ExchangeType.INFORMATIONAL,
        is_response=False,
        is_initiator=True,
        message_id=0,
        payloads=(Notify.of(NotifyType.INVALID_SPI, b"\1\2\3\4"),),
    ).encode()
    before = len(pair.i.sent)
    elsewhere = replace(pair.path, peer=replace(pair.path.peer, port=4501))
    pair.inject(pair.i, hint, elsewhere)
    assert len(pair.i.sent) == before
    pair.inject(pair.i, hint)
    assert len(pair.i.sent) == before + 1
