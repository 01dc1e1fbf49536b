"""AES-XCBC-MAC: integrity AES_XCBC_96 (RFC 3566) and the PRF AES128_XCBC (RFC 4434)."""

from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

KEY_LENGTH: Final = 16
_BLOCK: Final = 16
_ZERO: Final = bytes(_BLOCK)


class Xcbc:
    """The MAC with one key of 16 octets. RFC 3566 §4."""

    __slots__ = ("_chain", "_for_padded", "_for_whole")

    def __init__(self, key: bytes) -> None:
        one, two, three = (_last_block(AES(key), bytes((n,)) * _BLOCK) for n in (1, 2, 3))
        self._chain = AES(one)
        self._for_whole = int.from_bytes(two, "big")
        self._for_padded = int.from_bytes(three, "big")

    def compute(self, octets: bytes) -> bytes:
        """All 16 octets of the MAC; the integrity algorithm sends the first 12."""
        split = max(len(octets) - 1, 0) // _BLOCK * _BLOCK
        last, mask = octets[split:], self._for_whole
        if len(last) < _BLOCK:
            last, mask = (last + b"\x80").ljust(_BLOCK, b"\0"), self._for_padded
        masked = int.from_bytes(last, "big") ^ mask
        return _last_block(self._chain, octets[:split] + masked.to_bytes(_BLOCK, "big"))


def prf_aes128_xcbc(key: bytes, data: bytes) -> bytes:
    """prf(key, data) for a key of any length. RFC 4434 §2."""
    if len(key) > KEY_LENGTH:
        key = Xcbc(_ZERO).compute(key)
    return Xcbc(key.ljust(KEY_LENGTH, b"\0")).compute(data)


def _last_block(aes: AES, blocks: bytes) -> bytes:
    """What CBC from a zero IV ends with."""
    encryptor = Cipher(aes, CBC(_ZERO)).encryptor()
    return (encryptor.update(blocks) + encryptor.finalize())[-_BLOCK:]
