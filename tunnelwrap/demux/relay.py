"""A visitor's octets to the server behind us and back, as they come, until both have ended."""

import asyncio
import socket
from contextlib import suppress
from typing import Final

from tunnelwrap.demux.connection import Connection

_ENDED_S: Final = 60.0
"""How long one who has ended TLS waits for the other: as the kernel does with what was closed."""


class Relay:
    """Two connections, each of which gets what the other says.

    An end is passed on as an end, while the other direction goes on; a break as a break. A side is
    read no faster than the other one takes.

    Args:
        near: the visitor's, not ours to close.
        far: the server's, likewise.
        idle_s: how long neither may say anything; 0: for ever.
        is_exact: the visitor must not see that somebody goes between.
    """

    def __init__(
        self, near: Connection, far: Connection, idle_s: float, *, is_exact: bool = False
    ) -> None:
        self._is_exact = is_exact
        self._loop = asyncio.get_running_loop()
        self._near, self._far = near, far
        self._idle_s = idle_s or None
        self._limit = asyncio.timeout(self._idle_s)
        self._ended: set[Connection] = set()
        self.is_broken = False

    async def run(self) -> None:
        """Relay until both have ended, one is broken, or nothing was said for too long."""
        for each in (self._near, self._far):
            each.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with suppress(TimeoutError):
            async with self._limit:
                await self._both_ways()

    async def _both_ways(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry(self._near, self._far))
                tasks.create_task(self._carry(self._far, self._near))
        except* OSError:
            self.is_broken = True
            for each in (self._near, self._far):
                each.abort()

    async def _carry(self, source: Connection, sink: Connection) -> None:
        while octets := await source.receive():
            try:
                await sink.send(octets)
                if sink in self._ended and self._is_exact:
                    await sink.check()
            except OSError:
                if sink in self._ended and not self._is_exact:
                    return  # it has said all that it had to say, and takes no more
                raise
            self._is_alive()
            await asyncio.sleep(0)  # neither call waits where there is enough: others are next
        self._ended.add(source)
        if source.is_tls and self._is_exact:
            await self._await_fin(source, sink)
        with suppress(OSError):  # it has left meanwhile
            sink.end(is_cut=source.is_cut or sink is self._far)
        if self._is_exact:
            self._idle_s = min(self._idle_s or _ENDED_S, _ENDED_S)
            self._is_alive()

    async def _await_fin(self, source: Connection, sink: Connection) -> None:
        try:
            await source.await_fin()
        except OSError:
            if not source.is_cut:
                sink.say_goodbye()
            raise

    def _is_alive(self) -> None:
        if self._idle_s is not None and not self._limit.expired():
            self._limit.reschedule(self._loop.time() + self._idle_s)
