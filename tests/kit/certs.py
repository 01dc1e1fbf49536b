"""Certification authorities and certificates for tests, good ones and bad ones.

Keys are made once per kind and number for the whole run, since RSA keys are slow to make.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Key = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | Ed25519PrivateKey
    | Ed448PrivateKey
    | X25519PrivateKey
)

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
"""The instant around which certificates are valid by default."""

BEGIN = NOW - timedelta(days=30)
END = NOW + timedelta(days=3650)

KINDS = ("rsa", "p256", "p384", "p521", "ed25519", "ed448")
"""Kinds of keys that can sign AUTH; ``key`` also makes rsa1024 to rsa4096, p256k1 and x25519."""

_CURVES = {
    "p256": ec.SECP256R1,
    "p384": ec.SECP384R1,
    "p521": ec.SECP521R1,
    "p256k1": ec.SECP256K1,
}
_RSA_BITS = {"rsa": 2048, "rsa1024": 1024, "rsa3072": 3072, "rsa4096": 4096}


def key(kind: str, number: int = 0) -> Key:
    """A private key; the same for the same arguments throughout a run."""
    return _key(kind, number)


@cache
def _key(kind: str, number: int) -> Key:  # the number is part of the cache's key
    if kind == "ed25519":
        return Ed25519PrivateKey.generate()
    if kind == "ed448":
        return Ed448PrivateKey.generate()
    if kind == "x25519":
        return X25519PrivateKey.generate()
    if kind in _CURVES:
        return ec.generate_private_key(_CURVES[kind]())
    return rsa.generate_private_key(65537, _RSA_BITS[kind])


def name(text: str) -> x509.Name:
    """A distinguished name from ``C=CH, O=Acme, CN=gw``; a bare word is a CN."""
    oids = {
        "C": NameOID.COUNTRY_NAME,
        "O": NameOID.ORGANIZATION_NAME,
        "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
        "CN": NameOID.COMMON_NAME,
    }
    pairs = [part.strip().split("=", 1) for part in text.split(",")] if "=" in text else []
    pairs = pairs or [["CN", text]]
    return x509.Name([x509.NameAttribute(oids[kind], value) for kind, value in pairs])


@dataclass(frozen=True)
class Usage:
    """Extensions of a certificate; None leaves one out."""

    ca: bool | None = False
    path_length: int | None = None
    key_usage: Sequence[str] | None = ("digital_signature",)
    purposes: Sequence[x509.ObjectIdentifier] | None = None
    extra: Sequence[tuple[x509.ExtensionType, bool]] = ()  # with its critical flag


CA = Usage(ca=True, key_usage=("key_cert_sign", "crl_sign"))
END_ENTITY = Usage()


@dataclass(frozen=True)
class Entity:
    """A certificate with its key and its issuer."""

    certificate: x509.Certificate
    key: Key
    issuer: "Entity | None" = None

    @property
    def der(self) -> bytes:
        """The certificate alone."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The certificate alone."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The certificates to send: this one and the intermediates, without the root; DER."""
        if self.issuer is None:
            return ()
        return (self.der, *self.issuer.chain)

    @property
    def intermediates(self) -> "tuple[Entity, ...]":
        """The issuers up to the root, without it."""
        if self.issuer is None or self.issuer.issuer is None:
            return ()
        return (self.issuer, *self.issuer.intermediates)

    @property
    def key_pem(self) -> bytes:
        """The private key, unencrypted."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def authority(
    subject: str = "Test CA",
    kind: str = "p256",
    *,
    number: int = 100,
    issuer: Entity | None = None,
    usage: Usage = CA,
    valid: tuple[datetime, datetime] = (BEGIN, END),
) -> Entity:
    """A root, or an intermediate where an issuer is given."""
    return entity(subject, issuer, kind=kind, number=number, sans=(), usage=usage, valid=valid)


def entity(
    subject: str,
    issuer: Entity | None,
    *,
    kind: str = "p256",
    number: int = 0,
    sans: Sequence[str] = (),
    usage: Usage = END_ENTITY,
    valid: tuple[datetime, datetime] = (BEGIN, END),
    signer: Key | None = None,
) -> Entity:
    """A certificate; self-signed without issuer.

    Args:
        subject: as ``name`` reads it.
        issuer: who signs.
        kind: of the key.
        number: tells keys of one kind apart.
        sans: names, mail addresses and IP addresses.
        usage: extensions.
        valid: from, to.
        signer: signs in place of the issuer's key, for forgeries.
    """
    own = key(kind, number)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(issuer.certificate.subject if issuer else name(subject))
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
    )
    for extension, critical in _extensions(usage, sans):
        builder = builder.add_extension(extension, critical)
    signing = signer or (issuer.key if issuer else own)
    algorithm = (
        None if isinstance(signing, Ed25519PrivateKey | Ed448PrivateKey) else hashes.SHA256()
    )
    return Entity(builder.sign(signing, algorithm), own, issuer)


def _extensions(usage: Usage, sans: Sequence[str]) -> list[tuple[x509.ExtensionType, bool]]:
    found: list[tuple[x509.ExtensionType, bool]] = list(usage.extra)
    if usage.ca is not None:
        found.append((x509.BasicConstraints(usage.ca, usage.path_length), True))
    if usage.key_usage is not None:
        found.append((_key_usage(usage.key_usage), True))
    if usage.purposes is not None:
        found.append((x509.ExtendedKeyUsage(usage.purposes), False))
    if sans:
        found.append((x509.SubjectAlternativeName([_general_name(text) for text in sans]), False))
    return found


def _key_usage(granted: Sequence[str]) -> x509.KeyUsage:
    flags = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{flag: flag in granted for flag in flags})


def _general_name(text: str) -> x509.GeneralName:
    address = _address(text)
    if address:
        return x509.IPAddress(address)
    return x509.RFC822Name(text) if "@" in text else x509.DNSName(text)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
