"""Answers as nginx 1.22 gives them with ``server_tokens off``, each field in its place.

RFC 9110 and 9112 say what they mean; where they leave a choice, it is nginx's.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from itertools import count
from typing import Final, NamedTuple

from tunnelwrap.demux.http_head import Request
from tunnelwrap.demux.pages import Page

MISLED: Final = 497
"""nginx's own number for plain HTTP on a TLS port."""

_WORDS: Final = {
    **{status.value: status.phrase for status in HTTPStatus},
    405: "Not Allowed",
    413: "Request Entity Too Large",
    414: "Request-URI Too Large",
    416: "Requested Range Not Satisfiable",
}
_FOR_400: Final = {
    MISLED: "The plain HTTP request was sent to HTTPS port",
    494: "Request Header Or Cookie Too Large",
}
_ENDING: Final = frozenset({400, 413, 414, 494, MISLED, 500, 501})
_PADDING: Final = b"<!-- a padding to disable MSIE and Chrome friendly error page -->\r\n" * 6
_WANTS_PADDING: Final = re.compile(rb"Chrome/|MSIE ")
_NUMBER: Final = rb"0*([0-9]{1,19})"
_RANGE: Final = re.compile(rb" *(?:%s *- *(?:%s)?|- *%s) *(,)?" % (_NUMBER, _NUMBER, _NUMBER))
_MAX_OFFSET: Final = (1 << 63) - 1  # a greater one can be had by nobody
_BOUNDARIES: Final = count(1)


class Answer(NamedTuple):
    """An answer's head, the parts of its page, and whether another request may follow."""

    head: bytes
    parts: tuple[tuple[bytes, int, int], ...] = ()  # octets, and the range of the page after them
    keeps_connection: bool = False


@dataclass(frozen=True, slots=True)
class _Head:
    """What nginx's header filter knows of an answer, in its order."""

    status: int
    media_type: str | None = None
    length: int | None = None
    modified: int | None = None
    location: bytes | None = None

    def encode(self, request: Request, *, keeps: bool, more: tuple[str, ...] = ()) -> bytes:
        if request.minor_version is None:
            return b""
        lines = [
            f"HTTP/1.1 {self.status} {_WORDS[self.status]}",
            "Server: nginx",
            f"Date: {formatdate(usegmt=True)}",
        ]
        if self.media_type is not None:
            lines.append(f"Content-Type: {self.media_type}")
        if self.length is not None:
            lines.append(f"Content-Length: {self.length}")
        if self.modified is not None:
            lines.append(f"Last-Modified: {formatdate(self.modified, usegmt=True)}")
        if self.location is not None:
            lines.append(f"Location: {self.location.decode('latin-1')}")
        lines.append(f"Connection: {'keep-alive' if keeps else 'close'}")
        return "\r\n".join([*lines, *more, "", ""]).encode("latin-1")


def page_about(
    status: int, request: Request, *, keeps: bool, location: bytes | None = None, more: str = ""
) -> Answer:
    """The page that says why there is no other.

    Args:
        status: or nginx's own number.
        request: what was asked, as far as it could be read.
        keeps: the connection, if the status allows that.
        location: where to ask instead.
        more: a field that nginx adds.
    """
    shown = 400 if status in _FOR_400 else status
    words = f"{shown} {_WORDS[shown]}"
    text = _FOR_400.get(status)
    title = f"400 {text}" if text else words
    page = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
    page += f"<center><h1>{words}</h1></center>\r\n"
    page += f"<center>{text}</center>\r\n" if text else ""
    octets = f"{page}<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n".encode()
    if status >= 400 and _WANTS_PADDING.search(request.fields.get(b"user-agent", b"")):
        octets += _PADDING
    keeps = keeps and status not in _ENDING
    described = _Head(shown, "text/html", len(octets), location=location)
    head = described.encode(request, keeps=keeps, more=(more,) if more else ())
    return Answer(head + (b"" if request.method == b"HEAD" else octets), (), keeps)


def answer_with(page: Page, request: Request, *, keeps: bool) -> Answer:
    """The page, a part of it, or that it is as the client has it. RFC 9110 §13, §14."""
    etag = f'"{page.modified:x}-{page.size:x}"'
    fields = request.fields if request.minor_version is not None else {}
    if _fails(fields, page, etag):
        # It says what the connection was to become, and ends it all the same.
        return page_about(412, request, keeps=keeps)._replace(keeps_connection=False)
    if _is_known(fields, page, etag):
        known = _Head(304, modified=page.modified)
        return Answer(known.encode(request, keeps=keeps, more=(f"ETag: {etag}",)), (), keeps)
    ranges = _ranges(fields, page, etag)
    if ranges is not None and not ranges:
        more = f"Content-Range: bytes */{page.size}"
        return page_about(416, request, keeps=keeps, more=more)
    answer = _whole(page, request, etag, keeps) if ranges is None else None
    answer = answer or _parts(page, request, etag, ranges or [], keeps)
    return answer._replace(parts=()) if request.method == b"HEAD" else answer


def _whole(page: Page, request: Request, etag: str, keeps: bool) -> Answer:  # noqa: FBT001 -- as above
    more = (f"ETag: {etag}", "Accept-Ranges: bytes")
    head = _Head(200, page.media_type, page.size, page.modified)
    encoded = head.encode(request, keeps=keeps, more=more)
    return Answer(encoded, ((b"", 0, page.size),), keeps)


def _parts(
    page: Page,
    request: Request,
    etag: str,
    ranges: list[tuple[int, int]],
    keeps: bool,  # noqa: FBT001 -- as above
) -> Answer:
    if len(ranges) == 1:
        ((begin, end),) = ranges
        media_type, parts = page.media_type, [(b"", begin, end)]
        more = [f"Content-Range: bytes {begin}-{end - 1}/{page.size}"]
    else:
        boundary, more = f"{next(_BOUNDARIES):020}", []
        media_type = f"multipart/byteranges; boundary={boundary}"
        parts = list(_enclosed(page, boundary, ranges))
    length = sum(len(octets) + end - begin for octets, begin, end in parts)
    head = _Head(206, media_type, length, page.modified)
    encoded = head.encode(request, keeps=keeps, more=(f"ETag: {etag}", *more))
    return Answer(encoded, tuple(parts), keeps)


def _enclosed(
    page: Page, boundary: str, ranges: list[tuple[int, int]]
) -> Iterator[tuple[bytes, int, int]]:
    for begin, end in ranges:
        head = f"\r\n--{boundary}\r\nContent-Type: {page.media_type}\r\n"
        head += f"Content-Range: bytes {begin}-{end - 1}/{page.size}\r\n\r\n"
        yield head.encode(), begin, end
    yield f"\r\n--{boundary}--\r\n".encode(), 0, 0


# --- conditions ------------------------------------------------------------------------------


def _fails(fields: dict[bytes, bytes], page: Page, etag: str) -> bool:
    since, match = fields.get(b"if-unmodified-since"), fields.get(b"if-match")
    if since is not None and ((time := _time_of(since)) is None or page.modified > time):
        return True
    return match is not None and not _matches(match, etag)


def _is_known(fields: dict[bytes, bytes], page: Page, etag: str) -> bool:
    since, none_match = fields.get(b"if-modified-since"), fields.get(b"if-none-match")
    if since is None and none_match is None:
        return False
    if since is not None and _time_of(since) != page.modified:
        return False
    return none_match is None or _matches(none_match, etag, is_weak=True)


def _matches(listed: bytes, etag: str, *, is_weak: bool = False) -> bool:
    tags = [each.strip() for each in listed.split(b",")]
    if is_weak:
        tags = [each.removeprefix(b"W/") for each in tags]
    return listed == b"*" or etag.encode() in tags


def _time_of(text: bytes) -> int | None:
    try:
        return int(parsedate_to_datetime(text.decode("latin-1")).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


def _ranges(fields: dict[bytes, bytes], page: Page, etag: str) -> list[tuple[int, int]] | None:
    """The parts that are asked for; none of them can be had: empty; all: None."""
    asked = fields.get(b"range", b"")
    if len(asked) < 7 or asked[:6].lower() != b"bytes=" or not _is_current(fields, page, etag):
        return None
    found: list[tuple[int, int]] = []
    at, is_more = 6, True
    while is_more:
        part = _RANGE.match(asked, at)
        if part is None or any(int(each or b"0") > _MAX_OFFSET for each in part.groups()[:3]):
            return []
        begin, end = _bounds(part, page.size)
        if begin < end:
            found.append((begin, end))
        elif begin == 0:
            return None
        at, is_more = part.end(), part[4] is not None
    if at != len(asked):
        return []
    return found if sum(end - begin for begin, end in found) <= page.size else None


def _bounds(part: re.Match[bytes], size: int) -> tuple[int, int]:
    if part[3] is not None:
        return max(size - int(part[3]), 0), size
    return int(part[1]), min(int(part[2]) + 1, size) if part[2] else size


def _is_current(fields: dict[bytes, bytes], page: Page, etag: str) -> bool:
    condition = fields.get(b"if-range")
    if condition is None:
        return True
    if len(condition) >= 2 and condition.endswith(b'"'):
        return condition == etag.encode()
    return _time_of(condition) == page.modified
