"""Ciphers of the SK payload: vectors, padding, lengths, tampering."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.crypto_vectors import load, names
from tunnelwrap.crypto.cipher import (
    BoundCipher,
    Cipher,
    is_aead,
    is_esp_only,
    supported_encr,
    supported_integ,
)
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.errors import IntegrityError, Malformed, UsageError
from tunnelwrap.iana import Encr, Integ

INTEGRITIES = (Integ.HMAC_SHA2_256_128, Integ.HMAC_SHA2_384_192, Integ.HMAC_SHA2_512_256)
OLD_INTEGRITIES = (Integ.HMAC_SHA1_96, Integ.AES_XCBC_96)
AES_BITS = (128, 192, 256)
SUITES = [
    *((Encr.AES_CBC, bits, integ) for bits in AES_BITS for integ in INTEGRITIES),
    (Encr.AES_CBC, 128, Integ.HMAC_SHA1_96),
    (Encr.AES_CBC, 128, Integ.AES_XCBC_96),
    *((Encr.AES_CTR, bits, Integ.HMAC_SHA2_256_128) for bits in AES_BITS),
    *((Encr.AES_CCM_8, bits, None) for bits in AES_BITS),
    *((Encr.AES_CCM_16, bits, None) for bits in AES_BITS),
    *((Encr.AES_GCM_16, bits, None) for bits in (128, 192, 256)),
    (Encr.CHACHA20_POLY1305, None, None),
]
# encryption key (with salt), INTEG key, IV, ICV, block
LENGTHS = [
    *((bits // 8, 2 * icv, 16, icv, 16) for bits in AES_BITS for icv in (16, 24, 32)),
    (16, 20, 16, 12, 16),
    (16, 16, 16, 12, 16),
    *((bits // 8 + 4, 32, 8, 16, 1) for bits in AES_BITS),
    *((bits // 8 + 3, 0, 8, 8, 1) for bits in AES_BITS),
    *((bits // 8 + 3, 0, 8, 16, 1) for bits in AES_BITS),
    *((bits // 8 + 4, 0, 8, 16, 1) for bits in (128, 192, 256)),
    (36, 0, 8, 16, 1),
]
AEAD = load("aead")
CBC = load("rfc3602")
CCM = load("rfc4309")
CTR = load("rfc3686")
HMAC = load("rfc4868", "auth")
# what protects ESP only: ENCR, KEY_LENGTH, INTEG; then lengths as above
ESP_ONLY = [
    ((Encr.NULL, None, Integ.HMAC_SHA2_256_128), (0, 32, 0, 16, 1)),
    ((Encr.NULL, None, Integ.HMAC_SHA1_96), (0, 20, 0, 12, 1)),
    ((Encr.NULL_AUTH_AES_GMAC, 128, None), (20, 0, 8, 16, 1)),
    ((Encr.NULL_AUTH_AES_GMAC, 256, None), (36, 0, 8, 16, 1)),
]

SALTS = {Encr.AES_CBC: 0, Encr.AES_CCM_8: 3, Encr.AES_CCM_16: 3}

every_suite = pytest.mark.parametrize("suite", SUITES, ids=str)


def bound(suite: tuple[int, int | None, int | None]) -> BoundCipher:
    cipher = Cipher(*suite)
    encryption = Secret(bytes(range(cipher.encryption_key_length)))
    return cipher.bind(encryption, Secret(bytes(range(100, 100 + cipher.integrity_key_length))))


@pytest.mark.parametrize(("suite", "lengths"), list(zip(SUITES, LENGTHS, strict=True)), ids=str)
def test_lengths(suite: tuple[int, int | None, int | None], lengths: tuple[int, ...]) -> None:
    cipher = Cipher(*suite)
    assert lengths == (
        cipher.encryption_key_length,
        cipher.integrity_key_length,
        cipher.iv_length,
        cipher.icv_length,
        cipher.block_size,
    )
    assert cipher.is_aead is (suite[2] is None)
    assert cipher.salt_length == SALTS.get(suite[0], 4)
    assert not is_esp_only(suite[0])


@pytest.mark.rfc("8247", "2.1")
@pytest.mark.rfc("4543", "2")
@pytest.mark.parametrize(("suite", "lengths"), ESP_ONLY, ids=str)
def test_what_is_for_esp_only(
    suite: tuple[int, int | None, int | None], lengths: tuple[int, ...]
) -> None:
    """It has lengths; an SK payload cannot be sealed with it."""
    cipher = Cipher(*suite)
    assert lengths == (
        cipher.encryption_key_length,
        cipher.integrity_key_length,
        cipher.iv_length,
        cipher.icv_length,
        cipher.block_size,
    )
    assert is_esp_only(suite[0])
    with pytest.raises(UsageError, match="ESP only"):
        cipher.bind(Secret(bytes(lengths[0])), Secret(bytes(lengths[1])))


@pytest.mark.rfc("7634", "A")
@pytest.mark.rfc("4106", "9")
@pytest.mark.parametrize("case", AEAD, ids=names(AEAD))
def test_aead_vectors(case: dict) -> None:
    cipher = Cipher(case["encr"], case["key_bits"], None).bind(Secret(case["key"]), Secret(b""))
    sealed = case["iv"] + case["ciphertext"] + case["icv"]
    assert cipher.seal(case["aad"], case["plaintext"], case["iv"]) == sealed
    pad_length = case["plaintext"][-1]
    assert cipher.open(case["aad"], sealed) == case["plaintext"][: -1 - pad_length]


@pytest.mark.rfc("7634", "B")
def test_ike_message_of_rfc_7634() -> None:
    """The example's Notify payload, padded by us."""
    case = AEAD[1]
    cipher = Cipher(Encr.CHACHA20_POLY1305, None, None).bind(Secret(case["key"]), Secret(b""))
    notify = bytes.fromhex("0000000c 00004001 0000000a")
    assert cipher.seal(case["aad"], cipher.pad(notify), case["iv"])[8:-16] == case["ciphertext"]
    assert cipher.sealed_length(len(notify)) == 0x29 - 4


@pytest.mark.rfc("3602", "4")
@pytest.mark.parametrize("case", CBC, ids=names(CBC))
def test_cbc_vectors(case: dict) -> None:
    cipher = Cipher(Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128)
    sealed = cipher.bind(Secret(case["key"]), Secret(bytes(32))).seal(
        b"", case["plaintext"], case["iv"]
    )
    assert sealed[:16] == case["iv"]
    assert sealed[16:-16] == case["ciphertext"]


@pytest.mark.rfc("4309", "4")
@pytest.mark.parametrize("case", CCM, ids=names(CCM))
def test_ccm_vectors(case: dict) -> None:
    cipher = Cipher(case["encr"], case["key_bits"], None).bind(Secret(case["key"]), Secret(b""))
    sealed = case["iv"] + case["ciphertext"] + case["icv"]
    assert cipher.seal(case["aad"], case["plaintext"], case["iv"]) == sealed
    with pytest.raises(Malformed, match="pad length"):  # the ICV was right, then
        cipher.open(case["aad"], sealed)


@pytest.mark.rfc("3686", "6")
@pytest.mark.rfc("5930", "2")
@pytest.mark.parametrize("case", CTR, ids=names(CTR))
def test_ctr_vectors(case: dict) -> None:
    bits = 8 * (len(case["key"]) - 4)
    cipher = Cipher(Encr.AES_CTR, bits, Integ.HMAC_SHA1_96)
    sealed = cipher.bind(Secret(case["key"]), Secret(bytes(20))).seal(
        b"", case["plaintext"], case["iv"]
    )
    assert sealed[:8] == case["iv"]
    assert sealed[8:-12] == case["ciphertext"]


# the data of the others is shorter than an IV and a block
LONG_HMAC = [case for case in HMAC if len(case["data"]) == 50]


@pytest.mark.rfc("4868", "2.7.2")
@pytest.mark.parametrize("case", LONG_HMAC, ids=names(LONG_HMAC))
def test_icv_vectors(case: dict) -> None:
    """The vector's data, cut into AAD, IV and ciphertext, has the vector's ICV."""
    cipher = Cipher(Encr.AES_CBC, 128, case["integ"])
    receiver = cipher.bind(Secret(bytes(16)), Secret(case["key"]))
    aad, body = case["data"][:2], case["data"][2:] + case["icv"]
    with suppress(Malformed):  # what the vector decrypts to has no reason to be padded
        receiver.open(aad, body)
    with pytest.raises(IntegrityError):
        receiver.open(aad, body[:-1] + bytes((body[-1] ^ 1,)))


@pytest.mark.rfc("2404", "3")
def test_sha1_icv_is_cut_to_96_bits() -> None:
    """RFC 2202's test case 3, cut into AAD, IV and ciphertext."""
    case = load("rfc2202")[2]
    receiver = Cipher(Encr.AES_CBC, 128, Integ.HMAC_SHA1_96).bind(
        Secret(bytes(16)), Secret(case["key"])
    )
    aad, body = case["data"][:2], case["data"][2:] + case["mac"][:12]
    with suppress(Malformed):
        receiver.open(aad, body)
    with pytest.raises(IntegrityError):
        receiver.open(aad, body[:-1] + bytes((body[-1] ^ 1,)))


@pytest.mark.rfc("3566", "4.2")
def test_xcbc_icv_is_cut_to_96_bits() -> None:
    case = load("xcbc")[4]
    receiver = Cipher(Encr.AES_CBC, 128, Integ.AES_XCBC_96).bind(
        Secret(bytes(16)), Secret(case["key"])
    )
    body = case["data"] + case["mac"][:12]
    with suppress(Malformed):
        receiver.open(b"", body)
    with pytest.raises(IntegrityError):
        receiver.open(b"", body[:-1] + bytes((body[-1] ^ 1,)))


@every_suite
@settings(max_examples=15, deadline=None)
@given(plaintext=st.binary(max_size=80), aad=st.binary(max_size=40))
def test_open_reverses_seal(suite: tuple, plaintext: bytes, aad: bytes) -> None:
    cipher = bound(suite)
    iv = bytes(range(50, 50 + cipher.cipher.iv_length))
    sealed = cipher.seal(aad, cipher.pad(plaintext), iv)
    assert sealed.startswith(iv)
    assert len(sealed) == cipher.sealed_length(len(plaintext))
    assert cipher.open(aad, sealed) == plaintext


@pytest.mark.rfc("7296", "3.14")
@every_suite
def test_any_changed_octet_is_noticed(suite: tuple) -> None:
    cipher = bound(suite)
    sealed = cipher.seal(b"header", cipher.pad(b"payloads"), bytes(cipher.cipher.iv_length))
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 0x10
        with pytest.raises(IntegrityError, match="ICV"):
            cipher.open(b"header", bytes(changed))
    for aad in (b"", b"Header", b"header "):
        with pytest.raises(IntegrityError):
            cipher.open(aad, sealed)


@every_suite
def test_any_shorter_body_is_refused(suite: tuple) -> None:
    cipher = bound(suite)
    sealed = cipher.seal(b"", cipher.pad(b"payloads"), bytes(cipher.cipher.iv_length))
    for length in range(len(sealed)):
        with pytest.raises(IntegrityError):
            cipher.open(b"", sealed[:length])


@every_suite
def test_another_key_opens_nothing(suite: tuple) -> None:
    cipher = bound(suite)
    sealed = cipher.seal(b"", cipher.pad(b"payloads"), bytes(cipher.cipher.iv_length))
    kind = cipher.cipher
    other = kind.bind(
        Secret(bytes(kind.encryption_key_length)), Secret(bytes(kind.integrity_key_length))
    )
    with pytest.raises(IntegrityError):
        other.open(b"", sealed)


@every_suite
def test_impossible_padding_from_an_authentic_peer(suite: tuple) -> None:
    cipher = bound(suite)
    padded = bytes(15) + b"\x10"
    with pytest.raises(Malformed, match="pad length 16"):
        cipher.open(b"", cipher.seal(b"", padded, bytes(cipher.cipher.iv_length)))


@every_suite
def test_padding_may_be_longer_than_needed(suite: tuple) -> None:
    """RFC 7296 §3.14: the recipient must accept any length that fits."""
    cipher = bound(suite)
    padded = b"x" + bytes(62) + bytes((62,))
    sealed = cipher.seal(b"", padded, bytes(cipher.cipher.iv_length))
    assert cipher.open(b"", sealed) == b"x"


def test_authentic_cbc_of_no_whole_block() -> None:
    cipher = Cipher(Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128)
    case = HMAC[2]
    # 50 octets: IV and two blocks and two octets, with the vector's ICV over all of it
    receiver = cipher.bind(Secret(bytes(16)), Secret(case["key"]))
    with pytest.raises(Malformed, match="34 octets is no multiple"):
        receiver.open(b"", case["data"] + case["icv"])


@every_suite
def test_pad(suite: tuple) -> None:
    cipher = Cipher(*suite)
    for length in range(40):
        padded = cipher.pad(bytes(length))
        assert len(padded) % cipher.block_size == 0
        assert 1 <= len(padded) - length <= cipher.block_size
        assert padded[-1] == len(padded) - length - 1


@every_suite
def test_usage_errors(suite: tuple) -> None:
    cipher = bound(suite)
    kind = cipher.cipher
    padded = kind.pad(b"x")
    with pytest.raises(UsageError):
        cipher.seal(b"", padded, bytes(kind.iv_length + 1))
    with pytest.raises(UsageError):
        kind.bind(Secret(bytes(kind.encryption_key_length - 1)), Secret(b""))
    with pytest.raises(UsageError):
        kind.bind(Secret(bytes(kind.encryption_key_length)), Secret(b"x"))
    if kind.block_size > 1:
        with pytest.raises(UsageError):
            cipher.seal(b"", padded[:-1], bytes(kind.iv_length))


@pytest.mark.rfc("8221", "4")
@pytest.mark.rfc("5282", "8")
@pytest.mark.parametrize(
    "suite",
    [
        (Encr.AES_CBC, 128, None),
        (Encr.AES_CBC, 128, Integ.NONE),
        (Encr.AES_CBC, 128, Integ.HMAC_MD5_96),
        (Encr.AES_CBC, None, Integ.HMAC_SHA2_256_128),
        (Encr.AES_CBC, 64, Integ.HMAC_SHA2_256_128),
        (Encr.AES_GCM_16, 128, Integ.HMAC_SHA2_256_128),
        (Encr.AES_GCM_16, None, None),
        (Encr.CHACHA20_POLY1305, 256, None),
        (Encr.DES3, None, Integ.HMAC_SHA2_256_128),
        (Encr.NULL, None, None),
        (Encr.NULL, 128, Integ.HMAC_SHA2_256_128),
        (Encr.NULL_AUTH_AES_GMAC, 128, Integ.HMAC_SHA2_256_128),
        (Encr.AES_CTR, 128, None),
        (Encr.AES_CCM_16, 128, Integ.HMAC_SHA2_256_128),
    ],
    ids=str,
)
def test_combinations_that_do_not_exist(suite: tuple) -> None:
    with pytest.raises(UsageError):
        Cipher(*suite)


def test_integrity_none_beside_an_aead() -> None:
    assert Cipher(Encr.AES_GCM_16, 128, Integ.NONE).integrity_key_length == 0


def test_supported() -> None:
    assert all(supported_encr(encr, bits) for encr, bits, _ in SUITES)
    assert not supported_encr(Encr.AES_CBC, None)
    assert not supported_encr(Encr.DES3, None)
    assert all(supported_integ(integ) for integ in (*INTEGRITIES, *OLD_INTEGRITIES))
    assert not supported_integ(Integ.NONE)
    assert not supported_integ(Integ.HMAC_MD5_96)
    assert is_aead(Encr.CHACHA20_POLY1305)
    assert not is_aead(Encr.AES_CBC)
    assert not is_aead(Encr.DES3)
