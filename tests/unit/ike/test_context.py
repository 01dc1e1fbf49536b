"""Identifiers that an Endpoint gives out."""

from datetime import UTC, datetime

import pytest

from tunnelwrap.ike.context import FIRST_SPI, Context
from tunnelwrap.ike.policy import Limits


def context_of(*octets: bytes) -> Context:
    """A context whose random octets are these, one after another."""
    left = list(octets)

    def draw(length: int) -> bytes:
        drawn = left.pop(0)
        assert len(drawn) == length
        return drawn

    return Context(draw, lambda: datetime.now(UTC), Limits(), forces_encapsulation=True)


@pytest.mark.rfc("9329", "3.2")
@pytest.mark.rfc("4303", "2.1")
def test_f7_an_esp_spi_is_neither_the_marker_nor_reserved() -> None:
    spi = FIRST_SPI.to_bytes(4, "big")
    context = context_of(bytes(4), b"\0\0\0\xff", spi)
    assert context.allocate_spi() == FIRST_SPI


def test_an_esp_spi_has_one_owner_until_it_is_released() -> None:
    context = context_of(b"SPI1", b"SPI1", b"SPI2", b"SPI1")
    first = context.allocate_spi()
    assert context.allocate_spi() != first
    context.release_spi(first)
    assert context.allocate_spi() == first


@pytest.mark.rfc("7296", "3.1")
def test_an_ike_spi_is_not_zero() -> None:
    assert context_of(bytes(8), b"eight888").new_ike_spi() == b"eight888"


@pytest.mark.parametrize(
    ("drawn", "seconds"), [(bytes(4), 100.0), (b"\x80\0\0\0", 95.0), (b"\xff" * 4, 90.0)]
)
def test_jitter_only_shortens(drawn: bytes, seconds: float) -> None:
    assert context_of(drawn).jitter(100.0, 0.1) == pytest.approx(seconds)
