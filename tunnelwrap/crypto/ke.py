"""Key exchange methods behind one shape: the initiator's public value, the responder's answer.

A Diffie-Hellman group and a KEM both fit: what differs is a row of the table at the end.
MODP groups: RFC 3526; ECP groups: RFC 5903; Curve25519 and Curve448: RFC 8031;
ML-KEM: FIPS 203 and draft-ietf-ipsecme-ikev2-mlkem.
Private values come from the caller's source of randomness and serve one exchange only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
    MLKEM1024PrivateKey,
    MLKEM1024PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey, X448PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.errors import Malformed, UsageError
from tunnelwrap.iana import KeMethod, name_of

Random = Callable[[int], bytes]
"""A source of randomness: that many unpredictable octets."""


class LocalKey(Protocol):
    """Our half of a key exchange, between our public value and the peer's."""

    @property
    def method(self) -> int:
        """The key exchange method."""

    @property
    def public(self) -> bytes:
        """What goes into our KE payload."""

    def shared(self, peer_public: bytes) -> Secret:
        """The shared secret.

        Raises:
            Malformed: the peer's value is not a valid public value of this method.
        """


def supported_ke(method: int) -> bool:
    """Whether this key exchange method can be computed here."""
    return method in _METHODS


def initiate(method: int, random: Random) -> LocalKey:
    """Begin a key exchange with a fresh private value.

    Raises:
        UsageError: the method is not supported.
    """
    return _method(method).initiate(random)


def respond(method: int, peer_public: bytes, random: Random) -> tuple[bytes, Secret]:
    """Answer the initiator's public value: our own, and the shared secret.

    Raises:
        Malformed: the peer's value is not a valid public value of this method.
        UsageError: the method is not supported.
    """
    return _method(method).respond(peer_public, random)


class _Method(Protocol):
    """One row of the table."""

    def initiate(self, random: Random) -> LocalKey: ...

    def respond(self, peer_public: bytes, random: Random) -> tuple[bytes, Secret]: ...


@dataclass(frozen=True, slots=True)
class _DiffieHellman:
    """A method whose two sides do the same."""

    initiate: Callable[[Random], LocalKey]

    def respond(self, peer_public: bytes, random: Random) -> tuple[bytes, Secret]:
        key = self.initiate(random)
        return key.public, key.shared(peer_public)


def _method(method: int) -> _Method:
    if method not in _METHODS:
        raise UsageError(f"key exchange method {method} is not supported")
    return _METHODS[method]


def _check_length(method: int, peer_public: bytes, expected: int) -> None:
    if len(peer_public) != expected:
        name = name_of(KeMethod, method)
        raise Malformed(f"{name} public value of {len(peer_public)} octets, expected {expected}")


# --- MODP -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ModpGroup:
    """A group of RFC 3526: safe prime, generator 2."""

    method: KeMethod
    bits: int
    constant: int  # what RFC 3526 adds to the digits of pi
    exponent_octets: int  # not below the sizes of RFC 7919 §5.2

    @property
    def length(self) -> int:
        return self.bits // 8

    def initiate(self, random: Random) -> LocalKey:
        drawn = int.from_bytes(random(self.exponent_octets), "big")
        return _ModpKey(self, drawn | 1 << (8 * self.exponent_octets - 1))


class _ModpKey:
    """A private exponent.

    The library's finite field groups are deprecated, hence the power is ours. Its time depends
    on the exponent, which is why an exponent serves a single exchange.
    """

    __slots__ = ("_exponent", "_group", "_prime", "method", "public")

    def __init__(self, group: _ModpGroup, exponent: int) -> None:
        self._group = group
        self._prime = _prime(group.bits, group.constant)
        self._exponent = exponent
        self.method: int = group.method
        self.public = self._power(2)

    def shared(self, peer_public: bytes) -> Secret:
        _check_length(self._group.method, peer_public, self._group.length)
        value = int.from_bytes(peer_public, "big")
        if not 1 < value < self._prime - 1:  # RFC 6989 §2.1
            raise Malformed(f"{self._group.method.name} public value is 0, 1, p-1 or above")
        return Secret(self._power(value))

    def _power(self, base: int) -> bytes:
        power: int = pow(base, self._exponent, self._prime)
        return power.to_bytes(self._group.length, "big")


@cache
def _prime(bits: int, constant: int) -> int:
    """The prime p = 2^n - 2^(n-64) - 1 + 2^64 * ([2^(n-130) pi] + constant). RFC 3526."""
    middle = _floor_of_pi(bits - 130) + constant
    return (1 << bits) - (1 << (bits - 64)) - 1 + (middle << 64)


def _floor_of_pi(bits: int) -> int:
    """[2^bits * pi] by Machin's formula: pi = 16 arctan(1/5) - 4 arctan(1/239)."""
    guard = 64
    one = 1 << (bits + guard)
    return (16 * _arctan_of_inverse(5, one) - 4 * _arctan_of_inverse(239, one)) >> guard


def _arctan_of_inverse(x: int, one: int) -> int:
    """Arctan(1/x) in fixed point, where ``one`` is 1."""
    power, total, divisor = one // x, 0, 1
    while power:
        total += power // divisor if divisor % 4 == 1 else -(power // divisor)
        power //= x * x
        divisor += 2
    return total


# --- ECP ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _EcpGroup:
    """A group of RFC 5903: a public value is x | y, the shared secret is x (§7)."""

    method: KeMethod
    curve: ec.EllipticCurve

    @property
    def field_length(self) -> int:
        return (self.curve.key_size + 7) // 8

    def initiate(self, random: Random) -> LocalKey:
        # FIPS 186-5 A.2.1: 64 bits more than the order has make the bias negligible
        drawn = int.from_bytes(random(self.field_length + 8), "big")
        scalar = drawn % (self.curve.group_order - 1) + 1
        return _EcpKey(self, ec.derive_private_key(scalar, self.curve))


class _EcpKey:
    """A private scalar on a curve of RFC 5903."""

    __slots__ = ("_group", "_key", "method")

    def __init__(self, group: _EcpGroup, key: ec.EllipticCurvePrivateKey) -> None:
        self.method: int = group.method
        self._group = group
        self._key = key

    @property
    def public(self) -> bytes:
        numbers, length = self._key.public_key().public_numbers(), self._group.field_length
        return numbers.x.to_bytes(length, "big") + numbers.y.to_bytes(length, "big")

    def shared(self, peer_public: bytes) -> Secret:
        group = self._group
        _check_length(group.method, peer_public, 2 * group.field_length)
        try:
            point = ec.EllipticCurvePublicKey.from_encoded_point(group.curve, b"\4" + peer_public)
        except ValueError as error:
            raise Malformed(f"{group.method.name} public value is not on the curve") from error
        return Secret(self._key.exchange(ec.ECDH(), point))


# --- Curve25519 and Curve448 ----------------------------------------------------------------


class _Curve25519Key:
    """RFC 8031 with X25519 of RFC 7748."""

    __slots__ = ("_key", "method")

    def __init__(self, random: Random) -> None:
        self.method: int = KeMethod.CURVE25519
        self._key = X25519PrivateKey.from_private_bytes(random(32))

    @property
    def public(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def shared(self, peer_public: bytes) -> Secret:
        _check_length(KeMethod.CURVE25519, peer_public, 32)
        try:
            return Secret(self._key.exchange(X25519PublicKey.from_public_bytes(peer_public)))
        except ValueError as error:  # RFC 8031 §5: the result must not be all zero
            raise Malformed("CURVE25519 public value of small order") from error


class _Curve448Key:
    """RFC 8031 with X448 of RFC 7748."""

    __slots__ = ("_key", "method")

    def __init__(self, random: Random) -> None:
        self.method: int = KeMethod.CURVE448
        self._key = X448PrivateKey.from_private_bytes(random(56))

    @property
    def public(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def shared(self, peer_public: bytes) -> Secret:
        _check_length(KeMethod.CURVE448, peer_public, 56)
        try:
            return Secret(self._key.exchange(X448PublicKey.from_public_bytes(peer_public)))
        except ValueError as error:  # RFC 8031 §5: the result must not be all zero
            raise Malformed("CURVE448 public value of small order") from error


# --- ML-KEM ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _MlKem:
    """A parameter set of FIPS 203; lengths in octets.

    The initiator's public value is an encapsulation key, the responder's a ciphertext.
    """

    method: KeMethod
    private: type[MLKEM768PrivateKey | MLKEM1024PrivateKey]
    public: type[MLKEM768PublicKey | MLKEM1024PublicKey]
    key_length: int
    ciphertext_length: int

    def initiate(self, random: Random) -> LocalKey:
        seed = random(_ML_KEM_SEED)
        return _MlKemKey(self, self.private.from_seed_bytes(seed))

    def respond(self, peer_public: bytes, random: Random) -> tuple[bytes, Secret]:
        del random  # the library draws the message m by itself and takes none from outside
        _check_length(self.method, peer_public, self.key_length)
        try:
            key = self.public.from_public_bytes(peer_public)
        except ValueError as error:  # FIPS 203 §7.2: the modulus check
            raise Malformed(f"{self.method.name} encapsulation key is out of range") from error
        shared, ciphertext = key.encapsulate()
        return ciphertext, Secret(shared)


_ML_KEM_SEED: Final = 64  # FIPS 203 §7.1: d and z


class _MlKemKey:
    """A decapsulation key."""

    __slots__ = ("_key", "_parameters", "method")

    def __init__(self, parameters: _MlKem, key: MLKEM768PrivateKey | MLKEM1024PrivateKey) -> None:
        self.method: int = parameters.method
        self._parameters = parameters
        self._key = key

    @property
    def public(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def shared(self, peer_public: bytes) -> Secret:
        """A ciphertext for another key gives another secret, not an error. FIPS 203 §6.3."""
        _check_length(self.method, peer_public, self._parameters.ciphertext_length)
        return Secret(self._key.decapsulate(peer_public))


# --- all ------------------------------------------------------------------------------------

# RFC 8247 §2.4: groups 1 and 22 MUST NOT be there, 2, 5, 23 and 24 SHOULD NOT, and none is.
# ML-KEM-512 (35) is absent because the library does not compute it.
_METHODS: Final[dict[int, _Method]] = {
    KeMethod.CURVE25519: _DiffieHellman(_Curve25519Key),
    KeMethod.CURVE448: _DiffieHellman(_Curve448Key),
    KeMethod.ML_KEM_768: _MlKem(
        KeMethod.ML_KEM_768, MLKEM768PrivateKey, MLKEM768PublicKey, 1184, 1088
    ),
    KeMethod.ML_KEM_1024: _MlKem(
        KeMethod.ML_KEM_1024, MLKEM1024PrivateKey, MLKEM1024PublicKey, 1568, 1568
    ),
    **{
        group.method: _DiffieHellman(group.initiate)
        for group in (
            _ModpGroup(KeMethod.MODP_2048, 2048, 124476, 32),
            _ModpGroup(KeMethod.MODP_3072, 3072, 1690314, 36),
            _ModpGroup(KeMethod.MODP_4096, 4096, 240904, 44),
            _EcpGroup(KeMethod.ECP_256, ec.SECP256R1()),
            _EcpGroup(KeMethod.ECP_384, ec.SECP384R1()),
            _EcpGroup(KeMethod.ECP_521, ec.SECP521R1()),
        )
    },
}
