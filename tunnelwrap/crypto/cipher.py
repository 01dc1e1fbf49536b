"""ENCR (and INTEG) as one Cipher: lengths for every SA, seal and open for IKE's SK payload.

AES-CBC: RFC 3602; AES-CTR: RFC 3686, in IKE RFC 5930; HMAC-SHA2: RFC 4868; HMAC-SHA1: RFC 2404;
AES-XCBC: RFC 3566; AES-GCM: RFC 4106; AES-CCM: RFC 4309; ChaCha20-Poly1305: RFC 7634;
authenticated encryption in IKE: RFC 5282. The data plane has a road of its own; NULL (RFC 2410) and
AES-GMAC (RFC 4543) are only for it.

What RFC 8247 and RFC 8221 say MUST NOT is absent, and so is 3DES (MAY, SHOULD NOT in ESP): every
peer that has it also has AES-CBC.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.xcbc import Xcbc
from tunnelwrap.errors import IntegrityError, Malformed, UsageError
from tunnelwrap.iana import Encr, Integ


class _Engine(Protocol):
    """A keyed algorithm on padded octets; ``open`` raises IntegrityError."""

    def seal(self, aad: bytes, padded: bytes, iv: bytes) -> bytes: ...

    def open(self, aad: bytes, iv: bytes, sealed: bytes) -> bytes: ...


class _Aead(Protocol):
    """What the library's AEAD classes have in common."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes: ...


_Mode = Callable[[bytes, bytes], CBC | CTR]  # for a salt and an IV


@dataclass(frozen=True, slots=True)
class _Encryption:
    """One row of the ENCR table; lengths in octets."""

    key_bits: tuple[int | None, ...]  # values of the KEY_LENGTH attribute; None: has none
    fixed_key_length: int  # where there is no KEY_LENGTH
    salt_length: int  # taken from the end of the keying material
    iv_length: int
    icv_length: int  # 0: INTEG is needed
    block_size: int
    aead: Callable[[bytes], _Aead] | None = None
    mode: _Mode | None = None  # with neither: not for IKE


@dataclass(frozen=True, slots=True)
class _Integrity:
    """One row of the INTEG table; lengths in octets. RFC 4868 §2.1."""

    key_length: int
    icv_length: int
    keyed: Callable[[bytes], Callable[[bytes], bytes]]  # from a key to the MAC, not yet cut


def _cbc(_salt: bytes, iv: bytes) -> CBC:
    return CBC(iv)


def _ctr(salt: bytes, iv: bytes) -> CTR:
    """The counter block: nonce, IV, and a counter that begins with 1. RFC 3686 §4."""
    return CTR(salt + iv + b"\0\0\0\1")


def _hmac(hash_name: str, key_length: int, icv_length: int) -> _Integrity:
    return _Integrity(
        key_length,
        icv_length,
        lambda key: lambda octets: hmac.digest(key, octets, hash_name),
    )


_AES_BITS: Final = (128, 192, 256)

_ENCRYPTIONS: Final[dict[int, _Encryption]] = {
    Encr.NULL: _Encryption((None,), 0, 0, 0, 0, 1),
    Encr.AES_CBC: _Encryption(_AES_BITS, 0, 0, 16, 0, 16, mode=_cbc),
    Encr.AES_CTR: _Encryption(_AES_BITS, 0, 4, 8, 0, 1, mode=_ctr),
    # RFC 4309 §3: ICVs of 8 and 16 octets MUST be there, of 12 MAY
    Encr.AES_CCM_8: _Encryption(_AES_BITS, 0, 3, 8, 8, 1, partial(AESCCM, tag_length=8)),
    Encr.AES_CCM_16: _Encryption(_AES_BITS, 0, 3, 8, 16, 1, partial(AESCCM, tag_length=16)),
    Encr.AES_GCM_16: _Encryption(_AES_BITS, 0, 4, 8, 16, 1, AESGCM),
    Encr.NULL_AUTH_AES_GMAC: _Encryption(_AES_BITS, 0, 4, 8, 16, 1),
    Encr.CHACHA20_POLY1305: _Encryption((None,), 32, 4, 8, 16, 1, ChaCha20Poly1305),
}

_INTEGRITIES: Final[dict[int, _Integrity]] = {
    Integ.HMAC_SHA1_96: _hmac("sha1", 20, 12),  # for old peers: MUST- in RFC 8247 §2.3
    Integ.AES_XCBC_96: _Integrity(16, 12, lambda key: Xcbc(key).compute),
    Integ.HMAC_SHA2_256_128: _hmac("sha256", 32, 16),
    Integ.HMAC_SHA2_384_192: _hmac("sha384", 48, 24),
    Integ.HMAC_SHA2_512_256: _hmac("sha512", 64, 32),
}


def supported_encr(encr_id: int, key_bits: int | None) -> bool:
    """Whether this encryption with this KEY_LENGTH attribute can be computed here."""
    return encr_id in _ENCRYPTIONS and key_bits in _ENCRYPTIONS[encr_id].key_bits


def supported_integ(integ_id: int) -> bool:
    """Whether this integrity algorithm can be computed here (NONE is not one)."""
    return integ_id in _INTEGRITIES


def integrity_lengths(integ_id: int) -> tuple[int, int]:
    """Lengths of the key and of the ICV of a supported integrity algorithm."""
    row = _INTEGRITIES[integ_id]
    return row.key_length, row.icv_length


def is_aead(encr_id: int) -> bool:
    """Whether a supported encryption protects integrity by itself."""
    return encr_id in _ENCRYPTIONS and _ENCRYPTIONS[encr_id].icv_length > 0


def is_esp_only(encr_id: int) -> bool:
    """Whether a supported encryption MUST NOT protect an IKE SA. RFC 8247 §2.1, RFC 4543 §2."""
    row = _ENCRYPTIONS.get(encr_id)
    return row is not None and row.aead is None and row.mode is None


class Cipher:
    """A negotiated encryption with its integrity: lengths in octets, and keyed instances.

    Args:
        encr_id: transform ID of ENCR.
        key_bits: its KEY_LENGTH attribute; None where the algorithm has none.
        integ_id: transform ID of INTEG; None or NONE with an AEAD.

    Raises:
        UsageError: a combination that is not supported.
    """

    __slots__ = ("_encryption", "_integrity", "encryption_key_length")

    def __init__(self, encr_id: int, key_bits: int | None, integ_id: int | None) -> None:
        if not supported_encr(encr_id, key_bits):
            raise UsageError(f"encryption {encr_id} with {key_bits} key bits is not supported")
        self._encryption = _ENCRYPTIONS[encr_id]
        self._integrity = _INTEGRITIES.get(integ_id or Integ.NONE)
        if self.is_aead != (integ_id in {None, Integ.NONE}):
            raise UsageError(f"encryption {encr_id} does not go with integrity {integ_id}")
        if not self.is_aead and self._integrity is None:
            raise UsageError(f"integrity {integ_id} is not supported")
        cipher_key = (key_bits or 0) // 8 or self._encryption.fixed_key_length
        self.encryption_key_length = cipher_key + self._encryption.salt_length

    @property
    def is_aead(self) -> bool:
        """Whether encryption and integrity are one algorithm."""
        return self._encryption.icv_length > 0

    @property
    def integrity_key_length(self) -> int:
        """Length of the INTEG key; 0 with an AEAD."""
        return self._integrity.key_length if self._integrity else 0

    @property
    def salt_length(self) -> int:
        """How much of the end of the encryption key is salt of the nonce."""
        return self._encryption.salt_length

    @property
    def iv_length(self) -> int:
        """Length of the explicit IV."""
        return self._encryption.iv_length

    @property
    def icv_length(self) -> int:
        """Length of the integrity check value."""
        return self._integrity.icv_length if self._integrity else self._encryption.icv_length

    @property
    def block_size(self) -> int:
        """What the padded plaintext is a multiple of."""
        return self._encryption.block_size

    def pad(self, plaintext: bytes) -> bytes:
        """The plaintext with IKE's padding and Pad Length octet. RFC 7296 §3.14."""
        pad_length = -(len(plaintext) + 1) % self.block_size
        return plaintext + bytes(pad_length) + bytes((pad_length,))

    def sealed_length(self, plaintext_length: int) -> int:
        """Length of IV, ciphertext and ICV for a plaintext not yet padded."""
        blocks = plaintext_length // self.block_size + 1
        return self.iv_length + blocks * self.block_size + self.icv_length

    def room_in(self, sealed_length: int) -> int:
        """The longest plaintext not yet padded whose sealed length is at most that."""
        octets = sealed_length - self.iv_length - self.icv_length
        return octets // self.block_size * self.block_size - 1

    def bind(self, encryption: Secret, integrity: Secret) -> "BoundCipher":
        """This cipher with the keys of one direction, for the SK payload.

        Raises:
            UsageError: a key has the wrong length, or the encryption is not for IKE.
        """
        expected = (self.encryption_key_length, self.integrity_key_length)
        if (len(encryption), len(integrity)) != expected:
            raise UsageError(f"keys of {len(encryption)} and {len(integrity)}, not {expected}")
        return BoundCipher(self, self._engine(encryption.reveal(), integrity.reveal()))

    def _engine(self, encryption: bytes, integrity: bytes) -> _Engine:
        row, end = self._encryption, self.encryption_key_length - self.salt_length
        key, salt = encryption[:end], encryption[end:]
        if row.aead is not None:
            return _SaltedAead(row.aead(key), salt)
        if row.mode is None or self._integrity is None:
            raise UsageError("an encryption that is for ESP only cannot protect an IKE SA")
        mac = self._integrity.keyed(integrity)
        return _EncryptThenMac(AES(key), partial(row.mode, salt), mac, self)


class BoundCipher:
    """A cipher with the keys of one direction, for the SK payload. RFC 7296 §3.14, RFC 5282."""

    __slots__ = ("_engine", "cipher")

    def __init__(self, cipher: Cipher, engine: _Engine) -> None:
        self.cipher = cipher
        self._engine = engine

    def pad(self, plaintext: bytes) -> bytes:
        """The plaintext with IKE's padding and Pad Length octet, as ``seal`` wants it."""
        return self.cipher.pad(plaintext)

    def sealed_length(self, plaintext_length: int) -> int:
        """Length of what ``seal`` gives for a plaintext not yet padded."""
        return self.cipher.sealed_length(plaintext_length)

    def seal(self, aad: bytes, plaintext: bytes, iv: bytes) -> bytes:
        """Protect a padded plaintext: IV, ciphertext and ICV.

        Args:
            aad: octets from the IKE header up to the IV.
            plaintext: as ``pad`` gave it.
            iv: unpredictable for CBC; never used twice with these keys for an AEAD.

        Raises:
            UsageError: the IV or the plaintext has an impossible length.
        """
        if len(iv) != self.cipher.iv_length or len(plaintext) % self.cipher.block_size:
            raise UsageError(f"IV of {len(iv)} or plaintext of {len(plaintext)} octets")
        return iv + self._engine.seal(aad, plaintext, iv)

    def open(self, aad: bytes, body: bytes) -> bytes:
        """Check the ICV, decrypt, and take the padding off.

        Raises:
            IntegrityError: the octets are not what the peer sealed.
            Malformed: they are, but the peer's padding is impossible.
        """
        if len(body) < self.cipher.sealed_length(0):
            raise IntegrityError(f"SK body of {len(body)} octets is too short")
        iv_length = self.cipher.iv_length
        padded = self._engine.open(aad, body[:iv_length], body[iv_length:])
        end = len(padded) - 1 - padded[-1]
        if end < 0:
            raise Malformed(f"pad length {padded[-1]} in a plaintext of {len(padded)} octets")
        return padded[:end]


class _SaltedAead:
    """An AEAD whose nonce is the salt and the explicit IV. RFC 5282 §4, RFC 7634 §2."""

    __slots__ = ("_aead", "_salt")

    def __init__(self, aead: _Aead, salt: bytes) -> None:
        self._aead = aead
        self._salt = salt

    def seal(self, aad: bytes, padded: bytes, iv: bytes) -> bytes:
        return self._aead.encrypt(self._salt + iv, padded, aad)

    def open(self, aad: bytes, iv: bytes, sealed: bytes) -> bytes:
        try:
            return self._aead.decrypt(self._salt + iv, sealed, aad)
        except InvalidTag as error:
            raise IntegrityError("ICV does not verify") from error


class _EncryptThenMac:
    """AES in a mode without integrity, then a MAC over AAD, IV and ciphertext. RFC 7296 §3.14."""

    __slots__ = ("_aes", "_block_size", "_icv_length", "_mac", "_mode")

    def __init__(
        self,
        aes: AES,
        mode: Callable[[bytes], CBC | CTR],
        mac: Callable[[bytes], bytes],
        cipher: Cipher,
    ) -> None:
        self._aes = aes
        self._mode = mode
        self._mac = mac
        self._icv_length = cipher.icv_length
        self._block_size = cipher.block_size

    def seal(self, aad: bytes, padded: bytes, iv: bytes) -> bytes:
        encryptor = BlockCipher(self._aes, self._mode(iv)).encryptor()
        ciphertext = encryptor.update(padded) + encryptor.finalize()
        return ciphertext + self._icv(aad + iv + ciphertext)

    def open(self, aad: bytes, iv: bytes, sealed: bytes) -> bytes:
        split = len(sealed) - self._icv_length
        ciphertext, icv = sealed[:split], sealed[split:]
        if not hmac.compare_digest(icv, self._icv(aad + iv + ciphertext)):
            raise IntegrityError("ICV does not verify")
        if len(ciphertext) % self._block_size:
            raise Malformed(f"ciphertext of {len(ciphertext)} octets is no multiple of a block")
        decryptor = BlockCipher(self._aes, self._mode(iv)).decryptor()
        return decryptor.update(ciphertext) + decryptor.finalize()

    def _icv(self, octets: bytes) -> bytes:
        return self._mac(octets)[: self._icv_length]
