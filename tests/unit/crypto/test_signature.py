"""AUTH by signature: every kind of key against every peer, vectors, and what must be refused."""

from itertools import permutations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from tests.kit.certs import KINDS, key
from tests.kit.crypto_vectors import load, names
from tunnelwrap.crypto.signature import OUR_HASHES, sign, verify
from tunnelwrap.errors import AuthenticationFailed, UsageError
from tunnelwrap.iana import AuthMethod, HashAlgorithm

OCTETS = b"RealMessage1 | NonceRData | MACedIDForI"
SHA256, SHA384, SHA512 = (
    HashAlgorithm.SHA2_256,
    HashAlgorithm.SHA2_384,
    HashAlgorithm.SHA2_512,
)
PEERS = {
    "old": frozenset(),
    "sha1": frozenset({HashAlgorithm.SHA1}),
    "sha256": frozenset({SHA256}),
    "sha384": frozenset({SHA384}),
    "sha512": frozenset({SHA512}),
    "identity": frozenset({HashAlgorithm.IDENTITY}),
    "like us": frozenset(OUR_HASHES),
}
OLD_METHODS = {
    "rsa": (AuthMethod.RSA_SIGNATURE, "RSASSA-PKCS1-v1_5 with SHA2_256"),
    "p256": (AuthMethod.ECDSA_P256_SHA256, "ECDSA with SHA2_256"),
    "p384": (AuthMethod.ECDSA_P384_SHA384, "ECDSA with SHA2_384"),
    "p521": (AuthMethod.ECDSA_P521_SHA512, "ECDSA with SHA2_512"),
}
PREFERRED = {
    "rsa": "RSASSA-PSS with SHA2_256",
    "p256": "ECDSA with SHA2_256",
    "p384": "ECDSA with SHA2_384",
    "p521": "ECDSA with SHA2_512",
    "ed25519": "Ed25519",
    "ed448": "Ed448",
}
ECDSA_VECTORS = load("rfc4754")

every_kind = pytest.mark.parametrize("kind", KINDS)


def expected(kind: str, peer: str) -> tuple[int, str] | None:
    """What is to be used for a peer; None: there is nothing."""
    if kind in {"ed25519", "ed448"}:
        knows = peer in {"identity", "like us"}
        return (AuthMethod.DIGITAL_SIGNATURE, PREFERRED[kind]) if knows else None
    if peer == "like us":
        return AuthMethod.DIGITAL_SIGNATURE, PREFERRED[kind]
    if peer in {"sha256", "sha384", "sha512"}:
        scheme = "RSASSA-PSS" if kind == "rsa" else "ECDSA"
        return AuthMethod.DIGITAL_SIGNATURE, f"{scheme} with SHA2_{peer[3:]}"
    return OLD_METHODS[kind]


@pytest.mark.rfc("7427", "4")
@pytest.mark.rfc("8420", "2")
@every_kind
@pytest.mark.parametrize("peer", PEERS)
def test_every_key_for_every_peer(kind: str, peer: str) -> None:
    wanted = expected(kind, peer)
    if wanted is None:
        with pytest.raises(AuthenticationFailed, match=f"cannot verify an {kind.capitalize()} key"):
            sign(key(kind), OCTETS, PEERS[peer])
        return
    method, data = sign(key(kind), OCTETS, PEERS[peer])
    assert (method, verify(key(kind).public_key(), method, data, OCTETS)) == wanted


@pytest.mark.parametrize(
    ("kind", "peer"),
    [(kind, peer) for kind in KINDS for peer in ("old", "like us") if expected(kind, peer)],
)
def test_tampering_is_refused(kind: str, peer: str) -> None:
    method, data = sign(key(kind), OCTETS, PEERS[peer])
    public = key(kind).public_key()
    with pytest.raises(AuthenticationFailed):
        verify(public, method, data, OCTETS + b".")
    with pytest.raises(AuthenticationFailed):
        verify(key(kind, 1).public_key(), method, data, OCTETS)
    for position in range(0, len(data), 7):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(AuthenticationFailed):
            verify(public, method, bytes(changed), OCTETS)
    for length in (0, 1, 2, len(data) // 2, len(data) - 1):
        with pytest.raises(AuthenticationFailed):
            verify(public, method, data[:length], OCTETS)
    with pytest.raises(AuthenticationFailed):
        verify(public, method, data + b"\0", OCTETS)


@pytest.mark.parametrize(("kind", "other"), list(permutations(KINDS, 2)))
def test_a_signature_belongs_to_its_kind_of_key(kind: str, other: str) -> None:
    method, data = sign(key(kind), OCTETS, frozenset(OUR_HASHES))
    with pytest.raises(AuthenticationFailed, match="does not verify"):
        verify(key(other).public_key(), method, data, OCTETS)


FOREIGN_METHODS = [
    (kind, method)
    for kind in KINDS
    for method in (0, *AuthMethod, 200)
    if method != AuthMethod.DIGITAL_SIGNATURE and OLD_METHODS.get(kind, (None,))[0] != method
]


@pytest.mark.rfc("7296", "3.8")
@pytest.mark.parametrize(("kind", "method"), FOREIGN_METHODS)
def test_a_method_belongs_to_its_kind_of_key(kind: str, method: int) -> None:
    with pytest.raises(AuthenticationFailed):
        verify(key(kind).public_key(), method, bytes(64), OCTETS)


@pytest.mark.rfc("4754", "8")
@pytest.mark.parametrize("case", ECDSA_VECTORS, ids=names(ECDSA_VECTORS))
def test_ecdsa_vectors(case: dict) -> None:
    curve = {9: ec.SECP256R1(), 10: ec.SECP384R1(), 11: ec.SECP521R1()}[case["method"]]
    point = b"\x04" + case["x"] + case["y"]
    public = ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    assert verify(public, case["method"], case["auth"], case["message"]).startswith("ECDSA")


@pytest.mark.rfc("4754", "7")
@pytest.mark.parametrize(("kind", "length"), [("p256", 64), ("p384", 96), ("p521", 132)])
def test_old_ecdsa_is_r_and_s(kind: str, length: int) -> None:
    assert all(len(sign(key(kind), OCTETS, frozenset())[1]) == length for _ in range(20))


@pytest.mark.rfc("7427", "A")
@pytest.mark.parametrize(
    ("kind", "hash_id", "identifier"),
    [
        ("p256", SHA256, "300a06082a8648ce3d040302"),
        ("p256", SHA384, "300a06082a8648ce3d040303"),
        ("p256", SHA512, "300a06082a8648ce3d040304"),
        ("ed25519", HashAlgorithm.IDENTITY, "300506032b6570"),
        ("ed448", HashAlgorithm.IDENTITY, "300506032b6571"),
        (
            "rsa",
            SHA256,
            (
                "304106092a864886f70d01010a3034a00f300d06096086480165030402010500"
                "a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120"
            ),
        ),
    ],
)
def test_algorithm_identifiers_sent(kind: str, hash_id: int, identifier: str) -> None:
    method, data = sign(key(kind), OCTETS, frozenset({hash_id}))
    assert method == AuthMethod.DIGITAL_SIGNATURE
    assert data[1 : 1 + data[0]].hex() == identifier


@pytest.mark.rfc("7427", "A.4.3")
@pytest.mark.parametrize(
    "identifier",
    [
        # the RFC's own example, with its trailer field
        (
            "304606092a864886f70d01010a3039a00f300d06096086480165030402010500a11c301a06092a864886f7"
            "0d010108300d06096086480165030402010500a203020120a303020101"
        ),
        # without the NULLs, RFC 4055 §2.1
        (
            "303d06092a864886f70d01010a3030a00d300b0609608648016503040201a11a301806092a864886f70d0101"
            "08300b0609608648016503040201a203020120"
        ),
    ],
)
def test_other_encodings_of_pss_are_read(identifier: str) -> None:
    private = key("rsa")
    scheme = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    blob = bytes.fromhex(identifier)
    data = bytes((len(blob),)) + blob + private.sign(OCTETS, scheme, hashes.SHA256())
    verified = verify(private.public_key(), AuthMethod.DIGITAL_SIGNATURE, data, OCTETS)
    assert verified == "RSASSA-PSS with SHA2_256"


@pytest.mark.rfc("7427", "A.1")
@pytest.mark.parametrize(
    ("algorithm", "arc"), [(hashes.SHA256(), 11), (hashes.SHA384(), 12), (hashes.SHA512(), 13)]
)
def test_pkcs1_in_a_digital_signature_is_taken(algorithm: hashes.HashAlgorithm, arc: int) -> None:
    private = key("rsa")
    blob = bytes.fromhex(f"300d06092a864886f70d0101{arc:02x}0500")
    data = bytes((15,)) + blob + private.sign(OCTETS, padding.PKCS1v15(), algorithm)
    verified = verify(private.public_key(), AuthMethod.DIGITAL_SIGNATURE, data, OCTETS)
    assert verified.startswith("RSASSA-PKCS1-v1_5")


@pytest.mark.rfc("8247", "3.2")
@pytest.mark.parametrize(
    "identifier",
    [
        "300d06092a864886f70d0101050500",  # sha1WithRSAEncryption
        "300d06092a864886f70d01010a3000",  # PSS with empty parameters
        (
            "303e06092a864886f70d01010a3031a00b300906052b0e03021a0500a118301606092a864886f70d010108"
            "300906052b0e03021a0500a203020114a303020101"
        ),  # PSS with default parameters
        "300906072a8648ce3d0401",  # ecdsa-with-sha1
        "",
    ],
)
def test_weak_algorithms_are_refused_by_name(identifier: str) -> None:
    blob = bytes.fromhex(identifier)
    data = bytes((len(blob),)) + blob + bytes(256)
    with pytest.raises(AuthenticationFailed, match=f"algorithm {identifier} is not acceptable"):
        verify(key("rsa").public_key(), AuthMethod.DIGITAL_SIGNATURE, data, OCTETS)


@pytest.mark.parametrize(
    "algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda each: each.name
)
def test_old_rsa_with_sha2_is_taken(algorithm: hashes.HashAlgorithm) -> None:
    data = key("rsa").sign(OCTETS, padding.PKCS1v15(), algorithm)
    assert verify(key("rsa").public_key(), AuthMethod.RSA_SIGNATURE, data, OCTETS)


@pytest.mark.rfc("8247", "3.1")
def test_old_rsa_with_sha1_is_refused_by_name() -> None:
    data = key("rsa").sign(OCTETS, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303  # on purpose
    with pytest.raises(AuthenticationFailed, match="SHA-1 is not accepted"):
        verify(key("rsa").public_key(), AuthMethod.RSA_SIGNATURE, data, OCTETS)


def test_strong_rsa_takes_a_strong_hash() -> None:
    _, data = sign(key("rsa3072"), OCTETS, frozenset({SHA256, SHA512}))
    assert data[1 : 1 + data[0]].hex().count("608648016503040201") == 2


def test_ecdsa_on_a_curve_of_no_ike_method() -> None:
    with pytest.raises(UsageError, match="secp256k1"):
        sign(key("p256k1"), OCTETS, frozenset(OUR_HASHES))
    data = key("p256k1").sign(OCTETS, ec.ECDSA(hashes.SHA256()))
    blob = bytes.fromhex("0c300a06082a8648ce3d040302") + data
    with pytest.raises(AuthenticationFailed, match="secp256k1"):
        verify(key("p256k1").public_key(), AuthMethod.DIGITAL_SIGNATURE, blob, OCTETS)


def test_we_never_announce_sha1() -> None:
    assert HashAlgorithm.SHA1 not in OUR_HASHES
    assert HashAlgorithm.SHA2_256 in OUR_HASHES  # RFC 8247 §3.2: MUST


@pytest.mark.parametrize(("kind", "length"), [("rsa", 256), ("p256", 64), ("p384", 96)])
@pytest.mark.parametrize("fill", [b"\0", b"\xff"], ids=["zeros", "ones"])
def test_degenerate_signatures(kind: str, length: int, fill: bytes) -> None:
    with pytest.raises(AuthenticationFailed, match="does not verify"):
        verify(key(kind).public_key(), OLD_METHODS[kind][0], fill * length, OCTETS)
