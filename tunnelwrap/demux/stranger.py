"""A connection to the stream port, in TLS or not, as long as it is not known what comes of it."""

import asyncio
import socket
import ssl
from contextlib import suppress
from functools import partial
from typing import Final

from tunnelwrap.demux.peek import first_of
from tunnelwrap.demux.places import Place
from tunnelwrap.demux.sniff import Verdict, sniff
from tunnelwrap.path import Carrier, Path
from tunnelwrap.transport.sockets import completed, writable
from tunnelwrap.wire.proxy import Ends

_RECORD: Final = 1 << 14  # the most that one TLS record brings, RFC 8446 §5.1
_LINGER_S: Final = 2.0
_LINGER_OCTETS: Final = 1 << 18


class Stranger:
    """A connection of which nothing is known yet.

    Owns: its socket, until it is handed over.
    """

    __slots__ = ("carrier", "ends", "is_handed_over", "place", "sock")

    def __init__(self, sock: socket.socket, ends: Ends, place: Place) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.ends = ends  # its own, or those of whom a proxy speaks for
        self.place = place
        self.carrier = Carrier.TCP
        self.is_handed_over = False

    def __str__(self) -> str:
        return f"{self.carrier.value} {self.ends.source}"

    @property
    def path(self) -> Path:
        """Where what it says comes from."""
        return Path(self.ends.destination, self.ends.source, self.carrier)

    async def peek(self) -> Verdict:
        """Judge the first octets and leave them where they are.

        Raises:
            EOFError: the peer ended it before a verdict.
            OSError: the connection broke.
        """
        return await first_of(self.sock)

    async def begin_tls(self, context: ssl.SSLContext) -> None:
        """Do the handshake.

        Raises:
            OSError: it failed.
        """
        tls = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.sock, self.carrier = tls, Carrier.TLS
        await completed(tls, tls.do_handshake)

    async def read(self) -> tuple[Verdict, bytes]:
        """Judge the first octets inside TLS; gives them back too, whole records of them.

        Raises:
            EOFError: the peer ended it before a verdict.
            OSError: the connection broke.
        """
        received = b""
        while (verdict := sniff(received)) is Verdict.NEED_MORE:
            octets = await self.receive()
            if not octets:
                raise EOFError
            received += octets
        return verdict, received

    async def receive(self) -> bytes:
        """Some octets, or none at the end; in TLS a whole record, so that none stays behind."""
        return await completed(self.sock, partial(self.sock.recv, _RECORD))

    async def send(self, octets: bytes) -> None:
        """Write all of it."""
        left = memoryview(octets)
        while left:
            sent = await completed(self.sock, partial(self.sock.send, left), writable)
            left = left[sent:]

    async def finish(self) -> None:
        """End our side (close_notify, FIN), then wait a little for the peer's end.

        Closing with octets unread would send a RST, which can overtake what we answered.
        """
        with suppress(OSError):
            if isinstance(self.sock, ssl.SSLSocket):
                with suppress(ssl.SSLError):  # it would wait for the peer's close_notify
                    self.sock.unwrap()
            self.sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(_LINGER_S):
                left = _LINGER_OCTETS
                while left > 0 and (octets := await self.receive()):
                    left -= len(octets)

    def close(self) -> None:
        """Give back the place, and close the socket unless it belongs to someone else by now."""
        self.place.leave()
        if not self.is_handed_over:
            self.sock.close()
