"""The PROXY protocol in and out, with HAProxy before the gateway and as the judge behind it."""

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests.unit.demux.gateway import (
    STREAM,
    Gateway,
    client_context,
    connect,
    gateway,
    open_client,
    rest,
    some,
    until,
    write_identity,
)
from tests.unit.wire.test_proxy import SIGNATURE, TCP4
from tunnelwrap.demux.listener import Limits
from tunnelwrap.demux.routing import Backend, Route, Routing
from tunnelwrap.demux.shown import server_context
from tunnelwrap.demux.sniff import Verdict
from tunnelwrap.path import Carrier, SocketAddress

PROXY = Routing(proxies=(ip_network("127.0.0.0/30"), ip_network("::1/128")))
V1 = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
V2 = SIGNATURE + bytes.fromhex("21 11 000C") + TCP4
LOCAL = SIGNATURE + bytes.fromhex("20 00 0000")
SHORT = Limits(deadline_s=0.3)
GET = b"GET / HTTP/1.0\r\n\r\n"


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(*write_identity(tmp_path_factory.mktemp("identity")))


def address(text: str, port: int) -> SocketAddress:
    return SocketAddress(ip_address(text), port)


# --- in


@pytest.mark.parametrize("header", [V1, V2])
@pytest.mark.parametrize("step", [1, 5, 1000])
async def test_a_proxy_says_for_whom_it_comes(header: bytes, step: int) -> None:
    async with gateway(routing=PROXY) as gate:
        with await connect(gate.port) as client:
            octets = header + STREAM
            for at in range(0, len(octets), step):
                client.send(octets[at : at + step])
                await asyncio.sleep(0.001)
            sock, _, _ = await gate.stream()
            assert await some(sock, len(STREAM)) == STREAM  # and nothing of the header
            (path,) = gate.paths
            assert path.peer == address("192.168.0.1", 56324)
            assert path.local == address("192.168.0.11", 443)
            assert gate.origins == [path.peer.ip.packed]
        assert gate.listener.counters == {"accepted": 1, "proxied": 1, "ike_tcp": 1}


async def test_tls_behind_a_header(context: ssl.SSLContext) -> None:
    def talk(port: int) -> bytes:
        with open_client(port) as plain:
            plain.sendall(V2)
            with client_context().wrap_socket(plain, server_hostname="localhost") as client:
                client.sendall(GET)
                return client.recv(100)

    async with gateway(context, routing=PROXY) as gate:
        assert (await asyncio.to_thread(talk, gate.port)).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"])
async def test_a_proxy_that_speaks_for_itself(header: bytes) -> None:
    async with gateway(routing=PROXY) as gate:
        with await connect(gate.port) as client:
            client.send(header + STREAM)
            await gate.stream()
            assert gate.paths[0].peer == SocketAddress.of(client.getsockname())
            assert gate.paths[0].local == SocketAddress.of(client.getpeername())
            assert gate.origins == [None]


@pytest.mark.parametrize("octets", [STREAM, GET, V1[:-2] + b"\n", SIGNATURE + b"\x11"])
async def test_a_proxy_that_says_nothing_for_whom(
    octets: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway(routing=PROXY) as gate:
        assert await gate.talk(octets) == b""
        await gate.left()
        assert gate.listener.counters == {"accepted": 1, "proxy_refused": 1}
    assert "should begin as a proxy: " in caplog.text


@pytest.mark.parametrize("octets", [V1, V2, V2[:8], LOCAL])
async def test_nobody_else_is_believed(octets: bytes, context: ssl.SSLContext) -> None:
    async with gateway(context, routing=PROXY) as gate:
        with await connect(gate.port, "127.0.0.4") as client:
            client.send(octets)
            assert await rest(client) == b""
        assert gate.listener.counters == {"accepted": 1, "proxy_refused": 1}
        with await connect(gate.port, "127.0.0.4") as client:
            client.send(STREAM)
            await gate.stream()
        assert gate.paths[0].peer.ip == ip_address("127.0.0.4")
        assert gate.origins == [gate.paths[0].peer.ip.packed]


async def test_without_proxies_a_header_is_like_anything_else(context: ssl.SSLContext) -> None:
    async with gateway(context) as gate:
        assert (await gate.talk(V1)).startswith(b"HTTP/1.1 400 Bad Request")
        assert gate.listener.counters == {"accepted": 1, "other": 1}


@pytest.mark.parametrize("octets", [b"", b"PROXY", V2[:-1]])
async def test_a_header_that_does_not_come(octets: bytes) -> None:
    async with gateway(None, SHORT, routing=PROXY) as gate:
        with await connect(gate.port) as client:
            client.send(octets)
            assert await rest(client) == b""
        with await connect(gate.port) as client:
            client.send(octets)
        await gate.left()
        assert gate.listener.counters == {"accepted": 2, "timed_out": 1, "closed_early": 1}


async def test_limits_are_for_those_who_are_spoken_for() -> None:
    limits = Limits(strangers=4, strangers_per_origin=1)
    async with gateway(None, limits, routing=PROXY) as gate:
        clients = [await connect(gate.port) for _ in range(3)]  # of one proxy
        await gate.counted("accepted", 3)
        for client, header in zip(clients, (V1, V2, V1.replace(b"0.1 ", b"0.2 ")), strict=True):
            client.send(header)
            await until(lambda: not gate.streams.qsize())
        await gate.counted("proxied", 3)
        assert gate.listener.counters["shed"] == 1  # two are of one client
        for client in clients:
            client.close()
        await gate.left()
        with await connect(gate.port) as client:
            client.send(V1 + STREAM)
            await gate.stream()


# --- HAProxy in front


@asynccontextmanager
async def haproxy(folder: Path, *sections: str) -> AsyncIterator[Sequence[int]]:
    """HAProxy with one listener a section; BIND in it stands for the address."""
    binary = shutil.which("haproxy", path="/usr/sbin:/usr/bin")
    assert binary is not None, "the Debian package haproxy"
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in sections]
    settings = (
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n"
    )
    for number, (sock, section) in enumerate(zip(sockets, sections, strict=True)):
        text = section.replace("BIND", f"fd@{sock.fileno()}")
        settings += f"listen l{number}\n" + "".join(f" {line}\n" for line in text.splitlines())
    (folder / "haproxy.cfg").write_text(settings)
    process = await asyncio.create_subprocess_exec(
        *(binary, "-db", "-f", str(folder / "haproxy.cfg")),
        pass_fds=[sock.fileno() for sock in sockets],
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("kind", ["send-proxy", "send-proxy-v2"])
async def test_haproxy_brings_clients(context: ssl.SSLContext, tmp_path: Path, kind: str) -> None:
    async with gateway(context, routing=PROXY) as gate:
        section = f"bind BIND\nserver gateway 127.0.0.1:{gate.port} {kind}"
        async with haproxy(tmp_path, section) as (port,):
            with await connect(port, "127.0.0.7") as client:
                client.send(STREAM)
                sock, carrier, _ = await gate.stream()
                assert carrier is Carrier.TCP
                assert await some(sock, len(STREAM)) == STREAM
                assert gate.paths[0].peer == SocketAddress.of(client.getsockname())
                assert gate.paths[0].local == SocketAddress.of(client.getpeername())
            with await asyncio.to_thread(open_client, port, client_context()) as tls:
                tls.sendall(STREAM)
                _, carrier, received = await gate.stream()
                assert (carrier, received) == (Carrier.TLS, STREAM)
                assert gate.paths[1].peer == SocketAddress.of(tls.getsockname())


async def test_haproxy_asks_how_we_are(tmp_path: Path) -> None:
    """Its checks come with LOCAL, or with its own address."""
    async with gateway(routing=PROXY) as gate:
        server = f"server s 127.0.0.1:{gate.port} check inter 100 send-proxy-v2"
        async with haproxy(tmp_path, f"bind BIND\n{server}"):
            await gate.counted("closed_early", 3)
        await gate.left()
        assert gate.listener.counters.keys() == {"accepted", "closed_early"}


# --- out


JUDGE = """bind BIND accept-proxy
mode http
http-request return content-type text/plain lf-string "%[src] %[src_port] %[dst] %[dst_port]"
"""


@asynccontextmanager
async def judged(
    folder: Path, version: str | None, addresses: Sequence[str] = ("127.0.0.1",)
) -> AsyncIterator[Gateway]:
    """A gateway that sends HTTP on to HAProxy, which answers with what it was told."""
    async with haproxy(folder, JUDGE) as (port,):
        assert version in ("v1", "v2", None)
        routes = (Route(Verdict.HTTP, Backend("127.0.0.1", port, version)),)
        routing = Routing(routes, proxies=(ip_network("127.0.0.2/32"),))
        async with gateway(addresses=addresses, routing=routing) as gate:
            yield gate


def words(answer: bytes) -> list[str]:
    assert answer.startswith(b"HTTP/1.1 200 OK")
    return answer.partition(b"\r\n\r\n")[2].decode().split()


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_the_server_behind_is_told_who_comes(tmp_path: Path, version: str) -> None:
    async with judged(tmp_path, version, ("127.0.0.1", "::1")) as gate:
        for host, port in zip(("127.0.0.1", "::1"), gate.listener.ports, strict=True):
            client = await asyncio.to_thread(socket.create_connection, (host, port))
            own = client.getsockname()
            client.sendall(GET)
            client.setblocking(False)
            assert words(await rest(client)) == [host, str(own[1]), host, str(port)]
        await gate.left()


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_what_a_proxy_said_is_passed_on(tmp_path: Path, version: str) -> None:
    async with judged(tmp_path, version) as gate:
        client = await connect(gate.port, "127.0.0.2")
        client.send(V2 + GET)
        assert words(await rest(client)) == ["192.168.0.1", "56324", "192.168.0.11", "443"]


async def test_it_is_not_told_where_that_is_not_wanted(tmp_path: Path) -> None:
    async with judged(tmp_path, None) as gate:
        assert b"200 OK" not in await gate.talk(GET)  # the judge insists
