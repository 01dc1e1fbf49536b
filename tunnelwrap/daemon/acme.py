"""An order of a certificate from an ACME server, with the library ``acme``. RFC 8555.

Everything here blocks, for half a minute and more, and ``acme`` takes a second to load: this is for
a thread of its own, see ``daemon.certificates``.
"""

import hashlib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import requests
from acme import challenges, errors, messages
from acme.client import ClientNetwork, ClientV2
from acme.crypto_util import make_csr
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from josepy.errors import Error as JoseError
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC

from tunnelwrap import __version__
from tunnelwrap.config.model import Acme
from tunnelwrap.errors import CertificateError
from tunnelwrap.transport.sockets import reason_of

_REQUEST_S: Final = 30  # for each answer of the server
_ORDER_S: Final = 180.0  # from its challenges to the certificate
_PROOF_S: Final = timedelta(days=1)
_ID_PE_ACME: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")  # RFC 8737 §6.1
_NEW_KEY: Final = partial(generate_private_key, SECP256R1())
_Wrong = (errors.Error, messages.Error, requests.RequestException, JoseError, ValueError)


@dataclass(frozen=True, slots=True)
class Proof:
    """What shows that a name is ours: a text at a token's place, or a certificate with its key."""

    name: str
    token: str
    text: str

    def pem(self) -> bytes:
        """The certificate for it, with a key, in PEM. RFC 8737 §3."""
        key, now = _NEW_KEY(), datetime.now(UTC)
        digest = hashlib.sha256(self.text.encode()).digest()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ACME challenge")])
        value = x509.UnrecognizedExtension(_ID_PE_ACME, b"\x04\x20" + digest)
        made = (
            x509.CertificateBuilder(subject, subject, key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _PROOF_S)
            .not_valid_after(now + _PROOF_S)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(self.name)]), critical=False)
            .add_extension(value, critical=True)
            .sign(key, hashes.SHA256())
        )
        return private_pem(key) + made.public_bytes(Encoding.PEM)


@challenges.ChallengeResponse.register
class _TlsAlpn01Response(challenges.KeyAuthorizationChallengeResponse):
    typ = "tls-alpn-01"


@challenges.Challenge.register
class _TlsAlpn01(challenges.KeyAuthorizationChallenge):
    """RFC 8737 §3; the library has none."""

    typ = "tls-alpn-01"
    response_cls = _TlsAlpn01Response

    def validation(self, account_key: JWK, **_: object) -> str:
        return self.key_authorization(account_key)


class Order:
    """An order that was placed.

    Args:
        settings: of whom, and how names are proven.
        names: what the certificate is to have, in lower case.
        account_file: its key in PEM; the account is made if there is none with that key.

    Raises:
        CertificateError: there is no such key, or the server cannot be reached, or refuses.
    """

    def __init__(self, settings: Acme, names: tuple[str, ...], account_file: Path) -> None:
        self._settings = settings
        self._key = _NEW_KEY()
        self._account_key = _loaded(account_file)
        with _in_words():
            self._client = self._registered()
            csr = make_csr(private_pem(self._key), list(names))
            self._order = self._client.new_order(csr)
            self._pending = dict(self._chosen())

    @property
    def proofs(self) -> tuple[Proof, ...]:
        """What must be shown before ``finish``; of names that were proven lately there is none."""
        return tuple(self._pending)

    def finish(self) -> bytes:
        """Have it all checked, and get the key and the certificate with its chain, in PEM.

        Raises:
            CertificateError: the server finds a proof wanting, or refuses.
        """
        deadline = datetime.now() + timedelta(seconds=_ORDER_S)  # noqa: DTZ005 (acme wants it so)
        with _in_words():
            for challenge in self._pending.values():
                self._client.answer_challenge(challenge, challenge.response(self._account_key))
            order = self._client.poll_authorizations(self._order, deadline)
            order = self._client.finalize_order(order, deadline)
            return private_pem(self._key) + str(order.fullchain_pem).encode()

    def _registered(self) -> ClientV2:
        """With our account; who asks for a new one with a known key gets the old. RFC 8555 §7.3."""
        ca = self._settings.ca
        network = ClientNetwork(
            self._account_key,
            alg=ES256,
            verify_ssl=True if ca is None else str(ca.file),  # type: ignore[arg-type] # as requests has it
            user_agent=f"tunnelwrap/{__version__}",
            timeout=_REQUEST_S,
        )
        directory = ClientV2.get_directory(self._settings.directory, network)
        client = ClientV2(directory, network)
        wanted = messages.NewRegistration.from_data(
            email=self._settings.email,
            terms_of_service_agreed=True,
            external_account_binding=self._binding(directory),
        )
        try:
            client.new_account(wanted)
        except errors.ConflictError as known:
            client.net.account = messages.RegistrationResource(body=wanted, uri=known.location)
        return client

    def _binding(self, directory: messages.Directory) -> dict[str, object] | None:
        key_id, key = self._settings.eab_key_id, self._settings.eab_key
        if key_id is None or key is None:
            return None
        public = self._account_key.public_key()
        return messages.ExternalAccountBinding.from_data(public, key_id, key.base64url, directory)

    def _chosen(self) -> Iterator[tuple[Proof, messages.ChallengeBody]]:
        """The proofs that are wanted, of the kind that we give."""
        kind = self._settings.challenge
        for authorization in self._order.authorizations:
            body = authorization.body
            if body.status == messages.STATUS_VALID:
                continue
            name = body.identifier.value
            challenge = next((each for each in body.challenges if each.chall.typ == kind), None)
            if challenge is None:
                raise errors.Error(f"the server takes no {kind} for {name}")
            text = challenge.chall.key_authorization(self._account_key)
            yield Proof(name, text.partition(".")[0], text), challenge


def new_account_key() -> bytes:
    """A key for an account, in PEM."""
    return private_pem(_NEW_KEY())


def _loaded(account_file: Path) -> JWKEC:
    with suppress(JoseError, ValueError):
        loaded = JWKEC.load(account_file.read_bytes())
        if isinstance(loaded, JWKEC):  # what is no PEM is loaded as a symmetric key
            return loaded
    raise CertificateError(f"{account_file}: expected the key of an account, on P-256, in PEM")


def private_pem(key: EllipticCurvePrivateKey) -> bytes:
    """A key as it is kept in files."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


# --- what went wrong -------------------------------------------------------------------------


@contextmanager
def _in_words() -> Iterator[None]:
    """Whatever the libraries raise becomes a CertificateError on one line."""
    try:
        yield
    except _Wrong as error:
        raise CertificateError(" ".join(_words(error).split())) from error


def _words(error: BaseException) -> str:
    match error:
        case errors.ValidationError():
            return "; ".join(_failures(error))
        case errors.TimeoutError():
            return f"no certificate within {_ORDER_S:g} s"
        case errors.ConflictError():
            return f"conflict with {error.location}"
        case messages.Error():
            return str(error.detail or error.description or error.typ)
        case requests.RequestException():
            return "no answer" if isinstance(error, requests.Timeout) else _cause(error)
        case _:
            return str(error) or type(error).__name__


def _failures(error: errors.ValidationError) -> Iterator[str]:
    for authorization in error.failed_authzrs:
        for challenge in authorization.body.challenges:
            if challenge.error is not None:
                name = authorization.body.identifier.value
                yield f"{name} is not proven by {challenge.chall.typ}: {_words(challenge.error)}"


def _cause(error: BaseException) -> str:
    """What was first in a chain of errors, of which the libraries have many."""
    seen = {id(error)}
    while (deeper := error.__cause__ or error.__context__) and id(deeper) not in seen:
        seen.add(id(deeper))
        error = deeper
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its TLS certificate: {error.verify_message}"
    return reason_of(error) if isinstance(error, OSError) else str(error)
