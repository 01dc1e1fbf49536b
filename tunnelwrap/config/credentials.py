"""Certificates, keys and other secrets: in files, in the environment, or written down.

They are read while a configuration is checked, so that what is wrong with them is reported with
everything else that is wrong.
"""

import os
import re
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Annotated, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from pydantic import AfterValidator, PlainValidator

from tunnelwrap.auth.certificate import identity_is_bound
from tunnelwrap.auth.identity import Identity
from tunnelwrap.config.fields import PEM, Info, context_of, file_of, text_of, wrong
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.signature import PrivateKey
from tunnelwrap.crypto.x509 import load_certificates, load_private_key, names_of
from tunnelwrap.errors import ConfigError
from tunnelwrap.wire.prelude import is_word

HIDDEN: Final = "(hidden)"
"""What is printed in place of a secret."""

_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]{16,}={0,2}")
_WEB_PATH: Final = re.compile(r"/[A-Za-z0-9._~/-]{8,200}")


@dataclass(frozen=True, slots=True)
class Certificates:
    """Certificates, and the file that they are from; None: the configuration itself."""

    file: Path | None
    certificates: tuple[x509.Certificate, ...]

    @property
    def shown(self) -> str:
        """The file, or what the certificates are, for people."""
        subjects = "; ".join(each.subject.rfc4514_string() for each in self.certificates)
        return str(self.file) if self.file else f"(in this file: {subjects})"

    @property
    def pem(self) -> str:
        """All of them in PEM."""
        return "".join(each.public_bytes(Encoding.PEM).decode() for each in self.certificates)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and the file that it is from; None: the configuration itself."""

    file: Path | None
    key: PrivateKey = field(repr=False)

    @property
    def shown(self) -> str:
        """The file, or that there is something to hide."""
        return str(self.file) if self.file else HIDDEN

    @property
    def pem(self) -> Secret:
        """The key in PEM."""
        form = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        return Secret(self.key.private_bytes(*form))


@dataclass(frozen=True, slots=True)
class PresharedKey:
    """A pre-shared key, and where it is kept: a file or a variable; None: the configuration."""

    place: str | None
    secret: Secret

    @property
    def shown(self) -> str:
        """The place, or that there is something to hide."""
        return self.place or HIDDEN


@dataclass(frozen=True, slots=True)
class SecretPath:
    """Where on the web server a WebSocket can be had."""

    path: str = field(repr=False)
    shown: str = HIDDEN


@dataclass(frozen=True, slots=True)
class SecretWord:
    """What a client says in TLS before its stream."""

    text: str = field(repr=False)
    shown: str = HIDDEN


@dataclass(frozen=True, slots=True)
class AccountKey:
    """What an ACME server's operator gave us, to tell whose account ours is. RFC 8555 §7.3.4."""

    base64url: str = field(repr=False)
    shown: str = HIDDEN


# --- reading ---------------------------------------------------------------------------------


def _octets(value: object, info: Info, expected: str) -> tuple[Path | None, bytes]:
    """PEM written in the configuration itself, or the octets of the file that is named."""
    text = text_of(value, expected)
    if PEM in text:
        return None, text.encode()
    path = file_of(value, info, expected)
    return path, _read(path, expected)


def _read(path: Path, expected: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise wrong(expected, f"{path}: {error.strerror}") from None


def _certificates(value: object, info: Info) -> Certificates:
    expected = "the file name of a certificate, or the certificate itself in PEM"
    path, octets = _octets(value, info, expected)
    try:
        return Certificates(path, tuple(load_certificates(octets)))
    except ConfigError as error:
        raise wrong(expected, "; ".join(error.problems)) from None


def _signing_key(value: object, info: Info) -> SigningKey:
    expected = "the file name of a private key, or the key itself in PEM"
    path, octets = _octets(value, info, expected)
    try:
        return SigningKey(path, load_private_key(octets, None))
    except ConfigError as error:
        raise wrong(expected, "; ".join(error.problems)) from None


def _preshared_key(value: object) -> PresharedKey:
    text_of(value, "a pre-shared key")
    return PresharedKey(None, Secret(str(value).encode()))  # blanks around it are part of it


def _preshared_key_file(value: object, info: Info) -> PresharedKey:
    expected = "the name of a file that holds the pre-shared key"
    path = file_of(value, info, expected)
    octets = _read(path, expected).rstrip(b"\r\n")
    if not octets:
        raise wrong(expected, f"{path} is empty")
    return PresharedKey(str(path), Secret(octets))


def _preshared_key_variable(value: object, info: Info) -> PresharedKey:
    expected = "the name of an environment variable that holds the pre-shared key"
    name = text_of(value, expected)
    text = context_of(info).environment.get(name, "")
    if not text:
        raise wrong(expected, f"{name} is not set")
    return PresharedKey(name, Secret(os.fsencode(text)))  # its octets, in whichever encoding


def _secret_path(value: object) -> SecretPath:
    if not isinstance(value, str) or not _WEB_PATH.fullmatch(value):
        raise wrong("a path that nobody guesses, such as /Ahdai7eiPhai0ahx: a slash and 8 more")
    return SecretPath(value)


def _secret_word(value: object) -> SecretWord:
    if not isinstance(value, str) or not is_word(value):
        raise wrong("a word that nobody guesses, of 16 to 64 capitals, such as OHBAEPHEIWAHCHAI")
    return SecretWord(value)


def _account_key(value: object) -> AccountKey:
    if not isinstance(value, str) or not _BASE64URL.fullmatch(value):
        raise wrong("the key of the external account, in base64url as the operator gave it")
    return AccountKey(value.rstrip("="))


def _valid_now(own: Certificates, info: Info) -> Certificates:
    """Our own certificate must be one that peers accept at this time."""
    first, now = own.certificates[0], context_of(info).wall_now.astimezone(UTC)
    begin, end = first.not_valid_before_utc, first.not_valid_after_utc
    subject = first.subject.rfc4514_string()
    if now < begin:
        raise wrong("a certificate that is valid now", f"{subject} is not valid before {begin}")
    if now > end:
        raise wrong("a certificate that is valid now", f"{subject} expired on {end}")
    return own


AuthorityCertificates = Annotated[Certificates, PlainValidator(_certificates)]
OwnCertificates = Annotated[Certificates, PlainValidator(_certificates), AfterValidator(_valid_now)]
OwnKey = Annotated[SigningKey, PlainValidator(_signing_key)]
Psk = Annotated[PresharedKey, PlainValidator(_preshared_key)]
PskFile = Annotated[PresharedKey, PlainValidator(_preshared_key_file)]
ExternalKey = Annotated[AccountKey, PlainValidator(_account_key)]
Word = Annotated[SecretWord, PlainValidator(_secret_word)]
WebPath = Annotated[SecretPath, PlainValidator(_secret_path)]
PskVariable = Annotated[PresharedKey, PlainValidator(_preshared_key_variable)]

# --- do they belong together? ----------------------------------------------------------------


def check_key(own: Certificates | None, key: SigningKey | None) -> None:
    """Check that a certificate and its private key are there, or that both are absent."""
    if own is None and key is None:
        return
    if own is None or key is None:
        absent = "certificate" if own is None else "key"
        raise wrong("certificate and key together", f"{absent} is missing")
    if own.certificates[0].public_key() != key.key.public_key():
        subject = own.certificates[0].subject.rfc4514_string()
        raise wrong("the private key of the certificate", f"key is not that of {subject}")


def check_identity(own: Certificates, identity: str) -> None:
    """Check that our certificate speaks for our identity; peers would refuse it otherwise."""
    first = own.certificates[0]
    if identity_is_bound(first, Identity.parse(identity)):
        return
    names = ", ".join(str(Identity(*name)) for name in names_of(first))
    why = f"the certificate names {names or 'nobody'}, not {identity}"
    raise wrong("an identity that the certificate names", why)
