"""ESP header and trailer, and classify. RFC 4303, RFC 3948 §2."""

import pytest

from tests.unit.wire.samples import message, reader
from tunnelwrap.errors import Malformed, Truncated
from tunnelwrap.wire.esp import (
    NAT_KEEPALIVE,
    NON_ESP_MARKER,
    EspHeader,
    EspTrailer,
    Kind,
    classify,
)

ESP = "c0ffee01 00000001"


@pytest.mark.rfc("3948", "2.3")
@pytest.mark.rfc("3948", "2")
@pytest.mark.parametrize(
    ("octets", "kind"),
    [
        ("ff", Kind.KEEPALIVE),
        ("fe", Kind.INVALID),
        ("00", Kind.INVALID),
        ("ffff", Kind.INVALID),
        ("", Kind.INVALID),
        ("000000", Kind.INVALID),
        ("00000000", Kind.IKE),
        ("00000000 0102030405060708", Kind.IKE),
        ("00000001 00000001", Kind.ESP),
        ("ffffffff ffffffff", Kind.ESP),
        (ESP, Kind.ESP),
        (ESP + "00" * 1400, Kind.ESP),
        (ESP[:-2], Kind.INVALID),
        ("ff000000", Kind.INVALID),
    ],
)
def test_classify(octets: str, kind: Kind) -> None:
    for whole in (bytes.fromhex(octets), memoryview(bytearray.fromhex(octets))):
        assert classify(whole) is kind


def test_classify_what_we_send() -> None:
    assert classify(NON_ESP_MARKER + message().encode()) is Kind.IKE
    assert classify(NAT_KEEPALIVE) is Kind.KEEPALIVE
    assert classify(EspHeader(256, 1).encode() + bytes(30)) is Kind.ESP


@pytest.mark.rfc("4303", "2")
def test_header() -> None:
    body = reader(ESP + "aabb")
    assert EspHeader.decode(body) == EspHeader(0xC0FFEE01, 1)
    assert body.rest() == b"\xaa\xbb"
    assert EspHeader(0xC0FFEE01, 1).encode() == bytes.fromhex(ESP)
    with pytest.raises(Truncated):
        EspHeader.decode(reader(ESP[:-2]))


@pytest.mark.rfc("4303", "2.4")
def test_trailer() -> None:
    for kind in (bytes, memoryview):
        plaintext = kind(bytes.fromhex("aabbcc 010203 03 04"))
        assert EspTrailer.decode(plaintext) == EspTrailer(3, 4)
        assert EspTrailer.decode(plaintext[3:]) == EspTrailer(3, 4), "nothing but padding"
    assert EspTrailer(3, 4).encode() == bytes.fromhex("010203 03 04")
    assert EspTrailer(0, 41).encode() == bytes.fromhex("00 29")
    longest = EspTrailer(255, 59)
    assert EspTrailer.decode(longest.encode()) == longest


@pytest.mark.parametrize("octets", ["", "04", "0104", "0102 03 04", "ff" * 256])
def test_padding_that_is_not_there(octets: str) -> None:
    size = len(bytes.fromhex(octets))
    with pytest.raises(Malformed, match=f"does not fit {size} octets"):
        EspTrailer.decode(bytes.fromhex(octets))
