"""Driver: feeds the core with datagrams and time, and does what it says.

Owns: the Endpoint, the data plane, the transports in use, the one timer. A gateway's UDP listeners
make a transport for a path whenever one is needed; streams are attached and detached.
Flow: transport -> ``datagrams`` -> plane.feed (ESP stays there) -> Endpoint.receive -> ``_drain``.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from tunnelwrap.daemon.recording import Recorder
from tunnelwrap.dataplane import DataPlane, SaCounters, Trap
from tunnelwrap.errors import (
    DataPlaneError,
    InternalAddressFailure,
    Refusal,
    StreamCorrupt,
    TransportError,
    UsageError,
)
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.child_setup import selectors_of
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
from tunnelwrap.ike.policy import ChildPolicy, ConnectionPolicy
from tunnelwrap.path import Datagram, IpAddress, Path, SocketAddress
from tunnelwrap.transport import Transport
from tunnelwrap.wire.esp import NAT_KEEPALIVE, NON_ESP_MARKER

logger = logging.getLogger(__name__)

KEEPALIVE_S = 20.0  # RFC 3948 §4
RETRY_S = 1.0  # after an internal error in a timer

Fact = (
    Answered
    | Established
    | InstallChildSa
    | Rekeyed
    | ReauthenticationDue
    | Redirected
    | ChildRefused
    | Closed
)
Observer = Callable[[Fact], None]
LeaseAnswerer = Callable[[AskLease], Lease | Refusal]
PathFinder = Callable[[Path], Transport | None]
"""Makes the transport for a path on UDP, or None where there is no such way."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


def refuse_lease(ask: AskLease) -> Refusal:
    """The LeaseAnswerer of a host that has no addresses to give."""
    return InternalAddressFailure(f"there is no pool {ask.pool}")


@dataclass(slots=True)
class LiveSa:
    """What is known of an established IKE SA, for status and for finding its transport."""

    established: Established
    since: float
    path: Path
    children: dict[int, ChildSa] = field(default_factory=dict)


@dataclass(slots=True)
class _Demand:
    """A Child SA that is made when there is something to carry."""

    sa: int
    policy: ChildPolicy
    is_asked_for: bool = False  # a packet waits


class Driver:
    """Runs an Endpoint in an event loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        plane: DataPlane,
        loop: asyncio.AbstractEventLoop,
        observer: Observer,
        lease_answerer: LeaseAnswerer = refuse_lease,
        recorder: Recorder | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._plane = plane
        self._loop = loop
        self._observer = observer
        self._lease_answerer = lease_answerer
        self._recorder = recorder or Recorder()
        self._transports: dict[Path, Transport] = {}
        self._attached_at: dict[Path, float] = {}
        self._find_udp: PathFinder = lambda _path: None
        self._current: Transport | None = None
        self._demands: dict[str, _Demand] = {}  # by the name of the Child SA
        self._timer: asyncio.TimerHandle | None = None
        self._is_draining = False
        self._is_closed = False
        self.live: dict[int, LiveSa] = {}
        self.counters: Counter[str] = Counter()
        self._keepalive = loop.call_later(KEEPALIVE_S, self._send_keepalives)

    def datagrams(self, transport: Transport, batch: Sequence[memoryview]) -> None:
        """Take datagrams that arrived (BatchCallback of every transport), all ESP first."""
        if self._is_closed:
            return
        for datagram in self._plane.feed(transport, batch):
            self._take(transport, datagram)

    def find_udp_by(self, finder: PathFinder) -> None:
        """Paths on UDP that are not attached are looked for there."""
        self._find_udp = finder

    def attach(self, transport: Transport) -> None:
        """A stream, or a UDP transport of our own making, can be used by its path."""
        self._transports[transport.path] = transport
        self._attached_at[transport.path] = self._loop.time()

    def close_idle_streams(self, age_s: float) -> None:
        """Close the streams of that age which no established IKE SA uses. RFC 9329 §6.1."""
        newest = self._loop.time() - age_s
        for path in self.unproven_streams():
            if self._attached_at[path] <= newest:
                self.counters["idle_streams_closed"] += 1
                transport = self._transports[path]
                self.detach(transport)
                transport.close()

    def unproven_streams(self) -> list[Path]:
        """Streams that no established IKE SA uses, or not yet."""
        used = {live.path for live in self.live.values()}
        return [path for path in self._transports if path.carrier.is_reliable and path not in used]

    def detach(self, transport: Transport, error: TransportError | None = None) -> None:
        """A stream is gone; its IKE SA keeps its state. RFC 9329 §6.1."""
        self._transports.pop(transport.path, None)
        self._attached_at.pop(transport.path, None)
        if error is not None:
            if isinstance(error, StreamCorrupt):
                self.counters["corrupt_streams"] += 1
            logger.debug("%s: %s", transport.path, error)

    def initiate(
        self,
        connection: ConnectionPolicy,
        transport: Transport,
        floats_to: Transport | None = None,
        *,
        replaces: int | None = None,
        redirected_from: IpAddress | None = None,
    ) -> int:
        """Begin an IKE SA over a transport, perhaps to replace another; gives its name."""
        self.attach(transport)
        if floats_to is not None:
            self.attach(floats_to)
        sa = self._endpoint.initiate(
            connection,
            transport.path,
            self._loop.time(),
            floats_to=floats_to.path if floats_to else None,
            replaces=replaces,
            redirected_from=redirected_from,
        )
        self._drain()
        return sa

    def authenticate(self, sa: int) -> None:
        """Go on with IKE_AUTH."""
        self._endpoint.authenticate(sa, self._loop.time())
        self._drain()

    def path_up(self, sa: int, transport: Transport) -> None:
        """The peer of an IKE SA is reached by this transport now."""
        self.attach(transport)
        self._endpoint.path_up(sa, transport.path, self._loop.time())
        self._drain()

    def await_traffic(self, sa: int, policy: ChildPolicy) -> None:
        """Ask for a Child SA in this IKE SA whenever there is a packet that needs it.

        An IKE SA that takes the place of another one gets what that has been asked for in vain.

        Raises:
            DataPlaneError: the data plane cannot say when there is one.
        """
        former = self._demands.get(policy.name)
        demand = self._demands[policy.name] = _Demand(sa, policy)
        self._set_trap(demand)
        if former is not None and former.is_asked_for:
            self._acquired(demand)

    def waits_for_traffic(self, sa: int) -> bool:
        """Whether an IKE SA has no Child SA because there is nothing to carry."""
        has_child = sa in self.live and bool(self.live[sa].children)
        return not has_child and any(each.sa == sa for each in self._demands.values())

    def close_sa(self, sa: int, reason: str) -> None:
        """End an IKE SA with a delete."""
        self._endpoint.close(sa, reason, self._loop.time())
        self._drain()

    def redirect_all(self, gateway: str) -> int:
        """Send all peers, and whoever comes, to another gateway; how many go. RFC 5685."""
        self._endpoint.redirect_newcomers(gateway)
        now = self._loop.time()
        count = sum(self._endpoint.redirect(sa, gateway, now) for sa in list(self.live))
        self._drain()
        return count

    def abandon(self, sa: int, reason: str) -> None:
        """Forget an IKE SA without a word."""
        self._endpoint.abandon(sa, reason)
        self._drain()

    def expired(self, spi_in: int, is_hard: bool) -> None:  # noqa: FBT001 (ExpireCallback)
        """A Child SA reached a limit (ExpireCallback of the data plane)."""
        for sa, live in self.live.items():
            if spi_in in live.children:
                self._endpoint.limit_reached(sa, spi_in, self._loop.time(), is_hard=is_hard)
                self._loop.call_soon(self._drain)
                return

    def esp_from(self, spi_in: int, transport: Transport) -> None:
        """The peer is elsewhere, as its ESP shows (ElsewhereCallback of the data plane)."""
        for sa, live in self.live.items():
            if spi_in in live.children:
                self._endpoint.esp_from(sa, transport.path, self._loop.time())
                self._loop.call_soon(self._drain)
                return

    def mapped(self, spi_in: int, peer: SocketAddress) -> None:
        """A NAT has moved the peer, as its ESP shows (MappingCallback of the kernel's plane)."""
        for sa, live in self.live.items():
            if spi_in in live.children:
                self._endpoint.esp_from(sa, replace(live.path, peer=peer), self._loop.time())
                self._drain()
                return

    def plane_of(self, spi_in: int) -> str:
        """Which data plane has a Child SA."""
        return self._plane.name_of(spi_in)

    def sa_counters(self, spi_in: int) -> SaCounters:
        """What a Child SA carried."""
        return self._plane.counters(spi_in)

    def all_counters(self) -> dict[str, int]:
        """Counters of the core, of the data plane and of this driver."""
        drops = self._plane.drops.items()
        esp = {f"dropped_esp_{cause.replace('-', '_')}": count for cause, count in drops}
        return {**self._endpoint.counters, **esp, **self.counters}

    def close(self) -> None:
        """Stop; nothing is sent any more."""
        self._is_closed = True
        self._keepalive.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for transport in list(self._transports.values()):
            transport.close()
        self._transports.clear()
        self._attached_at.clear()
        self._plane.close()
        self._recorder.close()

    def _take(self, transport: Transport, datagram: memoryview) -> None:
        octets = bytes(datagram)
        if octets == NAT_KEEPALIVE:
            return
        if transport.path.has_marker:
            if octets[:4] != NON_ESP_MARKER:
                # the response before it in the batch may have made its Child SA meanwhile
                if self._plane.feed(transport, [datagram]):
                    self._take_unknown_esp(transport, octets)
                return
            octets = octets[4:]
        self._current = transport
        try:
            message = Datagram(transport.path, octets)
            self._recorder.message(message, is_ours=False)
            self._endpoint.receive(message, self._loop.time())
            self._drain()
        except Exception:  # one datagram must never take the others down
            self.counters["internal_errors"] += 1
            logger.exception("a datagram from %s could not be processed", transport.path)
        finally:
            self._current = None

    def _take_unknown_esp(self, transport: Transport, octets: bytes) -> None:
        self.counters["dropped_unknown_esp"] += 1
        self._endpoint.unknown_esp(octets[:4], transport.path, self._loop.time())
        self._drain()

    def _drain(self) -> None:
        """Do everything the core says, then arm the timer: after each mutation, and only here."""
        if self._is_draining or self._is_closed:
            return
        self._is_draining = True
        try:
            while outputs := self._endpoint.outputs():
                for output in outputs:
                    self._perform(output)
        finally:
            self._is_draining = False
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._endpoint.next_timeout()
        if due is None or self._is_closed:
            self._timer = None
        else:
            self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        try:
            self._endpoint.handle_timeout(self._loop.time())
            self._drain()
        except Exception:  # a timer that fails must not stop all others
            self.counters["internal_errors"] += 1
            logger.exception("a timer could not be served")
            self._timer = self._loop.call_later(RETRY_S, self._on_timer)

    def _perform(self, output: Output) -> None:
        match output:
            case Transmit():
                self._send(output.datagram)
            case InstallChildSa():
                self._change_plane(output)
                self._observer(output)
            case UseOutbound() | MoveChildSa() | RemoveChildSa():
                self._change_plane(output)
            case Moved():
                self._moved(output)
            case AskLease() | AskActivity() | AskUsage():
                self._answer(output)
            case ReleaseSpi():
                self._plane.release_spi(output.spi_in)
            case KeysDerived():
                self._recorder.ike_keys(output)
            case Trace():
                logger.log(_LEVELS[output.level], "%s", output.text)
            case (
                Answered()
                | Established()
                | Rekeyed()
                | ReauthenticationDue()
                | Redirected()
                | ChildRefused()
                | Closed()
            ):
                self._note(output)
                self._observer(output)

    def _answer(self, ask: AskLease | AskActivity | AskUsage) -> None:
        answer: Lease | Refusal | float | None
        match ask:
            case AskLease():
                answer = self._lease_answerer(ask)
            case AskActivity():
                answer = self._last_in(ask)
            case AskUsage():
                counters = self._plane.counters(ask.spi_in)
                answer = counters.packets_in + counters.packets_out
        self._endpoint.answer(ask, answer, self._loop.time())

    def _moved(self, output: Moved) -> None:
        if output.sa not in self.live:
            return
        self.live[output.sa].path = output.path
        for demand in self._demands.values():
            if demand.sa == output.sa:
                try:
                    self._set_trap(demand)
                except DataPlaneError as error:
                    logger.warning("no Child SA on demand any more: %s", error)
                    self._loop.call_soon(self.close_sa, output.sa, f"data plane: {error}")

    def _set_trap(self, demand: _Demand) -> None:
        live, policy = self.live[demand.sa], demand.policy
        lease = live.established.lease
        local = lease.addresses if lease is not None else (live.path.local.ip,)
        trap = Trap(
            policy.name,
            policy.mode,
            policy.ts_local or selectors_of(local),
            policy.ts_peer or selectors_of((live.path.peer.ip,)),
            policy.proposals[0].protocol,
        )
        transport = self._existing_transport(live.path)
        self._plane.trap(trap, transport, partial(self._acquired, demand))

    def _acquired(self, demand: _Demand) -> None:
        """A packet waits (AcquireCallback of the data plane).

        One that a Child SA there is does not take was not agreed on: another would not take it.
        """
        live, name = self.live.get(demand.sa), demand.policy.name
        has_one = live is not None and any(c.name == name for c in live.children.values())
        if has_one or self._demands.get(name) is not demand:
            return
        if live is not None and not demand.is_asked_for:
            logger.info("there is something to carry for %s", name)
            try:
                self._endpoint.create_child(demand.sa, demand.policy, self._loop.time())
            except UsageError as error:  # the one that follows it gets the Child SA
                logger.debug("= %s", error)
        demand.is_asked_for = True
        self._drain()

    def _answered(self, sa: int) -> None:
        """A Child SA that was asked for is there, or refused."""
        for demand in self._demands.values():
            if demand.sa == sa:
                demand.is_asked_for = False

    def _send(self, datagram: Datagram) -> None:
        transport = self._transport(datagram.path)
        if transport is None:
            self.counters["dropped_no_transport"] += 1
            return
        self._recorder.message(datagram, is_ours=True)
        marker = NON_ESP_MARKER if datagram.path.has_marker else b""
        transport.send(marker + datagram.octets)

    def _transport(self, path: Path) -> Transport | None:
        if self._current is not None and self._current.path == path:
            return self._current
        return self._transports.get(path) or self._find_udp(path)

    def _existing_transport(self, path: Path) -> Transport:
        transport = self._transport(path)
        if transport is None:
            raise DataPlaneError(f"{path} is gone")
        return transport

    def _change_plane(
        self, output: InstallChildSa | UseOutbound | MoveChildSa | RemoveChildSa
    ) -> None:
        live = self.live.get(output.sa)
        match output:
            case InstallChildSa():
                self._install(output, live)
            case UseOutbound():
                self._plane.use_outbound(output.spi_in)
            case MoveChildSa():
                self._move(output)
            case RemoveChildSa():
                self._plane.remove(output.spi_in)
                if live is not None:
                    live.children.pop(output.spi_in, None)

    def _install(self, output: InstallChildSa, live: LiveSa | None) -> None:
        child = output.child
        self._recorder.child_keys(child)
        try:
            transport = self._existing_transport(child.path)
            self._plane.install(child, transport, use_outbound=output.use_outbound)
        except DataPlaneError as error:
            logger.warning("Child SA %08x cannot be installed: %s", child.spi_in, error)
            self._loop.call_soon(self.close_sa, output.sa, f"data plane: {error}")
            return
        if live is not None:
            live.children[child.spi_in] = child
        self._answered(output.sa)
        what = "replaces" if output.replaces is not None else "carries"
        old = f" {output.replaces:08x}" if output.replaces is not None else ""
        logger.log(
            logging.DEBUG if output.replaces is not None else logging.INFO,
            "Child SA %08x (%s) %s%s %s === %s",
            child.spi_in,
            child.suite,
            what,
            old,
            ", ".join(map(str, child.ts_local)),
            ", ".join(map(str, child.ts_peer)),
        )

    def _move(self, output: MoveChildSa) -> None:
        transport = self._transport(output.path)
        if transport is None:
            return
        try:
            self._plane.move(output.spi_in, transport, is_bare=output.is_bare)
        except DataPlaneError as error:
            logger.warning("Child SA %08x cannot be moved: %s", output.spi_in, error)
            self._loop.call_soon(self.close_sa, output.sa, f"data plane: {error}")

    def _last_in(self, ask: AskActivity) -> float | None:
        seen = (self._plane.counters(spi).last_in for spi in ask.spis_in)
        return max((at for at in seen if at is not None), default=None)

    def _note(self, fact: Fact) -> None:
        match fact:
            case Established():
                self.live[fact.sa] = LiveSa(fact, self._loop.time(), fact.path)
            case ChildRefused():
                self._answered(fact.sa)
            case Closed():
                self.live.pop(fact.sa, None)
            case _:
                pass

    def _send_keepalives(self) -> None:
        """A NAT forgets idle mappings; on streams there is no such need. RFC 9329 §6.6."""
        for live in self.live.values():
            transport = self._transport(live.path)
            is_needed = live.established.behind_nat and not live.path.carrier.is_reliable
            if transport is not None and is_needed:
                transport.send(NAT_KEEPALIVE)
        self._keepalive = self._loop.call_later(KEEPALIVE_S, self._send_keepalives)
