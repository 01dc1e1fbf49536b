"""Fuzz targets for the decoders.

Invariant of each: the octets decode, or WireError is raised, and nothing else. What decodes can be
printed, and where a decoder has an encoder, encoding and decoding again gives the same value.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Protocol

from tests.fuzz.target import Target
from tests.properties.test_sniff import CORPUS
from tests.unit.wire.samples import PAYLOADS, load, message
from tests.unit.wire.test_proxy import HEADERS
from tunnelwrap.auth.identity import Identity, IdentityPattern
from tunnelwrap.demux.sniff import MAX_SNIFF, Verdict, sniff
from tunnelwrap.errors import WireError
from tunnelwrap.iana import EapType
from tunnelwrap.path import IpAddress, SocketAddress
from tunnelwrap.wire import eap, esp, ip
from tunnelwrap.wire.framing import PREFIX, Deframer, frame
from tunnelwrap.wire.message import (
    HEADER_LENGTH,
    Fragment,
    IkeHeader,
    Message,
    decode_chain,
    encode_chain,
    encode_outer,
    find_encrypted,
)
from tunnelwrap.wire.payloads import DECODERS, decode_payload, payload_type_of
from tunnelwrap.wire.proposal import Proposal
from tunnelwrap.wire.proxy import (
    MAX_HEADER,
    ProxyHeader,
    decode_header,
    encode_v1,
    encode_v2,
)
from tunnelwrap.wire.reader import Reader
from tunnelwrap.wire.tls import MAX_HELLO, HelloReader, client_hello

_SYN = bytes.fromhex(
    "4500003c1c4640004006b1e6ac100a63ac100a0c"
    "c0de01bb00000001000000005002faf0e6320000020405b40402080a00000001000000000103030a"
)
_ICMPV6 = bytes.fromhex(
    "6000000000083a4020010db800000000000000000000000120010db8000000000000000000000002"
    "8000aabb00010001"
)
_HOP_BY_HOP = _ICMPV6[:6] + bytes([0, 64]) + _ICMPV6[8:40] + bytes([44, 0]) + bytes(6)
_FRAGMENT = _HOP_BY_HOP + bytes([17, 0, 0, 8, 0, 0, 0, 1]) + bytes(8)


class _Encodable(Protocol):
    def encode(self) -> bytes: ...


def _message(octets: bytes) -> None:
    """Header and chain; the outer shape of SK too, which takes another road."""
    header = IkeHeader.decode(octets)
    assert header.length == len(octets)
    with suppress(WireError):
        find_encrypted(header, octets)
    payloads = decode_chain(header.next_payload, Reader(octets, HEADER_LENGTH))
    flags = (header.is_response, header.is_initiator)
    spis = (header.spi_i, header.spi_r)
    decoded = Message(*spis, header.exchange, *flags, header.message_id, payloads)
    assert len(str(decoded).split("[")[1].split()) >= len(payloads)
    first, chain = encode_chain(payloads)
    assert decode_chain(first, Reader(chain)) == payloads


def _messages() -> Iterator[bytes]:
    yield message(*PAYLOADS).encode()
    yield encode_outer(message(), 41, 24) + bytes(24)
    yield encode_outer(message(), 41, 24, Fragment(1, 2)) + bytes(24)
    for name in ("ike_scan", "strongswan"):
        yield from (case["message"] for case in load(name))


def _payload(payload_type: int) -> Callable[[bytes], None]:
    def run(octets: bytes) -> None:
        payload = decode_payload(payload_type, False, Reader(octets))
        assert payload_type_of(payload) == payload_type
        str(payload)
        assert decode_payload(payload_type, False, Reader(payload.encode())) == payload

    run.__doc__ = f"The body of payload {payload_type}."
    return run


def _payloads(payload_type: int) -> Callable[[], Iterator[bytes]]:
    def seeds() -> Iterator[bytes]:
        found = [p.encode() for p in PAYLOADS if payload_type_of(p) == payload_type]
        yield from found or [bytes(8)]

    return seeds


def _proposal(octets: bytes) -> None:
    """One proposal with its transforms and their attributes."""
    proposal = Proposal.decode(Reader(octets))
    str(proposal)
    assert Proposal.decode(Reader(proposal.encode(is_last=True)[4:])) == proposal


def _proposals() -> Iterator[bytes]:
    for payload in PAYLOADS[:1]:
        for proposal in getattr(payload, "proposals", ()):
            yield proposal.encode(is_last=True)[4:]


def _eap(octets: bytes) -> None:
    """An EAP packet, and what stands behind its type."""
    packet = eap.EapPacket.decode(Reader(octets))
    assert eap.EapPacket.decode(Reader(packet.encode())) == packet
    inside: _Encodable
    if packet.type == EapType.MSCHAPV2:
        inside = eap.decode_mschapv2(Reader(packet.data))
        assert eap.decode_mschapv2(Reader(inside.encode())) == inside
        return
    for kind in (eap.Identity, eap.Nak, eap.TlsFragment):
        if packet.type == kind.TYPE:
            inside = kind.decode(Reader(packet.data))
            assert kind.decode(Reader(inside.encode())) == inside


def _eaps() -> Iterator[bytes]:
    bodies: list[tuple[int, bytes]] = [
        (EapType.IDENTITY, b"carol"),
        (EapType.NAK, bytes([13, 26])),
        (EapType.TLS, eap.TlsFragment(True, True, 5000, b"flight").encode()),
        (EapType.MSCHAPV2, eap.Mschapv2Challenge(1, bytes(16), b"vpn").encode()),
        (EapType.MSCHAPV2, eap.Mschapv2Response(1, bytes(16), bytes(24), 0, b"carol").encode()),
        (EapType.MSCHAPV2, eap.Mschapv2Result(3, 1, b"S=0011 M=welcome").encode()),
        (EapType.MSCHAPV2, eap.Mschapv2Acknowledgement(3).encode()),
    ]
    yield from (eap.EapPacket(1, 7, kind, body).encode() for kind, body in bodies)
    yield eap.EapPacket(3, 7, None, b"").encode()


def _esp(octets: bytes) -> None:
    """What a datagram is, the ESP header, and the trailer of decrypted octets."""
    kind = esp.classify(octets)
    if kind is esp.Kind.ESP:
        header = esp.EspHeader.decode(Reader(octets))
        assert header.encode() == octets[:8]
        assert header.spi
    trailer = esp.EspTrailer.decode(octets)
    assert 2 + trailer.pad_length <= len(octets)
    assert trailer.encode()[-2:] == octets[-2:]


def _framing(octets: bytes) -> None:
    """The first octet says in pieces of what size the rest arrives; pieces change nothing."""
    if not octets:
        return
    step, stream = octets[0] + 1, octets[1:]
    for expect_prefix in (False, True):
        whole = _datagrams(Deframer(expect_prefix), [stream])
        pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
        assert _datagrams(Deframer(expect_prefix), pieces) == whole


def _datagrams(deframer: Deframer, pieces: list[bytes]) -> list[bytes] | None:
    """The datagrams of a stream; None where it has lost its frame boundaries."""
    found: list[bytes] = []
    try:
        for piece in pieces:
            found += [bytes(datagram) for datagram in deframer.feed(piece)]
    except WireError:
        return None
    assert all(found)
    assert sum(map(len, found)) <= sum(map(len, pieces))
    return found


def _ip(octets: bytes) -> None:
    """A packet out of an SA: its flow; clamping and refusing it never raise."""
    writable = bytearray(octets)
    ip.clamp_mss(writable, 1300, 1280)
    assert len(writable) == len(octets)
    for source in _ROUTERS:
        answer = ip.too_big(memoryview(octets), 1280, source)
        if answer is not None:
            assert len(answer) <= 1280
            ip.flow_of(memoryview(answer))
    flow = ip.flow_of(memoryview(octets))
    assert flow[0] in (4, 6)


_ROUTERS: tuple[IpAddress, ...] = tuple(
    SocketAddress.of((text, 0)).ip for text in ("192.0.2.1", "2001:db8::1")
)


def _tls(octets: bytes) -> None:
    """A ClientHello; None only while it may still become one."""
    hello = client_hello(octets)
    assert hello is not None or len(octets) < 2 * MAX_HELLO
    reader, middle = HelloReader(), octets[: len(octets) // 2]
    assert (reader.read(middle) or reader.read(octets)) == hello


def _hellos() -> Iterator[bytes]:
    yield from (case["octets"] for case in load("client_hello"))


def _proxy(octets: bytes) -> None:
    """A PROXY header, and its ends as we would say them; None only while it may still come."""
    header = decode_header(octets)
    if header is None:
        assert len(octets) < MAX_HEADER
        return
    assert header.length <= len(octets)
    assert decode_header(octets[: header.length - 1]) is None
    if header.ends is not None:
        for again in (encode_v1(header.ends), encode_v2(header.ends)):
            assert decode_header(again) == ProxyHeader(header.ends, len(again))


def _sniff(octets: bytes) -> None:
    """The first octets of a stream: never an error, and final once it is decided."""
    for asked in (frozenset[Verdict](), frozenset(Verdict)):
        verdict = sniff(octets, asked)
        assert verdict is not Verdict.NEED_MORE or len(octets) < MAX_SNIFF
        assert verdict in (Verdict.NEED_MORE, sniff(octets + b"\0", asked))


def _identity(octets: bytes) -> None:
    """An identity that a peer claims: printing and comparing it never raise."""
    if not octets:
        return
    identity = Identity(octets[0], octets[1:])
    assert str(identity).isprintable()
    identity.canonical()
    for pattern in _PATTERNS:
        pattern.matches(identity)


_PATTERNS = tuple(map(IdentityPattern.parse, ("%any", "*.example.org", "C=CH, O=Acme, CN=gw")))


def _identities() -> Iterator[bytes]:
    for text in ("192.0.2.1", "2001:db8::1", "gw.example.org", "a@example.org", "@#00ff"):
        identity = Identity.parse(text)
        yield bytes([identity.type]) + identity.data
    name = Identity.parse("C=CH, O=Acme, CN=gw")
    yield bytes([name.type]) + name.data


_NAMES = {
    "security_association": 33,
    "key_exchange": 34,
    "identity_initiator": 35,
    "identity_responder": 36,
    "certificate": 37,
    "certificate_request": 38,
    "authentication": 39,
    "nonce": 40,
    "notify": 41,
    "delete": 42,
    "vendor_id": 43,
    "selectors_initiator": 44,
    "selectors_responder": 45,
    "configuration": 47,
    "eap": 48,
}
assert set(_NAMES.values()) == set(DECODERS), "each payload has its target"

DECODER_TARGETS = (
    Target("message", _message, _messages),
    *(
        Target(f"payload_{name}", _payload(number), _payloads(number))
        for name, number in _NAMES.items()
    ),
    Target("proposal", _proposal, _proposals),
    Target("eap", _eap, _eaps),
    Target("esp", _esp, lambda: iter([bytes(4) + b"ike", bytes(range(1, 20)), b"\xff"])),
    Target(
        "framing",
        _framing,
        lambda: iter([b"\0" + PREFIX + frame(b"datagram") * 3, b"\5" + frame(bytes(40)) + b"\0\2"]),
    ),
    Target("ip", _ip, lambda: iter([_SYN, _ICMPV6, _HOP_BY_HOP, _FRAGMENT])),
    Target("tls_client_hello", _tls, _hellos),
    Target("proxy_header", _proxy, lambda: iter(HEADERS)),
    Target("sniff", _sniff, lambda: iter(CORPUS)),
    Target("identity", _identity, _identities),
)
