"""EAP packets and the bodies of methods; those of strongSwan octet for octet."""

import pytest

from tests.unit.wire.samples import load, reader
from tunnelwrap.errors import Malformed, Truncated, WireError
from tunnelwrap.iana import EapCode, EapType
from tunnelwrap.wire.eap import (
    EapPacket,
    Identity,
    Mschapv2,
    Mschapv2Acknowledgement,
    Mschapv2Challenge,
    Mschapv2Response,
    Mschapv2Result,
    Nak,
    TlsFragment,
    decode_mschapv2,
)
from tunnelwrap.wire.message import decode_chain
from tunnelwrap.wire.payloads import EapPayload
from tunnelwrap.wire.reader import Reader

GOLDEN = {case["name"]: case for case in load("strongswan")}
CHALLENGE = "10" + "c1" * 16
RESPONSE = "31" + "a2" * 16 + "00" * 8 + "b3" * 24 + "00"


def golden(name: str) -> EapPacket:
    """The EAP packet in a message of strongSwan."""
    case = GOLDEN[f"EAP-MSCHAPv2: IKE_AUTH {name}"]
    payloads = decode_chain(case["first"], Reader(case["inner"]))
    (octets,) = [payload.message for payload in payloads if isinstance(payload, EapPayload)]
    packet = EapPacket.decode(Reader(octets))
    assert packet.encode() == octets
    return packet


@pytest.mark.rfc("3748", "4")
@pytest.mark.parametrize(
    ("octets", "packet"),
    [
        ("01070005 01", EapPacket(EapCode.REQUEST, 7, EapType.IDENTITY, b"")),
        ("02070007 01 6162", EapPacket(EapCode.RESPONSE, 7, EapType.IDENTITY, b"ab")),
        ("0208000c fe 00000137000001", EapPacket(EapCode.RESPONSE, 8, 254, b"\0\0\1\x37\0\0\1")),
        ("03070004", EapPacket(EapCode.SUCCESS, 7, None, b"")),
        ("04070004", EapPacket(EapCode.FAILURE, 7, None, b"")),
    ],
)
def test_packets(octets: str, packet: EapPacket) -> None:
    assert EapPacket.decode(reader(octets)) == packet
    assert packet.encode() == bytes.fromhex(octets)


@pytest.mark.rfc("3748", "4")
def test_padding_behind_a_packet_is_dropped() -> None:
    body = reader("01070005 01 ffff")
    assert EapPacket.decode(body) == EapPacket(1, 7, 1, b"")
    assert body.remaining == 0


@pytest.mark.rfc("7296", "3.16")
@pytest.mark.parametrize(
    ("octets", "error", "text"),
    [
        ("", Truncated, "octets wanted"),
        ("010700", Truncated, "octets wanted"),
        ("01070003", Malformed, "packet of 3 octets"),
        ("01070004", Truncated, "octets wanted"),
        ("01070006 01", Truncated, "octets wanted"),
        ("03070005 01", Malformed, "behind EAP Success"),
        ("00070004", Malformed, "EAP code 0"),
        ("05070005 01", Malformed, "EAP code 5"),
    ],
)
def test_wrong_packets(octets: str, error: type[WireError], text: str) -> None:
    with pytest.raises(error, match=text):
        EapPacket.decode(reader(octets))


def test_identity() -> None:
    assert Identity.decode(reader("6162")) == Identity(b"ab")
    assert Identity(b"ab").encode() == b"ab"
    assert Identity.TYPE == EapType.IDENTITY


@pytest.mark.rfc("3748", "5.3.1")
def test_nak() -> None:
    assert Nak.decode(reader("0d 1a")) == Nak((EapType.TLS, EapType.MSCHAPV2))
    assert Nak((0,)).encode() == b"\0"
    with pytest.raises(Truncated):
        Nak.decode(reader(""))


@pytest.mark.rfc("5216", "3.1")
@pytest.mark.parametrize(
    ("octets", "fragment"),
    [
        ("20", TlsFragment(has_more=False, is_start=True, total=None, data=b"")),
        ("00", TlsFragment(has_more=False, is_start=False, total=None, data=b"")),
        ("c0 00001000 1603", TlsFragment(True, False, 4096, b"\x16\3")),
        ("40 16", TlsFragment(True, False, None, b"\x16")),
        ("80 00000002 1603", TlsFragment(False, False, 2, b"\x16\3")),
    ],
)
def test_tls(octets: str, fragment: TlsFragment) -> None:
    assert TlsFragment.decode(reader(octets)) == fragment
    assert fragment.encode() == bytes.fromhex(octets)
    reserved = bytes([bytes.fromhex(octets)[0] | 0x1F]) + bytes.fromhex(octets)[1:]
    assert TlsFragment.decode(Reader(reserved)) == fragment


@pytest.mark.parametrize("octets", ["", "80", "80 000000"])
def test_wrong_tls(octets: str) -> None:
    with pytest.raises(Truncated):
        TlsFragment.decode(reader(octets))


@pytest.mark.parametrize(
    ("octets", "value"),
    [
        (f"01 09 0018 {CHALLENGE} 677721", Mschapv2Challenge(9, b"\xc1" * 16, b"gw!")),
        (
            f"02 09 0038 {RESPONSE} 6162",
            Mschapv2Response(9, b"\xa2" * 16, b"\xb3" * 24, 0, b"ab"),
        ),
        ("03 09 0006 533d", Mschapv2Result(3, 9, b"S=")),
        ("04 09 0006 453d", Mschapv2Result(4, 9, b"E=")),
        ("04 09 0004", Mschapv2Result(4, 9, b"")),
        ("03", Mschapv2Acknowledgement(3)),
        ("04", Mschapv2Acknowledgement(4)),
    ],
)
def test_mschapv2(octets: str, value: Mschapv2) -> None:
    assert decode_mschapv2(reader(octets)) == value
    assert value.encode() == bytes.fromhex(octets)


@pytest.mark.parametrize(
    ("octets", "error", "text"),
    [
        ("", Truncated, "octets wanted"),
        ("01", Truncated, "octets wanted"),
        ("01 09 00", Truncated, "octets wanted"),
        (f"01 09 0014 {CHALLENGE}", Malformed, "MS-Length 20 in 21"),
        (f"01 09 0016 {CHALLENGE}", Malformed, "MS-Length 22 in 21"),
        ("01 09 0006 0f00", Malformed, "value of 15 octets, expected 16"),
        ("01 09 0006 1000", Truncated, "16 octets wanted"),
        ("02 09 0006 1000", Malformed, "value of 16 octets, expected 49"),
        (f"02 09 0035 {RESPONSE[:-2]}", Truncated, "octets wanted"),
        ("07 09 0004", Malformed, "op code 7"),
    ],
)
def test_wrong_mschapv2(octets: str, error: type[WireError], text: str) -> None:
    with pytest.raises(error, match=text):
        decode_mschapv2(reader(octets))


def test_a_conversation_of_strongswan() -> None:
    assert golden("response 1") == EapPacket(EapCode.REQUEST, 0, EapType.IDENTITY, b"")
    answer = golden("request 2")
    assert (answer.code, answer.type) == (EapCode.RESPONSE, EapType.IDENTITY)
    assert Identity.decode(Reader(answer.data)) == Identity(b"carol")
    names = ["response 2", "request 3", "response 3", "request 4"]
    packets = [golden(name) for name in names]
    assert {packet.type for packet in packets} == {EapType.MSCHAPV2}
    bodies = [decode_mschapv2(Reader(packet.data)) for packet in packets]
    assert [body.encode() for body in bodies] == [packet.data for packet in packets]
    challenge, response, success, acknowledgement = bodies
    assert isinstance(challenge, Mschapv2Challenge)
    assert isinstance(response, Mschapv2Response)
    assert (response.name, response.identifier) == (b"carol", challenge.identifier)
    assert isinstance(success, Mschapv2Result)
    assert success.message.startswith(b"S=")
    assert acknowledgement == Mschapv2Acknowledgement(3)
    assert golden("response 4").code == EapCode.SUCCESS
