"""A small web server that proves to an ACME server that a name is ours. RFC 8555 §8.3."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from ipaddress import ip_address
from typing import Final

from tunnelwrap.demux.pages import Found, OnePage, Page
from tunnelwrap.demux.places import Places
from tunnelwrap.demux.web import Times, Web
from tunnelwrap.errors import TransportError
from tunnelwrap.path import IpAddress

_PLACE: Final = b"/.well-known/acme-challenge/"
_CHUNK: Final = 1 << 14
_TIMES: Final = Times(*[10.0] * 5)
_VISITORS: Final = 512
_VISITORS_EACH: Final = 64  # as an authority may look at many names at once


@asynccontextmanager
async def proving(
    addresses: Sequence[IpAddress], port: int, proofs: Mapping[str, str]
) -> AsyncIterator[None]:
    """Serve proofs by their tokens; all else is answered as strangers are.

    Raises:
        TransportError: the port cannot be had.
    """
    texts = {_PLACE + token.encode(): text.encode() for token, text in proofs.items()}
    web = Web(_Proofs(texts), times=_TIMES, requests=1)
    answer = partial(_serve, web, Places(_VISITORS, _VISITORS_EACH))
    hosts = [str(address) for address in addresses]
    try:
        server = await asyncio.start_server(answer, hosts, port)
    except OSError as error:
        raise TransportError(f"cannot listen on TCP port {port}: {error.strerror}") from error
    try:
        yield
    finally:
        server.close()


class _Proofs(OnePage):
    """The proofs by their paths, and the page that there is anyway."""

    def __init__(self, texts: Mapping[bytes, bytes]) -> None:
        self._texts = texts

    @contextmanager
    def open(self, path: bytes) -> Iterator[Found]:
        text = self._texts.get(path)
        if text is not None:
            yield Page("application/octet-stream", len(text), 0, octets=text)
            return
        with super().open(path) as found:
            yield found


class _Visitor:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def receive(self) -> bytes:
        return await self._reader.read(_CHUNK)

    async def send(self, octets: bytes) -> None:
        self._writer.write(octets)
        await self._writer.drain()


async def _serve(
    web: Web, places: Places, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    host, *_ = writer.get_extra_info("peername")
    place = places.take(ip_address(host))
    try:
        if place is not None:
            with suppress(OSError):
                await web.serve(_Visitor(reader, writer), b"")
    finally:
        if place is not None:
            place.leave()
        writer.close()
