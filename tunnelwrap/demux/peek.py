"""The first octets of a connection, looked at and left where they are."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final, TypeVar

from tunnelwrap.demux.sniff import MAX_SNIFF, Verdict, sniff
from tunnelwrap.errors import Malformed, WireError
from tunnelwrap.transport.sockets import readable
from tunnelwrap.wire.tls import MAX_HELLO, ClientHello, HelloReader

_MAX_PEEK: Final = 2 * MAX_HELLO
"""How far a ClientHello may reach with its records' headers: our choice."""

_NOTHING_MORE: Final = frozenset[Verdict]()

_T = TypeVar("_T")


async def peek(sock: socket.socket, judge: Callable[[bytes], _T | None], most: int) -> _T:
    """Look on until what is there can be judged.

    Args:
        sock: non-blocking.
        judge: gives None while it needs more octets.
        most: with that many it never does.

    Raises:
        EOFError: the peer ended it before.
        OSError: the connection broke.
    """
    seen, found = 0, None
    while found is None:
        # What was only peeked at would keep the socket readable, and the loop spinning.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
        await readable(sock)
        prefix = sock.recv(most, socket.MSG_PEEK)
        if len(prefix) == seen:  # readable, but nothing new: the end
            raise EOFError
        seen, found = len(prefix), judge(prefix)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return found


async def first_of(sock: socket.socket, asked: frozenset[Verdict] = _NOTHING_MORE) -> Verdict:
    """What ``sniff`` says of the first octets; never NEED_MORE. It raises as ``peek`` does."""

    def judge(prefix: bytes) -> Verdict | None:
        verdict = sniff(prefix, asked)
        return None if verdict is Verdict.NEED_MORE else verdict

    return await peek(sock, judge, MAX_SNIFF)


async def hello_of(sock: socket.socket) -> ClientHello | None:
    """The ClientHello; None if it is malformed or too long. It raises as ``peek`` does."""
    reader = HelloReader()

    def judge(prefix: bytes) -> ClientHello | None:
        hello = reader.read(prefix)
        if hello is None and len(prefix) == _MAX_PEEK:
            raise Malformed("a ClientHello in too small records")
        return hello

    try:
        return await peek(sock, judge, _MAX_PEEK)
    except WireError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        return None


async def is_silent(sock: socket.socket, for_s: float) -> bool:
    """Whether nothing comes for so long, not even the end."""
    try:
        async with asyncio.timeout(for_s):
            await readable(sock)
    except TimeoutError:
        return True
    return False
