"""Super-packets: what is split is what the kernel would have sent; what is joined, what came."""

import os
import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from tests.unit.dataplane.samples import FAR, FAR_6, NEAR, NEAR_6, octets, tcp, udp, with_right_sums
from tunnelwrap.dataplane.offload import (
    JOIN_LEAST,
    MAX_TOTAL,
    Octets,
    Place,
    Train,
    fill_checksum,
    fragments,
    gather,
    plan,
    split,
)

ENDS = {4: (NEAR, FAR), 6: (NEAR_6, FAR_6)}
both_versions = pytest.mark.parametrize("version", [4, 6])
HEADERS = {4: 52, 6: 72}
VNET = struct.Struct("=BBHHHH")


def segments_of(packet: bytes, tcp_start: int, size: int, limit: int = 9000) -> list[bytes]:
    """The segments as they lie in the slots of an arena, with gaps of odd lengths between."""
    cut = plan(memoryview(packet), tcp_start, size, limit)
    assert cut is not None
    head, slot = 19, cut.length + 37
    arena = np.zeros(1 << 18, np.uint8)
    split(memoryview(packet), cut, arena, Place(7, head, slot))
    starts = [7 + number * slot + head for number in range(cut.segments + (cut.tail > 0))]
    lengths = [cut.length] * cut.segments + [cut.tail] * (cut.tail > 0)
    found = [arena[s : s + n].tobytes() for s, n in zip(starts, lengths, strict=True)]
    for start, length in zip(starts, lengths, strict=True):
        arena[start : start + length] = 0
    assert not arena.any()  # nothing was written beside the packets
    return found


def parsed(packet: bytes) -> IP | IPv6:
    return IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)


@both_versions
@given(
    size=st.integers(1, 1500),
    length=st.integers(1, 9000),
    sequence=st.integers(0, 2**32 - 1),
    identification=st.integers(0, 65535),
    flags=st.sampled_from(["A", "PA", "FPA", "CA", "FPECA"]),
)
@settings(max_examples=60, deadline=None)
def test_segments_are_what_the_kernel_would_send(
    version: int, size: int, length: int, sequence: int, identification: int, flags: str
) -> None:
    """Lengths, identification, sequence number and checksums count up; flags go where they may."""
    size = max(size, length // 60)
    payload = os.urandom(length)
    packet = (
        tcp(payload, sequence, *ENDS[version], flags=flags, id=identification)
        if (version == 4)
        else tcp(payload, sequence, *ENDS[version], flags=flags)
    )
    segments = segments_of(packet, 20 if version == 4 else 40, size)
    assert len(segments) == -(-length // size)
    for number, segment in enumerate(segments):
        assert with_right_sums(segment) == segment
        one, piece = parsed(segment), payload[number * size : (number + 1) * size]
        assert bytes(one[TCP].payload) == piece
        assert one[TCP].seq == (sequence + number * size) % 2**32
        assert len(segment) == HEADERS[version] + len(piece)
        wanted = set(flags)
        if number:
            wanted -= {"C"}
        if number < len(segments) - 1:
            wanted -= {"F", "P"}
        assert set(str(one[TCP].flags)) == wanted
        if version == 4:
            assert one.id == (identification + number) % 65536


def test_segments_keep_ip_options() -> None:
    head = IP(src=NEAR, dst=FAR, options=b"\x94\x04\x00\x00") / TCP(flags="A") / os.urandom(999)
    segments = segments_of(bytes(head), 24, 400)
    assert [len(segment) for segment in segments] == [444, 444, 243]
    assert all(with_right_sums(segment) == segment for segment in segments)


def test_a_narrower_path_makes_smaller_segments() -> None:
    packet = tcp(os.urandom(4000), 1)
    assert max(map(len, segments_of(packet, 20, 1448, limit=1000))) <= 1000


@pytest.mark.parametrize(
    ("packet", "start", "size"),
    [
        (bytes(20), 20, 100),
        (tcp(b"", 1), 20, 100),
        (tcp(b"abc", 1), 20, 0),
        (tcp(b"abc", 1), 0, 100),
        (tcp(b"abc", 1), 65000, 100),
    ],
)
def test_what_is_no_super_packet_is_not_cut(packet: bytes, start: int, size: int) -> None:
    assert plan(memoryview(packet), start, size, 1500) is None


def rows_of(*packets: bytes, pad: bytes = b"\x01\x02\x02") -> tuple[Octets, int]:
    """Opened packets of one length as rows, each with its trailer."""
    plain = [packet + pad + bytes([4 if packet[0] >> 4 == 4 else 41]) for packet in packets]
    stride = (len(plain[0]) + 31) & ~15
    return np.array([list(p.ljust(stride, b"\xee")) for p in plain], np.uint8), len(plain[0])


def flow(count: int, version: int = 4, size: int = 100, **fields: object) -> list[bytes]:
    """Segments of one flow in order, the payload of each being its number."""
    return [tcp(bytes([n]) * size, 1000 + n * size, *ENDS[version], **fields) for n in range(count)]


def shape_of(items: list[Train | int]) -> list[int]:
    """What was found: lengths of trains, 1 for packets that stay alone."""
    return [item.count if isinstance(item, Train) else 1 for item in items]


def joined(packets: list[bytes]) -> list[Train | int]:
    return gather(*rows_of(*packets))


def super_packet(train: Train) -> tuple[tuple[int, ...], bytes]:
    whole = b"".join(bytes(piece) for piece in train.pieces())
    return VNET.unpack(whole[:10]), whole[10:]


@both_versions
@pytest.mark.parametrize("size", [100, 101])
def test_a_flow_in_order_becomes_one_super_packet(version: int, size: int) -> None:
    (train,) = joined(flow(20, version, size))
    assert isinstance(train, Train)
    assert train.octets == 20 * (HEADERS[version] + size)
    vnet, packet = super_packet(train)
    start = 20 if version == 4 else 40
    assert vnet == (1, 1 if version == 4 else 4, HEADERS[version], size, start, 16)
    whole = bytearray(packet)
    assert fill_checksum(memoryview(whole), start, 16)  # what the kernel does with it
    assert with_right_sums(bytes(whole)) == bytes(whole)
    one = parsed(bytes(whole))
    assert len(packet) == (one.len if version == 4 else 40 + one.plen)
    assert bytes(one[TCP].payload) == b"".join(bytes([n]) * size for n in range(20))
    assert one[TCP].seq == 1000


@both_versions
def test_what_was_split_joins_to_the_same(version: int) -> None:
    """Segments go out and come back; the tail and its PSH come along."""
    payload = os.urandom(30 * 700 + 333)
    packet = tcp(payload, 2**32 - 5000, *ENDS[version], flags="PA")
    start = 20 if version == 4 else 40
    *full, tail = segments_of(packet, start, 700)
    (train,) = joined(full)
    assert isinstance(train, Train)
    assert train.take_tail(memoryview(tail))
    assert not train.take_tail(memoryview(tail))
    whole = bytearray(super_packet(train)[1])
    fill_checksum(memoryview(whole), start, 16)
    assert bytes(whole) == with_right_sums(packet)


def changed(packet: bytes, **fields: object) -> bytes:
    """A packet with other TCP or IP fields and right checksums."""
    one = parsed(packet)
    for name, value in fields.items():
        layer = one[TCP] if name in TCP().default_fields else one
        setattr(layer, name, value)
    return with_right_sums(bytes(one))


BREAKS = {
    "ttl": {"ttl": 5},
    "tos": {"tos": 3},
    "acknowledgement": {"ack": 78},
    "window": {"window": 9},
    "sequence gap": {"seq": 5},
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("place", [0, 8, 15])
def test_headers_that_differ_end_a_train(change: dict, place: int) -> None:
    packets = flow(16)
    packets[place] = changed(packets[place], **change)
    expected = [part for part in (place, 1, 15 - place) if part]
    assert shape_of(joined(packets)) == expected


def test_packets_that_may_be_fragmented_are_not_joined_with_those_that_may_not() -> None:
    packets = flow(16)
    one = IP(packets[8])
    one.flags = 0
    packets[8] = with_right_sums(bytes(one))
    assert shape_of(joined(packets)) == [8, 1, 7]


@pytest.mark.parametrize("flags", ["FA", "SA", "RA", "UA", "CA", "SEC"])
def test_segments_with_other_flags_stay_alone(flags: str) -> None:
    packets = flow(12)
    packets[6] = changed(packets[6], flags=flags) if flags else packets[6]
    assert shape_of(joined(packets)) == [6, 1, 5]
    assert shape_of(joined(flow(6, flags=flags))) == [1] * 6


def test_congestion_echo_is_joined_when_all_have_it() -> None:
    assert shape_of(joined(flow(6, flags="EA"))) == [6]
    assert shape_of(joined(flow(5, flags="EA") + flow(10)[5:])) == [5, 5]


def test_push_ends_a_train_and_is_kept() -> None:
    packets = flow(12)
    packets[5] = changed(packets[5], flags="PA")
    first, second = joined(packets)
    assert isinstance(first, Train)
    assert isinstance(second, Train)
    assert (first.count, second.count) == (6, 6)
    assert str(parsed(super_packet(first)[1])[TCP].flags) == "PA"
    assert str(parsed(super_packet(second)[1])[TCP].flags) == "A"
    assert not first.take_tail(memoryview(flow(7)[6]))


@both_versions
@pytest.mark.parametrize("place", [0, 3, 11])
@pytest.mark.parametrize("octet", [-1, -60])
def test_a_wrong_tcp_checksum_keeps_a_segment_out(version: int, place: int, octet: int) -> None:
    """What arrives damaged must leave damaged, not with a fresh checksum."""
    packets = flow(12, version)
    damaged = bytearray(packets[place])
    damaged[octet] ^= 0x55
    packets[place] = bytes(damaged)
    items = joined(packets)
    assert place in items
    assert sum(shape_of(items)) == 12


@pytest.mark.parametrize("place", [0, 7])
def test_a_wrong_header_checksum_keeps_a_segment_out(place: int) -> None:
    packets = flow(12)
    damaged = bytearray(packets[place])
    damaged[10] ^= 1
    packets[place] = bytes(damaged)
    assert place in joined(packets)


def test_a_damaged_tail_is_not_taken() -> None:
    *full, tail = flow(9)
    (train,) = joined(full)
    assert isinstance(train, Train)
    damaged = bytearray(tail)
    damaged[-1] ^= 1
    assert not train.take_tail(memoryview(damaged))
    assert not train.take_tail(memoryview(changed(tail, seq=7)))
    assert not train.take_tail(memoryview(changed(tail, flags="FA")))
    assert not train.take_tail(memoryview(udp(50)))
    assert not train.take_tail(memoryview(b"\x45" + bytes(19)))
    assert train.take_tail(memoryview(tail))


def test_flows_that_alternate_are_told_apart() -> None:
    one, two = flow(8), flow(8, dport=9)
    six = flow(8, 6, 80)  # IPv6 with the same length
    packets = [p for group in zip(one, two, six, strict=True) for p in group]
    items = joined(packets)
    assert shape_of(items) == [8, 8, 8]
    for item, expected in zip(items, (one, two, six), strict=True):
        assert isinstance(item, Train)
        payload = bytes(parsed(super_packet(item)[1])[TCP].payload)
        assert payload == b"".join(bytes(parsed(p)[TCP].payload) for p in expected)


def test_what_is_not_tcp_stays_alone_and_in_order() -> None:
    assert joined([udp(100)] * 9) == list(range(9))
    fragment = bytes(IP(src=NEAR, dst=FAR, proto=6, frag=8) / bytes(132))
    assert joined([fragment] * 9) == list(range(9))
    options = bytes(IP(src=NEAR, dst=FAR, options=b"\1\1\1\1") / TCP(flags="A") / bytes(108))
    assert joined([options] * 9) == list(range(9))
    assert joined(flow(9, size=0)) == list(range(9))
    assert shape_of(joined([udp(124), *flow(8), udp(124)])) == [1, 8, 1]


def test_few_segments_are_not_worth_it() -> None:
    assert joined(flow(JOIN_LEAST - 1)) == list(range(JOIN_LEAST - 1))


def test_a_super_packet_never_exceeds_what_ip_can_say() -> None:
    items = joined(flow(100, size=1348))
    lengths = [len(super_packet(item)[1]) for item in items if isinstance(item, Train)]
    assert max(lengths) <= MAX_TOTAL
    assert sum(shape_of(items)) == 100
    full = joined(flow(48, size=1348))[0]
    assert isinstance(full, Train)
    assert not full.take_tail(memoryview(flow(49, size=1348)[48]))


@pytest.mark.parametrize("pad", [b"\x01\x02\x03", b"\x02\x01\x02", b"\x01\x02\xff"])
def test_wrong_padding_keeps_packets_out(pad: bytes) -> None:
    assert gather(*rows_of(*flow(9), pad=pad)) == list(range(9))


def test_rows_of_nonsense_do_no_harm() -> None:
    rng = random.Random(5)
    for length in (4, 20, 28, 60, 200):
        for _ in range(30):
            start = bytes([rng.choice([0x45, 0x60, rng.randrange(256)])])
            rows = [start + rng.randbytes(length - 1) for _ in range(8)]
            stride = (length + 15) & ~15
            matrix = np.array([list(row.ljust(stride, b"\0")) for row in rows], np.uint8)
            assert gather(matrix, length) == list(range(8))


@pytest.mark.parametrize("payload", [0, 1, 99, 1400])
def test_checksums_left_to_us_are_completed(payload: int) -> None:
    """The kernel leaves the pseudo-header's sum in the field. virtio 1.2 §5.1.6.2."""
    for source, destination in ENDS.values():
        right = udp(payload, source, destination)
        start = len(right) - payload - 8
        length = payload + 8
        pseudo = right[12:20] if start == 20 else right[8:40]
        pseudo += struct.pack(">HH", 17, length)
        total = sum(struct.unpack(f">{len(pseudo) // 2}H", pseudo))
        partial = bytearray(right)
        partial[start + 6 : start + 8] = (total % 0xFFFF).to_bytes(2, "big")
        assert fill_checksum(memoryview(partial), start, 6)
        assert bytes(partial) == right


def test_a_checksum_outside_of_the_packet_is_refused() -> None:
    assert not fill_checksum(memoryview(bytearray(30)), 20, 9)


def test_a_checksum_of_zero_is_written_as_ones() -> None:
    """RFC 768: zero would say that there is none."""
    packet = bytearray(28)
    packet[20:22] = b"\xff\xff"
    assert fill_checksum(memoryview(packet), 20, 6)
    assert packet[26:28] == b"\xff\xff"


@given(size=st.integers(1, 4000), limit=st.integers(68, 1500), first=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_fragments_hold_the_whole_packet(size: int, limit: int, first: int) -> None:
    packet = octets(IP(src=NEAR, dst=FAR, id=7, frag=first) / os.urandom(size))
    pieces = fragments(packet, limit)
    data, place = b"", first
    for number, piece in enumerate(pieces):
        one = IP(bytes(piece))
        assert len(piece) <= limit
        assert with_right_sums(bytes(piece)) == bytes(piece)
        assert one.frag == place
        assert (number < len(pieces) - 1) == one.flags.MF
        data += bytes(piece)[20:]
        place += (len(piece) - 20) // 8
    assert data == packet[20:]


def test_fragments_of_a_fragment_say_that_more_follow() -> None:
    packet = octets(IP(src=NEAR, dst=FAR, flags="MF") / bytes(800))
    assert all(IP(bytes(piece)).flags.MF for piece in fragments(packet, 300))
