"""Mutated chains of payloads whose lengths are true, so that what is inside gets looked at.

For the inputs of ``tests.fuzz.stands``: datagrams in clear, and what the peer seals. The other half
of the inputs is mutated octet by octet.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.fuzz.mutation import mutated
from tests.fuzz.stands import FRAGMENT, Way
from tunnelwrap.wire.message import HEADER_LENGTH

_NEXT_PAYLOAD, _LENGTH = 16, 24  # offsets in the IKE header
_NEVER_NEXT = (46, 53)  # what follows SK and SKF is ciphertext
_PLAUSIBLE = (*range(33, 49), 0, 49, 54, 200)  # types of payloads


class _Payload(NamedTuple):
    type: int
    flags: int
    body: bytes


Chain = list[_Payload]


def mutated_messages(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One input."""
    data = rng.choice(seeds)
    at = _place_of_chain(data)
    if at is None or rng.randrange(2):
        return mutated(rng, seeds)
    chain, other = _chain_of(data, at), _any_chain(rng, seeds)
    for _ in range(rng.choice((1, 1, 2, 3))):
        chain = rng.choice(_CHANGES)(rng, chain, other)
    return _with_chain(data, at, chain)


def _place_of_chain(data: bytes) -> int | None:
    """Where the chain of an input begins; None where it has none that can be seen."""
    if len(data) < 3:
        return None
    if not data[0] & Way.RAW:
        return None if data[1] & FRAGMENT else 3
    at = 1 + HEADER_LENGTH
    return at if len(data) >= at and data[1 + _NEXT_PAYLOAD] not in _NEVER_NEXT else None


def _place_of_first(at: int) -> int:
    return 2 if at == 3 else 1 + _NEXT_PAYLOAD


def _chain_of(data: bytes, at: int) -> Chain:
    """The payloads as far as their lengths are true."""
    chain, kind = [], data[_place_of_first(at)]
    while kind and at + 4 <= len(data):
        end = at + int.from_bytes(data[at + 2 : at + 4], "big")
        if not at + 4 <= end <= len(data):
            break
        chain.append(_Payload(kind, data[at + 1], data[at + 4 : end]))
        kind, at = data[at], end
    return chain


def _with_chain(data: bytes, at: int, chain: Chain) -> bytes:
    kinds = [*(payload.type for payload in chain), 0]
    head = bytearray(data[:at])
    head[_place_of_first(at)] = kinds[0]
    octets = b"".join(
        bytes([following, one.flags]) + (4 + len(one.body)).to_bytes(2, "big") + one.body
        for one, following in zip(chain, kinds[1:], strict=True)
    )
    if data[0] & Way.RAW:
        head[1 + _LENGTH : at] = (HEADER_LENGTH + len(octets)).to_bytes(4, "big")
    return bytes(head) + octets


def _any_chain(rng: random.Random, seeds: Sequence[bytes]) -> Chain:
    data = rng.choice(seeds)
    at = _place_of_chain(data)
    return [] if at is None else _chain_of(data, at)


def _place(rng: random.Random, chain: Chain) -> int:
    return rng.randrange(len(chain) + 1)


def _drop(rng: random.Random, chain: Chain, _: Chain) -> Chain:
    at = _place(rng, chain)
    return chain[:at] + chain[at + 1 :]


def _borrow(rng: random.Random, chain: Chain, other: Chain) -> Chain:
    """A payload from elsewhere, or one of its own once more."""
    at, found = _place(rng, chain), rng.choice(other or chain or [_Payload(43, 0, b"")])
    return [*chain[:at], found, *chain[at:]]


def _replace(rng: random.Random, chain: Chain, other: Chain) -> Chain:
    """The body of another payload of the same type, or the whole other chain."""
    bodies = {payload.type: payload for payload in other}
    return [bodies.get(payload.type, payload) for payload in chain] if rng.randrange(3) else other


def _shuffle(rng: random.Random, chain: Chain, _: Chain) -> Chain:
    return rng.sample(chain, len(chain))


def _alter(rng: random.Random, chain: Chain, other: Chain) -> Chain:
    """One body, octet by octet."""
    if not chain:
        return other
    at = rng.randrange(len(chain))
    one = chain[at]
    bodies = [one.body, *(payload.body for payload in other if payload.type == one.type)]
    changed = _Payload(one.type, one.flags, mutated(rng, bodies)[:0xFFF0])
    return [*chain[:at], changed, *chain[at + 1 :]]


def _retype(rng: random.Random, chain: Chain, other: Chain) -> Chain:
    """Another type, or critical."""
    if not chain:
        return other
    at = rng.randrange(len(chain))
    one, kind = chain[at], rng.choice(_PLAUSIBLE)
    changed = _Payload(kind, one.flags, one.body) if kind else _Payload(one.type, 0x80, one.body)
    return [*chain[:at], changed, *chain[at + 1 :]]


_CHANGES: tuple[Callable[[random.Random, Chain, Chain], Chain], ...] = (
    _drop,
    _borrow,
    _replace,
    _shuffle,
    _alter,
    _alter,
    _alter,
    _retype,
)
