"""SA payloads: proposals, transforms, attributes. RFC 7296 §3.3."""

import pytest

from tests.unit.wire.samples import ESP_PROPOSAL, IKE_PROPOSAL, load, reader
from tunnelwrap.errors import Malformed, Truncated, WireError
from tunnelwrap.iana import Encr, Esn, KeMethod, ProtocolId, TransformType
from tunnelwrap.wire.message import HEADER_LENGTH, IkeHeader, decode_chain
from tunnelwrap.wire.proposal import Proposal, SaPayload, Transform
from tunnelwrap.wire.reader import Reader

AES_GCM_256 = "0300000c 01000014 800e0100"
NO_ESN_LAST = "00000008 05000000"
ESP = f"00000020 01030402 c0ffee01 {AES_GCM_256} {NO_ESN_LAST}"


@pytest.mark.rfc("7296", "3.3.1")
def test_a_proposal_octet_for_octet() -> None:
    proposal = Proposal(
        1,
        ProtocolId.ESP,
        bytes.fromhex("c0ffee01"),
        (
            Transform(TransformType.ENCR, Encr.AES_GCM_16, 256),
            Transform(TransformType.ESN, Esn.NO_ESN, None),
        ),
    )
    assert SaPayload.decode(reader(ESP)) == SaPayload((proposal,))
    assert SaPayload((proposal,)).encode() == bytes.fromhex(ESP)


@pytest.mark.rfc("7296", "3.3.2")
@pytest.mark.rfc("7296", "3.3.1")
def test_last_octets_and_counts() -> None:
    """Proposals but the last say 2, transforms but the last 3; the last say 0."""
    encoded = SaPayload((IKE_PROPOSAL, ESP_PROPOSAL)).encode()
    first = int.from_bytes(encoded[2:4], "big")
    assert encoded[0] == 2
    assert encoded[first] == 0
    assert (encoded[7], encoded[first + 7]) == (5, 3)
    assert first + int.from_bytes(encoded[first + 2 : first + 4], "big") == len(encoded)
    at, says = 8, []
    while at < first:
        says.append(encoded[at])
        at += int.from_bytes(encoded[at + 2 : at + 4], "big")
    assert says == [3, 3, 3, 3, 0]


@pytest.mark.parametrize(
    ("octets", "message"),
    [
        (f"02 {ESP[2:]}", "4 octets wanted|1 octets wanted"),  # announces another proposal
        (f"03 {ESP[2:]}", "proposal 1 says 3"),
        (f"{ESP} 00", "octets behind the proposals"),
        (ESP.replace("00000020", "00000007"), "substructure of 7 octets"),
        (ESP.replace("00000020", "00000021"), "octets wanted"),
        (ESP.replace("01030402", "01030401"), "transform 1 of 1 says 3"),
        (ESP.replace("01030402", "01030403"), "transform 2 of 3 says 0"),
        (ESP.replace("0300000c", "0000000c"), "transform 1 of 2 says 0"),
        (ESP.replace("0300000c", "0200000c"), "transform 1 of 2 says 2"),
        (ESP.replace("0300000c", "03000007"), "substructure of 7 octets"),
        (ESP.replace("0300000c", "0300000a"), "octets wanted"),
        (ESP.replace("01030402", "010304ff"), "transform 2 of 255 says 0"),
        (ESP.replace("01030402", "0103ff02"), "255 octets wanted"),
        ("00000008 01030000 00", "octets behind the proposals"),
        ("00000009 01030000 00", "octets behind the transforms"),
        ("", "octets wanted"),
    ],
)
def test_wrong_shapes(octets: str, message: str) -> None:
    with pytest.raises(WireError, match=message):
        SaPayload.decode(reader(octets))


def test_reserved_octets_are_ignored_and_sent_as_zero() -> None:
    strange = ESP.replace("00000020", "00ff0020").replace("0300000c 0100", "03ee000c 01dd")
    assert strange != ESP
    assert SaPayload.decode(reader(strange)).encode() == bytes.fromhex(ESP)


@pytest.mark.rfc("7296", "3.3.5")
def test_attributes_of_both_formats_survive() -> None:
    """A value of two octets (TV) and one with its length (TLV), both unknown to us."""
    attributes = "800e0080 80630007 00640003616263 00650000"
    octets = f"00000019 01000014 {attributes}".replace("19", "1b")
    proposal = f"00000023 01030001 {octets}"
    (transform,) = SaPayload.decode(reader(proposal)).proposals[0].transforms
    assert transform.key_bits == 128
    assert transform.other_attributes == ((0x8063, b"\0\7"), (0x64, b"abc"), (0x65, b""))
    assert transform.encode(is_last=True) == bytes.fromhex(octets)


@pytest.mark.rfc("7296", "3.3.6")
@pytest.mark.parametrize(
    "attributes",
    [
        "800e0080 800e0100",  # twice
        "000e0002 0080",  # as TLV, which RFC 7296 §3.3.5 does not allow for it
    ],
)
def test_a_key_length_that_is_not_one_is_kept_as_unknown(attributes: str) -> None:
    """Who chooses must see that this transform says more than we understand."""
    size = 8 + len(bytes.fromhex(attributes))
    octets = f"000000{size:02x} 01000014 {attributes}"
    whole = f"000000{size + 8:02x} 01030001 {octets}"
    (transform,) = SaPayload.decode(reader(whole)).proposals[0].transforms
    assert len(transform.other_attributes) == 1
    assert transform.encode(is_last=True) == bytes.fromhex(octets)


@pytest.mark.parametrize("attributes", ["800e", "800e00", "0063", "00630002", "0063000261"])
def test_cut_off_attributes(attributes: str) -> None:
    size = 8 + len(bytes.fromhex(attributes))
    with pytest.raises(Truncated):
        SaPayload.decode(
            reader(f"000000{size + 8:02x} 01030001 000000{size:02x} 01000014 {attributes}")
        )


def test_a_proposal_without_transforms() -> None:
    """Its shape is right; that it cannot be chosen is for others to say."""
    octets = bytes.fromhex("0000000c 01030400 c0ffee01")
    payload = SaPayload.decode(Reader(octets))
    assert payload.proposals == (Proposal(1, ProtocolId.ESP, octets[-4:], ()),)
    assert payload.encode() == octets


@pytest.mark.rfc("7296", "3.3")
def test_an_sa_payload_has_a_proposal() -> None:
    with pytest.raises(Truncated):
        SaPayload.decode(Reader(SaPayload(()).encode()))


@pytest.mark.parametrize(
    ("proposal", "text"),
    [
        (ESP_PROPOSAL, "ESP:AES_GCM_16-256/ESN/NO_ESN"),
        (
            IKE_PROPOSAL,
            "IKE:AES_CBC-256/AES_CBC-128/HMAC_SHA2_256/HMAC_SHA2_256_128/CURVE25519",
        ),
        (Proposal(1, 9, b"", (Transform(1, 999, None),)), "9:ENCR_999"),
        (Proposal(1, 2, b"", (Transform(77, 5, 8),)), "AH:77_5-8"),
        (Proposal(1, 3, b"", (Transform(TransformType.INTEG, 0, None),)), "ESP:INTEG_NONE"),
        (
            Proposal(1, 3, b"", (Transform(TransformType.KE, KeMethod.NONE, None),)),
            "ESP:KE_NONE",
        ),
    ],
)
def test_text(proposal: Proposal, text: str) -> None:
    assert str(proposal) == text


@pytest.mark.parametrize("case", load("ike_scan"), ids=lambda case: case["name"])
def test_ike_scan(case: dict) -> None:
    """Eleven transforms in one proposal, written by another hand."""
    octets = case["message"]
    chain = decode_chain(IkeHeader.decode(octets).next_payload, Reader(octets, HEADER_LENGTH))
    (proposal,) = chain[0].proposals
    assert str(proposal) == case["proposal"]
    assert chain[0].encode() == octets[32 : 32 + 104]


def test_errors_tell_where() -> None:
    with pytest.raises(Malformed) as caught:
        SaPayload.decode(reader(ESP.replace("01030402", "01030401")))
    assert 8 <= caught.value.offset <= 32
