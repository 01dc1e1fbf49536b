"""The signed octets and AUTH by a shared key, by the formulas of the RFC."""

import hmac

import pytest

from tunnelwrap.auth.octets import signed_octets
from tunnelwrap.auth.psk import psk_auth
from tunnelwrap.crypto.prf import Prf
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.iana import Prf as PrfId

PRF = Prf(PrfId.HMAC_SHA2_256)


@pytest.mark.rfc("7296", "2.15")
def test_signed_octets() -> None:
    octets = signed_octets(b"message", b"nonce", PRF, Secret(b"SK_p"), b"\x02\0\0\0gw")
    assert octets == b"message" + b"nonce" + hmac.digest(b"SK_p", b"\x02\0\0\0gw", "sha256")


@pytest.mark.rfc("7296", "2.15")
@pytest.mark.parametrize(
    ("prf_id", "digest"),
    [
        (PrfId.HMAC_SHA2_256, "sha256"),
        (PrfId.HMAC_SHA2_384, "sha384"),
        (PrfId.HMAC_SHA2_512, "sha512"),
    ],
)
def test_psk_auth(prf_id: int, digest: str) -> None:
    padded = hmac.digest(b"a shared key", b"Key Pad for IKEv2", digest)
    expected = hmac.digest(padded, b"octets", digest)
    assert psk_auth(Prf(prf_id), Secret(b"a shared key"), b"octets") == expected


def test_every_input_counts() -> None:
    auth = psk_auth(PRF, Secret(b"key"), b"octets")
    assert auth != psk_auth(PRF, Secret(b"other"), b"octets")
    assert auth != psk_auth(PRF, Secret(b"key"), b"other")
