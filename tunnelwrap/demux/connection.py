"""One end of a connection, in TLS or not: what it says, what it is told, and how it ends."""

import asyncio
import os
import socket
import ssl
import struct
from contextlib import suppress
from typing import Final

from tunnelwrap.transport.sockets import readable, writable

_RECORD: Final = 1 << 14  # the most that one TLS record brings, RFC 8446 §5.1
_CHUNK: Final = 1 << 16
_ALERT: Final = b"\x17\x03\x03\0\x13"  # of TLS 1.3, how a record with one begins
_ALERT_1_2: Final = b"\x15\x03\x03\0\x1a"
_CHECKS: Final = 10
_CHECK_S: Final = 0.001  # a server on this host has answered by then
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
            is_cut: without close_notify, after which OpenSSL would read on, but not for us.

        Raises:
            OSError: it has left.
        """
        if not is_cut:
            self.say_goodbye()
        socket.socket.shutdown(self.sock, socket.SHUT_WR)  # its own would end reading TLS too

    def abort(self) -> None:
        """Have it end with a RST when it is closed."""
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)

    def say_goodbye(self) -> None:
        """Send close_notify; calling twice is fine, without TLS it is nothing."""
        if isinstance(self.sock, ssl.SSLSocket) and not self._has_ended:
            self._has_ended = True
            with suppress(OSError):  # it would wait for the peer's close_notify
                self.sock.unwrap()

    async def check(self) -> None:
        """See whether what we send after the peer's end is taken by anybody.

        Raises:
            ConnectionResetError: it is not.
        """
        for _ in range(_CHECKS):
            if code := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise ConnectionResetError(code, os.strerror(code))
            await asyncio.sleep(_CHECK_S)

    async def await_fin(self) -> None:
        """See for a moment how TCP ends behind TLS.

        Raises:
            ConnectionResetError: by a RST.
        """
        for _ in range(_CHECKS):
            try:
                socket.socket.recv(self.sock, 1, socket.MSG_PEEK)
            except BlockingIOError:
                await asyncio.sleep(_CHECK_S)
            else:
                return

    def has_ended(self) -> bool:
        """Whether the peer says no more, as far as can be seen without a look inside TLS."""
        following = self._following()
        return following == b"" or (self.is_tls and following in (_ALERT, _ALERT_1_2))

    def close_as_kernels_do(self) -> None:
        """Have it end as if it was closed at once: with a RST if something is unread."""
        has_unread = bool(self._following())
        self.say_goodbye()  # which would read that
        if has_unread:
            self.abort()

    def _following(self) -> bytes | None:
        try:
            return socket.socket.recv(self.sock, len(_ALERT), socket.MSG_PEEK)
        except OSError:
            return None

    def drain(self) -> None:
        """Take what is there of what is of no use, lest closing send a RST."""
        with suppress(OSError):
            socket.socket.recv(self.sock, _RECORD)

    async def _writable(self) -> None:
        async with self._turn:
            await writable(self.sock)
