"""A tunnel with strongSwan in both roles: PSK, certificates, and each suite."""

import pytest

from tests.interop.lan import ping
from tests.interop.pair import Pair, certificate_proofs, psk_proofs
from tests.interop.settings import Settings

pytestmark = [pytest.mark.root, pytest.mark.interop]

METHODS = {"rsa": "RSA", "ed25519": "ED25519", "ed448": "ED448"}

SUITES = {
    "aes128gcm-x25519": (
        "aes128gcm16-prfsha256-x25519",
        "AES_GCM_16-128/PRF_HMAC_SHA2_256/CURVE_25519",
        "AES_GCM_16-128",
    ),
    "aes256gcm-ecp384": (
        "aes256gcm16-prfsha384-ecp384",
        "AES_GCM_16-256/PRF_HMAC_SHA2_384/ECP_384",
        "AES_GCM_16-256",
    ),
    "aes256cbc-modp2048": (
        "aes256-sha256-modp2048",
        "AES_CBC-256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/MODP_2048",
        "AES_CBC-256/HMAC_SHA2_256_128",
    ),
    "chacha20-x25519": (
        "chacha20poly1305-prfsha256-x25519",
        "CHACHA20_POLY1305/PRF_HMAC_SHA2_256/CURVE_25519",
        "CHACHA20_POLY1305",
    ),
    "aes256ccm-x25519": (
        "aes256ccm16-prfsha256-x25519",
        "AES_CCM_16-256/PRF_HMAC_SHA2_256/CURVE_25519",
        "AES_CCM_16-256",
    ),
    "aes128ccm8-x25519": (
        "aes128ccm8-prfsha256-x25519",
        "AES_CCM_8-128/PRF_HMAC_SHA2_256/CURVE_25519",
        "AES_CCM_8-128",
    ),
    "aes128ctr-modp2048": (
        "aes128ctr-sha256-modp2048",
        "AES_CTR-128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/MODP_2048",
        "AES_CTR-128/HMAC_SHA2_256_128",
    ),
    "sha1-modp2048": (
        "aes128-sha1-modp2048",
        "AES_CBC-128/HMAC_SHA1_96/PRF_HMAC_SHA1/MODP_2048",
        "AES_CBC-128/HMAC_SHA1_96",
    ),
    "xcbc-modp2048": (
        "aes128-aesxcbc-modp2048",
        "AES_CBC-128/AES_XCBC_96/PRF_AES128_XCBC/MODP_2048",
        "AES_CBC-128/AES_XCBC_96",
    ),
}

ESP_ONLY = {
    "null-sha256": "NULL/HMAC_SHA2_256_128",
    "null-aesxcbc": "NULL/AES_XCBC_96",
}


def esp_of(ike: str) -> str:
    """The ESP suite with the algorithms of an IKE suite."""
    return "-".join(part for part in ike.split("-") if not part.startswith("prf"))


@pytest.mark.rfc("7296", "4")
def test_psk(pair: Pair) -> None:
    initiator, responder = psk_proofs()

    assert pair.start(Settings(initiator), Settings(responder)), pair.tunnelwrap.log

    assert ping(pair.lan)
    assert pair.strongswan.logged(r"with pre-shared key successful")


@pytest.mark.rfc("7296", "4")
@pytest.mark.parametrize("kind", ["rsa", "p256", "p384", "ed25519", "ed448"])
def test_certificates(pair: Pair, kind: str) -> None:
    initiator, responder = certificate_proofs(kind)

    assert pair.start(Settings(initiator), Settings(responder)), pair.tunnelwrap.log

    assert ping(pair.lan)
    method = METHODS.get(kind, "ECDSA")
    assert pair.strongswan.logged(rf"authentication of .* with {method}.* successful")


@pytest.mark.rfc("4303", "5")
@pytest.mark.parametrize("suite", SUITES)
def test_suite(pair: Pair, suite: str) -> None:
    ike, ike_name, esp_name = SUITES[suite]
    initiator, responder = psk_proofs()

    settings = [Settings(proof, ike, esp_of(ike)) for proof in (initiator, responder)]
    assert pair.start(*settings), pair.tunnelwrap.log

    assert ping(pair.lan)
    sas = pair.strongswan.sas()
    assert ike_name in sas
    assert f"TUNNEL-in-UDP, ESP:{esp_name}" in sas


@pytest.mark.parametrize("esp", ESP_ONLY)
def test_suite_of_esp_only(pair: Pair, esp: str) -> None:
    settings = [Settings(proof, esp=esp) for proof in psk_proofs()]
    assert pair.start(*settings), pair.tunnelwrap.log

    assert ping(pair.lan)
    assert f"TUNNEL-in-UDP, ESP:{ESP_ONLY[esp]}" in pair.strongswan.sas()
