"""IKE messages: header, chain, outer shape of SK; and whole messages of strongSwan."""

import re

import pytest

from tests.unit.wire.samples import PAYLOADS, SPI_I, SPI_R, load, message, reader
from tunnelwrap.errors import Malformed, Truncated, UnsupportedCritical, UnsupportedVersion
from tunnelwrap.iana import AuthMethod, CfgAttribute, ExchangeType, IdType, PayloadType
from tunnelwrap.wire.message import (
    HEADER_LENGTH,
    EncryptedPayload,
    Fragment,
    IkeHeader,
    Message,
    clear_bodies,
    decode_chain,
    encode_chain,
    encode_outer,
    find_encrypted,
)
from tunnelwrap.wire.payloads import (
    Auth,
    Certificate,
    CertificateRequest,
    Configuration,
    Delete,
    IdPayload,
    KeyExchange,
    Nonce,
    Notify,
    TrafficSelectors,
    UnknownPayload,
    VendorId,
)
from tunnelwrap.wire.proposal import SaPayload
from tunnelwrap.wire.reader import Reader

HEADER = "0102030405060708 1112131415161718 21 20 22 08 00000007 0000001c"
GOLDEN = load("strongswan")
BY_NAME = {case["name"]: case for case in GOLDEN}

# The words of strongSwan's log for what has another word in RFC 7296 §1.2 or in the registry.
WORDS = {
    "No": "N",
    "CPRQ": "CP",
    "CPRP": "CP",
    "NATD_S_IP": "NAT_DETECTION_SOURCE_IP",
    "NATD_D_IP": "NAT_DETECTION_DESTINATION_IP",
    "FRAG_SUP": "IKEV2_FRAGMENTATION_SUPPORTED",
    "HASH_ALG": "SIGNATURE_HASH_ALGORITHMS",
    "REDIR_SUP": "REDIRECT_SUPPORTED",
    "CHDLESS_SUP": "CHILDLESS_IKEV2_SUPPORTED",
    "MULT_AUTH": "MULTIPLE_AUTH_SUPPORTED",
    "INIT_CONTACT": "INITIAL_CONTACT",
    "MOBIKE_SUP": "MOBIKE_SUPPORTED",
    "NO_ADD_ADDR": "NO_ADDITIONAL_ADDRESSES",
    "EAP_ONLY": "EAP_ONLY_AUTHENTICATION",
    "MSG_ID_SYN_SUP": "IKEV2_MESSAGE_ID_SYNC_SUPPORTED",
}


def header(**changes: object) -> IkeHeader:
    fields = {
        "spi_i": SPI_I,
        "spi_r": SPI_R,
        "next_payload": PayloadType.SA,
        "major": 2,
        "minor": 0,
        "exchange": ExchangeType.IKE_SA_INIT,
        "is_response": False,
        "is_initiator": True,
        "message_id": 7,
        "length": HEADER_LENGTH,
        **changes,
    }
    return IkeHeader(**fields)


def read(octets: bytes) -> Message:
    """A whole message in the clear."""
    head = IkeHeader.decode(octets)
    return with_payloads(head, decode_chain(head.next_payload, Reader(octets, HEADER_LENGTH)))


def with_payloads(head: IkeHeader, payloads: tuple) -> Message:
    flags = (head.is_response, head.is_initiator)
    return Message(head.spi_i, head.spi_r, head.exchange, *flags, head.message_id, payloads)


def golden(name: str) -> Message:
    """A message of strongSwan, its SK opened."""
    case = BY_NAME[name]
    if case["first"] is None:
        return read(case["message"])
    payloads = decode_chain(case["first"], Reader(case["inner"]))
    return with_payloads(IkeHeader.decode(case["message"]), payloads)


@pytest.mark.rfc("7296", "3.1")
def test_the_header_octet_for_octet() -> None:
    octets = bytes.fromhex(HEADER)
    for kind in (bytes, memoryview):
        assert IkeHeader.decode(kind(octets)) == header()
    assert header().encode() == octets


@pytest.mark.parametrize(("is_response", "is_initiator"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_flags(is_response: int, is_initiator: int) -> None:
    value = header(is_response=bool(is_response), is_initiator=bool(is_initiator))
    octets = value.encode()
    assert octets[19] == is_response * 0x20 + is_initiator * 0x08
    # RFC 7296 §3.1: the version flag and the reserved ones are ignored.
    assert IkeHeader.decode(octets[:19] + bytes([octets[19] | 0xD7]) + octets[20:]) == value


@pytest.mark.rfc("7296", "2.5")
def test_versions() -> None:
    octets = bytearray(bytes.fromhex(HEADER))
    octets[17] = 0x2F
    assert IkeHeader.decode(bytes(octets)).minor == 15, "a later minor version is fine"
    octets[17] = 0x10
    with pytest.raises(Malformed, match="version 1"):
        IkeHeader.decode(bytes(octets))
    octets[17] = 0x35
    for odd in (octets, octets + b"more", octets[:18]):
        with pytest.raises(UnsupportedVersion) as caught:
            IkeHeader.decode(bytes(odd))
        assert caught.value.major == 3


@pytest.mark.parametrize("size", [0, 1, 17, 18, 27])
def test_short_headers(size: int) -> None:
    with pytest.raises(Truncated, match=f"header of {size} octets"):
        IkeHeader.decode(bytes.fromhex(HEADER)[:size])


@pytest.mark.parametrize("length", [0, 27, 29, 0xFFFFFFFF])
def test_the_length_is_that_of_the_datagram(length: int) -> None:
    octets = bytes.fromhex(HEADER)[:24] + length.to_bytes(4, "big")
    with pytest.raises(Malformed, match=f"says {length} octets, has 28") as caught:
        IkeHeader.decode(octets)
    assert caught.value.offset == 24


@pytest.mark.rfc("7296", "3.2")
def test_a_chain_octet_for_octet() -> None:
    chain = (VendorId(b"ab"), VendorId(b""), Notify(0, b"", 16384, b""))
    octets = bytes.fromhex("2b000006 6162 29000004 00000008 00004000")
    assert encode_chain(chain) == (43, octets)
    assert decode_chain(43, Reader(octets)) == chain


def test_an_empty_chain() -> None:
    assert encode_chain(()) == (0, b"")
    assert decode_chain(0, Reader(b"")) == ()
    with pytest.raises(Malformed, match="4 octets behind the last payload"):
        decode_chain(0, Reader(bytes(4)))


@pytest.mark.parametrize(
    ("octets", "error", "text"),
    [
        ("", Truncated, "octets wanted"),
        ("000000", Truncated, "octets wanted"),
        ("00000003", Malformed, "payload of 3 octets"),
        ("00000006 61", Truncated, "2 octets wanted, 1 left"),
        ("00000005 61 62", Malformed, "1 octets behind the last payload"),
        ("2b000005 61", Truncated, "octets wanted"),
        ("2e000005 61 00000004", Malformed, "encrypted payload"),
        ("35000005 61 00000004", Malformed, "encrypted payload"),
        ("31000005 61 00800004", UnsupportedCritical, "type 49"),
    ],
)
def test_wrong_chains(octets: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        decode_chain(PayloadType.VENDOR_ID, reader(octets))


def test_unknown_payloads_of_a_chain_are_kept() -> None:
    octets = bytes.fromhex("31800005 61 2b000005 62 00000004")
    chain = decode_chain(PayloadType.VENDOR_ID, Reader(octets))
    assert chain == (VendorId(b"a"), UnknownPayload(49, b"b"), VendorId(b""))
    assert encode_chain(chain)[1] == octets.replace(b"\x31\x80", b"\x31\x00")


def test_a_message_with_every_payload() -> None:
    value = message(*PAYLOADS)
    octets = value.encode()
    assert read(octets) == value
    assert IkeHeader.decode(octets).length == len(octets)


@pytest.mark.rfc("7296", "3.14")
def test_the_outer_shape_of_sk() -> None:
    value = message(exchange=ExchangeType.IKE_AUTH)
    aad = encode_outer(value, PayloadType.ID_I, 40)
    assert aad == value.encode()[:16] + bytes.fromhex("2e 20 23 08 00000000 00000048 2300002c")
    octets = aad + bytes(range(40))
    encrypted = EncryptedPayload(PayloadType.ID_I, aad, bytes(range(40)), None)
    assert find_encrypted(IkeHeader.decode(octets), octets) == ((), encrypted)


@pytest.mark.rfc("7383", "2.5")
def test_the_outer_shape_of_skf() -> None:
    value = message(exchange=ExchangeType.IKE_AUTH)
    aad = encode_outer(value, PayloadType.ID_I, 40, Fragment(2, 259))
    assert aad[16:] == bytes.fromhex("35 20 23 08 00000000 0000004c 23000030 00020103")
    octets = aad + bytes(range(40))
    encrypted = EncryptedPayload(PayloadType.ID_I, aad, bytes(range(40)), Fragment(2, 259))
    assert find_encrypted(IkeHeader.decode(octets), octets) == ((), encrypted)


def test_bodies_of_a_clear_chain() -> None:
    octets = message(VendorId(b"ab"), VendorId(b"c")).encode()
    header = IkeHeader.decode(octets)
    assert list(clear_bodies(header, octets)) == [(43, b"ab"), (43, b"c")]
    with pytest.raises(Truncated):
        list(clear_bodies(header, octets[:-1]))


def test_payloads_before_sk() -> None:
    """RFC 7296 §3.14: SK is the last payload, and others may stand before it."""
    clear = message(VendorId(b"ab")).encode()
    sk = bytes.fromhex("00000008 aabbccdd")
    octets = clear[:27] + bytes([len(clear) + 8]) + b"\x2e" + clear[29:] + sk
    payloads, encrypted = find_encrypted(IkeHeader.decode(octets), octets)
    assert payloads == (VendorId(b"ab"),)
    assert encrypted == EncryptedPayload(0, octets[:-4], sk[4:], None)


def test_messages_without_sk() -> None:
    for value in (message(), message(VendorId(b"ab"))):
        octets = value.encode()
        assert find_encrypted(IkeHeader.decode(octets), octets) == (value.payloads, None)


@pytest.mark.parametrize(
    ("first", "octets", "error", "text"),
    [
        (46, "00000008 aabbccdd 00", Malformed, "1 octets behind the SK payload"),
        (46, "00000009 aabbccdd", Truncated, "octets wanted"),
        (46, "00000003", Malformed, "payload of 3 octets"),
        (46, "000000", Truncated, "octets wanted"),
        (43, "2e000004 00", Truncated, "octets wanted"),
        (43, "00000004 00", Malformed, "1 octets behind the last payload"),
        (0, "00", Malformed, "1 octets behind the last payload"),
        (53, "00000008 00010001 aa", Malformed, "1 octets behind the SKF payload"),
        (53, "00000006 0001", Truncated, "octets wanted"),
        (53, "0000000a 00000002 aabb", Malformed, "fragment 0 of 2"),
        (53, "0000000a 00000000 aabb", Malformed, "fragment 0 of 0"),
        (53, "0000000a 00030002 aabb", Malformed, "fragment 3 of 2"),
        (49, "2e800004 00000004", UnsupportedCritical, "type 49"),
    ],
)
def test_wrong_outer_shapes(first: int, octets: str, error: type[Exception], text: str) -> None:
    body = bytes.fromhex(octets)
    head = header(next_payload=first, length=HEADER_LENGTH + len(body))
    with pytest.raises(error, match=text):
        find_encrypted(head, head.encode() + body)


def test_finding_payloads() -> None:
    value = message(*PAYLOADS)
    assert value.find(Nonce) == PAYLOADS[2]
    assert value.find(IdPayload) == PAYLOADS[3]
    assert [payload.id_type for payload in value.all(IdPayload)] == [2, 3]
    assert value.notify(16390) == Notify(0, b"", 16390, b"cookie")
    assert message().find(Nonce) is None
    assert message().all(Nonce) == []
    assert value.notify(1) is None


def test_text() -> None:
    value = message(*PAYLOADS, exchange=ExchangeType.CREATE_CHILD_SA)
    assert str(value) == (
        "CREATE_CHILD_SA request 0 [SA KE Ni IDi IDr CERT CERTREQ AUTH N(COOKIE) N(REKEY_SA)"
        " N(INVALID_SYNTAX) D D V TSi TSr CP EAP 49]"
    )
    response = Message(SPI_I, SPI_R, 99, True, False, 3, (PAYLOADS[2],))
    assert str(response) == "99 response 3 [Nr]"
    assert str(message(exchange=ExchangeType.INFORMATIONAL)) == "INFORMATIONAL request 0 []"


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_strongswan_octet_for_octet(case: dict) -> None:
    value = golden(case["name"])
    if case["first"] is None:
        assert value.encode() == case["message"]
        return
    octets = case["message"]
    clear, encrypted = find_encrypted(IkeHeader.decode(octets), octets)
    assert clear == ()
    assert encrypted is not None
    assert encrypted.first == case["first"]
    assert encrypted.aad == encode_outer(value, case["first"], len(encrypted.body))
    assert encrypted.aad + encrypted.body == octets
    assert encode_chain(value.payloads) == (case["first"], case["inner"])


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_strongswan_sees_the_same_payloads(case: dict) -> None:
    _, exchange, direction, number = case["name"].rsplit(" ", 3)
    theirs = re.sub(r"CPR([QP])\([A-Z ]+\)", r"CPR\1", case["payloads"])
    theirs = re.sub(r"EAP/[A-Z0-9/]+", "EAP", theirs)
    words = re.sub(r"\w+", lambda found: WORDS.get(found[0], found[0]), theirs)
    ours = re.sub(r"\bN[ir]\b", "N", str(golden(case["name"])))
    assert ours == f"{exchange} {direction} {number} [{words}]"


def test_what_strongswan_was_told_to_say() -> None:
    request, response = golden("PSK: IKE_AUTH request 1"), golden("PSK: IKE_AUTH response 1")
    assert [(p.type, p.id_type, p.data) for p in request.all(IdPayload)] == [
        (PayloadType.ID_I, IdType.RFC822_ADDR, b"client@example.org"),
        (PayloadType.ID_R, IdType.FQDN, b"gateway.example.org"),
    ]
    assert request.find(Auth).method == AuthMethod.SHARED_KEY
    assert [str(proposal) for proposal in request.find(SaPayload).proposals] == [
        "ESP:AES_GCM_16-256/NO_ESN",
        "ESP:AES_CBC-128/HMAC_SHA2_256_128/ESN",
    ]
    selectors = [
        [str(ts) for ts in payload.selectors] for payload in response.all(TrafficSelectors)
    ]
    assert selectors == [["10.71.0.1/32"], ["10.72.0.0/24", "fd72::/64[tcp/80]"]]
    attributes = {a.type: a.value for a in response.find(Configuration).attributes}
    assert attributes == {
        CfgAttribute.INTERNAL_IP4_ADDRESS: bytes([10, 71, 0, 1]),
        CfgAttribute.INTERNAL_IP4_DNS: bytes([10, 72, 0, 53]),
    }


def test_what_strongswan_says_of_keys_and_certificates() -> None:
    initial = golden("PSK: IKE_SA_INIT request 0")
    assert [str(proposal) for proposal in initial.find(SaPayload).proposals] == [
        "IKE:AES_GCM_16-256/HMAC_SHA2_384/ECP_384",
        "IKE:AES_CBC-128/HMAC_SHA2_256_128/HMAC_SHA2_256/CURVE25519",
    ]
    ke = initial.find(KeyExchange)
    assert (ke.method, len(ke.data), len(initial.find(Nonce).data)) == (20, 96, 32)
    request = golden("certificates: IKE_AUTH request 1")
    assert request.find(Certificate).data[:2] == b"\x30\x82"
    assert len(request.find(CertificateRequest).authorities) == 20
    assert request.find(Auth).method == AuthMethod.DIGITAL_SIGNATURE


def test_how_strongswan_rekeys_and_deletes() -> None:
    rekey = golden("PSK: CREATE_CHILD_SA request 2")
    old = rekey.payloads[0]
    assert (old.protocol, len(old.spi), str(old)) == (3, 4, "N(REKEY_SA)")
    assert {len(p.spi) for p in rekey.find(SaPayload).proposals} == {4}
    ike = golden("PSK: CREATE_CHILD_SA request 5").find(SaPayload)
    assert {(p.protocol, len(p.spi)) for p in ike.proposals} == {(1, 8)}
    assert golden("PSK: INFORMATIONAL request 3").find(Delete) == Delete(3, (old.spi,))
    assert golden("PSK: INFORMATIONAL request 6").find(Delete) == Delete(1, ())
