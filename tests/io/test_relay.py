"""The relay's lanes on loopback: a daemon of plain UDP, clients of plain TCP, and strangers."""

import asyncio
import socket
import struct
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.io.samples import PATIENCE_S, until
from tests.io.wrapped import (
    KEEPALIVE,
    NONE,
    OTHER_I,
    OTHER_R,
    SPI_I,
    Stream,
    Udp,
    all_of,
    bench,
    esp,
    marked,
)
from tunnelwrap.cli.main import tunnelwrap
from tunnelwrap.config.load import load_relay
from tunnelwrap.daemon.control import ask
from tunnelwrap.daemon.lanes import DOUBT_S, LOOPBACK_SOURCES, Limits
from tunnelwrap.daemon.relay import Relay
from tunnelwrap.errors import ControlError

INIT = marked(0, (SPI_I, NONE))
OTHER_INIT = marked(0, (OTHER_I, NONE))


def reset(stream: Stream) -> None:
    """End it with RST, as a firewall does."""
    stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.sock.close()


# --- there and back --------------------------------------------------------------------------


async def test_datagrams_pass_unchanged_in_both_directions() -> None:
    async with bench() as relay:
        stream, at = await relay.established()

        long = marked(3, body=bytes(range(256)) * 100)
        stream.send(long, esp(0x2222, 7))
        relay.daemon.send(long, at)
        relay.daemon.send(esp(0x1111, 8), at)

        assert set(await all_of(relay.daemon, 2)) == {long, esp(0x2222, 7)}
        assert {await stream.receive(), await stream.receive()} == {long, esp(0x1111, 8)}


async def test_every_client_has_an_address_and_port_of_its_own() -> None:
    async with bench() as relay:
        one = await relay.stream(INIT)
        _, first = await relay.daemon.receive()
        other = await relay.stream(OTHER_INIT)
        _, second = await relay.daemon.receive()

        assert first != second
        relay.daemon.send(marked(0, (OTHER_I, OTHER_R), response=True), second)
        relay.daemon.send(marked(0, response=True), first)
        assert await one.receive() == marked(0, response=True)
        assert await other.receive() == marked(0, (OTHER_I, OTHER_R), response=True)


async def test_addresses_of_clients_stay_apart_and_one_client_keeps_its_own() -> None:
    async with bench() as relay:
        sources = []
        for source, init in (
            ("127.0.0.1", INIT),
            ("127.0.0.9", OTHER_INIT),
            ("127.0.0.1", marked(0, (b"thirdone", NONE))),
        ):
            await relay.stream(init, source=source)
            sources.append((await relay.daemon.receive())[1])

        assert sources[0][0] == sources[2][0] != sources[1][0]
        assert sources[0] != sources[2]
        assert {ip_address(source) in LOOPBACK_SOURCES for source, _ in sources} == {True}


async def test_addresses_of_clients_can_be_chosen() -> None:
    async with bench(ip_network("127.3.2.4/31")) as relay:
        await relay.stream(INIT)
        assert (await relay.daemon.receive())[1][0] == "127.3.2.5"


@pytest.mark.rfc("9329", "6.6")
async def test_keepalives_go_nowhere() -> None:
    async with bench() as relay:
        stream, at = await relay.established()

        stream.send(KEEPALIVE, b"", esp(0x2222, 2))
        relay.daemon.send(KEEPALIVE, at)
        relay.daemon.send(esp(0x1111, 2), at)

        assert await all_of(relay.daemon, 1) == [esp(0x2222, 2)]
        assert await stream.receive() == esp(0x1111, 2)
        assert relay.lanes.counters["keepalives"] == 2


async def test_what_is_neither_ike_nor_esp_goes_nowhere() -> None:
    async with bench() as relay:
        stream, _ = await relay.established()

        stream.send(bytes(20), b"abc", marked(3)[:-1] + b"xx", esp(0x2222, 2))

        assert await all_of(relay.daemon, 1) == [esp(0x2222, 2)]
        assert relay.lanes.counters["invalid"] == 3


async def test_a_daemon_that_is_not_there_yet_ends_nothing() -> None:
    async with bench() as relay:
        port = relay.daemon.port
        stream, at = await relay.established()
        relay.daemon.sock.close()
        stream.send(marked(3))
        await until(lambda: relay.lanes.counters["daemon_errors"])

        again = type(relay.daemon)(port=port)
        stream.send(marked(3))
        assert await again.receive() == (marked(3), at)
        again.sock.close()


# --- coming back -----------------------------------------------------------------------------


@pytest.mark.rfc("9329", "6.1")
@pytest.mark.parametrize("first", [marked(3), esp(0x2222, 2)], ids=["ike", "esp"])
async def test_a_client_that_comes_back_is_the_same_to_the_daemon(first: bytes) -> None:
    async with bench() as relay:
        stream, at = await relay.established()
        reset(stream)
        await until(lambda: relay.lanes.lanes[0].tenure.holder is None)

        back = await relay.stream(first, source="127.0.0.7")

        assert await relay.daemon.receive() == (first, at)
        relay.daemon.send(esp(0x1111, 2), at)
        assert await back.receive() == esp(0x1111, 2)
        assert relay.lanes.counters["back"] == 1


async def test_new_spis_after_a_rekey_lead_back_too() -> None:
    async with bench() as relay:
        stream, at = await relay.established()
        relay.daemon.send(marked(0, (OTHER_I, OTHER_R)), at)  # the daemon's first on the new IKE SA
        await stream.receive()
        reset(stream)
        await until(lambda: relay.lanes.lanes[0].tenure.holder is None)

        await relay.stream(marked(0, (OTHER_I, OTHER_R), response=True))

        assert (await relay.daemon.receive())[1] == at


async def test_a_repeated_first_message_with_a_cookie_by_another_stream() -> None:
    """As libreswan does it."""
    async with bench() as relay:
        await relay.stream(INIT)
        _, at = await relay.daemon.receive()
        relay.daemon.send(marked(0, (SPI_I, NONE), response=True), at)
        await until(lambda: relay.lanes.lanes[0].heard)

        again = await relay.stream(marked(0, (SPI_I, NONE), body=b"cookie"))
        assert (await relay.daemon.receive())[1] == at
        relay.daemon.send(marked(0, response=True), at)
        assert await again.receive() == marked(0, response=True)


async def test_after_its_time_a_client_that_is_away_is_forgotten() -> None:
    async with bench(limits=Limits(keep_s=0.1)) as relay:
        stream, at = await relay.established()
        relay.lanes.reap()
        assert len(relay.lanes.lanes) == 1
        reset(stream)
        await until(lambda: relay.lanes.lanes[0].alone_since)
        await asyncio.sleep(0.11)

        relay.lanes.reap()

        assert relay.lanes.lanes == []
        await relay.stream(marked(3))
        assert (await relay.daemon.receive())[1] != at


# --- strangers -------------------------------------------------------------------------------


async def test_a_stranger_with_known_spis_gets_nothing_while_the_client_is_there() -> None:
    async with bench() as relay:
        stream, at = await relay.established()
        stranger = await relay.stream(esp(0x2222, 9), marked(2), source="127.0.0.66")
        assert set(await all_of(relay.daemon, 2)) == {esp(0x2222, 9), marked(2)}

        relay.daemon.send(marked(2, response=True), at)  # what was answered before proves nothing
        relay.daemon.send(esp(0x1111, 2), at)
        relay.daemon.send(marked(0), at)

        got = [await stream.receive() for _ in range(3)]
        assert set(got) == {marked(2, response=True), esp(0x1111, 2), marked(0)}
        assert await stranger.receive() == marked(2, response=True)
        relay.daemon.send(esp(0x1111, 3), at)
        assert await stream.receive() == esp(0x1111, 3)
        assert relay.lanes.counters["handed_over"] == 0


async def test_a_live_client_stays_when_tcp_is_asked_about_it() -> None:
    async with bench() as relay:
        stream, at = await relay.established()
        await relay.stream(esp(0x2222, 9), source="127.0.0.66")
        await relay.daemon.receive()
        await asyncio.sleep(DOUBT_S + 1.5)

        relay.daemon.send(esp(0x1111, 2), at)
        assert await stream.receive() == esp(0x1111, 2)
        assert relay.lanes.lanes[0].tenure.challengers


async def test_a_new_request_that_the_daemon_answers_takes_the_way() -> None:
    async with bench() as relay:
        stream, at = await relay.established()
        moved = await relay.stream(marked(3), source="127.0.0.7")
        await relay.daemon.receive()

        relay.daemon.send(marked(3, response=True), at)
        relay.daemon.send(esp(0x1111, 2), at)

        assert await moved.receive() == marked(3, response=True)
        assert await moved.receive() == esp(0x1111, 2)
        stream.send(esp(0x2222, 3))  # what is under way by the old one still counts
        assert await all_of(relay.daemon, 1) == [esp(0x2222, 3)]


async def test_an_answer_without_protection_proves_nothing() -> None:
    async with bench() as relay:
        stream, at = await relay.established()
        await relay.stream(marked(3), source="127.0.0.66")
        await relay.daemon.receive()

        relay.daemon.send(marked(3, response=True, protected=False), at)
        relay.daemon.send(esp(0x1111, 2), at)

        assert await stream.receive() == marked(3, response=True, protected=False)
        assert await stream.receive() == esp(0x1111, 2)


async def test_an_ike_sa_of_its_own_gives_a_stranger_no_claim() -> None:
    async with bench() as relay:
        stream, at = await relay.established()
        stranger = await relay.stream(esp(0x2222, 9), OTHER_INIT, source="127.0.0.66")
        sources = dict([await relay.daemon.receive() for _ in range(2)])
        own = sources[OTHER_INIT]
        assert own != at == sources[esp(0x2222, 9)]

        spis = OTHER_I, OTHER_R
        for message_id in (0, 1):
            relay.daemon.send(marked(message_id, spis, response=True), own)
            await stranger.receive()
            stranger.send(marked(message_id + 1, spis))
            assert (await relay.daemon.receive())[1] == own
        relay.daemon.send(esp(0x1111, 2), at)
        assert await stream.receive() == esp(0x1111, 2)


async def test_who_took_the_way_of_an_absent_client_loses_it_to_its_next_request() -> None:
    async with bench() as relay:
        stream, at = await relay.established()
        reset(stream)
        await until(lambda: relay.lanes.lanes[0].tenure.holder is None)
        await relay.stream(esp(0x2222, 9), source="127.0.0.66")
        await relay.daemon.receive()

        back = await relay.stream(esp(0x2222, 10), marked(3))
        await all_of(relay.daemon, 2)
        relay.daemon.send(marked(3, response=True), at)
        relay.daemon.send(esp(0x1111, 2), at)

        assert await back.receive() == marked(3, response=True)
        assert await back.receive() == esp(0x1111, 2)


async def test_when_the_stream_ends_who_waited_has_the_way() -> None:
    async with bench() as relay:
        stream, at = await relay.established()
        waiting = await relay.stream(esp(0x2222, 9))
        await relay.daemon.receive()
        reset(stream)
        await until(lambda: relay.lanes.lanes[0].tenure.challengers == {})

        relay.daemon.send(esp(0x1111, 2), at)
        assert await waiting.receive() == esp(0x1111, 2)


async def test_spis_of_esp_are_not_learnt_from_who_has_no_sa() -> None:
    """Else a stranger could lie in wait for a client's ESP."""
    async with bench() as relay:
        await relay.stream(OTHER_INIT, esp(0x2222), source="127.0.0.66")
        await all_of(relay.daemon, 2)

        _, at = await relay.established()

        assert relay.lanes.counters["challenged"] == 0
        assert len({lane.udp.path.local for lane in relay.lanes.lanes}) == 2
        assert at[1] == relay.lanes.lanes[1].udp.path.local.port


# --- limits ----------------------------------------------------------------------------------


async def test_clients_of_one_address_are_limited() -> None:
    async with bench(limits=Limits(per_address=1)) as relay:
        await relay.stream(INIT)
        await relay.daemon.receive()

        refused = await relay.stream(OTHER_INIT)
        assert await refused.receive() == b""
        await relay.stream(OTHER_INIT, source="127.0.1.1")
        assert (await relay.daemon.receive())[0] == OTHER_INIT
        assert relay.lanes.counters["refused"] == 1


async def test_a_newcomer_takes_the_place_of_who_is_away_and_of_nobody_else() -> None:
    async with bench(limits=Limits(clients=1)) as relay:
        stream, at = await relay.established()
        refused = await relay.stream(OTHER_INIT)
        assert await refused.receive() == b""
        reset(stream)
        await until(lambda: relay.lanes.lanes[0].alone_since)

        await relay.stream(OTHER_INIT)

        assert (await relay.daemon.receive())[1] != at
        assert len(relay.lanes.lanes) == 1


async def test_who_has_proven_nothing_makes_room_first() -> None:
    async with bench(limits=Limits(clients=2)) as relay:
        stream, _ = await relay.established()
        reset(stream)
        await until(lambda: relay.lanes.lanes[0].alone_since)
        stranger = await relay.stream(OTHER_INIT)
        await relay.daemon.receive()

        await relay.stream(marked(0, (b"thirdone", NONE)))

        assert await stranger.receive() == b""
        assert (await relay.daemon.receive())[0] == marked(0, (b"thirdone", NONE))
        assert relay.lanes.lanes[0].is_settled


async def test_silent_strangers_and_unanswered_clients_are_hung_up_on() -> None:
    async with bench(limits=Limits(silent_s=0.1)) as relay:
        silent = await relay.stream()
        unanswered = await relay.stream(OTHER_INIT)
        await relay.daemon.receive()
        await relay.established()
        await asyncio.sleep(0.11)

        relay.lanes.reap()

        assert await silent.receive() == await unanswered.receive() == b""
        assert len(relay.lanes.lanes) == 1


async def test_who_never_authenticates_is_hung_up_on() -> None:
    async with bench(limits=Limits(half_open_s=0.1)) as relay:
        stream = await relay.stream(INIT)
        _, at = await relay.daemon.receive()
        relay.daemon.send(marked(0, response=True), at)
        await stream.receive()
        await asyncio.sleep(0.11)

        relay.lanes.reap()

        assert await stream.receive() == b""


async def test_a_challenger_without_proof_is_turned_away() -> None:
    async with bench(limits=Limits(challenge_s=0.1)) as relay:
        stream, at = await relay.established()
        stranger = await relay.stream(esp(0x2222, 9))
        await relay.daemon.receive()
        await asyncio.sleep(0.11)

        relay.lanes.reap()

        assert await stranger.receive() == b""
        relay.daemon.send(esp(0x1111, 2), at)
        assert await stream.receive() == esp(0x1111, 2)


async def test_a_client_with_a_way_of_its_own_keeps_it_where_it_is_turned_away() -> None:
    async with bench(limits=Limits(challenge_s=0.1)) as relay:
        await relay.established()
        other = await relay.stream(OTHER_INIT, esp(0x2222, 9))
        sources = dict([await relay.daemon.receive() for _ in range(2)])
        relay.daemon.send(marked(0, (OTHER_I, OTHER_R), response=True), sources[OTHER_INIT])
        await other.receive()
        await asyncio.sleep(0.11)

        relay.lanes.reap()

        assert relay.lanes.lanes[0].tenure.challengers == {}
        relay.daemon.send(marked(1, (OTHER_I, OTHER_R), response=True), sources[OTHER_INIT])
        assert await other.receive() == marked(1, (OTHER_I, OTHER_R), response=True)


# --- the daemon around them ------------------------------------------------------------------


async def test_a_relay_by_its_configuration(tmp_path: Path) -> None:
    """It says what it does, and ends when it is told to."""
    daemon = Udp()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = tmp_path / "office.toml"
    file.write_text(
        f'[relay]\nname = "localhost"\nlisten = ["127.0.0.1"]\ndaemon_port = {daemon.port}\n'
        f'tcp_ports = [{port}]\ntls_ports = []\ncontrol_socket = "control"\n'
    )
    control = tmp_path / "control"
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Relay(load_relay(file), "office").run())
        await until(control.exists)
        with await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port)) as sock:
            Stream(sock).send(INIT)
            _, at = await daemon.receive()

            shown = await asyncio.to_thread(show_status, file)
            assert shown.startswith(f"relay office to 127.0.0.1:{daemon.port}: 1 way\n")
            assert f"{at[0]}:{at[1]}" in shown
            assert "over tcp" in shown
            with pytest.raises(ControlError, match="is running"):
                Relay(load_relay(file), "again")

            await asyncio.to_thread(ask, control, "disconnect", PATIENCE_S)
            assert await Stream(sock).receive() == b""
    daemon.sock.close()


def show_status(file: Path) -> str:
    """What ``tunnelwrap status`` prints for people."""
    return CliRunner().invoke(tunnelwrap, ["status", str(file)]).output
