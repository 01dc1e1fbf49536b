"""The PROXY protocol, versions 1 and 2: a proxy tells for whom it has connected.

Section numbers are those of HAProxy's proxy-protocol.txt (2020/03/05).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from tunnelwrap.errors import Malformed
from tunnelwrap.path import IpAddress, SocketAddress
from tunnelwrap.wire.reader import Reader

V1_BEGIN: Final = b"PROXY "
V2_BEGIN: Final = b"\r\n\r\n\0\r\nQUIT\n"

MAX_HEADER: Final = 4096
"""Longest header that is taken: our choice; the specification wants one to fit in 536 octets."""

_MAX_LINE: Final = 107  # §2.1, with its end
_LINE: Final = re.compile(rb"PROXY (?:UNKNOWN(?: .*)?|TCP([46]) (\S+) (\S+) (\d+) (\d+))")
_NUMBER: Final = re.compile(rb"0|[1-9][0-9]{0,4}")

_V2_FIXED: Final = 16
_VERSION: Final = 2
_LOCAL, _PROXY = 0, 1
_TCP4, _TCP6 = 0x11, 0x21
# Length of the addresses by their family, and no other family or protocol is known. §2.2
_ADDRESSES: Final = {0: 0, 1: 12, 2: 36, 3: 216}
_PROTOCOLS: Final = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of a connection: who has made it, and what they have connected to."""

    source: SocketAddress
    destination: SocketAddress


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a proxy says.

    Args:
        ends: of the connection it speaks for, IPv4 addresses in IPv6 ones taken out; None: it
            speaks for itself or does not know, and the ends of its own connection count.
        length: how many octets it has said that in.
    """

    ends: Ends | None
    length: int


def decode_header(data: bytes) -> ProxyHeader | None:
    """Read the header that a connection begins with; None: more octets are needed.

    Octets that no header can begin with are refused as soon as they are there. TLVs are skipped.

    Raises:
        Malformed: this is no header, or longer than MAX_HEADER.
    """
    for begin, decode in _DECODERS.items():
        if data.startswith(begin):
            return decode(data)
    if any(begin.startswith(data) for begin in _DECODERS):
        return None
    raise Malformed("neither version of a PROXY header begins like that")


def encode_v1(ends: Ends) -> bytes:
    """The line of version 1. §2.1."""
    source, destination, version = _of_one_version(ends)
    ports = f"{ends.source.port} {ends.destination.port}"
    return f"PROXY TCP{version} {source} {destination} {ports}\r\n".encode()


def encode_v2(ends: Ends) -> bytes:
    """The header of version 2, without TLVs. §2.2."""
    source, destination, version = _of_one_version(ends)
    body = source.packed + destination.packed
    body += b"".join(end.port.to_bytes(2, "big") for end in (ends.source, ends.destination))
    kind = _TCP4 if version == 4 else _TCP6
    return V2_BEGIN + bytes([_VERSION << 4 | _PROXY, kind]) + len(body).to_bytes(2, "big") + body


def _of_one_version(ends: Ends) -> tuple[IpAddress, IpAddress, int]:
    """Both addresses as the one family that the header has; IPv4 in IPv6 if they differ."""
    source, destination = ends.source.ip, ends.destination.ip
    if source.version == destination.version:
        return source, destination, source.version
    return _mapped(source), _mapped(destination), 6


def _mapped(ip: IpAddress) -> IPv6Address:
    return IPv6Address(bytes(10) + b"\xff\xff" + ip.packed) if ip.version == 4 else IPv6Address(ip)


def _plain(ip: IpAddress) -> IpAddress:
    """An IPv4 address in an IPv6 one is the former: proxies that listen on both show it so."""
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


# --- version 1 -------------------------------------------------------------------------------


def _decode_v1(data: bytes) -> ProxyHeader | None:
    line, end, _ = data[:_MAX_LINE].partition(b"\r\n")
    if b"\n" in line or b"\r" in line[:-1] or (not end and len(line) == _MAX_LINE):
        raise Malformed("a PROXY line without its end")
    if not end:
        return None
    found = _LINE.fullmatch(line)
    if found is None:
        raise Malformed("a malformed PROXY line")
    return ProxyHeader(_ends_in(found) if found[1] else None, len(line) + len(end))


def _ends_in(line: re.Match[bytes]) -> Ends:
    is_ipv4 = line[1] == b"4"
    try:
        addresses = [
            IPv4Address(_text(t)) if is_ipv4 else IPv6Address(_text(t)) for t in line.group(2, 3)
        ]
    except ValueError:
        raise Malformed("no address in a PROXY line") from None
    ports = [int(text) for text in line.group(4, 5) if _NUMBER.fullmatch(text)]
    if len(ports) != 2 or max(ports) > 65535:
        raise Malformed("no port in a PROXY line")
    source, destination = (
        SocketAddress(_plain(ip), port) for ip, port in zip(addresses, ports, strict=True)
    )
    return Ends(source, destination)


def _text(octets: bytes) -> str:
    """The text of an address; ValueError if it is none, or has a scope, which is the proxy's."""
    if b"%" in octets:
        raise ValueError
    return octets.decode("ascii")


# --- version 2 -------------------------------------------------------------------------------


def _decode_v2(data: bytes) -> ProxyHeader | None:
    """Layout: signature | u4 version | u4 command | u4 family | u4 protocol | u16 length | rest."""
    at = len(V2_BEGIN)
    if data[at : at + 1] not in (b"", b"\x20", b"\x21"):
        raise Malformed(f"PROXY version and command {data[at]:#04x}", at)
    if len(data) < _V2_FIXED:
        return None
    head = Reader(data, at)
    is_proxied, kind, length = head.u8() & 0xF == _PROXY, head.u8(), head.u16()
    if _V2_FIXED + length > MAX_HEADER:
        raise Malformed(f"PROXY header of {_V2_FIXED + length} octets, at most {MAX_HEADER}", at)
    if is_proxied:
        _check_kind(kind, length)
    if len(data) < _V2_FIXED + length:
        return None
    body = head.sub(length)
    return ProxyHeader(_ends_of(kind, body) if is_proxied else None, _V2_FIXED + length)


def _check_kind(kind: int, length: int) -> None:
    family, protocol = kind >> 4, kind & 0xF
    if family not in _ADDRESSES or protocol not in _PROTOCOLS:
        raise Malformed(f"PROXY family and protocol {kind:#04x}", 13)
    if protocol and length < _ADDRESSES[family]:
        raise Malformed(f"{length} octets of PROXY addresses, {_ADDRESSES[family]} wanted", 14)


def _ends_of(kind: int, body: Reader) -> Ends | None:
    """The ends of a TCP connection; of all else nothing that we know."""
    source: IpAddress
    destination: IpAddress
    if kind == _TCP4:
        source, destination = IPv4Address(body.take(4)), IPv4Address(body.take(4))
    elif kind == _TCP6:
        source, destination = IPv6Address(body.take(16)), IPv6Address(body.take(16))
    else:
        return None
    ports = body.u16(), body.u16()
    return Ends(
        SocketAddress(_plain(source), ports[0]), SocketAddress(_plain(destination), ports[1])
    )


_DECODERS: Final[dict[bytes, Callable[[bytes], ProxyHeader | None]]] = {
    V1_BEGIN: _decode_v1,
    V2_BEGIN: _decode_v2,
}
