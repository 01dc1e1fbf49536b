"""One end of a connection, in TLS or not: what it says, what it is told, and how it ends."""

import asyncio
import socket
import ssl
import struct
from contextlib import suppress
from typing import Final

from tunnelwrap.transport.sockets import readable, writable

_RECORD: Final = 1 << 14  # the most that one TLS record brings, RFC 8446 §5.1
_CHUNK: Final = 1 << 16
_ABORT: Final = struct.pack("ii", 1, 0)  # a struct linger that makes close() send a RST


class Connection:
    """A socket that is read by one task and written by another.

    Args:
        sock: non-blocking; whoever made the connection closes it.
    """

    __slots__ = ("_has_ended", "_turn", "is_cut", "sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._has_ended = False
        self.is_cut = False  # the peer ended TLS without close_notify
        self._turn = asyncio.Lock()  # TLS may have to write to read: one of both waits at a time

    @property
    def is_tls(self) -> bool:
        """Whether there is TLS around what is said."""
        return isinstance(self.sock, ssl.SSLSocket)

    async def receive(self) -> bytes:
        """Some octets, or none at the end; in TLS a whole record, so that none stays behind.

        Once we have ended TLS what still comes is not deciphered any more.
        """
        while True:
            try:
                if self._has_ended:
                    return socket.socket.recv(self.sock, _CHUNK)
                return self.sock.recv(_RECORD if self.is_tls else _CHUNK)
            except ssl.SSLEOFError:
                self.is_cut = True
                return b""
            except ssl.SSLWantWriteError:
                await self._writable()
            except (BlockingIOError, ssl.SSLWantReadError):
                await readable(self.sock)

    async def send(self, octets: bytes) -> None:
        """Write all of it."""
        left = memoryview(octets)
        while left:
            try:
                left = left[self.sock.send(left) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._writable()

    def end(self, *, is_cut: bool = False) -> None:
        """We say no more: close_notify, FIN. The peer may go on.

        Args:
            is_cut: without close_notify.

        Raises:
            OSError: it has left.
        """
        if isinstance(self.sock, ssl.SSLSocket) and not self._has_ended:
            self._has_ended = True
            if not is_cut:
                with suppress(ssl.SSLError):  # it would wait for the peer's close_notify
                    self.sock.unwrap()
        self.sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Have it end with a RST when it is closed."""
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)

    async def _writable(self) -> None:
        async with self._turn:
            await writable(self.sock)
