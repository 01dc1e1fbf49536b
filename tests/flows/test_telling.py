"""What the core tells of its messages: one line each, counts by notify and by cause of a drop."""

from dataclasses import replace

import pytest

from tests.kit.pair import Pair, Wire
from tests.kit.policies import client, gateway, psk_local, quiet
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.iana import ExchangeType
from tunnelwrap.ike.endpoint import Endpoint
from tunnelwrap.path import Carrier, Datagram, Path
from tunnelwrap.wire.message import IkeHeader, Message
from tunnelwrap.wire.payloads import Notify, UnknownPayload


def connected(**options: object) -> Pair:
    pair = Pair(quiet(client()), quiet(gateway()), **options)
    pair.connect()
    return pair


def lines(traces: list, direction: str) -> list[str]:
    return [trace.text for trace in traces if trace.text.startswith(direction)]


def test_each_message_is_one_line_with_direction_path_payloads_and_notifies() -> None:
    pair = connected()

    init, auth = lines(pair.i.traces, ">")
    assert init.startswith("> IKE_SA_INIT request 0 [SA KE Ni N(")
    assert " N(NAT_DETECTION_SOURCE_IP) N(NAT_DETECTION_DESTINATION_IP) " in init
    assert auth.startswith("> IKE_AUTH request 1 [IDi IDr AUTH N(INITIAL_CONTACT) ")
    assert " SA TSi TSr] to " in auth
    assert all(line.endswith("] to udp 198.51.100.1:4500") for line in (init, auth))
    heard = [line.replace(" from udp 192.0.2.1", "") for line in lines(pair.r.traces, "<")]
    said = [line.replace(" to udp 198.51.100.1", "") for line in lines(pair.i.traces, ">")]
    assert [line[1:] for line in heard] == [line[1:] for line in said]
    assert len(lines(pair.i.traces, "<")) == len(lines(pair.r.traces, ">")) == 2


def test_repetitions_have_their_lines_too() -> None:
    lost = [1]  # the first response of IKE_AUTH

    def passes(sender: str, header: IkeHeader, octets: bytes) -> bool:
        is_lost = sender == "r" and header.exchange == ExchangeType.IKE_AUTH and lost
        return not (is_lost and lost.pop())

    pair = connected(wire=Wire(filter=passes))

    assert "> repeats request 1 to udp 198.51.100.1:4500" in pair.i.text()
    assert "> repeats the last response to udp 192.0.2.1:4500" in pair.r.text()
    assert pair.r.endpoint.counters["repeated_responses"] == 1
    assert pair.i.endpoint.counters["retransmitted"] == 1


def test_a_payload_without_a_name_is_told_by_its_number() -> None:
    message = Message(bytes(8), bytes(8), 250, True, True, 7, (UnknownPayload(49, b""),))

    assert str(message) == "250 response 7 [49]"


def test_notifies_are_counted_by_name_and_direction() -> None:
    local = psk_local("client@example.org", Secret(b"a wrong key"))
    pair = Pair(replace(client(), local=local), gateway())
    pair.connect()

    assert pair.r.endpoint.counters["notify_sent_authentication_failed"] == 1
    assert pair.i.endpoint.counters["notify_received_authentication_failed"] == 1
    assert pair.r.endpoint.counters["notify_received_nat_detection_source_ip"] == 1


def test_notifies_that_strangers_invent_take_no_memory_each() -> None:
    pair = Pair(client(), gateway())
    request = Message(
        bytes(7) + b"\1",
        bytes(8),
        ExchangeType.IKE_SA_INIT,
        is_response=False,
        is_initiator=True,
        message_id=0,
        payloads=tuple(Notify.of(50000 + number) for number in range(1000)),
    )

    pair.inject(pair.r, request.encode())

    counted = {name for name in pair.r.endpoint.counters if name.startswith("notify_received")}
    assert counted == {"notify_received_unknown"}
    assert pair.r.endpoint.counters["notify_received_unknown"] == 1000


def test_a_refusal_of_an_unknown_version_is_told_and_counted() -> None:
    pair = Pair(client(), gateway())
    pair.initiate()
    request = pair.i.sent[0].octets

    pair.inject(pair.r, request[:17] + b"\x30" + request[18:])

    assert "[N(INVALID_MAJOR_VERSION)] to udp 192.0.2.1:4500" in pair.r.text()
    assert pair.r.endpoint.counters["notify_sent_invalid_major_version"] == 1


DROPS = {
    "truncated": lambda octets: octets[:10],
    "malformed": lambda octets: octets + b"\0",
    "unknown_spi": lambda octets: bytes(16) + octets[16:],
    "integrity": lambda octets: octets[:-1] + bytes([octets[-1] ^ 1]),
    "reflected": lambda octets: octets[8:16] + octets[:8] + octets[16:19] + b"\x08" + octets[20:],
}


@pytest.mark.rfc("7296", "2.21.4")
@pytest.mark.parametrize("cause", DROPS)
def test_what_is_dropped_is_counted_by_its_cause(cause: str) -> None:
    pair = connected()
    pair.do(pair.r, lambda endpoint, sa, now: endpoint.close(sa, "enough", now))
    octets = pair.r.sent[-1].octets

    pair.inject(pair.i, DROPS[cause](octets), pair.path)

    assert pair.i.endpoint.counters[f"dropped_{cause}"] == 1


def test_a_message_before_there_are_keys_is_dropped_by_name() -> None:
    pair = Pair(client(), gateway())
    pair.initiate()
    spi = pair.i.sent[0].octets[:8]
    early = Message(spi, bytes(8), ExchangeType.IKE_AUTH, True, False, 1, ()).encode()

    pair.inject(pair.i, early)

    assert pair.i.endpoint.counters["dropped_without_keys"] == 1


def test_unreachable_streams_do_not_count_as_messages() -> None:
    """A message by UDP for an IKE SA that is on a stream is dropped by name."""
    pair = connected(carrier=Carrier.TCP)
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.close(sa, "enough", now))
    by_udp = Path(pair.path.peer, pair.path.local, Carrier.UDP)

    pair.r.endpoint.receive(Datagram(by_udp, pair.i.sent[-1].octets), pair.now)
    pair.drain(pair.r)

    assert pair.r.endpoint.counters["dropped_not_by_stream"] == 1


def test_keys_are_said_only_where_they_are_asked_for() -> None:
    silent, telling = connected(), connected(exports_keys=True)
    for pair in (silent, telling):
        pair.do(pair.i, Endpoint.rekey)
        pair.run(5.0)

    assert silent.i.keys == silent.r.keys == []
    assert [derived.keys for derived in telling.i.keys] == [d.keys for d in telling.r.keys]
    spis = [(derived.spi_i, derived.spi_r) for derived in telling.i.keys]
    assert len(set(spis)) == 2
    assert spis[0] == (telling.r.sent[0].octets[:8], telling.r.sent[0].octets[8:16])
