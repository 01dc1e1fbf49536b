"""A web server's site on a TLS port, octet for octet, and the tunnel for those who know."""

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.kit.certs import authority, entity
from tests.unit.demux.gateway import (
    STREAM,
    Gateway,
    client_context,
    gateway,
    open_client,
    write_identity,
)
from tunnelwrap.demux.cover import Cover, OwnSite, SiteBehind
from tunnelwrap.demux.listener import Site
from tunnelwrap.demux.opening import Gate, Secrets
from tunnelwrap.demux.pages import Files, OnePage
from tunnelwrap.demux.routing import Backend
from tunnelwrap.demux.shown import Shown, server_context
from tunnelwrap.demux.web import Times, Web
from tunnelwrap.path import Carrier
from tunnelwrap.wire.prelude import request_of
from tunnelwrap.wire.proxy import Ends, decode_header
from tunnelwrap.wire.websocket import NONCE, request

PATH, WORD = "/Ahdai7eiPhai0ahx", "OHBAEPHEIWAHCHAI"
SECRETS = Secrets(Gate(word=WORD.encode()), PATH.encode())
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
SOON = Times(*[0.3] * 5)
CA = authority("Clients' CA")
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_identity(tmp_path_factory.mktemp("identity"))


@asynccontextmanager
async def web_server(talk: Talk, context: ssl.SSLContext | None = None) -> AsyncIterator[Backend]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield Backend("127.0.0.1", server.sockets[0].getsockname()[1])


@asynccontextmanager
async def covered(
    identity: tuple[Path, Path],
    cover: Cover,
    secrets: Secrets = SECRETS,
    client_ca: str | None = None,
) -> AsyncIterator[Gateway]:
    shown = Shown(server_context(*identity), client_ca)
    async with gateway(site=Site(shown, cover, secrets, patience_s=0.3)) as gate:
        yield gate
        await gate.left()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What it hears, in brackets, until the end."""
    while octets := await reader.read(1 << 16):
        writer.write(b"[" + octets + b"]")
        await writer.drain()


def behind(backend: Backend, *, is_tls: bool = False) -> SiteBehind:
    return SiteBehind(backend, is_tls=is_tls, times=SOON, idle_s=5)


# --- a web server's site


@pytest.mark.parametrize("is_tls", [False, True])
async def test_every_octet_goes_to_the_server_and_back(
    identity: tuple[Path, Path], *, is_tls: bool
) -> None:
    context = server_context(*identity) if is_tls else None
    async with (
        web_server(echo, context) as server,
        covered(identity, behind(server, is_tls=is_tls)) as gate,
    ):
        client = await asyncio.to_thread(open_client, gate.port, client_context())
        with client:
            for octets in (b"\0\1\2", b"GET / HTTP/9\n", bytes(9000)):
                client.sendall(octets)
                assert await asyncio.to_thread(all_of, client, len(octets) + 2) == b"[%s]" % octets


async def test_a_server_that_speaks_first_or_ends_is_heard(identity: tuple[Path, Path]) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        writer.write(b"time is up")

    async with web_server(greet) as server, covered(identity, behind(server)) as gate:
        client = await asyncio.to_thread(open_client, gate.port, client_context())
        with client:  # close_notify comes before the end, else this client would complain
            assert await asyncio.to_thread(all_of, client, 100) == b"time is up"


@pytest.mark.parametrize("octets", [GET, STREAM, b"nonsense"])
async def test_who_speaks_no_tls_is_heard_by_a_server_that_does(
    identity: tuple[Path, Path], octets: bytes
) -> None:
    """It hears it as it came, not in TLS, and may say what it likes."""
    async with web_server(echo) as server, covered(identity, behind(server, is_tls=True)) as gate:
        client = await asyncio.to_thread(open_client, gate.port)
        with client:
            client.sendall(octets)
            assert await asyncio.to_thread(all_of, client, len(octets) + 2) == b"[%s]" % octets


async def test_who_comes_is_told(identity: tuple[Path, Path]) -> None:
    told: list[Ends | None] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        header = decode_header(await reader.read(100))
        told.append(header.ends if header else None)
        writer.write(b"ok")

    async with web_server(listen) as server:
        backend = Backend(server.host, server.port, send_proxy="v2")
        async with covered(identity, behind(backend)) as gate:
            client = await asyncio.to_thread(open_client, gate.port, client_context())
            with client:
                assert await asyncio.to_thread(all_of, client, 2) == b"ok"
                assert told[0] is not None
                assert told[0].source.port == client.getsockname()[1]


async def test_a_server_that_is_gone(
    identity: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    async with web_server(echo) as server:
        pass
    async with covered(identity, behind(server)) as gate:
        for _ in range(2):
            said = await gate.talk(
                GET[:-2] + b"Connection: close\r\n\r\n", context=client_context()
            )
            assert said.startswith(b"HTTP/1.1 502 Bad Gateway\r\nServer: nginx\r\n")
    assert caplog.text.count("cannot be reached") == 1


# --- the tunnel beside it


async def opens(gate: Gateway, said: bytes, context: ssl.SSLContext | None = None) -> Carrier:
    """Say it in TLS; by what the stream comes that is handed over."""
    client = await asyncio.to_thread(open_client, gate.port, context or client_context())
    with client:
        client.sendall(said)
        _, carrier, received = await gate.stream()
        assert carrier is Carrier.WEBSOCKET or STREAM.startswith(received)
    return carrier


async def is_the_sites(gate: Gateway, said: bytes, context: ssl.SSLContext | None = None) -> None:
    """Say it in TLS; it comes back in brackets from the site."""
    client = await asyncio.to_thread(open_client, gate.port, context or client_context())
    with client:
        client.sendall(said)
        assert await asyncio.to_thread(all_of, client, len(said) + 2) == b"[%s]" % said


async def test_a_word_before_the_stream(identity: tuple[Path, Path]) -> None:
    async with web_server(echo) as server, covered(identity, behind(server)) as gate:
        assert await opens(gate, WORD.encode() + STREAM) is Carrier.TLS
        await is_the_sites(gate, STREAM)
        await is_the_sites(gate, WORD.lower().encode() + STREAM)
        await is_the_sites(gate, WORD[:-1].encode() + b"X" + STREAM)
        await is_the_sites(gate, WORD.encode() + b"GET")


async def test_a_request_before_the_stream(identity: tuple[Path, Path]) -> None:
    secrets = Secrets(Gate(path=PATH.encode()))
    async with web_server(echo) as server, covered(identity, behind(server), secrets) as gate:
        assert await opens(gate, request_of(PATH, "localhost") + STREAM) is Carrier.TLS
        await is_the_sites(gate, request_of(PATH[:-1], "localhost") + STREAM)
        await is_the_sites(gate, STREAM)


async def test_a_certificate_before_the_stream(identity: tuple[Path, Path], tmp_path: Path) -> None:
    own = entity("CN=alice", CA, number=3, sans=("alice@example.org",))
    (tmp_path / "own.pem").write_bytes(own.pem + own.key_pem)
    certified = client_context()
    certified.load_cert_chain(tmp_path / "own.pem")
    secrets = Secrets(Gate(wants_certificate=True))
    async with (
        web_server(echo) as server,
        covered(identity, behind(server), secrets, CA.pem.decode()) as gate,
    ):
        assert await opens(gate, STREAM, certified) is Carrier.TLS
        await is_the_sites(gate, STREAM)
        await is_the_sites(gate, GET, certified)


async def test_a_gate_is_not_passed_outside_tls(identity: tuple[Path, Path]) -> None:
    async with web_server(echo) as server, covered(identity, behind(server)) as gate:
        for octets in (STREAM, WORD.encode() + STREAM):
            assert (await gate.talk(octets)).startswith(b"HTTP/1.1 400 ")
        assert not gate.streams.qsize()


async def test_a_websocket_beside_the_site(identity: tuple[Path, Path]) -> None:
    async with web_server(echo) as server, covered(identity, behind(server)) as gate:
        assert await opens(gate, request("localhost", PATH, bytes(NONCE))) is Carrier.WEBSOCKET
        await is_the_sites(gate, request("localhost", PATH + "x", bytes(NONCE)))


async def test_who_hesitates_in_a_guess_is_the_sites(identity: tuple[Path, Path]) -> None:
    async with web_server(echo) as server, covered(identity, behind(server)) as gate:
        await is_the_sites(gate, WORD[:4].encode())
        await is_the_sites(gate, b"GET /Ahd")


# --- a site of files


async def test_files(identity: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("at home")
    async with covered(identity, OwnSite(Files(tmp_path), SOON)) as gate:
        said = await gate.talk(GET, context=client_context())
        assert said.endswith(b"\r\n\r\nat home")
        assert await opens(gate, WORD.encode() + STREAM) is Carrier.TLS


async def test_the_time_for_a_request_begins_before_it_is_known_whose_it_is(
    identity: tuple[Path, Path], tmp_path: Path
) -> None:
    """Else a prober's clock would tell our patience from a web server's."""
    shown, times = Shown(server_context(*identity)), Times(head_s=1)
    site = Site(shown, OwnSite(Files(tmp_path), times), SECRETS, patience_s=0.9)
    async with gateway(site=site) as gate:
        client = await asyncio.to_thread(open_client, gate.port, client_context())
        with client:
            begun = time.monotonic()
            assert await asyncio.to_thread(all_of, client, 1) == b""
            assert time.monotonic() - begun < 1.6
        await gate.left()


class Eager:
    """A visitor who takes everything at once."""

    def __init__(self) -> None:
        self.heard = b""

    async def receive(self) -> bytes:
        return b""

    async def send(self, octets: bytes) -> None:
        self.heard += octets


async def test_who_takes_nothing_is_left_before_the_body_too(tmp_path: Path) -> None:
    class Full(Eager):
        async def send(self, octets: bytes) -> None:
            del octets
            await asyncio.Event().wait()

    (tmp_path / "index.html").write_text("at home")
    asks = GET[:-2] + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n"
    async with asyncio.timeout(5):
        with pytest.raises(TimeoutError):
            await Web(Files(tmp_path), times=SOON).serve(Full(), asks)


async def test_a_file_that_gets_shorter_ends_the_connection(tmp_path: Path) -> None:
    """What comes next would be taken for the rest of it."""
    file = tmp_path / "index.html"
    file.write_bytes(bytes(100_000))

    class Cutting(Eager):
        async def send(self, octets: bytes) -> None:
            await super().send(octets)
            os.truncate(file, 50_000)

    visitor = Cutting()
    with pytest.raises(ConnectionAbortedError):
        await Web(Files(tmp_path)).serve(visitor, GET * 2)
    assert visitor.heard.count(b"HTTP/1.1 200") == 1


async def test_nobody_waits_for_a_visitor_with_many_requests() -> None:
    turns, visitor = 0, Eager()

    async def others() -> None:
        nonlocal turns
        while visitor.heard.count(b"HTTP/1.1 200") < 50:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(others())
        await Web(OnePage()).serve(visitor, GET * 50)
    assert turns > 40  # without turns it would be one


def all_of(client: socket.socket, size: int) -> bytes:
    """So many octets, or all that there are."""
    octets = b""
    while len(octets) < size and (piece := client.recv(1 << 16)):
        octets += piece
    return octets
