"""The kernel's names for what an EspSuite negotiated; the keys are laid out as ours are.

The salt of an AEAD, or the nonce of CTR, stands at the end of the encryption key on both sides.
RFC 4106 §8.1, RFC 4309 §7.1, RFC 4543 §5.1, RFC 7634 §2, RFC 3686 §5.1.
"""

from typing import Final

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import AhSuite, ChildSuite, EspSuite
from tunnelwrap.dataplane.xfrm_values import Algorithm, Algorithms
from tunnelwrap.errors import Unsupported
from tunnelwrap.iana import Encr, Integ
from tunnelwrap.ike.child_sa import SaKeys

AEADS: Final[dict[int, str]] = {
    Encr.AES_GCM_8: "rfc4106(gcm(aes))",
    Encr.AES_GCM_12: "rfc4106(gcm(aes))",
    Encr.AES_GCM_16: "rfc4106(gcm(aes))",
    Encr.AES_CCM_8: "rfc4309(ccm(aes))",
    Encr.AES_CCM_12: "rfc4309(ccm(aes))",
    Encr.AES_CCM_16: "rfc4309(ccm(aes))",
    Encr.NULL_AUTH_AES_GMAC: "rfc4543(gcm(aes))",
    Encr.CHACHA20_POLY1305: "rfc7539esp(chacha20,poly1305)",
}

ENCRYPTIONS: Final[dict[int, str]] = {
    Encr.NULL: "ecb(cipher_null)",
    Encr.AES_CBC: "cbc(aes)",
    Encr.AES_CTR: "rfc3686(ctr(aes))",
}

INTEGRITIES: Final[dict[int, str]] = {
    Integ.HMAC_SHA1_96: "hmac(sha1)",
    Integ.AES_XCBC_96: "xcbc(aes)",
    Integ.HMAC_SHA2_256_128: "hmac(sha256)",
    Integ.HMAC_SHA2_384_192: "hmac(sha384)",
    Integ.HMAC_SHA2_512_256: "hmac(sha512)",
}

DEFLATE: Final = Algorithms(compression=Algorithm("deflate", Secret(b"")))
"""Of an IPComp SA. RFC 2394."""


def child_algorithms(suite: ChildSuite, keys: SaKeys) -> Algorithms:
    """What an ESP or AH SA computes.

    Raises:
        Unsupported: the kernel has no name for it.
    """
    if isinstance(suite, AhSuite):
        return ah_algorithms(suite.integ, keys, suite.icv_length)
    return esp_algorithms(suite, keys)


def esp_algorithms(suite: EspSuite, keys: SaKeys) -> Algorithms:
    """What an ESP SA computes, by the kernel's names; whether this kernel has it is another thing.

    Raises:
        Unsupported: the kernel has no name for it.
    """
    icv_bits = suite.icv_length * 8
    if suite.is_aead:
        return Algorithms(aead=Algorithm(_name(AEADS, suite.encr), keys.encryption, icv_bits))
    return Algorithms(
        encryption=Algorithm(_name(ENCRYPTIONS, suite.encr), keys.encryption),
        integrity=_integrity(suite.integ or Integ.NONE, keys, icv_bits),
    )


def ah_algorithms(integ: int, keys: SaKeys, icv_length: int) -> Algorithms:
    """What an AH SA computes. RFC 4302.

    Raises:
        Unsupported: the kernel has no name for it.
    """
    return Algorithms(integrity=_integrity(integ, keys, icv_length * 8))


def _integrity(integ: int, keys: SaKeys, icv_bits: int) -> Algorithm:
    return Algorithm(_name(INTEGRITIES, integ), keys.integrity, icv_bits)


def _name(names: dict[int, str], transform: int) -> str:
    if transform not in names:
        raise Unsupported(f"the kernel has no ESP or AH with transform {transform}")
    return names[transform]
