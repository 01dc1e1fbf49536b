"""Payload bodies of IKEv2, one frozen value for each. RFC 7296 §3.4-§3.16.

``decode`` reads a body without its generic header; ``DECODERS`` at the end lists them all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import (
    IPv4Network,
    IPv6Network,
    ip_address,
    summarize_address_range,
)
from typing import ClassVar, Final, Self

from tunnelwrap.errors import Malformed, UnsupportedCritical
from tunnelwrap.iana import NotifyType, PayloadType, TsType, name_of
from tunnelwrap.path import IpAddress
from tunnelwrap.wire.proposal import SaPayload
from tunnelwrap.wire.reader import Reader

MIN_NONCE: Final = 16
MAX_NONCE: Final = 256
FIRST_STATUS_NOTIFY: Final = 16384
MAX_PORT: Final = 65535
ANY_PORTS: Final = (0, MAX_PORT)
OPAQUE_PORTS: Final = (MAX_PORT, 0)
SELECTOR_HEADER: Final = 4  # type, protocol and length: all that types of later RFCs share

_ICMP: Final = frozenset({1, 58})
_PROTOCOLS: Final = {
    0: "any",
    1: "icmp",
    6: "tcp",
    17: "udp",
    47: "gre",
    50: "esp",
    58: "ipv6-icmp",
    115: "l2tp",
    132: "sctp",
}


@dataclass(frozen=True, slots=True)
class KeyExchange:
    """KE payload: one public value. RFC 7296 §3.4.

    Layout: u16 method | u16 reserved | data
    """

    TYPE: ClassVar[PayloadType] = PayloadType.KE

    method: int
    data: bytes

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read the payload's body."""
        method = body.u16()
        body.u16()
        return cls(method, body.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return self.method.to_bytes(2, "big") + bytes(2) + self.data


@dataclass(frozen=True, slots=True)
class IdPayload:
    """IDi or IDr. RFC 7296 §3.5.

    Layout: u8 ID type | 3 octets reserved | data
    """

    type: int
    id_type: int
    data: bytes

    @classmethod
    def decode(cls, body: Reader, payload_type: int) -> Self:
        """Read the payload's body."""
        id_type = body.u8()
        body.take(3)
        return cls(payload_type, id_type, body.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return bytes([self.id_type, 0, 0, 0]) + self.data


@dataclass(frozen=True, slots=True)
class Certificate:
    """CERT payload. RFC 7296 §3.6.

    Layout: u8 encoding | data
    """

    TYPE: ClassVar[PayloadType] = PayloadType.CERT

    encoding: int
    data: bytes

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read the payload's body."""
        return cls(body.u8(), body.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return bytes([self.encoding]) + self.data


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """CERTREQ payload; for encoding 4 the SHA-1 hashes of CA keys, in a row. RFC 7296 §3.7.

    Layout: u8 encoding | authorities
    """

    TYPE: ClassVar[PayloadType] = PayloadType.CERTREQ

    encoding: int
    authorities: bytes

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read the payload's body."""
        return cls(body.u8(), body.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return bytes([self.encoding]) + self.authorities


@dataclass(frozen=True, slots=True)
class Auth:
    """AUTH payload. RFC 7296 §3.8.

    Layout: u8 method | 3 octets reserved | data
    """

    TYPE: ClassVar[PayloadType] = PayloadType.AUTH

    method: int
    data: bytes

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read the payload's body."""
        method = body.u8()
        body.take(3)
        return cls(method, body.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return bytes([self.method, 0, 0, 0]) + self.data


@dataclass(frozen=True, slots=True)
class Nonce:
    """Ni or Nr, of 16 to 256 octets. RFC 7296 §3.9."""

    TYPE: ClassVar[PayloadType] = PayloadType.NONCE

    data: bytes

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read the payload's body."""
        if not MIN_NONCE <= body.remaining <= MAX_NONCE:
            raise Malformed(f"nonce of {body.remaining} octets", body.offset)
        return cls(body.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return self.data


@dataclass(frozen=True, slots=True)
class Notify:
    """N payload. RFC 7296 §3.10.

    Layout: u8 protocol | u8 SPI size | u16 type | SPI | data
    """

    TYPE: ClassVar[PayloadType] = PayloadType.NOTIFY

    protocol: int
    spi: bytes
    notify: int
    data: bytes

    @classmethod
    def of(cls, notify: int, data: bytes = b"", protocol: int = 0, spi: bytes = b"") -> Self:
        """A Notify, most often of the IKE SA it stands in."""
        return cls(protocol, spi, notify, data)

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read the payload's body."""
        protocol, spi_size, notify = body.u8(), body.u8(), body.u16()
        return cls(protocol, body.take(spi_size), notify, body.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        head = bytes([self.protocol, len(self.spi)]) + self.notify.to_bytes(2, "big")
        return head + self.spi + self.data

    @property
    def is_error(self) -> bool:
        """True for error types, those below 16384."""
        return self.notify < FIRST_STATUS_NOTIFY

    def __str__(self) -> str:
        return f"N({name_of(NotifyType, self.notify)})"


@dataclass(frozen=True, slots=True)
class Delete:
    """D payload. RFC 7296 §3.11.

    Layout: u8 protocol | u8 SPI size | u16 count | SPIs
    """

    TYPE: ClassVar[PayloadType] = PayloadType.DELETE

    protocol: int
    spis: tuple[bytes, ...]

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read the payload's body."""
        protocol, spi_size, count = body.u8(), body.u8(), body.u16()
        if body.remaining != spi_size * count:
            text = f"{count} SPIs of {spi_size} octets in {body.remaining}"
            raise Malformed(text, body.offset)
        if spi_size == 0:
            return cls(protocol, ())
        return cls(protocol, tuple(body.take(spi_size) for _ in range(count)))

    def encode(self) -> bytes:
        """The payload's body."""
        size = len(self.spis[0]) if self.spis else 0
        head = bytes([self.protocol, size]) + len(self.spis).to_bytes(2, "big")
        return head + b"".join(self.spis)


@dataclass(frozen=True, slots=True)
class VendorId:
    """V payload. RFC 7296 §3.12."""

    TYPE: ClassVar[PayloadType] = PayloadType.VENDOR_ID

    data: bytes

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read the payload's body."""
        return cls(body.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return self.data


@dataclass(frozen=True, slots=True)
class TrafficSelector:
    """A range of addresses and ports. RFC 7296 §3.13.1.

    Protocol 0 is any; ports 0-65535 are any, 65535-0 is OPAQUE; for ICMP, type and code stand
    in the port fields.

    Layout: u8 type | u8 protocol | u16 length | u16 start port | u16 end port | start | end
    """

    protocol: int
    start_port: int
    end_port: int
    start: IpAddress
    end: IpAddress

    @classmethod
    def from_network(
        cls,
        network: IPv4Network | IPv6Network,
        protocol: int = 0,
        start_port: int = 0,
        end_port: int = MAX_PORT,
    ) -> Self:
        """The selector for all addresses of a network."""
        return cls(protocol, start_port, end_port, network[0], network[-1])

    @classmethod
    def decode(cls, body: Reader, ts_type: int, protocol: int) -> Self:
        """Read what stands behind the length field, which bounds ``body``."""
        start_port, end_port = body.u16(), body.u16()
        if start_port > end_port and (start_port, end_port) != OPAQUE_PORTS:
            raise Malformed(f"traffic selector from port {start_port} to {end_port}", body.offset)
        size = 4 if ts_type == TsType.IPV4_ADDR_RANGE else 16
        start, end = ip_address(body.take(size)), ip_address(body.take(size))
        body.expect_end("the traffic selector")
        if int(start) > int(end):
            raise Malformed(f"traffic selector from {start} to {end}", body.offset)
        return cls(protocol, start_port, end_port, start, end)

    def encode(self) -> bytes:
        """The whole selector."""
        is_ipv4 = self.start.version == 4
        ts_type = TsType.IPV4_ADDR_RANGE if is_ipv4 else TsType.IPV6_ADDR_RANGE
        ports = self.start_port.to_bytes(2, "big") + self.end_port.to_bytes(2, "big")
        addresses = self.start.packed + self.end.packed
        length = (8 + len(addresses)).to_bytes(2, "big")
        return bytes([ts_type, self.protocol]) + length + ports + addresses

    def networks(self) -> list[IPv4Network | IPv6Network]:
        """The fewest networks that cover the range."""
        return [*summarize_address_range(self.start, self.end)]

    def __str__(self) -> str:
        networks = self.networks()
        text = str(networks[0]) if len(networks) == 1 else f"{self.start}-{self.end}"
        ports = self._ports()
        if self.protocol == 0 and not ports:
            return text
        protocol = _PROTOCOLS.get(self.protocol, str(self.protocol))
        return f"{text}[{protocol}{ports}]"

    def _ports(self) -> str:
        ports = (self.start_port, self.end_port)
        if ports == ANY_PORTS:
            return ""
        if ports == OPAQUE_PORTS:
            return "/OPAQUE"
        first, last = map(self._port, ports)
        return f"/{first}" if first == last else f"/{first}-{last}"

    def _port(self, port: int) -> str:
        """A port, or for ICMP type and code, one in each octet."""
        return f"{port >> 8}({port & 0xFF})" if self.protocol in _ICMP else str(port)


@dataclass(frozen=True, slots=True)
class TrafficSelectors:
    """TSi or TSr; selectors of unknown type are passed over. RFC 7296 §3.13.

    Layout: u8 count | 3 octets reserved | selectors
    """

    type: int
    selectors: tuple[TrafficSelector, ...]

    @classmethod
    def decode(cls, body: Reader, payload_type: int) -> Self:
        """Read the payload's body."""
        count = body.u8()
        body.take(3)
        selectors = []
        for _ in range(count):
            ts_type, protocol, length = body.u8(), body.u8(), body.u16()
            if length < SELECTOR_HEADER:
                raise Malformed(f"traffic selector of {length} octets", body.offset - 2)
            inner = body.sub(length - SELECTOR_HEADER)
            if ts_type in (TsType.IPV4_ADDR_RANGE, TsType.IPV6_ADDR_RANGE):
                selectors.append(TrafficSelector.decode(inner, ts_type, protocol))
        body.expect_end("the traffic selectors")
        return cls(payload_type, tuple(selectors))

    def encode(self) -> bytes:
        """The payload's body."""
        return bytes([len(self.selectors), 0, 0, 0]) + b"".join(s.encode() for s in self.selectors)


@dataclass(frozen=True, slots=True)
class ConfigurationAttribute:
    """One attribute of a CP payload. RFC 7296 §3.15.1.

    Layout: 1 bit reserved, 15 bits type | u16 length | value
    """

    type: int
    value: bytes

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read one attribute."""
        attribute_type = body.u16() & 0x7FFF
        return cls(attribute_type, body.take(body.u16()))

    def encode(self) -> bytes:
        """The whole attribute."""
        return self.type.to_bytes(2, "big") + len(self.value).to_bytes(2, "big") + self.value


@dataclass(frozen=True, slots=True)
class Configuration:
    """CP payload. RFC 7296 §3.15.

    Layout: u8 CFG type | 3 octets reserved | attributes
    """

    TYPE: ClassVar[PayloadType] = PayloadType.CP

    cfg_type: int
    attributes: tuple[ConfigurationAttribute, ...]

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read the payload's body."""
        cfg_type = body.u8()
        body.take(3)
        attributes = []
        while body.remaining:
            attributes.append(ConfigurationAttribute.decode(body))
        return cls(cfg_type, tuple(attributes))

    def encode(self) -> bytes:
        """The payload's body."""
        return bytes([self.cfg_type, 0, 0, 0]) + b"".join(a.encode() for a in self.attributes)


@dataclass(frozen=True, slots=True)
class EapPayload:
    """EAP payload: one whole EAP packet. RFC 7296 §3.16."""

    TYPE: ClassVar[PayloadType] = PayloadType.EAP

    message: bytes

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read the payload's body."""
        return cls(body.rest())

    def encode(self) -> bytes:
        """The payload's body."""
        return self.message


@dataclass(frozen=True, slots=True)
class UnknownPayload:
    """A payload of a type unknown here, without critical bit: kept and ignored. RFC 7296 §2.5."""

    type: int
    data: bytes

    def encode(self) -> bytes:
        """The payload's body."""
        return self.data


Payload = (
    SaPayload
    | KeyExchange
    | IdPayload
    | Certificate
    | CertificateRequest
    | Auth
    | Nonce
    | Notify
    | Delete
    | VendorId
    | TrafficSelectors
    | Configuration
    | EapPayload
    | UnknownPayload
)


def decode_payload(
    payload_type: int,
    critical: bool,  # noqa: FBT001 -- stands where the generic header has it
    body: Reader,
) -> Payload:
    """The payload of a body; the critical bit of a known type is ignored. RFC 7296 §2.5.

    Raises:
        UnsupportedCritical: it is critical and of unknown type.
        WireError: its shape is wrong, or it is encrypted.
    """
    decoder = DECODERS.get(payload_type)
    if decoder is not None:
        payload = decoder(body)
        body.expect_end(name_of(PayloadType, payload_type))
        return payload
    if payload_type in (PayloadType.SK, PayloadType.SKF):
        raise Malformed("an encrypted payload inside a chain", body.offset)
    if critical:
        raise UnsupportedCritical(payload_type, body.offset)
    return UnknownPayload(payload_type, body.rest())


def payload_type_of(payload: Payload) -> int:
    """The number that announces this payload in the Next Payload field before it."""
    if isinstance(payload, IdPayload | TrafficSelectors | UnknownPayload):
        return payload.type
    return payload.TYPE


DECODERS: Final[dict[int, Callable[[Reader], Payload]]] = {
    PayloadType.SA: SaPayload.decode,
    PayloadType.KE: KeyExchange.decode,
    PayloadType.ID_I: lambda body: IdPayload.decode(body, PayloadType.ID_I),
    PayloadType.ID_R: lambda body: IdPayload.decode(body, PayloadType.ID_R),
    PayloadType.CERT: Certificate.decode,
    PayloadType.CERTREQ: CertificateRequest.decode,
    PayloadType.AUTH: Auth.decode,
    PayloadType.NONCE: Nonce.decode,
    PayloadType.NOTIFY: Notify.decode,
    PayloadType.DELETE: Delete.decode,
    PayloadType.VENDOR_ID: VendorId.decode,
    PayloadType.TS_I: lambda body: TrafficSelectors.decode(body, PayloadType.TS_I),
    PayloadType.TS_R: lambda body: TrafficSelectors.decode(body, PayloadType.TS_R),
    PayloadType.CP: Configuration.decode,
    PayloadType.EAP: EapPayload.decode,
}
