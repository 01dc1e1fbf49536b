"""PRFs against RFC 4868, 2202 and 4434, and prf+ by its definition."""

import hmac

import pytest

from tests.kit.crypto_vectors import load, names
from tunnelwrap.crypto.prf import Prf, supported_prf
from tunnelwrap.errors import UsageError
from tunnelwrap.iana import Prf as PrfId

SHA2 = (PrfId.HMAC_SHA2_256, PrfId.HMAC_SHA2_384, PrfId.HMAC_SHA2_512)
PRFS = {PrfId.HMAC_SHA1: 20, PrfId.AES128_XCBC: 16, **dict(zip(SHA2, (32, 48, 64), strict=True))}
CASES = load("rfc4868", "prf")
SHA1 = load("rfc2202")
XCBC = load("xcbc")


@pytest.mark.rfc("4868", "2.7.1")
@pytest.mark.parametrize("prf_id", SHA2)
@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_rfc_4868(case: dict, prf_id: int) -> None:
    assert Prf(prf_id).compute(case["key"], case["data"]) == case[f"prf_{prf_id}"]


@pytest.mark.rfc("2202", "3")
@pytest.mark.parametrize("case", SHA1, ids=names(SHA1))
def test_rfc_2202(case: dict) -> None:
    assert Prf(PrfId.HMAC_SHA1).compute(case["key"], case["data"]) == case["mac"]


@pytest.mark.rfc("4434", "2")
@pytest.mark.parametrize("case", XCBC, ids=names(XCBC))
def test_rfc_4434(case: dict) -> None:
    assert Prf(PrfId.AES128_XCBC).compute(case["key"], case["data"]) == case["mac"]


@pytest.mark.parametrize(("prf_id", "length"), PRFS.items())
def test_lengths(prf_id: int, length: int) -> None:
    prf = Prf(prf_id)
    assert (prf.id, prf.key_length, prf.output_length) == (prf_id, length, length)
    assert len(prf.compute(b"", b"")) == length


@pytest.mark.rfc("7296", "2.13")
def test_expand_chains_blocks_with_a_counter() -> None:
    t1 = hmac.digest(b"key", b"seed\x01", "sha256")
    t2 = hmac.digest(b"key", t1 + b"seed\x02", "sha256")
    t3 = hmac.digest(b"key", t2 + b"seed\x03", "sha256")
    assert Prf(PrfId.HMAC_SHA2_256).expand(b"key", b"seed", 70) == (t1 + t2 + t3)[:70]


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 64])
def test_expand_gives_what_is_asked(length: int) -> None:
    longest = Prf(PrfId.HMAC_SHA2_256).expand(b"key", b"seed", 64)
    assert Prf(PrfId.HMAC_SHA2_256).expand(b"key", b"seed", length) == longest[:length]


def test_expand_ends_at_255_blocks() -> None:
    prf = Prf(PrfId.HMAC_SHA2_256)
    assert len(prf.expand(b"key", b"seed", 255 * 32)) == 255 * 32
    with pytest.raises(UsageError, match="255 blocks"):
        prf.expand(b"key", b"seed", 255 * 32 + 1)


@pytest.mark.rfc("8247", "2.2")
@pytest.mark.parametrize("prf_id", [PrfId.HMAC_MD5, 0, 1024])
def test_others_are_refused(prf_id: int) -> None:
    assert not supported_prf(prf_id)
    with pytest.raises(UsageError, match=f"PRF {int(prf_id)}"):
        Prf(prf_id)


def test_supported() -> None:
    assert all(supported_prf(prf_id) for prf_id in PRFS)
