"""Bodies of requests, which are passed over. RFC 9112 §6, §7.1."""

import re
from typing import Final

from tunnelwrap.demux.http_head import Request

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*|\r?)\n")
_SIZE_BEGUN: Final = re.compile(rb"(?:[0-9A-Fa-f]{1,15}[ \t]*(?:;[^\n]*|\r)?)?")
_LINE: Final = re.compile(rb"[^\n]*\n")
_MAX_LINE: Final = 4096


class Body:
    """A body of which more and more comes.

    Args:
        request: whose it is.
        is_refused: how it is coded is of no account.
    """

    def __init__(self, request: Request, *, is_refused: bool = False) -> None:
        self._is_chunked = b"transfer-encoding" in request.fields and not is_refused
        self._left = 0 if self._is_chunked else request.length
        self._pending = b""
        self._is_in_trailer = False
        self._is_after_data = False
        self.is_malformed = False
        self.is_complete = not (self._is_chunked or self._left)

    def feed(self, octets: bytes) -> bytes:
        """Take octets; gives back those that are not part of it."""
        octets, self._pending = self._pending + octets, b""
        while octets and not self.is_complete and not self.is_malformed:
            if self._left:
                passed = min(self._left, len(octets))
                self._left, octets = self._left - passed, octets[passed:]
                self.is_complete = not self._is_chunked and not self._left
            elif (rest := self._take_line(octets)) is None:
                self._pending, octets = octets, b""
            else:
                octets = rest
        return octets

    def _take_line(self, octets: bytes) -> bytes | None:
        """What comes after the line between two chunks; None: it is not complete."""
        line = _LINE.match(octets)
        if line is None and len(octets) > _MAX_LINE:
            self.is_malformed = True
            return None
        if self._is_after_data:
            return self._after_data(octets)
        if self._is_in_trailer:
            self.is_complete = line is not None and line[0] in (b"\n", b"\r\n")
            return octets[line.end() :] if line else None
        return self._begin_chunk(octets)

    def _after_data(self, octets: bytes) -> bytes | None:
        if octets == b"\r":
            return None
        if not octets.startswith((b"\r\n", b"\n")):
            self.is_malformed = True
            return None
        self._is_after_data = False
        return octets[octets.index(b"\n") + 1 :]

    def _begin_chunk(self, octets: bytes) -> bytes | None:
        size = _SIZE.match(octets)
        if size is None:
            if _SIZE_BEGUN.fullmatch(octets):
                return None
            self.is_malformed = True
            return None
        self._left = int(size[1], 16)
        self._is_after_data, self._is_in_trailer = self._left > 0, self._left == 0
        return octets[size.end() :]
