"""Pseudorandom functions and prf+. RFC 7296 §2.13, RFC 4868, RFC 4434.

PRF_HMAC_MD5 is absent: RFC 8247 §2.2 says MUST NOT.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tunnelwrap.crypto.xcbc import KEY_LENGTH, prf_aes128_xcbc
from tunnelwrap.errors import UsageError
from tunnelwrap.iana import Prf as PrfId

MAX_BLOCKS: Final = 255  # RFC 7296 §2.13: the block counter is a single octet


@dataclass(frozen=True, slots=True)
class _Function:
    """One row of the table below; lengths in octets."""

    key_length: int  # preferred key size, also the length of SK_d, SK_pi, SK_pr
    output_length: int
    compute: Callable[[bytes, bytes], bytes]


def _hmac(name: str, length: int) -> _Function:
    return _Function(length, length, lambda key, data: hmac.digest(key, data, name))


_FUNCTIONS: Final[dict[int, _Function]] = {
    PrfId.HMAC_SHA1: _hmac("sha1", 20),  # for old peers; HMAC does not need what SHA-1 has lost
    PrfId.AES128_XCBC: _Function(KEY_LENGTH, KEY_LENGTH, prf_aes128_xcbc),
    PrfId.HMAC_SHA2_256: _hmac("sha256", 32),
    PrfId.HMAC_SHA2_384: _hmac("sha384", 48),
    PrfId.HMAC_SHA2_512: _hmac("sha512", 64),
}


def supported_prf(prf_id: int) -> bool:
    """Whether this PRF can be computed here."""
    return prf_id in _FUNCTIONS


class Prf:
    """A negotiated pseudorandom function. RFC 7296 §2.13.

    Raises:
        UsageError: the PRF is not supported.
    """

    __slots__ = ("_function", "id")

    def __init__(self, prf_id: int) -> None:
        if prf_id not in _FUNCTIONS:
            raise UsageError(f"PRF {prf_id} is not supported")
        self.id = prf_id
        self._function = _FUNCTIONS[prf_id]

    @property
    def key_length(self) -> int:
        """Preferred key size in octets."""
        return self._function.key_length

    @property
    def output_length(self) -> int:
        """Octets of one result."""
        return self._function.output_length

    def compute(self, key: bytes, data: bytes) -> bytes:
        """prf(key, data)."""
        return self._function.compute(key, data)

    def expand(self, key: bytes, seed: bytes, length: int) -> bytes:
        """The first ``length`` octets of prf+(key, seed). RFC 7296 §2.13.

        Raises:
            UsageError: more than 255 blocks are asked for.
        """
        if length > MAX_BLOCKS * self.output_length:
            raise UsageError(f"prf+ gives at most {MAX_BLOCKS} blocks, not {length} octets")
        material, block = bytearray(), b""
        while len(material) < length:
            counter = len(material) // self.output_length + 1
            block = self.compute(key, block + seed + bytes((counter,)))
            material += block
        return bytes(material[:length])
