"""Key derivation against NIST's vectors, and the order in which keying material is cut."""

import pytest

from tests.kit.crypto_vectors import load, names
from tunnelwrap.crypto.keymat import (
    child_keymat,
    child_keys,
    ike_keys,
    skeyseed,
    skeyseed_rekey,
)
from tunnelwrap.crypto.prf import Prf
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import EspSuite, IkeSuite
from tunnelwrap.errors import UsageError
from tunnelwrap.iana import Encr, Integ, KeMethod
from tunnelwrap.iana import Prf as PrfId

CASES = load("ikev2_kdf")
WITH_SHARED = [case for case in CASES if "shared" in case]
IKE_SUITES = [
    IkeSuite(Encr.AES_GCM_16, 256, None, PrfId.HMAC_SHA2_256, KeMethod.CURVE25519),
    IkeSuite(Encr.AES_CBC, 128, Integ.HMAC_SHA2_384_192, PrfId.HMAC_SHA2_512, KeMethod.MODP_2048),
    IkeSuite(Encr.CHACHA20_POLY1305, None, None, PrfId.HMAC_SHA2_384, KeMethod.ECP_384),
]
N_I, N_R, SHARED = bytes(range(32)), bytes(range(32, 64)), Secret(b"g^ir")

every_case = pytest.mark.parametrize("case", CASES, ids=names(CASES))
every_shared = pytest.mark.parametrize("case", WITH_SHARED, ids=names(WITH_SHARED))


def sk_d_of(case: dict) -> Secret:
    return Secret(case["dkm"][: Prf(case["prf"]).key_length])


@pytest.mark.rfc("7296", "2.14")
@every_shared
def test_skeyseed(case: dict) -> None:
    seed = skeyseed(Prf(case["prf"]), case["n_i"], case["n_r"], Secret(case["shared"]))
    assert seed.reveal() == case["skeyseed"]


@pytest.mark.rfc("7296", "2.14")
def test_skeyseed_of_xcbc_takes_64_bits_of_each_nonce() -> None:
    """Only for SKEYSEED of a new IKE SA: prf+ and a rekey take them whole."""
    prf = Prf(PrfId.AES128_XCBC)
    expected = prf.compute(N_I[:8] + N_R[:8], SHARED.reveal())
    assert skeyseed(prf, N_I, N_R, SHARED).reveal() == expected
    rekeyed = skeyseed_rekey(prf, Secret(bytes(16)), SHARED, N_I, N_R)
    assert rekeyed.reveal() == prf.compute(bytes(16), SHARED.reveal() + N_I + N_R)


@pytest.mark.rfc("7296", "2.14")
@every_case
def test_ike_keys(case: dict) -> None:
    suite = IkeSuite(Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128, case["prf"], KeMethod.MODP_2048)
    seed = Secret(case["skeyseed"])
    keys = ike_keys(suite, seed, case["n_i"], case["n_r"], case["spi_i"], case["spi_r"])
    ordered = (
        *(keys.sk_d, keys.sk_ai, keys.sk_ar, keys.sk_ei, keys.sk_er),
        *(keys.sk_pi, keys.sk_pr),
    )
    material = b"".join(key.reveal() for key in ordered)
    common = min(len(material), len(case["dkm"]))
    assert material[:common] == case["dkm"][:common]
    prf_length = Prf(case["prf"]).key_length
    assert [len(key) for key in ordered] == [
        *(prf_length, 32, 32, 16, 16),
        *(prf_length, prf_length),
    ]


@pytest.mark.rfc("7296", "2.17")
@every_case
def test_child_keymat(case: dict) -> None:
    expected = case["dkm_child"]
    material = child_keymat(
        Prf(case["prf"]), sk_d_of(case), case["n_i"], case["n_r"], len(expected), None
    )
    assert material == expected


@pytest.mark.rfc("7296", "2.17")
@every_shared
def test_child_keymat_with_key_exchange(case: dict) -> None:
    expected = case["dkm_child_ke"]
    shared = Secret(case["shared_new"])
    material = child_keymat(
        Prf(case["prf"]), sk_d_of(case), case["n_i"], case["n_r"], len(expected), shared
    )
    assert material == expected


@pytest.mark.rfc("7296", "2.18")
@every_shared
def test_skeyseed_of_a_rekeyed_ike_sa(case: dict) -> None:
    shared = Secret(case["shared_new"])
    seed = skeyseed_rekey(Prf(case["prf"]), sk_d_of(case), shared, case["n_i"], case["n_r"])
    assert seed.reveal() == case["skeyseed_rekey"]


@pytest.mark.parametrize("suite", IKE_SUITES, ids=str)
def test_ike_keys_fit_their_cipher(suite: IkeSuite) -> None:
    seed = skeyseed(suite.prf_function(), N_I, N_R, SHARED)
    keys = ike_keys(suite, seed, N_I, N_R, b"i" * 8, b"r" * 8)
    initiator = suite.cipher().bind(keys.sk_ei, keys.sk_ai)
    sealed = initiator.seal(b"", initiator.pad(b"x"), bytes(suite.cipher().iv_length))
    assert suite.cipher().bind(keys.sk_ei, keys.sk_ai).open(b"", sealed) == b"x"
    assert keys.sk_ei != keys.sk_er
    assert len(keys.sk_d) == suite.prf_function().key_length


@pytest.mark.parametrize("changed", range(5))
def test_every_input_counts(changed: int) -> None:
    suite = IKE_SUITES[0]
    inputs = [b"seed", N_I, N_R, b"i" * 8, b"r" * 8]
    before = ike_keys(suite, Secret(inputs[0]), *inputs[1:])
    inputs[changed] = b"?" * len(inputs[changed])
    after = ike_keys(suite, Secret(inputs[0]), *inputs[1:])
    assert before.sk_d != after.sk_d
    assert before.sk_pr != after.sk_pr


@pytest.mark.rfc("7296", "2.17")
@pytest.mark.parametrize(
    ("suite", "lengths"),
    [
        (EspSuite(Encr.AES_GCM_16, 128, None, None, uses_esn=True), (20, 0)),
        (EspSuite(Encr.AES_GCM_16, 256, None, None, uses_esn=True), (36, 0)),
        (EspSuite(Encr.CHACHA20_POLY1305, None, None, None, uses_esn=True), (36, 0)),
        (EspSuite(Encr.AES_CBC, 256, Integ.HMAC_SHA2_512_256, None, uses_esn=False), (32, 64)),
    ],
    ids=str,
)
def test_child_keys_in_order(suite: EspSuite, lengths: tuple[int, int]) -> None:
    prf, sk_d = Prf(PrfId.HMAC_SHA2_256), Secret(bytes(32))
    keys = child_keys(suite, prf, sk_d, N_I, N_R, SHARED)
    assert tuple(len(key) for key in keys) == lengths * 2
    material = child_keymat(prf, sk_d, N_I, N_R, 2 * sum(lengths), SHARED)
    assert b"".join(key.reveal() for key in keys) == material


def test_too_much_keying_material() -> None:
    with pytest.raises(UsageError):
        child_keymat(Prf(PrfId.HMAC_SHA2_256), Secret(b""), N_I, N_R, 255 * 32 + 1, None)
