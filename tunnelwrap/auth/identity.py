"""Identities of peers: parse, print, match. RFC 7296 §3.5.

Text is read as strongSwan reads it, so that people can paste theirs:

    192.0.2.1, 2001:db8::1     ID_IPV4_ADDR, ID_IPV6_ADDR
    gw.example.org             ID_FQDN (also ``@gw.example.org``)
    alice@example.org          ID_RFC822_ADDR
    C=CH, O=Acme, CN=gw        ID_DER_ASN1_DN
    @#0a0b0c                   ID_KEY_ID in hexadecimal
    %null                      ID_NULL: nobody in particular. RFC 7619
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from tunnelwrap.auth.distinguished_name import decode_name, encode_name
from tunnelwrap.errors import ConfigError, WireError
from tunnelwrap.iana import IdType, name_of

_ADDRESS_TYPES: Final = {IPv4Address: IdType.IPV4_ADDR, IPv6Address: IdType.IPV6_ADDR}
_TEXT_TYPES: Final = frozenset({IdType.FQDN, IdType.RFC822_ADDR})


@dataclass(frozen=True, slots=True)
class Identity:
    """An identity as an ID payload carries it."""

    type: int
    data: bytes

    @classmethod
    def parse(cls, text: str) -> "Identity":
        """The identity that a human wrote.

        Raises:
            ConfigError: the text is none.
        """
        text = text.strip()
        if text == "%null":
            return NOBODY
        address = _address(text)
        if address:
            return cls(_ADDRESS_TYPES[type(address)], address.packed)
        if text.startswith("@#"):
            return cls(IdType.KEY_ID, _from_hex(text))
        if "=" in text:
            return cls(IdType.DER_ASN1_DN, encode_name(text))
        kind = IdType.RFC822_ADDR if "@" in text.lstrip("@") else IdType.FQDN
        name = text.lstrip("@")
        if not name or not name.isprintable() or " " in name:
            raise ConfigError([f"{text!r} is no identity"])
        return cls(kind, name.encode())

    def canonical(self) -> "Identity":
        """The same identity in the form in which equal ones have equal octets.

        Names are compared without regard to case, distinguished names also without regard to
        the string types of their encoding. RFC 4945 §3.1, RFC 5280 §7.1.
        """
        if self.type in _TEXT_TYPES:
            return Identity(self.type, self.data.lower())
        if self.type == IdType.DER_ASN1_DN:
            return Identity(self.type, _folded_name(self.data))
        return self

    def __str__(self) -> str:
        try:
            return _printed(self)
        except (ValueError, WireError):
            return f"{name_of(IdType, self.type)}:{self.data.hex()}"


NOBODY: Final = Identity(IdType.NULL, b"")
"""The identity of whoever proves none. RFC 7619 §2.1."""


@dataclass(frozen=True, slots=True)
class IdentityPattern:
    """Which identities we accept: any, all below a domain, or exactly one."""

    text: str
    exact: Identity | None  # None: ``text`` has a wildcard

    @classmethod
    def parse(cls, text: str) -> "IdentityPattern":
        """``%any``, ``*.example.org``, ``*@example.org``, or an identity.

        Raises:
            ConfigError: the text is neither.
        """
        text = text.strip()
        if text == "%any" or re.fullmatch(r"\*[.@][^*@\s]+", text):
            return cls(text, None)
        if "*" in text:
            raise ConfigError([f"{text!r}: a wildcard can only be *.domain or *@domain"])
        return cls(text, Identity.parse(text))

    def matches(self, identity: Identity) -> bool:
        """Whether an identity fits the pattern."""
        if self.exact is not None:
            return identity.canonical() == self.exact.canonical()
        if self.text == "%any":
            return True
        kind = IdType.RFC822_ADDR if self.text[1] == "@" else IdType.FQDN
        suffix = self.text[1:].lower().encode()
        name = identity.data.lower()
        return identity.type == kind and name.endswith(suffix) and len(name) > len(suffix)

    def __str__(self) -> str:
        return self.text


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text[2:])
    except ValueError as error:
        raise ConfigError([f"{text!r}: expected hexadecimal digits after @#"]) from error


def _printed(identity: Identity) -> str:
    """Raises ValueError or WireError when the data does not fit the type."""
    match identity.type:
        case IdType.IPV4_ADDR:
            return str(IPv4Address(identity.data))
        case IdType.IPV6_ADDR:
            return str(IPv6Address(identity.data))
        case IdType.FQDN | IdType.RFC822_ADDR:
            text = identity.data.decode()
        case IdType.DER_ASN1_DN:
            text = ", ".join(str(attribute) for attribute in decode_name(identity.data))
        case IdType.KEY_ID:
            return f"@#{identity.data.hex()}"
        case IdType.NULL if not identity.data:
            return "%null"
        case _:
            raise ValueError("no text form")
    if not text.isprintable():
        raise ValueError("unprintable")
    return text


def _folded_name(der: bytes) -> bytes:
    try:
        attributes = decode_name(der)
    except WireError:
        return der
    folded = [
        (attribute.oid, " ".join(attribute.value.lower().split())) for attribute in attributes
    ]
    return repr(folded).encode()
