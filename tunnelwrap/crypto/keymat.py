"""SKEYSEED, the seven SK keys, KEYMAT, and their derivation when rekeying. RFC 7296 §2.13-§2.18."""

from dataclasses import dataclass

from tunnelwrap.crypto.prf import Prf
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import EspSuite, IkeSuite
from tunnelwrap.iana import Prf as PrfId


@dataclass(frozen=True, slots=True)
class IkeKeys:
    """The keys of an IKE SA. RFC 7296 §2.14."""

    sk_d: Secret
    sk_ai: Secret
    sk_ar: Secret
    sk_ei: Secret
    sk_er: Secret
    sk_pi: Secret
    sk_pr: Secret


def skeyseed(prf: Prf, n_i: bytes, n_r: bytes, shared: Secret) -> Secret:
    """SKEYSEED of a new IKE SA: prf(Ni | Nr, g^ir). RFC 7296 §2.14."""
    if prf.id == PrfId.AES128_XCBC:  # the same section: of each nonce only the first 64 bits
        n_i, n_r = n_i[:8], n_r[:8]
    return Secret(prf.compute(n_i + n_r, shared.reveal()))


def skeyseed_rekey(
    prf_old: Prf, sk_d_old: Secret, shared: Secret, n_i: bytes, n_r: bytes
) -> Secret:
    """SKEYSEED of an IKE SA that replaces another: prf(SK_d old, g^ir | Ni | Nr). RFC 7296 §2.18.

    Computed with the PRF of the old IKE SA.
    """
    return Secret(prf_old.compute(sk_d_old.reveal(), shared.reveal() + n_i + n_r))


def skeyseed_resume(prf: Prf, sk_d_old: Secret, n_i: bytes, n_r: bytes) -> Secret:
    """SKEYSEED of a resumed IKE SA: prf(SK_d old, "Resumption" | Ni | Nr). RFC 5723 §5.1."""
    return Secret(prf.compute(sk_d_old.reveal(), b"Resumption" + n_i + n_r))


def ike_keys(  # the formula has six inputs
    suite: IkeSuite, seed: Secret, n_i: bytes, n_r: bytes, spi_i: bytes, spi_r: bytes
) -> IkeKeys:
    """The keys of an IKE SA: prf+(SKEYSEED, Ni | Nr | SPIi | SPIr). RFC 7296 §2.14."""
    prf, cipher = suite.prf_function(), suite.cipher()
    integrity, encryption = cipher.integrity_key_length, cipher.encryption_key_length
    lengths = (
        *(prf.key_length, integrity, integrity, encryption, encryption),
        *(prf.key_length, prf.key_length),
    )
    material = prf.expand(seed.reveal(), n_i + n_r + spi_i + spi_r, sum(lengths))
    return IkeKeys(*_split(material, lengths))


def child_keymat(  # the formula has five inputs
    prf: Prf, sk_d: Secret, n_i: bytes, n_r: bytes, length: int, shared: Secret | None
) -> bytes:
    """KEYMAT: prf+(SK_d, [g^ir (new)] | Ni | Nr). RFC 7296 §2.17."""
    fresh = shared.reveal() if shared else b""
    return prf.expand(sk_d.reveal(), fresh + n_i + n_r, length)


def child_keys(  # the formula has six inputs
    suite: EspSuite, prf: Prf, sk_d: Secret, n_i: bytes, n_r: bytes, shared: Secret | None
) -> tuple[Secret, Secret, Secret, Secret]:
    """Keys of a Child SA, in the order of RFC 7296 §2.17.

    Returns:
        Encryption and integrity key of what the initiator of the exchange sends, then both of
        what the responder sends. An AEAD's salt is the end of its encryption key.
    """
    lengths = (suite.encryption_key_length, suite.integrity_key_length) * 2
    material = child_keymat(prf, sk_d, n_i, n_r, sum(lengths), shared)
    enc_i, integ_i, enc_r, integ_r = _split(material, lengths)
    return enc_i, integ_i, enc_r, integ_r


def _split(material: bytes, lengths: tuple[int, ...]) -> list[Secret]:
    keys, start = [], 0
    for length in lengths:
        keys.append(Secret(material[start : start + length]))
        start += length
    return keys
