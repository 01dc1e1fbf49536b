"""Codecs of wire: what they write they read, and no octets make a decoder raise but WireError."""

import itertools
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.wire.samples import PAYLOADS, load, message
from tunnelwrap.errors import WireError
from tunnelwrap.iana import EapCode, PayloadType
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
from tunnelwrap.wire.esp import EspHeader, EspTrailer, classify
from tunnelwrap.wire.framing import PREFIX, Deframer, frame
from tunnelwrap.wire.ip import checksum, clamp_mss, flow_of, too_big
from tunnelwrap.wire.message import (
    HEADER_LENGTH,
    EncryptedPayload,
    Fragment,
    IkeHeader,
    Message,
    decode_chain,
    encode_chain,
    encode_outer,
    find_encrypted,
)
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
from tunnelwrap.wire.proposal import Proposal, SaPayload, Transform
from tunnelwrap.wire.reader import Reader
from tunnelwrap.wire.tls import client_hello

settings.register_profile("wire", max_examples=150, deadline=None)
wire = settings.get_profile("wire")

u8, u16, u32 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32))
octets = st.binary(max_size=80)
spis = st.binary(max_size=20)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def tuples(items: st.SearchStrategy, least: int = 0, most: int = 5) -> st.SearchStrategy[tuple]:
    return st.lists(items, min_size=least, max_size=most).map(tuple)


# Attribute 14 in the short format is KEY_LENGTH, the transform's own field.
short_attributes = st.tuples(
    st.integers(0x8000, 0xFFFF).filter(lambda kind: kind != 0x800E), exactly(2)
)
long_attributes = st.tuples(st.integers(0, 0x7FFF), octets)
transforms = st.builds(
    Transform, u8, u16, st.none() | u16, tuples(short_attributes | long_attributes, most=3)
)
proposals = st.builds(Proposal, u8, u8, spis, tuples(transforms))
ports = st.tuples(u16, u16).map(sorted).map(tuple) | st.just((65535, 0))


@st.composite
def selectors(draw: st.DrawFn) -> TrafficSelector:
    kind, bits = draw(st.sampled_from([(IPv4Address, 32), (IPv6Address, 128)]))
    address = st.integers(0, (1 << bits) - 1)
    start, end = sorted((draw(address), draw(address)))
    return TrafficSelector(draw(u8), *draw(ports), kind(start), kind(end))


@st.composite
def deletes(draw: st.DrawFn) -> Delete:
    spi = exactly(draw(st.integers(1, 12)))
    return Delete(draw(u8), draw(tuples(spi)))


identities = st.builds(IdPayload, st.sampled_from([PayloadType.ID_I, PayloadType.ID_R]), u8, octets)
selector_payloads = st.builds(
    TrafficSelectors, st.sampled_from([PayloadType.TS_I, PayloadType.TS_R]), tuples(selectors())
)
attributes = st.builds(ConfigurationAttribute, st.integers(0, 0x7FFF), octets)
unknown_types = u8.filter(lambda n: n not in {*DECODERS, 0, PayloadType.SK, PayloadType.SKF})
payloads: st.SearchStrategy[Payload] = st.one_of(
    st.builds(SaPayload, tuples(proposals, least=1, most=3)),
    st.builds(KeyExchange, u16, octets),
    identities,
    st.builds(Certificate, u8, octets),
    st.builds(CertificateRequest, u8, octets),
    st.builds(Auth, u8, octets),
    st.builds(Nonce, st.binary(min_size=16, max_size=256)),
    st.builds(Notify, u8, spis, u16, octets),
    deletes(),
    st.builds(VendorId, octets),
    selector_payloads,
    st.builds(Configuration, u8, tuples(attributes)),
    st.builds(EapPayload, octets),
    st.builds(UnknownPayload, unknown_types, octets),
)
fragments = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(
    lambda pair: Fragment(min(pair), max(pair))
)
messages = st.builds(
    Message, exactly(8), exactly(8), u8, st.booleans(), st.booleans(), u32, tuples(payloads)
)
eap_bodies: st.SearchStrategy[Mschapv2] = st.one_of(
    st.builds(Mschapv2Challenge, u8, exactly(16), octets),
    st.builds(Mschapv2Response, u8, exactly(16), exactly(24), u8, octets),
    st.builds(Mschapv2Result, st.sampled_from([3, 4]), u8, octets),
    st.builds(Mschapv2Acknowledgement, st.sampled_from([3, 4])),
)
eap_packets = st.builds(
    EapPacket, st.sampled_from([EapCode.REQUEST, EapCode.RESPONSE]), u8, u8, octets
) | st.builds(
    EapPacket, st.sampled_from([EapCode.SUCCESS, EapCode.FAILURE]), u8, st.none(), st.just(b"")
)


def read(whole: bytes) -> Message:
    head = IkeHeader.decode(whole)
    chain = decode_chain(head.next_payload, Reader(whole, HEADER_LENGTH))
    flags = (head.is_response, head.is_initiator)
    return Message(head.spi_i, head.spi_r, head.exchange, *flags, head.message_id, chain)


@wire
@given(payloads, st.booleans())
def test_payloads(payload: Payload, critical: bool) -> None:  # noqa: FBT001 -- hypothesis gives it
    number = payload_type_of(payload)
    critical = critical and not isinstance(payload, UnknownPayload)
    body = payload.encode()
    assert decode_payload(number, critical, Reader(body)) == payload
    assert str(payload)


@wire
@given(messages)
def test_messages(value: Message) -> None:
    whole = value.encode()
    assert read(whole) == value
    assert read(whole).encode() == whole
    assert str(value)


@wire
@given(messages, octets, st.none() | fragments)
def test_outer_shapes(value: Message, sealed: bytes, fragment: Fragment | None) -> None:
    first, _ = encode_chain(value.payloads)
    aad = encode_outer(value, first, len(sealed), fragment)
    whole = aad + sealed
    found = find_encrypted(IkeHeader.decode(whole), whole)
    assert found == ((), EncryptedPayload(first, aad, sealed, fragment))


@wire
@given(eap_packets)
def test_eap_packets(packet: EapPacket) -> None:
    assert EapPacket.decode(Reader(packet.encode())) == packet


@wire
@given(
    st.builds(Identity, octets)
    | st.builds(Nak, tuples(u8, least=1))
    | st.builds(TlsFragment, st.booleans(), st.booleans(), st.none() | u32, octets)
)
def test_eap_bodies(body: Identity | Nak | TlsFragment) -> None:
    assert type(body).decode(Reader(body.encode())) == body


@wire
@given(eap_bodies)
def test_mschapv2(body: Mschapv2) -> None:
    assert decode_mschapv2(Reader(body.encode())) == body


@wire
@given(st.builds(EspHeader, u32, u32), st.builds(EspTrailer, u8, u8), octets)
def test_esp(header: EspHeader, trailer: EspTrailer, payload: bytes) -> None:
    assert EspHeader.decode(Reader(header.encode() + payload)) == header
    assert EspTrailer.decode(payload + trailer.encode()) == trailer


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


@wire
@given(
    datagrams=st.lists(octets),
    places=st.lists(st.integers(0, 1 << 16), max_size=30),
    prefix=st.booleans(),
)
def test_streams_in_any_pieces(datagrams: list[bytes], places: list[int], *, prefix: bool) -> None:
    stream = PREFIX * prefix + b"".join(map(frame, datagrams))
    deframer = Deframer(prefix)
    found = [bytes(view) for piece in cut(stream, places) for view in deframer.feed(piece)]
    assert found == [datagram for datagram in datagrams if datagram]


@wire
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=10))
def test_any_stream_gives_the_same_in_any_pieces(stream: bytes, places: list[int]) -> None:
    """The same datagrams, then the same verdict."""

    def outcome(pieces: list[bytes]) -> tuple[list[bytes], bool]:
        deframer, found = Deframer(False), []
        try:
            for piece in pieces:
                found += [bytes(view) for view in deframer.feed(piece)]
        except WireError:
            return found, False
        return found, True

    one_by_one, is_good = outcome([stream[at : at + 1] for at in range(len(stream))])
    in_pieces, is_good_too = outcome(cut(stream, places))
    assert is_good == is_good_too
    # datagrams in the very piece that ends it may be lost with it
    assert one_by_one[: len(in_pieces)] == in_pieces
    assert not is_good or one_by_one == in_pieces


@wire
@given(st.binary(max_size=200))
@example(b"\xff\xff")
def test_checksum_is_the_sum_of_words(data: bytes) -> None:
    padded = data + bytes(len(data) & 1)
    total = sum(int.from_bytes(padded[at : at + 2], "big") for at in range(0, len(padded), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    assert checksum(data) == 0xFFFF - total


def decode_message(data: bytes) -> None:
    head = IkeHeader.decode(data)
    with suppress(WireError):
        find_encrypted(head, data)
    str(read(data))


def decode_flow(data: bytes) -> None:
    buffer = bytearray(data)
    clamp_mss(buffer, 1, 1)
    assert len(buffer) == len(data)
    for source in (IPv4Address(1), IPv6Address(2)):
        too_big(memoryview(data), 1280, source)
    flow_of(memoryview(data))


TOTAL: dict[str, Callable[[bytes], object]] = {
    "header": IkeHeader.decode,
    "message": decode_message,
    "eap": lambda data: EapPacket.decode(Reader(data)),
    "nak": lambda data: Nak.decode(Reader(data)),
    "tls-fragment": lambda data: TlsFragment.decode(Reader(data)),
    "mschapv2": lambda data: decode_mschapv2(Reader(data)),
    "esp-header": lambda data: EspHeader.decode(Reader(data)),
    "esp-trailer": EspTrailer.decode,
    "classify": classify,
    "stream": lambda data: Deframer(True).feed(data),
    "frames": lambda data: Deframer(False).feed(data),
    "hello": client_hello,
    "ip": decode_flow,
    **{
        f"payload {number}": lambda data, number=number: str(
            decode_payload(number, True, Reader(data))
        )
        for number in range(256)
        if number in DECODERS or number in (0, 46, 53, 99)
    },
}
"""Decoders that are to give a value or a WireError, and nothing else."""

SEEDS: list[bytes] = [
    message(*PAYLOADS).encode(),
    *(payload.encode() for payload in PAYLOADS),
    *(case["message"] for case in load("strongswan")[:2]),
    *(case["octets"] for case in load("client_hello")),
    bytes.fromhex(
        "4500002c000000004006000001020304050607080000000000000000000000006002000000000000020405b4"
    ),
    bytes.fromhex("60000000000c3c40") + bytes(32) + bytes.fromhex("0600010400000000 020405b4"),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Good octets with some changed, cut off or added."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(u8)
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data) + draw(st.binary(max_size=8))


def right_length(data: bytes) -> bytes:
    """The same with the length field of an IKE header made right, to get behind it."""
    return data[:24] + len(data).to_bytes(4, "big") + data[28:] if len(data) >= 28 else data


@pytest.mark.parametrize("name", TOTAL)
@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | damaged() | damaged().map(right_length))
def test_decoders_are_total(name: str, data: bytes) -> None:
    with suppress(WireError):
        TOTAL[name](data)


@settings(max_examples=500, deadline=None)
@given(damaged().map(right_length))
def test_what_is_read_can_be_written(data: bytes) -> None:
    """Whatever a peer says, ``encode`` does not fail on it, and says the same."""
    with suppress(WireError):
        value = read(data)
        assert read(value.encode()) == value
