"""Fuzz targets for what strangers say inside TLS: HTTP, and what may be ours.

The first octet of most inputs says in pieces of what size the rest arrives. Invariants: pieces
change nothing; no path leaves the root; an answer is as long as it says; and who knows no secret
learns nothing of any, neither by what is answered nor by when.
"""

import asyncio
import re
from collections.abc import Callable, Iterator

from tests.fuzz.target import Target
from tunnelwrap.demux.http_answer import answer_with, page_about
from tunnelwrap.demux.http_body import Body
from tunnelwrap.demux.http_head import Fault, HeadReader, Request
from tunnelwrap.demux.opening import Gate, Kind, Opening, Secrets
from tunnelwrap.demux.pages import OnePage, Page
from tunnelwrap.demux.web import End, Web
from tunnelwrap.wire.framing import PREFIX
from tunnelwrap.wire.prelude import MAX_PATH, may_be_request, request_of, target_of
from tunnelwrap.wire.websocket import NONCE, request

_PAGE = Page("text/plain", 1000, 1_700_000_000, octets=bytes(1000))
_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]+)\r\n")

_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]+)")

_HEADS = (
    b"GET /a/../b%20c?d HTTP/1.1\r\nHost: a:80\r\nConnection:  close \r\n\r\nGET",
    b"POST http://a.b:1/x HTTP/1.0\nHost: x\nA:b\r\r\nContent-Length: 5\n\nhello",
    b"\r\nGET /\r\n",
    b"PUT /%2e%2e/ HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\n",
    b"GET //a//./b/.. HTTP/1.1 \r\nHost:a\r\nExpect: 100-continue\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nA:" + b" " * 4000 + b"\r \r\n\r\n",
    b"GET / HTTP/1.%05000d\r\nHost: a\r\n\r\n" % 1,
    b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: a\r\nContent-Length: %s\r\n\r\n"
    % (b"9" * 5000),
    request("localhost", "/Ahdai7eiPhai0ahx", bytes(NONCE)),
)
_ASKED = (
    b"Range: bytes=0-0,5-9, -3,990-\r\n",
    b"Range: bytes=-%s\r\n" % (b"9" * 5000),
    b'Range: bytes=0-\r\nIf-Range: "6553f100-3e8"\r\n',
    b"If-Modified-Since: Tue, 14 Nov 2023 22:13:20 GMT\r\n",
    b"If-Unmodified-Since: Tuesday, 14-Nov-23 22:13:20 GMT\r\nUser-Agent: Chrome/1\r\n",
    b'If-Match: "a", "6553f100-3e8"\r\nIf-None-Match: W/"6553f100-3e8",*\r\n',
)


def _pieces(octets: bytes) -> tuple[bytes, list[bytes]]:
    step, rest = octets[0] + 1, octets[1:]
    return rest, [rest[at : at + step] for at in range(0, len(rest), step)]


def _read(pieces: list[bytes]) -> tuple[bool | Fault, HeadReader]:
    reader, judged = HeadReader(), False
    for number, piece in enumerate(pieces):
        judged = reader.feed(piece)
        if judged is not False:
            reader.rest += b"".join(pieces[number + 1 :])
            break
    return judged, reader


def _head(octets: bytes) -> None:
    if not octets:
        return
    stream, pieces = _pieces(octets)
    (whole, at_once), (parted, by_and_by) = _read([stream]), _read(pieces)
    assert isinstance(whole, Fault) == isinstance(parted, Fault)
    if whole is True:
        assert parted is True
        assert at_once.request == by_and_by.request
        assert at_once.rest == by_and_by.rest
        path = at_once.request.path
        assert path.startswith(b"/")
        assert not {b"..", b"."} & set(path.split(b"/"))
        assert b"\0" not in path
    if isinstance(whole, Fault):
        assert page_about(whole, at_once.request, keeps=False).keeps_connection is False
        Body(at_once.request, is_refused=True).feed(at_once.rest)


def _answer(octets: bytes) -> None:
    """What is answered to a request with these fields."""
    judged, reader = _read([b"GET / HTTP/1.1\r\nHost: a\r\n" + octets + b"\r\n\r\n"])
    if judged is not True:
        return
    answer = answer_with(_PAGE, reader.request, keeps=True)
    head, _, page = answer.head.partition(b"\r\n\r\n")
    sent = len(page)
    for text, begin, end in answer.parts:
        assert 0 <= begin <= end <= _PAGE.size
        sent += len(text) + end - begin
    length = _LENGTH.search(head + b"\r\n")
    assert sent == (int(length[1]) if length else 0)


def _body(octets: bytes) -> None:
    """The second octet is a length, or the body is chunked."""
    if len(octets) < 2:
        return
    fields = {b"content-length": b"%d" % octets[1]} if octets[1] else {b"transfer-encoding": b""}
    stream, pieces = _pieces(octets[:1] + octets[2:])
    whole, parted = Body(Request(fields=fields)), Body(Request(fields=fields))
    rest, later = whole.feed(stream), b""
    for piece in pieces:
        later += piece if parted.is_complete else parted.feed(piece)
    assert (whole.is_complete, whole.is_malformed) == (parted.is_complete, parted.is_malformed)
    if whole.is_complete:
        assert rest == later
        assert stream.endswith(rest)


class _Visitor:
    """Says everything in pieces, and takes everything."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = iter(pieces)
        self.heard = b""

    async def receive(self) -> bytes:
        return next(self._pieces, b"")

    async def send(self, octets: bytes) -> None:
        self.heard += octets


def _server(octets: bytes) -> None:
    """All of the web server; every visitor gets to an end."""
    if not octets:
        return
    stream, pieces = _pieces(octets)
    heard = []
    for said in ([stream], pieces):
        visitor = _Visitor(said)
        end = asyncio.run(Web(OnePage(), _PATHS[0]).serve(visitor, b""))
        assert isinstance(end, End) or _PATHS[0] in stream
        heard.append(_STATUS.findall(visitor.heard))
    # What is wrong with a body is answered only if it is there by then, as by nginx.
    assert heard[0] == heard[1] or b"chunked" in stream.lower()


_WORDS = b"OHBAEPHEIWAHCHAI", b"QWERTZUIOPASDFGH"
_PATHS = b"/Ahdai7eiPhai0ahx", b"/ooShei2Ra9ahph7a"
_PAIRS: tuple[tuple[tuple[bytes, bytes], Callable[[bytes], Secrets]], ...] = (
    (_WORDS, lambda word: Secrets(Gate(word=word))),
    (_WORDS, lambda word: Secrets(Gate(word=word), b"/Kee4aiShu7Oi")),
    (_PATHS, lambda path: Secrets(Gate(path=path))),
    (_PATHS, lambda path: Secrets(None, path)),
    (_PATHS, lambda path: Secrets(Gate(wants_certificate=True), path)),
)


def _opening(octets: bytes) -> None:
    """Two gateways with different secrets, of which nobody can tell who knows neither."""
    for both, secrets_of in _PAIRS:
        one, other = (_judged(secrets_of(secret), octets) for secret in both)
        if not any(secret in octets for secret in both):
            assert one == other
    for has_certificate in (False, True):
        found = Secrets(Gate(wants_certificate=True)).judge(octets, has_certificate=has_certificate)
        assert found is None or found.kind is Kind.SITE or has_certificate


def _judged(secrets: Secrets, octets: bytes) -> tuple[Opening | None, int]:
    """What octets open that come one by one, and with how many of them that is known."""
    for length in range(1, len(octets) + 1):
        found = secrets.judge(octets[:length])
        if found is not None:
            assert octets[:length].endswith(found.received)
            assert found.kind is not Kind.STREAM or found.received.startswith(PREFIX)
            return found, length
    return None, len(octets)


def _prelude(octets: bytes) -> None:
    """A request line is waited for as long as it can come to one, and no longer."""
    target = target_of(octets)
    begun = [may_be_request(octets[:length]) for length in range(len(octets) + 1)]
    assert begun == sorted(begun, reverse=True)
    assert sum(begun) <= MAX_PATH + 1
    if target is not None:
        assert sum(begun) == min(octets.index(b"\n"), MAX_PATH) + 1


def _openings() -> Iterator[bytes]:
    stream = PREFIX + b"\0\1\2"
    yield from (word + stream for word in _WORDS)
    for path in _PATHS:
        yield request_of(path.decode(), "a.example") + stream
        yield request("a.example", path.decode(), bytes(NONCE)) + b"frames"
    yield from (stream, b"POST / HTTP/1.1\r\n", b"GET /index.html HTTP/1.1\nHost: a\n\n")


def _bodies() -> Iterator[bytes]:
    yield b"\2\0" + b"5;x=y\r\nhello\r\n1 \r\nx\r\n0\r\na: b\r\n\r\nGET /"
    yield b"\0\0" + b"fffffffffffffff\nhello"
    yield b"\7\5" + b"helloGET /"
    yield b"\xff\0" + b"0\r\n" + b"a\n" * 100 + b"\r\n"


def _visits() -> Iterator[bytes]:
    first = b"GET / HTTP/1.1\r\nHost: a\r\n"
    for at, fields in enumerate(_ASKED):
        yield bytes([9 * at]) + first + fields + b"\r\n" + first + b"Connection: close\r\n\r\n"
    yield from (bytes([50 + at]) + head for at, head in enumerate(_HEADS))
    chunked = b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    yield b"\3" + first + chunked + first + b"\r\n"
    yield (
        b"\xffPOST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + first + b"\r\n"
    )


WEB_TARGETS = (
    Target("http_server", _server, _visits),
    Target("http_head", _head, lambda: (bytes([7 * at]) + head for at, head in enumerate(_HEADS))),
    Target("http_answer", _answer, lambda: iter(_ASKED)),
    Target("http_body", _body, _bodies),
    Target("opening", _opening, _openings),
    Target("prelude", _prelude, _openings),
)
