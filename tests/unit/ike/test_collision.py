"""Whose SA is redundant after a simultaneous rekey."""

import itertools

import pytest

from tunnelwrap.ike.collision import Nonces, ours_is_redundant

ORDERS = [*itertools.permutations([b"\x01", b"\x02", b"\x03", b"\x04"])]


@pytest.mark.rfc("7296", "2.8.1")
@pytest.mark.parametrize("order", ORDERS)
def test_the_lowest_of_four_nonces_decides_and_both_sides_agree(order: tuple[bytes, ...]) -> None:
    a, b = Nonces(order[0], order[1]), Nonces(order[2], order[3])
    assert ours_is_redundant(a, b) is (b"\x01" in order[:2])
    assert ours_is_redundant(a, b) is not ours_is_redundant(b, a)


@pytest.mark.rfc("7296", "2.8.1")
def test_octets_are_compared_from_the_first_and_a_prefix_is_lower() -> None:
    high = b"\xff" * 32
    assert ours_is_redundant(Nonces(b"\x01\xff", high), Nonces(b"\x02\x00", high))
    assert ours_is_redundant(Nonces(b"\x01", high), Nonces(b"\x01\x00", high))
