"""The kernel's XFRM as data plane: packets over UDP never reach this process. RFC 4301 §4.4.

A Child SA is two SAs in the kernel; policies say whose packets take them. Child SAs with the same
traffic selectors share a request ID, which the policies for what comes in ask for: while one
replaces the other, both may bring packets. What goes out is told by SPI, so that a rekey switches
at one instant.

    install        inbound SA, policies in and fwd
    use_outbound   outbound SA, policies out
    move           SAs with other addresses; sequence numbers go on
    remove         all of it, or the policies go to the next older Child SA
    trap           policies out without an SA; the first packet that meets one has the kernel tell
                   it (ACQUIRE) and is lost, as are those behind it until the Child SA is there
    reserve_spi    an SA that has no keys yet, which install fills in

The high half of a request ID is the tag of this instance: what a killed run has left is found by it
and removed at the next start, and nothing else is.
Owns: the netlink sockets, and every SA and policy with our tag.
"""

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final
from zlib import crc32

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import ChildSuite
from tunnelwrap.dataplane import AcquireCallback, ExpireCallback, Progress, SaCounters, Trap
from tunnelwrap.dataplane.bridge import Bridge
from tunnelwrap.dataplane.flows import KernelFlow, kernel_flows
from tunnelwrap.dataplane.netlink import Group, XfrmMonitor, XfrmSocket
from tunnelwrap.dataplane.xfrm_statistics import read_statistics, since
from tunnelwrap.dataplane.xfrm_streams import StreamPorts
from tunnelwrap.dataplane.xfrm_suite import DEFLATE, child_algorithms
from tunnelwrap.dataplane.xfrm_values import (
    Acquire,
    Direction,
    Encapsulation,
    Event,
    Expire,
    KernelPolicy,
    KernelSa,
    Limits,
    Mapping,
    Migration,
    PolicyFlag,
    Proto,
    Replay,
    SaFlag,
    SaId,
    Selector,
    Template,
    Usage,
    XfrmMode,
)
from tunnelwrap.errors import DataPlaneError, KernelRefused, Unsupported, UsageError
from tunnelwrap.iana import ProtocolId
from tunnelwrap.ike.child_sa import ChildSa, Mode, SaKeys
from tunnelwrap.path import IpAddress, SocketAddress
from tunnelwrap.path import Path as NetworkPath
from tunnelwrap.transport import Transport

FIRST_PRIORITY: Final = 10_000
"""Of policies; behind it the narrower come first."""

SKIPPED: Final = 1024
"""Sequence numbers left out when an outbound SA is replaced, for packets sent meanwhile."""

_MODES: Final = {Mode.TUNNEL: XfrmMode.TUNNEL, Mode.TRANSPORT: XfrmMode.TRANSPORT}
_PROTOS: Final[dict[int, Proto]] = {ProtocolId.ESP: Proto.ESP, ProtocolId.AH: Proto.AH}
_TAG_SHIFT: Final = 16
_FIRST_TAG: Final = 0x7400
_TAGS: Final = 0x0400
_NOWHERE: Final = IPv4Address("192.0.2.254")  # TEST-NET-1, RFC 5737
_TRIAL_CPI: Final = 0xF000  # for private use. RFC 3173 §3.3
_HIGH_SPI: Final = 0x8000_0000
_WIDE_WINDOW: Final = 1024
_MOST_REQUEST_IDS: Final = 0xFFFF
_TAKEN: Final = frozenset({errno.ENOENT, errno.EEXIST})  # what the kernel says of an SPI

MappingCallback = Callable[[int, SocketAddress], None]
"""Called with spi_in and from where the peer's packets come now: a NAT has moved it."""

_log = logging.getLogger(__name__)


def why_not(suites: Iterable[ChildSuite]) -> str | None:
    """Why the kernel cannot be the data plane for all of these suites; None: it can.

    It is asked to take an SA of each, which leads nowhere and is deleted at once.
    """
    try:
        with XfrmSocket() as xfrm:
            for suite in suites:
                _try_out(xfrm, suite)
    except DataPlaneError as error:
        return str(error)
    return None


def why_uncompressed() -> str | None:
    """Why the kernel cannot do IPComp; None: it can.

    Beside DEFLATE it must take an SA in transport mode for both IP versions (since Linux 6.3).
    """
    sa = KernelSa(
        id=SaId(_NOWHERE, _TRIAL_CPI, Proto.COMP),
        source=_NOWHERE,
        mode=XfrmMode.TRANSPORT,
        algorithms=DEFLATE,
    )
    try:
        with XfrmSocket() as xfrm:
            xfrm.delete_sa(sa.id)
            xfrm.add_sa(sa)
            xfrm.delete_sa(sa.id)
    except DataPlaneError as error:
        return str(error)
    return None


def tag_of(instance: str) -> int:
    """What marks the SAs and policies of an instance."""
    return _FIRST_TAG + crc32(instance.encode()) % _TAGS


@dataclass(frozen=True, slots=True)
class Ends:
    """Between which addresses the packets of a Child SA travel."""

    local: SocketAddress
    peer: SocketAddress
    is_encapsulated: bool  # in UDP

    @classmethod
    def of(cls, transport: Transport, protocol: int) -> "Ends":
        """Those of a path on UDP; AH is bare on any. RFC 7296 §2.23."""
        path = transport.path
        is_esp = protocol == ProtocolId.ESP
        return cls(path.local, path.peer, path.has_marker and is_esp)


@dataclass(slots=True, eq=False)
class _Pair:
    """One installed Child SA."""

    child: ChildSa
    flows: list[KernelFlow]
    ends: Ends
    request_id: int
    progress: Progress | None  # of what it was in another plane
    has_outbound: bool = False
    has_told_soft: bool = False
    packets_in: int = 0  # when it was last asked for
    last_in: float | None = None
    sends_plain: bool = False  # although compression is agreed: the peer's CPI is another's here
    added: set[SaId] = field(default_factory=set)

    def flows_of(self, direction: Direction) -> list[KernelFlow]:
        """Those that policies of a direction are for.

        Where the peer may have any address, this host's packets to itself are told apart.
        """
        if direction is not Direction.IN:
            return self.flows
        return [*self.flows, *(each.own for each in self.flows if each.covers_own)]

    @property
    def mode(self) -> Mode:
        """That of the Child SA."""
        return self.child.mode

    @property
    def proto(self) -> Proto:
        """Likewise."""
        return _PROTOS[self.child.protocol]

    @property
    def inbound(self) -> SaId:
        """Where packets come to."""
        return SaId(self.ends.local.ip, self.child.spi_in, self.proto)

    @property
    def outbound(self) -> SaId:
        """Where packets go to."""
        return SaId(self.ends.peer.ip, self.child.spi_out, self.proto)


@dataclass(slots=True, eq=False)
class _Trap:
    """A trap that is set."""

    trap: Trap
    flows: list[KernelFlow]
    ends: Ends
    request_id: int
    on_acquire: AcquireCallback
    sequence: int = 0  # of the call that the outbound SA to come will answer; 0: there is none

    def flows_of(self, direction: Direction) -> list[KernelFlow]:
        """A trap is for what goes out only."""
        del direction
        return self.flows

    @property
    def mode(self) -> Mode:
        """That of the Child SA to come."""
        return self.trap.mode

    @property
    def proto(self) -> Proto:
        """Likewise."""
        return _PROTOS[self.trap.protocol]


_Holder = _Pair | _Trap


class KernelPlane:
    """A DataPlane whose packets are the kernel's affair.

    Args:
        tag: of this instance (``tag_of``).
        loop: from which everything is called.
        on_expire: called from the loop, never from inside a call of ours.
        on_mapping: called likewise.

    Raises:
        DataPlaneError: the kernel has no XFRM, or we have no right to it.
    """

    def __init__(
        self,
        tag: int,
        loop: asyncio.AbstractEventLoop,
        on_expire: ExpireCallback,
        on_mapping: MappingCallback,
    ) -> None:
        self._loop = loop
        self._on_expire = on_expire
        self._on_mapping = on_mapping
        self._xfrm = XfrmSocket()
        self._monitor = XfrmMonitor([Group.ACQUIRE, Group.EXPIRE, Group.MAPPING])
        self._streams: StreamPorts | None = None
        self._pairs: dict[int, _Pair] = {}
        self._traps: dict[str, _Trap] = {}
        self._reserved: dict[int, SaId] = {}
        self._no_request = tag << _TAG_SHIFT
        self._policies = _Policies(self._xfrm)
        self._request_ids = _RequestIds(tag)
        self._statistics = read_statistics()
        _remove_left_behind(self._xfrm, tag)
        loop.add_reader(self._monitor.fileno(), self._on_events)

    def open_bridge(self) -> None:
        """Take what comes by streams, too.

        Raises:
            DataPlaneError: no policy would guard it, or the kernel takes no ESP on the loopback
                device.
        """
        self._streams = StreamPorts(Bridge.create(self._loop))

    @property
    def has_bridge(self) -> bool:
        """Whether what comes by streams can be had here."""
        return self._streams is not None

    @property
    def drops(self) -> dict[str, int]:
        """Packets that the kernel's IPsec dropped since we began, whosever they were, by cause."""
        bridge = self._streams.drops if self._streams is not None else {}
        return {**bridge, **since(self._statistics)}

    def install(
        self,
        child: ChildSa,
        transport: Transport,
        *,
        use_outbound: bool,
        progress: Progress | None = None,
    ) -> None:
        """Take a Child SA into use; outbound only if asked, inbound at once.

        ``progress`` is how far it is, if it comes from another plane.

        Raises:
            DataPlaneError: the kernel refuses it; then nothing of it is left there.
        """
        if child.spi_in in self._pairs:
            raise DataPlaneError(f"SPI {child.spi_in:08x} is taken")
        flows = kernel_flows(child.ts_local, child.ts_peer)
        request_id = self._request_ids.take(_kind_of(child))
        try:
            ends = self._ends(child, transport)
        except DataPlaneError:
            self._request_ids.give_back(_kind_of(child))
            raise
        pair = _Pair(child, flows, ends, request_id, progress)
        self._pairs[child.spi_in] = pair
        try:
            self._add_compression(pair, is_outbound=False)
            self._add_inbound(pair, progress)
            for direction in _inbound_directions(child):
                self._policies.hold(pair, direction)
            if use_outbound:
                self.use_outbound(child.spi_in)
        except DataPlaneError:
            self.remove(child.spi_in)
            raise

    def use_outbound(self, spi_in: int) -> None:
        """Send through this Child SA from now on, in place of an older one with its selectors."""
        pair = self._pairs.get(spi_in)
        if pair is None:
            raise UsageError(f"no Child SA with SPI {spi_in:08x} is installed")
        trap = self._traps.get(pair.child.name)
        if not pair.has_outbound:
            self._add_compression(pair, is_outbound=True)
            self._add_outbound(pair, trap.sequence if trap is not None else 0)
            pair.has_outbound = True
        self._policies.hold(pair, Direction.OUT)
        if trap is not None and trap.sequence:
            self._renew(trap)

    def move(self, spi_in: int, transport: Transport) -> None:
        """Send the packets of a Child SA by another path; sequence numbers go on."""
        pair = self._pairs.get(spi_in)
        ends = self._ends(pair.child, transport) if pair is not None else None
        if pair is None or ends is None or ends == pair.ends:
            return
        if not self._migrate(pair, ends):
            self._replace_all(pair, ends)
        if self._streams is not None and not transport.path.carrier.is_reliable:
            self._streams.leave(spi_in)

    def take_out(self, spi_in: int) -> Progress:
        """Remove a Child SA that another plane goes on with.

        Raises:
            UsageError: there is no such Child SA.
        """
        pair = self._pairs.get(spi_in)
        if pair is None:
            raise UsageError(f"no Child SA with SPI {spi_in:08x} is installed")
        self._policies.release(pair, Direction.OUT)  # nothing is sent any more
        counters = self.counters(spi_in)
        inbound, outbound = self._xfrm.find_sa(pair.inbound), self._xfrm.find_sa(pair.outbound)
        self.remove(spi_in)
        taken = inbound.replay if inbound is not None else Replay()
        sent = outbound.replay.outbound + SKIPPED if outbound is not None else 0
        return Progress(sent, taken.inbound, taken.seen, counters)

    def name_of(self, spi_in: int) -> str:
        """Whose Child SA it is."""
        return "kernel" if spi_in in self._pairs else ""

    def remove(self, spi_in: int) -> None:
        """Forget a Child SA and its keys; unknown is no error."""
        pair = self._pairs.pop(spi_in, None)
        if pair is None:
            return
        for direction in Direction:
            self._policies.release(pair, direction)
        for sa in list(pair.added):
            self._drop(pair, sa)
        if self._streams is not None:
            self._streams.leave(spi_in)
        self._request_ids.give_back(_kind_of(pair.child))

    def trap(self, trap: Trap, transport: Transport, on_acquire: AcquireCallback) -> None:
        """Call for a Child SA when there is a packet for it that no Child SA takes.

        Raises:
            DataPlaneError: the kernel refuses it; then there is none of that name.
        """
        self.untrap(trap.name)
        flows = kernel_flows(trap.ts_local, trap.ts_peer)
        request_id = self._request_ids.take(trap)
        new = _Trap(trap, flows, Ends.of(transport, trap.protocol), request_id, on_acquire)
        self._traps[trap.name] = new
        try:
            self._policies.hold_last(new, Direction.OUT)
        except DataPlaneError:
            self.untrap(trap.name)
            raise

    def untrap(self, name: str) -> None:
        """Call for nothing any more by the trap of that name; unknown is no error."""
        trap = self._traps.pop(name, None)
        if trap is not None:
            self._policies.release(trap, Direction.OUT)
            self._request_ids.give_back(trap.trap)

    def reserve_spi(self, spi: int, path: NetworkPath) -> bool:
        """Keep an inbound SPI for a Child SA on a path; False: somebody else has it.

        The kernel forgets it if no Child SA comes of it in time (net.core.xfrm_acq_expires).
        """
        larval = KernelSa(
            id=SaId(path.local.ip, 0),
            source=path.peer.ip,
            mode=XfrmMode.TUNNEL,
            reqid=self._no_request,
        )
        try:
            self._xfrm.allocate_spi(larval, spi, spi)
        except KernelRefused as error:
            if error.number in _TAKEN:
                return False
            _log.warning("SPI %08x is not reserved: %s", spi, error)
            return True
        self._reserved[spi] = SaId(path.local.ip, spi)
        return True

    def release_spi(self, spi: int) -> None:
        """A Child SA will not come of an SPI that was reserved; unknown is no error."""
        reserved = self._reserved.pop(spi, None)
        if reserved is not None:
            self._delete(reserved)

    def counters(self, spi_in: int) -> SaCounters:
        """The counters of an installed Child SA (all zero if unknown)."""
        pair = self._pairs.get(spi_in)
        if pair is None:
            return SaCounters()
        inbound = self._xfrm.find_sa(pair.inbound)
        outbound = self._xfrm.find_sa(pair.outbound) if pair.has_outbound else None
        found = SaCounters(last_in=pair.last_in)
        if outbound is not None:
            found.octets_out, found.packets_out = outbound.usage.octets, outbound.usage.packets
        if inbound is not None:
            found.octets_in, found.packets_in = inbound.usage.octets, inbound.usage.packets
            found.last_in = pair.last_in = self._last_in(pair, inbound)
        return found

    def feed(self, transport: Transport, batch: Sequence[memoryview]) -> list[memoryview]:
        """Take the ESP packets of a stream; give back what is not ours.

        Of UDP everything is given back: what the kernel takes does not come here.
        """
        if self._streams is None or not transport.path.carrier.is_reliable:
            return list(batch)
        return self._streams.feed(batch)

    def close(self) -> None:
        """Remove everything, and let the kernel go."""
        if self._monitor.fileno() >= 0:
            self._loop.remove_reader(self._monitor.fileno())
        for name in list(self._traps):
            self.untrap(name)
        for spi_in in list(self._pairs):
            self.remove(spi_in)
        if self._streams is not None:
            self._streams.close()
        for spi_in in list(self._reserved):
            self.release_spi(spi_in)
        self._monitor.close()
        self._xfrm.close()

    def _ends(self, child: ChildSa, transport: Transport) -> Ends:
        """Where the kernel meets the packets of a Child SA."""
        if not transport.path.carrier.is_reliable:
            return Ends.of(transport, child.protocol)
        if child.protocol != ProtocolId.ESP:  # RFC 9329 §3.2
            raise Unsupported("no stream can carry AH")
        if self._streams is None:
            raise Unsupported("the kernel takes no ESP from streams here")
        port = self._streams.enter(child.spi_in, transport)
        return Ends(port.entrance, port.alias, is_encapsulated=True)

    def _add_inbound(self, pair: _Pair, progress: Progress | None) -> None:
        """Add an SA that is new, or comes from another plane."""
        sa = _inbound_sa(pair)
        if progress is None:
            self._fill_in(pair, sa)
            return
        carried = progress.counters
        replay = replace(sa.replay, inbound=progress.inbound, seen=progress.seen)
        self._go_on(pair, sa, replay, Usage(carried.octets_in, carried.packets_in))

    def _fill_in(self, pair: _Pair, sa: KernelSa) -> None:
        """Add an SA, in the place of what holds its SPI, if that is still there."""
        reserved = self._reserved.pop(sa.id.spi, None)
        try:
            if reserved == sa.id:
                self._xfrm.update_sa(sa)
                pair.added.add(sa.id)
                return
        except KernelRefused as error:
            if error.number != errno.ESRCH:
                self._delete(sa.id)
                raise
        if reserved is not None:  # for another address: the peer is reached otherwise now
            self._delete(reserved)
        self._add(pair, sa)

    def _renew(self, trap: _Trap) -> None:
        """A call is answered; the next one is another one.

        A packet between the SA and its policy still met the trap. What the kernel keeps of that
        would silence the next call for half a minute, but under the old request ID only.
        """
        trap.sequence = 0
        self._request_ids.give_back(trap.trap)
        trap.request_id = self._request_ids.take(trap.trap)
        self._policies.refresh(trap, Direction.OUT)

    def _add_outbound(self, pair: _Pair, sequence: int) -> None:
        """The same for what goes out; ``sequence`` is of the call that it answers, or 0."""
        sa, progress = replace(_outbound_sa(pair), sequence=sequence), pair.progress
        if progress is None:
            self._add(pair, sa)
            return
        carried = progress.counters
        replay = replace(sa.replay, outbound=progress.outbound)
        self._go_on(pair, sa, replay, Usage(carried.octets_out, carried.packets_out))

    def _add(self, pair: _Pair, sa: KernelSa) -> None:
        self._xfrm.add_sa(sa)
        pair.added.add(sa.id)

    def _go_on(self, pair: _Pair, sa: KernelSa, replay: Replay, usage: Usage) -> None:
        """Add an SA that has carried something before.

        Where one with its SPI has just been deleted, a packet may have made the kernel ask for it;
        what the kernel keeps of that, under its request ID, is filled in.
        """
        try:
            self._add(pair, replace(sa, replay=replay))
        except KernelRefused as error:
            there = self._xfrm.find_sa(sa.id) if error.number == errno.EEXIST else None
            if there is None or there.reqid != sa.reqid:
                raise
            self._xfrm.update_sa(replace(sa, replay=replay))
            pair.added.add(sa.id)
        self._xfrm.set_state(sa.id, replay, usage)

    def _migrate(self, pair: _Pair, ends: Ends) -> bool:
        """Have the kernel move both SAs, and a policy, in one call; whether it did.

        The new SAs are copies. What another processor sends by the old one while it is copied has
        numbers that the new one does not know of: it leaves some out.
        """
        new, policies = replace(pair, ends=ends), self._policies.shown(pair, Direction.OUT)
        moves, encapsulation = _migrations(pair, new), _outbound_sa(new).encapsulation
        if not policies or not self._can_migrate(pair, ends):
            return False
        former = self._xfrm.find_sa(pair.inbound), self._xfrm.find_sa(pair.outbound)
        if former[0] is None or former[1] is None:
            return False
        try:
            self._xfrm.migrate(policies[0], moves, encapsulation)
        except KernelRefused as error:
            _log.debug("its SAs are replaced one by one: %s", error)
            return False
        pair.added -= {pair.inbound, pair.outbound}
        pair.added |= {new.inbound, new.outbound}
        pair.ends = ends
        self._policies.refresh(pair, Direction.OUT)
        if _inbound_sa(pair).encapsulation != encapsulation:
            self._xfrm.update_sa(_inbound_sa(pair))
        self._skip(_outbound_sa(pair), former[1].replay)
        return True

    def _can_migrate(self, pair: _Pair, ends: Ends) -> bool:
        """Whether the kernel could know which SAs are meant, and make of them what we want.

        It goes by addresses and request ID, so that while one Child SA replaces another it might
        take the other's; it does not take an encapsulation away.
        """
        if (pair.ends.local.ip, pair.ends.peer.ip) == (ends.local.ip, ends.peer.ip):
            return False  # ports are changed in place
        is_simple = pair.mode is Mode.TUNNEL and pair.child.cpis is None
        alike = [each for each in self._pairs.values() if each.request_id == pair.request_id]
        return is_simple and alike == [pair] and ends.is_encapsulated >= pair.ends.is_encapsulated

    def _skip(self, sa: KernelSa, former: Replay) -> None:
        """Leave out sequence numbers that may have been used already."""
        sent = min(former.outbound + SKIPPED, _last_sequence(sa))
        self._xfrm.set_state(sa.id, replace(former, outbound=sent))

    def _replace_all(self, pair: _Pair, ends: Ends) -> None:
        """Put SAs with other addresses in the place of those of a Child SA, one by one."""
        old, pair.ends = copy(pair), ends
        self._replace_compression(pair, old, is_outbound=False)
        self._replace(pair, old.inbound, _inbound_sa(pair))
        for direction in _inbound_directions(pair.child):
            self._policies.refresh(pair, direction)
        if pair.has_outbound:
            self._replace_compression(pair, old, is_outbound=True)
            self._replace(pair, old.outbound, _outbound_sa(pair), skipped=SKIPPED)
            self._policies.refresh(pair, Direction.OUT)

    def _replace(self, pair: _Pair, old: SaId, new: KernelSa, *, skipped: int = 0) -> None:
        """Put an SA with other addresses or ports in the place of one.

        Both are there for a moment, unless the kernel would take them for the same; then a packet
        that comes in between is lost.
        """
        former = self._xfrm.find_sa(old)
        if former is None:  # it has reached a limit, and its end is told
            return
        if new.id == old and new.source == former.source:
            self._xfrm.update_sa(new)
            return
        sent = min(former.replay.outbound + skipped, _last_sequence(new))
        replay = replace(former.replay, outbound=sent)
        if new.id == old:
            self._drop(pair, old)
        self._go_on(pair, new, replay, former.usage)
        if new.id != old:
            self._drop(pair, old)

    def _add_compression(self, pair: _Pair, *, is_outbound: bool) -> None:
        """Add the SA for it, if there is one.

        Two peers behind one address may have the same CPI, which is short; one of them then gets
        nothing compressed, as any packet may come. RFC 3173 §2.2.
        """
        sa = _compression_sa(pair, is_outbound=is_outbound)
        if sa is None:
            return
        try:
            self._add(pair, sa)
        except KernelRefused as error:
            if error.number != errno.EEXIST or not is_outbound:
                raise
            _log.info("nothing is compressed to %s: %s", pair.ends.peer, error)
            pair.sends_plain = True

    def _replace_compression(self, pair: _Pair, old: _Pair, *, is_outbound: bool) -> None:
        """Follow a Child SA to other addresses; of ports IPComp knows nothing."""
        former = _compression_sa(old, is_outbound=is_outbound)
        new = _compression_sa(pair, is_outbound=is_outbound)
        if former is not None and new is not None and former != new:
            self._replace(pair, former.id, new)

    def _drop(self, pair: _Pair, sa: SaId) -> None:
        pair.added.discard(sa)
        self._delete(sa)

    def _delete(self, sa: SaId) -> None:
        """Delete an SA; one that reached a hard limit is gone already."""
        try:
            self._xfrm.delete_sa(sa)
        except KernelRefused as error:
            _log.warning("left in the kernel: %s", error)

    def _last_in(self, pair: _Pair, inbound: KernelSa) -> float | None:
        """When the peer's newest packet came: as the kernel knows, or between now and last time."""
        if inbound.usage.packets == pair.packets_in:
            return pair.last_in
        pair.packets_in = inbound.usage.packets
        wall = time.time()  # noqa: TID251 -- the kernel tells times of the wall clock
        ago = wall - inbound.last_used_at if inbound.last_used_at else 0.0
        return self._loop.time() - max(ago, 0.0)

    def _on_events(self) -> None:
        for event in self._monitor.read():
            self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, Expire):
            self._take_expire(event)
        elif isinstance(event, Acquire):
            self._take_acquire(event)
        elif isinstance(event, Mapping):
            pair = self._pair_of(event.id)
            if pair is not None:
                self._on_mapping(pair.child.spi_in, event.new)

    def _take_expire(self, event: Expire) -> None:
        pair = self._pair_of(event.sa.id)
        if pair is None or (pair.has_told_soft and not event.is_hard):
            return
        if event.is_hard and self._xfrm.find_sa(event.sa.id) is not None:
            return  # it was what had held its SPI
        pair.has_told_soft = True
        self._on_expire(pair.child.spi_in, event.is_hard)

    def _take_acquire(self, event: Acquire) -> None:
        wanted = {template.reqid for template in event.policy.templates}
        for trap in list(self._traps.values()):
            if trap.request_id in wanted:
                trap.sequence = event.sequence
                trap.on_acquire()

    def _pair_of(self, sa: SaId) -> _Pair | None:
        pair = self._pairs.get(sa.spi)
        if pair is not None and pair.inbound == sa:
            return pair
        return next((each for each in self._pairs.values() if each.outbound == sa), None)


class _Policies:
    """Who has each flow: the newest Child SA that asked for it; others wait behind it.

    A trap has what no Child SA has.
    """

    __slots__ = ("_holders", "_xfrm")

    def __init__(self, xfrm: XfrmSocket) -> None:
        self._xfrm = xfrm
        self._holders: dict[tuple[KernelFlow, Direction], list[_Holder]] = {}

    def hold(self, pair: _Pair, direction: Direction) -> None:
        """Give the flows of a Child SA to it.

        Raises:
            DataPlaneError: somebody else has a policy for one.
        """
        for flow in pair.flows_of(direction):
            holders = self._holders.get((flow, direction), [])
            self._show(flow, direction, pair, is_new=not holders)
            others = [each for each in holders if each is not pair]
            self._holders[flow, direction] = [*others, pair]

    def hold_last(self, trap: _Trap, direction: Direction) -> None:
        """Give the flows of a trap to it where no Child SA has them, or when none has any more.

        Raises:
            DataPlaneError: somebody else has a policy for one.
        """
        for flow in trap.flows:
            holders = self._holders.get((flow, direction), [])
            if not holders:
                self._show(flow, direction, trap, is_new=True)
            self._holders[flow, direction] = [trap, *holders]

    def refresh(self, holder: _Holder, direction: Direction) -> None:
        """Follow a Child SA to other addresses, or a trap to another request ID."""
        for flow in holder.flows_of(direction):
            holders = self._holders.get((flow, direction), [])
            if holders and holders[-1] is holder:
                self._show(flow, direction, holder, is_new=False)

    def shown(self, holder: _Holder, direction: Direction) -> list[KernelPolicy]:
        """The policies in the kernel that are of a Child SA or a trap."""
        return [
            _policy(flow, direction, holder)
            for flow in holder.flows_of(direction)
            if self._holders.get((flow, direction), [None])[-1] is holder
        ]

    def release(self, holder: _Holder, direction: Direction) -> None:
        """Take its flows from a Child SA or a trap."""
        for flow in holder.flows_of(direction):
            holders = self._holders.get((flow, direction), [])
            if holder not in holders:
                continue
            had_it = holders[-1] is holder
            holders.remove(holder)
            if not holders:
                del self._holders[flow, direction]
                self._delete(_policy(flow, direction, holder))
            elif had_it:
                self._show(flow, direction, holders[-1], is_new=False)

    def _show(
        self, flow: KernelFlow, direction: Direction, holder: _Holder, *, is_new: bool
    ) -> None:
        policy = _policy(flow, direction, holder)
        if is_new:
            self._xfrm.add_policy(policy)
        else:
            self._xfrm.update_policy(policy)

    def _delete(self, policy: KernelPolicy) -> None:
        try:
            self._xfrm.delete_policy(policy)
        except KernelRefused as error:
            _log.warning("left in the kernel: %s", error)


def _policy(flow: KernelFlow, direction: Direction, holder: _Holder) -> KernelPolicy:
    return KernelPolicy(
        selector=flow.selector(is_outbound=direction is Direction.OUT),
        direction=direction,
        templates=(_free_template(holder),) if flow.is_own else _templates(holder, direction),
        priority=FIRST_PRIORITY + flow.breadth,
        flags=PolicyFlag.ICMP,
    )


class _RequestIds:
    """Numbers that tie SAs to policies: one for all of a kind, and one for each trap.

    Each run begins elsewhere: a call that a killed one did not answer silences those that follow it
    under its number, for as long as the kernel keeps it.
    """

    __slots__ = ("_next", "_tag", "_taken")

    def __init__(self, tag: int) -> None:
        self._tag = tag
        self._next = int.from_bytes(os.urandom(2))
        self._taken: dict[object, tuple[int, int]] = {}  # number and how many have it

    def take(self, kind: object) -> int:
        """The number of a kind of Child SA."""
        number, users = self._taken.get(kind) or (self._fresh(), 0)
        self._taken[kind] = number, users + 1
        return self._tag << _TAG_SHIFT | number

    def give_back(self, kind: object) -> None:
        """One Child SA of that kind is gone."""
        number, users = self._taken.pop(kind)
        if users > 1:
            self._taken[kind] = number, users - 1

    def _fresh(self) -> int:
        if len(self._taken) >= _MOST_REQUEST_IDS:
            raise DataPlaneError(f"more than {_MOST_REQUEST_IDS} Child SAs in the kernel")
        used = {number for number, _ in self._taken.values()}
        while True:
            self._next = self._next % _MOST_REQUEST_IDS + 1
            if self._next not in used:
                return self._next


def _kind_of(child: ChildSa) -> object:
    """Child SAs with the same selectors are of one."""
    return child.ts_local, child.ts_peer, child.mode, child.protocol, child.cpis is None


def _inbound_directions(child: ChildSa) -> tuple[Direction, ...]:
    """What goes on to others is forwarded, which transport mode never is."""
    return (Direction.IN, Direction.FWD) if child.mode is Mode.TUNNEL else (Direction.IN,)


def _migrations(old: _Pair, new: _Pair) -> list[Migration]:
    """The moves of both SAs of a Child SA."""
    local, peer = (old.ends.local.ip, new.ends.local.ip), (old.ends.peer.ip, new.ends.peer.ip)
    mode, reqid, proto = _MODES[old.mode], old.request_id, old.proto
    return [
        Migration(source[0], destination[0], source[1], destination[1], mode, reqid, proto)
        for source, destination in ((local, peer), (peer, local))
    ]


def _inbound_sa(pair: _Pair) -> KernelSa:
    return _sa(pair, pair.inbound, is_outbound=False)


def _outbound_sa(pair: _Pair) -> KernelSa:
    return _sa(pair, pair.outbound, is_outbound=True)


def _sa(pair: _Pair, sa_id: SaId, *, is_outbound: bool) -> KernelSa:
    child, ends = pair.child, pair.ends
    near, far = (ends.local, ends.peer) if is_outbound else (ends.peer, ends.local)
    limits = child.limits
    return KernelSa(
        id=sa_id,
        source=near.ip,
        mode=_MODES[child.mode]
        if _cpi(pair, is_outbound=is_outbound) is None
        else XfrmMode.TRANSPORT,
        algorithms=child_algorithms(child.suite, child.keys_out if is_outbound else child.keys_in),
        replay=Replay(1 if is_outbound else child.replay_window, child.uses_esn),
        reqid=pair.request_id,
        selector=_selector(child, near.ip),
        encapsulation=Encapsulation(near.port, far.port) if ends.is_encapsulated else None,
        limits=Limits(
            limits.soft_octets, limits.hard_octets, limits.soft_packets, limits.hard_packets
        ),
        flags=_flags(sa_id),
    )


def _flags(sa_id: SaId) -> SaFlag:
    """AH aligns to 4 octets in IPv4, which the kernel does only if it is told. RFC 4302 §2.2."""
    is_aligned = sa_id.proto is Proto.AH and sa_id.destination.version == 4
    return SaFlag.NO_PMTU_DISCOVERY | SaFlag.ALIGN4 if is_aligned else SaFlag.NO_PMTU_DISCOVERY


def _compression_sa(pair: _Pair, *, is_outbound: bool) -> KernelSa | None:
    """The SA that stands inside of the one that protects, if packets are compressed. RFC 3173 §4.

    In tunnel mode it is the tunnel, for the protected packet is its.
    """
    child, ends, cpi = pair.child, pair.ends, _cpi(pair, is_outbound=is_outbound)
    if cpi is None:
        return None
    source, destination = (
        (ends.local.ip, ends.peer.ip) if is_outbound else (ends.peer.ip, ends.local.ip)
    )
    return KernelSa(
        id=SaId(destination, cpi, Proto.COMP),
        source=source,
        mode=_MODES[child.mode],
        algorithms=DEFLATE,
        reqid=pair.request_id,
        selector=_selector(child, source),
        flags=SaFlag.NO_PMTU_DISCOVERY,
    )


def _selector(child: ChildSa, address: IpAddress) -> Selector | None:
    """A tunnel has packets of both IP versions inside, transport mode those of its addresses."""
    if child.mode is Mode.TUNNEL:
        return None
    every = ip_network((_anywhere(address), 0))
    return Selector(every, every)


def _cpi(holder: _Holder, *, is_outbound: bool) -> int | None:
    """Under which packets are compressed; None: they are not."""
    if isinstance(holder, _Trap) or holder.child.cpis is None:
        return None
    cpis = holder.child.cpis
    if is_outbound:
        return None if holder.sends_plain else cpis.outbound
    return cpis.inbound


def _templates(holder: _Holder, direction: Direction) -> tuple[Template, ...]:
    """What goes out takes one SA, which a trap lacks; what comes in must have come by one.

    Where packets are compressed, those that would not get smaller come without. RFC 3173 §2.2.
    """
    ends, reqid, mode = holder.ends, holder.request_id, _MODES[holder.mode]
    ways = anywhere = _anywhere(ends.peer.ip), _anywhere(ends.local.ip)
    spi, is_outbound = 0, direction is Direction.OUT
    if is_outbound:
        ways = ends.local.ip, ends.peer.ip
        spi = holder.child.spi_out if isinstance(holder, _Pair) else 0
    cpi = _cpi(holder, is_outbound=is_outbound)
    if cpi is None:
        return (Template(*ways, mode, reqid, holder.proto, spi),)
    compression = Template(*ways, mode, reqid, Proto.COMP, cpi)
    if not is_outbound:
        compression = replace(compression, spi=0, is_optional=True)
    return compression, Template(*anywhere, XfrmMode.TRANSPORT, reqid, holder.proto, spi)


def _free_template(holder: _Holder) -> Template:
    """Asks for nothing; but what came out of a tunnel does not pass, and the policy has our tag."""
    address = _anywhere(holder.ends.peer.ip)
    mode = XfrmMode.TRANSPORT
    return Template(address, address, mode, holder.request_id, is_optional=True)


def _anywhere(address: IpAddress) -> IpAddress:
    return IPv4Address(0) if address.version == 4 else IPv6Address(0)


def _last_sequence(sa: KernelSa) -> int:
    return (1 << 64) - 1 if sa.replay.uses_esn else (1 << 32) - 1


def _remove_left_behind(xfrm: XfrmSocket, tag: int) -> None:
    """Remove what a killed run of the same instance has left, and nothing else."""
    policies = xfrm.delete_policies(lambda each: _is_tagged(each, tag))
    sas = xfrm.delete_sas(lambda each: each.reqid >> _TAG_SHIFT == tag)
    if policies or sas:
        _log.info("removed what a former run left: %d SAs and %d policies", sas, policies)


def _try_out(xfrm: XfrmSocket, suite: ChildSuite) -> None:
    keys = SaKeys(
        Secret(os.urandom(suite.encryption_key_length)),
        Secret(os.urandom(suite.integrity_key_length)),
    )
    spi = int.from_bytes(os.urandom(4)) | _HIGH_SPI
    sa = KernelSa(
        id=SaId(_NOWHERE, spi, _PROTOS[suite.PROTOCOL]),
        source=_NOWHERE,
        mode=XfrmMode.TUNNEL,
        algorithms=child_algorithms(suite, keys),
        replay=Replay(_WIDE_WINDOW, suite.uses_esn),
    )
    try:
        xfrm.add_sa(sa)
    except KernelRefused as error:
        raise Unsupported(f"{suite}: {error}") from error
    xfrm.delete_sa(sa.id)


def _is_tagged(policy: KernelPolicy, tag: int) -> bool:
    return any(template.reqid >> _TAG_SHIFT == tag for template in policy.templates)
