"""What strangers get where no server behind us has the site: a web server like any other.

It answers as nginx 1.22 does where it serves the same files (``tests.bench.probe`` compares them),
down to error pages, timeouts, and how a connection ends; a library's server would be known by its
own. Where a WebSocket is asked for at a secret path, it is done, and its connection can be handed
over.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

from tunnelwrap.demux.http_answer import MISLED, Answer, answer_with, page_about
from tunnelwrap.demux.http_body import Body
from tunnelwrap.demux.http_head import Fault, HeadReader, Request
from tunnelwrap.demux.pages import Elsewhere, Page, Pages
from tunnelwrap.wire import websocket

MAX_REQUESTS: Final = 1000  # keepalive_requests
MAX_BODY: Final = 1 << 20  # client_max_body_size

_RECORD: Final = 1 << 14  # ssl_buffer_size
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_REFUSED: Final = frozenset({b"CONNECT", b"TRACE"})
_KNOWN: Final = frozenset({b"GET", b"HEAD", b"POST"})


class Visitor(Protocol):
    """A connection, in TLS or not; whoever owns it ends it when we are done."""

    async def receive(self) -> bytes:
        """Some octets; none at the end."""

    async def send(self, octets: bytes) -> None:
        """Write all of it."""


@dataclass(frozen=True, slots=True)
class Times:
    """How long a visitor may take."""

    head_s: float = 60.0  # client_header_timeout: for the whole of it
    idle_s: float = 75.0  # keepalive_timeout: between requests
    send_s: float = 60.0  # send_timeout: for a piece of an answer
    linger_s: float = 5.0  # lingering_timeout: between pieces of what is passed over
    linger_all_s: float = 30.0  # lingering_time


class Upgrade(NamedTuple):
    """A request for a WebSocket, answered already, and the octets that came after it."""

    request: Request
    received: bytes


class End(Enum):
    """How a connection is to be ended."""

    CLOSE = "as it should be"
    ABANDON = "without a word"  # its time was up in the middle of a request
    LINGER = "after what it still says"  # a RST could overtake what we answered


DEFAULT_TIMES: Final = Times()


@dataclass(frozen=True, slots=True)
class Web:
    """A web server.

    Args:
        pages: what there is.
        secret_path: where a WebSocket can be had.
        times: how long visitors may take.
        requests: how many a connection may have.
        is_misled: they should have spoken TLS, and get to hear that.
        address: to which those are sent who ask for no host.
        port: what stands beside it, if it is not HTTPS's.
    """

    pages: Pages
    secret_path: bytes | None = None
    times: Times = DEFAULT_TIMES
    requests: int = MAX_REQUESTS
    is_misled: bool = False
    address: bytes = b"localhost"
    port: int = 443

    async def serve(
        self, visitor: Visitor, received: bytes, begun: float | None = None
    ) -> Upgrade | End:
        """Answer requests until one of both sides wants no more.

        Args:
            visitor: who asks.
            received: octets that were read already.
            begun: since when the visitor has had time for it, by the loop's clock.

        Raises:
            OSError: the connection broke, the visitor takes nothing, or it would not get all.
        """
        loop = asyncio.get_running_loop()
        visit = _Visit(self, visitor, received)
        limit = (loop.time() if begun is None else begun) + self.times.head_s
        for number in range(1, self.requests + 1):
            end = await visit.serve_one(
                limit, is_first=number == 1, is_last=number == self.requests
            )
            limit = loop.time() + self.times.idle_s
            if end is not None:
                return end
        return End.CLOSE


class _Visit:
    """One connection. Owns: what it has said and was not looked at yet."""

    def __init__(self, web: Web, visitor: Visitor, received: bytes) -> None:
        self._web, self._visitor, self._received = web, visitor, received

    async def serve_one(
        self, until: float, *, is_first: bool, is_last: bool
    ) -> Upgrade | End | None:
        """Answer a request that comes before that time; None: another one may come."""
        reader = HeadReader()
        fault = await self._read(reader, until, is_first=is_first)
        if isinstance(fault, End):
            return fault
        request, self._received = reader.request, reader.rest
        if fault is not None:
            return await self._refuse(fault, request)
        if accepted := self._accepted(request):
            await self._send_piece(accepted)
            return Upgrade(request, self._received)
        return await self._respond(request, keeps=request.keeps_connection and not is_last)

    async def _read(
        self, reader: HeadReader, until: float, *, is_first: bool
    ) -> Fault | End | None:
        """Read a head; what is wrong with it, or how it ended before it was complete."""
        times, loop = self._web.times, asyncio.get_running_loop()
        limit = asyncio.timeout_at(until)
        try:
            async with limit:
                judged = reader.feed(self._received)
                while judged is False:
                    octets = await self._visitor.receive()
                    if not octets:
                        return End.ABANDON
                    if not is_first and not reader.has_begun:
                        limit.reschedule(loop.time() + times.head_s)
                    judged = reader.feed(octets)
        except TimeoutError:
            return End.ABANDON if reader.has_begun else End.CLOSE
        return None if judged is True else judged

    def _accepted(self, request: Request) -> bytes | None:
        """The answer to who asks for a WebSocket and knows where; None to all others."""
        path = self._web.secret_path
        if path is None or (request.method, request.minor_version) != (b"GET", 1):
            return None
        return websocket.answer(path, request.target, request.fields)

    async def _refuse(self, fault: Fault, request: Request) -> End:
        """Answer what is no request."""
        await self._send(page_about(fault, request, keeps=False))
        if fault is Fault.URI_TOO_LONG:
            return End.CLOSE
        is_body_known = b"transfer-encoding" in request.fields
        if is_body_known and not await self._pass_over(Body(request, is_refused=True)):
            return End.ABANDON
        return self._end()

    async def _respond(self, request: Request, *, keeps: bool) -> End | None:
        """Answer what is a request, and pass over its body."""
        body, page = Body(request), None
        if (status := self._refusal(request)) is not None:
            answer = page_about(status, request, keeps=False)
            await self._send(answer)
        else:
            with self._web.pages.open(request.path) as found:
                answer = self._about(found, request, keeps=keeps)
                page = found if isinstance(found, Page) else None
                answer = await self._respond_with(answer, page, request, body)
        if body.is_malformed:
            return End.LINGER
        if not await self._pass_over(body):
            return End.ABANDON
        return None if answer.keeps_connection else self._end()

    async def _respond_with(
        self, answer: Answer, page: Page | None, request: Request, body: Body
    ) -> Answer:
        self._received = body.feed(self._received)
        if body.is_malformed:
            answer, page = page_about(Fault.BAD_REQUEST, request, keeps=False), None
        elif page is not None and request.method != b"POST" and _expects(request):
            await self._send_piece(_CONTINUE)
        await self._send(answer, page)
        return answer

    def _refusal(self, request: Request) -> int | None:
        """The status of what is refused before anything is looked for."""
        if request.method in _REFUSED:
            return HTTPStatus.METHOD_NOT_ALLOWED
        if self._web.is_misled:
            return MISLED
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE if request.length > MAX_BODY else None

    def _end(self) -> End:
        return End.LINGER if self._received else End.CLOSE

    def _about(
        self, found: Page | Elsewhere | HTTPStatus, request: Request, *, keeps: bool
    ) -> Answer:
        if found is HTTPStatus.BAD_GATEWAY:
            return page_about(found, request, keeps=keeps)
        is_post = request.method == b"POST"
        if request.method not in _KNOWN or (is_post and isinstance(found, Page)):
            return page_about(HTTPStatus.METHOD_NOT_ALLOWED, request, keeps=keeps)
        if isinstance(found, Page):
            return answer_with(found, request, keeps=keeps)
        if isinstance(found, Elsewhere):
            location = self._with_slash(request)
            return page_about(301, request, keeps=keeps, location=location)
        return page_about(found, request, keeps=keeps)

    def _with_slash(self, request: Request) -> bytes:
        port = b"" if self._web.port == 443 else b":%d" % self._web.port
        path, mark, query = request.target.partition(b"?")
        host = request.host or self._web.address
        return b"https://%s%s%s/%s%s" % (host, port, path, mark, query)

    async def _send(self, answer: Answer, page: Page | None = None) -> None:
        """Head and page together, in pieces that fill a record of TLS."""
        pending = answer.head
        for octets, begin, end in answer.parts:
            pending = await self._send_records(pending + octets)
            at = begin
            while page is not None and at < end:
                if not (piece := await page.read(at, end)):
                    raise ConnectionAbortedError("a file got shorter than its answer says")
                at += len(piece)
                pending = await self._send_records(pending + piece)
        await self._send_piece(pending)

    async def _send_records(self, pending: bytes) -> bytes:
        """Send what fills records, and give back the rest."""
        while len(pending) >= _RECORD:
            await self._send_piece(pending[:_RECORD])
            pending = pending[_RECORD:]
        return pending

    async def _send_piece(self, piece: bytes) -> None:
        async with asyncio.timeout(self._web.times.send_s):
            await self._visitor.send(piece)
        await asyncio.sleep(0)  # a fast visitor, or one with many requests, keeps nobody waiting

    async def _pass_over(self, body: Body) -> bool:
        """Read what is left of a body; whether it ended as it should."""
        times = self._web.times
        self._received = body.feed(self._received)
        with suppress(TimeoutError):
            async with asyncio.timeout(times.linger_all_s):
                while not body.is_complete and not body.is_malformed:
                    async with asyncio.timeout(times.linger_s):
                        octets = await self._visitor.receive()
                    if not octets:
                        break
                    self._received = body.feed(octets)
        return body.is_complete


def _expects(request: Request) -> bool:
    """Whether the client waits for a word before it sends its body. RFC 9110 §10.1.1."""
    wish = request.fields.get(b"expect", b"").lower()
    return wish == b"100-continue" and bool(request.minor_version)
