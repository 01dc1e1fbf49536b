"""What the algorithms of a suite do to a train of ESP packets. RFC 4303, RFC 8221.

A sealer writes frame length, ESP header, IV, trailer and ICV around inner packets and encrypts in
place; an opener leaves the plaintext of authentic packets in an arena. There are two kinds:
AEADs (AES-GCM: RFC 4106, AES-CCM: RFC 4309, ChaCha20-Poly1305: RFC 7634), whose trains are prepared
by column, and an encryption with a MAC over all of the packet, one packet after the other.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.hmac import HMAC

from tunnelwrap.crypto.suite import EspSuite
from tunnelwrap.crypto.xcbc import Xcbc
from tunnelwrap.errors import Unsupported
from tunnelwrap.iana import Encr, Integ
from tunnelwrap.ike.child_sa import SaKeys

FRAME_LENGTH: Final = 2  # RFC 9329 §3.1: the length field counts itself
ESP_HEADER: Final = 8  # SPI and sequence number
BLOCK: Final = 16  # of AES

BY_COLUMN: Final = 8
"""From so many packets on a train is handled as one; fewer are cheaper one by one."""

_COUNTER_IV: Final = 8  # of everything but AES-CBC and NULL: the sequence number
_AEAD_HEAD: Final = FRAME_LENGTH + ESP_HEADER + _COUNTER_IV
_FIRST_COUNT: Final = b"\0\0\0\1"  # RFC 3686 §4
_LOW: Final = 0xFFFF_FFFF
_HASHES: Final[dict[int, type[HashAlgorithm]]] = {
    Integ.HMAC_SHA1_96: SHA1,
    Integ.HMAC_SHA2_256_128: SHA256,
    Integ.HMAC_SHA2_384_192: SHA384,
    Integ.HMAC_SHA2_512_256: SHA512,
}

_put_head = Struct(">HIIQ").pack_into  # frame length, SPI, sequence number, IV
_put_short_head = Struct(">HII").pack_into
_number = Struct(">II").pack
_long_number = Struct(">IQ").pack  # RFC 4106 §5: SPI | seqhi | seqlo is AAD with ESN
_high = Struct(">I").pack
_counter_iv = Struct(">Q").pack

Slots = tuple[int, int, int]  # count, inner length, slot length; opening: offset, length, stride
_Seal = Callable[[memoryview, int, Slots, bytes, int], None]
_Open = Callable[[Sequence[memoryview], int, memoryview, Slots], int]
_Encrypt = Callable[[memoryview, int], None]  # from the IV to the trailer; sequence number
_Decrypt = Callable[[memoryview, memoryview, int, int], None]  # from the IV on; arena, offset, size
_Tag = Callable[[memoryview, int], bytes]  # the ICV of a packet without it; sequence number


def sealer(suite: EspSuite, keys: SaKeys, spi: int, *, uses_esn: bool) -> _Seal:
    """How trains are sealed with these keys.

    Raises:
        Unsupported: an algorithm is unknown here.
    """
    if _has_mac(suite):
        return _mac_sealer(suite, keys, spi, uses_esn=uses_esn)
    return _aead_sealer(suite, keys, spi, uses_esn=uses_esn)


def opener(suite: EspSuite, keys: SaKeys, spi: int, *, uses_esn: bool) -> _Open:
    """How trains are opened with these keys.

    Raises:
        Unsupported: an algorithm is unknown here.
    """
    if _has_mac(suite):
        return _mac_opener(suite, keys, spi, uses_esn=uses_esn)
    return _aead_opener(suite, keys, spi, uses_esn=uses_esn)


def lead_of(suite: EspSuite) -> int:
    """Octets of an arena before each plaintext that an opener overwrites."""
    return BLOCK if suite.encr == Encr.AES_CBC else 0


def _has_mac(suite: EspSuite) -> bool:
    """GMAC is an AEAD by name; it encrypts nothing and so works as a MAC. RFC 4543 §3."""
    return not suite.is_aead or suite.encr == Encr.NULL_AUTH_AES_GMAC


# --- AEADs ----------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Nonce and AAD for one packet, as columns for many, and cut into pairs again."""

    nonce: Callable[[bytes, int], bytes]
    aad: Callable[[int, int], bytes]
    columns: "np.dtype[np.void]"
    cut: Callable[[bytes], Iterable[tuple[bytes, ...]]]


def _columns(*fields: tuple[str, str]) -> "np.dtype[np.void]":
    return np.dtype(list(fields))


def _layout(salt: int, *, uses_esn: bool) -> _Layout:
    number = ">u8" if uses_esn else ">u4"
    return _Layout(
        Struct(f">{salt}sQ").pack,
        _long_number if uses_esn else _number,
        _columns(("salt", f"S{salt}"), ("iv", ">u8"), ("spi", ">u4"), ("sequence", number)),
        Struct(f"{salt + _COUNTER_IV}s{12 if uses_esn else 8}s").iter_unpack,
    )


_HEAD_COLUMNS = _columns(("slot", ">u2"), ("spi", ">u4"), ("low", ">u4"), ("iv", ">u8"))


def _aead(suite: EspSuite, key: bytes) -> AESGCM | AESCCM | ChaCha20Poly1305:
    match suite.encr:
        case Encr.AES_GCM_16:
            return AESGCM(key)
        case Encr.AES_CCM_8 | Encr.AES_CCM_16:
            return AESCCM(key, suite.icv_length)
        case Encr.CHACHA20_POLY1305:
            return ChaCha20Poly1305(key)
        case _:
            raise Unsupported(f"no userspace ESP with {suite}")


def _without_salt(suite: EspSuite, keys: SaKeys) -> tuple[bytes, bytes]:
    """Key, and the salt of nonces behind it. RFC 4106 §8.1, RFC 4309 §7.1, RFC 3686 §5.1."""
    key = keys.encryption.reveal()
    end = len(key) - suite.salt_length
    return key[:end], key[end:]


def _aead_sealer(suite: EspSuite, keys: SaKeys, spi: int, *, uses_esn: bool) -> _Seal:
    """The IV is the sequence number: never twice under one key. RFC 4106 §3.1, RFC 7634 §2."""
    key, salt = _without_salt(suite, keys)
    encrypt, icv = _aead(suite, key).encrypt_into, suite.icv_length
    layout = _layout(len(salt), uses_esn=uses_esn)

    def seal(arena: memoryview, offset: int, shape: Slots, trailer: bytes, first: int) -> None:
        count, length, slot = shape
        _write_around(arena, offset, shape, trailer, (spi, first))
        start = offset + _AEAD_HEAD
        size = length + len(trailer)
        for nonce, aad in _parameters(layout, salt, spi, first, count):
            end = start + size
            encrypt(nonce, arena[start:end], aad, arena[start : end + icv])
            start += slot

    return seal


def _write_around(
    arena: memoryview, offset: int, shape: Slots, trailer: bytes, numbers: tuple[int, int]
) -> None:
    """Write frame length, ESP header, IV and trailer of each slot of an AEAD's train."""
    count, length, slot = shape
    spi, first = numbers
    behind = _AEAD_HEAD + length
    if count < BY_COLUMN:
        for sequence in range(first, first + count):
            _put_head(arena, offset, slot, spi, sequence & _LOW, sequence)
            arena[offset + behind : offset + behind + len(trailer)] = trailer
            offset += slot
        return
    heads = np.empty(count, _HEAD_COLUMNS)
    heads["slot"], heads["spi"] = slot, spi
    heads["low"] = heads["iv"] = np.uint64(first) + np.arange(count, dtype=np.uint64)
    rows = np.frombuffer(arena, np.uint8, count * slot, offset).reshape(count, slot)
    rows[:, :_AEAD_HEAD] = heads.view(np.uint8).reshape(count, _AEAD_HEAD)
    rows[:, behind : behind + len(trailer)] = np.frombuffer(trailer, np.uint8)


def _parameters(
    layout: _Layout, salt: bytes, spi: int, first: int, count: int
) -> Iterable[tuple[bytes, ...]]:
    """Nonce and AAD of each packet of a train. RFC 4106 §4, §5, RFC 4309 §4, §5, RFC 7634 §2.1."""
    if count < BY_COLUMN:
        numbers = range(first, first + count)
        return [(layout.nonce(salt, number), layout.aad(spi, number)) for number in numbers]
    table = np.empty(count, layout.columns)
    table["salt"], table["spi"] = salt, spi
    table["iv"] = table["sequence"] = np.uint64(first) + np.arange(count, dtype=np.uint64)
    return layout.cut(table.tobytes())


def _aead_opener(suite: EspSuite, keys: SaKeys, spi: int, *, uses_esn: bool) -> _Open:
    key, salt = _without_salt(suite, keys)
    decrypt = _aead(suite, key).decrypt_into
    aad = _long_number if uses_esn else _number

    def open_train(views: Sequence[memoryview], first: int, arena: memoryview, place: Slots) -> int:
        offset, size, stride = place
        sequence = first
        try:
            for view in views:
                target = arena[offset : offset + size]
                decrypt(salt + view[8:16], view[16:], aad(spi, sequence), target)
                offset += stride
                sequence += 1
        except InvalidTag:
            pass
        return sequence - first

    return open_train


# --- encryption, then a MAC over header, IV, ciphertext and high half of an ESN ---------------


def _mac_sealer(suite: EspSuite, keys: SaKeys, spi: int, *, uses_esn: bool) -> _Seal:
    encrypt, tag = _encryptor(suite, keys), _tagger(suite, keys, spi, uses_esn=uses_esn)
    iv, icv = suite.iv_length, suite.icv_length

    def seal(arena: memoryview, offset: int, shape: Slots, trailer: bytes, first: int) -> None:
        count, length, slot = shape
        for sequence in range(first, first + count):
            header = offset + FRAME_LENGTH
            start = header + ESP_HEADER
            end = start + iv + length + len(trailer)
            _put_short_head(arena, offset, slot, spi, sequence & _LOW)
            arena[end - len(trailer) : end] = trailer
            encrypt(arena[start:end], sequence)
            arena[end : end + icv] = tag(arena[header:end], sequence)
            offset += slot

    return seal


def _mac_opener(suite: EspSuite, keys: SaKeys, spi: int, *, uses_esn: bool) -> _Open:
    decrypt, tag = _decryptor(suite, keys), _tagger(suite, keys, spi, uses_esn=uses_esn)
    icv = suite.icv_length

    def open_train(views: Sequence[memoryview], first: int, arena: memoryview, place: Slots) -> int:
        offset, size, stride = place
        for count, view in enumerate(views):
            end = len(view) - icv
            if not bytes_eq(tag(view[:end], first + count), view[end:].tobytes()):
                return count
            decrypt(view[ESP_HEADER:end], arena, offset, size)
            offset += stride
        return len(views)

    return open_train


def _encryptor(suite: EspSuite, keys: SaKeys) -> _Encrypt:
    key, salt = _without_salt(suite, keys)
    match suite.encr:
        case Encr.AES_CBC:
            return _cbc_encryptor(key)
        case Encr.AES_CTR:
            return _ctr_encryptor(key, salt)
        case Encr.NULL_AUTH_AES_GMAC:
            return _write_counter_iv
        case Encr.NULL:
            return lambda _text, _sequence: None
        case _:
            raise Unsupported(f"no userspace ESP with {suite}")


def _cbc_encryptor(key: bytes) -> _Encrypt:
    """One CBC chain runs through all packets, each of which begins with a random block.

    What comes out for it is the packet's IV, known to nobody beforehand (RFC 3602 §3).
    """
    update = Cipher(AES(key), CBC(os.urandom(BLOCK))).encryptor().update
    blocks = _random_blocks()

    def encrypt(text: memoryview, _sequence: int) -> None:
        text[:BLOCK] = next(blocks)
        text[:] = update(text)  # in place it would want room for a block more

    return encrypt


def _random_blocks() -> Iterator[bytes]:
    while True:
        pool = os.urandom(64 * BLOCK)
        yield from (pool[start : start + BLOCK] for start in range(0, len(pool), BLOCK))


def _ctr_encryptor(key: bytes, salt: bytes) -> _Encrypt:
    """The IV is the sequence number: never twice under one key. RFC 3686 §3.1."""
    cipher = Cipher(AES(key), CTR(bytes(BLOCK))).encryptor()
    reset, update = cipher.reset_nonce, cipher.update_into

    def encrypt(text: memoryview, sequence: int) -> None:
        iv = _counter_iv(sequence)
        text[:_COUNTER_IV] = iv
        reset(salt + iv + _FIRST_COUNT)
        plain = text[_COUNTER_IV:]
        update(plain, plain)

    return encrypt


def _write_counter_iv(text: memoryview, sequence: int) -> None:
    text[:_COUNTER_IV] = _counter_iv(sequence)


def _decryptor(suite: EspSuite, keys: SaKeys) -> _Decrypt:
    key, salt = _without_salt(suite, keys)
    match suite.encr:
        case Encr.AES_CBC:
            return _cbc_decryptor(key)
        case Encr.AES_CTR:
            return _ctr_decryptor(key, salt)
        case Encr.NULL_AUTH_AES_GMAC | Encr.NULL:
            return _copier(suite.iv_length)
        case _:
            raise Unsupported(f"no userspace ESP with {suite}")


def _cbc_decryptor(key: bytes) -> _Decrypt:
    """The IV goes through the running chain first: the block it yields is waste."""
    update = Cipher(AES(key), CBC(bytes(BLOCK))).decryptor().update_into

    def decrypt(text: memoryview, arena: memoryview, offset: int, size: int) -> None:
        update(text, arena[offset - BLOCK : offset + size + BLOCK - 1])

    return decrypt


def _ctr_decryptor(key: bytes, salt: bytes) -> _Decrypt:
    cipher = Cipher(AES(key), CTR(bytes(BLOCK))).decryptor()
    reset, update = cipher.reset_nonce, cipher.update_into

    def decrypt(text: memoryview, arena: memoryview, offset: int, size: int) -> None:
        reset(salt + text[:_COUNTER_IV] + _FIRST_COUNT)
        update(text[_COUNTER_IV:], arena[offset : offset + size])

    return decrypt


def _copier(iv_length: int) -> _Decrypt:
    def copy(text: memoryview, arena: memoryview, offset: int, size: int) -> None:
        arena[offset : offset + size] = text[iv_length:]

    return copy


def _tagger(suite: EspSuite, keys: SaKeys, spi: int, *, uses_esn: bool) -> _Tag:
    key, icv = keys.integrity.reveal(), suite.icv_length
    if suite.encr == Encr.NULL_AUTH_AES_GMAC:
        return _gmac(*_without_salt(suite, keys), spi, uses_esn=uses_esn)
    if suite.integ == Integ.AES_XCBC_96:
        return _xcbc(key, icv, uses_esn=uses_esn)
    algorithm = _HASHES.get(suite.integ or 0)
    if algorithm is None:
        raise Unsupported(f"no userspace ESP with {suite}")
    return _hmac(HMAC(key, algorithm()), icv, uses_esn=uses_esn)


def _hmac(keyed: HMAC, icv: int, *, uses_esn: bool) -> _Tag:
    """RFC 4868 §2, RFC 2404."""

    def tag(packet: memoryview, sequence: int) -> bytes:
        mac = keyed.copy()
        mac.update(packet)
        if uses_esn:
            mac.update(_high(sequence >> 32))
        return mac.finalize()[:icv]

    return tag


def _xcbc(key: bytes, icv: int, *, uses_esn: bool) -> _Tag:
    """RFC 3566."""
    compute = Xcbc(key).compute

    def tag(packet: memoryview, sequence: int) -> bytes:
        high = _high(sequence >> 32) if uses_esn else b""
        return compute(packet.tobytes() + high)[:icv]

    return tag


def _gmac(key: bytes, salt: bytes, spi: int, *, uses_esn: bool) -> _Tag:
    """The IV is authenticated too; an ESN is whole, as in GCM's AAD. RFC 4543 §3.3."""
    encrypt = AESGCM(key).encrypt
    behind = ESP_HEADER + _COUNTER_IV

    def tag(packet: memoryview, sequence: int) -> bytes:
        aad = _long_number(spi, sequence) + packet[ESP_HEADER:] if uses_esn else packet
        return encrypt(salt + packet[ESP_HEADER:behind], b"", aad)

    return tag
