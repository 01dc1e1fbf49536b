"""The control socket: questions and answers, who may ask, and what is left behind."""

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tunnelwrap.daemon.control import ControlServer, ask
from tunnelwrap.errors import ControlError, StoreError

TIMEOUT_S = 5.0


async def greet() -> dict[str, object]:
    return {"text": "hello", "number": 1}


async def refuse() -> dict[str, object]:
    raise StoreError("no address is free")


@asynccontextmanager
async def server(path: Path) -> AsyncIterator[ControlServer]:
    control = ControlServer(path, {"greet": greet, "refuse": refuse})
    await control.start()
    try:
        yield control
    finally:
        control.close()


async def question(path: Path, command: str) -> dict[str, object]:
    return await asyncio.to_thread(ask, path, command, TIMEOUT_S)


async def raw_question(path: Path, octets: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(octets)
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_command_is_answered(tmp_path: Path) -> None:
    async with server(tmp_path / "run" / "socket"):
        assert await question(tmp_path / "run" / "socket", "greet") == await greet()


async def test_a_refusal_comes_back_as_an_error(tmp_path: Path) -> None:
    async with server(tmp_path / "socket"):
        with pytest.raises(ControlError, match="no address is free"):
            await question(tmp_path / "socket", "refuse")


async def test_an_unknown_command_names_those_that_there_are(tmp_path: Path) -> None:
    async with server(tmp_path / "socket"):
        with pytest.raises(ControlError, match=r"unknown command 'dance', there are greet, refuse"):
            await question(tmp_path / "socket", "dance")


async def test_a_command_may_have_an_argument(tmp_path: Path) -> None:
    async def repeat(text: str) -> dict[str, object]:
        return {"said": text}

    path = tmp_path / "socket"
    control = ControlServer(path, {"greet": greet}, {"repeat": repeat})
    await control.start()
    try:
        said = await asyncio.to_thread(ask, path, "repeat", TIMEOUT_S, "a word")
        assert said == {"said": "a word"}
        with pytest.raises(ControlError, match=r"'repeat', there are greet, repeat ARGUMENT"):
            await question(path, "repeat")
    finally:
        control.close()


@pytest.mark.parametrize("octets", [b"\n", b"nonsense\n", b"[]\n", b'{"command": 1}\n', b"7\n"])
async def test_nonsense_is_answered_with_an_error(tmp_path: Path, octets: bytes) -> None:
    async with server(tmp_path / "socket"):
        assert b'"error"' in await raw_question(tmp_path / "socket", octets)
        assert await question(tmp_path / "socket", "greet")


async def test_a_line_without_end_is_given_up(tmp_path: Path) -> None:
    async with server(tmp_path / "socket"):
        with suppress(ConnectionError):
            assert await raw_question(tmp_path / "socket", bytes(4 << 20)) == b""
        assert await question(tmp_path / "socket", "greet")


async def test_only_the_owner_may_ask(tmp_path: Path) -> None:
    async with server(tmp_path / "socket"):
        mode = (tmp_path / "socket").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


async def test_the_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "socket"))
    async with server(tmp_path / "socket"):
        assert await question(tmp_path / "socket", "greet")


async def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    async with server(tmp_path / "socket"):
        with pytest.raises(ControlError, match="is running"):
            await ControlServer(tmp_path / "socket", {}).start()
        assert await question(tmp_path / "socket", "greet")


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    async with server(tmp_path / "socket") as control:
        control.close()
        assert not (tmp_path / "socket").exists()


def test_without_a_daemon_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no tunnelwrap is running"):
        ask(tmp_path / "socket", "status", TIMEOUT_S)


def test_a_daemon_that_ends_before_it_answers(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        with pytest.raises(ControlError, match="does not answer"):
            ask(tmp_path / "socket", "status", 0.05)
