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
                   it (ACQUIRE), and waits there with those behind it until the Child SA is there
    reserve_spi    an SA that has no keys yet, which install fills in

The high half of a request ID is the tag of this instance: what a killed run has left is found by it
and removed at the next start, and nothing else is.
Beside it stand the SAs (``xfrm_sas``), the policies (``xfrm_policies``), the traps (``xfrm_traps``)
and what all are made of (``xfrm_pairs``).
Owns: the netlink sockets, and every SA and policy with our tag.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Final

from tunnelwrap.dataplane import AcquireCallback, ExpireCallback, Progress, SaCounters, Trap
from tunnelwrap.dataplane.feed import Feed
from tunnelwrap.dataplane.flows import kernel_flows
from tunnelwrap.dataplane.netlink import Group, XfrmMonitor, XfrmSocket
from tunnelwrap.dataplane.xfrm_espintcp import EarlyEsp, hand_over, needs_feed
from tunnelwrap.dataplane.xfrm_pairs import Ends, Pair, inbound_directions, kind_of
from tunnelwrap.dataplane.xfrm_policies import Policies
from tunnelwrap.dataplane.xfrm_sas import SKIPPED, KernelSas
from tunnelwrap.dataplane.xfrm_statistics import read_statistics, since
from tunnelwrap.dataplane.xfrm_streams import StreamPorts
from tunnelwrap.dataplane.xfrm_tags import TAG_SHIFT, RequestIds, remove_left_behind
from tunnelwrap.dataplane.xfrm_traps import Traps
from tunnelwrap.dataplane.xfrm_values import (
    Acquire,
    Direction,
    EncapKind,
    Event,
    Expire,
    KernelSa,
    Mapping,
    Replay,
)
from tunnelwrap.dataplane.xfrm_watch import Watch
from tunnelwrap.errors import DataPlaneError, Unsupported, UsageError
from tunnelwrap.iana import ProtocolId
from tunnelwrap.ike.child_sa import ChildSa, Mode
from tunnelwrap.path import Path as NetworkPath
from tunnelwrap.path import SocketAddress
from tunnelwrap.transport import Transport
from tunnelwrap.transport.kernel_stream import KernelStream

_USED_UP: Final = (1 << 64) - 1  # no sequence number is behind it

MappingCallback = Callable[[int, SocketAddress], None]
"""Called with spi_in and from where the peer's packets come now: a NAT has moved it."""


class KernelPlane:
    """A DataPlane whose packets are the kernel's affair.

    Args:
        tag: of this instance (``tag_of``).
        loop: from which everything is called.
        on_expire: called from the loop, never from inside a call of ours.
        on_mapping: called likewise.
        if_id: of the xfrm interface that everything is tied to; 0: policies rule all devices.

    Raises:
        DataPlaneError: the kernel has no XFRM, or we have no right to it.
    """

    def __init__(
        self,
        tag: int,
        loop: asyncio.AbstractEventLoop,
        on_expire: ExpireCallback,
        on_mapping: MappingCallback,
        if_id: int = 0,
    ) -> None:
        self._loop = loop
        self.if_id = if_id
        self._on_expire = on_expire
        self._on_mapping = on_mapping
        self._xfrm = XfrmSocket()
        self._monitor = XfrmMonitor([Group.ACQUIRE, Group.EXPIRE, Group.MAPPING])
        self._streams: StreamPorts | None = None
        self._early = EarlyEsp()
        self._pairs: dict[int, Pair] = {}
        self._sas = KernelSas(self._xfrm, tag << TAG_SHIFT)
        self._policies = Policies(self._xfrm)
        self._request_ids = RequestIds(tag)
        self._traps = Traps(self._policies, self._request_ids)
        self._statistics = read_statistics()
        remove_left_behind(self._xfrm, tag)
        self._watch = Watch(self._xfrm, tag, self._sas, self._policies, self._on_incomplete)
        loop.add_reader(self._monitor.fileno(), self._on_events)

    def check_alone(self) -> None:
        """Whether policies on the loopback device, which the bridge needs, would be ours alone.

        Raises:
            DataPlaneError: others' policies would be asked there, too.
        """
        policies = len(self._xfrm.policies())
        if policies:
            raise DataPlaneError(
                f"{policies} IPsec policies of others would rule the loopback, too"
            )

    def open_feed(self, feed: Feed) -> None:
        """Take what comes by streams, too; the feed is ours from now on."""
        self._streams = StreamPorts(feed)
        self._statistics = read_statistics()  # what was sent to try it is no loss

    @property
    def has_feed(self) -> bool:
        """Whether what comes by streams can be had here."""
        return self._streams is not None

    @property
    def drops(self) -> dict[str, int]:
        """Packets that the kernel's IPsec dropped since we began, whosever they were, by cause."""
        streams = self._streams.drops if self._streams is not None else {}
        return {**streams, **self._early.drops, **since(self._statistics)}

    def report(self) -> dict[str, object]:
        """What the kernel has of ours, and what it dropped, as plain JSON."""
        return self._watch.audit().to_json(self.drops)

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
        request_id = self._request_ids.take(kind_of(child))
        try:
            ends = self._ends(child, transport)
        except DataPlaneError:
            self._request_ids.give_back(kind_of(child))
            raise
        pair = Pair(child, flows, ends, request_id, progress, if_id=self.if_id)
        self._pairs[child.spi_in] = pair
        try:
            self._sas.add_inbound(pair)
            for direction in inbound_directions(child):
                self._policies.hold(pair, direction)
            hand_over(transport)
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
        if not pair.has_outbound:
            self._sas.add_outbound(pair, self._traps.call_for(pair.child.name))
            pair.has_outbound = True
        self._policies.hold(pair, Direction.OUT)
        self._traps.answered(pair.child.name)

    def move(self, spi_in: int, transport: Transport, *, is_bare: bool = False) -> None:
        """Send the packets of a Child SA by another path; sequence numbers go on."""
        pair = self._pairs.get(spi_in)
        if pair is None:
            return
        pair.child = replace(pair.child, is_bare=is_bare)
        ends = self._ends(pair.child, transport)
        if ends == pair.ends:
            return
        if not self._migrate(pair, ends):
            self._replace(pair, ends)
        hand_over(transport)
        if self._streams is not None and not needs_feed(transport):
            self._streams.leave(spi_in)

    def take_out(self, spi_in: int) -> Progress:
        """Remove a Child SA that another plane goes on with.

        Where an SA of it is gone, nobody knows which sequence numbers were used: all are.

        Raises:
            UsageError: there is no such Child SA.
        """
        pair = self._pairs.get(spi_in)
        if pair is None:
            raise UsageError(f"no Child SA with SPI {spi_in:08x} is installed")
        self._policies.release(pair, Direction.OUT)  # nothing is sent any more
        counters = self.counters(spi_in)
        inbound = self._sas.find(pair.inbound)
        outbound = self._sas.find(pair.outbound) if pair.has_outbound else None
        self.remove(spi_in)
        taken = inbound.replay if inbound is not None else Replay(inbound=_USED_UP)
        sent = _USED_UP if pair.has_outbound else 0
        if outbound is not None:
            sent = outbound.replay.outbound + SKIPPED
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
        self._sas.remove(pair)
        if self._streams is not None:
            self._streams.leave(spi_in)
        self._request_ids.give_back(kind_of(pair.child))

    def trap(self, trap: Trap, transport: Transport, on_acquire: AcquireCallback) -> None:
        """Call for a Child SA when there is a packet for it that no Child SA takes.

        What waits at a former trap of that name waits at this one.

        Raises:
            DataPlaneError: the kernel refuses it; then there is none of that name.
        """
        self._traps.set(trap, transport, on_acquire)

    def untrap(self, name: str) -> None:
        """Call for nothing any more by the trap of that name; unknown is no error."""
        self._traps.remove(name)

    def reserve_spi(self, spi: int, path: NetworkPath) -> bool:
        """Keep an inbound SPI for a Child SA on a path; False: somebody else has it.

        Where streams enter the kernel, every SPI is ours.
        """
        if path.carrier.is_reliable:
            return spi not in self._pairs
        return self._sas.reserve_spi(spi, path)

    def release_spi(self, spi: int) -> None:
        """A Child SA will not come of an SPI that was reserved; unknown is no error."""
        self._sas.release_spi(spi)

    def counters(self, spi_in: int) -> SaCounters:
        """The counters of an installed Child SA (all zero if unknown)."""
        pair = self._pairs.get(spi_in)
        if pair is None:
            return SaCounters()
        inbound = self._sas.find(pair.inbound)
        outbound = self._sas.find(pair.outbound) if pair.has_outbound else None
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
        if isinstance(transport, KernelStream):
            return self._early.sift(batch, self._pairs)
        if self._streams is None or not needs_feed(transport):
            return list(batch)
        return self._streams.feed(batch)

    def close(self) -> None:
        """Remove everything, and let the kernel go."""
        if self._monitor.fileno() >= 0:
            self._loop.remove_reader(self._monitor.fileno())
        self._traps.remove_all()
        for spi_in in list(self._pairs):
            self.remove(spi_in)
        if self._streams is not None:
            self._streams.close()
        self._sas.release_all()
        self._watch.close()
        self._monitor.close()
        self._xfrm.close()

    def _ends(self, child: ChildSa, transport: Transport) -> Ends:
        """Where the kernel meets the packets of a Child SA."""
        if not transport.path.carrier.is_reliable:
            return Ends.of(transport, child.protocol, is_bare=child.is_bare)
        if child.protocol != ProtocolId.ESP:  # RFC 9329 §3.2
            raise Unsupported("no stream can carry AH")
        if child.mode is not Mode.TUNNEL:
            raise Unsupported(f"the kernel takes no {child.mode.value} mode from streams")
        if isinstance(transport, KernelStream):
            return Ends(transport.local, transport.peer, True, EncapKind.TCP)
        if self._streams is None:
            raise Unsupported("the kernel takes no ESP from streams here")
        port = self._streams.enter(child.spi_in, transport)
        return Ends(port.entrance, port.alias, is_encapsulated=port.is_encapsulated)

    def _migrate(self, pair: Pair, ends: Ends) -> bool:
        """Have the kernel move a Child SA at one instant; whether it did.

        While one replaces another the kernel could not tell them apart.
        """
        alike = [each for each in self._pairs.values() if each.request_id == pair.request_id]
        new = replace(pair, ends=ends)
        policies = self._policies.shown(pair, Direction.OUT, new)
        if not policies or len(alike) > 1:
            return False
        if not self._sas.migrate(pair, new, policies[0], policies[1:]):
            return False
        self._policies.refresh(pair, Direction.OUT)
        return True

    def _replace(self, pair: Pair, ends: Ends) -> None:
        """Put SAs with other addresses in the place of those of a Child SA, one by one."""
        old, pair.ends = copy(pair), ends
        self._sas.replace_inbound(pair, old)
        for direction in inbound_directions(pair.child):
            self._policies.refresh(pair, direction)
        if pair.has_outbound:
            self._sas.replace_outbound(pair, old)
            self._policies.refresh(pair, Direction.OUT)

    def _last_in(self, pair: Pair, inbound: KernelSa) -> float | None:
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
            self._traps.take(event)
        elif isinstance(event, Mapping):
            pair = self._sas.owners.get(event.id)
            # from another stream: IKE tells by which the peer is reached
            if pair is not None and pair.ends.kind is not EncapKind.TCP:
                self._on_mapping(pair.child.spi_in, event.new)

    def _take_expire(self, event: Expire) -> None:
        pair = self._sas.owners.get(event.sa.id)
        if pair is None or (pair.has_told_soft and not event.is_hard):
            return
        if event.is_hard and self._xfrm.find_sa(event.sa.id) is not None:
            return  # it was what had held its SPI
        pair.has_told_soft = True
        if event.is_hard:
            self._sas.lost(event.sa.id)
        self._on_expire(pair.child.spi_in, event.is_hard)

    def _on_incomplete(self, pair: Pair) -> None:
        """Have a Child SA replaced; its traffic stands still until it is."""
        self._on_expire(pair.child.spi_in, False)
