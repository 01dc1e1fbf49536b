"""The kernel's data plane for what comes by UDP, ours for streams if the kernel has no feed.

A Child SA whose peer changes over takes its sequence numbers along: what the one plane has sent the
other never sends again, what the one has seen the other does not take. RFC 4303 §3.3.3, §3.4.3.
Owns: both planes, and which of them has a Child SA.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunnelwrap.dataplane import AcquireCallback, SaCounters, Trap
from tunnelwrap.dataplane.feed import Feed
from tunnelwrap.dataplane.userspace import UserspacePlane
from tunnelwrap.dataplane.xfrm import KernelPlane
from tunnelwrap.dataplane.xfrm_espintcp import needs_feed
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.path import Path
from tunnelwrap.transport import Transport
from tunnelwrap.transport.kernel_stream import KernelStream

Plane = KernelPlane | UserspacePlane


@dataclass(slots=True)
class _Place:
    """Where a Child SA is."""

    child: ChildSa
    plane: Plane
    uses_outbound: bool


class MixedPlane:
    """A DataPlane of two."""

    def __init__(self, kernel: KernelPlane, userspace: UserspacePlane) -> None:
        self._kernel = kernel
        self._userspace = userspace
        self._places: dict[int, _Place] = {}

    @property
    def drops(self) -> dict[str, int]:
        """Packets dropped, by cause."""
        return {**self._userspace.drops, **self._kernel.drops}

    def check_alone(self) -> None:
        """Whether the bridge would change nothing for others.

        Raises:
            DataPlaneError: it would.
        """
        self._kernel.check_alone()

    def open_feed(self, feed: Feed) -> None:
        """Let the kernel have what comes by streams, too; the feed is its own from now on."""
        self._kernel.open_feed(feed)

    def name_of(self, spi_in: int) -> str:
        """Which plane has a Child SA, for people."""
        place = self._places.get(spi_in)
        return place.plane.name_of(spi_in) if place is not None else ""

    def install(self, child: ChildSa, transport: Transport, *, use_outbound: bool) -> None:
        """Take a Child SA into use; outbound only if asked, inbound at once.

        Raises:
            DataPlaneError: the plane for its carrier refuses it.
        """
        plane = self._plane_for(transport)
        plane.install(child, transport, use_outbound=use_outbound)
        self._kernel.release_spi(child.spi_in)  # if it came by a stream at last
        self._places[child.spi_in] = _Place(child, plane, use_outbound)

    def use_outbound(self, spi_in: int) -> None:
        """Send through this Child SA from now on, in place of an older one with its selectors."""
        place = self._places[spi_in]
        place.plane.use_outbound(spi_in)
        place.uses_outbound = True

    def move(self, spi_in: int, transport: Transport, *, is_bare: bool) -> None:
        """Send the packets of a Child SA by another transport; sequence numbers go on.

        Raises:
            DataPlaneError: the other plane refuses it; it is in neither then.
        """
        place, plane = self._places.get(spi_in), self._plane_for(transport)
        if place is None:
            return
        if place.plane is plane:
            plane.move(spi_in, transport, is_bare=is_bare)
            return
        progress = place.plane.take_out(spi_in)
        place.plane, place.child = plane, replace(place.child, is_bare=is_bare)
        plane.install(place.child, transport, use_outbound=place.uses_outbound, progress=progress)

    def remove(self, spi_in: int) -> None:
        """Forget a Child SA and its keys; unknown is no error."""
        place = self._places.pop(spi_in, None)
        if place is not None:
            place.plane.remove(spi_in)

    def trap(self, trap: Trap, transport: Transport, on_acquire: AcquireCallback) -> None:
        """Call for a Child SA when there is a packet for it that no Child SA takes.

        Raises:
            DataPlaneError: the plane for the carrier refuses it.
        """
        is_direct = isinstance(transport, KernelStream)
        plane = self._kernel if is_direct else self._plane_on(transport.path)
        other = self._kernel if plane is self._userspace else self._userspace
        other.untrap(trap.name)
        plane.trap(trap, transport, on_acquire)

    def reserve_spi(self, spi: int, path: Path) -> bool:
        """Keep an inbound SPI for a Child SA on a path; False: somebody else has it."""
        return self._plane_on(path).reserve_spi(spi, path)

    def release_spi(self, spi: int) -> None:
        """A Child SA will not come of an SPI that was reserved; unknown is no error."""
        self._kernel.release_spi(spi)

    def counters(self, spi_in: int) -> SaCounters:
        """The counters of an installed Child SA (all zero if unknown)."""
        place = self._places.get(spi_in)
        return place.plane.counters(spi_in) if place is not None else SaCounters()

    def feed(self, transport: Transport, batch: Sequence[memoryview]) -> list[memoryview]:
        """Take the ESP packets of a batch; give back what is not ours."""
        return self._plane_for(transport).feed(transport, batch)

    def close(self) -> None:
        """Remove everything and close the device."""
        self._places.clear()
        self._kernel.close()
        self._userspace.close()

    def _plane_for(self, transport: Transport) -> Plane:
        lacks_feed = needs_feed(transport) and not self._kernel.has_feed
        return self._userspace if lacks_feed else self._kernel

    def _plane_on(self, path: Path) -> Plane:
        """For what is told by its addresses: a feed has others."""
        return self._userspace if path.carrier.is_reliable else self._kernel
