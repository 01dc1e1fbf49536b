"""The web site that the world sees on a TLS port: pages of our own, or a real web server's.

A real server gets every octet as it came in TLS, and its octets are the answer: nothing is parsed,
so there is nothing in which a prober could tell us from it. Asked with TLS it also hears those who
speak no TLS, and says how it likes to end. It learns who comes by a PROXY header, if it wants one.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Protocol

from tunnelwrap.demux.connection import Connection
from tunnelwrap.demux.dialling import Dialler
from tunnelwrap.demux.pages import OnePage, Pages, Unreachable
from tunnelwrap.demux.relay import Relay
from tunnelwrap.demux.routing import Backend
from tunnelwrap.demux.stranger import Stranger
from tunnelwrap.demux.web import DEFAULT_TIMES, End, Times, Upgrade, Web

Host = Callable[[bytes], Awaitable[Upgrade | End]]
"""Serves a visitor from the octets on that were read already; raises OSError if it breaks."""


class Cover(Protocol):
    """A web site."""

    def beside(self, visitor: Stranger) -> AbstractAsyncContextManager[Host]:
        """Get ready for a visitor in TLS of whom it is not known yet whether it is one."""

    async def correct(self, visitor: Stranger) -> End:
        """Answer who speaks no TLS where it should."""


class OwnSite:
    """Pages served by ourselves.

    Args:
        pages: what there is.
        times: how long visitors may take.
        secret_path: where a WebSocket can be had.
    """

    def __init__(
        self, pages: Pages, times: Times = DEFAULT_TIMES, secret_path: bytes | None = None
    ) -> None:
        self._pages, self._times, self._secret_path = pages, times, secret_path

    @asynccontextmanager
    async def beside(self, visitor: Stranger) -> AsyncIterator[Host]:
        """There is nothing to get ready; its clock runs from here on."""
        begun = asyncio.get_running_loop().time()
        ip, port = visitor.ends.destination.ip, visitor.ends.destination.port
        address = (f"[{ip}]" if ip.version == 6 else str(ip)).encode()
        web = Web(self._pages, self._secret_path, self._times, address=address, port=port)
        yield lambda received: web.serve(visitor, received, begun)

    async def correct(self, visitor: Stranger) -> End:
        """Say what was wrong."""
        return await corrected(visitor, self._times)


async def corrected(visitor: Stranger, times: Times) -> End:
    """Answer plain HTTP on a TLS port as a web server does."""
    end = await Web(OnePage(), None, times, is_misled=True).serve(visitor, b"")
    assert isinstance(end, End), "no WebSocket is to be had"
    return end


class SiteBehind:
    """A web server behind us.

    Args:
        backend: where it listens.
        is_tls: it wants TLS.
        times: how long visitors may take that we answer ourselves.
        idle_s: how long nobody may say anything.
    """

    def __init__(
        self, backend: Backend, *, is_tls: bool, times: Times = DEFAULT_TIMES, idle_s: float
    ) -> None:
        self._dialler = Dialler()
        self._backend, self._is_tls = backend, is_tls
        self._times, self._idle_s = times, idle_s

    @asynccontextmanager
    async def beside(self, visitor: Stranger) -> AsyncIterator[Host]:
        """Connect at once: its clock runs from here on, and it may be the first to speak."""
        try:
            async with asyncio.TaskGroup() as tasks:
                dialling = tasks.create_task(self._dial(visitor))
                try:
                    yield partial(self._serve, visitor, dialling)
                finally:
                    dialling.cancel()
                    dialling.add_done_callback(_close)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def correct(self, visitor: Stranger) -> End:
        """Let the server hear it, if it speaks TLS itself."""
        far = await self._dialler.dial(self._backend, visitor.ends) if self._is_tls else None
        if far is None:
            return await corrected(visitor, self._times)
        with far.sock:
            return await self._relayed(visitor, far)

    async def _dial(self, visitor: Stranger) -> Connection | None:
        if not self._is_tls:
            return await self._dialler.dial(self._backend, visitor.ends)
        name = visitor.hello.sni if visitor.hello else None
        return await self._dialler.dial_tls(self._backend, visitor.ends, name)

    async def _serve(
        self, visitor: Stranger, dialling: asyncio.Task[Connection | None], received: bytes
    ) -> Upgrade | End:
        far = await dialling
        if far is None:
            return await Web(Unreachable(), None, self._times).serve(visitor, received)
        return await self._relayed(visitor, far, received)

    async def _relayed(self, visitor: Stranger, far: Connection, received: bytes = b"") -> End:
        with suppress(OSError):  # the relay sees it too, and the visitor by it
            await far.send(received)
        relay = Relay(visitor, far, self._idle_s, is_exact=True)
        await relay.run()
        return End.ABANDON if relay.is_broken else End.CLOSE


def _close(dialling: asyncio.Task[Connection | None]) -> None:
    if not dialling.cancelled() and (far := dialling.result()) is not None:
        far.sock.close()
