"""The data plane carries IP packets through Child SAs; it knows no IKE.

Contract: ``daemon.driver`` installs, switches, moves and removes Child SAs; packets never pass
through the driver. All calls come from one thread; ``now`` is monotonic seconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunnelwrap.iana import ProtocolId
from tunnelwrap.ike.child_sa import ChildSa, Mode
from tunnelwrap.path import Path
from tunnelwrap.transport import Transport
from tunnelwrap.wire.payloads import TrafficSelector


@dataclass(slots=True)
class SaCounters:
    """What one Child SA carried, in inner octets and packets."""

    octets_in: int = 0
    packets_in: int = 0
    octets_out: int = 0
    packets_out: int = 0
    last_in: float | None = None  # monotonic seconds of the newest authentic packet


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a Child SA is, when it goes from one plane to another. RFC 4303 §2.2, §3.4.3.

    ``seen`` has bit n set where sequence number ``inbound - n`` was seen.
    """

    outbound: int  # sequence number behind which to go on
    inbound: int  # the newest that was taken
    seen: int
    counters: SaCounters


@dataclass(frozen=True, slots=True)
class Trap:
    """Which packets a Child SA is made for that is not there yet. RFC 4301 §4.4.1.

    ``name`` is that of the Child SA that is to come.
    """

    name: str
    mode: Mode
    ts_local: tuple[TrafficSelector, ...]
    ts_peer: tuple[TrafficSelector, ...]
    protocol: int = ProtocolId.ESP


AcquireCallback = Callable[[], None]
"""Called from the loop when a packet waits for the Child SA of a trap; perhaps more than once."""

ExpireCallback = Callable[[int, bool], None]
"""Called with (spi_in, is_hard) once when a limit of SaLimits is reached."""


ElsewhereCallback = Callable[[int, Transport], None]
"""Called with spi_in and the transport by which the peer's newest authentic packet came, where
that is not the one by which we send."""


class DataPlane(Protocol):
    """What carries the packets of Child SAs."""

    def install(self, child: ChildSa, transport: Transport, *, use_outbound: bool) -> None:
        """Take a Child SA into use; outbound only if asked, inbound at once.

        Raises:
            DataPlaneError: the suite is unknown here or ``spi_in`` is taken.
        """

    def use_outbound(self, spi_in: int) -> None:
        """Send through this Child SA from now on, in place of an older one with its selectors."""

    def move(self, spi_in: int, transport: Transport, *, is_bare: bool) -> None:
        """Send the packets of a Child SA by another transport; sequence numbers go on.

        ``is_bare`` is of the Child SA there.

        Raises:
            DataPlaneError: it cannot be had there.
        """

    def remove(self, spi_in: int) -> None:
        """Forget a Child SA and its keys; unknown is no error."""

    def counters(self, spi_in: int) -> SaCounters:
        """The counters of an installed Child SA (all zero if unknown)."""

    def trap(self, trap: Trap, transport: Transport, on_acquire: AcquireCallback) -> None:
        """Call for a Child SA when there is a packet for it that no Child SA takes.

        A trap takes the place of a former one with its name.

        Args:
            trap: which packets.
            transport: by which it will travel.
            on_acquire: called then, never from inside a call.

        Raises:
            DataPlaneError: it cannot be had.
        """

    def reserve_spi(self, spi: int, path: Path) -> bool:
        """Keep an inbound SPI for a Child SA on a path; False: somebody else has it."""

    def release_spi(self, spi: int) -> None:
        """A Child SA will not come of an SPI that was reserved; unknown is no error."""

    def name_of(self, spi_in: int) -> str:
        """Which plane has a Child SA: "kernel", "userspace", or nothing if it is unknown."""

    @property
    def drops(self) -> dict[str, int]:
        """Packets dropped, by cause."""

    def feed(self, transport: Transport, batch: Sequence[memoryview]) -> list[memoryview]:
        """Take the ESP packets of a batch; give back what is not ours (IKE, keepalive, unknown).

        The views are valid only during the call.
        """

    def close(self) -> None:
        """Remove everything and close the device."""
