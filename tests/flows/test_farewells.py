"""The response that ends an IKE SA may be lost: its request comes again, and finds it again.

Of the IKE SA nothing else is left. RFC 7296 §2.1, RFC 7383 §2.6.1.
"""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.flows.scripted import ScriptedInitiator, ScriptedResponder
from tests.kit.pair import Pair, Wire
from tests.kit.policies import CLIENT, client, gateway, psk_local, quiet
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.iana import ExchangeType, NotifyType, ProtocolId
from tunnelwrap.ike.outputs import Closed, Established, Trace
from tunnelwrap.ike.rekey_ike import RekeyIke
from tunnelwrap.ike.window import FAREWELL_S
from tunnelwrap.path import Carrier, Datagram, Path, SocketAddress
from tunnelwrap.wire.message import IkeHeader, Message
from tunnelwrap.wire.payloads import Delete, Notify, VendorId

DELETE = Delete(ProtocolId.IKE, ())
MOST = 300  # octets of a fragment


def connected() -> ScriptedInitiator:
    peer = ScriptedInitiator(quiet(client()), replace(quiet(gateway()), resumption=False))
    peer.connect()
    return peer


def deleted() -> tuple[ScriptedInitiator, bytes, bytes]:
    """An IKE SA that its peer has deleted; the request and the response."""
    peer = connected()
    request = peer.request(ExchangeType.INFORMATIONAL, DELETE)
    (response,) = peer.deliver(request)
    assert peer.fact(Closed) is not None
    return peer, request, response


def impostor() -> ScriptedInitiator:
    wrong = replace(client(), local=psk_local(CLIENT, Secret(b"wrong")))
    peer = ScriptedInitiator(wrong, gateway())
    peer.init()
    return peer


def split(peer: ScriptedInitiator, message: Message) -> tuple[bytes, ...]:
    return peer.sa.agreed[2].seal_within(message, MOST)


@pytest.mark.rfc("7296", "2.1")
@pytest.mark.rfc("7296", "1.4.1")
def test_a_delete_that_comes_again_gets_the_same_response_and_changes_nothing() -> None:
    peer, request, response = deleted()
    facts = [fact for fact in peer.facts if not isinstance(fact, Trace)]
    assert [peer.deliver(request) for _ in range(3)] == [[response]] * 3
    assert [fact for fact in peer.facts if not isinstance(fact, Trace)] == facts
    assert peer.endpoint.counters["repeated_responses"] == 3
    assert peer.endpoint.next_timeout() is None


def test_it_goes_where_the_request_comes_from() -> None:
    peer, request, response = deleted()
    moved = SocketAddress(ip_address("203.0.113.9"), 1024)
    peer.arrival = replace(peer.arrival, peer=moved)
    peer.endpoint.receive(Datagram(peer.arrival, request), peer.now)
    sent = [output for output in peer.endpoint.outputs() if not isinstance(output, Trace)]
    assert [output.datagram for output in sent] == [Datagram(peer.arrival, response)]


@pytest.mark.parametrize("who", ["i", "r"])
def test_who_deletes_waits_for_the_answer_on_a_bad_network(who: str) -> None:
    lost: list[bytes] = []

    def loses_first_answers(sender: str, header: IkeHeader, octets: bytes) -> bool:
        if sender == who or not header.is_response or len(lost) == 3:
            return True
        lost.append(octets)
        return False

    pair = Pair(quiet(client()), quiet(gateway()))
    pair.connect()
    pair.wire = Wire(filter=loses_first_answers)
    host = pair.i if who == "i" else pair.r
    pair.do(host, lambda endpoint, sa, now: endpoint.close(sa, "enough", now))
    pair.run(60.0)
    closed = host.fact(Closed)
    assert closed is not None
    assert closed.reason == "enough"
    assert lost == lost[:1] * 3


@pytest.mark.rfc("7296", "2.8")
def test_the_delete_of_an_ike_sa_that_was_rekeyed_may_come_again_too() -> None:
    peer = connected()
    exchange = RekeyIke(peer.sa)
    response = peer.ask(ExchangeType.CREATE_CHILD_SA, *(exchange.request(peer.sa, peer.now) or ()))
    assert response is not None
    exchange.on_response(peer.sa, response, peer.now)
    request = peer.request(ExchangeType.INFORMATIONAL, DELETE)
    (answer,) = peer.deliver(request)
    assert peer.deliver(request) == [answer]
    peer.sa, peer.next_id = peer.made[-1], 0
    assert peer.ask(ExchangeType.INFORMATIONAL) is not None
    assert peer.fact(Closed) is None


def test_an_initiator_repeats_its_answer_to_a_delete_too() -> None:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()))
    peer.connect()
    request = peer.request(ExchangeType.INFORMATIONAL, DELETE)
    (answer,) = peer.deliver(request)
    assert peer.deliver(request) == [answer]


@pytest.mark.rfc("7296", "2.1")
def test_an_ike_auth_that_was_refused_is_refused_again_in_the_same_octets() -> None:
    peer = impostor()
    request = peer.request(ExchangeType.IKE_AUTH, *peer.ike_auth_payloads())
    (refusal,) = peer.deliver(request)
    assert peer.open(refusal).notify(NotifyType.AUTHENTICATION_FAILED) is not None
    assert peer.deliver(request) == [refusal]


@pytest.mark.rfc("7296", "2.21.2")
def test_what_tells_us_of_a_failure_is_answered_again() -> None:
    peer = connected()
    failure = Notify.of(NotifyType.AUTHENTICATION_FAILED)
    request = peer.request(ExchangeType.INFORMATIONAL, failure)
    (answer,) = peer.deliver(request)
    assert peer.deliver(request) == [answer]


@pytest.mark.rfc("7383", "2.6.1")
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_of_a_request_in_fragments_only_the_first_brings_the_response_again(
    order: tuple[int, ...],
) -> None:
    peer = impostor()
    payloads = [*peer.ike_auth_payloads(), VendorId(bytes(400))]
    fragments = split(peer, peer.sa.message(ExchangeType.IKE_AUTH, 1, payloads))
    assert len(fragments) == len(order)
    ((refusal,),) = [sent for n in order if (sent := peer.deliver(fragments[n]))]
    assert [peer.deliver(fragments[n]) for n in range(3)] == [[refusal], [], []]


@pytest.mark.rfc("7383", "2.6.1")
def test_a_response_in_fragments_is_repeated_in_all_of_them() -> None:
    peer = ScriptedInitiator(quiet(client()), replace(quiet(gateway()), fragment_size=200))
    peer.init()
    peer.deliver(peer.request(ExchangeType.IKE_AUTH, *peer.ike_auth_payloads()))
    ticket = Notify.of(NotifyType.TICKET_REQUEST)
    request = peer.request(ExchangeType.INFORMATIONAL, DELETE, ticket)
    response = peer.deliver(request)
    assert len(response) > 1
    assert peer.deliver(request) == response


def changed(peer: ScriptedInitiator, request: bytes) -> bytes:
    return request[:-1] + bytes([request[-1] ^ 1])


def another(peer: ScriptedInitiator, request: bytes) -> bytes:
    return peer.request(ExchangeType.INFORMATIONAL, DELETE)


@pytest.mark.parametrize("made", [changed, another])
def test_other_octets_are_not_answered(made: Callable[[ScriptedInitiator, bytes], bytes]) -> None:
    peer, request, _ = deleted()
    assert peer.deliver(made(peer, request)) == []
    assert peer.endpoint.counters["dropped_unknown_spi"] == 1


def test_after_its_time_it_is_forgotten() -> None:
    peer, request, response = deleted()
    peer.wait(FAREWELL_S)
    assert peer.deliver(request) == [response]
    peer.wait(0.1)
    assert peer.deliver(request) == []


def test_a_response_that_did_not_end_the_ike_sa_dies_with_it() -> None:
    peer = connected()
    request = peer.request(ExchangeType.INFORMATIONAL, VendorId(b"hello"))
    (response,) = peer.deliver(request)
    assert peer.deliver(request) == [response]
    established = peer.fact(Established)
    assert established is not None
    peer.endpoint.close(established.sa, "enough", peer.now)
    (delete,) = peer.drain()
    peer.respond(delete)
    assert peer.fact(Closed) is not None
    assert peer.deliver(request) == []


@pytest.mark.rfc("9329", "2")
@pytest.mark.parametrize(
    ("first", "again", "is_answered"),
    [
        (Carrier.TCP, Carrier.TCP, True),
        (Carrier.UDP, Carrier.TCP, True),
        (Carrier.TCP, Carrier.UDP, False),
    ],
)
def test_what_was_on_a_stream_stays_on_streams(
    first: Carrier, again: Carrier, *, is_answered: bool
) -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    datagrams = peer.arrival
    peer.arrival = Path(datagrams.local, datagrams.peer, first)
    peer.connect()
    request = peer.request(ExchangeType.INFORMATIONAL, DELETE)
    (response,) = peer.deliver(request)
    peer.arrival = Path(datagrams.local, datagrams.peer, again, id=1)
    assert peer.deliver(request) == ([response] if is_answered else [])
