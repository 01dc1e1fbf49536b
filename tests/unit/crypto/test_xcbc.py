"""AES-XCBC-MAC and the PRF made of it, against their RFCs."""

import pytest

from tests.kit.crypto_vectors import load, names
from tunnelwrap.crypto.xcbc import Xcbc, prf_aes128_xcbc

CASES = load("xcbc")
WHOLE_KEYS = [case for case in CASES if len(case["key"]) == 16]


@pytest.mark.rfc("3566", "4")
@pytest.mark.parametrize("case", WHOLE_KEYS, ids=names(WHOLE_KEYS))
def test_rfc_3566(case: dict) -> None:
    assert Xcbc(case["key"]).compute(case["data"]) == case["mac"]


@pytest.mark.rfc("4434", "2")
@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_rfc_4434(case: dict) -> None:
    """A key of 16 octets is taken as it is; shorter and longer ones are made fit."""
    assert prf_aes128_xcbc(case["key"], case["data"]) == case["mac"]


def test_padding_is_not_a_message() -> None:
    """RFC 3566 §4: a block that was padded is masked by another key than one that was whole."""
    mac = Xcbc(bytes(range(16)))
    assert mac.compute(b"a" * 15) != mac.compute(b"a" * 15 + b"\x80")
    assert mac.compute(b"") != mac.compute(b"\x80" + bytes(15))
