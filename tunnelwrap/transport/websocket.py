"""Binary WebSocket messages around the frames of a stream, for gateways behind a CDN or a proxy.

The stream of RFC 9329, prefix and all, is cut into messages (RFC 6455): one for each train and one
for each IKE message. Where a message ends means nothing to who receives it.

The messages are made and read by aiohttp, on the sockets of ``transport.stream``: its own
connections would bring buffers, tasks and a second TLS engine between the plane and the socket.
aiohttp takes long to load, so this module is imported where the first WebSocket is opened.
"""

import asyncio
import os
import ssl
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from http import HTTPStatus
from random import SystemRandom
from typing import Final, Protocol

from aiohttp._websocket.reader import WebSocketDataQueue
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import (
    HttpProcessingError,
    HttpResponseParser,
    RawResponseMessage,
    WebSocketError,
    WebSocketReader,
    WebSocketWriter,
    WSCloseCode,
    WSMsgType,
)

from tunnelwrap.errors import ConnectFailed, Malformed
from tunnelwrap.transport.sockets import completed, reason_of
from tunnelwrap.wire.framing import Deframer
from tunnelwrap.wire.websocket import NONCE, authority, proof, request

MAX_SENT: Final = 65535  # octets in a message of several frames; its header stays short
MAX_RECEIVED: Final = 1 << 20
"""Peers may send longer messages than we do, and proxies may join what they carry."""

ANSWER_S: Final = 5.0

_OUTBOX: Final = 6 * 65536  # of a train, unless they are longer
_FED: Final = 65536  # a few copies are made of it, which a cache should hold
_READ: Final = 1 << 14
_HEAD: Final = 1 << 16
_RANDOM: Final = SystemRandom()  # nobody may foresee the masks. RFC 6455 §5.3


class _Message(Protocol):
    """One of aiohttp's messages."""

    @property
    def type(self) -> WSMsgType: ...
    @property
    def data(self) -> bytes: ...


class Messages:
    """Both directions of one WebSocket, behind the opening handshake.

    Args:
        loop: of the transport.
        is_originator: we opened the connection: we mask what we send, and expect no prefix.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, is_originator: bool) -> None:
        protocol = BaseProtocol(loop)
        self._deframer = Deframer(expect_prefix=not is_originator)
        self._inbox, self._outbox = _Inbox(protocol, loop), _Outbox()
        self._reader = WebSocketReader(self._inbox, MAX_RECEIVED, compress=False, decode_text=False)
        self._writer = WebSocketWriter(
            protocol, self._outbox, use_mask=is_originator, random=_RANDOM
        )
        self._code: int = WSCloseCode.OK
        self.answers = b""  # to what came; who sends them takes them away
        self.has_ended = False  # the peer will send no more messages

    def enclose(self, frames: memoryview, ends: Sequence[int]) -> tuple[memoryview, list[int]]:
        """Messages with these frames in them, back to back, and where each of them ends.

        No frame is cut, so that other messages may come between. ``ends`` are those of the frames.
        The messages are valid until the next call.
        """
        message_ends: list[int] = []
        begin, last = 0, 0
        while last < len(ends):
            last = max(bisect_right(ends, begin + MAX_SENT), last + 1)
            end = ends[last - 1]
            _complete(self._writer.send_frame(bytes(frames[begin:end]), WSMsgType.BINARY))
            message_ends.append(self._outbox.filled)
            begin = end
        return self._outbox.taken(), message_ends

    def feed(self, octets: memoryview) -> list[memoryview]:
        """The datagrams that ``octets`` complete, as ``Deframer.feed`` gives them.

        Sets ``answers`` and ``has_ended``.

        Raises:
            Malformed: these are no messages for us, or there are no frames in them.
        """
        for begin in range(0, len(octets), _FED):
            self._reader.feed_data(octets[begin : begin + _FED])
        try:
            found = [each for message in self._inbox.taken() for each in self._datagrams(message)]
            if (error := self._inbox.exception()) is not None:
                raise error
        except WebSocketError as error:
            self._code = error.code
            raise Malformed(f"WebSocket: {error}") from error
        except Malformed:
            self._code = WSCloseCode.PROTOCOL_ERROR
            raise
        return found

    def farewell(self) -> bytes:
        """The Close frame, the last of our side. RFC 6455 §5.5.1."""
        _complete(self._writer.close(self._code))
        return bytes(self._outbox.taken())

    def _datagrams(self, message: _Message) -> list[memoryview]:
        match message.type:
            case WSMsgType.BINARY:
                return self._deframer.feed(message.data)
            case WSMsgType.TEXT:
                raise WebSocketError(WSCloseCode.UNSUPPORTED_DATA, "a message of text")
            case WSMsgType.PING:
                _complete(self._writer.send_frame(bytes(message.data), WSMsgType.PONG))
                self.answers += self._outbox.taken()
            case WSMsgType.CLOSE:
                self.has_ended = True
            case _:  # a pong, though we ping nobody
                pass
        return []


class _Inbox(WebSocketDataQueue):
    """Where aiohttp's reader puts what it has read; nobody waits for it."""

    def __init__(self, protocol: BaseProtocol, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(protocol, MAX_RECEIVED, loop=loop)
        self._messages: list[_Message] = []

    def feed_data(self, data: _Message, size: int) -> None:
        """Take a message; at the ``size`` of all together the reader would pause."""
        del size
        self._messages.append(data)

    def taken(self) -> list[_Message]:
        """The messages since the last time."""
        messages, self._messages = self._messages, []
        return messages


class _Outbox(asyncio.Transport):
    """What aiohttp's writer takes for a connection that is never full.

    Owns: one buffer for all that is ever written; new ones would be new pages again and again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffer = bytearray(_OUTBOX)
        self.filled = 0

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take octets."""
        end = self.filled + len(data)
        if end > len(self._buffer):
            self._buffer = self._buffer[: self.filled] + bytes(end)
        self._buffer[self.filled : end] = data
        self.filled = end

    def taken(self) -> memoryview:
        """The octets since the last time, valid until more are written."""
        filled, self.filled = self.filled, 0
        return memoryview(self._buffer)[:filled]


def _complete(writing: Coroutine[object, None, None]) -> None:
    """Run what is a coroutine only because other connections than ours can be full."""
    with suppress(StopIteration):
        writing.send(None)
        raise AssertionError("the outbox is never full")


# --- the opening handshake, as the client ------------------------------------------------------


async def open_websocket(
    sock: ssl.SSLSocket, host: str, port: int, path: str, *, timeout_s: float = ANSWER_S
) -> bytes:
    """Make a WebSocket of a connection; gives back what was read behind the server's answer.

    Args:
        sock: non-blocking, its TLS handshake complete; closed if it fails.
        host: the server's name or IP address.
        port: where it listens.
        path: the secret.
        timeout_s: how long the answer may take.

    Raises:
        ConnectFailed: there is no WebSocket.
    """
    nonce = os.urandom(NONCE)
    asked = request(authority(host, port), path, nonce)
    with ExitStack() as on_failure:
        on_failure.enter_context(sock)
        answer, rest = await _exchange(sock, asked, timeout_s)
        _check(answer, proof(b64encode(nonce)).decode())
        on_failure.pop_all()
    return rest


async def _exchange(
    sock: ssl.SSLSocket, asked: bytes, timeout_s: float
) -> tuple[RawResponseMessage, bytes]:
    try:
        async with asyncio.timeout(timeout_s):
            await completed(sock, partial(sock.send, asked))
            return await _answer(sock)
    except TimeoutError:
        raise ConnectFailed(f"no answer to HTTP within {timeout_s:g} s") from None
    except OSError as error:
        raise ConnectFailed(reason_of(error)) from error
    except HttpProcessingError as error:
        raise ConnectFailed("the answer is not HTTP") from error


async def _answer(sock: ssl.SSLSocket) -> tuple[RawResponseMessage, bytes]:
    """The answer's head, and what was read behind it."""
    loop = asyncio.get_running_loop()
    parser = HttpResponseParser(BaseProtocol(loop), loop, _HEAD)
    while octets := await completed(sock, partial(sock.recv, _READ)):
        messages, _, rest = parser.feed_data(octets)
        if messages:
            return messages[0][0], rest
    raise ConnectFailed("peer closed the connection")


def _check(answer: RawResponseMessage, expected: str) -> None:
    """Check that the server takes us for a WebSocket. RFC 6455 §4.1."""
    if answer.code != HTTPStatus.SWITCHING_PROTOCOLS:
        what = f"{answer.code} {answer.reason}".encode("ascii", "replace").decode()
        raise ConnectFailed(f"no WebSocket at this path: HTTP status {what}")
    is_websocket = answer.headers.get("Upgrade", "").lower() == "websocket" and answer.upgrade
    if not is_websocket or answer.headers.get("Sec-WebSocket-Accept") != expected:
        raise ConnectFailed("the server's answer makes no WebSocket")
