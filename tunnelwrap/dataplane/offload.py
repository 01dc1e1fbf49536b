"""TCP super-packets: split what the TUN gives, join what it is to get; inner fragmentation.

What the kernel does in GSO and GRO, for a whole train at once: segments stand as rows of a
matrix, headers are compared and written by column, and numpy sums all payloads in one call.
One's complement sums do not care about byte order (RFC 1071 §2), so they are made in the host's.
"""

import sys
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunnelwrap.dataplane.esp import IPV4, IPV6, PADDING
from tunnelwrap.dataplane.tun import GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VNET_LAYOUT

Octets = NDArray[np.uint8]
Sums = NDArray[np.int64]
Flags = NDArray[np.bool_]

JOIN_LEAST: Final = 4
"""Fewer segments than that are written faster one by one."""

MAX_TOTAL: Final = 65535
"""Longest IP packet; also where a super-packet ends."""

_TCP: Final = 6
_UDP: Final = 17
_FIN_PSH: Final = 0x09
_PSH: Final = 0x08
_ACK: Final = 0x10
_ECE: Final = 0x40
_CWR: Final = 0x80
_PLAIN: Final = ~(_PSH | _ECE) & 0xFF
"""Flags of which a segment that is joined has none but ACK."""


class Cut(NamedTuple):
    """How a super-packet is cut: full segments of ``length``, then one of ``tail``."""

    tcp: int  # where the TCP header begins
    header: int  # length of both headers
    size: int  # payload octets of a full segment
    segments: int
    length: int  # of a full segment as an IP packet
    tail: int  # length of the last one when it is shorter, else 0


class Place(NamedTuple):
    """Where segments go: slots of one length, each with room before the packet."""

    offset: int  # of the first slot
    head: int  # from the start of a slot to the packet
    slot: int  # length of a slot of a full segment


def plan(packet: memoryview, tcp: int, size: int, limit: int) -> Cut | None:
    """How to cut a TCP super-packet; None: it is not one.

    Args:
        packet: with IP header.
        tcp: where its TCP header begins.
        size: payload octets of a segment, as the kernel wishes.
        limit: longest segment, as an IP packet, that can be carried: cut smaller if need be.
    """
    if tcp < 20 or len(packet) < tcp + 20:
        return None
    header = tcp + (packet[tcp + 12] >> 4) * 4
    payload = len(packet) - header
    size = min(size, (limit - header) & ~1)
    if size <= 0 or payload <= 0:
        return None
    count, rest = divmod(payload, size)
    return Cut(tcp, header, size, count, header + size, header + rest if rest else 0)


def split(packet: memoryview, cut: Cut, arena: Octets, place: Place) -> None:
    """Write the segments of a super-packet into consecutive slots. RFC 9293 §3.1, RFC 791.

    As the kernel's tcp_gso_segment: identification and sequence number count up, FIN and PSH
    stay on the last segment, CWR on the first.
    """
    source = np.frombuffer(packet, np.uint8)
    whole = cut.segments * cut.size
    if cut.segments:
        body = source[cut.header : cut.header + whole].reshape(cut.segments, cut.size)
        slots = arena[place.offset : place.offset + cut.segments * place.slot]
        rows = slots.reshape(cut.segments, place.slot)[:, place.head :]
        _write_segments(source, cut, rows, body, 0)
    if cut.tail:
        body = source[cut.header + whole :].reshape(1, -1)
        start = place.offset + cut.segments * place.slot + place.head
        rows = arena[start : start + cut.tail].reshape(1, -1)
        _write_segments(source, cut, rows, body, cut.segments)


def fill_checksum(packet: memoryview, start: int, offset: int) -> bool:
    """Complete a checksum that the kernel left to us: the field holds the pseudo-header's sum.

    Returns:
        False if the field lies outside of the packet.
    """
    field = start + offset
    if field + 2 > len(packet):
        return False
    checksum = 0xFFFF - _sum(packet[start:]) or 0xFFFF  # RFC 768: 0 would mean there is none
    packet[field : field + 2] = checksum.to_bytes(2, "big")
    return True


def fragments(packet: memoryview, limit: int) -> list[memoryview]:
    """Cut an IPv4 packet into fragments of at most ``limit`` octets. RFC 791 §3.2."""
    header = bytearray(packet[: (packet[0] & 15) * 4])
    step = max((limit - len(header)) & ~7, 8)
    place = int.from_bytes(header[6:8], "big")
    found: list[memoryview] = []
    for start in range(len(header), len(packet), step):
        piece = packet[start : start + step]
        more = start + step < len(packet)
        header[2:4] = (len(header) + len(piece)).to_bytes(2, "big")
        header[6:8] = (place + (start - len(header)) // 8 | more << 13).to_bytes(2, "big")
        header[10:12] = bytes(2)
        header[10:12] = (0xFFFF - _sum(header)).to_bytes(2, "big")
        found.append(memoryview(bytes(header) + piece))
    return found


class Train:
    """TCP segments of one flow that are to be written as one super-packet."""

    __slots__ = ("_body", "_key", "_pushes", "_sequence", "_shape", "_tail", "count", "first")

    def __init__(self, rows: Octets, shape: "_Shape") -> None:
        """Join rows that ``gather`` found to follow each other."""
        self._shape = shape
        self.first = memoryview(rows[0, : shape.total].tobytes())
        self.count = len(rows)
        self._body = np.ascontiguousarray(rows[:, shape.header : shape.total])
        self._tail: memoryview | None = None
        self._pushes = bool(rows[-1, shape.tcp + 13] & _PSH)
        self._key = shape.key(self.first)
        self._sequence = shape.sequence(self.first) + self._body.size & 0xFFFF_FFFF

    @property
    def octets(self) -> int:
        """Length of its segments as separate packets, without the tail."""
        return self.count * self._shape.total

    def take_tail(self, packet: memoryview) -> bool:
        """Append the next, last and perhaps shorter segment; False: it does not belong here."""
        shape = self._shape
        size = len(packet) - shape.header
        if self._pushes or self._tail is not None or not 0 < size <= shape.size:
            return False
        if shape.key(packet) != self._key or shape.sequence(packet) != self._sequence:
            return False
        if shape.header + self._body.size + size > MAX_TOTAL or not shape.has_good_sums(packet):
            return False
        self._tail = packet
        self._pushes = bool(packet[shape.tcp + 13] & _PSH)
        return True

    def pieces(self) -> list[bytes | memoryview]:
        """The super-packet with its virtio-net header, for one write."""
        shape = self._shape
        body: list[memoryview] = [self._body.data]
        size = self._body.size
        if self._tail is not None:
            body.append(self._tail[shape.header :])
            size += len(self._tail) - shape.header
        header = shape.joined_header(self.first, size, pushes=self._pushes)
        kind = GSO_TCPV4 if shape.version == 4 else GSO_TCPV6
        vnet = VNET_LAYOUT.pack(NEEDS_CSUM, kind, shape.header, shape.size, shape.tcp, 16)
        return [vnet + header, *body]


class _Shape:
    """Where things stand in the TCP segments of one flow, and what may differ between them."""

    __slots__ = ("_fixed", "_kept", "_mask", "header", "size", "tcp", "total", "version")

    def __init__(self, version: int, tcp_header: int, total: int) -> None:
        self.version = version
        self.tcp = tcp = 20 if version == 4 else 40
        self.header = tcp + tcp_header
        self.total = total
        self.size = total - self.header
        # columns that give the shape: version, length, fragmentation, protocol, data offset
        self._fixed = [0, 2, 3, 6, 7, 9, tcp + 12] if version == 4 else [0, 4, 5, 6, tcp + 12]
        # what neighbours have in common: all but identification, sequence number, sums, PSH
        mask = np.full(self.header, 0xFF, np.uint8)
        mask[[4, 5, 10, 11] if version == 4 else []] = 0
        mask[[*range(tcp + 4, tcp + 8), tcp + 16, tcp + 17]] = 0
        mask[tcp + 13] = ~_PSH & 0xFF
        self._mask = mask
        # the same but lengths, for one number made of the header of a packet
        kept = mask.copy()
        kept[[2, 3] if version == 4 else [4, 5]] = 0
        self._kept = int.from_bytes(kept.tobytes(), "big")

    @property
    def most(self) -> int:
        """How many segments a super-packet can hold."""
        return (MAX_TOTAL - self.header) // self.size

    def is_one_train(self, rows: Octets, length: int) -> bool:
        """Whether all rows are one train: the quick answer where bulk traffic comes in order."""
        if rows[0, self.tcp + 13] & _PLAIN != _ACK:
            return False
        change = rows[1:, : self.header] ^ rows[0, : self.header]
        change &= self._mask
        if np.count_nonzero(change) or np.count_nonzero(rows[:-1, self.tcp + 13] & _PSH):
            return False
        if np.count_nonzero(rows[1:, self.total : length] != rows[0, self.total : length]):
            return False
        if np.count_nonzero(np.diff(self.sequences(rows)) != self.size):
            return False
        return not np.count_nonzero(~self.good_sums(rows))

    def usable(self, rows: Octets, length: int) -> Flags:
        """Whether a row has this shape, flags that may be joined, and right checksums."""
        columns = [*self._fixed, *range(self.total, length)]
        unlike = _any(rows[:, columns] ^ rows[0, columns])
        unlike |= rows[:, self.tcp + 13] & _PLAIN != _ACK
        return ~unlike & self.good_sums(rows)

    def differ(self, rows: Octets) -> Flags:
        """Whether the headers of neighbours differ where they may not."""
        change = (rows[1:, : self.header] ^ rows[:-1, : self.header]) & self._mask
        return _any(change)

    def key(self, packet: memoryview) -> int:
        """The header of one packet without what may differ."""
        return int.from_bytes(packet[: self.header], "big") & self._kept

    def sequence(self, packet: memoryview) -> int:
        """TCP sequence number of one packet."""
        return int.from_bytes(packet[self.tcp + 4 : self.tcp + 8], "big")

    def sequences(self, rows: Octets) -> NDArray[np.uint32]:
        """TCP sequence numbers of all rows."""
        raw = rows[:, self.tcp + 4 : self.tcp + 8].copy()
        return raw.view(">u4").ravel().astype(np.uint32)

    def good_sums(self, rows: Octets) -> Flags:
        """Whether IPv4 header and TCP checksum are right, for each row. RFC 1071 §1."""
        start = 12 if self.version == 4 else 8  # from the addresses on
        pseudo = _native(_TCP + self.total - self.tcp)
        good: Flags = (_sums(rows[:, start : self.total]) + pseudo) % 0xFFFF == 0
        if self.version == 4:
            good &= _sums(rows[:, :20]) % 0xFFFF == 0
        return good

    def has_good_sums(self, packet: memoryview) -> bool:
        """The same for one packet, whose length may be another."""
        if self.version == 4 and _sum(packet[:20]) != 0xFFFF:
            return False
        addresses = packet[12 if self.version == 4 else 8 :]
        return _add(_sum(addresses), _TCP + len(packet) - self.tcp) == 0xFFFF

    def joined_header(self, first: memoryview, size: int, *, pushes: bool) -> bytes:
        """The header of the super-packet, its TCP checksum left to the kernel."""
        header, tcp = bytearray(first[: self.header]), self.tcp
        if pushes:
            header[tcp + 13] |= _PSH
        if self.version == 4:
            header[2:4] = (self.header + size).to_bytes(2, "big")
            header[10:12] = bytes(2)
            header[10:12] = (0xFFFF - _sum(header[:20])).to_bytes(2, "big")
            addresses = header[12:20]
        else:
            header[4:6] = (self.header - 40 + size).to_bytes(2, "big")
            addresses = header[8:40]
        pseudo = _add(_sum(addresses), _TCP + self.header - tcp + size)
        header[tcp + 16 : tcp + 18] = pseudo.to_bytes(2, "big")
        return bytes(header)


def gather(rows: Octets, length: int) -> list[Train | int]:
    """Find the trains among opened packets of one length.

    The rules of GRO: TCP with nothing but ACK set (PSH on the last; ECE on all or none), same
    headers, sequence numbers without a gap, right checksums; order within a flow is kept.

    Args:
        rows: one plaintext in each row: IP packet, padding, pad length, next header.
        length: of the plaintexts; the rows may be longer.

    Returns:
        Trains, and the numbers of the rows that stay alone, in order of their first row.
    """
    if len(rows) < JOIN_LEAST:
        return list(range(len(rows)))
    shape = _shape_of(rows[0], length)
    if shape is not None and len(rows) <= shape.most and shape.is_one_train(rows, length):
        return [Train(rows, shape)]
    return _gather_flows(rows, length)


def _gather_flows(rows: Octets, length: int) -> list[Train | int]:
    """Find trains where flows are mixed, or one is not in order."""
    found: dict[int, Train | int] = {number: number for number in range(len(rows))}
    for numbers in _flows(rows):
        shape = _shape_of(rows[numbers[0]], length)
        if shape is None:
            continue
        flow = rows if len(numbers) == len(rows) else rows[numbers]
        for start, stop in _trains_of(flow, shape, length):
            for number in numbers[start:stop]:
                del found[number]
            found[numbers[start]] = Train(flow[start:stop], shape)
    return [found[number] for number in sorted(found)]


def _flows(rows: Octets) -> list[list[int]]:
    """Numbers of the rows of each TCP flow that has enough of them."""
    kind = rows[:, 0]
    version_4: Flags = (kind == 0x45) & (rows[:, 9] == _TCP)
    version_6: Flags = (kind >> 4 == 6) & (rows[:, 6] == _TCP)
    flows: dict[bytes, list[int]] = {}
    for mine, columns in ((version_4, slice(12, 24)), (version_6, slice(8, 44))):
        for number in np.flatnonzero(mine).tolist():
            flows.setdefault(rows[number, columns].tobytes(), []).append(number)
    return [numbers for numbers in flows.values() if len(numbers) >= JOIN_LEAST]


def _shape_of(row: Octets, length: int) -> _Shape | None:
    """The shape of a plaintext, if it is one that can be joined."""
    packet = row[:length].tobytes()
    version, pad = packet[0] >> 4, packet[-2]
    if length < 42:
        return None
    if packet[0] == 0x45 and packet[9] == _TCP and not (packet[6] & 0x3F or packet[7]):
        tcp, total = 20, int.from_bytes(packet[2:4], "big")
    elif version == 6 and packet[6] == _TCP:
        tcp, total = 40, 40 + int.from_bytes(packet[4:6], "big")
    else:
        return None
    end = length - 2 - pad
    trailer = PADDING[:pad] + bytes((pad, IPV4 if version == 4 else IPV6))
    if not tcp + 20 <= total <= end or packet[end:] != trailer:
        return None
    tcp_header = (packet[tcp + 12] >> 4) * 4
    if tcp_header < 20 or tcp + tcp_header >= total:
        return None
    return _Shape(version, tcp_header, total)


def _trains_of(rows: Octets, shape: _Shape, length: int) -> list[tuple[int, int]]:
    """Begin and end of each train among the rows of one flow."""
    usable = shape.usable(rows, length)
    step = np.diff(shape.sequences(rows)) == shape.size
    pushes = (rows[:-1, shape.tcp + 13] & _PSH) != 0
    linked = usable[:-1] & usable[1:] & step & ~pushes & ~shape.differ(rows)
    most = shape.most
    edges = [0, *(np.flatnonzero(~linked) + 1).tolist(), len(rows)]
    return [
        (start, min(start + most, end))
        for begin, end in pairwise(edges)
        for start in range(begin, end, most)
        if min(start + most, end) - start >= JOIN_LEAST
    ]


def _write_segments(source: Octets, cut: Cut, rows: Octets, body: Octets, number: int) -> None:
    """Write segments of one length, of which the first is the ``number``-th of its train."""
    tcp, end = cut.tcp, cut.header
    header = bytearray(source[:end])
    flags = header[tcp + 13]
    first_sequence = int.from_bytes(header[tcp + 4 : tcp + 8], "big")
    _clear(header, tcp, end + body.shape[1])
    numbers = np.arange(number, number + len(body), dtype=np.uint32)
    raw = (numbers * np.uint32(cut.size) + np.uint32(first_sequence)).astype(">u4").view(np.uint8)
    sequences = raw.reshape(-1, 4)
    sums = _sums(body) + _sums(sequences) + _native(_pseudo_and_tcp(header, tcp, body.shape[1]))
    rows[:, :end] = np.frombuffer(header, np.uint8)
    rows[:, end : end + body.shape[1]] = body
    rows[:, tcp + 4 : tcp + 8] = sequences
    if number == 0 and flags & _CWR:
        rows[0, tcp + 13] |= _CWR
        sums[0] += _native(_CWR)
    if number + len(body) == cut.segments + (cut.tail > 0):
        rows[-1, tcp + 13] |= flags & _FIN_PSH
        sums[-1] += _native(flags & _FIN_PSH)
    rows[:, tcp + 16 : tcp + 18] = _complement(sums)
    if header[0] >> 4 == 4:
        _number_packets(header[: (header[0] & 15) * 4], rows, numbers)


def _clear(header: bytearray, tcp: int, total: int) -> None:
    """Set the lengths of a segment, and to zero what differs from segment to segment."""
    header[tcp + 13] &= ~(_FIN_PSH | _CWR) & 0xFF
    header[tcp + 4 : tcp + 8] = bytes(4)
    header[tcp + 16 : tcp + 18] = bytes(2)
    if header[0] >> 4 == 4:
        header[2:4] = total.to_bytes(2, "big")
        header[10:12] = bytes(2)
    else:
        header[4:6] = (total - 40).to_bytes(2, "big")


def _pseudo_and_tcp(header: bytearray, tcp: int, size: int) -> int:
    """Sum of the pseudo-header and of a TCP header before ``size`` octets of payload."""
    addresses = header[12:20] if header[0] >> 4 == 4 else header[8:40]
    return _add(_sum(addresses + header[tcp:]), _TCP + len(header) - tcp + size)


def _number_packets(header: bytearray, rows: Octets, numbers: NDArray[np.uint32]) -> None:
    """Write identification, counting up, and header checksum of IPv4. RFC 791 §3.1."""
    first = int.from_bytes(header[4:6], "big")
    header[4:6] = bytes(2)
    raw = (numbers + np.uint32(first)).astype(">u2").view(np.uint8)
    identifications = raw.reshape(-1, 2)
    rows[:, 4:6] = identifications
    rows[:, 10:12] = _complement(_sums(identifications) + _native(_sum(header)))


def _any(rows: Octets) -> Flags:
    """Whether a row has an octet that is not 0."""
    found: Flags = np.logical_or.reduce(rows, axis=1)
    return found


def _sums(rows: Octets) -> Sums:
    """Sums of the 16-bit words of each row, in the host's byte order."""
    width = rows.shape[1]
    words = rows[:, : width & ~1].view(np.uint16)
    sums: Sums = np.add.reduce(words, axis=1, dtype=np.uint32).astype(np.int64)
    if width & 1:
        sums += rows[:, -1].astype(np.int64) * _native(0x100)
    return sums


def _complement(sums: Sums) -> Octets:
    """Checksums as they stand in the packet, one in each row. RFC 1071 §1.

    2^16 is 1 modulo 65535: the remainder of a sum is what folding its carries would give.
    """
    return (-sums % 0xFFFF).astype(np.uint16).view(np.uint8).reshape(-1, 2)


def _native(value: int) -> int:
    """A 16-bit word that stands in a packet, as the host reads it."""
    return int.from_bytes(value.to_bytes(2, "big"), sys.byteorder)


def _sum(octets: bytes | bytearray | memoryview) -> int:
    """One's complement sum of a few octets in network byte order; never 0. RFC 1071 §1."""
    number = int.from_bytes(octets, "big")
    if len(octets) & 1:
        number <<= 8
    return number % 0xFFFF or 0xFFFF


def _add(total: int, value: int) -> int:
    """One's complement sum of two numbers."""
    return (total + value) % 0xFFFF or 0xFFFF
