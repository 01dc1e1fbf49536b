"""Endpoints in every state that a peer meets, and how an input gets to them.

An input is one octet of circumstances (``Way``) and then either a datagram as it is, or one octet
exchange type, one octet first payload type, and the chain of payloads that the peer seals.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntFlag
from functools import cache
from ipaddress import ip_address
from struct import unpack_from

from tests.flows.scripted import Scripted, ScriptedInitiator, ScriptedResponder
from tests.fuzz.snapshot import Snapshot
from tests.kit.pair import NOW
from tests.kit.policies import client, gateway, road_warrior
from tunnelwrap.crypto.cipher import BoundCipher, Cipher
from tunnelwrap.errors import UsageError
from tunnelwrap.ike.endpoint import Endpoint
from tunnelwrap.ike.outputs import (
    Answered,
    AskActivity,
    AskLease,
    Closed,
    InstallChildSa,
    Lease,
    Output,
    Trace,
    Transmit,
)
from tunnelwrap.ike.policy import Limits
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.path import Carrier, Datagram, Path
from tunnelwrap.wire.message import Fragment, IkeHeader, Message, encode_outer

MOST_CHANGES = 16  # before a Stand is made anew
MOST_ANSWERS = 8  # to one datagram of an authentic peer, with time passing
LONGEST_CHAIN = 65_000  # what SK holds, and its length field can tell


FRAGMENT = 0x80  # with the exchange type: a number and a total of 16 bits stand before the chain
LEASE = Lease((ip_address("10.1.0.9"),))


class Way(IntFlag):
    """How an input arrives."""

    RAW = 0x01  # a datagram as it is; else sealed by the peer
    RESPONSE = 0x02
    STREAM = 0x04  # by TCP
    OWN_SPIS = 0x08  # a datagram with the SPIs of the IKE SA
    REKEY_CHILD = 0x10  # an exchange of our own is under way; both bits: a delete
    REKEY_IKE = 0x20
    OTHER_ID = 0x40  # the message ID before
    LATER = 0x80  # and then time passes


@dataclass
class Stand:
    """An Endpoint in some state, and the peer that has the keys, or None for strangers."""

    endpoint: Endpoint
    peer: Scripted | None
    path: Path
    now: float
    request_id: int  # of the peer's next request
    child: int | None = None  # inbound SPI
    sa: int | None = None  # the Endpoint's name for its IKE SA
    waiting_id: int = 0  # message ID that the Endpoint waits for a response to
    spis: bytes = b""  # of its IKE SA
    is_crowded: bool = False  # one IKE SA more or less is nothing to it
    is_over: bool = False  # nothing more can come of it

    def deliver(self, data: bytes) -> list[Output]:
        """Give it one input; everything that comes of it."""
        way, rest = Way(data[0]), data[1:]
        outputs = self._wish(way)
        octets = self._octets(way, rest)
        if octets is None:
            return outputs
        path = replace(self.path, carrier=Carrier.TCP, id=7) if way & Way.STREAM else self.path
        unknown = self._unknown()
        self.endpoint.receive(Datagram(path, octets), self.now)
        if self._unknown() > unknown and not way & Way.RAW:
            self.is_over = True  # the IKE SA has a successor whose keys nobody has
        answers = self.drain()
        assert self.peer is not None or _datagrams(answers) <= 1, "a stranger gets one for one"
        outputs += answers
        outputs += self._pass(40.0 if way & Way.LATER else 0.0)
        due = self.endpoint.next_timeout()
        assert due is None or due > self.now, "what is due is done once"
        return outputs

    def _unknown(self) -> int:
        return self.endpoint.counters.get("dropped_unknown_spi", 0)

    def _pass(self, seconds: float) -> list[Output]:
        """Let time pass; what an input has made due at once is done without."""
        self.now += seconds
        self.endpoint.handle_timeout(self.now)
        return self.drain()

    def drain(self) -> list[Output]:
        """Everything it says, with its questions answered."""
        said: list[Output] = []
        while outputs := self.endpoint.outputs():
            said += outputs
            assert len(said) < 10 * MOST_ANSWERS
            for output in outputs:
                self._take(output)
        return said

    def _take(self, output: Output) -> None:
        match output:
            case AskLease():
                self.endpoint.answer(output, LEASE, self.now)
            case AskActivity():
                self.endpoint.answer(output, None, self.now)
            case Transmit():
                self._sent(IkeHeader.decode(output.datagram.octets))
            case Answered():
                self.endpoint.authenticate(output.sa, self.now)
                self.is_over = True  # nobody has the keys
            case Closed():
                self.is_over = not self.is_crowded
            case InstallChildSa():
                self.sa, self.child = output.sa, output.child.spi_in

    def _sent(self, header: IkeHeader) -> None:
        if not header.is_response:
            self.waiting_id = header.message_id
        elif header.message_id == self.request_id:
            self.request_id += 1

    def _wish(self, way: Way) -> list[Output]:
        if self.sa is None or self.child is None:
            return []
        kinds = way & (Way.REKEY_CHILD | Way.REKEY_IKE)
        if kinds == Way.REKEY_CHILD:
            self.endpoint.limit_reached(self.sa, self.child, self.now, is_hard=False)
        elif kinds == Way.REKEY_IKE:
            with suppress(UsageError):  # it is being replaced or deleted already
                self.endpoint.rekey(self.sa, self.now)
        elif kinds:
            self.endpoint.close(self.sa, "enough", self.now)
        return self.drain()

    def _octets(self, way: Way, rest: bytes) -> bytes | None:
        if way & Way.RAW or self.peer is None:
            return self.spis + rest[len(self.spis) :] if way & Way.OWN_SPIS else rest
        if len(rest) < 2:
            return None
        is_response = bool(way & Way.RESPONSE)
        expected = self.waiting_id if is_response else self.request_id
        number = max(expected - 1, 0) if way & Way.OTHER_ID else expected
        exchange, chain, fragment = rest[0], rest[2 : 2 + LONGEST_CHAIN], None
        if exchange & FRAGMENT and len(chain) >= 4:
            exchange, fragment = exchange & ~FRAGMENT, Fragment(*unpack_from("!HH", chain))
            chain = chain[4:]
        spis = (self.peer.sa.spi_i, self.peer.sa.spi_r)
        flags = (is_response, self.peer.sa.is_initiator)
        return seal(
            self.peer, Message(*spis, exchange, *flags, number, ()), rest[1], chain, fragment
        )


def seal(
    peer: Scripted, message: Message, first: int, chain: bytes, fragment: Fragment | None
) -> bytes:
    """A message of the peer with these octets inside SK or SKF."""
    cipher, bound = _cipher_of(peer.sa)
    aad = encode_outer(message, first, cipher.sealed_length(len(chain)), fragment)
    return aad + bound.seal(aad, cipher.pad(chain), bytes(cipher.iv_length))


@cache
def _cipher_of(sa: IkeSa) -> tuple[Cipher, BoundCipher]:
    suite, keys, _ = sa.agreed
    pair = (keys.sk_ei, keys.sk_ai) if sa.is_initiator else (keys.sk_er, keys.sk_ar)
    return suite.cipher(), suite.cipher().bind(*pair)


def _datagrams(outputs: list[Output]) -> int:
    return sum(isinstance(output, Transmit) for output in outputs)


def gateway_of_strangers() -> Stand:
    """A gateway that nobody has spoken to; soon it asks for cookies, and then it is full."""
    limits, rng = Limits(half_open=6, cookie_threshold=2), random.Random(8)
    endpoint = Endpoint(rng.randbytes, lambda: NOW, connections=[gateway()], limits=limits)
    peer = ScriptedInitiator(client(), gateway())
    return Stand(endpoint, None, peer.arrival, peer.now, 0, is_crowded=True)


def client_in_init() -> Stand:
    """A client that waits for the response of IKE_SA_INIT."""
    peer = ScriptedResponder(client(), gateway())
    return replace(_stand(peer, None, 0), spis=peer.first[:8] + bytes(range(8)))


def gateway_in_auth() -> Stand:
    """A gateway that waits for IKE_AUTH of a peer that is not authenticated, and has a pool."""
    peer = ScriptedInitiator(*road_warrior())
    peer.init()
    return _stand(peer, peer, 1)


def client_in_auth() -> Stand:
    """A client that waits for the response of IKE_AUTH."""
    peer = ScriptedResponder(client(), gateway())
    peer.answer_init()
    return replace(_stand(peer, peer, 0), waiting_id=1)


def gateway_established() -> Stand:
    """A gateway with an authenticated peer."""
    peer = ScriptedInitiator(client(), gateway())
    peer.connect()
    return _established(peer, 2)


def client_established() -> Stand:
    """A client with an authenticated peer."""
    peer = ScriptedResponder(client(), gateway())
    peer.connect()
    return _established(peer, 0)


def _established(peer: Scripted, request_id: int) -> Stand:
    installed = peer.fact(InstallChildSa)
    assert installed is not None, "the flow tests see to that"
    stand = _stand(peer, peer, request_id)
    return replace(stand, child=installed.child.spi_in, sa=installed.sa)


def _stand(peer: Scripted, keyholder: Scripted | None, request_id: int) -> Stand:
    spis = peer.sa.spi_i + peer.sa.spi_r
    return Stand(peer.endpoint, keyholder, peer.arrival, peer.now, request_id, spis=spis)


class Runner:
    """Gives inputs to a Stand, and takes a new one when it is over or has lived through enough.

    What fails may need what came before: the error names all that changed anything.
    """

    def __init__(self, make: Callable[[], Stand]) -> None:
        self._make = make
        self._copies: Snapshot[Stand] | None = None
        self._stand: Stand | None = None
        self._history: list[bytes] = []

    def __call__(self, data: bytes) -> None:
        if not data:
            return
        stand, self._stand = self._stand or self._new(), None
        try:
            outputs = stand.deliver(data)
        except Exception as error:
            before = " ".join(octets.hex() for octets in self._history)
            raise AssertionError(f"after {before or 'nothing'}: {error!r}") from error
        if any(not isinstance(output, Trace) for output in outputs):
            self._history.append(data)
        if stand.is_over or len(self._history) > MOST_CHANGES:
            self._history = []
        else:
            self._stand = stand

    def _new(self) -> Stand:
        """A copy: to come to a state again costs ten times as much."""
        if self._copies is None:
            first = self._make()
            self._copies = Snapshot(first, first.peer)
        return self._copies()
