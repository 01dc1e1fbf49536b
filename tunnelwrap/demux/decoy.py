"""What strangers get: a very small web server, HTTP/1.1 with one page. RFC 9110, RFC 9112.

It says no more than any web server says, and nothing of what else this port serves. Where a
WebSocket is asked for at a secret path, it is done, and its connection can be handed over.
"""

import asyncio
import re
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

from tunnelwrap.wire import websocket

MAX_HEAD: Final = 8192
MAX_REQUESTS: Final = 100

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 §5.6.2
_REQUEST_LINE: Final = re.compile(rb"(%s) ([!-~]+) HTTP/1\.([01])\r?" % _TOKEN)
_BEGIN_OF_LINE: Final = re.compile(rb"(?:%s(?: .*)?)?" % _TOKEN, re.DOTALL)
_FIELD_LINE: Final = re.compile(rb"(%s):[ \t]*([^\0\r]*?)[ \t]*\r?" % _TOKEN)
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")  # RFC 9112 §2.2 allows the bare LF
_ROOT: Final = re.compile(rb"(?:/|https?://[^/?]+/?)(?:\?.*)?", re.IGNORECASE)

_PAGE: Final = (
    "<!DOCTYPE html>\n<html><head><title>{0}</title></head>\n<body><h1>{0}</h1>{1}</body></html>\n"
)


class Visitor(Protocol):
    """A connection, in TLS or not; whoever owns it ends it when we are done."""

    async def receive(self) -> bytes:
        """Some octets; none at the end."""

    async def send(self, octets: bytes) -> None:
        """Write all of it."""


class Request(NamedTuple):
    """A request's head."""

    method: bytes
    target: bytes
    minor_version: bytes
    fields: dict[bytes, bytes]  # by their names in lower case, repeated ones joined


class Upgrade(NamedTuple):
    """A request for a WebSocket, answered already, and the octets that came after it."""

    request: Request
    received: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A response with a page, whole in one piece."""

    status: HTTPStatus
    is_last: bool = True
    is_head: bool = False
    title: str = ""
    text: str = ""

    def encode(self) -> bytes:
        """The octets to send; to HEAD without the page. RFC 9110 §9.3.2."""
        title = self.title or f"{self.status.value} {self.status.phrase}"
        page = _PAGE.format(title, self.text and f"<p>{self.text}</p>").encode()
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Date: {formatdate(usegmt=True)}",
            "Content-Type: text/html; charset=utf-8",
            f"Content-Length: {len(page)}",
            f"Connection: {'close' if self.is_last else 'keep-alive'}",
        ]
        if self.status is HTTPStatus.METHOD_NOT_ALLOWED:
            lines.append("Allow: GET, HEAD")  # RFC 9110 §15.5.6
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if self.is_head else page)


BAD_REQUEST: Final = Answer(HTTPStatus.BAD_REQUEST)
PLAIN_ON_TLS: Final = Answer(
    HTTPStatus.BAD_REQUEST, text="The plain HTTP request was sent to HTTPS port"
)


async def serve(
    visitor: Visitor, received: bytes, deadline_s: float, secret_path: bytes | None = None
) -> Upgrade | None:
    """Answer requests until one of both sides wants no more.

    Args:
        visitor: who is served.
        received: octets that were read already.
        deadline_s: for each request, from its expected begin to the end of the answer.
        secret_path: where a WebSocket can be had.

    Returns:
        What makes a WebSocket of the connection, if that came of it.
    """
    for number in range(1, MAX_REQUESTS + 1):
        async with asyncio.timeout(deadline_s):
            head, received = await _read_head(visitor, received)
            if head is None:
                return None
            request = _request(head)
            if request and secret_path and (accepted := _accepted(request, secret_path)):
                await visitor.send(accepted)
                return Upgrade(request, received)
            answer = _answer(request, is_last=number == MAX_REQUESTS)
            await visitor.send(answer.encode())
        if answer.is_last:
            return None
    return None


async def refuse_plain_http(visitor: Visitor, deadline_s: float) -> None:
    """Answer the one request of who speaks HTTP where TLS is expected, as web servers do."""
    async with asyncio.timeout(deadline_s):
        head, _ = await _read_head(visitor, b"")
        if head is not None:
            await visitor.send((PLAIN_ON_TLS if head else BAD_REQUEST).encode())


def answer_to(head: bytes, *, is_last: bool) -> Answer:
    """The answer to a request's head: its request line and fields, without the empty line."""
    return _answer(_request(head), is_last=is_last)


def _request(head: bytes) -> Request | None:
    """What a head says; None if it is malformed."""
    first, *lines = head.split(b"\n")
    line, fields = _REQUEST_LINE.fullmatch(first), _fields(lines)
    if line is None or fields is None:
        return None
    method, target, minor_version = line.groups()
    host = fields.get(b"host")
    if (host is None and minor_version == b"1") or b"," in (host or b""):  # RFC 9112 §3.2
        return None
    return Request(method, target, minor_version, fields)


def _accepted(request: Request, secret_path: bytes) -> bytes | None:
    """The answer to who asks for a WebSocket and knows where; None to all others."""
    if (request.method, request.minor_version) != (b"GET", b"1"):
        return None
    return websocket.answer(secret_path, request.target, request.fields)


def _answer(request: Request | None, *, is_last: bool) -> Answer:
    if request is None:
        return BAD_REQUEST
    is_last = is_last or request.minor_version == b"0" or _ends_connection(request.fields)
    status = _status(request.method, request.target)
    title = "Welcome" if status is HTTPStatus.OK else ""
    return Answer(status, is_last, request.method == b"HEAD", title)


def _fields(lines: list[bytes]) -> dict[bytes, bytes] | None:
    """Fields by their names in lower case, repeated ones joined; None if a line is malformed.

    A line folded in the old manner is malformed too, as RFC 9112 §5.2 allows.
    """
    fields: dict[bytes, bytes] = {}
    for line in lines:
        field = _FIELD_LINE.fullmatch(line)
        if field is None:
            return None
        name, value = field[1].lower(), field[2]
        fields[name] = fields[name] + b", " + value if name in fields else value
    return fields


def _ends_connection(fields: dict[bytes, bytes]) -> bool:
    """Whether the client wants so, or sends a body, which we do not read."""
    options = fields.get(b"connection", b"").lower().split(b",")
    has_body = not fields.keys().isdisjoint((b"content-length", b"transfer-encoding"))
    return has_body or b"close" in [option.strip() for option in options]


def _status(method: bytes, target: bytes) -> HTTPStatus:
    if method not in (b"GET", b"HEAD"):
        return HTTPStatus.METHOD_NOT_ALLOWED
    return HTTPStatus.OK if _ROOT.fullmatch(target) else HTTPStatus.NOT_FOUND


async def _read_head(visitor: Visitor, received: bytes) -> tuple[bytes | None, bytes]:
    """The next head and the octets after it; None if the visitor left, empty if it is no head."""
    while True:
        received = received.lstrip(b"\r\n")  # RFC 9112 §2.2
        if end := _END_OF_HEAD.search(received, 0, MAX_HEAD):
            return received[: end.start()], received[end.end() :]
        if len(received) >= MAX_HEAD or _is_hopeless(received):
            return b"", b""
        octets = await visitor.receive()
        if not octets:
            return None, b""
        received += octets


def _is_hopeless(received: bytes) -> bool:
    """Whether no octets to come can make a request of this."""
    line, newline, _ = received.partition(b"\n")
    return (_REQUEST_LINE if newline else _BEGIN_OF_LINE).fullmatch(line) is None
