r"""Distinguished names of ID payloads: DER to attributes and text, text to DER. RFC 5280 §4.1.2.4.

The text is what strongSwan writes: ``C=CH, O=Linux strongSwan, CN=moon.strongswan.org``, in the
order of the encoding, a comma inside a value as ``\,``.
"""

import re
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from tunnelwrap.errors import ConfigError, Malformed
from tunnelwrap.wire.reader import Reader

_OIDS: Final = {
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "L": NameOID.LOCALITY_NAME,
    "STREET": NameOID.STREET_ADDRESS,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "CN": NameOID.COMMON_NAME,
    "SN": NameOID.SURNAME,
    "G": NameOID.GIVEN_NAME,
    "T": NameOID.TITLE,
    "serialNumber": NameOID.SERIAL_NUMBER,
    "DC": NameOID.DOMAIN_COMPONENT,
    "UID": NameOID.USER_ID,
    "E": NameOID.EMAIL_ADDRESS,
}
_NAMES: Final = {oid.dotted_string: name for name, oid in _OIDS.items()}
_ALIASES: Final = {"emailaddress": "E", "email": "E", "s": "ST"}
_BY_LOWER_NAME: Final = {name.lower(): oid for name, oid in _OIDS.items()} | {
    alias: _OIDS[name] for alias, name in _ALIASES.items()
}

_SEQUENCE: Final = 0x30
_SET: Final = 0x31
_OBJECT_IDENTIFIER: Final = 0x06
_ENCODINGS: Final = {0x1E: "utf-16-be", 0x14: "latin-1"}  # BMPString, TeletexString; else UTF-8


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a distinguished name."""

    oid: str
    value: str

    def __str__(self) -> str:
        escaped = re.sub(r"([\\,/])", r"\\\1", self.value)
        return f"{_NAMES.get(self.oid, self.oid)}={escaped}"


def decode_name(der: bytes) -> tuple[Attribute, ...]:
    """The attributes of a Name in the order of its encoding.

    Raises:
        WireError: the octets are no Name.
    """
    whole = Reader(der)
    sequence = _element(whole, _SEQUENCE)
    whole.expect_end("distinguished name")
    attributes = []
    while sequence.remaining:
        relative = _element(sequence, _SET)
        while relative.remaining:
            attributes.append(_attribute(_element(relative, _SEQUENCE)))
    return tuple(attributes)


def encode_name(text: str) -> bytes:
    r"""DER of a name written as ``C=CH, O=Acme\, Inc, CN=gateway``.

    Raises:
        ConfigError: an attribute is unknown or has an impossible value.
    """
    parts = re.findall(r"(?:\\.|[^,/\\])+", text)
    try:
        return x509.Name([_parse_attribute(part) for part in parts]).public_bytes()
    except ValueError as error:
        raise ConfigError([f"distinguished name {text!r}: {error}"]) from error


def _parse_attribute(text: str) -> x509.NameAttribute[str]:
    name, equals, value = text.partition("=")
    name, value = name.strip(), re.sub(r"\\(.)", r"\1", value.strip())
    oid = _BY_LOWER_NAME.get(name.lower())
    if oid is None and re.fullmatch(r"[0-2](\.\d+)+", name):
        oid = x509.ObjectIdentifier(name)
    if oid is None or not equals:
        raise ValueError(f"{text!r} is no attribute, expected one of {', '.join(_OIDS)}")
    return x509.NameAttribute(oid, value)


def _attribute(body: Reader) -> Attribute:
    oid = _dotted(_element(body, _OBJECT_IDENTIFIER).rest())
    tag, value = _any_element(body)
    body.expect_end("attribute of a distinguished name")
    return Attribute(oid, value.rest().decode(_ENCODINGS.get(tag, "utf-8"), "replace"))


def _element(reader: Reader, expected: int) -> Reader:
    offset = reader.offset
    tag, content = _any_element(reader)
    if tag != expected:
        raise Malformed(f"DER tag {tag:#04x} in a distinguished name, not {expected:#04x}", offset)
    return content


def _any_element(reader: Reader) -> tuple[int, Reader]:
    tag, length = reader.u8(), reader.u8()
    if length > 0x82:
        raise Malformed(f"DER length of {length & 0x7F} octets in a distinguished name")
    if length >= 0x80:
        length = int.from_bytes(reader.take(length & 0x7F), "big")
    return tag, reader.sub(length)


def _dotted(octets: bytes) -> str:
    arcs, value = [], 0
    for octet in octets:
        value = value << 7 | octet & 0x7F
        if octet < 0x80:
            arcs.append(value)
            value = 0
    first = arcs[0] if arcs else 0
    root = min(first // 40, 2)
    return ".".join(str(arc) for arc in (root, first - 40 * root, *arcs[1:]))
