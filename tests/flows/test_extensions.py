"""What later versions and other implementations may add: passed over, or refused by the rules."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.flows.scripted import Change, ScriptedInitiator, ScriptedResponder, clear
from tests.kit.pair import Pair
from tests.kit.policies import client, gateway, quiet, selectors
from tunnelwrap.iana import ExchangeType, NotifyType, PayloadType
from tunnelwrap.ike.child_sa import Mode
from tunnelwrap.ike.outputs import Answered, ChildRefused, Closed, Established, InstallChildSa
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.wire.message import VERSION_OFFSET
from tunnelwrap.wire.payloads import (
    Notify,
    Payload,
    TrafficSelector,
    UnknownPayload,
    VendorId,
)

CRITICAL_UNKNOWN = bytes([0, 0x80, 0, 5, 7])  # the last payload, critical, of one octet
OUR_OWN = NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD

# Each stands in any message, and must change nothing. RFC 7296 §2.5, §3.10.1, §3.12
HARMLESS: dict[str, Payload] = {
    "vendor id": VendorId(b"\x01\x02 somebody else's"),
    "empty vendor id": VendorId(b""),
    "unknown payload": UnknownPayload(200, b"\x00" * 9),
    "unknown payload of no octets": UnknownPayload(48 + 80, b""),
    "unknown status": Notify.of(40000, b"what this may be"),
    "private status": Notify.of(65535),
    "status with an spi": Notify.of(40001, b"", 3, b"\1\2\3\4"),
}


def plus(payload: Payload) -> Change:
    return lambda payloads: [*payloads, payload]


def before(payload: Payload) -> Change:
    return lambda payloads: [payload, *payloads]


@pytest.mark.rfc("7296", "2.5")
@pytest.mark.parametrize("where", [plus, before])
@pytest.mark.parametrize("name", HARMLESS)
def test_a_responder_passes_over_what_it_does_not_know(
    name: str, where: Callable[[Payload], Change]
) -> None:
    change = where(HARMLESS[name])
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    response = peer.connect(change, change)
    assert response is not None
    assert peer.fact(InstallChildSa) is not None
    for exchange in (ExchangeType.INFORMATIONAL,):
        answer = peer.ask(exchange, *change([]))
        assert answer is not None
        assert answer.payloads == ()


@pytest.mark.rfc("7296", "2.5")
@pytest.mark.parametrize("name", HARMLESS)
def test_an_initiator_passes_over_what_it_does_not_know(name: str) -> None:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()))
    peer.connect(plus(HARMLESS[name]))
    assert peer.fact(Established) is not None
    assert peer.fact(InstallChildSa) is not None


@pytest.mark.rfc("7296", "3.10.1")
def test_an_unknown_error_in_a_response_is_a_refusal() -> None:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()))
    peer.connect(lambda _payloads: [Notify.of(8191)])
    closed = peer.fact(Closed)
    assert closed is not None
    assert closed.notify == 8191


@pytest.mark.rfc("7296", "3.10.1")
def test_an_unknown_error_in_a_request_is_passed_over() -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    peer.connect()
    answer = peer.ask(ExchangeType.INFORMATIONAL, Notify.of(8191))
    assert answer is not None
    assert answer.payloads == ()
    assert peer.fact(Closed) is None


# --- the critical bit -------------------------------------------------------------------------


@pytest.mark.rfc("7296", "2.5")
@pytest.mark.parametrize("exchange", [ExchangeType.CREATE_CHILD_SA, ExchangeType.INFORMATIONAL])
def test_a_critical_payload_of_unknown_type_is_refused_by_name(exchange: int) -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    peer.connect()
    answer = peer.ask_raw(exchange, 200, CRITICAL_UNKNOWN)
    assert answer is not None
    assert answer.payloads == (Notify.of(OUR_OWN, b"\xc8"),)
    assert peer.fact(Closed) is None


@pytest.mark.rfc("7296", "2.5")
def test_in_a_response_it_ends_the_exchange_and_the_ike_sa() -> None:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()))
    peer.connect()
    peer.endpoint.rekey(peer.name, peer.now)
    (request,) = peer.drain()
    (told,) = peer.respond_raw(request, 200, CRITICAL_UNKNOWN)
    assert [n.notify for n in peer.open(told).all(Notify)] == [OUR_OWN]
    assert peer.fact(Closed) is not None


@pytest.mark.rfc("7296", "2.5")
def test_on_a_payload_that_is_known_it_means_nothing() -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    peer.connect()
    notify = Notify.of(40000).encode()
    inside = bytes([0, 0x80]) + (4 + len(notify)).to_bytes(2, "big") + notify
    answer = peer.ask_raw(ExchangeType.INFORMATIONAL, PayloadType.NOTIFY, inside)
    assert answer is not None
    assert answer.payloads == ()


@pytest.mark.rfc("7296", "2.5")
def test_reserved_bits_beside_it_mean_nothing() -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    peer.connect()
    vendor = bytes([0, 0x7F, 0, 6]) + b"us"
    answer = peer.ask_raw(ExchangeType.INFORMATIONAL, PayloadType.VENDOR_ID, vendor)
    assert answer is not None
    assert answer.payloads == ()


# --- versions ---------------------------------------------------------------------------------


@pytest.mark.rfc("7296", "2.5")
def test_a_higher_minor_version_is_spoken_with_as_with_ours() -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    exchange, request = peer.init_request()
    later = bytearray(request)
    later[VERSION_OFFSET] = 0x2F
    exchange.request_octets = bytes(later)
    (exchange.response_octets,) = peer.deliver(bytes(later))
    assert exchange.response_octets[VERSION_OFFSET] == 0x20
    exchange.on_response(peer.sa, clear(exchange.response_octets), peer.now)
    peer.next_id = 1
    response = peer.ask(ExchangeType.IKE_AUTH, *peer.ike_auth_payloads())
    assert response is not None
    assert peer.fact(Established) is not None


@pytest.mark.rfc("7296", "2.5")
def test_a_responder_of_a_higher_minor_version_is_taken_too() -> None:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()))
    answer = bytearray(peer.answer_init_octets())
    answer[VERSION_OFFSET] = 0x21
    peer.deliver(bytes(answer))
    assert peer.fact(Answered) is not None


@pytest.mark.rfc("7296", "3.1")
def test_the_version_flag_and_reserved_flags_mean_nothing() -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    _, request = peer.init_request()
    flagged = bytearray(request)
    flagged[VERSION_OFFSET + 2] |= 0b11010111
    assert len(peer.deliver(bytes(flagged))) == 1


# --- the mode ---------------------------------------------------------------------------------


def in_mode(policy: ConnectionPolicy, mode: Mode) -> ConnectionPolicy:
    child = replace(policy.child, mode=mode)
    if mode is Mode.BEET:
        ends = [host_of(each) for each in (child.ts_local, child.ts_peer)]
        child = replace(child, ts_local=ends[0], ts_peer=ends[1])
    return quiet(replace(policy, child=child))


def host_of(network: tuple[TrafficSelector, ...]) -> tuple[TrafficSelector, ...]:
    return selectors(str(network[0].start + 1))


@pytest.mark.rfc("7296", "1.3.1")
@pytest.mark.parametrize("ours", Mode)
@pytest.mark.parametrize("theirs", Mode)
@pytest.mark.parametrize("rekeyer", ["i", "r"])
def test_the_mode_is_agreed_for_the_first_a_further_and_a_rekeyed_child_sa(
    ours: Mode, theirs: Mode, rekeyer: str
) -> None:
    agreed = ours if ours is theirs else Mode.TUNNEL
    pair = Pair(in_mode(client(), ours), in_mode(gateway(), theirs), has_beet=True)
    pair.connect()
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.create_child(sa, pair.policy.child, now))
    pair.run(1.0)
    host = pair.i if rekeyer == "i" else pair.r
    for spi in list(host.plane.installed):
        host.endpoint.limit_reached(
            pair.sa_i if rekeyer == "i" else pair.sa_r, spi, pair.now, is_hard=False
        )
    pair.drain(host)
    pair.run(20.0)
    assert pair.agreed()
    for plane in (pair.i.plane, pair.r.plane):
        assert len(plane.installed) == 2
        assert {child.mode for child in plane.installed.values()} == {agreed}
    assert pair.i.fact(ChildRefused) is None
