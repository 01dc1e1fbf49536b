"""Making and judging AUTH payloads: PSK and certificates. RFC 7296 §2.15, RFC 7427.

A further way to prove an identity (EAP) takes its place beside ``prove`` and ``judge``.
"""

from collections.abc import Sequence

from tunnelwrap.auth.certificate import identity_is_bound
from tunnelwrap.auth.identity import NOBODY, Identity
from tunnelwrap.auth.octets import signed_octets
from tunnelwrap.auth.psk import psk_auth
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.signature import PublicKey, sign, verify
from tunnelwrap.crypto.x509 import public_key_of
from tunnelwrap.errors import AuthenticationFailed, IntegrityError
from tunnelwrap.iana import AuthMethod, CertEncoding
from tunnelwrap.ike.policy import (
    CertificateCredential,
    LocalAuthentication,
    NoCredential,
    PeerAuthentication,
)
from tunnelwrap.ike.sa import Handshake, IkeSa
from tunnelwrap.wire.payloads import Auth, Certificate, IdPayload, Payload


def prove(sa: IkeSa, local: LocalAuthentication, identity: IdPayload) -> tuple[list[Payload], Auth]:
    """Our CERT payloads and our AUTH payload."""
    octets = _octets(sa, identity, by_initiator=sa.is_initiator)
    if sa.resumes is not None:
        return [], Auth(
            AuthMethod.SHARED_KEY, _resumed_auth(sa, octets, by_initiator=sa.is_initiator)
        )
    if isinstance(local.credential, CertificateCredential):
        method, data = sign(local.credential.key, octets, _handshake(sa).peer_hashes)
        chain: list[Payload] = [
            Certificate(CertEncoding.X509_SIGNATURE, der) for der in local.credential.chain
        ]
        return chain, Auth(method, data)
    suite, _, _ = sa.agreed
    if isinstance(local.credential, NoCredential):
        return [], Auth(AuthMethod.NULL, _null_auth(sa, octets, by_initiator=sa.is_initiator))
    return [], Auth(AuthMethod.SHARED_KEY, psk_auth(suite.prf_function(), local.credential, octets))


def judge(
    sa: IkeSa,
    peer: PeerAuthentication,
    identity: IdPayload,
    auth: Auth,
    certificates: Sequence[Certificate],
) -> str:
    """Check the peer's AUTH payload; gives what proved it, for the log.

    Raises:
        AuthenticationFailed: it proves nothing; the text names the cause.
    """
    octets = _octets(sa, identity, by_initiator=not sa.is_initiator)
    if sa.resumes is not None:
        if Secret(auth.data) != Secret(_resumed_auth(sa, octets, by_initiator=not sa.is_initiator)):
            raise AuthenticationFailed("the peer has not the keys of the session it resumes")
        return "ticket"
    if auth.method == AuthMethod.SHARED_KEY:
        return _judge_psk(sa, peer, auth, octets)
    if auth.method == AuthMethod.NULL:
        return _judge_null(sa, peer, identity, auth, octets)
    if peer.trust is None:
        raise AuthenticationFailed("the peer used a certificate, a pre-shared key is expected")
    chain = [c.data for c in certificates if c.encoding == CertEncoding.X509_SIGNATURE]
    if not chain:
        raise AuthenticationFailed("the peer signed but sent no certificate")
    certificate = peer.trust.validate(chain, sa.context.wall_clock())
    claimed = Identity(identity.id_type, identity.data)
    if not identity_is_bound(certificate, claimed):
        raise AuthenticationFailed(
            f"the certificate of {certificate.subject.rfc4514_string()} is not for {claimed}"
        )
    return _verified(public_key_of(certificate), auth, octets)


def accepts(peer: PeerAuthentication, method: int) -> bool:
    """True where this policy has what is needed to judge an authentication method."""
    if method == AuthMethod.NULL:
        return peer.accepts_null
    return peer.psk is not None if method == AuthMethod.SHARED_KEY else peer.trust is not None


def _judge_psk(sa: IkeSa, peer: PeerAuthentication, auth: Auth, octets: bytes) -> str:
    if peer.psk is None:
        raise AuthenticationFailed("the peer used a pre-shared key, a certificate is expected")
    suite, _, _ = sa.agreed
    if Secret(auth.data) != Secret(psk_auth(suite.prf_function(), peer.psk, octets)):
        raise AuthenticationFailed("the pre-shared keys differ")
    return "pre-shared key"


def _judge_null(
    sa: IkeSa, peer: PeerAuthentication, identity: IdPayload, auth: Auth, octets: bytes
) -> str:
    """A name that nobody vouches for is not taken for one. RFC 7619 §2.2."""
    if not peer.accepts_null:
        raise AuthenticationFailed("the peer proves nothing, and must")
    if Identity(identity.id_type, identity.data) != NOBODY:
        raise AuthenticationFailed("the peer has a name and proves nothing")
    if Secret(auth.data) != Secret(_null_auth(sa, octets, by_initiator=not sa.is_initiator)):
        raise AuthenticationFailed("the keys of the two sides differ")
    return "nothing"


def _null_auth(sa: IkeSa, octets: bytes, *, by_initiator: bool) -> bytes:
    """AUTH of who has no secret: SK_pi or SK_pr in its place. RFC 7619 §2.1."""
    suite, keys, _ = sa.agreed
    secret = keys.sk_pi if by_initiator else keys.sk_pr
    return psk_auth(suite.prf_function(), secret, octets)


def _resumed_auth(sa: IkeSa, octets: bytes, *, by_initiator: bool) -> bytes:
    """AUTH of a resumed IKE SA: prf(SK_px, octets). RFC 5723 §4.3.3."""
    suite, keys, _ = sa.agreed
    secret = keys.sk_pi if by_initiator else keys.sk_pr
    return suite.prf_function().compute(secret.reveal(), octets)


def is_acceptable(peer: PeerAuthentication, claimed: Identity) -> bool:
    """Whether a peer of this name is one that we expect."""
    return peer.identity.matches(claimed) or (peer.accepts_null and claimed == NOBODY)


def _verified(key: PublicKey, auth: Auth, octets: bytes) -> str:
    try:
        return verify(key, auth.method, auth.data, octets)
    except IntegrityError as error:
        raise AuthenticationFailed(f"the signature does not verify: {error}") from error


def _octets(sa: IkeSa, identity: IdPayload, *, by_initiator: bool) -> bytes:
    suite, keys, _ = sa.agreed
    handshake = _handshake(sa)
    message, nonce, sk_p = (
        (handshake.request, handshake.n_r, keys.sk_pi)
        if by_initiator
        else (handshake.response, handshake.n_i, keys.sk_pr)
    )
    int_auth = sa.intermediate.int_auth if sa.intermediate is not None else b""
    return signed_octets(message, nonce, suite.prf_function(), sk_p, identity.encode(), int_auth)


def _handshake(sa: IkeSa) -> Handshake:
    assert sa.handshake is not None, "IKE_SA_INIT comes first"
    return sa.handshake
