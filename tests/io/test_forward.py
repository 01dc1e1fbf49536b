"""Strangers who are for servers behind the gateway: sent on with every octet, and back."""

import asyncio
import logging
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.io.test_proxy import V1, V2
from tests.kit.certs import authority, entity
from tests.unit.demux.gateway import (
    STREAM,
    Gateway,
    client_context,
    connect,
    gateway,
    open_client,
    reset,
    rest,
    some,
    until,
    write_identity,
)
from tests.unit.wire.samples import load
from tests.unit.wire.test_tls import alpn, extension, message, records, server_name
from tunnelwrap.demux.forward import Forwarder
from tunnelwrap.demux.listener import Limits
from tunnelwrap.demux.routing import Backend, Route, Routing
from tunnelwrap.demux.shown import server_context
from tunnelwrap.demux.sniff import Verdict
from tunnelwrap.path import Carrier, SocketAddress
from tunnelwrap.wire.proxy import Ends

SSH = b"SSH-2.0-OpenSSH_9.2\r\n"
OPENVPN = bytes.fromhex("000e3801020304050607080000000000")
HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HELLO = records(message(server_name((0, b"other.example")), alpn(b"h2")))
SHORT = Limits(deadline_s=0.3)
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(*write_identity(tmp_path_factory.mktemp("identity")))


@dataclass
class Server:
    """A server behind the gateway."""

    backend: Backend
    received: list[bytes] = field(default_factory=list)
    errors: list[OSError] = field(default_factory=list)


@asynccontextmanager
async def server(
    talk: Talk | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """By default it listens to the end, then says what it has heard, backwards."""
    made = Server(Backend("127.0.0.1", 0))

    async def recite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.received.append(await reader.read())
        writer.write(made.received[-1][::-1])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await (talk or recite)(reader, writer)
            await writer.drain()
        except OSError as error:
            made.errors.append(error)
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    made.backend = Backend("127.0.0.1", listening.sockets[0].getsockname()[1])
    try:
        yield made
    finally:
        listening.close()
        await listening.wait_closed()
        await until(lambda: len(asyncio.all_tasks()) == 1)


def route(made: Server, first: Verdict = Verdict.TLS, *sni: str) -> Route:
    return Route(first, made.backend, sni)


@asynccontextmanager
async def sent_on(
    first: Verdict, *sni: str, talk: Talk | None = None, idle_s: float = 600.0
) -> AsyncIterator[tuple[Server, Gateway]]:
    """A gateway without TLS of its own, and the server behind it for such visitors."""
    async with server(talk) as made:
        routing = Routing((route(made, first, *sni),), idle_s=idle_s)
        async with gateway(routing=routing) as gate:
            yield made, gate


async def ask(gate: Gateway, *pieces: bytes) -> bytes:
    """Say something in pieces, end, and listen to the end."""
    client = await connect(gate.port)
    for piece in pieces:
        client.send(piece)
        await asyncio.sleep(0.002 if len(pieces) > 1 else 0)
    client.shutdown(socket.SHUT_WR)
    return await rest(client)


# --- who goes where


@pytest.mark.parametrize(
    ("first", "octets"),
    [
        (Verdict.SSH, SSH),
        (Verdict.OPENVPN, OPENVPN),
        (Verdict.HTTP, HTTP),
        (Verdict.OTHER, b"\x05\1\0"),
        (Verdict.OTHER, bytes(100_000)),
    ],
)
@pytest.mark.parametrize("has_tls", [False, True])
async def test_by_the_first_octets(
    context: ssl.SSLContext, first: Verdict, octets: bytes, *, has_tls: bool
) -> None:
    async with server() as behind:
        tls = context if has_tls else None
        async with gateway(tls, routing=Routing((route(behind, first),))) as gate:
            assert await ask(gate, octets) == octets[::-1]
            await gate.left()
            counters = {"accepted": 1, first.value: 1, f"to {behind.backend}": 1}
            assert gate.listener.counters == counters
        assert behind.received == [octets]


@pytest.mark.parametrize("cut", [1, 2, 5, 6, 9, 40, len(HELLO) - 1])
async def test_a_client_hello_in_two_pieces(cut: int) -> None:
    async with sent_on(Verdict.TLS, "other.example") as (behind, gate):
        assert await ask(gate, HELLO[:cut], HELLO[cut:]) == HELLO[::-1]
    assert behind.received == [HELLO]


async def test_a_client_hello_octet_by_octet_in_many_records() -> None:
    octets = records(HELLO[5:], 3) + b"and more"
    async with sent_on(Verdict.TLS, "other.example") as (behind, gate):
        pieces = (octets[at : at + 1] for at in range(len(octets)))
        assert await ask(gate, *pieces) == octets[::-1]
    assert behind.received == [octets]


async def test_a_long_client_hello_with_what_is_unknown() -> None:
    """GREASE (RFC 8701), the outer ClientHello of ECH, many key shares."""
    odd = (extension(0x2A2A), extension(0xFE0D, bytes(300)), extension(51, bytes(15_000)))
    octets = records(message(odd[0], server_name((0, b"other.example")), *odd[1:]))
    async with sent_on(Verdict.TLS, "other.example") as (_, gate):
        assert await ask(gate, octets[:9000], octets[9000:]) == octets[::-1]


@pytest.mark.parametrize("octets", [load("client_hello")[0]["octets"], HELLO[:-9] + b"malformed"])
async def test_other_names_and_what_is_malformed_end_here(
    context: ssl.SSLContext, octets: bytes
) -> None:
    """OpenSSL answers them as it does without routes."""
    async with server() as behind:
        routing = Routing((route(behind, Verdict.TLS, "other.example"),))
        async with gateway(context, SHORT, routing=routing) as gate:
            said = await ask(gate, octets)
            await gate.left()
            assert said[:1] in (b"", b"\x15", b"\x16")
            assert gate.listener.counters["tls"] == 1
        assert behind.received == []


async def test_a_hello_in_too_many_records_ends_here(context: ssl.SSLContext) -> None:
    octets = records(message(server_name((0, b"other.example")), extension(21, bytes(6000))), 1)
    async with server() as behind:
        routing = Routing((route(behind, Verdict.TLS, "other.example"),))
        async with gateway(context, SHORT, routing=routing) as gate:
            await ask(gate, octets)
            await gate.counted("tls")
        assert behind.received == []


async def test_we_are_served_beside_the_routes(context: ssl.SSLContext) -> None:
    async with server() as behind:
        firsts = (Verdict.TLS, Verdict.SSH, Verdict.HTTP, Verdict.OPENVPN, Verdict.OTHER)
        routes = tuple(route(behind, first) for first in (*firsts, Verdict.SILENT))
        async with gateway(context, routing=Routing(routes, frozenset({"localhost"}))) as gate:
            with await connect(gate.port) as client:
                client.send(STREAM)
                sock, carrier, received = await gate.stream()
                assert (carrier, received) == (Carrier.TCP, b"")
                assert await some(sock, len(STREAM)) == STREAM
            with await asyncio.to_thread(open_client, gate.port, client_context()) as client:
                client.sendall(STREAM)
                _, carrier, received = await gate.stream()
                assert (carrier, received) == (Carrier.TLS, STREAM)
            said = await gate.talk(b"GET / HTTP/1.0\r\n\r\n", context=client_context())
            assert said.startswith(b"HTTP/1.1 200 OK")
        assert behind.received == []


async def test_openssl_finds_three_servers_on_one_port(
    context: ssl.SSLContext, tmp_path: Path
) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello from behind\n")

    one, two = (_identity(tmp_path, name) for name in ("one.example", "two.example"))
    async with server(greet, one) as first, server(greet, two) as second:
        routes = (
            route(first, Verdict.TLS, "one.example"),
            route(second, Verdict.TLS, "*.two.example"),
        )
        async with gateway(context, routing=Routing(routes, frozenset({"localhost"}))) as gate:
            asked = ("one.example", "www.two.example", "localhost", "unknown.example", None)
            subjects = [await _openssl(gate.port, name) for name in asked]
            await gate.left()
            assert gate.listener.counters["tls_passed"] == 2
            assert gate.listener.counters["tls"] == 3
    assert subjects == ["one.example", "two.example", "localhost", "localhost", "localhost"]


def _identity(folder: Path, name: str) -> ssl.SSLContext:
    made = entity(name, authority("Other CA"), number=8, sans=(name,))
    (folder / name).write_bytes(made.pem + made.key_pem)
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(folder / name)
    return found


async def _openssl(port: int, name: str | None) -> str:
    """The subject of the certificate that s_client is shown."""
    option = ("-noservername",) if name is None else ("-servername", name)
    run = await asyncio.create_subprocess_exec(
        *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", *option),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await run.communicate(b"")
    subject = re.search(rb"subject=.*CN = ([\w.]+)", out)
    assert subject is not None, out.decode()
    return subject[1].decode()


# --- silence


async def test_who_waits_for_the_servers_first_words() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 behind\r\n")
        assert await reader.read() == b"EHLO\r\n"

    async with server(greet) as behind:
        routing = Routing((route(behind, Verdict.SILENT),), silence_s=0.2)
        async with gateway(routing=routing) as gate:
            with await connect(gate.port) as client:
                assert await some(client, 12) == b"220 behind\r\n"
                client.send(b"EHLO\r\n")
                client.shutdown(socket.SHUT_WR)
                assert await rest(client) == b""
            assert gate.listener.counters["silent"] == 1
            with await connect(gate.port) as client:
                client.send(STREAM)
                await gate.stream()


async def test_who_begins_and_falls_silent_is_not_sent_on() -> None:
    async with server() as behind:
        routes = route(behind, Verdict.SILENT), route(behind, Verdict.SSH)
        async with gateway(None, SHORT, routing=Routing(routes, silence_s=0.1)) as gate:
            with await connect(gate.port) as client:
                client.send(b"SS")
                assert await rest(client) == b""
            await gate.left()
            assert gate.listener.counters == {"accepted": 1, "timed_out": 1}


async def test_who_leaves_at_once_is_not_silent() -> None:
    async with sent_on(Verdict.SILENT) as (_, gate):
        assert await ask(gate) == b""
        await gate.left()
        assert gate.listener.counters == {"accepted": 1, "closed_early": 1}


# --- going between


async def test_the_server_may_end_first() -> None:
    """The visitor goes on to speak when the server has said all."""
    heard = bytearray()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"all")
        writer.write_eof()
        heard.extend(await reader.read())

    async with sent_on(Verdict.SSH, talk=greet) as (_, gate):
        with await connect(gate.port) as client:
            client.send(SSH)
            loop = asyncio.get_running_loop()
            assert await some(client, 3) == b"all"
            assert await loop.sock_recv(client, 1) == b""
            client.send(b"more")
        await gate.left()
    assert heard == SSH + b"more"


async def test_who_reads_slowly_is_sent_no_more_than_fits() -> None:
    size, sent = 64 << 20, 0

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(size >> 16):
            writer.write(bytes(1 << 16))
            await writer.drain()
            sent += 1 << 16

    async with sent_on(Verdict.SSH, talk=pour) as (_, gate):
        with await connect(gate.port) as client:
            client.send(SSH)
            await until(lambda: sent > 1 << 20)
            before = -1
            while before != sent:  # until nothing moves any more
                before = sent
                await asyncio.sleep(0.1)
            assert sent < size / 2
            got, loop = 0, asyncio.get_running_loop()
            while piece := await loop.sock_recv(client, 1 << 20):
                got += len(piece)
        await gate.left()
    assert got == sent == size


@pytest.mark.parametrize("is_near", [False, True])
async def test_a_break_is_passed_on_as_a_break(*, is_near: bool) -> None:
    broken: list[Exception] = []
    is_here = asyncio.Event()

    async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read(len(SSH)) == SSH
        is_here.set()
        if not is_near:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return
        try:
            await reader.read()
        except ConnectionResetError as error:
            broken.append(error)

    async with sent_on(Verdict.SSH, talk=stay) as (_, gate):
        client = await connect(gate.port)
        client.send(SSH)
        await is_here.wait()
        if is_near:
            reset(client)
        else:
            with client, pytest.raises(ConnectionResetError):
                await asyncio.get_running_loop().sock_recv(client, 1)
        await gate.left()
    assert len(broken) == is_near


async def test_nobody_may_be_silent_for_ever() -> None:
    async def stay(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with sent_on(Verdict.SSH, talk=stay, idle_s=0.3) as (_, gate):
        loop = asyncio.get_running_loop()
        with await connect(gate.port) as client:
            begin = loop.time()
            for _ in range(4):
                client.send(SSH)
                await asyncio.sleep(0.1)
            assert await rest(client) == b""
            assert 0.6 < loop.time() - begin < 5
        await gate.left()


async def test_closing_ends_what_is_sent_on() -> None:
    async with sent_on(Verdict.SSH) as (behind, gate):
        with await connect(gate.port) as client:
            client.send(SSH)
            await gate.counted(f"to {behind.backend}")
            gate.listener.close()
            assert await rest(client) == b""
    await until(lambda: behind.received == [SSH])


# --- when there is no server, or there are too many visitors


async def test_a_server_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        backend = Backend("127.0.0.1", listening.getsockname()[1])
    async with gateway(routing=Routing((Route(Verdict.SSH, backend),))) as gate:
        for number in (1, 2):
            assert await ask(gate, SSH) == b""
            assert gate.listener.counters["unreachable"] == number
        text = f"{backend} behind us cannot be reached: connection refused"
        assert [record.getMessage() for record in caplog.records] == [text]
        with socket.create_server(("127.0.0.1", backend.port)) as listening:
            listening.setblocking(False)
            with await connect(gate.port) as client:
                client.send(SSH)
                sock, _ = await asyncio.get_running_loop().sock_accept(listening)
                sock.close()
                assert await rest(client) == b""
        assert caplog.records[-1].getMessage() == f"{backend} behind us can be reached again"
        await gate.left()


@pytest.mark.parametrize("host", ["localhost", "no-such-host.invalid"])
async def test_a_server_by_its_name(host: str, caplog: pytest.LogCaptureFixture) -> None:
    async with server() as behind:
        backend = Backend(host, behind.backend.port)
        async with gateway(routing=Routing((Route(Verdict.SSH, backend),))) as gate:
            said = await ask(gate, SSH)
            await gate.left()
    assert said == (SSH[::-1] if host == "localhost" else b"")
    if host == "localhost":
        assert "cannot be reached" not in caplog.text
    else:
        with pytest.raises(socket.gaierror) as caught:
            socket.getaddrinfo(host, 22)
        assert f"cannot be reached: {caught.value.strerror}\n".lower() in caplog.text


async def test_places_for_those_who_are_sent_on() -> None:
    async with server() as behind:
        limits = Limits(strangers=1, forwarded=3, forwarded_per_origin=2)
        async with gateway(None, limits, routing=Routing((route(behind, Verdict.SSH),))) as gate:
            clients = []
            for source in ("127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.3"):
                clients.append(await connect(gate.port, source))
                clients[-1].send(SSH)
                await until(
                    lambda: (
                        gate.listener.counters[f"to {behind.backend}"]
                        + gate.listener.counters["shed"]
                        == len(clients)
                    )
                )
            assert gate.listener.counters["shed"] == 2  # the third, and the last
            for client in clients:
                client.close()
            await gate.left()
            assert await ask(gate, SSH) == SSH[::-1]


# --- any pieces

BEHIND = Backend("behind", 1)
BEGINNINGS = {
    STREAM: None,
    HELLO + b"early data": BEHIND,
    records(HELLO[5:], 9) + b"more": BEHIND,
    load("client_hello")[0]["octets"]: None,
    HELLO[:-9] + b"malformed": None,
    SSH: BEHIND,
    OPENVPN: BEHIND,
    HTTP: None,
    b"\0\x0e\x50 and more": None,
    b"PROPFIND / HTTP/1.1\r\n\r\n": None,
    b"\x16\x02 and more": None,
}
ROUTES = Routing(
    (
        Route(Verdict.TLS, BEHIND, ("other.example",)),
        *(Route(first, BEHIND) for first in (Verdict.SSH, Verdict.OPENVPN)),
    ),
    proxies=(ip_network("127.0.0.0/8"),),
)


@given(
    st.sampled_from(list(BEGINNINGS)),
    st.sampled_from([V1, V2]),
    st.sets(st.integers(1, 250), max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_any_pieces_lead_to_the_same_server(octets: bytes, header: bytes, cuts: set[int]) -> None:
    stream = header + octets
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    pieces = [stream[begin:end] for begin, end in pairwise(edges)]
    assert asyncio.run(led(pieces)) == (BEGINNINGS[octets], octets)


async def led(pieces: list[bytes]) -> tuple[Backend | None, bytes]:
    """The server that a stream is for, and what can be read from it then."""
    forwarder, loop = Forwarder(ROUTES), asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = await connect(listening.getsockname()[1])
        sock, _ = listening.accept()

    async def send() -> None:
        for piece in pieces:
            await loop.sock_sendall(client, piece)
            await asyncio.sleep(0.001)

    with client, sock:
        sock.setblocking(False)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            own = Ends(*(SocketAddress.of(end) for end in (sock.getpeername(), sock.getsockname())))
            ends = await forwarder.introduced(sock, own)
            assert ends.source == SocketAddress(ip_address("192.168.0.1"), 56324)
            backend = await forwarder.backend_for(sock, lambda _: None)
        client.shutdown(socket.SHUT_WR)
        return backend, await rest(sock)
