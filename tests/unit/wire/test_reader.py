"""The cursor: what it gives, and that it never reads past the end."""

import pytest

from tunnelwrap.errors import Malformed, Truncated
from tunnelwrap.wire.reader import Reader

OCTETS = bytes(range(1, 21))


@pytest.mark.parametrize("kind", [bytes, bytearray, lambda octets: memoryview(bytearray(octets))])
def test_numbers_are_big_endian(kind: type) -> None:
    reader = Reader(kind(OCTETS))
    assert (reader.u8(), reader.u16(), reader.u32()) == (0x01, 0x0203, 0x04050607)
    assert reader.u64() == 0x08090A0B0C0D0E0F
    assert (reader.offset, reader.remaining) == (15, 5)


def test_octets() -> None:
    reader = Reader(OCTETS, 10)
    assert reader.take(0) == b""
    assert reader.take(3) == OCTETS[10:13]
    assert reader.rest() == OCTETS[13:]
    assert reader.rest() == b""


def test_octets_of_a_view_are_copies() -> None:
    buffer = bytearray(OCTETS)
    taken = Reader(memoryview(buffer)).take(4)
    buffer[0] = 0xFF
    assert taken == OCTETS[:4]


def test_a_sub_reader_sees_its_part_alone_and_knows_where_it_stands() -> None:
    reader = Reader(OCTETS)
    reader.take(4)
    part = reader.sub(6)
    assert (part.remaining, part.offset, reader.offset) == (6, 4, 10)
    assert part.take(2) == OCTETS[4:6]
    inner = part.sub(3)
    assert (inner.offset, inner.rest(), inner.offset) == (6, OCTETS[6:9], 9)
    with pytest.raises(Truncated) as caught:
        part.u16()
    assert caught.value.offset == 9


@pytest.mark.parametrize("read", ["u8", "u16", "u32", "u64"])
def test_too_short_for_a_number(read: str) -> None:
    size = int(read[1:]) // 8
    reader = Reader(bytes(size - 1))
    with pytest.raises(Truncated, match=f"{size} octets wanted, {size - 1} left"):
        getattr(reader, read)()
    assert reader.remaining == size - 1, "nothing is consumed"


@pytest.mark.parametrize("count", [-1, 21, 1 << 40])
def test_what_is_not_there_cannot_be_taken(count: int) -> None:
    for read in (Reader(OCTETS).take, Reader(OCTETS).sub):
        with pytest.raises(Truncated) as caught:
            read(count)
        assert caught.value.offset == 0


def test_expect_end() -> None:
    reader = Reader(OCTETS, 18)
    with pytest.raises(Malformed, match="2 octets behind the test") as caught:
        reader.expect_end("the test")
    assert caught.value.offset == 18
    reader.rest()
    reader.expect_end("the test")
