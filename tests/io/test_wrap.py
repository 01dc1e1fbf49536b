"""The wrapper on loopback: a daemon and a gateway of plain sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.io.samples import PATIENCE_S, until
from tests.io.wrapped import (
    KEEPALIVE,
    NONE,
    OTHER_I,
    OTHER_R,
    SPI_I,
    SPI_R,
    Stream,
    Udp,
    esp,
    ike,
    marked,
)
from tunnelwrap.config.load import load_wrap
from tunnelwrap.daemon.control import ask
from tunnelwrap.daemon.wrap import MAX_PASSAGES, Wrap
from tunnelwrap.errors import TransportError
from tunnelwrap.iana import ExchangeType

INIT = ike(0, (SPI_I, NONE))
ANSWER = ike(0, response=True)
NEVER_S = 0.3
CREATE_CHILD_SA, INFORMATIONAL = ExchangeType.CREATE_CHILD_SA, ExchangeType.INFORMATIONAL


class Bench:
    """A running wrapper, the daemon before it, and the gateway behind it."""

    def __init__(self, directory: Path, carriers: str) -> None:
        self.daemon_ike, self.daemon_nat = Udp(), Udp()
        self.gateway_ike, self.gateway_nat = Udp(), Udp()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(PATIENCE_S)
        self._streams: list[socket.socket] = []
        self.ike_port, self.nat_port = _free_ports()
        self.control = directory / "control"
        file = directory / "wrap.toml"
        file.write_text(
            "[wrap]\n"
            'gateway = "127.0.0.1"\n'
            f"carriers = {carriers}\n"
            f"udp_ike_port = {self.gateway_ike.port}\n"
            f"udp_nat_port = {self.gateway_nat.port}\n"
            f"tcp_port = {self._listening.getsockname()[1]}\n"
            f"ike_port = {self.ike_port}\n"
            f"nat_port = {self.nat_port}\n"
            'control_socket = "control"\n'
        )
        self.wrap = Wrap(load_wrap(file), "wrap", None)

    def say(self, message: bytes) -> None:
        """The daemon sends a bare message from port 500."""
        self.daemon_ike.send(message, ("127.0.0.2", self.ike_port))

    def say_marked(self, *datagrams: bytes) -> None:
        """The daemon sends from port 4500."""
        for datagram in datagrams:
            self.daemon_nat.send(datagram, ("127.0.0.2", self.nat_port))

    async def stream(self) -> Stream:
        """The next stream that the wrapper opens."""
        sock, _ = await asyncio.to_thread(self._listening.accept)
        self._streams.append(sock)
        return Stream(sock, is_originator=False)

    async def by_tcp(self) -> Stream:
        """An IKE SA by a stream, its first exchange done."""
        self.say(INIT)
        stream = await self.stream()
        assert await stream.receive() == bytes(4) + INIT
        stream.send(bytes(4) + ANSWER)
        assert await self.daemon_ike.receive() == (ANSWER, ("127.0.0.2", self.ike_port))
        self.say_marked(marked(1))
        assert await stream.receive() == marked(1)
        stream.send(marked(1, response=True))
        assert await self.daemon_nat.receive() == (
            marked(1, response=True),
            ("127.0.0.2", self.nat_port),
        )
        return stream

    async def status(self) -> dict[str, object]:
        return await asyncio.to_thread(ask, self.control, "status", PATIENCE_S)

    def close(self) -> None:
        for end in (self.daemon_ike, self.daemon_nat, self.gateway_ike, self.gateway_nat):
            end.sock.close()
        for sock in (self._listening, *self._streams):
            sock.close()


def _free_ports() -> tuple[int, int]:
    ends = Udp("127.0.0.2"), Udp("127.0.0.2")
    ports = ends[0].port, ends[1].port
    for end in ends:
        end.sock.close()
    return ports


@asynccontextmanager
async def bench(directory: Path, carriers: str = '["udp", "tcp"]') -> AsyncIterator[Bench]:
    """All of it, until the end of the block."""
    made = Bench(directory, carriers)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(made.wrap.run())
        try:
            await until(made.control.exists)
            yield made
        finally:
            made.wrap.stop()
            made.close()


# --- over UDP --------------------------------------------------------------------------------


async def test_where_udp_is_answered_all_goes_by_udp(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        both.say(INIT)
        octets, bare_from = await both.gateway_ike.receive()
        assert octets == INIT
        both.gateway_ike.send(ANSWER, bare_from)
        assert await both.daemon_ike.receive() == (ANSWER, ("127.0.0.2", both.ike_port))

        both.say_marked(marked(1))
        octets, at = await both.gateway_nat.receive()
        assert octets == marked(1)
        both.gateway_nat.send(marked(1, response=True), at)
        assert (await both.daemon_nat.receive())[0] == marked(1, response=True)

        both.say_marked(esp(0x2222), KEEPALIVE)
        got = {await both.gateway_nat.receive() for _ in range(2)}
        assert got == {(esp(0x2222), at), (KEEPALIVE, at)}
        both.gateway_nat.send(KEEPALIVE, at)
        both.gateway_nat.send(esp(0x1111), at)
        assert (await both.daemon_nat.receive())[0] == esp(0x1111)
        [way] = (await both.status())["ways"]
        assert way["carrier"] == "udp"


async def test_a_keepalive_keeps_the_ways_of_its_own_daemon(tmp_path: Path) -> None:
    """Else one octet from a host on the LAN would be one for each way of all others."""
    other = Udp("127.0.0.9")
    async with bench(tmp_path, '["udp"]') as both:
        both.say_marked(bytes(4) + INIT)
        _, at = await both.gateway_nat.receive()
        both.gateway_nat.send(bytes(4) + ANSWER, at)
        assert (await both.daemon_nat.receive())[0] == bytes(4) + ANSWER

        other.send(KEEPALIVE, ("127.0.0.2", both.nat_port))
        both.say_marked(esp(0x2222))
        assert await both.gateway_nat.receive() == (esp(0x2222), at)
    other.sock.close()


async def test_a_daemon_that_begins_on_port_4500(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        both.say_marked(bytes(4) + INIT)
        octets, at = await both.gateway_nat.receive()
        assert octets == bytes(4) + INIT
        both.gateway_nat.send(bytes(4) + ANSWER, at)
        assert (await both.daemon_nat.receive())[0] == bytes(4) + ANSWER


@pytest.mark.rfc("9329", "5.1")
async def test_udp_is_asked_twice_before_tcp(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        both.say(INIT)
        await both.stream()
        assert (await both.gateway_ike.receive())[0] == INIT
        assert (await both.gateway_ike.receive())[0] == INIT
        assert both.gateway_ike.has_nothing()


# --- by a stream -----------------------------------------------------------------------------


async def test_where_udp_is_silent_all_goes_by_a_stream(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        stream = await both.by_tcp()

        both.say_marked(KEEPALIVE, esp(0x2222))
        stream.send(KEEPALIVE, esp(0x1111), marked(0))

        assert await stream.receive() == esp(0x2222)
        got = {(await both.daemon_nat.receive())[0] for _ in range(2)}
        assert got == {esp(0x1111), marked(0)}


async def test_a_late_answer_by_another_carrier_is_not_heard(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        both.say(INIT)
        _, at = await both.gateway_ike.receive()
        stream = await both.stream()
        stream.send(bytes(4) + ANSWER)
        await both.daemon_ike.receive()

        both.gateway_ike.send(ike(0, (SPI_I, OTHER_R), response=True), at)
        await asyncio.sleep(NEVER_S)
        assert both.daemon_ike.has_nothing()


@pytest.mark.rfc("9329", "6.2")
async def test_a_stream_that_breaks_is_opened_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        stream = await both.by_tcp()
        both.say_marked(marked(2))
        assert await stream.receive() == marked(2)
        stream.sock.close()

        again = await both.stream()

        assert await again.receive() == marked(2)
        again.send(marked(2, response=True), esp(0x1111))
        got = {(await both.daemon_nat.receive())[0] for _ in range(2)}
        assert got == {marked(2, response=True), esp(0x1111)}
        both.say_marked(esp(0x2222))
        assert await again.receive() == esp(0x2222)


async def test_all_fragments_of_a_request_go_once_more(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        stream = await both.by_tcp()
        pieces = [marked(2, body=bytes([number])) for number in range(3)]
        both.say_marked(*pieces, pieces[0])
        assert [await stream.receive() for _ in range(4)] == [*pieces, pieces[0]]
        stream.sock.close()

        again = await both.stream()
        assert [await again.receive() for _ in range(3)] == pieces


async def test_a_cookie_is_another_request(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        both.say(INIT)
        stream = await both.stream()
        await stream.receive()
        stream.send(marked(0, (SPI_I, NONE), response=True))
        await both.daemon_ike.receive()
        both.say(ike(0, (SPI_I, NONE), body=b"cookie"))
        assert await stream.receive() == marked(0, (SPI_I, NONE), body=b"cookie")
        stream.sock.close()

        again = await both.stream()
        assert await again.receive() == marked(0, (SPI_I, NONE), body=b"cookie")


async def test_the_spis_of_a_rekeyed_ike_sa_go_the_same_way(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        stream = await both.by_tcp()

        both.say_marked(marked(0, (OTHER_I, OTHER_R)))

        assert await stream.receive() == marked(0, (OTHER_I, OTHER_R))


@pytest.mark.rfc("9329", "6.1")
async def test_another_ike_sa_has_a_stream_of_its_own(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        first = await both.by_tcp()
        while not both.gateway_ike.has_nothing():
            pass
        other = ike(0, (OTHER_I, NONE))
        both.say(other)
        assert (await both.gateway_ike.receive())[0] == other  # UDP has its chance again
        second = await both.stream()
        assert await second.receive() == bytes(4) + other
        second.send(marked(0, (OTHER_I, OTHER_R), response=True))
        await both.daemon_ike.receive()

        both.say_marked(marked(2), marked(1, (OTHER_I, OTHER_R)))
        assert await first.receive() == marked(2)
        assert await second.receive() == marked(1, (OTHER_I, OTHER_R))


async def two_by_tcp(both: Bench) -> tuple[Stream, Stream]:
    """Two IKE SAs of the daemon, each by its stream; the second has been heard last."""
    first = await both.by_tcp()
    both.say(ike(0, (OTHER_I, NONE)))
    second = await both.stream()
    await second.receive()
    second.send(marked(0, (OTHER_I, OTHER_R), response=True))
    await both.daemon_ike.receive()
    await exchanged(both, second, OTHER_I + OTHER_R, 1)
    return first, second


async def exchanged(
    both: Bench, stream: Stream, spis: bytes, number: int, kind: ExchangeType = INFORMATIONAL
) -> None:
    """The daemon asks, and the gateway answers."""
    pair = spis[:8], spis[8:]
    both.say_marked(marked(number, pair, exchange=kind))
    await stream.receive()
    stream.send(marked(number, pair, exchange=kind, response=True))
    await both.daemon_nat.receive()


async def test_a_rekeyed_ike_sa_keeps_its_stream_though_another_was_heard_last(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path, '["tcp"]') as both:
        first, second = await two_by_tcp(both)
        await exchanged(both, first, SPI_I + SPI_R, 2, CREATE_CHILD_SA)
        await exchanged(both, second, OTHER_I + OTHER_R, 2)

        new = b"newspi-i", b"newspi-r"
        both.say_marked(marked(0, new))

        assert await first.receive() == marked(0, new)


async def test_esp_goes_with_the_ike_sa_that_has_new_spis(tmp_path: Path) -> None:
    """Each that has made some shows them once, whoever has begun the rekey."""
    async with bench(tmp_path, '["tcp"]') as both:
        first, second = await two_by_tcp(both)
        await exchanged(both, second, OTHER_I + OTHER_R, 2, CREATE_CHILD_SA)
        first.send(marked(0, exchange=CREATE_CHILD_SA))
        await both.daemon_nat.receive()
        both.say_marked(marked(0, exchange=CREATE_CHILD_SA, response=True))
        await first.receive()
        await exchanged(both, second, OTHER_I + OTHER_R, 3)

        both.say_marked(esp(0x1111), esp(0x2222))

        assert await first.receive() == esp(0x1111)
        assert await second.receive() == esp(0x2222)


async def test_two_daemons_at_one_address_are_told_apart_by_their_ports(tmp_path: Path) -> None:
    async with bench(tmp_path, '["tcp"]') as both:
        first = await both.by_tcp()
        other = Udp()
        other.send(bytes(4) + ike(0, (OTHER_I, NONE)), ("127.0.0.2", both.nat_port))
        second = await both.stream()
        await second.receive()
        second.send(marked(0, (OTHER_I, OTHER_R), response=True))
        await other.receive()

        both.say_marked(esp(0x1111))
        other.send(esp(0x2222), ("127.0.0.2", both.nat_port))

        assert await first.receive() == esp(0x1111)
        assert await second.receive() == esp(0x2222)
        other.sock.close()


async def test_a_live_ike_sa_survives_a_new_wrapper(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        both.say_marked(esp(0x2222))  # nothing can be asked with that
        both.say_marked(marked(7))

        stream = await both.stream()
        assert await stream.receive() == marked(7)
        stream.send(marked(7, response=True))
        await both.daemon_nat.receive()
        both.say_marked(esp(0x2222))
        assert await stream.receive() == esp(0x2222)


async def test_without_any_way_each_retransmission_is_another_chance(tmp_path: Path) -> None:
    async with bench(tmp_path, '["tcp"]') as both:
        both.say(INIT)
        refused = await both.stream()
        refused.sock.close()
        both.say(INIT)

        stream = await both.stream()
        assert await stream.receive() == bytes(4) + INIT


async def test_nobody_else_is_sent_what_is_for_the_daemon(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        stream = await both.by_tcp()
        stranger = Udp("127.0.0.5")
        stranger.send(marked(2), ("127.0.0.2", both.nat_port))
        stranger.send(esp(0x2222), ("127.0.0.2", both.nat_port))
        both.say_marked(esp(0x3333))
        assert await stream.receive() == esp(0x3333)

        stream.send(marked(0))
        assert (await both.daemon_nat.receive())[0] == marked(0)
        assert stranger.has_nothing()
        stranger.sock.close()


async def test_forged_sources_take_no_way_from_who_has_an_ike_sa(tmp_path: Path) -> None:
    async with bench(tmp_path, '["tcp"]') as both:
        stream = await both.by_tcp()
        for number in range(MAX_PASSAGES + 10):
            forged = Udp(f"127.0.{1 + number // 250}.{1 + number % 250}")
            spi = number.to_bytes(8, "little")
            forged.send(marked(0, (b"\1" + spi[:7], NONE)), ("127.0.0.2", both.nat_port))
            forged.sock.close()
        count = 0
        while count < MAX_PASSAGES:
            ways = (await both.status())["ways"]
            assert isinstance(ways, list)
            count = len(ways)
        both.say_marked(esp(0x2222))
        assert await stream.receive() == esp(0x2222)


# --- the rest --------------------------------------------------------------------------------


async def test_what_is_nothing_is_counted(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        both.say(b"nothing at all")
        both.say_marked(bytes(40), KEEPALIVE, esp(0x2222), marked(1, response=True))

        counters: dict[str, int] = {}
        while sum(counters.values()) < 5:
            told = (await both.status())["counters"]
            assert isinstance(told, dict)
            counters = told
        assert counters == {"invalid": 2, "keepalives": 1, "unknown": 2}


async def test_disconnect_ends_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        stream = await both.by_tcp()
        await asyncio.to_thread(ask, both.control, "disconnect", PATIENCE_S)
        assert await stream.receive() == b""


async def test_ports_that_are_taken_are_named(tmp_path: Path) -> None:
    async with bench(tmp_path) as both:
        text = (tmp_path / "wrap.toml").read_text().replace('"control"', '"other"')
        (tmp_path / "other.toml").write_text(text)
        other = Wrap(load_wrap(tmp_path / "other.toml"), "other", None)

        with pytest.raises(TransportError, match=f"127.0.0.2:{both.ike_port}"):
            await other.run()
