"""Mutated inputs without coverage guidance: whole, truncated, bit-flipped, spliced, and noise."""

import random
from collections.abc import Callable, Sequence

Mutation = Callable[[random.Random, Sequence[bytes]], bytes]


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One input; one in four is changed twice."""
    once = rng.choice(_MUTATIONS)(rng, seeds)
    return once if rng.randrange(4) else rng.choice(_MUTATIONS)(rng, (once, rng.choice(seeds)))


def _whole(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    return rng.choice(seeds)


def _truncated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    whole = rng.choice(seeds)
    return whole[: rng.randrange(len(whole) + 1)]


def _flipped(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    octets = bytearray(rng.choice(seeds) or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        octets[rng.randrange(len(octets))] ^= 1 << rng.randrange(8)
    return bytes(octets)


def _overwritten(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A field at its limits."""
    octets = bytearray(rng.choice(seeds) + b"\0")
    at = rng.randrange(len(octets))
    value = rng.choice((b"\0", b"\xff", b"\0\0", b"\xff\xff", b"\0\1", b"\0\4", b"\x80", b"\x7f"))
    octets[at : at + len(value)] = value
    return bytes(octets)


def _spliced(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    head, tail = rng.choice(seeds), rng.choice(seeds)
    return head[: rng.randrange(len(head) + 1)] + tail[rng.randrange(len(tail) + 1) :]


def _repeated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    whole = rng.choice(seeds)
    start = rng.randrange(len(whole) + 1)
    return whole + whole[start:] * rng.randrange(1, 20)


def _noise(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    return rng.randbytes(rng.randrange(min(len(rng.choice(seeds)), 64) + 1))


_MUTATIONS: tuple[Mutation, ...] = (
    _whole,
    _truncated,
    _flipped,
    _flipped,
    _overwritten,
    _overwritten,
    _spliced,
    _repeated,
    _noise,
)
