"""Bodies of requests, which are passed over. RFC 9112 §6, §7.1."""

import re
from typing import Final

from tunnelwrap.demux.http_head import Request

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*|\r?)\n")
_SIZE_BEGUN: Final = re.compile(rb"(?:[0-9A-Fa-f]{1,15}[ \t]*(?:;[^\n]*|\r)?)?")
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
        at = 0
        while at < len(octets) and not self.is_complete and not self.is_malformed:
            if self._left:
                passed = min(self._left, len(octets) - at)
                self._left, at = self._left - passed, at + passed
                self.is_complete = not self._is_chunked and not self._left
            elif (end := self._take_line(octets, at)) is not None:
                at = end
            else:
                self._pending, at = octets[at:], len(octets)
        return octets[at:]

    def _take_line(self, octets: bytes, at: int) -> int | None:
        """Where the line ends that is between two chunks; None: it is not complete."""
        end = octets.find(b"\n", at) + 1
        if not end and len(octets) - at > _MAX_LINE:
            self.is_malformed = True
            return None
        if self._is_after_data:
            return self._after_data(octets, at)
        if self._is_in_trailer:
            self.is_complete = octets[at:end] in (b"\n", b"\r\n")
            return end or None
        return self._begin_chunk(octets, at)

    def _after_data(self, octets: bytes, at: int) -> int | None:
        if octets.startswith((b"\r\n", b"\n"), at):
            self._is_after_data = False
            return octets.index(b"\n", at) + 1
        self.is_malformed = octets[at:] != b"\r"
        return None

    def _begin_chunk(self, octets: bytes, at: int) -> int | None:
        size = _SIZE.match(octets, at)
        if size is None:
            self.is_malformed = _SIZE_BEGUN.fullmatch(octets, at) is None
            return None
        self._left = int(size[1], 16)
        self._is_after_data, self._is_in_trailer = self._left > 0, self._left == 0
        return size.end()
