"""IKE_SA_INIT and IKE_AUTH between two endpoints in memory."""

from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedResponder, clear
from tests.kit.pair import Pair, Wire
from tests.kit.policies import client, gateway, selectors
from tunnelwrap.iana import ExchangeType, NotifyType
from tunnelwrap.ike.outputs import Answered, Closed, Established
from tunnelwrap.ike.policy import Limits, Unique
from tunnelwrap.wire.message import VERSION_OFFSET, IkeHeader
from tunnelwrap.wire.payloads import Notify


def sent(pair: Pair, exchange: int) -> list[bytes]:
    """Requests of the initiator, octet for octet."""
    octets = [datagram.octets for datagram in pair.i.sent]
    return [o for o in octets if IkeHeader.decode(o).exchange == exchange]


def test_two_round_trips_make_an_ike_sa_and_a_child_sa() -> None:
    pair = Pair(client(), gateway())
    pair.connect()
    ours, theirs = pair.i.fact(Established), pair.r.fact(Established)
    assert ours is not None
    assert theirs is not None
    assert ours.peer_identity == "vpn.example.org"
    assert theirs.peer_identity == "client@example.org"
    assert len(pair.i.sent) == 2
    assert len(pair.r.sent) == 2
    assert pair.agreed()
    child = pair.i.plane.sending
    peer = pair.r.plane.sending
    assert child is not None
    assert peer is not None
    assert child.keys_out == peer.keys_in
    assert child.keys_in == peer.keys_out
    assert child.ts_local == peer.ts_peer == selectors("10.1.0.0/24")


@pytest.mark.rfc("7296", "1.2")
def test_the_responder_asks_for_another_key_exchange_and_gets_it() -> None:
    pair = Pair(
        client("aes128gcm16-prfsha256-x25519-ecp256"), gateway("aes128gcm16-prfsha256-ecp256")
    )
    pair.connect()
    assert pair.agreed()
    first, second = sent(pair, ExchangeType.IKE_SA_INIT)
    assert first[:8] == second[:8], "the SPI stays"
    assert pair.i.fact(Established) is not None


def test_strangers_who_are_refused_again_and_again_do_not_fill_the_log() -> None:
    pair = Pair(client("aes128gcm16-prfsha256-x25519"), gateway("aes256-sha256-modp2048"))
    for _ in range(50):
        pair.connect()
    warnings = [trace for trace in pair.r.traces if trace.level == "warning"]
    assert len(pair.r.sent) >= 50
    assert 5 <= len(warnings) < 5 + 1 + pair.now // 5 - 1000 // 5


@pytest.mark.rfc("7296", "2.7")
def test_no_common_proposal_is_refused_and_both_offers_are_named() -> None:
    pair = Pair(client("aes128gcm16-prfsha256-x25519"), gateway("aes256-sha256-modp2048"))
    pair.connect()
    closed = pair.i.fact(Closed)
    assert closed is not None
    assert closed.notify == NotifyType.NO_PROPOSAL_CHOSEN
    assert "AES_GCM_16" in closed.hint
    assert "nearest" in pair.r.text()
    assert "AES_CBC" in pair.r.text()
    assert "AES_GCM_16" in pair.r.text()


@pytest.mark.rfc("7296", "2.1")
def test_lost_messages_are_repeated_octet_for_octet() -> None:
    drops = {"left": 3}

    def lose_first(sender: str, header: IkeHeader, octets: bytes) -> bool:
        drops["left"] -= 1
        return drops["left"] < 0

    pair = Pair(client(), gateway(), Wire(filter=lose_first))
    pair.connect(until=30.0)
    assert pair.agreed()
    requests = sent(pair, ExchangeType.IKE_SA_INIT)
    assert len(requests) > 1
    assert len(set(requests)) == 1


@pytest.mark.parametrize("seed", range(8))
def test_a_bad_network_only_slows_it_down(seed: int) -> None:
    wire = Wire(delay=0.05, jitter=0.4, loss=0.25, duplication=0.3, seed=seed)
    pair = Pair(client(), gateway(), wire, seed=seed)
    pair.connect(until=120.0)
    assert pair.i.fact(Established) is not None
    assert pair.agreed()
    assert len(pair.i.plane.installed) == 1


def test_a_repeated_request_gets_the_identical_response() -> None:
    pair = Pair(client(), gateway())
    pair.connect()
    requests, responses = ([d.octets for d in host.sent] for host in (pair.i, pair.r))
    assert len(requests) == len(responses) == 2
    for request, response in zip(requests, responses, strict=True):
        pair.inject(pair.r, request)
        assert pair.r.sent[-1].octets == response
    assert len(pair.r.sent) == 4


def test_no_answer_at_all_ends_with_the_time_waited() -> None:
    pair = Pair(client(), gateway(), Wire(loss=1.0))
    pair.connect(until=300.0)
    closed = pair.i.fact(Closed)
    assert closed is not None
    assert "no answer from udp 198.51.100.1:4500" in closed.reason
    assert len(set(sent(pair, ExchangeType.IKE_SA_INIT))) == 1


def test_half_open_ike_sas_are_few_and_forgotten() -> None:
    pair = Pair(client(), gateway(), limits=Limits(half_open=3, half_open_s=10.0))
    pair.i.authenticates = False
    for _ in range(5):
        pair.initiate()
    pair.run(0.1)
    assert pair.r.endpoint.counters["dropped_half_open"] == 2
    pair.run(150.0)
    assert len(pair.r.closed) >= 3
    pair.i.authenticates = True
    pair.initiate()
    pair.run(2.0)
    assert pair.r.fact(Established) is not None


def test_an_established_ike_sa_is_not_half_open() -> None:
    pair = Pair(client(), gateway(), limits=Limits(half_open=2))
    for _ in range(5):
        pair.initiate()
        pair.run(1.0)
    assert len(pair.r.plane.installed) == 5


def test_the_shell_decides_who_goes_on_to_authenticate() -> None:
    pair = Pair(client(), gateway())
    pair.i.authenticates = False
    pair.connect(until=2.0)
    assert pair.i.fact(Answered) is not None
    assert not sent(pair, ExchangeType.IKE_AUTH)
    pair.i.endpoint.abandon(pair.sa_i, "another carrier won")
    pair.drain(pair.i)
    pair.run(5.0)
    assert len(pair.i.sent) == 1


@pytest.mark.rfc("7296", "2.21")
def test_any_changed_octet_in_ike_auth_is_dropped_in_silence() -> None:
    """The whole message is authenticated; the true one is still taken afterwards.

    Under another SPI it would be of another IKE SA, which is told so: test_crash has that.
    """
    pair = Pair(client(), gateway())
    pair.wire.filter = lambda sender, header, octets: header.exchange != ExchangeType.IKE_AUTH
    pair.connect(until=0.1)
    (request,) = sent(pair, ExchangeType.IKE_AUTH)
    answers = len(pair.r.sent)
    for position in sorted({*range(len(request))} - {VERSION_OFFSET, *range(8, 16)}):
        spoiled = bytearray(request)
        spoiled[position] ^= 0x40
        pair.inject(pair.r, bytes(spoiled))
    assert len(pair.r.sent) == answers
    assert pair.r.fact(Established) is None
    pair.inject(pair.r, request)
    assert pair.r.fact(Established) is not None


@pytest.mark.rfc("7296", "3.4")
@pytest.mark.rfc("7296", "1.2")
def test_a_method_that_we_did_not_offer_ends_it_with_both_named() -> None:
    peer = ScriptedResponder(client(), gateway())
    peer.sa.spi_i = clear(peer.first).spi_i
    wanted = Notify.of(NotifyType.INVALID_KE_PAYLOAD, (14).to_bytes(2, "big"))
    assert peer.deliver(peer.sa.reply(ExchangeType.IKE_SA_INIT, 0, [wanted]).encode()) == []
    peer.wait(3.0)
    closed = peer.fact(Closed)
    assert closed is not None
    assert closed.notify == NotifyType.INVALID_KE_PAYLOAD
    assert "MODP_2048" in closed.reason
    assert "CURVE25519" in closed.reason


def test_every_ike_sa_has_its_own_time() -> None:
    """Many at once, each with its timers: none is forgotten, none comes early."""
    pair = Pair(client(), replace(gateway(), unique=Unique.KEEP))
    for _ in range(50):
        pair.initiate()
        pair.run(0.3)
    pair.run(5.0)
    assert len(pair.i.plane.installed) == len(pair.r.plane.installed) == 50
    before = len(pair.i.sent)
    pair.run(30.0)
    assert len(pair.i.sent) >= before + 50, "each has asked whether its peer is there"
    pair.wire.loss = 1.0
    pair.run(400.0)
    assert len(pair.i.closed) == len(pair.r.closed) == 50
    assert pair.i.endpoint.next_timeout() is None
    assert pair.r.endpoint.next_timeout() is None
