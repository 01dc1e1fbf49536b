"""A visitor's octets to the server behind us and back, as they come, until both have ended."""

import asyncio
import socket
import struct
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

from tunnelwrap.demux.routing import Backend
from tunnelwrap.path import SocketAddress
from tunnelwrap.transport.sockets import family_of, raw

_CHUNK: Final = 1 << 16
_ABORT: Final = struct.pack("ii", 1, 0)  # a struct linger that makes close() send a RST


async def dial(backend: Backend, greeting: bytes) -> socket.socket:
    """A connection to a server that begins so; of several addresses the first that answers.

    Raises:
        OSError: there is none.
    """
    failure = OSError(f"{backend.host} has no address")
    for address in await _addresses_of(backend):
        sock = socket.socket(family_of(address))
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, raw(address))
            sock.send(greeting)  # a new connection has room for that
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def _addresses_of(backend: Backend) -> list[SocketAddress]:
    with suppress(ValueError):
        return [SocketAddress(ip_address(backend.host), backend.port)]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(backend.host, backend.port, type=socket.SOCK_STREAM)
    return [SocketAddress(ip_address(name[0]), backend.port) for *_, name in found]


class Relay:
    """Two connections, each of which gets what the other says.

    An end is passed on as an end, while the other direction goes on; a break as a break. A side is
    read no faster than the other one takes.

    Args:
        near: the visitor's socket, non-blocking; not ours to close.
        far: the server's, likewise.
        idle_s: how long neither may say anything; 0: for ever.
    """

    def __init__(self, near: socket.socket, far: socket.socket, idle_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._near, self._far = near, far
        self._idle_s = idle_s or None
        self._limit = asyncio.timeout(self._idle_s)
        self._ended: set[socket.socket] = set()
        self.is_broken = False

    async def run(self) -> None:
        """Relay until both have ended, one is broken, or nothing was said for too long."""
        for sock in (self._near, self._far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
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
            for sock in (self._near, self._far):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)

    async def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        while octets := await self._loop.sock_recv(source, _CHUNK):
            try:
                await self._loop.sock_sendall(sink, octets)
            except OSError:
                if sink in self._ended:
                    return  # it has said all that it had to say, and takes no more
                raise
            self._is_alive()
            await asyncio.sleep(0)  # neither call waits where there is enough: others are next
        self._ended.add(source)
        with suppress(OSError):  # it has left meanwhile
            sink.shutdown(socket.SHUT_WR)

    def _is_alive(self) -> None:
        if self._idle_s is not None and not self._limit.expired():
            self._limit.reschedule(self._loop.time() + self._idle_s)
