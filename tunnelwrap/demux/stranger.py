"""A connection to the stream port, in TLS or not, as long as it is not known what comes of it."""

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Final

from tunnelwrap.demux.connection import Connection
from tunnelwrap.demux.peek import first_of, hello_of
from tunnelwrap.demux.places import Place
from tunnelwrap.demux.sniff import Verdict
from tunnelwrap.path import Carrier, Path
from tunnelwrap.transport.sockets import completed
from tunnelwrap.wire.proxy import Ends
from tunnelwrap.wire.tls import ClientHello

_TLS_ENDS: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)  # which one, depends on OpenSSL
_LINGER_S: Final = 5.0  # between what it still says
_LINGER_ALL_S: Final = 30.0
_LINGER_OCTETS: Final = 1 << 24
_HANDSHAKE: Final = 0x16  # a record of TLS or SSL 3
_SSL2: Final = 0x80  # a record of SSL 2, in which a ClientHello of others may be too


class Stranger(Connection):
    """A connection of which nothing is known yet.

    Owns: its socket, until it is handed over.
    """

    __slots__ = ("carrier", "ends", "hello", "is_handed_over", "place")

    def __init__(self, sock: socket.socket, ends: Ends, place: Place) -> None:
        super().__init__(sock)
        self.ends = ends  # its own, or those of whom a proxy speaks for
        self.place = place
        self.carrier = Carrier.TCP
        self.hello: ClientHello | None = None  # as far as it can be read
        self.is_handed_over = False

    def __str__(self) -> str:
        return f"{self.carrier.value} {self.ends.source}"

    @property
    def path(self) -> Path:
        """Where what it says comes from."""
        return Path(self.ends.destination, self.ends.source, self.carrier)

    @property
    def has_certificate(self) -> bool:
        """Whether it has shown one that is good, in TLS."""
        return isinstance(self.sock, ssl.SSLSocket) and bool(self.sock.getpeercert(True))

    async def peek(self) -> Verdict:
        """Judge the first octets and leave them where they are.

        Raises:
            EOFError: the peer ended it before a verdict.
            OSError: the connection broke.
        """
        return await first_of(self.sock)

    def means_tls(self) -> bool:
        """Whether a web server takes the first octet, which is there, for TLS."""
        first = self.sock.recv(1, socket.MSG_PEEK)[0]
        return first == _HANDSHAKE or first >= _SSL2

    async def read_hello(self) -> None:
        """Learn what the ClientHello says, which stays where it is.

        Raises:
            EOFError: the peer ended it before.
            OSError: the connection broke.
        """
        self.hello = await hello_of(self.sock)

    async def begin_tls(self, context: ssl.SSLContext) -> None:
        """Do the handshake.

        Raises:
            OSError: it failed.
        """
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.sock, self.carrier = tls, Carrier.TLS
        await completed(tls, tls.do_handshake)

    async def finish(self) -> None:
        """End our side (close_notify, FIN), then wait a little for the peer's end.

        Closing with octets unread would send a RST, which can overtake what we answered.
        """
        with suppress(OSError):
            self.end(is_cut=self.has_ended())
            async with asyncio.timeout(_LINGER_ALL_S):
                left = _LINGER_OCTETS
                while left > 0 and (octets := await self._late()):
                    left -= len(octets)

    async def _late(self) -> bytes:
        async with asyncio.timeout(_LINGER_S):
            return await self.receive()

    def close(self) -> None:
        """Give back the place, and close the socket unless it belongs to someone else by now."""
        self.place.leave()
        if not self.is_handed_over:
            self.sock.close()


def cause_of(error: OSError | EOFError) -> str:
    """Why a connection was not handed over."""
    if isinstance(error, TimeoutError):
        return "timed_out"
    is_tls = isinstance(error, ssl.SSLError) and not isinstance(error, _TLS_ENDS)
    return "tls_failed" if is_tls else "closed_early"
