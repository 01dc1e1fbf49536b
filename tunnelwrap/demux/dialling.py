"""Connections to the servers behind us."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable
from contextlib import suppress
from functools import cache
from ipaddress import ip_address
from typing import Final

from tunnelwrap.demux.connection import Connection
from tunnelwrap.demux.routing import Backend
from tunnelwrap.path import SocketAddress
from tunnelwrap.transport.sockets import completed, family_of, raw, reason_of
from tunnelwrap.wire.proxy import Ends, encode_v1, encode_v2

logger = logging.getLogger(__name__)

_ANSWER_S: Final = 5.0  # how long a server behind us may take to accept a connection


class Dialler:
    """Connects to servers; the log tells once that one cannot be reached, and once that it can."""

    def __init__(self) -> None:
        self._unreachable: set[Backend] = set()

    async def dial(self, backend: Backend, ends: Ends) -> Connection | None:
        """A connection to a server, which is told whose it is if it wants to know.

        Whoever gets it closes it. None: there is none.
        """
        return await self._told(backend, _dialled(backend, ends))

    async def dial_tls(self, backend: Backend, ends: Ends, name: str | None) -> Connection | None:
        """The same with TLS, in which a name is asked for; no certificate is looked at."""
        return await self._told(backend, _with_tls(backend, ends, name))

    async def _told(self, backend: Backend, dialling: Awaitable[Connection]) -> Connection | None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                far = await dialling
        except OSError as error:
            log = logger.debug if backend in self._unreachable else logger.warning
            reason = reason_of(error) or "no answer"
            log("%s behind us cannot be reached: %s", backend, reason)
            self._unreachable.add(backend)
            return None
        if backend in self._unreachable:
            logger.info("%s behind us can be reached again", backend)
            self._unreachable.discard(backend)
        return far


async def _dialled(backend: Backend, ends: Ends) -> Connection:
    greeting = b""
    if backend.send_proxy is not None:
        greeting = (encode_v1 if backend.send_proxy == "v1" else encode_v2)(ends)
    return Connection(await _connected(backend, greeting))


async def _with_tls(backend: Backend, ends: Ends, name: str | None) -> Connection:
    far = await _dialled(backend, ends)
    try:
        # It takes the place of the other one, and its descriptor.
        far.sock = _context().wrap_socket(
            far.sock,
            server_hostname=name,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        await completed(far.sock, far.sock.do_handshake)
    except BaseException:
        far.sock.close()
        raise
    return far


@cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


async def _connected(backend: Backend, greeting: bytes) -> socket.socket:
    """A socket that begins so; of several addresses the first that answers."""
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
