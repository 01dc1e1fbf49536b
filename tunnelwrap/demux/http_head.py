"""Heads of HTTP/1.x requests, read as nginx 1.22 reads them, at the octet at which it gives up.

What comes may be anything. A web server is known by what it makes of that, so this one follows
nginx where RFC 9112 leaves a choice, and where nginx does not follow RFC 9112.
"""

import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

_FIRST_BUFFER: Final = 1024  # client_header_buffer_size
_BUFFER: Final = 8192  # large_client_header_buffers 4 8k
_BUFFERS: Final = 4

_METHOD: Final = rb"[A-Z_-]+"
_URI: Final = rb"/[^\x00-\x20\x7f]*"
_SCHEME: Final = rb"[A-Za-z][A-Za-z0-9+.-]*"
_HOST: Final = rb"(?:\[[A-Za-z0-9:._~!$&'()*+,;=-]*\]|[A-Za-z0-9.-]*)"
_QUERY: Final = rb"\?[^\x00-\x20\x7f]*"
_ABSOLUTE: Final = rb"%s://(%s)(?::[0-9]*)?(%s|%s)?" % (_SCHEME, _HOST, _URI, _QUERY)
_VERSION: Final = rb"HTTP/1\.(0*[0-9]{1,3})"
_LINE: Final = re.compile(
    rb"(%s) +(?:(%s)|%s)(?: +(?:%s *)?)?\r?" % (_METHOD, _URI, _ABSOLUTE, _VERSION)
)
_OTHER_VERSION: Final = re.compile(
    rb"%s +(?:%s|%s) +HTTP/(?:[2-9]|1[0-9])" % (_METHOD, _URI, _ABSOLUTE)
)


def _begun(*parts: bytes) -> bytes:
    """A pattern for any beginning of what consists of parts, each of them one character's."""
    pattern = b""
    for part in reversed(parts):
        pattern = b"(?:%s%s)?" % (part, pattern)
    return pattern


_VERSION_BEGUN: Final = _begun(
    *(b"HTTP/1"[at : at + 1] for at in range(6)), rb"\.", rb"[0-9]+ *\r?"
)
_ABSOLUTE_BEGUN: Final = rb"%s(?::(?:/(?:/(?:\[[^\]/ ]*|%s(?::[0-9]*)?(?:%s|%s)?))?)?)?" % (
    *(_SCHEME, _HOST, _URI, _QUERY),
)
_LINE_BEGUN: Final = re.compile(
    rb"(?:%s)?|%s +(?:(?:%s|%s)?|(?:%s|%s)(?:\r| +(?:\r|%s)))"
    % (_METHOD, _METHOD, _URI, _ABSOLUTE_BEGUN, _URI, _ABSOLUTE, _VERSION_BEGUN)
)
_FIELD: Final = re.compile(rb"([^\x00-\x20\x7f:]+)(?::([^\x00\r]*))?\r*")  # a run ends in one way
_KNOWN_NAME: Final = re.compile(rb"[a-z0-9-]+")  # others are not looked at
_BAD_HOST: Final = re.compile(rb"[\x00-\x20\x7f/\\]|\.\.")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


class Fault(IntEnum):
    """Why there is no request: a status, or one of nginx's own numbers for 400."""

    BAD_REQUEST = 400
    URI_TOO_LONG = 414
    HEAD_TOO_LONG = 494
    NOT_IMPLEMENTED = 501
    OTHER_VERSION = 505


@dataclass
class Request:
    """A request's head, as far as it is known."""

    method: bytes = b""
    target: bytes = b""
    path: bytes = b""  # of the target, unescaped
    host: bytes = b""
    minor_version: int | None = 0  # none: HTTP/0.9
    fields: dict[bytes, bytes] = field(default_factory=dict)  # by names in lower case; the last

    @property
    def keeps_connection(self) -> bool:
        """Whether another request may follow."""
        wish = self.fields.get(b"connection", b"").lower()
        if b"close" in wish:
            return False
        return bool(self.minor_version) or b"keep-alive" in wish

    @property
    def length(self) -> int:
        """Of the body, if that is not chunked."""
        length = self.fields.get(b"content-length", b"")
        return int(length) if _LENGTH.fullmatch(length) else 0


class HeadReader:
    """Reads one head, of which more and more comes.

    ``request`` is there from the first octet on, and grows; ``rest`` is what comes after it.
    """

    def __init__(self) -> None:
        self.request = Request()
        self.rest = b""
        self._line_number = 0
        self._is_taken = False  # what is wrong is not how the line is written
        self._room = _FIRST_BUFFER
        self._buffers = 0

    @property
    def has_begun(self) -> bool:
        """Whether anything came that is part of a request."""
        return bool(self.rest) or self._line_number > 0

    def feed(self, octets: bytes) -> bool | Fault:
        """Take more octets; whether the head is complete, or what is wrong with it."""
        self.rest += octets
        if self._line_number == 0:
            self.rest = self.rest.lstrip(b"\r\n")  # RFC 9112 §2.2
        at = 0
        judged: bool | Fault = False
        while judged is False and (end := self.rest.find(b"\n", at) + 1):
            judged = self._take_line(self.rest[at:end])
            at = at if isinstance(judged, Fault) and not self._is_taken else end
        self.rest = self.rest[at:]
        return judged or self._unfinished() or False

    def _take_line(self, line: bytes) -> bool | Fault:
        """Take a line with its end; whether the head is complete, or what is wrong with it."""
        if fault := self._too_long(line) or self._take(line[:-1]):
            return fault
        if line in (b"\n", b"\r\n") or self.request.minor_version is None:
            self._is_taken = True
            return _fault_of(self.request) or True
        self._line_number += 1
        self._is_taken = False
        return False

    def _unfinished(self) -> Fault | None:
        """What is wrong already with a line that is not complete."""
        return self._wrong_in(self.rest[:_BUFFER]) or self._room_for(len(self.rest) + 1)[1]

    def _wrong_in(self, begin: bytes) -> Fault | None:
        """What is wrong with a line that begins so."""
        if self._line_number == 0:
            return None if _LINE_BEGUN.fullmatch(begin) else _fault_in(begin)
        is_fine = begin in (b"", b"\r") or _FIELD.fullmatch(begin)
        return None if is_fine else Fault.BAD_REQUEST

    def _too_long(self, line: bytes) -> Fault | None:
        """Give a line room; what is wrong with it if there is none."""
        room, fault = self._room_for(len(line))
        if fault is not None:
            return self._wrong_in(line[:_BUFFER]) or fault
        self._buffers += len(line) > self._room
        self._room = room - len(line)
        return None

    def _room_for(self, length: int) -> tuple[int, Fault | None]:
        """The room that a line finds in buffers, across which no line goes; or that it has none."""
        if length <= self._room:
            return self._room, None
        if length <= _BUFFER and self._buffers < _BUFFERS:
            return _BUFFER, None
        return 0, Fault.HEAD_TOO_LONG if self._line_number else Fault.URI_TOO_LONG

    def _take(self, line: bytes) -> Fault | None:
        if self._line_number == 0:
            return self._take_first(line)
        if line in (b"", b"\r"):
            return None
        found = _FIELD.fullmatch(line)
        if found is None:
            return Fault.BAD_REQUEST
        self._is_taken = True
        name, value = found[1].lower(), (found[2] or b"").strip(b" ")
        return self._take_field(name, value) if _KNOWN_NAME.fullmatch(name) else None

    def _take_first(self, line: bytes) -> Fault | None:
        found = _LINE.fullmatch(line)
        if found is None:
            return _fault_in(line)
        self._is_taken = True
        method, path, host, rest, minor = found.groups()
        request = self.request
        request.method, request.target = method, path or rest or b"/"
        request.minor_version = None if minor is None else int(minor[-3:])  # zeros before
        request.host = (host or b"").lower()
        if minor is None and method != b"GET":
            return Fault.BAD_REQUEST
        resolved = resolve(request.target.partition(b"?")[0] or b"/")
        if resolved is None:
            return Fault.BAD_REQUEST
        request.path = resolved
        return None

    def _take_field(self, name: bytes, value: bytes) -> Fault | None:
        fields = self.request.fields
        if name == b"host":
            bare = _without_port(value.lower())
            if name in fields or not bare.rstrip(b".") or _BAD_HOST.search(value):
                return Fault.BAD_REQUEST
            self.request.host = self.request.host or bare.removesuffix(b".")
        if name in (b"content-length", b"transfer-encoding") and name in fields:
            return Fault.BAD_REQUEST
        fields[name] = value
        return None


def _without_port(host: bytes) -> bytes:
    name, bracket, _ = host.partition(b"]")
    return name + bracket if bracket else host.partition(b":")[0]


def _fault_in(line: bytes) -> Fault:
    return Fault.OTHER_VERSION if _OTHER_VERSION.match(line) else Fault.BAD_REQUEST


def _fault_of(request: Request) -> Fault | None:
    """What is wrong with a request as a whole."""
    fields, minor = request.fields, request.minor_version
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if minor and b"host" not in fields:
        return Fault.BAD_REQUEST
    if length is not None and not _LENGTH.fullmatch(length):
        return Fault.BAD_REQUEST
    if coding is None:
        return None
    if not minor:
        return Fault.BAD_REQUEST
    if coding.lower() != b"chunked":
        return Fault.NOT_IMPLEMENTED
    return None if length is None else Fault.BAD_REQUEST


def resolve(path: bytes) -> bytes | None:
    """A path without escapes, ``.``, ``..`` and doubled slashes; None: it leaves the root."""
    path = path.partition(b"#")[0]
    if re.search(rb"%(?![0-9A-Fa-f]{2})", path) or b"%00" in path:
        return None
    plain = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), path)
    segments: list[bytes] = []
    parts = plain.split(b"/")[1:]
    for part in parts:
        if part == b"..":
            if not segments:
                return None
            segments.pop()
        elif part not in (b"", b"."):
            segments.append(part)
    is_folder = parts[-1] in (b"", b".", b"..")
    return b"/" + b"/".join(segments) + (b"/" if is_folder and segments else b"")
