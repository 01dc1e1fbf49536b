"""Feeds give the kernel's ESP what came by streams, and the streams what the kernel sends.

    bridge     UDP on the loopback device: few system calls, under a sysctl of the host
    tun_feed   a TUN device of its own: a system call for each packet, and nothing of others'

Each client of a feed gets an address of its own on this host, its alias. The kernel's SAs lead from
there to the feed's entrance, and back:

    inbound SA   src ALIAS dst ENTRANCE, outbound SA   src ENTRANCE dst ALIAS

A stream that reconnects keeps its alias, so SAs and policies never hear of it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final, Protocol

from tunnelwrap.errors import DataPlaneError
from tunnelwrap.path import SocketAddress
from tunnelwrap.transport import Transport

REST_S: Final = 120.0  # before an alias is used again; nothing of its last client is left then

PAUSE_S: Final = 0.001  # until a congested transport is asked again
PAUSE_SHARE: Final = 0.125  # of how long it has been congested
PAUSE_MOST_S: Final = 0.1


class FeedPort(Protocol):
    """One client's place in a feed."""

    @property
    def alias(self) -> SocketAddress:
        """Where its packets seem to come from."""

    @property
    def entrance(self) -> SocketAddress:
        """Where they go to."""

    @property
    def is_encapsulated(self) -> bool:
        """Whether its SAs are those of ESP in UDP, by the ports of both."""

    def feed(self, batch: Sequence[memoryview]) -> None:
        """Have the kernel take ESP packets (and nothing else: no IKE, no keepalive)."""

    def move(self, transport: Transport) -> None:
        """Send by another transport: the client has reconnected."""

    def close(self) -> None:
        """Give the alias back; packets still under way are lost. Calling twice is fine."""


class Feed(Protocol):
    """The way of all stream clients into the kernel and out of it."""

    @property
    def drops(self) -> dict[str, int]:
        """Packets dropped, by cause."""

    def open(self, transport: Transport) -> FeedPort:
        """Give a client its alias.

        Raises:
            DataPlaneError: no alias is to be had.
        """

    def close(self) -> None:
        """Close every port, and the way itself."""


class Aliases:
    """Gives each client an address of a /16; owns which are free.

    Args:
        first: the address before those that are given.
        rest_s: how long one that was given back is not given again, in seconds.
    """

    def __init__(self, first: IPv4Address, rest_s: float = REST_S) -> None:
        self._rest_s = rest_s
        self._fresh = first + 1
        self._last = IPv4Network((first, 16), strict=False).broadcast_address - 1
        self._used: deque[tuple[float, IPv4Address]] = deque()

    def take(self, now: float) -> IPv4Address:
        """An address that nobody had, or the one that has rested longest.

        Raises:
            DataPlaneError: none is free.
        """
        if self._fresh <= self._last:
            self._fresh += 1
            return self._fresh - 1
        if self._used and self._used[0][0] <= now:
            return self._used.popleft()[1]
        raise DataPlaneError(f"no alias is free up to {self._last}")

    def give_back(self, address: IPv4Address, now: float) -> None:
        """Its client is gone."""
        self._used.append((now + self._rest_s, address))


class Patience:
    """Waits until a congested transport takes packets; one that is gone for long is seldom asked.

    Args:
        loop: from which everything is called.
        is_congested: asks the transport.
        on_free: called when it is not any more.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        is_congested: Callable[[], bool],
        on_free: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._is_congested = is_congested
        self._on_free = on_free
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Wait from now on; one that waits already goes on."""
        if self._timer is None:
            self._since = self._loop.time()
            self._timer = self._loop.call_later(PAUSE_S, self._ask)

    def ask(self) -> None:
        """Look at once, if it waits: the transport is another."""
        if self._timer is not None:
            self._timer.cancel()
            self._ask()

    def end(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ask(self) -> None:
        if self._is_congested():
            waited = self._loop.time() - self._since
            delay = min(max(waited * PAUSE_SHARE, PAUSE_S), PAUSE_MOST_S)
            self._timer = self._loop.call_later(delay, self._ask)
            return
        self._timer = None
        self._on_free()


def require_policies(device: str) -> None:
    """See that no policy is skipped for what comes by a device.

    Raises:
        DataPlaneError: with the sysctl that is in the way.
    """
    for family in ("ipv4", "ipv6"):
        for scope in (device, "all"):
            file = Path("/proc/sys/net", family, "conf", scope, "disable_policy")
            if file.exists() and file.read_text().strip() != "0":
                name = f"net.{family}.conf.{scope}.disable_policy"
                raise DataPlaneError(
                    f"{name} is not 0: policies would not be asked for what a stream brings, and a"
                    f" peer could send from any inner address (sysctl -w {name}=0)"
                )
