"""Sealing what only we shall read again, under a key that changes: AES-256-GCM.

Layout of what is sealed: u32 number of the key | 12 octets nonce | ciphertext and ICV
"""

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tunnelwrap.errors import IntegrityError

KEY_LENGTH: Final = 32
NONCE_LENGTH: Final = 12
KEPT: Final = 2  # the key in use, and the one before it


class RotatingKey:
    """Owns: the keys, in memory only. ``now`` is monotonic seconds.

    Args:
        random: gives that many random octets.
        period_s: how long a key seals; it opens for as long again.
    """

    __slots__ = ("_began", "_keys", "_newest", "_period_s", "_random")

    def __init__(self, random: Callable[[int], bytes], period_s: float) -> None:
        self._random = random
        self._period_s = period_s
        self._keys: dict[int, AESGCM] = {}
        self._newest = 0
        self._began: float | None = None  # when the newest key came into use

    def seal(self, plaintext: bytes, now: float) -> bytes:
        """The octets that ``open`` takes."""
        self._rotate(now)
        nonce = self._random(NONCE_LENGTH)
        head = self._newest.to_bytes(4, "big") + nonce
        return head + self._keys[self._newest].encrypt(nonce, plaintext, head)

    def open(self, sealed: bytes, now: float) -> bytes:
        """What was sealed.

        Raises:
            IntegrityError: we did not seal it, or too long ago.
        """
        self._rotate(now)
        head = sealed[: 4 + NONCE_LENGTH]
        key = self._keys.get(int.from_bytes(head[:4], "big"))
        if key is None or len(head) < 4 + NONCE_LENGTH:
            raise IntegrityError("sealed under a key that is not ours, or not any more")
        try:
            return key.decrypt(head[4:], sealed[len(head) :], head)
        except InvalidTag as error:
            raise IntegrityError("not what we sealed") from error

    def _rotate(self, now: float) -> None:
        """What is older than two periods can be opened by nobody, not even by us."""
        if self._began is not None and now < self._began + self._period_s:
            return
        if self._began is not None and now >= self._began + 2 * self._period_s:
            self._keys.clear()
        self._newest += 1
        self._keys[self._newest] = AESGCM(self._random(KEY_LENGTH))
        self._keys.pop(self._newest - KEPT, None)
        self._began = now
