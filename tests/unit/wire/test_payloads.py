"""Payload bodies, each octet for octet. RFC 7296 §3.4-§3.16."""

from ipaddress import ip_address, ip_network
from typing import get_args

import pytest

from tests.unit.wire.samples import PAYLOADS, reader
from tunnelwrap.errors import Malformed, Truncated, UnsupportedCritical, WireError
from tunnelwrap.iana import CfgAttribute, IdType, NotifyType, PayloadType, ProtocolId
from tunnelwrap.wire.payloads import (
    DECODERS,
    Auth,
    Certificate,
    CertificateRequest,
    Configuration,
    ConfigurationAttribute,
    Delete,
    EapPayload,
    IdPayload,
    KeyExchange,
    Nonce,
    Notify,
    Payload,
    TrafficSelector,
    TrafficSelectors,
    UnknownPayload,
    VendorId,
    decode_payload,
    payload_type_of,
)

NONCE = "00" * 16
V4_ANY = "07000010 0000ffff 0a480000 0a4800ff"
V6_TCP = "08060028 00500050 fd720000000000000000000000000000 fd72000000000000ffffffffffffffff"
TS_I, TS_R = PayloadType.TS_I, PayloadType.TS_R

GOLDEN: list[tuple[int, str, Payload]] = [
    (PayloadType.KE, "001f0000 aabbcc", KeyExchange(31, b"\xaa\xbb\xcc")),
    (PayloadType.KE, "00130000", KeyExchange(19, b"")),
    (PayloadType.ID_I, "02000000 6162", IdPayload(PayloadType.ID_I, IdType.FQDN, b"ab")),
    (PayloadType.ID_R, "0b000000", IdPayload(PayloadType.ID_R, IdType.KEY_ID, b"")),
    (PayloadType.CERT, "04 3082", Certificate(4, b"\x30\x82")),
    (PayloadType.CERTREQ, "04" + "ab" * 40, CertificateRequest(4, b"\xab" * 40)),
    (PayloadType.CERTREQ, "0f", CertificateRequest(15, b"")),
    (PayloadType.AUTH, "02000000 d00d", Auth(2, b"\xd0\x0d")),
    (PayloadType.NONCE, NONCE, Nonce(bytes(16))),
    (PayloadType.NONCE, "01" * 256, Nonce(b"\1" * 256)),
    (PayloadType.NOTIFY, "00004004 0102", Notify(0, b"", 16388, b"\1\2")),
    (PayloadType.NOTIFY, "03044009 c0ffee01", Notify(3, b"\xc0\xff\xee\1", 16393, b"")),
    (PayloadType.NOTIFY, "01080004 0102030405060708 09", Notify(1, bytes(range(1, 9)), 4, b"\t")),
    (PayloadType.DELETE, "01000000", Delete(ProtocolId.IKE, ())),
    (
        PayloadType.DELETE,
        "03040002 c0ffee01 c0ffee02",
        Delete(ProtocolId.ESP, (b"\xc0\xff\xee\1", b"\xc0\xff\xee\2")),
    ),
    (PayloadType.VENDOR_ID, "6162", VendorId(b"ab")),
    (PayloadType.VENDOR_ID, "", VendorId(b"")),
    (
        TS_I,
        f"01000000 {V4_ANY}",
        TrafficSelectors(TS_I, (TrafficSelector.from_network(ip_network("10.72.0.0/24")),)),
    ),
    (
        TS_R,
        f"02000000 {V6_TCP} {V4_ANY}",
        TrafficSelectors(
            TS_R,
            (
                TrafficSelector.from_network(ip_network("fd72::/64"), 6, 80, 80),
                TrafficSelector.from_network(ip_network("10.72.0.0/24")),
            ),
        ),
    ),
    (TS_I, "00000000", TrafficSelectors(TS_I, ())),
    (
        PayloadType.CP,
        "01000000 00010000 00030004 0a480035",
        Configuration(
            1,
            (
                ConfigurationAttribute(CfgAttribute.INTERNAL_IP4_ADDRESS, b""),
                ConfigurationAttribute(CfgAttribute.INTERNAL_IP4_DNS, b"\x0a\x48\0\x35"),
            ),
        ),
    ),
    (PayloadType.CP, "04000000", Configuration(4, ())),
    (PayloadType.EAP, "03010004", EapPayload(b"\3\1\0\4")),
]


@pytest.mark.rfc("7296", "3.10")
@pytest.mark.rfc("7296", "3.12")
@pytest.mark.parametrize(("payload_type", "octets", "payload"), GOLDEN)
@pytest.mark.parametrize("critical", [False, True], ids=["plain", "critical"])
def test_octet_for_octet(
    payload_type: int, octets: str, payload: Payload, *, critical: bool
) -> None:
    """RFC 7296 §2.5: the critical bit of a payload that is known is ignored."""
    assert decode_payload(payload_type, critical, reader(octets)) == payload
    assert payload.encode() == bytes.fromhex(octets)
    assert payload_type_of(payload) == payload_type


WRONG: list[tuple[int, str, type[WireError], str]] = [
    (PayloadType.KE, "001f00", Truncated, "octets wanted"),
    (PayloadType.ID_I, "020000", Truncated, "octets wanted"),
    (PayloadType.CERT, "", Truncated, "octets wanted"),
    (PayloadType.CERTREQ, "", Truncated, "octets wanted"),
    (PayloadType.AUTH, "020000", Truncated, "octets wanted"),
    (PayloadType.NONCE, "00" * 15, Malformed, "nonce of 15 octets"),
    (PayloadType.NONCE, "00" * 257, Malformed, "nonce of 257 octets"),
    (PayloadType.NONCE, "", Malformed, "nonce of 0 octets"),
    (PayloadType.NOTIFY, "000040", Truncated, "octets wanted"),
    (PayloadType.NOTIFY, "03044009 c0ffee", Truncated, "4 octets wanted, 3 left"),
    (PayloadType.DELETE, "030400", Truncated, "octets wanted"),
    (PayloadType.DELETE, "03040002 c0ffee01", Malformed, "2 SPIs of 4 octets in 4"),
    (PayloadType.DELETE, "03040001 c0ffee01 00", Malformed, "1 SPIs of 4 octets in 5"),
    (PayloadType.DELETE, "01000000 00", Malformed, "0 SPIs of 0 octets in 1"),
    (TS_I, "000000", Truncated, "octets wanted"),
    (TS_I, "02000000" + V4_ANY, Truncated, "octets wanted"),
    (TS_I, "00000000" + V4_ANY, Malformed, "16 octets behind the traffic selectors"),
    (TS_I, "01000000" + V4_ANY.replace("0010", "0003", 1), Malformed, "selector of 3 octets"),
    (TS_I, "01000000" + V4_ANY.replace("0010", "0011", 1), Truncated, "octets wanted"),
    (TS_I, "01000000" + V4_ANY.replace("0010", "0011", 1) + "00", Malformed, "behind the traffic"),
    (TS_I, "01000000" + V4_ANY.replace("0010", "000f", 1), Truncated, "octets wanted"),
    (TS_R, "01000000" + V6_TCP.replace("0028", "0010", 1), Truncated, "octets wanted"),
    (TS_R, "01000000 07000010 0000ffff 0a4800ff 0a480000", Malformed, "10.72.0.255 to 10.72.0.0"),
    (TS_R, "01000000 07060010 00510050 0a480000 0a4800ff", Malformed, "from port 81 to 80"),
    (PayloadType.CP, "010000", Truncated, "octets wanted"),
    (PayloadType.CP, "01000000 0001", Truncated, "octets wanted"),
    (PayloadType.CP, "01000000 00010004 0a4800", Truncated, "octets wanted"),
    (PayloadType.SK, "00", Malformed, "encrypted payload"),
    (PayloadType.SKF, "00010001", Malformed, "encrypted payload"),
]


@pytest.mark.rfc("7296", "2.10")
@pytest.mark.rfc("7296", "3.9")
@pytest.mark.parametrize(("payload_type", "octets", "error", "text"), WRONG)
def test_wrong_shapes(payload_type: int, octets: str, error: type[WireError], text: str) -> None:
    with pytest.raises(error, match=text):
        decode_payload(payload_type, False, reader(octets))


@pytest.mark.parametrize(
    ("payload_type", "octets", "clean"),
    [
        (PayloadType.KE, "001fffff aa", "001f0000 aa"),
        (PayloadType.ID_I, "02ffffff 61", "02000000 61"),
        (PayloadType.AUTH, "02ffffff 61", "02000000 61"),
        (TS_I, "01ffffff" + V4_ANY, "01000000" + V4_ANY),
        (PayloadType.CP, "01ffffff 80010000", "01000000 00010000"),
    ],
)
def test_reserved_bits_are_ignored_and_sent_as_zero(
    payload_type: int, octets: str, clean: str
) -> None:
    payload = decode_payload(payload_type, False, reader(octets))
    assert payload == decode_payload(payload_type, False, reader(clean))
    assert payload.encode() == bytes.fromhex(clean)


@pytest.mark.rfc("7296", "2.5")
def test_unknown_types() -> None:
    assert decode_payload(49, False, reader("0102")) == UnknownPayload(49, b"\1\2")
    assert UnknownPayload(49, b"\1\2").encode() == b"\1\2"
    assert payload_type_of(UnknownPayload(49, b"")) == 49
    with pytest.raises(UnsupportedCritical, match="type 49") as caught:
        decode_payload(49, True, reader("0102"))
    assert caught.value.payload_type == 49


def test_every_payload_has_a_decoder() -> None:
    assert {type(payload) for payload in PAYLOADS} == set(get_args(Payload))
    assert set(DECODERS) == set(PayloadType) - {PayloadType.NONE, PayloadType.SK, PayloadType.SKF}
    assert {payload_type_of(payload) for payload in PAYLOADS} == {*DECODERS, 49}


@pytest.mark.rfc("7296", "3.11")
def test_deletes_with_no_spi_at_all() -> None:
    """Whatever the count says: octets that say the same are one value."""
    for octets in ("01000000", "01000001", "03040000"):
        assert decode_payload(PayloadType.DELETE, False, reader(octets)).spis == ()


def test_notify_of() -> None:
    assert Notify.of(NotifyType.COOKIE, b"c") == Notify(0, b"", 16390, b"c")
    rekey = Notify.of(NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=b"1234")
    assert rekey == Notify(3, b"1234", 16393, b"")
    assert str(rekey) == "N(REKEY_SA)"
    assert str(Notify.of(40000)) == "N(40000)"


@pytest.mark.rfc("7296", "3.10.1")
@pytest.mark.parametrize("notify", [0, 14, 16383])
def test_errors_are_below_16384(notify: int) -> None:
    assert Notify.of(notify).is_error
    assert not Notify.of(notify + 16384).is_error


@pytest.mark.rfc("7296", "3.13")
@pytest.mark.parametrize("unknown", ["09000004", "0a000008 00000000", "ff060009 0000000000"])
def test_selectors_of_unknown_type_are_passed_over(unknown: str) -> None:
    octets = f"03000000 {unknown} {V4_ANY} {unknown}"
    payload = decode_payload(TS_I, False, reader(octets))
    assert payload == decode_payload(TS_I, False, reader(f"01000000 {V4_ANY}"))


@pytest.mark.rfc("7296", "3.13.1")
def test_opaque_ports() -> None:
    octets = "01000000 07110010 ffff0000 0a480000 0a4800ff"
    payload = decode_payload(TS_I, False, reader(octets))
    (selector,) = payload.selectors
    assert (selector.start_port, selector.end_port) == (65535, 0)
    assert payload.encode() == bytes.fromhex(octets)
    assert str(selector) == "10.72.0.0/24[udp/OPAQUE]"


def selector(start: str, end: str, *rest: int) -> TrafficSelector:
    protocol, first, last = rest or (0, 0, 65535)
    return TrafficSelector(protocol, first, last, ip_address(start), ip_address(end))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (selector("10.0.0.0", "10.0.0.255"), "10.0.0.0/24"),
        (selector("10.0.0.1", "10.0.0.1"), "10.0.0.1/32"),
        (selector("0.0.0.0", "255.255.255.255"), "0.0.0.0/0"),  # noqa: S104 -- nothing is bound
        (selector("10.0.0.1", "10.0.0.9", 6, 80, 80), "10.0.0.1-10.0.0.9[tcp/80]"),
        (selector("fd72::", "fd72::ffff:ffff:ffff:ffff", 17, 0, 65535), "fd72::/64[udp]"),
        (selector("fd72::1", "fd72::2", 132, 1, 9), "fd72::1-fd72::2[sctp/1-9]"),
        (selector("10.0.0.1", "10.0.0.1", 0, 22, 22), "10.0.0.1/32[any/22]"),
        (selector("10.0.0.1", "10.0.0.1", 99, 0, 65535), "10.0.0.1/32[99]"),
        (selector("10.0.0.1", "10.0.0.1", 1, 0x0800, 0x0800), "10.0.0.1/32[icmp/8(0)]"),
        (selector("::1", "::1", 58, 0x8000, 0x80FF), "::1/128[ipv6-icmp/128(0)-128(255)]"),
    ],
)
def test_text_of_selectors(value: TrafficSelector, text: str) -> None:
    assert str(value) == text


def test_networks_of_a_selector() -> None:
    assert selector("10.0.0.1", "10.0.0.6").networks() == [
        ip_network(n) for n in ("10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32")
    ]
    network = ip_network("fd72::/48")
    assert TrafficSelector.from_network(network).networks() == [network]
