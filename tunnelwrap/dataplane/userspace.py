"""ESP in userspace between a TUN device and the transports: the hot loop.

Outbound: 1. ``_on_readable`` reads a batch from the TUN; 2. ``_sort`` finds the Child SA of each
packet; 3. ``_send`` puts them into the outbox, super-packets cut (``_put_train``), plain ones with
checksum and MSS made right (``_put_plain``), and seals them there; 4. ``_flush`` hands the outbox
to the transport as one train of frames. What a trap catches (``_catch``) waits for its Child SA.
Inbound: 1. ``feed`` has the SA open a stretch of the batch into the plainbox; 2. ``_deliver``
joins what can be joined; 3. ``_take_train`` and ``_take_one`` check selectors; 4. the TUN gets it.
Owns: the installed Child SAs, the three buffers, and the TUN.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from struct import Struct
from typing import Final

import numpy as np

from tunnelwrap.crypto.suite import AhSuite, ChildSuite, EspSuite
from tunnelwrap.dataplane import (
    AcquireCallback,
    ElsewhereCallback,
    ExpireCallback,
    Progress,
    SaCounters,
    Trap,
)
from tunnelwrap.dataplane.esp import (
    DUMMY,
    IPV4,
    IPV6,
    PADDING,
    InboundSa,
    OutboundSa,
    ReplayWindow,
    Run,
    inner_limit,
)
from tunnelwrap.dataplane.offload import (
    JOIN_LEAST,
    Place,
    Train,
    fill_checksum,
    fragments,
    gather,
    plan,
    split,
)
from tunnelwrap.dataplane.spd import InboundSelectors, OutboundPolicies
from tunnelwrap.dataplane.tun import (
    GSO_ECN,
    MAX_READ,
    NEEDS_CSUM,
    VNET_HEADER,
    VNET_LAYOUT,
    Tun,
)
from tunnelwrap.errors import DataPlaneError, Unsupported, UsageError
from tunnelwrap.ike.child_sa import ChildSa, Mode
from tunnelwrap.path import Path
from tunnelwrap.transport import Transport
from tunnelwrap.wire.ip import clamp_mss, too_big

INBOX: Final = 4 * MAX_READ
OUTBOX: Final = 5 * 65536
PLAINBOX: Final = 5 * 65536
READ_MOST: Final = 64  # packets before the transports get theirs
PAUSE_S: Final = 0.001  # until a congested transport is asked again
HELD_MOST: Final = 32  # packets that wait for the Child SA of a trap
HELD_S: Final = 5.0  # how long they wait; then the next one calls for it again

AH_FIXED: Final = 12  # octets before the ICV. RFC 4302 §2

HEADERS_V4: Final = 40  # of IP and TCP without options, which the MSS does not count
HEADERS_V6: Final = 60

_NO_OFFLOAD = bytes(VNET_HEADER)
_spi = Struct(">I").unpack_from
_log = logging.getLogger(__name__)


def tun_mtu_for(max_datagram: int, suite: ChildSuite) -> int:
    """The MTU with which every inner packet fits a datagram of that size."""
    if isinstance(suite, AhSuite):
        return max_datagram - (AH_FIXED + suite.icv_length + 7) // 8 * 8
    return inner_limit(max_datagram, suite)


class _Pair:
    """One installed Child SA."""

    __slots__ = (
        "child",
        "counters",
        "has_told_soft",
        "inbound",
        "is_stopped",
        "longest",
        "max_datagram",
        "outbound",
        "selectors",
        "suite",
        "transport",
        "window",
    )

    def __init__(
        self,
        child: ChildSa,
        suite: EspSuite,
        transport: Transport,
        drops: Counter[str],
        progress: Progress | None,
    ) -> None:
        uses_esn = child.uses_esn
        self.child = child
        self.suite = suite
        self.transport = transport
        self.outbound = OutboundSa(child.spi_out, suite, child.keys_out, uses_esn=uses_esn)
        window = ReplayWindow(child.replay_window, uses_esn=uses_esn)
        self.inbound = InboundSa(
            child.spi_in, suite, child.keys_in, window, uses_esn=uses_esn, drops=drops
        )
        self.selectors = InboundSelectors(child.ts_local, child.ts_peer)
        self.counters = SaCounters()
        if progress is not None:
            self.outbound.skip_to(progress.outbound)
            window.resume(progress.inbound, progress.seen)
            self.counters = progress.counters
        self.window = window
        self.has_told_soft = False
        self.is_stopped = False
        self.max_datagram = 0
        self.longest = 0

    def measure(self) -> None:
        """Follow the transport, whose largest datagram may change with its path."""
        size = self.transport.max_datagram
        if size != self.max_datagram:
            self.max_datagram = size
            self.longest = inner_limit(size, self.suite)


class _Held:
    """A trap, and the packets that it has caught, as they came from the TUN."""

    __slots__ = ("on_acquire", "packets", "timer")

    def __init__(self, on_acquire: AcquireCallback) -> None:
        self.on_acquire = on_acquire
        self.packets: list[bytes] = []
        self.timer: asyncio.TimerHandle | None = None

    def take(self) -> list[bytes]:
        """The packets, which it has no more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        packets, self.packets = self.packets, []
        return packets


class UserspacePlane:
    """A DataPlane that carries the packets of Child SAs in tunnel mode through this process."""

    def __init__(
        self,
        tun: Tun,
        loop: asyncio.AbstractEventLoop,
        on_expire: ExpireCallback,
        inner_mtu: int,
        on_elsewhere: ElsewhereCallback | None = None,
    ) -> None:
        """Start to read the TUN; what no Child SA takes is dropped.

        Args:
            tun: belongs to the plane from now on.
            loop: from which everything is called.
            on_expire: called from the loop, never from inside a call of ours.
            inner_mtu: MTU of the TUN, in octets; upper bound of the MSS.
            on_elsewhere: called likewise; None: nobody follows the peer.
        """
        self._tun = tun
        self._loop = loop
        self._on_expire = on_expire
        self._on_elsewhere = on_elsewhere
        self._inner_mtu = inner_mtu
        self._pairs: dict[int, _Pair] = {}
        self._policies: OutboundPolicies[_Pair] = OutboundPolicies()
        self._traps: dict[str, _Held] = {}
        self._trapped: OutboundPolicies[_Held] = OutboundPolicies()
        self._drops: Counter[str] = Counter()
        self._inbox = memoryview(bytearray(INBOX))
        self._outbox = memoryview(bytearray(OUTBOX))
        self._out_octets = np.frombuffer(self._outbox, np.uint8)
        self._plainbox = memoryview(bytearray(PLAINBOX))
        self._plain_octets = np.frombuffer(self._plainbox, np.uint8)
        self._filled = 0
        self._ends: list[int] = []
        self._carrier: Transport | None = None  # of what is in the outbox
        self._open_train: Train | None = None
        self._sole: Transport | None = None  # the transport, where there is but one
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(tun.fileno(), self._on_readable)

    @property
    def drops(self) -> dict[str, int]:
        """Packets dropped, by cause."""
        return dict(self._drops)

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
            DataPlaneError: ``spi_in`` is taken, or protocol, suite or mode are unknown here.
        """
        if child.spi_in in self._pairs:
            raise DataPlaneError(f"SPI {child.spi_in:08x} is taken")
        if child.mode is not Mode.TUNNEL:
            raise Unsupported(f"{child.mode.value} mode needs the kernel's data plane")
        if child.cpis is not None:
            raise Unsupported("IPComp needs the kernel's data plane")
        suite = child.suite
        if isinstance(suite, AhSuite):
            raise Unsupported("AH needs the kernel's data plane")
        try:
            pair = _Pair(child, suite, transport, self._drops, progress)
        except UsageError as error:
            raise Unsupported(f"no userspace ESP with {suite}") from error
        self._pairs[child.spi_in] = pair
        self._count_transports()
        if use_outbound:
            self.use_outbound(child.spi_in)

    def use_outbound(self, spi_in: int) -> None:
        """Send through this Child SA from now on, in place of an older one with its selectors."""
        pair = self._pairs.get(spi_in)
        if pair is None:
            raise UsageError(f"no Child SA with SPI {spi_in:08x} is installed")
        self._policies.activate(pair, pair.child.ts_local, pair.child.ts_peer)
        for held in self._traps.values():
            self._send_held(held)

    def move(self, spi_in: int, transport: Transport, *, is_bare: bool = False) -> None:
        """Send the packets of a Child SA by another transport; sequence numbers go on."""
        assert not is_bare, "that is for the kernel"
        pair = self._pairs.get(spi_in)
        if pair is not None:
            pair.transport = transport
            self._count_transports()

    def take_out(self, spi_in: int) -> Progress:
        """Remove a Child SA that another plane goes on with; what waits in the TUN is sent before.

        Raises:
            UsageError: there is no such Child SA.
        """
        pair = self._pairs.get(spi_in)
        if pair is None:
            raise UsageError(f"no Child SA with SPI {spi_in:08x} is installed")
        self._on_readable()
        self.remove(spi_in)
        inbound, seen = pair.window.state
        return Progress(pair.outbound.sequence, inbound, seen, pair.counters)

    def trap(self, trap: Trap, transport: Transport, on_acquire: AcquireCallback) -> None:
        """Call for a Child SA when there is a packet for it that no Child SA takes.

        The packet, and some more behind it, are sent as soon as it is there.
        """
        del transport
        held = self._traps.setdefault(trap.name, _Held(on_acquire))
        held.on_acquire = on_acquire
        self._trapped.activate(held, trap.ts_local, trap.ts_peer)

    def untrap(self, name: str) -> None:
        """Catch nothing any more by the trap of that name; unknown is no error."""
        held = self._traps.pop(name, None)
        if held is not None:
            self._trapped.deactivate(held)
            self._drop_held(held)

    def reserve_spi(self, spi: int, path: Path) -> bool:
        """Whether no Child SA has this inbound SPI."""
        del path
        return spi not in self._pairs

    def release_spi(self, spi: int) -> None:
        """Nothing was kept for it."""

    def name_of(self, spi_in: int) -> str:
        """Whose Child SA it is."""
        return "userspace" if spi_in in self._pairs else ""

    def remove(self, spi_in: int) -> None:
        """Forget a Child SA and its keys; unknown is no error."""
        pair = self._pairs.pop(spi_in, None)
        if pair is not None:
            self._policies.deactivate(pair)
            self._count_transports()

    def counters(self, spi_in: int) -> SaCounters:
        """The counters of an installed Child SA (all zero if unknown)."""
        pair = self._pairs.get(spi_in)
        return pair.counters if pair is not None else SaCounters()

    def feed(
        self,
        transport: Transport,
        batch: Sequence[memoryview],
    ) -> list[memoryview]:
        """Take the ESP packets of a batch; give back what is not ours.

        A Child SA takes packets from any transport: what counts is their ICV. Where the newest
        came from is told, for there the peer is now. RFC 7296 §2.23, RFC 9329 §6.1.
        """
        now, index, count = self._loop.time(), 0, len(batch)
        rest: list[memoryview] = []
        while index < count:
            view = batch[index]
            pair = self._pairs.get(_spi(view)[0]) if len(view) >= 8 else None
            if pair is None:
                rest.append(view)
                index += 1
            elif pair.is_stopped:
                self._drops["expired"] += 1
                index += 1
            else:
                runs: list[Run] = []
                newest = pair.inbound.sequence
                index = pair.inbound.open_batch(batch, index, self._plainbox, runs)
                if runs:
                    pair.counters.last_in = now
                    if transport is not pair.transport and pair.inbound.sequence > newest:
                        self._tell_elsewhere(pair, transport)
                    self._deliver(pair, runs)
        return rest

    def close(self) -> None:
        """Remove everything and close the TUN."""
        if self._tun.fileno() >= 0:
            self._loop.remove_reader(self._tun.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for name in list(self._traps):
            self.untrap(name)
        for spi_in in list(self._pairs):
            self.remove(spi_in)
        self._tun.close()

    def _tell_elsewhere(self, pair: _Pair, transport: Transport) -> None:
        if self._on_elsewhere is not None and transport.path != pair.transport.path:
            self._loop.call_soon(self._on_elsewhere, pair.child.spi_in, transport)

    def _count_transports(self) -> None:
        transports = {id(pair.transport): pair.transport for pair in self._pairs.values()}
        self._sole = next(iter(transports.values())) if len(transports) == 1 else None

    def _on_readable(self) -> None:
        if self._sole is not None and self._sole.is_congested:
            self._pause()
            return
        try:
            found = self._tun.read_batch(self._inbox, READ_MOST)
        except DataPlaneError as error:
            self._loop.remove_reader(self._tun.fileno())
            _log.error("data plane stopped: %s", error)
            return
        for pair, spans in self._sort(found).items():
            self._send(pair, spans)
        self._flush()

    def _pause(self) -> None:
        """Leave packets in the TUN's queue, where the kernel holds senders back."""
        self._loop.remove_reader(self._tun.fileno())
        self._timer = self._loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        if self._sole is not None and self._sole.is_congested:
            self._timer = self._loop.call_later(PAUSE_S, self._resume)
            return
        self._timer = None
        self._loop.add_reader(self._tun.fileno(), self._on_readable)
        self._on_readable()

    def _sort(self, found: list[tuple[int, int]]) -> dict[_Pair, list[tuple[int, int]]]:
        groups: dict[_Pair, list[tuple[int, int]]] = {}
        for start, end in found:
            pair = self._policies.lookup(self._inbox[start + VNET_HEADER : end])
            if pair is None:
                self._catch(start, end)
            elif pair.is_stopped:
                self._drops["expired"] += 1
            else:
                groups.setdefault(pair, []).append((start, end))
        return groups

    def _catch(self, start: int, end: int) -> None:
        """Keep a packet for which a Child SA is made on demand, and call for that."""
        held = self._trapped.lookup(self._inbox[start + VNET_HEADER : end])
        if held is None:
            self._drops["no-policy"] += 1
            return
        if len(held.packets) == HELD_MOST:
            self._drops["on-demand"] += 1
            return
        held.packets.append(self._inbox[start:end].tobytes())
        if held.timer is None:
            held.timer = self._loop.call_later(HELD_S, self._drop_held, held)
            self._loop.call_soon(self._call_for, held)

    def _call_for(self, held: _Held) -> None:
        if held.packets:
            held.on_acquire()

    def _drop_held(self, held: _Held) -> None:
        if packets := held.take():
            self._drops["on-demand"] += len(packets)

    def _send_held(self, held: _Held) -> None:
        """Send what a trap has caught; what no Child SA takes yet goes back there."""
        for packet in held.take():
            self._inbox[: len(packet)] = packet
            for pair, spans in self._sort([(0, len(packet))]).items():
                self._send(pair, spans)
        self._flush()

    def _send(self, pair: _Pair, spans: list[tuple[int, int]]) -> None:
        if pair.transport is not self._carrier:
            self._flush()
            self._carrier = pair.transport
        if pair.transport.is_congested:
            self._drops["congestion"] += len(spans)
            return
        pair.measure()
        inbox, unpack = self._inbox, VNET_LAYOUT.unpack_from
        for start, end in spans:
            flags, kind, _, size, csum_start, csum_offset = unpack(inbox, start)
            packet = inbox[start + VNET_HEADER : end]
            if kind & ~GSO_ECN:
                self._put_train(pair, packet, csum_start, size)
            elif flags & NEEDS_CSUM and not fill_checksum(packet, csum_start, csum_offset):
                self._drops["malformed"] += 1
            else:
                self._put_plain(pair, packet)
        self._check_limits(pair)

    def _put_train(self, pair: _Pair, packet: memoryview, tcp: int, size: int) -> None:
        """Cut a super-packet into the outbox and seal it; smaller than asked if the path is."""
        cut = plan(packet, tcp, size, pair.longest)
        if cut is None:
            self._drops["malformed"] += 1
            return
        sa, next_header = pair.outbound, IPV4 if packet[0] >> 4 == 4 else IPV6
        slot = sa.slot(cut.length)
        if not self._make_room(cut.segments * slot + (sa.slot(cut.tail) if cut.tail else 0)):
            self._drops["malformed"] += 1
            return
        split(packet, cut, self._out_octets, Place(self._filled, sa.head, slot))
        self._seal(pair, cut.segments, cut.length, next_header)
        if cut.tail:
            self._seal(pair, 1, cut.tail, next_header)

    def _put_plain(self, pair: _Pair, packet: memoryview) -> None:
        if _is_syn(packet):
            self._clamp(pair, packet)
        if len(packet) <= pair.longest:
            self._put(pair, packet)
        elif packet[0] >> 4 == 4 and not packet[6] & 0x40:
            for fragment in fragments(packet, pair.longest):
                self._put(pair, fragment)
        else:
            self._refuse(pair, packet)

    def _put(self, pair: _Pair, packet: memoryview) -> None:
        sa, length = pair.outbound, len(packet)
        self._make_room(sa.slot(length))
        start = self._filled + sa.head
        self._outbox[start : start + length] = packet
        self._seal(pair, 1, length, IPV4 if packet[0] >> 4 == 4 else IPV6)

    def _seal(self, pair: _Pair, count: int, length: int, next_header: int) -> None:
        ends, counters = self._ends, pair.counters
        shape = (count, length, next_header)
        sealed = pair.outbound.seal_batch(self._outbox, self._filled, shape, ends)
        if sealed:
            self._filled = ends[-1]
            counters.packets_out += sealed
            counters.octets_out += sealed * length
        if sealed < count:
            self._drops["expired"] += count - sealed

    def _make_room(self, size: int) -> bool:
        if self._filled + size > OUTBOX:
            self._flush()
        return size <= OUTBOX

    def _flush(self) -> None:
        if self._ends and self._carrier is not None:
            lost = self._carrier.send_esp(self._outbox[: self._filled], self._ends)
            if lost:
                self._drops["congestion"] += lost
        self._ends = []
        self._filled = 0

    def _refuse(self, pair: _Pair, packet: memoryview) -> None:
        """Tell the sender what fits. RFC 4301 §8.2.1, RFC 1191, RFC 8201.

        The answer comes from the packet's destination: our own address would be taken for forged.
        """
        self._drops["too-big"] += 1
        version_4 = packet[0] >> 4 == 4
        source = ip_address(packet[16:20].tobytes() if version_4 else packet[24:40].tobytes())
        answer = too_big(packet, pair.longest, source)
        if answer is not None:
            self._write([_NO_OFFLOAD, answer])

    def _clamp(self, pair: _Pair, packet: memoryview) -> None:
        """Lower the MSS option of a SYN to what both TUN and carrier take."""
        pair.measure()
        mtu = min(pair.longest, self._inner_mtu)
        clamp_mss(packet, mtu - HEADERS_V4, mtu - HEADERS_V6)

    def _check_limits(self, pair: _Pair) -> None:
        counters, limits = pair.counters, pair.child.limits
        octets = max(counters.octets_in, counters.octets_out)
        packets = max(counters.packets_in, counters.packets_out)
        is_hard = (
            pair.outbound.is_exhausted
            or (limits.hard_octets is not None and octets >= limits.hard_octets)
            or (limits.hard_packets is not None and packets >= limits.hard_packets)
        )
        is_soft = (limits.soft_octets is not None and octets >= limits.soft_octets) or (
            limits.soft_packets is not None and packets >= limits.soft_packets
        )
        if is_hard and not pair.is_stopped:
            pair.is_stopped = True
            self._loop.call_soon(self._on_expire, pair.child.spi_in, True)
        elif is_soft and not pair.has_told_soft:
            pair.has_told_soft = True
            self._loop.call_soon(self._on_expire, pair.child.spi_in, False)

    def _deliver(self, pair: _Pair, runs: list[Run]) -> None:
        for run in runs:
            offset, count, length, stride = run
            if count < JOIN_LEAST:  # do not even make the rows
                for start in range(offset, offset + count * stride, stride):
                    self._take_one(pair, self._plainbox[start : start + length])
                continue
            rows = self._plain_octets[offset : offset + count * stride].reshape(count, stride)
            for item in gather(rows, length):
                if isinstance(item, Train):
                    self._take_train(pair, item)
                else:
                    start = offset + item * stride
                    self._take_one(pair, self._plainbox[start : start + length])
        self._write_train()
        self._check_limits(pair)

    def _take_train(self, pair: _Pair, train: Train) -> None:
        self._write_train()
        if not pair.selectors.allow(train.first):
            self._drops["selector"] += train.count
            return
        pair.counters.packets_in += train.count
        pair.counters.octets_in += train.octets
        self._open_train = train

    def _take_one(self, pair: _Pair, plaintext: memoryview) -> None:
        packet = _inner_packet(plaintext)
        if packet is None:
            if plaintext[-1] != DUMMY:
                self._drops["malformed"] += 1
            return
        if not pair.selectors.allow(packet):
            self._drops["selector"] += 1
            return
        pair.counters.packets_in += 1
        pair.counters.octets_in += len(packet)
        if self._open_train is not None and self._open_train.take_tail(packet):
            return
        self._write_train()
        if _is_syn(packet):
            self._clamp(pair, packet)
        self._write([_NO_OFFLOAD, packet])

    def _write_train(self) -> None:
        train, self._open_train = self._open_train, None
        if train is not None:
            self._write(train.pieces())

    def _write(self, pieces: list[bytes | memoryview]) -> None:
        if not self._tun.write(pieces):
            self._drops["tun"] += 1


def _inner_packet(plaintext: memoryview) -> memoryview | None:
    """The IP packet of a plaintext; its own length decides. RFC 4303 §2.4, §2.6, §2.7.

    None: padding or length are wrong, or it is a dummy packet.
    """
    pad, next_header = plaintext[-2], plaintext[-1]
    end = len(plaintext) - 2 - pad
    if end < 20 or plaintext[end:-2] != PADDING[:pad]:
        return None
    version = plaintext[0] >> 4
    if next_header == IPV4 and version == 4:
        length = plaintext[2] << 8 | plaintext[3]
        return plaintext[:length] if 20 <= length <= end else None
    if next_header == IPV6 and version == 6:
        length = 40 + (plaintext[4] << 8 | plaintext[5])
        return plaintext[:length] if length <= end else None
    return None


def _is_syn(packet: memoryview) -> bool:
    """Whether it is TCP with SYN set, for what the common headers show."""
    if packet[0] >> 4 == 4:
        flags = (packet[0] & 15) * 4 + 13
        if packet[9] != 6 or packet[6] & 0x1F or packet[7] or len(packet) <= flags:
            return False
        return bool(packet[flags] & 2)
    return packet[6] == 6 and len(packet) > 53 and bool(packet[53] & 2)
