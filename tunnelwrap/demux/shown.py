"""What is shown of us on TLS ports: a certificate, which another can replace at any time.

Connections keep what they began with. While we prove to an ACME server that a name is ours, those
who ask for that get the proof in place of the certificate. RFC 8737.
"""

import ssl
from _ssl import _SSLContext
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tunnelwrap.errors import ConfigError
from tunnelwrap.wire.tls import ClientHello

ACME_PROTOCOL: Final = "acme-tls/1"
"""The protocol, by its ALPN name, of who wants to see a proof. RFC 8737 §4."""

# RFC 9325 §4.2; TLS 1.3 has none but good ones.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_WEB: Final = ("http/1.1", "http/1.0", "http/0.9")  # as web servers know them
_NO_APPLICATION_PROTOCOL: Final = 120  # an alert. RFC 7301 §3.2
_Callback = Callable[[object, str | None, ssl.SSLContext], int | None]
_NONE: Final = MappingProxyType[str, ssl.SSLContext]({})


def bare_context(*protocols: str) -> ssl.SSLContext:
    """How the gateway speaks TLS, by RFC 9325; without a certificate every handshake fails."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Sessions are kept here: the length of a ticket would show who has set up OpenSSL.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF  # no alert answers it
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(list(protocols or _WEB))
    _set_callback(context, _accept_name)
    return context


def _set_callback(context: ssl.SSLContext, callback: _Callback) -> None:
    """By the class below: Python's own setter refuses names that no host can have."""
    vars(_SSLContext)["sni_callback"].__set__(context, callback)


def _accept_name(_sock: object, _name: str | None, _context: ssl.SSLContext) -> None:
    """Whichever name is asked for, the client is told that it was understood. RFC 6066 §3."""


def _refuse_protocols(_sock: object, _name: str | None, _context: ssl.SSLContext) -> int:
    return _NO_APPLICATION_PROTOCOL


@cache
def _refusal() -> ssl.SSLContext:
    """How a client is told that we speak none of its protocols; OpenSSL's own way is closed."""
    context = bare_context()
    _set_callback(context, _refuse_protocols)
    return context


def proof_context(pem_file: Path) -> ssl.SSLContext:
    """How a proof is shown, which is a certificate in a file with its key."""
    context = bare_context(ACME_PROTOCOL)
    context.load_cert_chain(pem_file)
    return context


def server_context(certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    """How the gateway speaks TLS: like a web server, by RFC 9325, with this certificate.

    Raises:
        ConfigError: a file cannot be read, or both together do not serve.
    """
    problems = [text for file in (certificate_file, key_file) if (text := _unreadable(file))]
    if problems:
        raise ConfigError(problems)
    context = bare_context()
    try:
        # A password, lest OpenSSL ask the terminal for that of an encrypted key.
        context.load_cert_chain(certificate_file, key_file, password="")
    except ssl.SSLError as error:
        # OpenSSL names the reason where both can be read; else it says only "PEM lib".
        reason = (error.reason or "").replace("_", " ").lower()
        reason = reason or "no certificate and unencrypted private key in PEM"
        raise ConfigError([f"{certificate_file} with {key_file}: {reason}"]) from error
    return context


def _unreadable(file: Path) -> str | None:
    try:
        file.read_bytes()
    except OSError as error:
        return f"{file}: {error.strerror}"
    return None


class Shown:
    """What is shown at this time.

    Args:
        context: with our certificate; by default there is none yet.
        client_ca: in PEM, who certifies clients that may show a certificate. Nobody is asked for
            one without it, as RFC 9329 appendix B.1 advises.
    """

    __slots__ = ("_client_ca", "_context", "proofs")

    def __init__(self, context: ssl.SSLContext | None = None, client_ca: str | None = None) -> None:
        self._client_ca = client_ca
        self.context = context or bare_context()
        self.proofs: Mapping[str, ssl.SSLContext] = _NONE  # by names in lower case

    @property
    def context(self) -> ssl.SSLContext:
        """With our certificate."""
        return self._context

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        if self._client_ca is not None:
            context.load_verify_locations(cadata=self._client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
        self._context = context

    def proof_for(self, hello: ClientHello | None) -> ssl.SSLContext | None:
        """The proof that a TLS client asks for.

        It offers that one protocol and no other. RFC 8737 §3.
        """
        if hello is None or hello.sni is None or hello.alpn != (ACME_PROTOCOL,):
            return None
        return self.proofs.get(hello.sni.lower())

    def context_for(self, hello: ClientHello | None) -> ssl.SSLContext:
        """With what all others are met: the certificate, if they speak HTTP."""
        offered = hello.alpn if hello else ()
        return _refusal() if offered and set(offered).isdisjoint(_WEB) else self.context
