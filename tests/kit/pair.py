"""Two Endpoints wired in memory, with virtual time and an unreliable network between them.

    pair = Pair(initiator_policy, responder_policy)
    pair.connect()
    pair.run(10.0)

``Wire`` delays, loses, duplicates and reorders by a seeded generator, translates addresses like a
NAT, breaks streams, and shows every message to ``Wire.filter`` first, which may drop it.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TypeVar, assert_never

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.errors import Refusal
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.endpoint import Endpoint
from tunnelwrap.ike.outputs import (
    Answered,
    AskActivity,
    AskLease,
    AskUsage,
    ChildRefused,
    Closed,
    Established,
    InstallChildSa,
    KeysDerived,
    Lease,
    MoveChildSa,
    Moved,
    Output,
    ReauthenticationDue,
    Redirected,
    Rekeyed,
    ReleaseSpi,
    RemoveChildSa,
    Trace,
    Transmit,
    UseOutbound,
)
from tunnelwrap.ike.policy import ConnectionPolicy, Limits
from tunnelwrap.path import Carrier, Datagram, Path, SocketAddress
from tunnelwrap.wire.message import IkeHeader

Fact = TypeVar("Fact")

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def address(ip: str, port: int = 4500) -> SocketAddress:
    return SocketAddress(ip_address(ip), port)


@dataclass
class RecordingPlane:
    """Holds what a data plane would hold."""

    installed: dict[int, ChildSa] = field(default_factory=dict)
    outbound: list[int] = field(default_factory=list)  # spi_in of active ones, newest last
    history: list[str] = field(default_factory=list)

    def apply(self, output: InstallChildSa | UseOutbound | MoveChildSa | RemoveChildSa) -> None:
        match output:
            case InstallChildSa():
                spi = output.child.spi_in
                assert spi not in self.installed, "an SPI is owned once"
                self.installed[spi] = output.child
                if output.use_outbound:
                    self.outbound.append(spi)
                self.history.append("install")
            case UseOutbound():
                assert output.spi_in in self.installed
                self.outbound.append(output.spi_in)
                self.history.append("use")
            case MoveChildSa():
                way = {"path": output.path, "is_bare": output.is_bare}
                self.installed[output.spi_in] = replace(self.installed[output.spi_in], **way)
                self.history.append("move")
            case RemoveChildSa():
                del self.installed[output.spi_in]
                self.outbound = [spi for spi in self.outbound if spi != output.spi_in]
                self.history.append("remove")

    @property
    def sending(self) -> ChildSa | None:
        """The Child SA that outbound packets take."""
        return self.installed[self.outbound[-1]] if self.outbound else None


class Host:
    """One Endpoint with its recording plane and everything it ever said."""

    def __init__(
        self,
        name: str,
        connections: Sequence[ConnectionPolicy],
        seed: int,
        lease: Lease | Refusal | None = None,
        limits: Limits | None = None,
        wall_now: datetime = NOW,
        *,
        forces_encapsulation: bool = True,
        token_secret: Secret | None = None,
        redirect_to: str | None = None,
        exports_keys: bool = False,
        compresses: bool = False,
        has_beet: bool = False,
    ) -> None:
        self.name = name
        self.random = random.Random(seed)
        self.endpoint = Endpoint(
            self.random.randbytes,
            lambda: wall_now,
            connections=connections,
            limits=limits,
            forces_encapsulation=forces_encapsulation,
            token_secret=token_secret,
            exports_keys=exports_keys,
            reserve_spi=self._reserve,
            compresses=compresses,
            has_beet=has_beet,
        )
        self.endpoint.redirect_newcomers(redirect_to)
        self.plane = RecordingPlane()
        self.lease = lease
        self.facts: list[Output] = []
        self.traces: list[Trace] = []
        self.keys: list[KeysDerived] = []
        self.sent: list[Datagram] = []
        self.asks: list[AskLease] = []
        self.answers_leases = True
        self.last_in: float | None = None
        self.carried: dict[int, int] = {}  # packets, by spi_in
        self.released: list[int] = []
        self.taken: set[int] = set()  # SPIs of others on this host
        self.reserved: list[tuple[int, Path]] = []
        self.authenticates = True
        self.closed: set[int] = set()

    def fact(self, kind: type[Fact]) -> Fact | None:
        """The newest fact of a kind."""
        found = [fact for fact in self.facts if isinstance(fact, kind)]
        return found[-1] if found else None

    def _reserve(self, spi: int, path: Path) -> bool:
        self.reserved.append((spi, path))
        return spi not in self.taken

    def text(self) -> str:
        """All log lines."""
        return "\n".join(trace.text for trace in self.traces)


@dataclass
class Wire:
    """The network between the two hosts; times in seconds, chances from 0 to 1."""

    delay: float = 0.01
    jitter: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    seed: int = 1
    nat: SocketAddress | None = None  # as which the responder sees the initiator; others are lost
    broken: set[int] = field(default_factory=set)  # ids of streams that carry nothing any more
    filter: Callable[[str, IkeHeader, bytes], bool] | None = None  # (sender, ...) -> pass on?

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def carries(self, sender: str, path: Path) -> bool:
        """False where a stream is broken, or a NAT has forgotten whom the path leads to."""
        is_mapped = sender == "i" or self.nat is None or path.peer == self.nat
        return is_mapped and not (path.carrier.is_reliable and path.id in self.broken)

    def arrivals(self, sender: str, octets: bytes) -> list[float]:
        """After how many seconds each copy arrives."""
        if self.filter is not None and not self.filter(sender, IkeHeader.decode(octets), octets):
            return []
        copies = 2 if self.random.random() < self.duplication else 1
        return [
            self.delay + self.random.random() * self.jitter
            for _ in range(copies)
            if self.random.random() >= self.loss
        ]


class Pair:
    """An initiator and a responder in virtual time."""

    def __init__(
        self,
        initiator: ConnectionPolicy,
        responder: ConnectionPolicy | Sequence[ConnectionPolicy],
        wire: Wire | None = None,
        *,
        carrier: Carrier = Carrier.UDP,
        lease: Lease | Refusal | None = None,
        limits: Limits | None = None,
        seed: int = 1,
        wall_now: datetime = NOW,
        forces_encapsulation: bool = True,
        token_secret: Secret | None = None,
        redirect_to: str | None = None,
        exports_keys: bool = False,
        compresses: bool = False,
        has_beet: bool = False,
    ) -> None:
        connections = [responder] if isinstance(responder, ConnectionPolicy) else responder
        self.wire = wire or Wire()
        self.policy, self.responder = initiator, connections[0]
        self.now = 1000.0
        self._connections = connections
        common = {
            "wall_now": wall_now,
            "forces_encapsulation": forces_encapsulation,
            "token_secret": token_secret,
            "redirect_to": redirect_to,
            "exports_keys": exports_keys,
            "compresses": compresses,
            "has_beet": has_beet,
        }
        self.i = Host("i", (), seed, **common)
        self.r = Host("r", connections, seed + 1, lease, limits, **common)
        self.path = Path(address("192.0.2.1"), address("198.51.100.1"), carrier)
        self._queue: list[tuple[float, int, Host, Datagram]] = []
        self._order = itertools.count()
        self.sa_i = 0

    def restart(self, host: Host, token_secret: Secret | None = None) -> None:
        """The host crashes and is there again, with nothing but its connections and that secret."""
        seed = host.random.randrange(1 << 30)
        fresh = Host(
            host.name, self._connections if host is self.r else (), seed, token_secret=token_secret
        )
        host.endpoint, host.plane = fresh.endpoint, fresh.plane

    def connect(self, *, until: float = 5.0) -> None:
        """IKE_SA_INIT and IKE_AUTH; ``until`` seconds pass at most."""
        self.initiate()
        self.run(until)

    def initiate(self, floats_to: Path | None = None, path: Path | None = None) -> int:
        """Begin; nothing is delivered yet."""
        self.sa_i = self.i.endpoint.initiate(
            self.policy, path or self.path, self.now, floats_to=floats_to
        )
        self.drain(self.i)
        return self.sa_i

    @property
    def sa_r(self) -> int:
        """The responder's name for the IKE SA."""
        established = self.r.fact(Established)
        assert established is not None, "the responder has no IKE SA"
        return established.sa

    def run(self, seconds: float) -> None:
        """Let time pass: deliver what arrives, fire what is due."""
        end = self.now + seconds
        while True:
            due = [(at, host) for host in (self.i, self.r) if (at := _due(host)) is not None]
            at, host = min(due, key=lambda pair: pair[0], default=(end + 1, self.i))
            if self._queue and self._queue[0][0] <= min(at, end):
                self._deliver()
            elif at <= end:
                self.now = max(self.now, at)
                host.endpoint.handle_timeout(self.now)
                self.drain(host)
            else:
                self.now = end
                return

    def drain(self, host: Host) -> None:
        """Do what a host's core says."""
        while outputs := host.endpoint.outputs():
            for output in outputs:
                self._perform(host, output)

    def inject(self, host: Host, octets: bytes, path: Path | None = None) -> None:
        """A datagram from nowhere arrives at a host now."""
        host.endpoint.receive(Datagram(path or self._arrival_path(host), octets), self.now)
        self.drain(host)

    def do(self, host: Host, wish: Callable[[Endpoint, int, float], object]) -> None:
        """Tell a host's core something about its IKE SA: wish(endpoint, sa, now)."""
        wish(host.endpoint, self.sa_i if host is self.i else self.sa_r, self.now)
        self.drain(host)

    def agreed(self) -> bool:
        """True where both planes hold the same Child SAs, and each sends where the other hears."""
        ours = {(c.spi_in, c.spi_out) for c in self.i.plane.installed.values()}
        theirs = {(c.spi_out, c.spi_in) for c in self.r.plane.installed.values()}
        sending = (self.i.plane.sending, self.r.plane.sending)
        if None in sending:
            return ours == theirs
        i, r = sending
        assert i is not None
        assert r is not None
        heard = i.spi_out in self.r.plane.installed and r.spi_out in self.i.plane.installed
        return ours == theirs and heard

    def _deliver(self) -> None:
        self.now, _, host, datagram = heapq.heappop(self._queue)
        host.endpoint.receive(datagram, self.now)
        self.drain(host)

    def _perform(self, host: Host, output: Output) -> None:
        match output:
            case Transmit():
                self._send(host, output.datagram)
            case InstallChildSa() | UseOutbound() | MoveChildSa() | RemoveChildSa():
                assert output.sa not in host.closed, "nothing is said after Closed"
                host.plane.apply(output)
            case Moved():
                assert output.sa not in host.closed, "nothing is said after Closed"
                host.facts.append(output)
            case AskLease():
                host.asks.append(output)
                if host.answers_leases and host.lease is not None:
                    host.endpoint.answer(output, host.lease, self.now)
            case AskActivity() | AskUsage():
                is_usage = isinstance(output, AskUsage)
                value = host.carried.get(output.spi_in, 0) if is_usage else host.last_in
                host.endpoint.answer(output, value, self.now)
            case ReleaseSpi():
                host.released.append(output.spi_in)
            case KeysDerived() | Trace():
                (host.keys if isinstance(output, KeysDerived) else host.traces).append(output)
            case (
                Answered()
                | Established()
                | Rekeyed()
                | ReauthenticationDue()
                | Redirected()
                | ChildRefused()
                | Closed()
            ):
                self._note(host, output)
            case _:
                assert_never(output)

    def _note(
        self,
        host: Host,
        fact: Answered
        | Established
        | Rekeyed
        | ReauthenticationDue
        | Redirected
        | ChildRefused
        | Closed,
    ) -> None:
        host.facts.append(fact)
        if isinstance(fact, ReauthenticationDue):
            self._reauthenticate(host, fact.sa)
        if isinstance(fact, Answered) and host.authenticates:
            host.endpoint.authenticate(fact.sa, self.now)
        if isinstance(fact, Closed):
            host.closed.add(fact.sa)

    def _reauthenticate(self, host: Host, sa: int) -> None:
        """What a shell does: a stream is new, for it carries one IKE SA. RFC 9329 §6.1."""
        if self.sa_i != sa:  # nothing came of the last attempt
            host.endpoint.abandon(self.sa_i, "no answer")
        is_stream = self.path.carrier.is_reliable
        if is_stream:
            self.path = replace(self.path, id=self.path.id + 1)
        self.sa_i = host.endpoint.initiate(self.policy, self.path, self.now, replaces=sa)

    def _send(self, host: Host, datagram: Datagram) -> None:
        host.sent.append(datagram)
        other = self.r if host is self.i else self.i
        if not self.wire.carries(host.name, datagram.path):
            return
        path = self._mirrored(host, datagram.path)
        for delay in self.wire.arrivals(host.name, datagram.octets):
            entry = (self.now + delay, next(self._order), other, Datagram(path, datagram.octets))
            heapq.heappush(self._queue, entry)

    def _mirrored(self, host: Host, path: Path) -> Path:
        """A path as the other side sees it, through the NAT."""
        if host is self.i:
            source = self.wire.nat or path.local
            return Path(path.peer, source, path.carrier, path.has_marker, path.id)
        home = self.path.local if path.peer == self.wire.nat else path.peer
        return Path(home, path.local, path.carrier, path.has_marker, path.id)

    def _arrival_path(self, host: Host) -> Path:
        return self.path if host is self.i else self._mirrored(self.i, self.path)


def _due(host: Host) -> float | None:
    return host.endpoint.next_timeout()
