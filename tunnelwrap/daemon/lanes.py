"""From streams to the UDP port of an IKEv2 daemon and back; each client has a lane of its own.

Inbound: 1. ``admit`` takes a stream over; 2. ``_from_client`` finds the lane of each datagram by
its SPIs, or makes one; 3. the lane's UDP socket sends it to the daemon, IKE and ESP alike to the
port that knows the non-ESP marker: an initiator may use it from the first message on (RFC 7296
§2.23), and so the daemon sees one address and port of each client, which never changes. As these
are not those that the client has hashed, the daemon finds a NAT, and encapsulates ESP in UDP.
Outbound: ``_from_daemon`` learns the SPIs of the lane and sends to the stream that has its way, by
the rule of ``daemon.tenure``.

What is learnt is learnt from the daemon, since anybody can open a stream: SPI pairs from what it
sends; the SPI of ESP that a client sends, only once the daemon sends ESP to that client.
Keepalives go nowhere: RFC 9329 §6.6.
Owns: the streams that were admitted, and the lanes with their sockets.
"""

import asyncio
import hashlib
import logging
import os
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from tunnelwrap.daemon.headers import Esp, Ike, SpiTable, read
from tunnelwrap.daemon.tenure import Tenure
from tunnelwrap.errors import ConnectFailed, TransportError
from tunnelwrap.path import Carrier, IpAddress, Path, SocketAddress
from tunnelwrap.transport import Transport
from tunnelwrap.transport.sockets import family_of, is_this_host, raw, reason_of
from tunnelwrap.transport.stream import (
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    USER_TIMEOUT_MS,
    StreamTransport,
)
from tunnelwrap.transport.udp import UdpTransport
from tunnelwrap.wire.esp import Kind, classify
from tunnelwrap.wire.framing import train

logger = logging.getLogger(__name__)

LOOPBACK_SOURCES: Final = IPv4Network("127.128.0.0/10")  # the kernel plane has 127.64.0.0/10
DOUBT_S: Final = 5  # without a sign of life from a challenged stream's other end
_TRUST: Final = (KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, USER_TIMEOUT_MS)
_DOUBT: Final = (1, 1, DOUBT_S * 1000)

IpNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may cost; the times are those after which they are ended."""

    clients: int = 1000
    per_address: int = 64  # clients and streams of an IPv4 address, or an IPv6 network of 64 bits
    keep_s: float = 3600.0  # a client without a stream, or to which the daemon says nothing
    silent_s: float = 10.0  # a stream that says nothing, or a new client that is not answered
    half_open_s: float = 30.0  # from IKE_SA_INIT to the answer to IKE_AUTH
    challenge_s: float = 10.0  # a challenger


@dataclass(eq=False, slots=True)
class Caller:
    """A stream that somebody opened to us."""

    transport: StreamTransport
    sock: socket.socket  # of the transport
    origin: bytes | None  # of ``demux.places``; None: it came through a proxy, and may be anyone
    since: float
    own: "Lane | None" = None  # that was made for it
    lanes: "set[Lane]" = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Lane:
    """A client as the daemon sees it."""

    udp: UdpTransport
    origin: bytes | None
    since: float
    tenure: Tenure[Caller] = field(default_factory=Tenure)
    heard: float | None = None  # when the daemon last said something
    alone_since: float | None = None  # nobody has the way
    is_settled: bool = False  # the daemon has answered more than IKE_SA_INIT
    has_esp: bool = False  # from the daemon
    octets_in: int = 0  # from the client
    octets_out: int = 0


class Lanes:
    """All clients of one daemon.

    ``counters``: admitted, refused (streams); new, back, challenged, handed_over, ended (lanes);
    keepalives, invalid, undelivered, congested (datagrams that went nowhere); daemon_errors (ICMP).

    Args:
        daemon: where it takes IKE with the non-ESP marker, and ESP.
        sources: addresses of this host to speak to the daemon from, one for each address of
            clients, as far as they reach; None: LOOPBACK_SOURCES if the daemon is on this host,
            else the one that the route to it has.
        limits: what clients may cost.
        loop: from which everything is called.
    """

    def __init__(
        self,
        daemon: SocketAddress,
        sources: IpNetwork | None,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._daemon = daemon
        self._sources = _loopback_sources(daemon) if sources is None else sources
        self._limits = limits
        self._loop = loop
        self._salt = os.urandom(16)
        self._stream_ids = 0
        self._callers: dict[Transport, Caller] = {}
        self._lanes: dict[Transport, Lane] = {}
        self._spis: SpiTable[Lane] = SpiTable()
        self._error = ""  # what ICMP last said of the daemon
        self.counters: Counter[str] = Counter()

    @property
    def lanes(self) -> list[Lane]:
        """All of them, the oldest first."""
        return list(self._lanes.values())

    def admit(self, sock: socket.socket, path: Path, origin: bytes | None, received: bytes) -> None:
        """Take over a stream that begins as RFC 9329 wants it (``OnStream`` of the listener).

        Raises:
            TransportError: there are too many, in all or of that origin.
        """
        same = sum(caller.origin == origin for caller in self._callers.values())
        is_many = origin is not None and same >= self._limits.per_address
        # A client that comes back may be here twice for a moment.
        if is_many or len(self._callers) >= 2 * self._limits.clients:
            self.counters["refused"] += 1
            raise TransportError("too many streams")
        self.counters["admitted"] += 1
        self._stream_ids += 1
        path = replace(path, id=self._stream_ids)
        transport = StreamTransport(
            *(sock, path, self._from_client, self._stream_ended, self._loop),
            is_originator=False,
            received=received,
        )
        self._callers[transport] = Caller(transport, sock, origin, self._loop.time())

    def reap(self) -> None:
        """End what has waited for too long; to be called every second or so."""
        now = self._loop.time()
        for caller in list(self._callers.values()):
            if not caller.lanes and caller.since < now - self._limits.silent_s:
                self._hang_up(caller)
        for lane in list(self._lanes.values()):
            if self._is_over(lane, now):
                self._end(lane)
                continue
            for caller in lane.tenure.turned_away(now - self._limits.challenge_s):
                self._turn_away(lane, caller)

    def close(self) -> None:
        """Close every stream and every socket."""
        for caller in list(self._callers.values()):
            self._hang_up(caller)
        for lane in list(self._lanes.values()):
            self._end(lane)

    # --- from the client ---------------------------------------------------------------------

    def _from_client(self, transport: Transport, batch: Sequence[memoryview]) -> None:
        caller = self._callers.get(transport)
        trains: dict[Lane, list[memoryview]] = {}
        for datagram in batch:
            seen = self._read(datagram)
            if seen is None:
                continue
            lane = None if caller is None else self._lane_of(caller, seen)
            if caller is None or lane is None:
                return  # it has been hung up on
            lane.octets_in += len(datagram)
            if isinstance(seen, Ike):
                lane.udp.send(bytes(datagram))
            else:
                trains.setdefault(lane, []).append(datagram)
        for lane, datagrams in trains.items():
            self.counters["congested"] += lane.udp.send_esp(*train(datagrams))

    def _read(self, datagram: memoryview) -> Ike | Esp | None:
        seen = read(datagram)
        if seen is None:
            is_keepalive = classify(datagram) is Kind.KEEPALIVE
            self.counters["keepalives" if is_keepalive else "invalid"] += 1
        return seen

    def _lane_of(self, caller: Caller, seen: Ike | Esp) -> Lane | None:
        """Whose datagram it is; None if there is no room for another client."""
        lane = self._spis.find(seen) or caller.own or _held(caller, seen)
        if lane is None:
            lane = caller.own = self._new_lane(caller)
        if lane is None:
            self.counters["refused"] += 1
            self._hang_up(caller)
            return None
        self._hear(lane, caller, seen)
        if isinstance(seen, Esp) and lane.has_esp and lane.tenure.holder is caller:
            self._spis.learn(lane, seen)
        return lane

    def _hear(self, lane: Lane, caller: Caller, seen: Ike | Esp) -> None:
        is_back = lane.tenure.holder is None and lane.heard is not None
        is_challenger = lane.tenure.hear(caller, seen, self._loop.time())
        caller.lanes.add(lane)
        lane.alone_since = None
        if is_back:
            self.counters["back"] += 1
            logger.info("%s is back at %s", caller.transport.path, lane.udp.path.local)
        if is_challenger:
            self.counters["challenged"] += 1
            self._judge(lane)

    def _judge(self, lane: Lane) -> None:
        """Have TCP find out whether the holder of a challenged way is still there."""
        if lane.tenure.holder is not None:
            _probe(lane.tenure.holder.sock, *(_DOUBT if lane.tenure.challengers else _TRUST))

    # --- from the daemon ---------------------------------------------------------------------

    def _from_daemon(self, transport: Transport, batch: Sequence[memoryview]) -> None:
        lane = self._lanes.get(transport)
        if lane is None:
            return
        packets: list[memoryview] = []
        for datagram in batch:
            seen = self._read(datagram)
            if seen is None:
                continue
            lane.heard = self._loop.time()
            lane.octets_out += len(datagram)
            if isinstance(seen, Ike):
                self._deliver(lane, seen, bytes(datagram))
            else:
                packets.append(datagram)
        if packets:
            self._deliver_esp(lane, packets)

    def _deliver(self, lane: Lane, seen: Ike, datagram: bytes) -> None:
        lane.is_settled |= seen.message_id > 0 or not seen.is_response
        self._spis.learn(lane, seen)
        before = lane.tenure.holder
        recipients = lane.tenure.answer(seen, self._loop.time())
        if lane.tenure.holder is not before:
            self._handed_over(lane)
        if not recipients:
            self.counters["undelivered"] += 1
        for caller in recipients:
            caller.transport.send(datagram)

    def _deliver_esp(self, lane: Lane, packets: list[memoryview]) -> None:
        lane.is_settled = lane.has_esp = True
        holder = lane.tenure.holder
        if holder is None:
            self.counters["undelivered"] += len(packets)
        else:
            self.counters["congested"] += holder.transport.send_esp(*train(packets))

    def _handed_over(self, lane: Lane) -> None:
        holder = lane.tenure.holder
        assert holder is not None
        self.counters["handed_over"] += 1
        self._judge(lane)
        logger.info("%s has taken the way of %s", holder.transport.path, lane.udp.path.local)

    def _daemon_error(self, transport: Transport, error: TransportError) -> None:
        """What ICMP says ends nothing: the daemon may just be starting again."""
        self.counters["daemon_errors"] += 1
        if str(error) != self._error:
            self._error = str(error)
            logger.warning("the daemon at %s: %s", transport.path.peer, error)

    # --- beginnings and ends -----------------------------------------------------------------

    def _new_lane(self, caller: Caller) -> Lane | None:
        origin = caller.origin
        if not self._has_room(origin):
            return None
        try:
            udp = self._open(origin or self._stream_ids.to_bytes(8, "big"))
        except TransportError as error:
            logger.warning("no socket for %s: %s", caller.transport.path, error)
            return None
        lane = self._lanes[udp] = Lane(udp, origin, self._loop.time())
        self.counters["new"] += 1
        logger.info("%s is %s to the daemon", caller.transport.path, udp.path.local)
        return lane

    def _has_room(self, origin: bytes | None) -> bool:
        """Whether another client may come; one may have to make room for it.

        The oldest of those that have proven nothing goes first, then the one longest away.
        """
        same = [lane for lane in self._lanes.values() if lane.origin == origin is not None]
        for lanes, most in (
            (same, self._limits.per_address),
            (self.lanes, self._limits.clients),
        ):
            if len(lanes) < most:
                continue
            ends = [lane for lane in lanes if not lane.is_settled or lane.alone_since is not None]
            if not ends:
                return False
            self._end(min(ends, key=lambda lane: (lane.is_settled, lane.alone_since or lane.since)))
        return True

    def _open(self, seed: bytes) -> UdpTransport:
        sock = socket.socket(family_of(self._daemon), socket.SOCK_DGRAM)
        try:
            if self._sources is not None:
                sock.bind(raw(SocketAddress(_pick(self._sources, seed, self._salt), 0)))
            sock.connect(raw(self._daemon))
        except OSError as error:
            sock.close()
            raise ConnectFailed(reason_of(error)) from error
        path = Path(SocketAddress.of(sock.getsockname()), self._daemon, Carrier.UDP)
        return UdpTransport(sock, path, self._from_daemon, self._daemon_error, self._loop)

    def _is_over(self, lane: Lane, now: float) -> bool:
        if lane.heard is None:
            return lane.since < now - self._limits.silent_s
        if not lane.is_settled:
            return lane.since < now - self._limits.half_open_s
        return (lane.alone_since or lane.heard) < now - self._limits.keep_s

    def _end(self, lane: Lane) -> None:
        """Forget a client; its streams end with it."""
        self.counters["ended"] += 1
        del self._lanes[lane.udp]
        self._spis.forget(lane)
        lane.udp.close()
        for caller in (lane.tenure.holder, *lane.tenure.challengers):
            if caller is not None:
                self._hang_up(caller)

    def _turn_away(self, lane: Lane, caller: Caller) -> None:
        """Deny a challenger the way; a client that has another one may be here by mistake."""
        if any(other.tenure.holder is caller for other in caller.lanes):
            caller.lanes.discard(lane)
            self._leave(lane, caller)
        else:
            self._hang_up(caller)

    def _hang_up(self, caller: Caller) -> None:
        caller.transport.close()
        self._left(caller)

    def _stream_ended(self, transport: Transport, error: TransportError) -> None:
        caller = self._callers.get(transport)
        if caller is not None:
            logger.info("%s ended: %s", transport.path, error)
            self._left(caller)

    def _left(self, caller: Caller) -> None:
        self._callers.pop(caller.transport, None)
        for lane in caller.lanes:
            self._leave(lane, caller)
        caller.lanes = set()

    def _leave(self, lane: Lane, caller: Caller) -> None:
        lane.tenure.leave(caller)
        if lane.tenure.holder is None:
            lane.alone_since = self._loop.time()
        self._judge(lane)


def _held(caller: Caller, seen: Ike | Esp) -> Lane | None:
    """The lane of SPIs that nobody has yet: a rekey on the lane that the caller has come back to.

    A new IKE SA is not for that one: it would prove nothing to whom the lane was made for.
    """
    if isinstance(seen, Ike) and seen.is_first:
        return None
    held = (lane for lane in caller.lanes if lane.tenure.holder is caller)
    return next(held, None)


def _loopback_sources(daemon: SocketAddress) -> IpNetwork | None:
    """Addresses that only this host can speak from, if they lead to the daemon."""
    if daemon.ip.version == 6:
        return None
    with suppress(OSError):
        if is_this_host(daemon):
            return LOOPBACK_SOURCES
    return None


def _pick(network: IpNetwork, seed: bytes, salt: bytes) -> IpAddress:
    """An address of the network, always the same for a seed, and neither first nor last."""
    digest = hashlib.blake2b(seed, key=salt, digest_size=8).digest()
    inner = max(network.num_addresses - 2, 1)
    return network[min(1 + int.from_bytes(digest, "big") % inner, network.num_addresses - 1)]


def _probe(sock: socket.socket, idle_s: int, interval_s: int, timeout_ms: int) -> None:
    """How soon TCP asks the other end for a sign of life, and how long it waits for one."""
    options = (
        (socket.TCP_KEEPIDLE, idle_s),
        (socket.TCP_KEEPINTVL, interval_s),
        (socket.TCP_USER_TIMEOUT, timeout_ms),
    )
    with suppress(OSError):  # it has just ended
        for option, value in options:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
