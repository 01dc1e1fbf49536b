"""A small authority: makes itself, and certificates for a gateway and its clients.

Keys are ECDSA on P-256. Names are subjectAltNames, for it is those that peers compare; the subject
is there for people.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tunnelwrap.crypto.signature import PrivateKey

AUTHORITY_LIFE: Final = timedelta(days=3652)
LIFE: Final = timedelta(days=825)
"""Of a certificate; what TLS clients accept at the most from an authority of one's own."""

SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH

_HEAD_START: Final = timedelta(days=1)  # for clocks that are behind
_COMMON_NAME_LENGTH: Final = 64  # RFC 5280 appendix A.1, ub-common-name


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)

    @property
    def certificate_pem(self) -> str:
        """The certificate alone, as text."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        """The private key, not encrypted, as text."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def make_authority(name: str, wall_now: datetime) -> Issued:
    """A new authority, with a certificate signed by itself. RFC 5280 §4.2."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = (
        _builder(subject, subject, key, wall_now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    return Issued(builder.sign(key, SHA256()), key)


def issue(
    authority: Issued, names: Sequence[str], purpose: x509.ObjectIdentifier, wall_now: datetime
) -> Issued:
    """A certificate for signatures that binds names, mail addresses and IP addresses.

    Args:
        authority: who signs.
        names: the first is also the subject, cut at what X.520 allows.
        purpose: ``SERVER`` or ``CLIENT``.
        wall_now: the time it is issued, with its time zone.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    own_names = x509.SubjectAlternativeName([_general_name(name) for name in names])
    authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        _builder(_name(names[0]), issuer.subject, key, wall_now, LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(own_names, critical=False)
        .add_extension(authority_key, critical=False)
    )
    own_hash = isinstance(authority.key, Ed25519PrivateKey | Ed448PrivateKey)
    algorithm = None if own_hash else SHA256()
    return Issued(builder.sign(authority.key, algorithm), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    wall_now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    """What every certificate has."""
    begin = wall_now - _HEAD_START
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:_COMMON_NAME_LENGTH])])


def _general_name(text: str) -> x509.GeneralName:
    if "@" in text:
        return x509.RFC822Name(text)
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
