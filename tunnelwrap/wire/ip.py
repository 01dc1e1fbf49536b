"""Just enough of IPv4, IPv6 and what they carry to match a selector, clamp an MSS, refuse a size.

Packets are inner packets: they come from a TUN or out of an SA. Nothing here trusts their fields.
"""

from struct import Struct
from typing import Final, NamedTuple

from tunnelwrap.errors import Malformed, Truncated, WireError
from tunnelwrap.path import IpAddress

ICMP: Final = 1
TCP: Final = 6
ICMPV6: Final = 58

_PROTOCOLS_WITH_PORTS: Final = frozenset({TCP, 17, 33, 132, 136})  # UDP, DCCP, SCTP, UDP-Lite
_FRAGMENT: Final = 44
# RFC 4301 §4.4.1.1: these are passed over; AH, ESP and the mobility header are protocols.
_EXTENSION_HEADERS: Final = frozenset({0, 43, _FRAGMENT, 60})

_V4 = Struct("!BxHHHBBHII")  # version and IHL, length, ID, fragment, TTL, protocol, sum, addresses
_V6 = Struct("!IHBBQQQQ")  # version and flow, length, next header, hop limit, addresses
_PORTS = Struct("!HH")
_U16 = Struct("!H")
_V4_LENGTH: Final = 20
_V6_LENGTH: Final = 40
_FRAGMENT_OFFSET_V4: Final = 0x1FFF
_FRAGMENT_OFFSET_V6: Final = 0xFFF8

_TCP_LENGTH: Final = 20
_SYN: Final = 0x02
_OPTION_END: Final = 0
_OPTION_NOP: Final = 1
_OPTION_MSS: Final = 2

# RFC 1812 §4.3.2.3: a router's ICMP message stays within 576 octets; RFC 4443 §2.4 (c): 1280.
_LARGEST_ANSWER_V4: Final = 576
_LARGEST_ANSWER_V6: Final = 1280
_ANSWER_TTL: Final = 64
_INTERNETWORK_CONTROL: Final = 0xC0  # RFC 1812 §4.3.2.5
_DONT_FRAGMENT: Final = 0x4000
_ICMP_HEADER = Struct("!BBHI")  # type, code, checksum, MTU
_ICMP_QUERIES: Final = frozenset({0, 8, *range(9, 11), *range(13, 19), *range(42, 44)})
_REDIRECT_V6: Final = 137


class _Upper(NamedTuple):
    """Where the protocol above IP begins."""

    protocol: int
    offset: int
    is_later_fragment: bool


def flow_of(packet: memoryview) -> tuple[int, int, int, int, int, int]:
    """Version, protocol, source, destination, source port and destination port of a packet.

    Addresses are numbers. ICMP has type and code, one octet each, in the destination port; the
    ports are 0 where the protocol has none and in every fragment but the first (OPAQUE).
    RFC 4301 §4.4.1.1.

    Raises:
        WireError: it is no IP packet, or ends before its ports.
    """
    version = _version_of(packet)
    if version == 4:
        upper = _upper_v4(packet)
        *_, source, destination = _V4.unpack_from(packet)
    else:
        upper = _upper_v6(packet)
        *_, s_high, s_low, d_high, d_low = _V6.unpack_from(packet)
        source, destination = s_high << 64 | s_low, d_high << 64 | d_low
    source_port, destination_port = _ports(packet, version, upper)
    return version, upper.protocol, source, destination, source_port, destination_port


def checksum(data: bytes | bytearray | memoryview) -> int:
    """The Internet checksum of octets. RFC 1071; 0 for octets that hold a right one."""
    # 2^16 is 1 modulo 0xFFFF: the whole as one number leaves what its words added up leave.
    number = int.from_bytes(data, "big") << (8 if len(data) & 1 else 0)
    return 0xFFFF - (number % 0xFFFF or 0xFFFF) if number else 0xFFFF


def clamp_mss(packet: bytearray | memoryview, mss_v4: int, mss_v6: int) -> bool:
    """Lower the MSS option of a TCP SYN in place, its checksum too; False: nothing changed.

    RFC 9293 §3.7.1. Whatever is no whole SYN stays as it is.

    Args:
        packet: writable.
        mss_v4: the most that an IPv4 packet may announce; less than 1 changes nothing.
        mss_v6: the same for IPv6.
    """
    try:
        limit = mss_v4 if _version_of(packet) == 4 else mss_v6
        upper = _upper(packet)
        place = _mss_place(packet, upper)
    except WireError:
        return False
    if place is None or not 0 < limit < (mss := _U16.unpack_from(packet, place)[0]):
        return False
    _U16.pack_into(packet, place, limit)
    # RFC 1624: the sum changes as its words do; an octet at an odd place weighs as a low one.
    weight = 256 if (place - upper.offset) & 1 else 1
    sum_place = upper.offset + 16
    total = 0xFFFF - _U16.unpack_from(packet, sum_place)[0] + (limit - mss) * weight
    _U16.pack_into(packet, sum_place, 0xFFFF - (total % 0xFFFF or 0xFFFF))
    return True


def too_big(packet: memoryview, mtu: int, source: IpAddress) -> bytes | None:
    """The ICMP message that tells a packet's sender what fits; None: it must not be told.

    "Fragmentation needed" (RFC 792, RFC 1191) or "packet too big" (RFC 4443 §3.2). Not told is
    who sent an ICMP error, a later fragment, or a packet from or to no single IPv4 host (RFC 1812
    §4.3.2.7), or from no single IPv6 host (RFC 4443 §2.4 (e)).

    Args:
        packet: what does not fit; for IPv4 one that may not be fragmented.
        mtu: octets that fit.
        source: who answers, an address of the packet's version.
    """
    try:
        version, protocol, sender, target, _, port = flow_of(packet)
        is_later_fragment = _upper(packet).is_later_fragment
    except WireError:
        return None
    if source.version != version or is_later_fragment:
        return None
    if version == 4:
        is_error = protocol == ICMP and port >> 8 not in _ICMP_QUERIES
        if is_error or not (_is_host_v4(sender) and _is_host_v4(target)):
            return None
        return _fragmentation_needed(packet, mtu, source, sender)
    is_error = protocol == ICMPV6 and (port >> 8 < 128 or port >> 8 == _REDIRECT_V6)
    if is_error or sender in (0, 1) or sender >> 120 == 0xFF:
        return None
    return _packet_too_big(packet, mtu, source, sender)


def _version_of(packet: bytearray | memoryview) -> int:
    if not packet:
        raise Truncated("empty IP packet")
    version = packet[0] >> 4
    if version not in (4, 6):
        raise Malformed(f"IP version {version}")
    return version


def _upper(packet: bytearray | memoryview) -> _Upper:
    return _upper_v4(packet) if packet[0] >> 4 == 4 else _upper_v6(packet)


def _upper_v4(packet: bytearray | memoryview) -> _Upper:
    if len(packet) < _V4_LENGTH:
        raise Truncated(f"IPv4 packet of {len(packet)} octets", len(packet))
    length = (packet[0] & 0x0F) * 4
    if not _V4_LENGTH <= length <= len(packet):
        raise Malformed(f"IPv4 header of {length} octets")
    fragment = _U16.unpack_from(packet, 6)[0]
    return _Upper(packet[9], length, bool(fragment & _FRAGMENT_OFFSET_V4))


def _upper_v6(packet: bytearray | memoryview) -> _Upper:
    """Pass over extension headers. RFC 8200 §4."""
    size = len(packet)
    if size < _V6_LENGTH:
        raise Truncated(f"IPv6 packet of {size} octets", size)
    protocol, offset, is_later_fragment = packet[6], _V6_LENGTH, False
    while protocol in _EXTENSION_HEADERS and not is_later_fragment:
        if size < offset + 8:
            raise Truncated(f"IPv6 extension header {protocol} at the end", offset)
        length = (packet[offset + 1] + 1) * 8
        if protocol == _FRAGMENT:
            is_later_fragment = bool(_U16.unpack_from(packet, offset + 2)[0] & _FRAGMENT_OFFSET_V6)
            length = 8
        protocol = packet[offset]
        offset += length
    return _Upper(protocol, offset, is_later_fragment)


def _ports(packet: memoryview, version: int, upper: _Upper) -> tuple[int, int]:
    protocol, offset, is_later_fragment = upper
    if is_later_fragment:
        return 0, 0
    is_icmp = protocol == (ICMP if version == 4 else ICMPV6)
    if not is_icmp and protocol not in _PROTOCOLS_WITH_PORTS:
        return 0, 0
    if len(packet) < offset + 4:
        raise Truncated(f"protocol {protocol} without its ports", len(packet))
    first, second = _PORTS.unpack_from(packet, offset)
    return (0, first) if is_icmp else (first, second)


def _mss_place(packet: bytearray | memoryview, upper: _Upper) -> int | None:
    """Where the value of the MSS option stands, in a SYN that has one. RFC 9293 §3.1, §3.2."""
    protocol, start, is_later_fragment = upper
    if protocol != TCP or is_later_fragment or len(packet) < start + _TCP_LENGTH:
        return None
    end = start + (packet[start + 12] >> 4) * 4
    if not packet[start + 13] & _SYN or end > len(packet):
        return None
    at = start + _TCP_LENGTH
    while at + 4 <= end and packet[at] != _OPTION_END:
        if packet[at] == _OPTION_MSS:
            return at + 2 if packet[at + 1] == 4 else None
        at += 1 if packet[at] == _OPTION_NOP else max(packet[at + 1], 2)
    return None


def _is_host_v4(address: int) -> bool:
    """Neither of 0/8 and 127/8, nor multicast, reserved or broadcast."""
    return address >> 24 not in (0, 127) and address >> 28 < 0xE


def _fragmentation_needed(packet: memoryview, mtu: int, source: IpAddress, target: int) -> bytes:
    original = packet[: _LARGEST_ANSWER_V4 - _V4_LENGTH - _ICMP_HEADER.size]
    body = _ICMP_HEADER.pack(3, 4, 0, min(mtu, 0xFFFF)) + original
    body = body[:2] + _U16.pack(checksum(body)) + body[4:]
    length = _V4_LENGTH + len(body)
    fields = (length, 0, _DONT_FRAGMENT, _ANSWER_TTL, ICMP, 0, int(source), target)
    header = bytearray(_V4.pack(0x45, *fields))
    header[1] = _INTERNETWORK_CONTROL
    _U16.pack_into(header, 10, checksum(header))
    return bytes(header) + body


def _packet_too_big(packet: memoryview, mtu: int, source: IpAddress, target: int) -> bytes:
    original = packet[: _LARGEST_ANSWER_V6 - _V6_LENGTH - _ICMP_HEADER.size]
    body = _ICMP_HEADER.pack(2, 0, 0, mtu) + original
    addresses = source.packed + target.to_bytes(16, "big")
    pseudo_header = addresses + len(body).to_bytes(4, "big") + bytes([0, 0, 0, ICMPV6])
    body = body[:2] + _U16.pack(checksum(pseudo_header + body)) + body[4:]
    header = bytes([0x60, 0, 0, 0]) + _U16.pack(len(body)) + bytes([ICMPV6, _ANSWER_TTL])
    return header + addresses + body
