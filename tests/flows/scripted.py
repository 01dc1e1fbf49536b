"""A peer whose messages a test writes itself, payload by payload, with true keys.

    peer = ScriptedInitiator(client(), gateway())
    peer.connect()
    response = peer.ask(ExchangeType.INFORMATIONAL, Notify.of(...))

The exchanges of the core give the payloads of ordinary messages, which a test may then alter.
"""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from tests.kit.pair import NOW, address
from tunnelwrap.iana import ExchangeType
from tunnelwrap.ike import ike_auth, sa_init
from tunnelwrap.ike.context import Context
from tunnelwrap.ike.endpoint import Endpoint
from tunnelwrap.ike.ike_auth import IkeAuth
from tunnelwrap.ike.intermediate import IkeIntermediate
from tunnelwrap.ike.outputs import AskActivity, Output, Transmit
from tunnelwrap.ike.policy import ConnectionPolicy, Limits
from tunnelwrap.ike.rules import IkeState
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.ike.sa_init import SaInit
from tunnelwrap.path import Carrier, Datagram, Path
from tunnelwrap.wire.message import (
    HEADER_LENGTH,
    IkeHeader,
    Message,
    decode_chain,
    encode_outer,
    encode_unencrypted,
)
from tunnelwrap.wire.payloads import Payload
from tunnelwrap.wire.reader import Reader

HERE, THERE = address("192.0.2.1"), address("198.51.100.1")
Change = Callable[[list[Payload]], list[Payload]]
Fact = TypeVar("Fact")


def clear(octets: bytes) -> Message:
    """A message without SK."""
    head = IkeHeader.decode(octets)
    payloads = decode_chain(head.next_payload, Reader(octets, HEADER_LENGTH))
    flags = (head.is_response, head.is_initiator)
    return Message(head.spi_i, head.spi_r, head.exchange, *flags, head.message_id, payloads)


class Scripted:
    """What both roles share: keys, an Endpoint on the other side, and everything it says."""

    def __init__(self, own: ConnectionPolicy, endpoint: Endpoint, *, is_initiator: bool) -> None:
        rng = random.Random(7)
        context = Context(rng.randbytes, lambda: NOW, Limits(), forces_encapsulation=True)
        path = Path(HERE, THERE, Carrier.UDP) if is_initiator else Path(THERE, HERE, Carrier.UDP)
        self.endpoint = endpoint
        self.policy = own
        self.now = 1000.0
        self.facts: list[Output] = []
        self.sent: list[bytes] = []  # by the Endpoint
        self.made: list[IkeSa] = []  # successors of the IKE SA
        self.sa = IkeSa(context, (own,), path, self.made.append, is_initiator=is_initiator)
        self.arrival = Path(path.peer, path.local, Carrier.UDP)
        self.next_id = 0

    def deliver(self, octets: bytes) -> list[bytes]:
        """Give octets to the Endpoint; what it sends in return."""
        self.endpoint.receive(Datagram(self.arrival, octets), self.now)
        return self.drain()

    def drain(self) -> list[bytes]:
        """What the Endpoint has sent since; its facts are kept."""
        outputs = self.endpoint.outputs()
        for ask in outputs:
            if isinstance(ask, AskActivity):
                self.endpoint.answer(ask, None, self.now)
        outputs += self.endpoint.outputs()
        self.facts += [o for o in outputs if not isinstance(o, Transmit)]
        sent = [o.datagram.octets for o in outputs if isinstance(o, Transmit)]
        self.sent += sent
        return sent

    def wait(self, seconds: float) -> list[bytes]:
        """Let time pass at the Endpoint."""
        end, sent = self.now + seconds, []
        while (due := self.endpoint.next_timeout()) is not None and due <= end:
            self.now = max(self.now, due)
            self.endpoint.handle_timeout(self.now)
            sent += self.drain()
        self.now = end
        return sent

    def fact(self, kind: type[Fact]) -> Fact | None:
        """The newest fact of a kind."""
        found = [fact for fact in self.facts if isinstance(fact, kind)]
        return found[-1] if found else None

    def open(self, octets: bytes) -> Message:
        """A message of the Endpoint."""
        message = self.sa.agreed[2].open(IkeHeader.decode(octets), octets)
        if self.sa.intermediate is not None:
            self.sa.intermediate.opened = encode_unencrypted(message)
        return message

    def request(self, exchange: int, *payloads: Payload) -> bytes:
        """The octets of the next request."""
        octets = self.sa.agreed[2].seal(self.sa.message(exchange, self.next_id, payloads))
        self.next_id += 1
        return octets

    def ask(self, exchange: int, *payloads: Payload) -> Message | None:
        """Send a request; the Endpoint's response, or None."""
        return self._answer_in(self.deliver(self.request(exchange, *payloads)))

    def ask_raw(self, exchange: int, first: int, inside: bytes) -> Message | None:
        """Send a request with these octets inside SK."""
        message = self.sa.message(exchange, self.next_id, ())
        self.next_id += 1
        return self._answer_in(self.deliver(self._sealed(message, first, inside)))

    def respond(self, request: bytes, *payloads: Payload) -> list[bytes]:
        """Answer a request of the Endpoint."""
        asked = self.open(request)
        message = self.sa.reply(asked.exchange, asked.message_id, payloads)
        return self.deliver(self.sa.agreed[2].seal(message))

    def respond_raw(self, request: bytes, first: int, inside: bytes) -> list[bytes]:
        """Answer a request with these octets inside SK."""
        asked = self.open(request)
        message = self.sa.reply(asked.exchange, asked.message_id, ())
        return self.deliver(self._sealed(message, first, inside))

    def _sealed(self, message: Message, first: int, inside: bytes) -> bytes:
        suite, keys, _ = self.sa.agreed
        cipher = suite.cipher()
        is_initiator = self.sa.is_initiator
        bound = cipher.bind(
            keys.sk_ei if is_initiator else keys.sk_er, keys.sk_ai if is_initiator else keys.sk_ar
        )
        aad = encode_outer(message, first, cipher.sealed_length(len(inside)))
        iv = (2**60 + self.next_id).to_bytes(cipher.iv_length, "big")
        return aad + bound.seal(aad, cipher.pad(inside), iv)

    def _answer_in(self, sent: Sequence[bytes]) -> Message | None:
        messages = [self.open(octets) for octets in sent]
        return next((m for m in messages if m.is_response), None)


def unchanged(payloads: list[Payload]) -> list[Payload]:
    return payloads


class ScriptedInitiator(Scripted):
    """Plays the initiator against a responding Endpoint."""

    def __init__(
        self,
        own: ConnectionPolicy,
        responder: ConnectionPolicy,
        limits: Limits | None = None,
        **options: bool,
    ) -> None:
        endpoint = Endpoint(
            *(random.Random(8).randbytes, lambda: NOW),
            connections=[responder],
            limits=limits,
            **options,
        )
        super().__init__(own, endpoint, is_initiator=True)

    def init_request(self, change: Change = unchanged) -> tuple[SaInit, bytes]:
        """The request of IKE_SA_INIT, which may be changed, and the exchange it belongs to."""
        exchange = SaInit(self.sa)
        payloads = change(list(exchange.request(self.sa, self.now) or ()))
        message = self.sa.message(ExchangeType.IKE_SA_INIT, 0, payloads)
        exchange.request_octets = message.encode()
        return exchange, exchange.request_octets

    def init(self, change: Change = unchanged) -> None:
        """IKE_SA_INIT."""
        exchange, request = self.init_request(change)
        (exchange.response_octets,) = self.deliver(request)
        exchange.on_response(self.sa, clear(exchange.response_octets), self.now)
        self.sa.requests.completed()
        self.next_id = 1

    def ike_auth_payloads(self) -> list[Payload]:
        """What stands in the request of IKE_AUTH."""
        return list(IkeAuth().request(self.sa, self.now) or ())

    def exchange_keys(self) -> None:
        """IKE_INTERMEDIATE, as often as there are additional key exchanges."""
        exchange = IkeIntermediate()
        while (payloads := exchange.request(self.sa, self.now)) is not None:
            response = self.ask(exchange.TYPE, *payloads)
            assert response is not None
            exchange.on_response(self.sa, response, self.now)
            self.sa.requests.completed()  # AUTH proves the message IDs too

    def connect(
        self, change: Change = unchanged, change_init: Change = unchanged
    ) -> Message | None:
        """IKE_SA_INIT and IKE_AUTH, whose requests may be changed; gives the last response."""
        self.init(change_init)
        return self.authenticate(change)

    def authenticate(self, change: Change = unchanged) -> Message | None:
        """IKE_AUTH, whose request may be changed, and what goes before; gives the response."""
        self.exchange_keys()
        response = self.ask(ExchangeType.IKE_AUTH, *change(self.ike_auth_payloads()))
        self.sa.become(IkeState.ESTABLISHED)
        return response


class ScriptedResponder(Scripted):
    """Plays the responder against an initiating Endpoint."""

    def __init__(self, initiator: ConnectionPolicy, own: ConnectionPolicy, **options: bool) -> None:
        endpoint = Endpoint(random.Random(9).randbytes, lambda: NOW, **options)
        super().__init__(own, endpoint, is_initiator=False)
        self.name = endpoint.initiate(initiator, self.arrival, self.now)
        (self.first,) = self.drain()

    def answer_init_octets(self) -> bytes:
        """The response of IKE_SA_INIT."""
        return sa_init.answer(self.sa, clear(self.first), self.first)

    def answer_init(self) -> bytes:
        """Answer IKE_SA_INIT; the request of IKE_AUTH follows."""
        self.deliver(self.answer_init_octets())
        self.endpoint.authenticate(self.name, self.now)
        (request,) = self.drain()
        return request

    def connect(self, change: Change = unchanged) -> list[bytes]:
        """IKE_SA_INIT and IKE_AUTH, whose response may be changed; what follows it."""
        request = self.answer_init()
        payloads = ike_auth.answer(self.sa, self.open(request), self.now)
        return self.respond(request, *change(payloads or []))
