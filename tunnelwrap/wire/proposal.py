"""The SA payload: proposals, transforms and their attributes. RFC 7296 §3.3."""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final, Self

from tunnelwrap.errors import Malformed
from tunnelwrap.iana import (
    AttributeType,
    Encr,
    Esn,
    Integ,
    KeMethod,
    PayloadType,
    Prf,
    ProtocolId,
    TransformType,
    name_of,
)
from tunnelwrap.wire.reader import Reader

_MORE_PROPOSALS: Final = 2
_MORE_TRANSFORMS: Final = 3
_SHORT_ATTRIBUTE: Final = 0x8000

_REGISTRIES: Final[dict[int, type[IntEnum]]] = {
    TransformType.ENCR: Encr,
    TransformType.PRF: Prf,
    TransformType.INTEG: Integ,
    TransformType.KE: KeMethod,
    TransformType.ESN: Esn,
    **{kind: KeMethod for kind in TransformType if kind >= TransformType.ADDKE1},
}


@dataclass(frozen=True, slots=True)
class Transform:
    """One algorithm of a proposal. RFC 7296 §3.3.2.

    Layout: u8 last | u8 reserved | u16 length | u8 type | u8 reserved | u16 id | attributes
    """

    type: int
    id: int
    key_bits: int | None  # attribute KEY_LENGTH
    other_attributes: tuple[tuple[int, bytes], ...] = ()  # (AF bit and type, value)

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read what stands behind the length field."""
        transform_type = body.u8()
        body.u8()
        transform_id = body.u16()
        key_bits: int | None = None
        others: list[tuple[int, bytes]] = []
        while body.remaining:
            kind, value = _decode_attribute(body)
            if kind == _SHORT_ATTRIBUTE | AttributeType.KEY_LENGTH and key_bits is None:
                key_bits = int.from_bytes(value, "big")
            else:
                others.append((kind, value))
        return cls(transform_type, transform_id, key_bits, tuple(others))

    def encode(self, *, is_last: bool) -> bytes:
        """The whole substructure."""
        attributes = b""
        if self.key_bits is not None:
            kind = _SHORT_ATTRIBUTE | AttributeType.KEY_LENGTH
            attributes = kind.to_bytes(2, "big") + self.key_bits.to_bytes(2, "big")
        attributes += b"".join(
            _encode_attribute(kind, value) for kind, value in self.other_attributes
        )
        head = bytes([0 if is_last else _MORE_TRANSFORMS, 0])
        length = (8 + len(attributes)).to_bytes(2, "big")
        return head + length + bytes([self.type, 0]) + self.id.to_bytes(2, "big") + attributes

    def __str__(self) -> str:
        registry = _REGISTRIES.get(self.type)
        name = str(self.id) if registry is None else name_of(registry, self.id)
        if name in {"NONE", str(self.id)} or self.type >= TransformType.ADDKE1:
            name = f"{name_of(TransformType, self.type)}_{name}"
        return name if self.key_bits is None else f"{name}-{self.key_bits}"


@dataclass(frozen=True, slots=True)
class Proposal:
    """One alternative of an SA payload. RFC 7296 §3.3.1.

    Layout: u8 last | u8 reserved | u16 length | u8 number | u8 protocol | u8 SPI size |
    u8 transforms | SPI | transforms
    """

    number: int
    protocol: int
    spi: bytes
    transforms: tuple[Transform, ...]

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read what stands behind the length field."""
        number, protocol, spi_size, count = body.u8(), body.u8(), body.u8(), body.u8()
        spi = body.take(spi_size)
        transforms = []
        for position in range(count):
            more, inner = _substructure(body)
            expected = _MORE_TRANSFORMS if position < count - 1 else 0
            if more != expected:
                raise Malformed(f"transform {position + 1} of {count} says {more}", body.offset)
            transforms.append(Transform.decode(inner))
        body.expect_end("the transforms")
        return cls(number, protocol, spi, tuple(transforms))

    def encode(self, *, is_last: bool) -> bytes:
        """The whole substructure."""
        last = len(self.transforms) - 1
        transforms = b"".join(
            t.encode(is_last=position == last) for position, t in enumerate(self.transforms)
        )
        fixed = bytes([self.number, self.protocol, len(self.spi), len(self.transforms)])
        body = fixed + self.spi + transforms
        head = bytes([0 if is_last else _MORE_PROPOSALS, 0])
        return head + (4 + len(body)).to_bytes(2, "big") + body

    def __str__(self) -> str:
        transforms = "/".join(str(transform) for transform in self.transforms)
        return f"{name_of(ProtocolId, self.protocol)}:{transforms}"


@dataclass(frozen=True, slots=True)
class SaPayload:
    """Security Association payload. RFC 7296 §3.3."""

    TYPE: ClassVar[PayloadType] = PayloadType.SA

    proposals: tuple[Proposal, ...]

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read the payload's body."""
        proposals = []
        more = _MORE_PROPOSALS
        while more == _MORE_PROPOSALS:
            more, inner = _substructure(body)
            proposals.append(Proposal.decode(inner))
        if more != 0:
            raise Malformed(f"proposal {len(proposals)} says {more}", body.offset)
        body.expect_end("the proposals")
        return cls(tuple(proposals))

    def encode(self) -> bytes:
        """The payload's body."""
        last = len(self.proposals) - 1
        return b"".join(
            p.encode(is_last=position == last) for position, p in enumerate(self.proposals)
        )


def _substructure(body: Reader) -> tuple[int, Reader]:
    more = body.u8()
    body.u8()
    length = body.u16()
    if length < 8:
        raise Malformed(f"substructure of {length} octets", body.offset)
    return more, body.sub(length - 4)


def _decode_attribute(body: Reader) -> tuple[int, bytes]:
    kind = body.u16()
    if kind & _SHORT_ATTRIBUTE:
        return kind, body.take(2)
    return kind, body.take(body.u16())


def _encode_attribute(kind: int, value: bytes) -> bytes:
    if kind & _SHORT_ATTRIBUTE:
        return kind.to_bytes(2, "big") + value
    return kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value
