"""Identifiers that an Endpoint gives out."""

from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from tunnelwrap.ike.context import FIRST_CPI, FIRST_SPI, LAST_CPI, MOST_CPIS, Context
from tunnelwrap.ike.outputs import ReleaseSpi
from tunnelwrap.ike.policy import Limits
from tunnelwrap.path import Carrier, Path, SocketAddress

PATH = Path(
    SocketAddress(ip_address("192.0.2.1"), 4500),
    SocketAddress(ip_address("192.0.2.2"), 4500),
    Carrier.UDP,
)


def context_of(
    *octets: bytes, reserve_spi: Callable[[int, Path], bool] = lambda _spi, _path: True
) -> Context:
    """A context whose random octets are these, one after another."""
    left = list(octets)

    def draw(length: int) -> bytes:
        drawn = left.pop(0)
        assert len(drawn) == length
        return drawn

    return Context(
        *(draw, lambda: datetime.now(UTC), Limits()),
        forces_encapsulation=True,
        reserve_spi=reserve_spi,
    )


@pytest.mark.rfc("9329", "3.2")
@pytest.mark.rfc("4303", "2.1")
def test_f7_an_esp_spi_is_neither_the_marker_nor_reserved() -> None:
    spi = FIRST_SPI.to_bytes(4, "big")
    context = context_of(bytes(4), b"\0\0\0\xff", spi)
    assert context.allocate_spi(PATH) == FIRST_SPI


def test_an_esp_spi_has_one_owner_until_it_is_released() -> None:
    context = context_of(b"SPI1", b"SPI1", b"SPI2", b"SPI1")
    first = context.allocate_spi(PATH)
    assert context.allocate_spi(PATH) != first
    context.release_spi(first)
    assert context.allocate_spi(PATH) == first


def test_an_esp_spi_that_another_program_of_this_host_has_is_not_taken() -> None:
    asked: list[tuple[int, Path]] = []

    def is_free(spi: int, path: Path) -> bool:
        asked.append((spi, path))
        return len(asked) > 1

    context = context_of(b"SPI1", b"SPI2", reserve_spi=is_free)

    assert context.allocate_spi(PATH) == int.from_bytes(b"SPI2", "big")
    assert [path for _, path in asked] == [PATH, PATH]


def test_an_esp_spi_of_which_nothing_came_is_given_back_to_the_host() -> None:
    context = context_of(b"SPI1", b"SPI1")
    spi = context.allocate_spi(PATH)

    context.withdraw_spi(spi)

    assert context.drain() == [ReleaseSpi(spi)]
    assert context.allocate_spi(PATH) == spi


@pytest.mark.rfc("3173", "3.3")
def test_a_cpi_is_one_of_those_that_are_negotiated() -> None:
    first, last = FIRST_CPI.to_bytes(2, "big"), LAST_CPI.to_bytes(2, "big")
    context = context_of(b"\0\xff", first, b"\xf0\0", last)
    assert [context.allocate_cpi(1), context.allocate_cpi(2)] == [FIRST_CPI, LAST_CPI]


def test_a_cpi_has_one_owner_until_its_spi_is_released() -> None:
    context = context_of(b"C1", b"C1", b"C2", b"C1")
    first = context.allocate_cpi(1)
    assert context.allocate_cpi(2) != first
    context.release_spi(1)
    assert context.allocate_cpi(3) == first


def test_there_are_not_cpis_for_everybody() -> None:
    numbers = iter(range(FIRST_CPI, LAST_CPI))
    context = context_of(*(next(numbers).to_bytes(2, "big") for _ in range(MOST_CPIS)))
    for spi in range(MOST_CPIS):
        assert context.allocate_cpi(spi) is not None
    assert context.allocate_cpi(MOST_CPIS) is None


@pytest.mark.rfc("7296", "3.1")
def test_an_ike_spi_is_not_zero() -> None:
    assert context_of(bytes(8), b"eight888").new_ike_spi() == b"eight888"


@pytest.mark.parametrize(
    ("drawn", "seconds"), [(bytes(4), 100.0), (b"\x80\0\0\0", 95.0), (b"\xff" * 4, 90.0)]
)
def test_jitter_only_shortens(drawn: bytes, seconds: float) -> None:
    assert context_of(drawn).jitter(100.0, 0.1) == pytest.approx(seconds)
