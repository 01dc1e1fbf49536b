"""Transports carry whole datagrams between this host and one peer; they know no IKE.

A datagram has the form it has on UDP port 4500 (RFC 3948): ESP as it is, IKE behind the
non-ESP marker. (On a path with ``has_marker`` False, UDP port 500, IKE stands bare.)
All calls come from the event loop's thread.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from tunnelwrap.errors import TransportError
from tunnelwrap.path import Path


class Transport(Protocol):
    """One way to one peer."""

    @property
    def path(self) -> Path:
        """Where this transport leads."""

    @property
    def max_datagram(self) -> int:
        """Largest datagram that travels unharmed, in octets (from the link's MTU on UDP)."""

    @property
    def is_congested(self) -> bool:
        """True while ESP handed over now would be dropped."""

    def send(self, datagram: bytes) -> None:
        """Send one IKE datagram (with its marker) before any ESP still waiting; never dropped here.

        On a transport that is closed or broken it vanishes, as on a network.
        """

    def send_esp(self, frames: memoryview, ends: Sequence[int]) -> int:
        """Send a train of ESP packets; give back how many were dropped for congestion.

        ``frames`` holds RFC 9329 frames back to back: a 16-bit big-endian length (packet + 2),
        then the packet. ``ends`` are the offsets behind each frame. The buffer belongs to the
        caller again when the call returns.
        """

    def close(self) -> None:
        """End it in good order; calling twice is fine."""


BatchCallback = Callable[[Transport, Sequence[memoryview]], None]
"""Datagrams that arrived, in order; the views are valid only during the call."""

ClosedCallback = Callable[[Transport, TransportError], None]
"""A stream ended without our asking; called once, from the event loop."""
