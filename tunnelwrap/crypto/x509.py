"""Certificates and keys: loading, and validation of a chain at a given instant.

RFC 5280 §6 as far as IKE needs it, RFC 4945 §5 for key usage. Name constraints are not
processed, hence a chain that has them as a critical extension is refused, as is any other
critical extension we do not know.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from tunnelwrap.crypto.signature import MIN_RSA_BITS, PrivateKey, PublicKey
from tunnelwrap.errors import AuthenticationFailed, ConfigError
from tunnelwrap.iana import IdType

MAX_CHAIN: Final = 8
"""Certificates in one path; our choice, as is the next."""

MAX_RECEIVED: Final = 16
"""CERT payloads we look at."""

_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
ExtensionT = TypeVar("ExtensionT", bound=x509.ExtensionType)
_WEAK_HASHES: Final = frozenset({"md5", "sha1"})
_PROCESSED: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
_PURPOSES: Final = frozenset(
    {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
        ExtendedKeyUsageOID.IPSEC_IKE,
    }
)


def load_certificates(pem_or_der: bytes) -> list[x509.Certificate]:
    """The certificates of a file: PEM, one or many, or one in DER.

    Raises:
        ConfigError: there is none, or one cannot be read.
    """
    try:
        if b"-----BEGIN" in pem_or_der:
            return x509.load_pem_x509_certificates(pem_or_der)
        return [x509.load_der_x509_certificate(pem_or_der)]
    except ValueError as error:
        raise ConfigError([f"no readable certificate: {error}"]) from error


def load_private_key(pem: bytes, passphrase: bytes | None) -> PrivateKey:
    """A private key in PEM, encrypted or not, of a kind that we sign with.

    Raises:
        ConfigError: it cannot be read, is too weak, or of another kind.
    """
    try:
        key = load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError([f"private key cannot be read: {error}"]) from error
    if not isinstance(key, PrivateKey):
        raise ConfigError(["private key is neither RSA nor ECDSA nor EdDSA"])
    weakness = _weakness(key.public_key())
    if weakness:
        raise ConfigError([f"private key {weakness}"])
    return key


def public_key_of(certificate: x509.Certificate) -> PublicKey:
    """The key that a certificate certifies.

    Raises:
        AuthenticationFailed: it is of no kind that we verify with.
    """
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AuthenticationFailed(f"public key cannot be read: {error}") from error
    if not isinstance(key, PublicKey):
        name = _printed(certificate.subject)
        raise AuthenticationFailed(f"key of certificate {name} is not RSA, ECDSA or EdDSA")
    return key


def names_of(certificate: x509.Certificate) -> list[tuple[IdType, bytes]]:
    """The identities that a certificate binds: subjectAltName entries, and the subject as DER.

    The octets have the form of an ID payload. RFC 7296 §3.5, RFC 4945 §5.1.
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        entries = list(extension.value)
    except x509.ExtensionNotFound:
        entries = []
    names = [name for entry in entries for name in _identity_of(entry)]
    if list(certificate.subject):
        names.append((IdType.DER_ASN1_DN, certificate.subject.public_bytes()))
    return names


def server_names(certificate: x509.Certificate) -> list[str]:
    """The hosts that a TLS server may be with it: names, perhaps ``*.domain``, and addresses."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound):
        return []
    names = extension.value.get_values_for_type(x509.DNSName)
    return [*names, *map(str, extension.value.get_values_for_type(x509.IPAddress))]


def names_server(certificate: x509.Certificate, host: str) -> bool:
    """Whether clients that connect to a host will take it for that. RFC 9525 §6.3."""
    wanted = host.lower().removesuffix(".")
    with suppress(ValueError):
        wanted = str(ip_address(wanted))  # as it stands in the list
    below = f"*.{wanted.partition('.')[2]}"
    return any(name.lower() in (wanted, below) for name in server_names(certificate))


class TrustStore:
    """The certification authorities that we trust. RFC 5280 §6.1.1 (d)."""

    __slots__ = ("_authorities",)

    def __init__(self, authorities: Sequence[x509.Certificate]) -> None:
        self._authorities = tuple(authorities)

    def key_hashes(self) -> bytes:
        """SHA-1 of each authority's SubjectPublicKeyInfo, for CERTREQ. RFC 7296 §3.7."""
        return b"".join(_key_hash(authority) for authority in self._authorities)

    def validate(self, chain: Sequence[bytes], wall_now: datetime) -> x509.Certificate:
        """The end entity's certificate, once a path to a trusted authority is found.

        Args:
            chain: certificates in DER as received: the end entity's first, the rest in any order.
            wall_now: the time to judge by, with its time zone.

        Raises:
            AuthenticationFailed: there is no valid path; the text names the cause.
        """
        if not chain:
            raise AuthenticationFailed("peer sent no certificate")
        end_entity, *others = [_decode(der) for der in chain[:MAX_RECEIVED]]
        untried = [other for other in others if other not in self._authorities]
        _check_certificate(end_entity, wall_now)
        _check_end_entity(end_entity)
        self._climb([end_entity], untried, wall_now)
        return end_entity

    def _climb(
        self, path: list[x509.Certificate], untried: list[x509.Certificate], wall_now: datetime
    ) -> None:
        """Find an issuer for the last certificate of a path, up to a trusted one.

        Each received certificate is tried once, so that a stranger's chain costs a bounded number
        of signature checks. Returns when one whole path is valid; else raises what was wrong with
        the last one tried.
        """
        failure = AuthenticationFailed(_untrusted(path[-1]))
        for issuer, is_trusted in self._issuers(path[-1], untried):
            try:
                _check_issuer(issuer, path, wall_now)
                if not is_trusted:
                    self._climb([*path, issuer], untried, wall_now)
            except AuthenticationFailed as error:
                failure = error
            else:
                return
        raise failure

    def _issuers(
        self, certificate: x509.Certificate, untried: list[x509.Certificate]
    ) -> Iterator[tuple[x509.Certificate, bool]]:
        """Certificates with the issuer's name, and whether each is trusted; trusted ones last.

        Last, so that their failure is the one that is reported.
        """
        for candidate in list(untried):
            if candidate.subject == certificate.issuer and candidate in untried:
                untried.remove(candidate)
                yield candidate, False
        for authority in self._authorities:
            if authority.subject == certificate.issuer:
                yield authority, True


# --- checks of one certificate --------------------------------------------------------------


def _check_certificate(certificate: x509.Certificate, wall_now: datetime) -> None:
    """What holds for every certificate of a path. RFC 5280 §6.1.3."""
    name = _printed(certificate.subject)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = f"{wall_now.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if wall_now < begin:
        raise AuthenticationFailed(f"certificate {name} is not valid before {begin} (now {now})")
    if wall_now > end:
        raise AuthenticationFailed(f"certificate {name} expired on {end} (now {now})")
    weakness = _weakness(public_key_of(certificate))
    if weakness:
        raise AuthenticationFailed(f"certificate {name}: key {weakness}")
    for extension in _extensions(certificate):
        if extension.critical and extension.oid not in _PROCESSED:
            text = extension.oid.dotted_string
            raise AuthenticationFailed(f"certificate {name} has unknown critical extension {text}")


def _check_end_entity(certificate: x509.Certificate) -> None:
    """Key usage for IKE. RFC 4945 §5.1.3.2, §5.1.3.12."""
    name = _printed(certificate.subject)
    usage = _extension(certificate, x509.KeyUsage)
    if usage and not (usage.digital_signature or usage.content_commitment):
        raise AuthenticationFailed(f"key usage of certificate {name} forbids signatures")
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    if purposes and not _PURPOSES.intersection(purposes):
        raise AuthenticationFailed(f"extended key usage of certificate {name} forbids IKE")


def _check_issuer(
    issuer: x509.Certificate, path: Sequence[x509.Certificate], wall_now: datetime
) -> None:
    """Whether an issuer may have issued the last certificate of a path, and did. RFC 5280 §6.1.4.

    The signature is checked last, since only it is expensive.
    """
    name = _printed(issuer.subject)
    constraints = _extension(issuer, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise AuthenticationFailed(f"certificate {name} is not that of an authority (CA:FALSE)")
    below = sum(1 for certificate in path[1:] if certificate.subject != certificate.issuer)
    if constraints.path_length is not None and below > constraints.path_length:
        limit = constraints.path_length
        raise AuthenticationFailed(f"path length {below} under {name}, which allows {limit}")
    usage = _extension(issuer, x509.KeyUsage)
    if usage and not usage.key_cert_sign:
        raise AuthenticationFailed(f"key usage of certificate {name} forbids issuing certificates")
    if len(path) >= MAX_CHAIN:
        raise AuthenticationFailed(f"more than {MAX_CHAIN} certificates in a path")
    _check_certificate(issuer, wall_now)
    _check_signature(issuer, path[-1])


def _check_signature(issuer: x509.Certificate, subject: x509.Certificate) -> None:
    names = f"{_printed(subject.subject)} by {_printed(issuer.subject)}"
    try:
        algorithm = subject.signature_hash_algorithm
        if algorithm is not None and algorithm.name in _WEAK_HASHES:
            raise AuthenticationFailed(f"signature on {names} uses {algorithm.name}")
        subject.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise AuthenticationFailed(f"signature on {names} does not verify") from error


def _weakness(key: PublicKey) -> str:
    """Why a key is not good enough; empty when it is."""
    match key:
        case RSAPublicKey() if key.key_size < MIN_RSA_BITS:
            return f"is RSA of {key.key_size} bits, at least {MIN_RSA_BITS} are needed"
        case ec.EllipticCurvePublicKey() if not isinstance(key.curve, _CURVES):
            return f"is on {key.curve.name}, not on P-256, P-384 or P-521"
        case _:
            return ""


# --- reading ---------------------------------------------------------------------------------


def _decode(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise AuthenticationFailed(f"certificate cannot be read: {error}") from error


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        name = _printed(certificate.subject)
        raise AuthenticationFailed(f"extensions of certificate {name}: {error}") from error


def _extension(certificate: x509.Certificate, kind: type[ExtensionT]) -> ExtensionT | None:
    try:
        return _extensions(certificate).get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _identity_of(entry: x509.GeneralName) -> list[tuple[IdType, bytes]]:
    match entry:
        case x509.DNSName():
            return [(IdType.FQDN, entry.value.encode())]
        case x509.RFC822Name():
            return [(IdType.RFC822_ADDR, entry.value.encode())]
        case x509.IPAddress(value=IPv4Address() as address):
            return [(IdType.IPV4_ADDR, address.packed)]
        case x509.IPAddress(value=IPv6Address() as address):
            return [(IdType.IPV6_ADDR, address.packed)]
        case _:
            return []


def _key_hash(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha1(info, usedforsecurity=False).digest()


def _untrusted(certificate: x509.Certificate) -> str:
    issuer = _printed(certificate.issuer)
    return f"certificate {_printed(certificate.subject)}: its issuer {issuer} is not trusted"


def _printed(name: x509.Name) -> str:
    return repr(name.rfc4514_string())  # escapes what a peer might have put there
