"""Well-formed inputs for the targets of ``tests.fuzz.endpoints``: what peers say in each state."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.flows.scripted import Scripted, ScriptedInitiator, ScriptedResponder, clear
from tests.fuzz.stands import FRAGMENT, Way
from tests.kit.policies import client, gateway, road_warrior
from tests.unit.wire.samples import PAYLOADS
from tunnelwrap.iana import ExchangeType, NotifyType, PayloadType, ProtocolId
from tunnelwrap.ike.ike_auth import IkeAuth
from tunnelwrap.ike.negotiate import numbered
from tunnelwrap.ike.outputs import InstallChildSa
from tunnelwrap.wire.message import IkeHeader, encode_chain
from tunnelwrap.wire.payloads import (
    Delete,
    KeyExchange,
    Nonce,
    Notify,
    Payload,
    TrafficSelectors,
)
from tunnelwrap.wire.proposal import SaPayload

_NONCES = (Nonce(bytes(32)), Nonce(b"\xff" * 32))  # the lowest, and the highest
_X25519 = KeyExchange(31, bytes([9]) + bytes(31))


def established() -> Iterator[bytes]:
    """Each sample payload alone in each exchange; and real messages, both ways."""
    for exchange in (35, 36, 37):
        for payload in PAYLOADS:
            yield _sealed(Way(0), exchange, payload)
    yield from _real_messages()
    for payload in PAYLOADS[:1] + PAYLOADS[-1:]:
        yield from _fragments(_sealed(Way(0), ExchangeType.INFORMATIONAL, payload))
    for exchange, payloads in _exchanges():
        for way in (
            Way(0),
            Way.RESPONSE,
            Way.RESPONSE | Way.REKEY_CHILD,
            Way.RESPONSE | Way.REKEY_IKE,
        ):
            yield _sealed(way, exchange, *payloads)
        yield _sealed(Way.REKEY_CHILD, exchange, *payloads)  # it crosses one of ours
        yield _sealed(Way.REKEY_IKE | Way.LATER, exchange, *payloads)


def _exchanges() -> Iterator[tuple[ExchangeType, list[Payload]]]:
    """Rekeys, a further Child SA and deletes, in the words of either side."""
    for peer in (_gateway_flow(), _client_flow()):
        installed = peer.fact(InstallChildSa)
        assert installed is not None, "the flow tests see to that"
        child, policy = installed.child, client() if peer.sa.is_initiator else gateway()
        spi = child.spi_out.to_bytes(4, "big")
        rekey = Notify.of(NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=spi)
        selectors = [
            TrafficSelectors(PayloadType.TS_I, child.ts_peer),
            TrafficSelectors(PayloadType.TS_R, child.ts_local),
        ]
        turned = [
            TrafficSelectors(PayloadType.TS_I, child.ts_local),
            TrafficSelectors(PayloadType.TS_R, child.ts_peer),
        ]
        esp = SaPayload(numbered(policy.child.proposals, bytes(range(4, 8))))
        ike = SaPayload(numbered(policy.proposals, bytes(range(8))))
        for nonce in _NONCES:
            yield ExchangeType.CREATE_CHILD_SA, [rekey, esp, nonce, *selectors]
            yield ExchangeType.CREATE_CHILD_SA, [esp, nonce, *selectors]
            yield ExchangeType.CREATE_CHILD_SA, [_choice(esp), nonce, *turned]
            yield ExchangeType.CREATE_CHILD_SA, [ike, nonce, _X25519]
        yield ExchangeType.INFORMATIONAL, [Delete(ProtocolId.ESP, (spi,))]
        yield ExchangeType.INFORMATIONAL, [Delete(ProtocolId.IKE, ())]
        for kind in (NotifyType.TEMPORARY_FAILURE, NotifyType.CHILD_SA_NOT_FOUND):
            yield ExchangeType.CREATE_CHILD_SA, [Notify.of(kind)]


def _fragments(whole: bytes) -> Iterator[bytes]:
    """A sealed sample in two pieces, and as the only piece of one."""
    head, chain = whole[:3], whole[3:]
    way, exchange, first = head
    half = len(chain) // 2
    for number, total, next_payload, piece in (
        *((1, 2, first, chain[:half]), (2, 2, 0, chain[half:])),
        (1, 1, first, chain),
    ):
        place = number.to_bytes(2, "big") + total.to_bytes(2, "big")
        yield bytes([way, exchange | FRAGMENT, next_payload]) + place + piece


def _choice(offer: SaPayload) -> SaPayload:
    """What a responder makes of an offer: the first transform of each type."""
    first = offer.proposals[0]
    chosen = {transform.type: transform for transform in reversed(first.transforms)}
    return SaPayload((replace(first, transforms=tuple(chosen.values())),))


def _sealed(way: Way, exchange: int, *payloads: Payload) -> bytes:
    first, chain = encode_chain(payloads)
    return bytes([way, exchange, first]) + chain


def _real_messages() -> Iterator[bytes]:
    """What both sides say in the flows, as the other one would have to send it."""
    for make, wish in _FLOWS:
        peer = make()
        for octets in peer.sent:
            header = IkeHeader.decode(octets)
            yield bytes([Way.RAW]) + octets
            if header.exchange == ExchangeType.IKE_SA_INIT:
                continue
            message = peer.open(octets)
            for way in (Way(0), Way.RESPONSE, Way.RESPONSE | wish):
                yield _sealed(way, message.exchange, *message.payloads)


def _gateway_flow() -> Scripted:
    peer = ScriptedInitiator(client(), gateway())
    peer.connect()
    _own_exchanges(peer)
    return peer


def _client_flow() -> Scripted:
    peer = ScriptedResponder(client(), gateway())
    peer.connect()
    _own_exchanges(peer)
    return peer


def _own_exchanges(peer: Scripted) -> None:
    """The Endpoint's requests of every kind; none is answered but by a refusal."""
    installed = peer.fact(InstallChildSa)
    assert installed is not None, "the flow tests see to that"
    peer.endpoint.limit_reached(installed.sa, installed.child.spi_in, peer.now, is_hard=False)
    (request,) = peer.drain()
    peer.respond(request, Notify.of(NotifyType.TEMPORARY_FAILURE))
    peer.endpoint.rekey(installed.sa, peer.now)
    (request,) = peer.drain()
    peer.respond(request, Notify.of(NotifyType.NO_PROPOSAL_CHOSEN))
    peer.endpoint.close(installed.sa, "enough", peer.now)
    peer.drain()


_FLOWS: tuple[tuple[Callable[[], Scripted], Way], ...] = (
    (_gateway_flow, Way.REKEY_CHILD),
    (_client_flow, Way.REKEY_IKE),
)


def of_initiators() -> Iterator[bytes]:
    """What a gateway may get for IKE_AUTH."""
    peer = ScriptedInitiator(*road_warrior())
    peer.init()
    request = _sealed(Way(0), ExchangeType.IKE_AUTH, *(IkeAuth().request(peer.sa, peer.now) or ()))
    yield from (request, *_fragments(request))
    yield from established()


def of_strangers() -> Iterator[bytes]:
    """IKE_SA_INIT both ways, and messages of IKE SAs that nobody knows."""
    initiator = ScriptedInitiator(client(), gateway())
    _, request = initiator.init_request()
    yield from (bytes([Way.RAW, number]) + request[1:] for number in range(8))  # other SPIs
    changed = [p for p in clear(request).payloads if not isinstance(p, Notify)]
    yield bytes([Way.RAW | Way.LATER]) + replace(clear(request), payloads=tuple(changed)).encode()
    yield bytes([Way.RAW]) + request[:17] + b"\x30" + request[18:]
    yield from (bytes([Way.RAW]) + octets for octets in _gateway_flow().sent)
    for kind in (NotifyType.COOKIE, NotifyType.INVALID_KE_PAYLOAD, NotifyType.NO_PROPOSAL_CHOSEN):
        notify = Notify.of(kind, bytes([0, 19]), ProtocolId.NONE)
        answer = replace(clear(request), is_response=True, is_initiator=False, payloads=(notify,))
        yield bytes([Way.RAW | Way.LATER]) + answer.encode()


def of_responders() -> Iterator[bytes]:
    """What a client may get for its IKE_SA_INIT."""
    responder = ScriptedResponder(client(), gateway())
    answer = responder.answer_init_octets()
    yield from (bytes([way]) + answer for way in (Way.RAW, Way.RAW | Way.LATER))
    first = clear(responder.first)
    for payloads in ((), *((payload,) for payload in PAYLOADS)):
        refusal = replace(first, is_response=True, is_initiator=False, payloads=payloads)
        yield bytes([Way.RAW | Way.LATER]) + refusal.encode()
    yield from of_strangers()
