"""AUTH by signature: RSA and ECDSA as of old, and the Digital Signature method with its hashes.

RFC 7296 §3.8 (RSA), RFC 4754 (ECDSA), RFC 7427 (Digital Signature), RFC 8247 §3 (what is still
acceptable), RFC 8420 (Ed25519 and Ed448).
"""

from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import Final, assert_never

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from tunnelwrap.errors import AuthenticationFailed, UsageError
from tunnelwrap.iana import AuthMethod, HashAlgorithm, name_of

PrivateKey = RSAPrivateKey | ec.EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey
PublicKey = RSAPublicKey | ec.EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

OUR_HASHES: Final = (
    HashAlgorithm.SHA2_256,
    HashAlgorithm.SHA2_384,
    HashAlgorithm.SHA2_512,
    HashAlgorithm.IDENTITY,
)
"""What we send in SIGNATURE_HASH_ALGORITHMS: no SHA-1. RFC 8247 §3.2."""

MIN_RSA_BITS: Final = 2048  # RFC 8247 §3.1


class _Kind(Enum):
    PKCS1 = "RSASSA-PKCS1-v1_5"
    PSS = "RSASSA-PSS"
    ECDSA = "ECDSA"
    ED25519 = "Ed25519"
    ED448 = "Ed448"


@dataclass(frozen=True, slots=True)
class _Scheme:
    """A signature algorithm with its hash."""

    kind: _Kind
    hash_id: HashAlgorithm

    def __str__(self) -> str:
        identity = self.hash_id is HashAlgorithm.IDENTITY
        return self.kind.value if identity else f"{self.kind.value} with {self.hash_id.name}"


_HASHES: Final[dict[HashAlgorithm, hashes.HashAlgorithm]] = {
    HashAlgorithm.SHA2_256: hashes.SHA256(),
    HashAlgorithm.SHA2_384: hashes.SHA384(),
    HashAlgorithm.SHA2_512: hashes.SHA512(),
}

# RFC 4754 §3: each method is tied to its curve and hash
_ECDSA_METHODS: Final[dict[int, tuple[str, HashAlgorithm]]] = {
    AuthMethod.ECDSA_P256_SHA256: (ec.SECP256R1.name, HashAlgorithm.SHA2_256),
    AuthMethod.ECDSA_P384_SHA384: (ec.SECP384R1.name, HashAlgorithm.SHA2_384),
    AuthMethod.ECDSA_P521_SHA512: (ec.SECP521R1.name, HashAlgorithm.SHA2_512),
}


def sign(key: PrivateKey, octets: bytes, peer_hashes: frozenset[int]) -> tuple[int, bytes]:
    """Prove our identity: authentication method and data of our AUTH payload.

    Args:
        key: the key that our certificate certifies.
        octets: the signed octets. RFC 7296 §2.15.
        peer_hashes: what the peer sent in SIGNATURE_HASH_ALGORITHMS; empty if it did not.

    Raises:
        AuthenticationFailed: the peer can verify no signature that this key can make.
        UsageError: the key is of a kind we do not sign with.
    """
    scheme = _choose(key, peer_hashes)
    if scheme is None:
        return _sign_without_negotiation(key, octets)
    identifier = _IDENTIFIERS[scheme][0]
    signature = _sign(key, scheme, octets)
    return AuthMethod.DIGITAL_SIGNATURE, bytes((len(identifier),)) + identifier + signature


def verify(key: PublicKey, method: int, data: bytes, octets: bytes) -> str:
    """Check the peer's AUTH payload; gives back the name of what was verified.

    Args:
        key: from the peer's validated certificate.
        method: authentication method of the payload.
        data: authentication data of the payload.
        octets: what the peer had to sign. RFC 7296 §2.15.

    Raises:
        AuthenticationFailed: the signature is wrong, weak, or does not belong to the key.
    """
    if method == AuthMethod.DIGITAL_SIGNATURE:
        return _verify_digital_signature(key, data, octets)
    if method == AuthMethod.RSA_SIGNATURE and isinstance(key, RSAPublicKey):
        return _verify_rsa(key, data, octets)
    if method in _ECDSA_METHODS and isinstance(key, ec.EllipticCurvePublicKey):
        return _verify_ecdsa(key, method, data, octets)
    name = name_of(AuthMethod, method)
    raise AuthenticationFailed(f"authentication method {name} does not go with {_describe(key)}")


# --- making ---------------------------------------------------------------------------------


def _choose(key: PrivateKey, peer_hashes: frozenset[int]) -> _Scheme | None:
    """The best Digital Signature that the peer can verify, if any."""
    kind, preferred = _preference(key)
    common = [hash_id for hash_id in preferred if hash_id in peer_hashes]
    return _Scheme(kind, common[0]) if common else None


def _preference(key: PrivateKey) -> tuple[_Kind, list[HashAlgorithm]]:
    """Scheme and hashes of a key: the hash of its own strength, then the stronger ones."""
    match key:
        case RSAPrivateKey():
            return _Kind.PSS, _from_strength(key.key_size, 3072, 7680)
        case ec.EllipticCurvePrivateKey() if key.curve.name in _CURVES:
            return _Kind.ECDSA, _from_strength(key.curve.key_size, 256, 384)
        case Ed25519PrivateKey():
            return _Kind.ED25519, [HashAlgorithm.IDENTITY]
        case Ed448PrivateKey():
            return _Kind.ED448, [HashAlgorithm.IDENTITY]
        case _:
            raise UsageError(f"cannot sign with {_describe(key)}")


_CURVES: Final = frozenset(curve for curve, _ in _ECDSA_METHODS.values())


def _from_strength(bits: int, up_to_256: int, up_to_384: int) -> list[HashAlgorithm]:
    first = 0 if bits <= up_to_256 else 1 if bits <= up_to_384 else 2
    ordered = list(_HASHES)
    return ordered[first:] + ordered[:first][::-1]


def _sign(key: PrivateKey, scheme: _Scheme, octets: bytes) -> bytes:
    match key:
        case RSAPrivateKey():
            return key.sign(octets, _padding(scheme), _HASHES[scheme.hash_id])
        case ec.EllipticCurvePrivateKey():
            return key.sign(octets, ec.ECDSA(_HASHES[scheme.hash_id]))
        case Ed25519PrivateKey() | Ed448PrivateKey():
            return key.sign(octets)
        case _:
            assert_never(key)


def _sign_without_negotiation(key: PrivateKey, octets: bytes) -> tuple[int, bytes]:
    """A signature for a peer that shares no hash with us by RFC 7427."""
    match key:
        case RSAPrivateKey():
            # RFC 7296 §3.8 would have SHA-1 by default; RFC 8247 §3.1 no longer does
            scheme = _Scheme(_Kind.PKCS1, HashAlgorithm.SHA2_256)
            return AuthMethod.RSA_SIGNATURE, _sign(key, scheme, octets)
        case ec.EllipticCurvePrivateKey():
            return _sign_ecdsa(key, octets)
        case Ed25519PrivateKey() | Ed448PrivateKey():
            name = _describe(key)
            raise AuthenticationFailed(f"peer cannot verify {name} (no hash IDENTITY, RFC 8420)")
        case _:
            assert_never(key)


def _sign_ecdsa(key: ec.EllipticCurvePrivateKey, octets: bytes) -> tuple[int, bytes]:
    """ECDSA of RFC 4754 §7: r and s side by side, each as long as the order."""
    method, hash_id = next(
        (method, hash_id)
        for method, (curve, hash_id) in _ECDSA_METHODS.items()
        if curve == key.curve.name
    )
    r, s = decode_dss_signature(_sign(key, _Scheme(_Kind.ECDSA, hash_id), octets))
    length = _order_length(key.curve)
    return method, r.to_bytes(length, "big") + s.to_bytes(length, "big")


# --- checking -------------------------------------------------------------------------------


def _verify_digital_signature(key: PublicKey, data: bytes, octets: bytes) -> str:
    end = 1 + data[0] if data else 0
    identifier, signature = data[1:end], data[end:]
    scheme = _SCHEMES.get(identifier)
    if scheme is None:
        raise AuthenticationFailed(f"signature algorithm {identifier.hex()} is not acceptable")
    _check(key, scheme, signature, octets)
    return str(scheme)


def _verify_rsa(key: RSAPublicKey, data: bytes, octets: bytes) -> str:
    """Method 1, where only the signature itself tells the hash. RFC 7296 §3.8."""
    for hash_id in _HASHES:
        scheme = _Scheme(_Kind.PKCS1, hash_id)
        if _is_valid(key, scheme, data, octets):
            return str(scheme)
    try:
        key.verify(data, octets, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303  # only to name it
    except InvalidSignature as error:
        raise AuthenticationFailed("RSA signature does not verify") from error
    raise AuthenticationFailed("RSA signature with SHA-1 is not accepted (RFC 8247)")


def _verify_ecdsa(key: ec.EllipticCurvePublicKey, method: int, data: bytes, octets: bytes) -> str:
    """Methods 9 to 11: r and s side by side. RFC 4754 §7."""
    curve, hash_id = _ECDSA_METHODS[method]
    length = _order_length(key.curve)
    if key.curve.name != curve or len(data) != 2 * length:
        name = name_of(AuthMethod, method)
        raise AuthenticationFailed(f"{name} of {len(data)} octets for {_describe(key)}")
    r, s = int.from_bytes(data[:length], "big"), int.from_bytes(data[length:], "big")
    scheme = _Scheme(_Kind.ECDSA, hash_id)
    _check(key, scheme, encode_dss_signature(r, s), octets)
    return str(scheme)


def _check(key: PublicKey, scheme: _Scheme, signature: bytes, octets: bytes) -> None:
    if not _is_valid(key, scheme, signature, octets):
        raise AuthenticationFailed(f"{scheme} by {_describe(key)} does not verify")


def _is_valid(key: PublicKey, scheme: _Scheme, signature: bytes, octets: bytes) -> bool:
    """Whether key and scheme belong together and the signature verifies."""
    try:
        match key, scheme.kind:
            case RSAPublicKey(), _Kind.PKCS1 | _Kind.PSS:
                key.verify(signature, octets, _padding(scheme), _HASHES[scheme.hash_id])
            case ec.EllipticCurvePublicKey(), _Kind.ECDSA if key.curve.name in _CURVES:
                key.verify(signature, octets, ec.ECDSA(_HASHES[scheme.hash_id]))
            case Ed25519PublicKey(), _Kind.ED25519:
                key.verify(signature, octets)
            case Ed448PublicKey(), _Kind.ED448:
                key.verify(signature, octets)
            case _:
                return False
    except InvalidSignature:
        return False
    return True


# --- both -----------------------------------------------------------------------------------


def _padding(scheme: _Scheme) -> padding.AsymmetricPadding:
    if scheme.kind is _Kind.PKCS1:
        return padding.PKCS1v15()
    algorithm = _HASHES[scheme.hash_id]
    return padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)


def _order_length(curve: ec.EllipticCurve) -> int:
    return (curve.key_size + 7) // 8


def _describe(key: PrivateKey | PublicKey) -> str:
    match key:
        case RSAPrivateKey() | RSAPublicKey():
            return f"an RSA key of {key.key_size} bits"
        case ec.EllipticCurvePrivateKey() | ec.EllipticCurvePublicKey():
            return f"an EC key on {key.curve.name}"
        case Ed25519PrivateKey() | Ed25519PublicKey():
            return "an Ed25519 key"
        case Ed448PrivateKey() | Ed448PublicKey():
            return "an Ed448 key"
        case _:
            assert_never(key)


# --- AlgorithmIdentifiers, RFC 7427 appendix A ----------------------------------------------

_NULL: Final = bytes.fromhex("0500")
_OID_PKCS1: Final = bytes.fromhex("06092a864886f70d0101")  # pkcs-1; the last arc follows
_OID_SHA2: Final = bytes.fromhex("06096086480165030402")  # hashAlgs; the last arc follows
_OID_ECDSA_SHA2: Final = bytes.fromhex("06082a8648ce3d0403")
_OID_ED25519: Final = bytes.fromhex("06032b6570")  # RFC 8420 appendix A
_OID_ED448: Final = bytes.fromhex("06032b6571")


def _tagged(tag: int, *parts: bytes) -> bytes:
    """DER of a value shorter than 128 octets."""
    content = b"".join(parts)
    return bytes((tag, len(content))) + content


def _sequence(*parts: bytes) -> bytes:
    return _tagged(0x30, *parts)


def _pss_identifiers(hash_arc: int, digest_size: int) -> list[bytes]:
    """Encodings in use for PSS with MGF1 and a salt as long as the hash; the first is ours.

    RFC 4055 §2.1 lets the NULL of a hash be absent; DER leaves the default trailer field out,
    the example of RFC 7427 A.4.3 does not.
    """
    oid = _OID_SHA2 + bytes((hash_arc,))
    salt = _tagged(0xA2, _tagged(0x02, bytes((digest_size,))))
    trailers = (b"", _tagged(0xA3, _tagged(0x02, b"\1")))
    encodings = []
    for trailer, null, mgf_null in product(trailers, (_NULL, b""), (_NULL, b"")):
        mgf = _sequence(_OID_PKCS1 + b"\x08", _sequence(oid, mgf_null))
        parameters = (_tagged(0xA0, _sequence(oid, null)), _tagged(0xA1, mgf), salt, trailer)
        encodings.append(_sequence(_OID_PKCS1 + b"\x0a", _sequence(*parameters)))
    return encodings


def _identifiers() -> dict[_Scheme, list[bytes]]:
    table = {
        _Scheme(_Kind.ED25519, HashAlgorithm.IDENTITY): [_sequence(_OID_ED25519)],
        _Scheme(_Kind.ED448, HashAlgorithm.IDENTITY): [_sequence(_OID_ED448)],
    }
    rows = zip(_HASHES.items(), (11, 12, 13), (1, 2, 3), (2, 3, 4), strict=True)
    for (hash_id, algorithm), rsa_arc, hash_arc, ecdsa_arc in rows:
        rsa = _OID_PKCS1 + bytes((rsa_arc,))
        table[_Scheme(_Kind.PKCS1, hash_id)] = [_sequence(rsa, _NULL), _sequence(rsa)]
        table[_Scheme(_Kind.PSS, hash_id)] = _pss_identifiers(hash_arc, algorithm.digest_size)
        ecdsa = _sequence(_OID_ECDSA_SHA2 + bytes((ecdsa_arc,)))
        table[_Scheme(_Kind.ECDSA, hash_id)] = [ecdsa]
    return table


_IDENTIFIERS: Final = _identifiers()
_SCHEMES: Final = {
    identifier: scheme for scheme, known in _IDENTIFIERS.items() for identifier in known
}
