"""What strangers see who come with TLS: a web server, here with one page."""

import asyncio
import http.client
import socket
import ssl
from contextlib import suppress

import pytest

from tests.unit.demux.gateway import (
    TLS_VERSIONS,
    client_context,
    gateway,
    open_client,
    reset,
    write_identity,
)
from tunnelwrap.demux.listener import Limits
from tunnelwrap.demux.shown import server_context
from tunnelwrap.demux.web import MAX_REQUESTS

HOST = b"Host: localhost\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(*write_identity(tmp_path_factory.mktemp("identity")))


def ask(port: int, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
    """One request as a program makes it; the response has been read to its end."""
    connection = http.client.HTTPSConnection("localhost", port, context=client_context())
    connection.sock = open_client(port, client_context())
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        response.read()
        return response
    finally:
        connection.close()


@pytest.mark.parametrize("version", TLS_VERSIONS)
async def test_the_page_for_curl(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    maximum = version.name.removeprefix("TLSv").replace("_", ".")
    async with gateway(context) as gate:
        curl = await asyncio.create_subprocess_exec(
            *("curl", "-k", "-sS", "-i", "--tls-max", maximum, "--noproxy", "*"),
            f"https://127.0.0.1:{gate.port}/",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, errors = await curl.communicate()
        await gate.left()
    assert errors == b""
    assert curl.returncode == 0
    assert out.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"<h1>Welcome</h1>" in out
    assert gate.listener.counters == {"accepted": 1, "tls": 1, "http": 1}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 200), ("HEAD", "/", 200), ("GET", "/admin", 404), ("DELETE", "/", 405)],
)
async def test_answers_for_a_program(
    context: ssl.SSLContext, method: str, path: str, status: int
) -> None:
    async with gateway(context) as gate:
        response = await asyncio.to_thread(ask, gate.port, method, path)
        await gate.left()
    assert response.status == status
    assert response.getheader("Server") == "nginx"
    assert response.getheader("Connection") == "keep-alive"


async def test_a_body_is_passed_over(context: ssl.SSLContext) -> None:
    async with gateway(context) as gate:
        response = await asyncio.to_thread(ask, gate.port, "POST", "/", bytes(150_000))
        await gate.left()
    assert response.status == 405
    assert response.getheader("Connection") == "keep-alive"


async def test_a_connection_serves_a_bounded_number_of_requests(context: ssl.SSLContext) -> None:
    async with gateway(context) as gate:
        said = await gate.talk(GET * (MAX_REQUESTS + 1), context=client_context())
    assert said.count(b"HTTP/1.1 200 OK\r\n") == MAX_REQUESTS
    assert said.count(b"Connection: keep-alive\r\n") == MAX_REQUESTS - 1
    assert said.count(b"Connection: close\r\n") == 1


async def test_requests_in_single_octets(context: ssl.SSLContext) -> None:
    request = GET + b"GET /a HTTP/1.0\r\n\r\n"
    pieces = [request[at : at + 1] for at in range(len(request))]
    async with gateway(context) as gate:
        said = await gate.talk(*pieces, context=client_context())
    assert said.count(b"HTTP/1.1 200 OK") == said.count(b"HTTP/1.1 404 Not Found") == 1


@pytest.mark.parametrize(
    "octets",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x05\x01\x00",
        b"\x16\x03\x01\x00\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"a" * 8192,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_request_gets_400_at_once(context: ssl.SSLContext, octets: bytes) -> None:
    async with gateway(context) as gate:
        said = await gate.talk(octets, context=client_context())
    assert said.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Connection: close\r\n" in said


@pytest.mark.parametrize("name", ["a..b", "a_b", "x" * 70, "192.0.2.1", "other.example"])
async def test_whichever_name_is_asked_for_is_served(context: ssl.SSLContext, name: str) -> None:
    async with gateway(context) as gate:
        client = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{gate.port}", "-servername", name),
            *("-quiet", "-no_ign_eof"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        out, _ = await client.communicate(b"GET / HTTP/1.0\r\n\r\n")
        await gate.left()
    assert gate.listener.counters["http"] == 1
    assert out.startswith(b"HTTP/1.1 200 OK") or not out  # which comes first, its end or the page


@pytest.mark.parametrize("version", TLS_VERSIONS)
async def test_who_speaks_no_http_is_refused(
    context: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    client = client_context(version)
    client.set_alpn_protocols(["h2", "imap"])
    async with gateway(context) as gate:
        with pytest.raises(ssl.SSLError, match="no application protocol"):
            await asyncio.to_thread(open_client, gate.port, client)
        await gate.counted("tls_failed")


async def test_empty_lines_before_a_request_are_ignored(context: ssl.SSLContext) -> None:
    async with gateway(context) as gate:
        said = await gate.talk(b"\r\n\r\nGET / HTTP/1.0\r\n\r\n", context=client_context())
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("version", TLS_VERSIONS)
async def test_tls_ends_in_good_order(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    """A TLS stream without close_notify is an error to this client."""
    async with gateway(context) as gate:
        said = await gate.talk(b"GET / HTTP/1.0\r\n\r\n", context=client_context(version))
    assert said.endswith(b"</html>\n")


@pytest.mark.parametrize("begin", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n", GET])
async def test_who_falls_silent_is_left(context: ssl.SSLContext, begin: bytes) -> None:
    async with gateway(context, Limits(deadline_s=0.3)) as gate:
        client = await asyncio.to_thread(open_client, gate.port, client_context())
        with client:
            client.sendall(begin)
            said = await asyncio.to_thread(said_by, client)
        await gate.left()
    assert said.count(b"HTTP/1.1") == (begin == GET)


def said_by(client: socket.socket) -> bytes:
    """All that it says; in the middle of a request it leaves without a word."""
    octets = b""
    with suppress(ssl.SSLEOFError):
        while piece := client.recv(65536):
            octets += piece
    return octets


async def test_a_visitor_who_resets(context: ssl.SSLContext) -> None:
    async with gateway(context) as gate:
        for octets in (b"GET / HT", GET * 40):
            client = await asyncio.to_thread(open_client, gate.port, client_context())
            await asyncio.to_thread(client.sendall, octets)
            await gate.counted("http")
            reset(client)
            await gate.left()
            gate.listener.counters.clear()
        assert await gate.talk(GET[:-2] + b"Connection: close\r\n\r\n", context=client_context())
    assert gate.listener.counters["failed"] == 0


async def test_a_visitor_who_never_reads_is_left(context: ssl.SSLContext) -> None:
    async with gateway(context, Limits(deadline_s=0.5)) as gate:
        client = await asyncio.to_thread(slow_reader, gate.port)
        with client:
            await gate.counted("http")
            await gate.left()


def slow_reader(port: int) -> ssl.SSLSocket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(("127.0.0.1", port))
    client = client_context().wrap_socket(sock, server_hostname="localhost")
    client.sendall(GET * MAX_REQUESTS)
    return client
