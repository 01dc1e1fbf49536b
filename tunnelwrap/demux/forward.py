"""Sends strangers on to the servers behind us that they are for."""

import logging
import socket
from collections.abc import Callable

from tunnelwrap.demux.connection import Connection
from tunnelwrap.demux.dialling import Dialler
from tunnelwrap.demux.peek import first_of, hello_of, is_silent, peek
from tunnelwrap.demux.relay import Relay
from tunnelwrap.demux.routing import Backend, Routing
from tunnelwrap.demux.sniff import Verdict
from tunnelwrap.errors import Malformed
from tunnelwrap.wire.proxy import MAX_HEADER, Ends, decode_header

logger = logging.getLogger(__name__)

Tell = Callable[[str], None]
"""Counts a fact about one stranger."""


class Forwarder:
    """Finds the server for a stranger, and goes between.

    Args:
        routing: who is for whom.
    """

    def __init__(self, routing: Routing) -> None:
        self._routing = routing
        self._dialler = Dialler()

    async def introduced(self, sock: socket.socket, ends: Ends) -> Ends:
        """Whose connection it is: if it comes from a proxy, the one whom that speaks for.

        Args:
            sock: the connection; a PROXY header is taken from it.
            ends: its own.

        Raises:
            Malformed: a proxy says something else.
            EOFError: it ended before it had said so.
            OSError: the connection broke.
        """
        if not self._routing.trusts(ends.source.ip):
            return ends
        try:
            header = await peek(sock, decode_header, MAX_HEADER)
        except Malformed as error:
            logger.warning("%s should begin as a proxy: %s", ends.source, error)
            raise
        sock.recv(header.length)
        return header.ends or ends

    async def backend_for(self, sock: socket.socket, tell: Tell) -> Backend | None:
        """The server that a stranger is for; None: it is for us. Not an octet is taken.

        Raises:
            Malformed: it says to be a proxy, but is none of ours.
            EOFError: it ended before that was known.
            OSError: the connection broke.
        """
        asked = self._routing.asked
        if not asked:
            return None
        silent = self._routing.backend_of(Verdict.SILENT)
        if silent is not None and await is_silent(sock, self._routing.silence_s):
            tell(Verdict.SILENT.value)
            return silent
        first = await first_of(sock, asked)
        if first is Verdict.PROXY:
            raise Malformed("a PROXY header from one that is no proxy of ours")
        if first is Verdict.TLS:
            backend, kind = await self._by_hello(sock), "tls_passed"
        else:
            backend, kind = self._routing.backend_of(first), first.value
        if backend is not None:
            tell(kind)
        return backend

    async def _by_hello(self, sock: socket.socket) -> Backend | None:
        if Verdict.TLS not in self._routing.asked:
            return None
        hello = await hello_of(sock)
        return None if hello is None else self._routing.backend_for(hello)

    async def forward(self, near: socket.socket, ends: Ends, backend: Backend, tell: Tell) -> bool:
        """Go between until the end, and tell whether it was one in good order."""
        far = await self._dialler.dial(backend, ends)
        if far is None:
            tell("unreachable")
            return True
        tell(f"to {backend}")
        with far.sock:
            relay = Relay(Connection(near), far, self._routing.idle_s)
            await relay.run()
        return not relay.is_broken
