"""IKE messages: header, chain of payloads, outer shape of SK and SKF. RFC 7296 §3.1-§3.2, RFC 7383.

No keys here: ``find_encrypted`` and ``encode_outer`` say where ciphertext stands, ``ike.protect``
opens and seals it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple, Self, TypeVar

from tunnelwrap.errors import Malformed, Truncated, UnsupportedVersion
from tunnelwrap.iana import ExchangeType, PayloadType, name_of
from tunnelwrap.wire.payloads import Notify, Payload, decode_payload, payload_type_of
from tunnelwrap.wire.reader import Reader

HEADER_LENGTH: Final = 28
GENERIC_HEADER_LENGTH: Final = 4
FRAGMENT_HEADER_LENGTH: Final = 4
MAJOR_VERSION: Final = 2

_INITIATOR: Final = 0x08
_RESPONSE: Final = 0x20
_CRITICAL: Final = 0x80
_FIRST_OFFSET: Final = 16
VERSION_OFFSET: Final = 17
_HEADER: Final = Struct("!8s8sBBBBII")
_FRAGMENT: Final = Struct("!HH")

# The notation of RFC 7296 §1.2; Ni and Nr share a number and are told apart by the message.
_NOTATION: Final[dict[int, str]] = {
    PayloadType.ID_I: "IDi",
    PayloadType.ID_R: "IDr",
    PayloadType.DELETE: "D",
    PayloadType.VENDOR_ID: "V",
    PayloadType.TS_I: "TSi",
    PayloadType.TS_R: "TSr",
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class IkeHeader:
    """The header of every IKE message. RFC 7296 §3.1.

    Layout: 8 octets SPIi | 8 octets SPIr | u8 next payload | 4 bits major, 4 bits minor version |
    u8 exchange | u8 flags | u32 message ID | u32 length
    """

    spi_i: bytes
    spi_r: bytes
    next_payload: int
    major: int
    minor: int
    exchange: int
    is_response: bool
    is_initiator: bool  # sent by the original initiator of the IKE SA
    message_id: int
    length: int  # of the whole message

    @classmethod
    def decode(cls, octets: bytes | memoryview) -> Self:
        """Read the header of a whole message.

        Raises:
            UnsupportedVersion: of a later major version, whatever else is in it.
            WireError: no header of ours, or its length is not that of ``octets``.
        """
        _check_version(octets)
        if len(octets) < HEADER_LENGTH:
            raise Truncated(f"IKE header of {len(octets)} octets", len(octets))
        spi_i, spi_r, first, version, exchange, flags, message_id, length = _HEADER.unpack_from(
            octets
        )
        if length != len(octets):
            raise Malformed(f"message says {length} octets, has {len(octets)}", HEADER_LENGTH - 4)
        return cls(
            spi_i,
            spi_r,
            first,
            version >> 4,
            version & 0x0F,
            exchange,
            bool(flags & _RESPONSE),
            bool(flags & _INITIATOR),
            message_id,
            length,
        )

    def encode(self) -> bytes:
        """The header's 28 octets."""
        flags = (_RESPONSE if self.is_response else 0) | (_INITIATOR if self.is_initiator else 0)
        return _HEADER.pack(
            self.spi_i,
            self.spi_r,
            self.next_payload,
            self.major << 4 | self.minor,
            self.exchange,
            flags,
            self.message_id,
            self.length,
        )


@dataclass(frozen=True, slots=True)
class Message:
    """One IKE message with its payloads in the clear. RFC 7296 §1.2, §3.1."""

    spi_i: bytes
    spi_r: bytes
    exchange: int
    is_response: bool
    is_initiator: bool  # sent by the original initiator of the IKE SA
    message_id: int
    payloads: tuple[Payload, ...]

    def encode(self) -> bytes:
        """The octets of the message, nothing of it encrypted."""
        first, chain = encode_chain(self.payloads)
        return _header_of(self, first, HEADER_LENGTH + len(chain)).encode() + chain

    def find(self, kind: type[T]) -> T | None:
        """The first payload of a class."""
        return next((p for p in self.payloads if isinstance(p, kind)), None)

    def all(self, kind: type[T]) -> list[T]:
        """The payloads of a class, in order."""
        return [p for p in self.payloads if isinstance(p, kind)]

    def notify(self, notify: int) -> Notify | None:
        """The first Notify of a type."""
        return next((n for n in self.all(Notify) if n.notify == notify), None)

    def __str__(self) -> str:
        direction = "response" if self.is_response else "request"
        payloads = " ".join(self._name_of(payload) for payload in self.payloads)
        exchange = name_of(ExchangeType, self.exchange)
        return f"{exchange} {direction} {self.message_id} [{payloads}]"

    def _name_of(self, payload: Payload) -> str:
        if isinstance(payload, Notify):
            return str(payload)
        number = payload_type_of(payload)
        if number == PayloadType.NONCE:
            return "Nr" if self.is_response else "Ni"
        return _NOTATION.get(number) or name_of(PayloadType, number)


class Fragment(NamedTuple):
    """Which part of a message an SKF payload is. RFC 7383 §2.5.

    Layout: u16 number | u16 total
    """

    number: int  # from 1
    total: int


@dataclass(frozen=True, slots=True)
class EncryptedPayload:
    """The outer shape of an SK or SKF payload. RFC 7296 §3.14, RFC 7383 §2.5."""

    first: int  # type of the first payload inside; of fragments only the first one tells
    aad: bytes  # the message up to and including the header of SK or SKF
    body: bytes  # IV, ciphertext and ICV
    fragment: Fragment | None  # None: SK, the whole message


def decode_chain(first: int, body: Reader) -> tuple[Payload, ...]:
    """The payloads of a chain, which must fill ``body``; ``first`` 0: none. RFC 7296 §3.2.

    Raises:
        WireError: a payload is malformed, critical and unknown, or encrypted.
    """
    payloads = []
    payload_type = first
    while payload_type != PayloadType.NONE:
        generic = _generic_header(body)
        content = body.sub(generic.body_length)
        payloads.append(decode_payload(payload_type, generic.is_critical, content))
        payload_type = generic.next_payload
    body.expect_end("the last payload")
    return tuple(payloads)


def encode_chain(payloads: Sequence[Payload]) -> tuple[int, bytes]:
    """The type of the first payload (0: none) and the octets of all of them."""
    types = [*map(payload_type_of, payloads), int(PayloadType.NONE)]
    chain = [
        _encode_generic(next_payload, len(body)) + body
        for next_payload, body in zip(types[1:], (p.encode() for p in payloads), strict=True)
    ]
    return types[0], b"".join(chain)


def clear_bodies(header: IkeHeader, octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and undecoded body of each payload of a message in clear; cheap to begin with.

    Raises:
        WireError: the chain is malformed; found out on the way.
    """
    body = Reader(octets, HEADER_LENGTH)
    payload_type = header.next_payload
    while payload_type != PayloadType.NONE:
        generic = _generic_header(body)
        yield payload_type, body.take(generic.body_length)
        payload_type = generic.next_payload


def find_encrypted(
    header: IkeHeader, octets: bytes
) -> tuple[tuple[Payload, ...], EncryptedPayload | None]:
    """The payloads before SK or SKF, and that one, which must be the last.

    RFC 7296 §3.14, RFC 7383 §2.5.

    Raises:
        WireError: the chain is malformed, SK does not end it, or SKF has impossible numbers.
    """
    body = Reader(octets, HEADER_LENGTH)
    payloads = []
    payload_type = header.next_payload
    while payload_type not in (PayloadType.NONE, PayloadType.SK, PayloadType.SKF):
        generic = _generic_header(body)
        content = body.sub(generic.body_length)
        payloads.append(decode_payload(payload_type, generic.is_critical, content))
        payload_type = generic.next_payload
    if payload_type == PayloadType.NONE:
        body.expect_end("the last payload")
        return tuple(payloads), None
    generic = _generic_header(body)
    content = body.sub(generic.body_length)
    body.expect_end(f"the {name_of(PayloadType, payload_type)} payload")
    fragment = _fragment(content) if payload_type == PayloadType.SKF else None
    aad = bytes(octets[: content.offset])
    return tuple(payloads), EncryptedPayload(generic.next_payload, aad, content.rest(), fragment)


def encode_outer(
    message: Message, first: int, sealed_length: int, fragment: Fragment | None = None
) -> bytes:
    """The header, and the header of SK or SKF, for a message whose payloads go inside.

    It is also the associated data of an AEAD (RFC 5282 §5.1).

    Args:
        message: gives the header's fields; its payloads are not looked at.
        first: type of the first payload inside; 0 in all fragments but the first.
        sealed_length: octets of IV, ciphertext and ICV together.
        fragment: which part of the message this is; None: all of it.
    """
    place = b"" if fragment is None else _FRAGMENT.pack(*fragment)
    payload_type = PayloadType.SK if fragment is None else PayloadType.SKF
    body_length = len(place) + sealed_length
    header = _header_of(message, payload_type, HEADER_LENGTH + GENERIC_HEADER_LENGTH + body_length)
    return header.encode() + _encode_generic(first, body_length) + place


def encode_unencrypted(message: Message) -> bytes:
    """A message as if SK encrypted nothing: A | P, the form that AUTH proves. RFC 9242 §3.3.2.

    Both lengths count the header, the generic header of SK and the payloads inside, and neither
    IV nor padding nor ICV; nor does it matter whether the message travels in fragments.
    """
    first, plaintext = encode_chain(message.payloads)
    return encode_outer(message, first, len(plaintext)) + plaintext


def unencrypted(aad: bytes, plaintext: bytes) -> bytes:
    """The same for a message that came, octet for octet.

    Args:
        aad: the message up to and including the generic header of SK.
        plaintext: what was inside, without padding.
    """
    length = (len(aad) + len(plaintext)).to_bytes(4, "big")
    head = aad[: HEADER_LENGTH - 4] + length + aad[HEADER_LENGTH:-2]
    return head + (GENERIC_HEADER_LENGTH + len(plaintext)).to_bytes(2, "big") + plaintext


def aad_of_whole(aad: bytes, first: int) -> bytes:
    """What stands before the ciphertext if a message had come whole, by that of a fragment.

    The lengths in it are those of the fragment. RFC 9242 §3.3.2, RFC 7383 §2.5.

    Args:
        aad: of any fragment.
        first: type of the first payload inside the message.
    """
    return (
        aad[:_FIRST_OFFSET]
        + bytes([PayloadType.SK])
        + aad[VERSION_OFFSET:HEADER_LENGTH]
        + (bytes([first, 0, 0, 0]))
    )


class _Generic(NamedTuple):
    """Layout: u8 next payload | 1 bit critical, 7 reserved | u16 length. RFC 7296 §3.2."""

    next_payload: int
    is_critical: bool
    body_length: int


def _check_version(octets: bytes | memoryview) -> None:
    if len(octets) <= VERSION_OFFSET:
        raise Truncated(f"IKE header of {len(octets)} octets", len(octets))
    major = octets[VERSION_OFFSET] >> 4
    if major > MAJOR_VERSION:
        raise UnsupportedVersion(major)
    if major < MAJOR_VERSION:
        raise Malformed(f"IKE major version {major}, expected 2", VERSION_OFFSET)


def _header_of(message: Message, first: int, length: int) -> IkeHeader:
    return IkeHeader(
        message.spi_i,
        message.spi_r,
        first,
        MAJOR_VERSION,
        0,
        message.exchange,
        message.is_response,
        message.is_initiator,
        message.message_id,
        length,
    )


def _generic_header(body: Reader) -> _Generic:
    next_payload, flags, length = body.u8(), body.u8(), body.u16()
    if length < GENERIC_HEADER_LENGTH:
        raise Malformed(f"payload of {length} octets", body.offset - 2)
    return _Generic(next_payload, bool(flags & _CRITICAL), length - GENERIC_HEADER_LENGTH)


def _fragment(body: Reader) -> Fragment:
    fragment = Fragment(body.u16(), body.u16())
    if not 1 <= fragment.number <= fragment.total:  # RFC 7383 §2.6
        raise Malformed(f"fragment {fragment.number} of {fragment.total}", body.offset - 4)
    return fragment


def _encode_generic(next_payload: int, body_length: int) -> bytes:
    # RFC 7296 §3.2: the critical bit is zero for all payload types of the RFC, which we send.
    return bytes([next_payload, 0]) + (GENERIC_HEADER_LENGTH + body_length).to_bytes(2, "big")
