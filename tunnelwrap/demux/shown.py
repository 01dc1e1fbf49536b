"""What is shown of us on TLS ports: a certificate, which another can replace at any time.

Connections keep what they began with. While we prove to an ACME server that a name is ours, those
who ask for that get the proof in place of the certificate. RFC 8737.
"""

import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tunnelwrap.demux.peek import hello_of

ACME_PROTOCOL: Final = "acme-tls/1"
"""The protocol, by its ALPN name, of who wants to see a proof. RFC 8737 §4."""

# RFC 9325 §4.2; TLS 1.3 has none but good ones.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_NONE: Final = MappingProxyType[str, ssl.SSLContext]({})


def bare_context(protocol: str = "http/1.1") -> ssl.SSLContext:
    """How the gateway speaks TLS, by RFC 9325; without a certificate every handshake fails."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols([protocol])
    return context


def proof_context(pem_file: Path) -> ssl.SSLContext:
    """How a proof is shown, which is a certificate in a file with its key."""
    context = bare_context(ACME_PROTOCOL)
    context.load_cert_chain(pem_file)
    return context


class Shown:
    """What is shown at this time.

    Args:
        context: with our certificate; by default there is none yet.
    """

    __slots__ = ("context", "proofs")

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.context = context or bare_context()
        self.proofs: Mapping[str, ssl.SSLContext] = _NONE  # by names in lower case

    async def proof_for(self, sock: socket.socket) -> ssl.SSLContext | None:
        """The proof that a TLS client asks for; not an octet is taken.

        It offers that one protocol and no other. RFC 8737 §3.

        Raises:
            EOFError: it ended before that was known.
            OSError: the connection broke.
        """
        if not self.proofs:
            return None  # nobody else's ClientHello is waited for
        hello = await hello_of(sock)
        if hello is None or hello.sni is None or hello.alpn != (ACME_PROTOCOL,):
            return None
        return self.proofs.get(hello.sni.lower())
