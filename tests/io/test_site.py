"""Whether the cover site answers: what is told at the start, with cause and cure."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.kit.cover_stand import free_ports
from tests.unit.config.writing import GATEWAY, changed, written
from tests.unit.demux.gateway import write_identity
from tunnelwrap.config.load import load_gateway
from tunnelwrap.config.model import Gateway
from tunnelwrap.daemon.site import check_site

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LOOP = b"HTTP/1.1 301 Moved Permanently\r\nLocation: https://VPN.example.org/\r\n\r\n"
MISSING = b"HTTP/1.1 404 Not Found\r\n\r\n"


def gateway_with(folder: Path, cover: str) -> Gateway:
    write_identity(folder)
    tls = "[gateway.tls]\ncertificate = 'server.pem'\nkey = 'server.key'\n"
    text = changed(GATEWAY, "tls_ports = []\n", f"\n{tls}[gateway.cover]\n{cover}\n")
    return load_gateway(written(folder, text)).gateway


@asynccontextmanager
async def web_server(answer: bytes) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (OK, ""),
        (LOOP, "sends visitors from https://vpn.example.org/ to the same address, for ever"),
        (MISSING, "answers https://vpn.example.org/ with 404"),
        (b"SSH-2.0-a\r\n", "does not speak HTTP/1.1 there"),
    ],
)
async def test_what_a_server_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: bytes, told: str
) -> None:
    async with web_server(answer) as port:
        await check_site(gateway_with(tmp_path, f"proxy = 'http://127.0.0.1:{port}'"))
    warned = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warned) == bool(told)
    assert told in "".join(warned)


async def test_a_server_that_is_not_there_yet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    await check_site(gateway_with(tmp_path, f"proxy = 'https://127.0.0.1:{port}'"))
    assert "cannot be reached, visitors get 502 until it runs" in caplog.text


async def test_a_directory_without_an_index(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "www").mkdir()
    gateway = gateway_with(tmp_path, "files = 'www'")
    await check_site(gateway)
    assert "it needs an index.html in" in caplog.text
    caplog.clear()
    (tmp_path / "www" / "index.html").touch()
    await check_site(gateway)
    assert caplog.text == ""
