"""EAP packets and the bodies of the methods we speak. RFC 3748 §4-§5.

``EapPacket.data`` is what stands behind the type; the classes below read it.
"""

from dataclasses import dataclass
from typing import ClassVar, Final, Self

from tunnelwrap.errors import Malformed
from tunnelwrap.iana import EapCode, EapType
from tunnelwrap.wire.reader import Reader

_HEADER_LENGTH: Final = 4
_WITH_TYPE: Final = frozenset({EapCode.REQUEST, EapCode.RESPONSE})
_WITHOUT_TYPE: Final = frozenset({EapCode.SUCCESS, EapCode.FAILURE})


@dataclass(frozen=True, slots=True)
class EapPacket:
    """An EAP packet. RFC 3748 §4.

    Layout: u8 code | u8 identifier | u16 length | u8 type and data, in requests and responses
    """

    code: int
    identifier: int
    type: int | None  # None in Success and Failure
    data: bytes

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read a packet; octets behind its length are padding and dropped (RFC 3748 §4).

        Raises:
            WireError: its shape is wrong, or its code is none of RFC 3748.
        """
        code, identifier, length = body.u8(), body.u8(), body.u16()
        if length < _HEADER_LENGTH:
            raise Malformed(f"EAP packet of {length} octets", body.offset - 2)
        content = body.sub(length - _HEADER_LENGTH)
        body.rest()
        if code in _WITH_TYPE:
            return cls(code, identifier, content.u8(), content.rest())
        if code not in _WITHOUT_TYPE:
            raise Malformed(f"EAP code {code}", content.offset - _HEADER_LENGTH)
        content.expect_end("EAP Success or Failure")
        return cls(code, identifier, None, b"")

    def encode(self) -> bytes:
        """The whole packet."""
        content = (b"" if self.type is None else bytes([self.type])) + self.data
        length = (_HEADER_LENGTH + len(content)).to_bytes(2, "big")
        return bytes([self.code, self.identifier]) + length + content


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity: in a response who the peer is, in a request a text for people. RFC 3748 §5.1."""

    TYPE: ClassVar[EapType] = EapType.IDENTITY

    data: bytes

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read what stands behind the type."""
        return cls(body.rest())

    def encode(self) -> bytes:
        """What stands behind the type."""
        return self.data


@dataclass(frozen=True, slots=True)
class Nak:
    """Legacy Nak: the methods that the peer would take, 0 for none. RFC 3748 §5.3.1.

    Layout: u8 method, once or more often
    """

    TYPE: ClassVar[EapType] = EapType.NAK

    methods: tuple[int, ...]

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read what stands behind the type."""
        return cls((body.u8(), *body.rest()))

    def encode(self) -> bytes:
        """What stands behind the type."""
        return bytes(self.methods)


@dataclass(frozen=True, slots=True)
class TlsFragment:
    """A piece of a TLS flight; without data an acknowledgement. RFC 5216 §3.1, §3.2.

    Layout: 1 bit length included, 1 bit more fragments, 1 bit start, 5 bits reserved |
    u32 total, if included | data
    """

    TYPE: ClassVar[EapType] = EapType.TLS
    _TOTAL: ClassVar[int] = 0x80
    _MORE: ClassVar[int] = 0x40
    _START: ClassVar[int] = 0x20

    has_more: bool
    is_start: bool
    total: int | None  # octets of the whole flight
    data: bytes

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read what stands behind the type."""
        flags = body.u8()
        total = body.u32() if flags & cls._TOTAL else None
        return cls(bool(flags & cls._MORE), bool(flags & cls._START), total, body.rest())

    def encode(self) -> bytes:
        """What stands behind the type."""
        flags = (self._MORE if self.has_more else 0) | (self._START if self.is_start else 0)
        if self.total is None:
            return bytes([flags]) + self.data
        return bytes([flags | self._TOTAL]) + self.total.to_bytes(4, "big") + self.data


MSCHAPV2_CHALLENGE: Final = 1
MSCHAPV2_RESPONSE: Final = 2
MSCHAPV2_SUCCESS: Final = 3
MSCHAPV2_FAILURE: Final = 4

_CHALLENGE_SIZE: Final = 16
_RESERVED_SIZE: Final = 8
_NT_RESPONSE_SIZE: Final = 24
_RESPONSE_SIZE: Final = _CHALLENGE_SIZE + _RESERVED_SIZE + _NT_RESPONSE_SIZE + 1


@dataclass(frozen=True, slots=True)
class Mschapv2Challenge:
    """Challenge of the authenticator. draft-kamath-pppext-eap-mschapv2-02 §2.1.

    Layout: u8 value size, 16 | challenge | name
    """

    identifier: int
    challenge: bytes
    name: bytes

    @classmethod
    def decode(cls, body: Reader, identifier: int) -> Self:
        """Read what stands behind MS-Length."""
        _check_size(body, _CHALLENGE_SIZE)
        return cls(identifier, body.take(_CHALLENGE_SIZE), body.rest())

    def encode(self) -> bytes:
        """What stands behind the EAP type."""
        body = bytes([_CHALLENGE_SIZE]) + self.challenge + self.name
        return _encode_mschapv2(MSCHAPV2_CHALLENGE, self.identifier, body)


@dataclass(frozen=True, slots=True)
class Mschapv2Response:
    """Response of the peer. draft-kamath-pppext-eap-mschapv2-02 §2.2, RFC 2759 §4.

    Layout: u8 value size, 49 | peer challenge | 8 octets reserved | NT-Response | u8 flags | name
    """

    identifier: int
    peer_challenge: bytes
    nt_response: bytes
    flags: int
    name: bytes

    @classmethod
    def decode(cls, body: Reader, identifier: int) -> Self:
        """Read what stands behind MS-Length."""
        _check_size(body, _RESPONSE_SIZE)
        peer_challenge = body.take(_CHALLENGE_SIZE)
        body.take(_RESERVED_SIZE)
        nt_response = body.take(_NT_RESPONSE_SIZE)
        return cls(identifier, peer_challenge, nt_response, body.u8(), body.rest())

    def encode(self) -> bytes:
        """What stands behind the EAP type."""
        value = self.peer_challenge + bytes(_RESERVED_SIZE) + self.nt_response + bytes([self.flags])
        body = bytes([_RESPONSE_SIZE]) + value + self.name
        return _encode_mschapv2(MSCHAPV2_RESPONSE, self.identifier, body)


@dataclass(frozen=True, slots=True)
class Mschapv2Result:
    """Success or Failure of the authenticator. draft-kamath §2.3, §2.5, RFC 2759 §5, §6.

    Layout: message, such as ``S=... M=...`` or ``E=... R=... C=... V=... M=...``
    """

    op_code: int
    identifier: int
    message: bytes

    def encode(self) -> bytes:
        """What stands behind the EAP type."""
        return _encode_mschapv2(self.op_code, self.identifier, self.message)


@dataclass(frozen=True, slots=True)
class Mschapv2Acknowledgement:
    """The peer has seen Success or Failure: an op code alone. draft-kamath §2.4, §2.6."""

    op_code: int

    def encode(self) -> bytes:
        """What stands behind the EAP type."""
        return bytes([self.op_code])


Mschapv2 = Mschapv2Challenge | Mschapv2Response | Mschapv2Result | Mschapv2Acknowledgement


def decode_mschapv2(body: Reader) -> Mschapv2:
    """Read an MSCHAPv2 packet, which stands behind the EAP type.

    Layout: u8 op code | u8 MS-CHAPv2-ID | u16 MS-Length, from the op code on | what the op code
    says. draft-kamath-pppext-eap-mschapv2-02 §2.

    Raises:
        WireError: its shape is wrong, or its op code is unknown.
    """
    whole = body.remaining
    op_code = body.u8()
    if op_code in (MSCHAPV2_SUCCESS, MSCHAPV2_FAILURE) and not body.remaining:
        return Mschapv2Acknowledgement(op_code)
    identifier, length = body.u8(), body.u16()
    if length != whole:
        raise Malformed(f"MS-Length {length} in {whole} octets", body.offset - 2)
    if op_code == MSCHAPV2_CHALLENGE:
        return Mschapv2Challenge.decode(body, identifier)
    if op_code == MSCHAPV2_RESPONSE:
        return Mschapv2Response.decode(body, identifier)
    if op_code in (MSCHAPV2_SUCCESS, MSCHAPV2_FAILURE):
        return Mschapv2Result(op_code, identifier, body.rest())
    raise Malformed(f"MSCHAPv2 op code {op_code}", body.offset)


def _check_size(body: Reader, expected: int) -> None:
    size = body.u8()
    if size != expected:
        raise Malformed(f"MSCHAPv2 value of {size} octets, expected {expected}", body.offset - 1)


def _encode_mschapv2(op_code: int, identifier: int, body: bytes) -> bytes:
    return bytes([op_code, identifier]) + (4 + len(body)).to_bytes(2, "big") + body
