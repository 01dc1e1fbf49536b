"""Datagrams in a byte stream. RFC 9329 §3, §4; test names carry the rows of its checklist."""

import pytest

from tunnelwrap.errors import Malformed, UsageError
from tunnelwrap.wire.framing import MAX_DATAGRAM, PREFIX, Deframer, frame

IKE = bytes(4) + bytes(range(28))
ESP = bytes.fromhex("c0ffee0100000001") + bytes(1392)
KEEPALIVE = b"\xff"
EMPTY = b"\0\2"
LARGEST = bytes(MAX_DATAGRAM)


def datagrams(deframer: Deframer, *pieces: bytes) -> list[bytes]:
    """All that comes out, copied before the next piece goes in."""
    return [bytes(view) for piece in pieces for view in deframer.feed(piece)]


def in_pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


@pytest.mark.rfc("9329", "3")
def test_f1_the_length_counts_itself() -> None:
    assert frame(b"abc") == b"\0\5abc"
    assert frame(KEEPALIVE) == bytes.fromhex("0003ff")
    assert frame(ESP)[:2] == (1402).to_bytes(2, "big")
    assert datagrams(Deframer(False), b"\0\5abc") == [b"abc"]


@pytest.mark.rfc("9329", "3")
def test_f2_the_largest_datagram() -> None:
    assert frame(LARGEST)[:2] == b"\xff\xff"
    assert datagrams(Deframer(False), frame(LARGEST) + frame(b"x")) == [LARGEST, b"x"]
    with pytest.raises(UsageError, match="65534 octets"):
        frame(LARGEST + b"x")


@pytest.mark.rfc("9329", "3")
def test_f4_empty_datagrams_are_dropped() -> None:
    stream = EMPTY + frame(IKE) + EMPTY * 3 + frame(ESP) + EMPTY
    assert datagrams(Deframer(False), stream) == [IKE, ESP]
    assert datagrams(Deframer(False), *in_pieces(stream, 1)) == [IKE, ESP]


@pytest.mark.rfc("9329", "3.1")
@pytest.mark.parametrize("length", [b"\0\0", b"\0\1"])
def test_f5_lengths_of_0_and_1_are_fatal(length: bytes) -> None:
    for pieces in ([length], [length[:1], length[1:]], [frame(IKE) + length + frame(ESP)]):
        deframer = Deframer(False)
        with pytest.raises(Malformed, match=r"frame length [01]"):
            datagrams(deframer, *pieces)


@pytest.mark.rfc("9329", "6.6")
def test_n5_keepalives_are_passed_on() -> None:
    """Dropping them is for who classifies datagrams."""
    assert datagrams(Deframer(False), frame(KEEPALIVE) * 2) == [KEEPALIVE, KEEPALIVE]


@pytest.mark.rfc("9329", "4")
def test_f8_the_prefix_stands_once_at_the_beginning() -> None:
    assert bytes.fromhex("494b45544350") == PREFIX
    assert datagrams(Deframer(True), PREFIX + frame(IKE)) == [IKE]
    assert datagrams(Deframer(expect_prefix=True), PREFIX) == []
    deframer = Deframer(True)
    assert datagrams(deframer, PREFIX, frame(b"ab"), frame(PREFIX)) == [b"ab", PREFIX]


@pytest.mark.rfc("9329", "6.1")
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 8, 9, 1401, 4000])
def test_f10_pieces_of_any_size(size: int) -> None:
    stream = PREFIX + frame(IKE) + EMPTY + frame(ESP) * 3 + frame(KEEPALIVE) + frame(IKE)
    found = datagrams(Deframer(True), *in_pieces(stream, size))
    assert found == [IKE, ESP, ESP, ESP, KEEPALIVE, IKE]


@pytest.mark.rfc("9329", "6.1")
@pytest.mark.parametrize("at", range(6))
def test_f12_a_wrong_prefix_is_seen_at_its_first_octet(at: int) -> None:
    wrong = PREFIX[:at] + bytes([PREFIX[at] ^ 0x20])
    for pieces in ([wrong], in_pieces(wrong, 1)):
        deframer = Deframer(True)
        for piece in pieces[:-1]:
            assert deframer.feed(piece) == []
        with pytest.raises(Malformed, match="does not begin with IKETCP"):
            deframer.feed(pieces[-1])


@pytest.mark.rfc("9329", "6.1")
def test_f12_frames_without_prefix_are_refused() -> None:
    with pytest.raises(Malformed):
        Deframer(True).feed(frame(IKE))


def test_a_tail_of_every_length() -> None:
    stream = frame(IKE) + frame(ESP)
    for cut in range(len(stream) + 1):
        found = datagrams(Deframer(False), stream[:cut], b"", stream[cut:])
        assert found == [IKE, ESP]


def test_nothing_comes_before_it_is_whole() -> None:
    deframer = Deframer(False)
    stream = frame(ESP)
    for octet in stream[:-1]:
        assert deframer.feed(bytes([octet])) == []
    assert datagrams(deframer, stream[-1:]) == [ESP]
    assert deframer.feed(b"") == []


def test_views_are_of_the_data_itself() -> None:
    """No copy for each frame; a frame begun in an earlier piece has memory of its own."""
    buffer = bytearray(frame(IKE) + frame(ESP) + frame(IKE)[:9])
    deframer = Deframer(False)
    views = deframer.feed(memoryview(buffer))
    assert [view.obj is buffer for view in views] == [True, True]
    rest = bytearray(frame(IKE)[9:] + frame(ESP))
    buffer[:] = bytes(len(buffer))  # the caller uses its buffer again
    begun, whole = deframer.feed(rest)
    assert (bytes(begun), begun.obj is rest) == (IKE, False)
    assert (bytes(whole), whole.obj is rest) == (ESP, True)


def test_a_view_outlives_the_next_piece() -> None:
    deframer = Deframer(False)
    deframer.feed(frame(IKE)[:5])
    (first,) = deframer.feed(frame(IKE)[5:] + frame(ESP)[:7])
    (second,) = deframer.feed(frame(ESP)[7:])
    assert (bytes(first), bytes(second)) == (IKE, ESP)


def test_who_reads_no_more_than_is_wanted_stops_at_every_boundary() -> None:
    stream = PREFIX + frame(IKE) + EMPTY + frame(b"x") + frame(LARGEST) + frame(ESP)
    deframer, at, ends, found = Deframer(True), 0, [], 0
    while at < len(stream):
        assert deframer.wanted > 0
        piece = stream[at : at + deframer.wanted]
        at += len(piece)
        found += len(deframer.feed(piece))
        if deframer.is_at_boundary:
            ends.append(at)
    lengths = [0, *(len(datagram) + 2 for datagram in (IKE, b"", b"x", LARGEST, ESP))]
    assert ends == [len(PREFIX) + sum(lengths[: n + 1]) for n in range(len(lengths))]
    assert found == 4
