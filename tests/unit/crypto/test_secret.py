"""Secret: blank when printed, equal by octets, not hashable."""

import pytest

from tunnelwrap.crypto.secret import Secret


def test_prints_its_length_only() -> None:
    secret = Secret(b"correct horse")
    for text in (repr(secret), str(secret), f"{secret}", repr([secret])):
        assert "Secret(13 octets)" in text
        assert "horse" not in text
        assert b"correct horse".hex() not in text


def test_reveals_its_octets() -> None:
    assert Secret(b"abc").reveal() == b"abc"
    assert len(Secret(b"abc")) == 3


def test_is_a_copy() -> None:
    octets = bytearray(b"abc")
    secret = Secret(octets)
    octets[0] = 0
    assert secret.reveal() == b"abc"


@pytest.mark.parametrize(
    ("other", "is_equal"),
    [(Secret(b"abc"), True), (Secret(b"abd"), False), (Secret(b"ab"), False), (b"abc", False)],
)
def test_equality(other: object, is_equal: bool) -> None:  # noqa: FBT001  # a column of the table
    assert (Secret(b"abc") == other) is is_equal


def test_cannot_be_hashed() -> None:
    with pytest.raises(TypeError):
        hash(Secret(b"abc"))
