"""What the carriers share: addresses as the system's calls want them, waiting, errors in words."""

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tunnelwrap.path import SocketAddress

T = TypeVar("T")


def raw(address: SocketAddress) -> tuple[str, int]:
    """The address as ``connect`` and ``bind`` take it."""
    return str(address.ip), address.port


def family_of(address: SocketAddress) -> socket.AddressFamily:
    """The family of sockets that reach it."""
    return socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET


def is_this_host(address: SocketAddress) -> bool:
    """Whether what is sent there stays on this host.

    Raises:
        OSError: there is no route.
    """
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as probe:
        probe.connect(raw(address))
        own = SocketAddress.of(probe.getsockname()).ip
    return address.ip.is_loopback or own == address.ip


def reason_of(error: OSError) -> str:
    """Why a call failed, in the words of the system, of OpenSSL or of the resolver."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "peer broke the connection"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'failure').replace('_', ' ').lower()}"
    if isinstance(error, socket.gaierror):  # its number is none of the system's errors
        return str(error.strerror).lower()
    return os.strerror(error.errno).lower() if error.errno else str(error)


async def readable(sock: socket.socket) -> None:
    """Wait until there is something to read; cancelled, it leaves no trace in the loop."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


async def writable(sock: socket.socket) -> None:
    """Wait until something can be written; cancelled, it leaves no trace in the loop."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


async def completed(
    sock: socket.socket,
    operation: Callable[[], T],
    ready: Callable[[socket.socket], Awaitable[None]] = readable,
) -> T:
    """Repeat an operation until it does not block; ``ready`` is what it waits for without TLS."""
    while True:
        try:
            return operation()
        except ssl.SSLWantReadError:
            await readable(sock)
        except ssl.SSLWantWriteError:
            await writable(sock)
        except BlockingIOError:
            await ready(sock)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
