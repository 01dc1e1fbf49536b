"""The cursor: all bounds checks of the package stand here."""

from struct import Struct

from tunnelwrap.errors import Malformed, Truncated

_U16, _U32, _U64 = Struct("!H"), Struct("!I"), Struct("!Q")


class Reader:
    """Reads octets from front to end.

    Args:
        data: the octets to read.
        offset: where in them to begin.
        base: offset of ``data`` in the whole message, for errors.
    """

    __slots__ = ("_base", "_data", "_end", "_position")

    def __init__(self, data: bytes | memoryview, offset: int = 0, base: int = 0) -> None:
        self._data = data
        self._position = offset
        self._end = len(data)
        self._base = base

    @property
    def offset(self) -> int:
        """Where the next octet stands in the whole message."""
        return self._base + self._position

    @property
    def remaining(self) -> int:
        """How many octets are left."""
        return self._end - self._position

    def u8(self) -> int:
        """One octet."""
        return self._data[self._advance(1)]

    def u16(self) -> int:
        """Two octets, big-endian."""
        value: int = _U16.unpack_from(self._data, self._advance(2))[0]
        return value

    def u32(self) -> int:
        """Four octets, big-endian."""
        value: int = _U32.unpack_from(self._data, self._advance(4))[0]
        return value

    def u64(self) -> int:
        """Eight octets, big-endian."""
        value: int = _U64.unpack_from(self._data, self._advance(8))[0]
        return value

    def take(self, count: int) -> bytes:
        """The next ``count`` octets."""
        start = self._advance(count)
        return bytes(self._data[start : start + count])

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.remaining)

    def sub(self, count: int) -> "Reader":
        """A Reader of the next ``count`` octets alone."""
        base = self.offset
        return Reader(self.take(count), base=base)

    def expect_end(self, what: str) -> None:
        """Insist that nothing is left.

        Raises:
            Malformed: there are octets behind ``what``.
        """
        if self.remaining:
            raise Malformed(f"{self.remaining} octets behind {what}", self.offset)

    def _advance(self, count: int) -> int:
        start = self._position
        if count < 0 or count > self._end - start:
            raise Truncated(f"{count} octets wanted, {self._end - start} left", self.offset)
        self._position = start + count
        return start
