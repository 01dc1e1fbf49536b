"""Cookies: a responder under load lets in who is reached by its address. RFC 7296 §2.6, §2.6.1.

R rows are those of the requirement list of RFC 9329.
"""

import pytest

from tests.flows.scripted import HERE, THERE, ScriptedInitiator, ScriptedResponder, clear
from tests.kit.pair import Host, Pair, Wire, address
from tests.kit.policies import client, gateway
from tunnelwrap.iana import ExchangeType, NotifyType
from tunnelwrap.ike.outputs import Answered, Established, Trace
from tunnelwrap.ike.policy import Limits
from tunnelwrap.path import Carrier, Path
from tunnelwrap.wire.message import IkeHeader, Message
from tunnelwrap.wire.payloads import KeyExchange, Nonce, Notify, Payload

ALWAYS = Limits(cookie_threshold=0)
TWO_METHODS = "aes128gcm16-prfsha256-x25519-ecp256"
ONE_METHOD = "aes128gcm16-prfsha256-ecp256"


def messages(host: Host) -> list[Message]:
    """What a host has sent of IKE_SA_INIT."""
    octets = [datagram.octets for datagram in host.sent]
    return [clear(o) for o in octets if IkeHeader.decode(o).exchange == ExchangeType.IKE_SA_INIT]


def cookie_of(message: Message) -> bytes | None:
    notify = message.notify(NotifyType.COOKIE)
    return None if notify is None else notify.data


def scripted(limits: Limits = ALWAYS) -> ScriptedInitiator:
    return ScriptedInitiator(client(), gateway(), limits)


def asked(peer: ScriptedInitiator, request: bytes) -> bytes | None:
    """The cookie that the responder asks for; None where it answers the request."""
    (response,) = peer.deliver(request)
    return cookie_of(clear(response))


def returning(cookie: bytes) -> Notify:
    return Notify.of(NotifyType.COOKIE, cookie)


@pytest.mark.rfc("7296", "2.6")
def test_a_cookie_is_returned_and_all_other_payloads_stay() -> None:
    pair = Pair(client(), gateway(), limits=ALWAYS)
    pair.connect()
    assert pair.agreed()
    first, second = messages(pair.i)
    demand, answer = messages(pair.r)
    (cookie,) = demand.payloads
    assert second.payloads == (cookie, *first.payloads)
    assert (demand.spi_i, demand.spi_r, demand.message_id) == (first.spi_i, bytes(8), 0)
    assert answer.find(KeyExchange) is not None
    assert 1 <= len(cookie_of(demand) or b"") <= 64


@pytest.mark.rfc("7296", "2.6")
def test_cookies_are_asked_for_only_where_many_are_half_open() -> None:
    pair = Pair(client(), gateway(), limits=Limits(cookie_threshold=2, half_open_s=10.0))
    pair.i.authenticates = False
    for _ in range(3):
        pair.initiate()
        pair.run(0.1)
    assert [cookie_of(m) is not None for m in messages(pair.r)] == [False, False, True, False]
    pair.run(200.0)
    pair.i.authenticates = True
    pair.connect()
    assert pair.r.fact(Established) is not None
    assert pair.r.endpoint.counters["cookies_asked"] == 1


@pytest.mark.rfc("7296", "2.6")
def test_asking_for_a_cookie_leaves_nothing_behind() -> None:
    peer = scripted()
    _, request = peer.init_request()
    assert asked(peer, request)
    assert peer.endpoint.next_timeout() is None
    lines = [fact for fact in peer.facts if isinstance(fact, Trace)]
    assert not lines, "nor does a flood fill the log"


@pytest.mark.rfc("7296", "2.6")
@pytest.mark.parametrize("spoil", [b"", b"\x01", b"\x00" * 33, b"\x01" * 33, b"\xff" * 64])
def test_a_wrong_cookie_counts_as_none(spoil: bytes) -> None:
    peer = scripted()
    _, request = peer.init_request()
    cookie = asked(peer, request)
    _, request = peer.init_request(lambda payloads: [returning(spoil), *payloads])
    assert asked(peer, request) not in {None, cookie}, "another nonce, another cookie"


@pytest.mark.rfc("7296", "2.6")
@pytest.mark.parametrize("what", ["nothing", "nonce", "spi", "address", "place"])
def test_a_cookie_is_bound_to_nonce_spi_and_address(what: str) -> None:
    peer = scripted()
    _, request = peer.init_request()
    cookie = asked(peer, request)
    assert cookie is not None
    payloads: list[Payload] = list(clear(request).payloads)
    if what == "spi":
        peer.sa.spi_i = bytes(7) + b"\x01"
    elif what == "address":
        peer.arrival = Path(THERE, address("192.0.2.77"), Carrier.UDP)
    elif what == "nonce":
        payloads = [Nonce(bytes(32)) if isinstance(p, Nonce) else p for p in payloads]
    payloads.insert(1 if what == "place" else 0, returning(cookie))
    again = peer.sa.message(ExchangeType.IKE_SA_INIT, 0, payloads).encode()
    assert (asked(peer, again) is None) is (what == "nothing")


@pytest.mark.rfc("9329", "6.3")
def test_r6_no_port_enters_the_cookie() -> None:
    peer = scripted()
    _, request = peer.init_request()
    cookie = asked(peer, request)
    assert cookie is not None
    again = with_cookie(peer, request, cookie)
    peer.arrival = Path(THERE, address(str(HERE.ip), 61234), Carrier.UDP)
    assert asked(peer, again) is None


@pytest.mark.rfc("9329", "6.3")
def test_r7_a_cookie_that_comes_from_another_address_is_answered_by_a_new_one() -> None:
    """So an initiator behind several addresses gets in as soon as two requests come from one."""
    peer = scripted()
    _, request = peer.init_request()
    first = asked(peer, request)
    assert first is not None
    peer.arrival = Path(THERE, address("192.0.2.77"), Carrier.UDP)
    second = asked(peer, with_cookie(peer, request, first))
    assert second not in {None, first}
    assert second is not None
    assert asked(peer, with_cookie(peer, request, second)) is None


def with_cookie(peer: ScriptedInitiator, request: bytes, cookie: bytes) -> bytes:
    payloads = [returning(cookie), *clear(request).payloads]
    return peer.sa.message(ExchangeType.IKE_SA_INIT, 0, payloads).encode()


@pytest.mark.rfc("9329", "6.3")
@pytest.mark.parametrize("carrier", [Carrier.TCP, Carrier.TLS])
def test_r4_no_cookie_is_asked_for_on_a_stream(carrier: Carrier) -> None:
    pair = Pair(client(), gateway(), carrier=carrier, limits=ALWAYS)
    pair.connect()
    assert pair.agreed()
    assert len(messages(pair.i)) == 1


@pytest.mark.rfc("9329", "6.3")
def test_r8_a_cookie_that_is_asked_for_on_a_stream_is_returned_there() -> None:
    """Some responders do ask."""
    peer = ScriptedResponder(client(), gateway())
    pair = Pair(client(), gateway(), Wire(loss=1.0), carrier=Carrier.TCP)
    pair.initiate()
    (first,) = messages(pair.i)
    peer.sa.spi_i = first.spi_i
    demand = peer.sa.reply(ExchangeType.IKE_SA_INIT, 0, [returning(b"cookie")])
    pair.inject(pair.i, demand.encode())
    assert messages(pair.i)[1].payloads == (returning(b"cookie"), *first.payloads)
    assert pair.i.sent[1].path == pair.i.sent[0].path


@pytest.mark.rfc("7296", "2.6")
@pytest.mark.parametrize(("age_s", "worth"), [(1, "all"), (70, "all"), (200, "nothing")])
def test_cookies_age_with_their_secret(age_s: float, worth: str) -> None:
    peer = scripted()
    _, request = peer.init_request()
    cookie = asked(peer, request)
    assert cookie is not None
    for _ in range(5):  # a busy responder, or one that nobody asks in the meantime
        peer.now += age_s / 5
        peer.deliver(request)
    assert (asked(peer, with_cookie(peer, request, cookie)) is None) is (worth == "all")


@pytest.mark.rfc("7296", "2.6.1")
def test_the_cookie_stays_with_the_request_for_another_key_exchange() -> None:
    """The shorter exchange: no second cookie after INVALID_KE_PAYLOAD."""
    pair = Pair(client(TWO_METHODS), gateway(ONE_METHOD), limits=ALWAYS)
    pair.connect()
    assert pair.agreed()
    plain, with_first, with_other = messages(pair.i)
    assert cookie_of(plain) is None
    assert cookie_of(with_first) == cookie_of(with_other) is not None
    assert with_first.find(Nonce) == with_other.find(Nonce)
    ke, other = with_first.find(KeyExchange), with_other.find(KeyExchange)
    assert ke is not None
    assert other is not None
    assert ke.method != other.method


@pytest.mark.rfc("7296", "2.6.1")
def test_an_initiator_that_leaves_the_cookie_out_gets_another_one() -> None:
    """The longer exchange, seen from the responder."""
    peer = ScriptedInitiator(client(TWO_METHODS), gateway(ONE_METHOD), ALWAYS)
    exchange, request = peer.init_request()
    cookie = asked(peer, request)
    assert cookie is not None
    (refused,) = peer.deliver(with_cookie(peer, request, cookie))
    invalid = clear(refused).notify(NotifyType.INVALID_KE_PAYLOAD)
    assert invalid is not None
    exchange.on_response(peer.sa, clear(refused), peer.now)
    payloads = list(exchange.request(peer.sa, peer.now) or ())
    second = peer.sa.message(ExchangeType.IKE_SA_INIT, 0, payloads).encode()
    assert asked(peer, second) is not None
    assert asked(peer, with_cookie(peer, second, cookie)) is None


@pytest.mark.rfc("7296", "2.6.1")
def test_a_responder_may_want_another_cookie_with_the_other_key_exchange() -> None:
    """The longer exchange, seen from the initiator."""
    peer = ScriptedResponder(client(TWO_METHODS), gateway(ONE_METHOD))
    peer.sa.spi_i = clear(peer.first).spi_i
    wanted = Notify.of(NotifyType.INVALID_KE_PAYLOAD, (19).to_bytes(2, "big"))
    for notify in (returning(b"first"), wanted, returning(b"second")):
        reply = peer.sa.reply(ExchangeType.IKE_SA_INIT, 0, [notify])
        (peer.first,) = peer.deliver(reply.encode())
    again = clear(peer.first)
    assert cookie_of(again) == b"second"
    ke = again.find(KeyExchange)
    assert ke is not None
    assert ke.method == 19
    peer.answer_init()
    assert peer.fact(Answered) is not None


@pytest.mark.rfc("7296", "2.6")
def test_cookies_that_come_late_and_often_are_followed_once() -> None:
    """On a slow path each repetition of the request brings the same cookie again."""
    pair = Pair(client(), gateway(), Wire(delay=1.5), limits=ALWAYS)
    pair.connect(until=20.0)
    assert pair.agreed()
    assert len([m for m in messages(pair.r) if cookie_of(m)]) > 1
    assert len({m for m in messages(pair.i) if cookie_of(m)}) == 1
    assert pair.i.endpoint.counters["dropped_late_response"] > 0


@pytest.mark.rfc("9329", "6.3")
@pytest.mark.parametrize("why", ["cookie", "invalid-ke"])
def test_the_repeated_request_may_come_by_another_connection(why: str) -> None:
    """libreswan opens one for it; its SPIi stays."""
    other = gateway(ONE_METHOD if why == "invalid-ke" else TWO_METHODS)
    peer = ScriptedInitiator(client(TWO_METHODS), other, ALWAYS)
    peer.arrival = stream(50001) if why == "invalid-ke" else peer.arrival
    exchange, request = peer.init_request()
    (refused,) = peer.deliver(request)
    exchange.on_response(peer.sa, clear(refused), peer.now)
    peer.arrival = stream(50002)
    payloads = list(exchange.request(peer.sa, peer.now) or ())
    (answered,) = peer.deliver(peer.sa.message(ExchangeType.IKE_SA_INIT, 0, payloads).encode())
    assert clear(answered).find(KeyExchange) is not None
    assert clear(answered).spi_i == clear(request).spi_i


@pytest.mark.rfc("9329", "6.3")
def test_one_that_is_answered_may_come_again_by_another_connection() -> None:
    """The first connection was lost with the response: the same one comes, and the peer follows."""
    peer = ScriptedInitiator(client(), gateway())
    peer.arrival = stream(50001)
    exchange, request = peer.init_request()
    (lost,) = peer.deliver(request)
    peer.arrival = stream(50002)
    assert peer.deliver(request) == [lost]
    exchange.response_octets = lost
    exchange.on_response(peer.sa, clear(lost), peer.now)
    peer.next_id = 1
    assert peer.authenticate() is not None
    established = peer.fact(Established)
    assert established is not None
    assert established.path == stream(50002)


def stream(port: int) -> Path:
    return Path(THERE, address(str(HERE.ip), port), Carrier.TCP, id=port)
