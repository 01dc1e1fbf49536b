"""Which identities a certificate speaks for. RFC 4945 §3.1, §5.1.3."""

from cryptography import x509

from tunnelwrap.auth.identity import Identity
from tunnelwrap.crypto.x509 import names_of


def identity_is_bound(certificate: x509.Certificate, identity: Identity) -> bool:
    """Whether the certificate names this identity, as a subjectAltName or as its subject.

    An address is bound by an address entry only, a name by a name; wildcards in certificates
    bind nothing, and a KEY_ID is bound by no certificate.
    """
    wanted = identity.canonical()
    return any(Identity(*name).canonical() == wanted for name in names_of(certificate))
