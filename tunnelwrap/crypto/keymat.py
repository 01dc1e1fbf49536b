"""SKEYSEED, the seven SK keys, KEYMAT, and their derivation when rekeying. RFC 7296 §2.13-§2.18.

With additional key exchanges (RFC 9370) and a post-quantum preshared key (RFC 8784).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunnelwrap.crypto.prf import Prf
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import ChildSuite, IkeSuite
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


def skeyseed_rekey(  # the formula has six inputs
    prf_old: Prf,
    sk_d_old: Secret,
    shared: Secret,
    n_i: bytes,
    n_r: bytes,
    additional: Sequence[Secret] = (),
) -> Secret:
    """SKEYSEED of an IKE SA that replaces another: prf(SK_d old, g^ir | Ni | Nr). RFC 7296 §2.18.

    Computed with the PRF of the old IKE SA. The secrets of additional key exchanges stand behind
    the nonces (RFC 9370 §2.2.4); one that an IKE_INTERMEDIATE adds to an IKE SA is ``shared``, and
    the IKE SA the old one (RFC 9370 §2.2.2).
    """
    octets = shared.reveal() + n_i + n_r + _joined(additional)
    return Secret(prf_old.compute(sk_d_old.reveal(), octets))


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


def mix_ppk(prf: Prf, keys: IkeKeys, ppk: Secret) -> IkeKeys:
    """SK_d, SK_pi and SK_pr with a PPK in them: prf+(PPK, SK'). RFC 8784 §3."""
    sk_d, sk_pi, sk_pr = (
        Secret(prf.expand(ppk.reveal(), key.reveal(), len(key)))
        for key in (keys.sk_d, keys.sk_pi, keys.sk_pr)
    )
    return replace(keys, sk_d=sk_d, sk_pi=sk_pi, sk_pr=sk_pr)


def child_keymat(  # noqa: PLR0913 (the formula has six inputs beside the length)
    prf: Prf,
    sk_d: Secret,
    n_i: bytes,
    n_r: bytes,
    length: int,
    shared: Secret | None,
    *,
    additional: Sequence[Secret] = (),
) -> bytes:
    """KEYMAT: prf+(SK_d, [g^ir (new)] | Ni | Nr | [SK(1) ...]). RFC 7296 §2.17, RFC 9370 §2.2.4."""
    fresh = shared.reveal() if shared else b""
    return prf.expand(sk_d.reveal(), fresh + n_i + n_r + _joined(additional), length)


def child_keys(  # noqa: PLR0913 (the formula has seven inputs)
    suite: ChildSuite,
    prf: Prf,
    sk_d: Secret,
    n_i: bytes,
    n_r: bytes,
    shared: Secret | None,
    *,
    additional: Sequence[Secret] = (),
) -> tuple[Secret, Secret, Secret, Secret]:
    """Keys of a Child SA, in the order of RFC 7296 §2.17.

    Returns:
        Encryption and integrity key of what the initiator of the exchange sends, then both of
        what the responder sends. An AEAD's salt is the end of its encryption key; AH has no
        encryption keys, and theirs are empty.
    """
    lengths = (suite.encryption_key_length, suite.integrity_key_length) * 2
    material = child_keymat(prf, sk_d, n_i, n_r, sum(lengths), shared, additional=additional)
    enc_i, integ_i, enc_r, integ_r = _split(material, lengths)
    return enc_i, integ_i, enc_r, integ_r


def _joined(secrets: Sequence[Secret]) -> bytes:
    return b"".join(secret.reveal() for secret in secrets)


def _split(material: bytes, lengths: tuple[int, ...]) -> list[Secret]:
    keys, start = [], 0
    for length in lengths:
        keys.append(Secret(material[start : start + length]))
        start += length
    return keys
