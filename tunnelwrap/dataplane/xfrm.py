"""The kernel's XFRM as data plane: packets over UDP never reach this process. RFC 4301 §4.4.

A Child SA is two states; policies say whose packets take them. All Child SAs with the same traffic
selectors share a request ID, which the policies for what comes in ask for: while an SA is replaced,
both may bring packets. What goes out is told by SPI, so that a rekey switches at one instant.

    install        inbound state, policies in and fwd
    use_outbound   outbound state, policies out
    move           states with other addresses; sequence numbers go on
    remove         all of it, or the policies go to the next older Child SA

The high half of a request ID is the tag of this instance: what a killed run has left is found by it
and removed at the next start, and nothing else is.
Owns: the netlink socket, and every state and policy with our tag.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from zlib import crc32

from tunnelwrap.dataplane import ExpireCallback, SaCounters
from tunnelwrap.dataplane.flows import KernelFlow, kernel_flows
from tunnelwrap.dataplane.netlink import (
    Direction,
    Encapsulation,
    Expire,
    KernelPolicy,
    KernelSa,
    Mapping,
    Template,
    XfrmSocket,
)
from tunnelwrap.errors import DataPlaneError, Unsupported, UsageError
from tunnelwrap.ike.child_sa import ChildSa, Mode
from tunnelwrap.path import IpAddress, SocketAddress
from tunnelwrap.transport import Transport

FIRST_PRIORITY: Final = 10_000
"""Of policies; behind it the narrower come first."""

SKIPPED: Final = 1024
"""Sequence numbers left out when an outbound state is replaced, for packets sent meanwhile."""

_TAG_SHIFT: Final = 16
_FIRST_TAG: Final = 0x7400
_TAGS: Final = 0x0400

MappingCallback = Callable[[int, SocketAddress], None]
"""Called with spi_in and from where the peer's packets come now (a NAT has changed its mind)."""

_log = logging.getLogger(__name__)


def tag_of(instance: str) -> int:
    """What marks the states and policies of an instance."""
    return _FIRST_TAG + crc32(instance.encode()) % _TAGS


@dataclass(frozen=True, slots=True)
class Ends:
    """Between which addresses the ESP packets of a Child SA travel."""

    local: SocketAddress
    peer: SocketAddress
    is_encapsulated: bool  # in UDP

    @classmethod
    def of(cls, transport: Transport) -> "Ends":
        """Those of a path on UDP."""
        path = transport.path
        return cls(path.local, path.peer, path.has_marker)


@dataclass(slots=True, eq=False)
class _Pair:
    """One installed Child SA."""

    child: ChildSa
    flows: list[KernelFlow]
    ends: Ends
    request_id: int
    has_outbound: bool = False
    packets_in: int = 0  # when it was last asked for
    last_in: float | None = None


class KernelPlane:
    """A DataPlane whose packets are the kernel's affair.

    Args:
        tag: of this instance (``tag_of``).
        loop: from which everything is called.
        on_expire: called from the loop, never from inside a call of ours.
        on_mapping: called likewise.

    Raises:
        DataPlaneError: the kernel has no XFRM, or we no right to it.
    """

    def __init__(
        self,
        tag: int,
        loop: asyncio.AbstractEventLoop,
        on_expire: ExpireCallback,
        on_mapping: MappingCallback,
    ) -> None:
        self._tag = tag
        self._loop = loop
        self._on_expire = on_expire
        self._on_mapping = on_mapping
        self._xfrm = XfrmSocket()
        self._events = XfrmSocket()
        self._pairs: dict[int, _Pair] = {}
        self._policies = _Policies(self._xfrm)
        self._request_ids = _RequestIds(tag)
        self._statistics = read_statistics()
        self._clean_up()
        self._events.listen((Expire, Mapping))
        loop.add_reader(self._events.fileno(), self._on_event)
