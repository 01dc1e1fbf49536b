"""What is sealed under a key that changes can be opened for a while, and then by nobody."""

import random

import pytest

from tunnelwrap.crypto.rotating import RotatingKey
from tunnelwrap.errors import IntegrityError

DAY = 86400.0


def key() -> RotatingKey:
    return RotatingKey(random.Random(1).randbytes, DAY)


def test_what_is_sealed_can_be_opened() -> None:
    it = key()
    sealed = it.seal(b"state", 5.0)
    assert b"state" not in sealed
    assert it.open(sealed, 5.0) == b"state"
    assert it.seal(b"state", 5.0) != sealed


@pytest.mark.rfc("5723", "9.5")
def test_it_opens_for_one_more_period() -> None:
    it = key()
    sealed = it.seal(b"state", 0.0)
    assert it.open(sealed, DAY + 1.0) == b"state"
    it.seal(b"other", DAY + 2.0)
    assert it.open(sealed, 2 * DAY) == b"state"
    with pytest.raises(IntegrityError, match="not ours"):
        it.open(sealed, 2 * DAY + 2.0)


def test_after_a_long_silence_nothing_opens() -> None:
    it = key()
    sealed = it.seal(b"state", 0.0)
    with pytest.raises(IntegrityError):
        it.open(sealed, 10 * DAY)


@pytest.mark.parametrize("length", range(45))
def test_what_is_cut_does_not_open(length: int) -> None:
    it = key()
    sealed = it.seal(b"some state", 0.0)
    assert len(sealed) > 41
    with pytest.raises(IntegrityError):
        it.open(sealed[: min(length, len(sealed) - 1)], 0.0)


def test_what_is_changed_does_not_open() -> None:
    it = key()
    sealed = it.seal(b"state", 0.0)
    for position in range(len(sealed)):
        spoiled = bytearray(sealed)
        spoiled[position] ^= 1
        with pytest.raises(IntegrityError):
            it.open(bytes(spoiled), 0.0)
