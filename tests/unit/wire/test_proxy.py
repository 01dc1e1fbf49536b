"""The PROXY protocol: headers written by hand from the specification's text (2020/03/05)."""

from ipaddress import ip_address

import pytest

from tunnelwrap.errors import Malformed
from tunnelwrap.path import SocketAddress
from tunnelwrap.wire.proxy import (
    MAX_HEADER,
    V2_BEGIN,
    Ends,
    ProxyHeader,
    decode_header,
    encode_v1,
    encode_v2,
)

SIGNATURE = bytes.fromhex("0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A")


def ends(source: str, source_port: int, destination: str, destination_port: int) -> Ends:
    return Ends(
        SocketAddress(ip_address(source), source_port),
        SocketAddress(ip_address(destination), destination_port),
    )


LONGEST4 = ends("255.255.255.255", 65535, "255.255.255.255", 65535)
LONGEST6 = ends(*("ffff:" * 7 + "ffff", 65535) * 2)
EXAMPLE = ends("192.168.0.1", 56324, "192.168.0.11", 443)

V1 = {
    # §2.1: the example, the longest lines, the shortest, the longest of an unknown connection
    b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n": EXAMPLE,
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": LONGEST4,
    b"PROXY TCP6 " + (b"ffff:" * 7 + b"ffff ") * 2 + b"65535 65535\r\n": LONGEST6,
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN " + (b"ffff:" * 7 + b"ffff ") * 2 + b"65535 65535\r\n": None,
    b"PROXY UNKNOWN \xff\0 anything\r\n": None,
    b"PROXY TCP6 2001:DB8::1 :: 0 1\r\n": ends("2001:db8::1", 0, "::", 1),
    b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:202 1 2\r\n": ends("192.0.2.1", 1, "192.0.2.2", 2),
}

TCP4 = bytes.fromhex("C0A80001 C0A8000B DC04 01BB")
TCP6 = bytes.fromhex("20010DB8" + "00" * 11 + "01" + "20010DB8" + "00" * 11 + "02" + "DC0401BB")
TCP6_ENDS = ends("2001:db8::1", 56324, "2001:db8::2", 443)
TLVS = bytes.fromhex("01 0002 683204 0000EE 0003 010203")

V2 = {
    # §2.2: version and command, family and protocol, length, addresses
    SIGNATURE + bytes.fromhex("21 11 000C") + TCP4: EXAMPLE,
    SIGNATURE + bytes.fromhex("21 21 0024") + TCP6: TCP6_ENDS,
    SIGNATURE + bytes.fromhex("21 11 001B") + TCP4 + TLVS + b"\xff": EXAMPLE,
    SIGNATURE + bytes.fromhex("21 21 0032") + TCP6 + TLVS: TCP6_ENDS,
    SIGNATURE + bytes.fromhex("20 00 0000"): None,  # LOCAL
    SIGNATURE + bytes.fromhex("20 11 000C") + TCP4: None,  # its addresses do not count
    SIGNATURE + bytes.fromhex("20 FF 0003") + bytes(3): None,  # nor its family
    SIGNATURE + bytes.fromhex("21 00 0000"): None,  # unspecified
    SIGNATURE + bytes.fromhex("21 00 000E") + TLVS: None,
    SIGNATURE + bytes.fromhex("21 10 0000"): None,
    SIGNATURE + bytes.fromhex("21 12 000C") + TCP4: None,  # UDP
    SIGNATURE + bytes.fromhex("21 22 0024") + TCP6: None,
    SIGNATURE + bytes.fromhex("21 31 00D8") + bytes(216): None,  # UNIX
    SIGNATURE + bytes.fromhex("21 32 00D8") + bytes(216): None,
    SIGNATURE + bytes.fromhex("20 00 0FF0") + bytes(MAX_HEADER - 16): None,
}
HEADERS = {**V1, **V2}


@pytest.mark.parametrize("octets", HEADERS)
def test_headers(octets: bytes) -> None:
    expected = ProxyHeader(HEADERS[octets], len(octets))
    assert decode_header(octets) == expected
    assert decode_header(octets + b"IKETCP") == expected
    assert decode_header(octets + octets) == expected


@pytest.mark.parametrize("octets", HEADERS)
def test_more_is_needed_until_the_last_octet(octets: bytes) -> None:
    assert {decode_header(octets[:size]) for size in range(len(octets))} == {None}


def test_the_longest_lines_are_those_of_the_specification() -> None:
    assert sorted(map(len, V1))[-2:] == [104, 107]
    assert len(encode_v1(LONGEST4)) == 56
    assert len(encode_v1(LONGEST6)) == 104
    assert V2_BEGIN == SIGNATURE


@pytest.mark.parametrize(
    ("octets", "enough"),
    [
        # refused at the first octet that tells
        (b"IKETCP", 1),
        (b"GET / HTTP/1.1\r\n", 1),
        (b"proxy TCP4", 1),
        (b"POST /", 2),
        (b"PROXYTCP4", 6),
        (b"\r\n\r\n\r\n", 5),
        (b"\x16\x03\x01", 1),
        (SIGNATURE + b"\x11", 13),  # version 1
        (SIGNATURE + b"\x31", 13),
        (SIGNATURE + b"\x22", 13),  # an unassigned command
        (SIGNATURE + bytes.fromhex("21 41 0000"), 16),
        (SIGNATURE + bytes.fromhex("21 13 000C"), 16),
        (SIGNATURE + bytes.fromhex("21 11 000B"), 16),
        (SIGNATURE + bytes.fromhex("21 21 0023"), 16),
        (SIGNATURE + bytes.fromhex("21 31 00D7"), 16),
        (SIGNATURE + bytes.fromhex("20 00 0FF1"), 16),  # too long for us
        # lines; refused when their end is there, or cannot come any more
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n", 35),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\rx", 36),
        (b"PROXY UNKNOWN" + bytes(94), 107),
    ],
)
def test_what_is_no_header(octets: bytes, enough: int) -> None:
    with pytest.raises(Malformed):
        decode_header(octets)
    with pytest.raises(Malformed):
        decode_header(octets[:enough])
    assert decode_header(octets[: enough - 1]) is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"TCP4",
        b"UNKNOWNS",
        b"TCP5 192.0.2.1 192.0.2.2 1 2",
        b"tcp4 192.0.2.1 192.0.2.2 1 2",
        b"TCP4  192.0.2.1 192.0.2.2 1 2",
        b"TCP4 192.0.2.1\t192.0.2.2 1 2",
        b"TCP4 192.0.2.1 192.0.2.2 1",
        b"TCP4 192.0.2.1 192.0.2.2 1 2 ",
        b"TCP4 192.0.2.1 192.0.2.2 1 2 3",
        b"TCP4 192.0.2.01 192.0.2.2 1 2",
        b"TCP4 192.0.2 192.0.2.2 1 2",
        b"TCP4 192.0.2.256 192.0.2.2 1 2",
        b"TCP4 2001:db8::1 2001:db8::2 1 2",
        b"TCP6 192.0.2.1 192.0.2.2 1 2",
        b"TCP6 2001:db8::1::2 :: 1 2",
        b"TCP6 fe80::1%eth0 :: 1 2",
        b"TCP6 1:2:3:4:5:6:7 :: 1 2",
        b"TCP4 192.0.2.1 192.0.2.2 01 2",
        b"TCP4 192.0.2.1 192.0.2.2 1 65536",
        b"TCP4 192.0.2.1 192.0.2.2 -1 2",
        b"TCP4 192.0.2.1 192.0.2.2 +1 2",
        b"TCP4 192.0.2.1 192.0.2.2 1 100000",
        b"TCP4 192.0.2.1 192.0.2.\xb2 1 2",
    ],
)
def test_lines_that_do_not_match_exactly(line: bytes) -> None:
    with pytest.raises(Malformed):
        decode_header(b"PROXY " + line + b"\r\n")


@pytest.mark.parametrize(
    ("both", "line", "kind", "addresses"),
    [
        (EXAMPLE, "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443", "11 000C", TCP4),
        (TCP6_ENDS, "PROXY TCP6 2001:db8::1 2001:db8::2 56324 443", "21 0024", TCP6),
        (
            ends("192.0.2.1", 1, "2001:db8::1", 2),
            "PROXY TCP6 ::ffff:c000:201 2001:db8::1 1 2",
            "21 0024",
            bytes.fromhex("0" * 20 + "FFFF C0000201 20010DB8" + "00" * 11 + "01 0001 0002"),
        ),
    ],
)
def test_what_we_say(both: Ends, line: str, kind: str, addresses: bytes) -> None:
    assert encode_v1(both) == f"{line}\r\n".encode()
    assert encode_v2(both) == SIGNATURE + bytes.fromhex(f"21 {kind}") + addresses
    for octets in (encode_v1(both), encode_v2(both)):
        assert decode_header(octets) == ProxyHeader(both, len(octets))
