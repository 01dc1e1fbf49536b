"""Key exchange methods: vectors, agreement, and every public value that must be refused."""

import random
from functools import partial

import pytest

from tests.kit.crypto_vectors import load, names
from tunnelwrap.crypto.ke import initiate, respond, supported_ke
from tunnelwrap.errors import Malformed, UsageError
from tunnelwrap.iana import KeMethod

LENGTHS = {
    KeMethod.MODP_2048: (256, 256),
    KeMethod.MODP_3072: (384, 384),
    KeMethod.MODP_4096: (512, 512),
    KeMethod.ECP_256: (64, 32),
    KeMethod.ECP_384: (96, 48),
    KeMethod.ECP_521: (132, 66),
    KeMethod.CURVE25519: (32, 32),
    KeMethod.CURVE448: (56, 56),
}
MODP = {method.value: method for method in LENGTHS if method.name.startswith("MODP")}
ECP = {method.value: method for method in LENGTHS if method.name.startswith("ECP")}
# encapsulation key and ciphertext; the secret has 32 octets
KEM = {KeMethod.ML_KEM_768: (1184, 1088), KeMethod.ML_KEM_1024: (1568, 1568)}
CASES = load("key_exchange")
KEM_CASES = load("ml_kem")
GROUPS = {case["method"]: case["prime"] for case in load("rfc3526")}

every_method = pytest.mark.parametrize("method", LENGTHS, ids=lambda method: method.name)
every_kem = pytest.mark.parametrize("method", KEM, ids=lambda method: method.name)
every_modp = pytest.mark.parametrize("method", MODP.values(), ids=lambda method: method.name)
every_ecp = pytest.mark.parametrize("method", ECP.values(), ids=lambda method: method.name)


def seeded(seed: int) -> partial[bytes]:
    return partial(random.Random.randbytes, random.Random(seed))


def drawing(method: int, private: bytes) -> partial[bytes]:
    """A source that makes the method arrive at a given private value."""
    if method in ECP:  # the scalar is the octets modulo (order - 1), plus 1
        private = (int.from_bytes(private, "big") - 1).to_bytes(len(private), "big")
    return partial(lambda octets, length: octets.rjust(length, b"\0"), private)


def as_public(method: KeMethod, value: int) -> bytes:
    return value.to_bytes(LENGTHS[method][0], "big")


@pytest.mark.rfc("5903", "8")
@pytest.mark.rfc("8031", "A")
@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_vectors(case: dict) -> None:
    method = case["method"]
    initiator = initiate(method, drawing(method, case["private_i"]))
    assert initiator.public == case["public_i"]
    public, shared = respond(method, initiator.public, drawing(method, case["private_r"]))
    assert public == case["public_r"]
    assert shared.reveal() == case["shared"]
    assert initiator.shared(public) == shared


@pytest.mark.rfc("3526", "3")
@every_modp
def test_modp_powers_are_those_of_the_rfcs_group(method: KeMethod) -> None:
    prime = int.from_bytes(GROUPS[method], "big")
    key = initiate(method, seeded(1))
    peer = pow(2, 12345, prime)
    expected = pow(int.from_bytes(key.public, "big"), 12345, prime)
    assert key.shared(as_public(method, peer)).reveal() == as_public(method, expected)


@every_modp
def test_modp_keeps_leading_zeros(method: KeMethod) -> None:
    """RFC 7296 §2.14: g^ir is as long as the modulus, padded with zeros."""
    for seed in range(40):
        _, shared = respond(method, as_public(method, 2 + seed), seeded(seed))
        assert len(shared) == LENGTHS[method][1]


@every_method
def test_both_sides_agree(method: KeMethod) -> None:
    initiator = initiate(method, seeded(1))
    public, shared = respond(method, initiator.public, seeded(2))
    assert initiator.shared(public) == shared
    assert initiator.method == method
    assert (len(initiator.public), len(shared)) == LENGTHS[method]
    assert len(public) == LENGTHS[method][0]


@every_method
def test_private_values_come_from_the_given_source(method: KeMethod) -> None:
    assert initiate(method, seeded(1)).public == initiate(method, seeded(1)).public
    assert initiate(method, seeded(1)).public != initiate(method, seeded(2)).public


@pytest.mark.rfc("7296", "3.4")
@every_method
@pytest.mark.parametrize("change", [-1, 1], ids=["shorter", "longer"])
def test_wrong_length_is_refused(method: KeMethod, change: int) -> None:
    peer = bytes(LENGTHS[method][0] + change)
    with pytest.raises(Malformed, match=method.name):
        initiate(method, seeded(1)).shared(peer)
    with pytest.raises(Malformed, match=f"expected {LENGTHS[method][0]}"):
        respond(method, peer, seeded(1))


# RFC 7748 §5 takes values above the prime modulo the prime: all ones are a value there
DEGENERATE = [(method, b"\0") for method in LENGTHS] + [
    (method, b"\xff") for method in (*MODP.values(), *ECP.values())
]


@pytest.mark.parametrize(("method", "fill"), DEGENERATE)
def test_degenerate_is_refused(method: KeMethod, fill: bytes) -> None:
    with pytest.raises(Malformed):
        respond(method, fill * LENGTHS[method][0], seeded(1))
    with pytest.raises(Malformed):
        initiate(method, seeded(1)).shared(fill * LENGTHS[method][0])


@pytest.mark.rfc("6989", "2.1")
@every_modp
def test_modp_values_of_small_order_are_refused(method: KeMethod) -> None:
    prime = int.from_bytes(GROUPS[method], "big")
    for value in (0, 1, prime - 1, prime, prime + 1):
        with pytest.raises(Malformed, match=r"0, 1, p-1"):
            respond(method, as_public(method, value), seeded(1))
    for value in (2, prime - 2):
        respond(method, as_public(method, value), seeded(1))


@pytest.mark.rfc("6989", "2.3")
@every_ecp
def test_points_off_the_curve_are_refused(method: KeMethod) -> None:
    public = bytearray(initiate(method, seeded(1)).public)
    public[-1] ^= 1
    with pytest.raises(Malformed, match="not on the curve"):
        respond(method, bytes(public), seeded(2))


@pytest.mark.rfc("8031", "5")
@pytest.mark.parametrize(
    ("method", "value"),
    [
        (KeMethod.CURVE25519, 1),
        (KeMethod.CURVE25519, 2**255 - 20),
        (KeMethod.CURVE25519, 2**255 - 19),
        (KeMethod.CURVE25519, 2**255 - 18),
        (KeMethod.CURVE448, 1),
        (KeMethod.CURVE448, 2**448 - 2**224 - 2),
        (KeMethod.CURVE448, 2**448 - 2**224 - 1),
    ],
)
def test_curve_points_of_small_order_are_refused(method: KeMethod, value: int) -> None:
    public = value.to_bytes(LENGTHS[method][0], "little")
    with pytest.raises(Malformed, match="small order"):
        respond(method, public, seeded(1))


@pytest.mark.rfc("8247", "2.4")
@pytest.mark.parametrize("method", [0, 1, 2, 5, 22, 23, 24, KeMethod.ML_KEM_512, 9999])
def test_others_are_refused(method: int) -> None:
    assert not supported_ke(method)
    with pytest.raises(UsageError):
        initiate(method, seeded(1))
    with pytest.raises(UsageError):
        respond(method, b"", seeded(1))


def test_supported() -> None:
    assert all(supported_ke(method) for method in (*LENGTHS, *KEM))


# --- ML-KEM, draft-ietf-ipsecme-ikev2-mlkem and FIPS 203 ------------------------------------


@pytest.mark.parametrize("case", KEM_CASES, ids=names(KEM_CASES))
def test_kem_vectors(case: dict) -> None:
    """Key generation, and the secret for a ciphertext that is implicitly rejected."""
    key = initiate(case["method"], drawing(case["method"], case["seed"]))
    assert key.public == case["public"]
    assert key.shared(case["ciphertext"]).reveal() == case["shared"]


@every_kem
def test_kem_sides_agree(method: KeMethod) -> None:
    initiator = initiate(method, seeded(1))
    ciphertext, shared = respond(method, initiator.public, seeded(2))
    assert (len(initiator.public), len(ciphertext)) == KEM[method]
    assert initiator.method == method
    assert len(shared) == 32
    assert initiator.shared(ciphertext) == shared


@every_kem
def test_kem_key_comes_from_the_given_source(method: KeMethod) -> None:
    assert initiate(method, seeded(1)).public == initiate(method, seeded(1)).public
    assert initiate(method, seeded(1)).public != initiate(method, seeded(2)).public


@every_kem
def test_kem_secret_is_fresh_for_each_answer(method: KeMethod) -> None:
    """The same encapsulation key and source: the message m is the library's own."""
    public = initiate(method, seeded(1)).public
    first, second = (respond(method, public, seeded(2)) for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]


@every_kem
def test_another_ciphertext_gives_another_secret(method: KeMethod) -> None:
    initiator = initiate(method, seeded(1))
    ciphertext, shared = respond(method, initiator.public, seeded(2))
    changed = bytes((ciphertext[0] ^ 1,)) + ciphertext[1:]
    assert initiator.shared(changed) != shared


@every_kem
@pytest.mark.parametrize("change", [-1, 1], ids=["shorter", "longer"])
def test_kem_values_of_wrong_length_are_refused(method: KeMethod, change: int) -> None:
    key_length, ciphertext_length = KEM[method]
    with pytest.raises(Malformed, match=f"{method.name}.*expected {key_length}"):
        respond(method, bytes(key_length + change), seeded(1))
    with pytest.raises(Malformed, match=f"{method.name}.*expected {ciphertext_length}"):
        initiate(method, seeded(1)).shared(bytes(ciphertext_length + change))


@every_kem
def test_kem_keys_out_of_range_are_refused(method: KeMethod) -> None:
    """FIPS 203 §7.2: coefficients must be below the modulus."""
    public = initiate(method, seeded(1)).public
    with pytest.raises(Malformed, match="out of range"):
        respond(method, b"\xff\xff\xff" + public[3:], seeded(2))
