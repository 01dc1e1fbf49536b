"""Headers read without keys, and the table of whose SPIs are whose."""

from hypothesis import given
from hypothesis import strategies as st

from tests.io.wrapped import KEEPALIVE, NONE, SPI_I, SPI_R, esp, ike, marked
from tunnelwrap.daemon.headers import (
    MAX_SPIS,
    Esp,
    Ike,
    SpiTable,
    read,
    with_marker,
    without_marker,
)
from tunnelwrap.iana import ExchangeType

INFORMATIONAL = ExchangeType.INFORMATIONAL


def seen(datagram: bytes) -> Ike | Esp | None:
    return read(memoryview(datagram))


def test_an_ike_message_by_its_header() -> None:
    assert seen(marked(7)) == Ike(SPI_I, SPI_R, False, True, 7, INFORMATIONAL)
    assert seen(marked(0, response=True, protected=False, exchange=INFORMATIONAL)) == Ike(
        *(SPI_I, SPI_R, True, False, 0, INFORMATIONAL)
    )


def test_the_first_message_has_one_spi() -> None:
    first = seen(marked(0, (SPI_I, NONE)))
    assert isinstance(first, Ike)
    assert first.is_first
    assert not first.is_protected


def test_esp_by_its_spi() -> None:
    assert seen(esp(0xC0000001)) == Esp(b"\xc0\0\0\x01")


def test_the_rest_is_nothing() -> None:
    for datagram in (b"", KEEPALIVE, b"1234567", bytes(4), bytes(40), ike(1)[:3], marked(1)[:-1]):
        assert seen(datagram) is None


@given(
    st.one_of(st.binary(max_size=64), st.binary(max_size=64).map(lambda octets: bytes(4) + octets))
)
def test_whatever_comes_is_read_or_nothing(datagram: bytes) -> None:
    found = seen(datagram)

    assert found is None or found.key in datagram


def test_the_marker_goes_and_comes_back() -> None:
    assert with_marker(ike(3)) == marked(3)
    assert without_marker(marked(3)) == ike(3)


def test_the_table_knows_who_was_learnt_last() -> None:
    table: SpiTable[str] = SpiTable()
    one, two = Esp(b"0001"), Ike(SPI_I, SPI_R, False, True, 1, INFORMATIONAL)
    assert table.find(one) is None
    table.learn("a", one)
    table.learn("a", two)
    table.learn("b", one)

    assert (table.find(one), table.find(two)) == ("b", "a")
    table.forget("a")
    table.forget("nobody")
    assert (table.find(one), table.find(two)) == ("b", None)


def test_the_table_keeps_the_last_of_each_owner() -> None:
    table: SpiTable[str] = SpiTable()
    table.learn("other", Esp(b"othe"))
    keys = [Esp(number.to_bytes(4, "big")) for number in range(MAX_SPIS + 2)]
    for key in keys:
        table.learn("one", key)
        table.learn("one", keys[-1])

    assert [table.find(key) for key in keys[:3]] == [None, None, "one"]
    assert table.find(Esp(b"othe")) == "other"
