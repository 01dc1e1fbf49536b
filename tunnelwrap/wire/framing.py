"""Datagrams in a byte stream: the prefix and the length before each one. RFC 9329 §3, §4."""

from collections.abc import Iterable
from struct import Struct
from typing import Final

from tunnelwrap.errors import Malformed, UsageError

PREFIX: Final = b"IKETCP"
MAX_DATAGRAM: Final = 65533
LENGTH_OCTETS: Final = 2

_LENGTH = Struct("!H")


def frame(datagram: bytes) -> bytes:
    """A datagram behind its length, which counts itself. RFC 9329 §3.

    Raises:
        UsageError: it is longer than MAX_DATAGRAM.
    """
    if len(datagram) > MAX_DATAGRAM:
        raise UsageError(f"datagram of {len(datagram)} octets, at most {MAX_DATAGRAM} fit a frame")
    return _LENGTH.pack(len(datagram) + LENGTH_OCTETS) + datagram


def train(datagrams: Iterable[bytes | memoryview]) -> tuple[memoryview, list[int]]:
    """Datagrams as frames back to back, and the offset behind each frame. RFC 9329 §3."""
    pieces: list[bytes | memoryview] = []
    ends: list[int] = []
    end = 0
    for datagram in datagrams:
        length = len(datagram) + LENGTH_OCTETS
        pieces += (_LENGTH.pack(length), datagram)
        end += length
        ends.append(end)
    return memoryview(b"".join(pieces)), ends


class Deframer:
    """Finds the datagrams in a stream that arrives in pieces of any size.

    Owns: a copy of the unfinished frame at the end of what came. After a Malformed the stream
    has lost its frame boundaries: close it and feed it no more (RFC 9329 §3.1).

    Args:
        expect_prefix: the stream is to begin with "IKETCP", as from a TCP originator.
    """

    __slots__ = ("_prefix_left", "_tail")

    def __init__(self, expect_prefix: bool) -> None:  # noqa: FBT001 -- its only argument
        self._prefix_left = PREFIX if expect_prefix else b""
        self._tail = bytearray()

    @property
    def is_at_boundary(self) -> bool:
        """Whether what came ends with a frame."""
        return not self._prefix_left and not self._tail

    @property
    def wanted(self) -> int:
        """How many octets more there are for certain: no frame ends before so many."""
        if self._prefix_left:
            return len(self._prefix_left)
        have, length = len(self._tail), LENGTH_OCTETS
        if have >= LENGTH_OCTETS:
            (length,) = _LENGTH.unpack_from(self._tail)
        return length - have

    def feed(self, data: bytes | bytearray | memoryview) -> list[memoryview]:
        """The datagrams that ``data`` completes, keepalives among them, empty ones not.

        They are views into ``data`` (or, the first, into memory of their own): valid as long as
        the caller leaves ``data`` alone.

        Raises:
            Malformed: the prefix is wrong, or a length is 0 or 1.
        """
        view = memoryview(data)
        if self._prefix_left:
            view = self._strip_prefix(view)
        found: list[memoryview] = []
        if self._tail:
            view = self._finish_tail(view, found)
        # The hot path: nothing but a length and a slice for each frame.
        add, length_at = found.append, _LENGTH.unpack_from
        at, end = 0, len(view)
        last = end - LENGTH_OCTETS
        while at <= last:
            (length,) = length_at(view, at)
            after = at + length
            if after > end:
                break
            if length > LENGTH_OCTETS:
                add(view[at + LENGTH_OCTETS : after])
            else:
                _check_length(length)
            at = after
        if at < end:
            self._tail += view[at:]
        return found

    def _strip_prefix(self, view: memoryview) -> memoryview:
        left = self._prefix_left
        came = bytes(view[: len(left)])
        if not left.startswith(came):
            raise Malformed(f"stream does not begin with {PREFIX.decode()}")
        self._prefix_left = left[len(came) :]
        return view[len(came) :]

    def _finish_tail(self, view: memoryview, found: list[memoryview]) -> memoryview:
        """Complete the frame in the tail, if ``view`` reaches that far; give back what follows."""
        view = self._top_up(view, LENGTH_OCTETS)
        if len(self._tail) < LENGTH_OCTETS:
            return view
        length: int = _LENGTH.unpack_from(self._tail)[0]
        _check_length(length)
        view = self._top_up(view, length)
        if len(self._tail) == length:
            if length > LENGTH_OCTETS:
                found.append(memoryview(self._tail)[LENGTH_OCTETS:])
            self._tail = bytearray()
        return view

    def _top_up(self, view: memoryview, length: int) -> memoryview:
        missing = max(length - len(self._tail), 0)
        self._tail += view[:missing]
        return view[missing:]


def _check_length(length: int) -> None:
    if length < LENGTH_OCTETS:
        raise Malformed(f"frame length {length}, at least {LENGTH_OCTETS}")
