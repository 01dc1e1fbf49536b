"""Streams in WebSocket messages on real sockets: both ends ours, or aiohttp at the other one."""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path as FilePath
from typing import NamedTuple

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, web
from aiohttp.http import WebSocketReader

from tests.io.samples import (
    IKE,
    NAME,
    PATIENCE_S,
    Owner,
    address_of,
    esp,
    receive,
    stream,
    tcp_pair,
    tls_pair,
    tls_server,
    train,
    until,
)
from tests.unit.demux.gateway import (
    STREAM,
    client_context,
    connect,
    gateway,
    open_client,
    write_identity,
)
from tunnelwrap.demux.listener import Limits
from tunnelwrap.demux.routing import Routing
from tunnelwrap.demux.shown import server_context
from tunnelwrap.demux.web import MAX_REQUESTS
from tunnelwrap.errors import ConnectFailed, PathClosed, StreamCorrupt
from tunnelwrap.path import Carrier, SocketAddress
from tunnelwrap.transport.dial import open_tls, tls_context
from tunnelwrap.transport.stream import StreamTransport
from tunnelwrap.transport.websocket import MAX_RECEIVED, MAX_SENT, open_websocket
from tunnelwrap.wire.framing import MAX_DATAGRAM, PREFIX, frame
from tunnelwrap.wire.websocket import NONCE, authority, proof, request

PATH = "/Ahdai7eiPhai0ahx"
PACKETS = [esp(number) for number in range(1000)]
Pair = Callable[[], Awaitable[tuple[socket.socket, socket.socket]]]


class Ends(NamedTuple):
    """Two of our transports and their owners; the first opened the connection."""

    near: StreamTransport
    far: StreamTransport
    near_owner: Owner
    far_owner: Owner


@pytest.fixture(params=["tcp", "tls"])
async def pair(request: pytest.FixtureRequest, tmp_path: FilePath) -> AsyncIterator[Pair]:
    """Makes connections, the originator's end first; both ends are closed after the test."""
    made: list[socket.socket] = []

    async def make() -> tuple[socket.socket, socket.socket]:
        both = tcp_pair() if request.param == "tcp" else await tls_pair(tmp_path)
        made.extend(both)
        return both

    yield make
    for sock in made:
        sock.close()


@pytest.fixture
async def ends(pair: Pair) -> AsyncIterator[Ends]:
    near, far = await pair()
    owners = Owner(), Owner()
    made = Ends(
        stream(near, owners[0], is_originator=True, is_websocket=True),
        stream(far, owners[1], is_websocket=True),
        *owners,
    )
    yield made
    made.near.close()
    made.far.close()


def frame_of(kind: int, payload: bytes, *, is_masked: bool = False) -> bytes:
    """A whole WebSocket frame; its mask, if it has one, changes nothing."""
    size, mask = len(payload), bytes(4) if is_masked else b""
    bit = 0x80 if is_masked else 0
    if size < 126:
        return bytes([0x80 | kind, bit | size]) + mask + payload
    return bytes([0x80 | kind, bit | 126]) + size.to_bytes(2, "big") + mask + payload


TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def test_messages_are_read_and_masked_in_c() -> None:
    assert WebSocketReader.__module__ == "aiohttp._websocket.reader_c"


# --- both ends are ours ------------------------------------------------------------------------


@pytest.mark.rfc("9329", "3")
async def test_ike_and_trains_arrive_whole_and_in_order(ends: Ends) -> None:
    ends.near.send(IKE)
    await until(lambda: ends.far_owner.got)
    longest = bytes(MAX_DATAGRAM)
    ends.near.send(longest)
    await until(lambda: ends.far_owner.got == [IKE, longest])
    for sender, owner in ((ends.near, ends.far_owner), (ends.far, ends.near_owner)):
        owner.batches.clear()
        for size in (1, 2, 44, 45, 46, 200):  # 44 packets make messages of less than 64 KiB
            await until(lambda sender=sender: not sender.is_congested)
            sender.send(b"before")
            assert sender.send_esp(*train(PACKETS[:size])) == 0
            expected = [b"before", *PACKETS[:size]]
            await until(lambda owner=owner, expected=expected: len(owner.got) >= len(expected))
            assert owner.got == expected
            owner.batches.clear()
    assert not ends.near_owner.errors
    assert not ends.far_owner.errors


async def test_a_peer_that_does_not_read_makes_congestion_and_no_delay(pair: Pair) -> None:
    near, far = await pair()
    transport = stream(near, Owner(), is_originator=True, is_websocket=True)
    frames, ends_of = train(PACKETS[:200])
    sent = 0
    while not transport.is_congested:
        assert transport.send_esp(frames, ends_of) == 0
        sent += 200
    assert transport.send_esp(frames, ends_of) == 200
    transport.send(IKE)

    owner = Owner()
    reader = stream(far, owner, is_websocket=True)
    await until(lambda: IKE in owner.got and len(owner.got) == sent + 1)
    assert [packet for packet in owner.got if packet != IKE] == PACKETS[:200] * (sent // 200)
    assert not transport.is_congested
    transport.close()
    reader.close()


async def test_the_end_is_told_to_the_other_side(ends: Ends) -> None:
    ends.far.send(IKE)
    ends.far.close()
    await until(lambda: ends.near_owner.errors)
    assert ends.near_owner.got == [IKE]
    assert [str(error) for error in ends.near_owner.errors] == ["peer closed the WebSocket"]
    assert not ends.far_owner.errors


# --- octets on the wire ------------------------------------------------------------------------


@pytest.mark.rfc("9329", "4")
async def test_the_prefix_comes_once_in_the_first_message(pair: Pair) -> None:
    near, far = await pair()
    transport = stream(near, Owner(), is_originator=True, is_websocket=True)
    transport.send(IKE)
    transport.send(IKE)
    bodies = [PREFIX + frame(IKE), frame(IKE)]
    octets = await receive(far, sum(len(body) + 6 for body in bodies))
    masks = []
    for body in bodies:
        assert octets[:2] == bytes([0x80 | BINARY, 0x80 | len(body)])
        mask, octets = octets[2:6], octets[6:]
        assert bytes(a ^ mask[at % 4] for at, a in enumerate(octets[: len(body)])) == body
        octets = octets[len(body) :]
        masks.append(mask)
    assert masks[0] != masks[1]
    transport.close()


async def test_the_responder_neither_masks_nor_sends_a_prefix(pair: Pair) -> None:
    near, far = await pair()
    transport = stream(far, Owner(), is_websocket=True)
    transport.send(IKE)
    expected = frame_of(BINARY, frame(IKE))
    assert await receive(near, len(expected)) == expected
    transport.close()


async def test_where_messages_end_means_nothing(pair: Pair) -> None:
    near, far = await pair()
    owner = Owner()
    transport = stream(far, owner, is_websocket=True)
    octets = PREFIX + frame(IKE) + frame(b"\xff") + frame(PACKETS[0])
    for octet in octets:
        near.sendall(frame_of(BINARY, bytes([octet]), is_masked=True))
    near.sendall(frame_of(BINARY, b"", is_masked=True))
    halves = frame(PACKETS[1])[:700], frame(PACKETS[1])[700:]
    begin = frame_of(BINARY, halves[0], is_masked=True)
    near.sendall(bytes([begin[0] & 0x7F]) + begin[1:])  # not the last fragment
    near.sendall(frame_of(PING, b"amid", is_masked=True))
    near.sendall(frame_of(0, halves[1], is_masked=True))
    await until(lambda: len(owner.got) == 4)
    assert owner.got == [IKE, b"\xff", PACKETS[0], PACKETS[1]]
    assert await receive(near, 6) == frame_of(PONG, b"amid")
    transport.close()


async def test_many_pings_of_who_reads_nothing_end_the_stream(pair: Pair) -> None:
    near, far = await pair()
    owner = Owner()
    stream(far, owner, is_websocket=True)
    near.setblocking(False)
    pings = frame_of(PING, bytes(125), is_masked=True) * 100
    left = memoryview(pings)
    async with asyncio.timeout(4 * PATIENCE_S):
        while not owner.errors:
            try:
                left = left[near.send(left) :] or memoryview(pings)
            except (BlockingIOError, ssl.SSLWantWriteError):
                await asyncio.sleep(0.001)
            except OSError:
                break
            await asyncio.sleep(0)
    await until(lambda: owner.errors)
    assert "takes nothing" in str(owner.errors[0])


@pytest.mark.rfc("9329", "6.1")
@pytest.mark.parametrize(
    ("octets", "code", "words"),
    [
        (frame_of(TEXT, b"hello", is_masked=True), 1003, "a message of text"),
        (frame_of(BINARY, b"IKETCQ", is_masked=True), 1002, "does not begin with IKETCP"),
        (frame_of(BINARY, PREFIX + b"\0\1", is_masked=True), 1002, "frame length 1"),
        (frame_of(3, b"", is_masked=True), 1002, "opcode"),
        (b"\xc2\x80" + bytes(4), 1002, "reserved bits"),
        (PREFIX + frame(IKE), 1002, "reserved bits"),
        (b"\x82\xff" + MAX_RECEIVED.to_bytes(8, "big"), 1009, "exceeds limit"),
    ],
    ids=["text", "no prefix", "no frame", "opcode", "compressed", "no messages", "too long"],
)
async def test_what_is_no_stream_is_closed_with_a_reason(
    pair: Pair, octets: bytes, code: int, words: str
) -> None:
    near, far = await pair()
    owner = Owner()
    stream(far, owner, is_websocket=True)
    near.sendall(octets)
    await until(lambda: owner.errors)
    assert isinstance(owner.errors[0], StreamCorrupt)
    assert words in str(owner.errors[0])
    assert not owner.got
    assert await receive(near, 4) == frame_of(CLOSE, code.to_bytes(2, "big"))
    assert near.recv(1) == b""


async def test_a_close_is_answered_behind_what_came_before(pair: Pair) -> None:
    near, far = await pair()
    owner = Owner()
    stream(far, owner, is_websocket=True)
    near.sendall(frame_of(BINARY, PREFIX + frame(IKE), is_masked=True))
    near.sendall(frame_of(CLOSE, (1001).to_bytes(2, "big"), is_masked=True))
    await until(lambda: owner.errors)
    assert owner.got == [IKE]
    assert isinstance(owner.errors[0], PathClosed)
    assert not isinstance(owner.errors[0], StreamCorrupt)
    assert await receive(near, 4) == frame_of(CLOSE, (1000).to_bytes(2, "big"))
    assert near.recv(1) == b""


async def test_a_web_server_where_a_gateway_should_be(pair: Pair) -> None:
    near, far = await pair()
    owner = Owner()
    transport = stream(near, owner, is_originator=True)
    transport.send(IKE)
    far.sendall(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n")
    await until(lambda: owner.errors)
    assert str(owner.errors[0]) == "a web server answers there, and no gateway"


# --- the client's handshake --------------------------------------------------------------------


@asynccontextmanager
async def web_server(
    directory: FilePath, say: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[tuple[SocketAddress, str]]:
    """aiohttp's, in TLS, with one path; its address, and whom to trust."""
    context, ca = tls_server(directory)
    application = web.Application()
    application.router.add_get(PATH, say)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield SocketAddress.of(runner.addresses[0]), ca
    finally:
        await runner.cleanup()


async def test_a_server_by_aiohttp_is_understood_and_understands(tmp_path: FilePath) -> None:
    messages: list[bytes] = []
    hosts: list[str] = []

    async def say(request: web.Request) -> web.StreamResponse:
        hosts.append(request.host)
        socket_ = web.WebSocketResponse(compress=True)
        await socket_.prepare(request)
        await socket_.ping(b"are you there")
        await socket_.send_bytes(frame(IKE) + frame(PACKETS[0])[:9])
        await socket_.send_bytes(frame(PACKETS[0])[9:])
        async for message in socket_:
            assert message.type is WSMsgType.BINARY
            messages.append(message.data)
        return socket_

    async with web_server(tmp_path, say) as (address, ca):
        sock = await open_tls(address, NAME, tls_context(ca, None))
        rest = await open_websocket(sock, NAME, address.port, PATH)
        owner = Owner()
        transport = stream(sock, owner, is_originator=True, received=rest, is_websocket=True)
        await until(lambda: len(owner.got) == 2)
        frames, ends_of = train(PACKETS[:200])
        transport.send(IKE)
        assert transport.send_esp(frames, ends_of) == 0
        whole = PREFIX + frame(IKE) + bytes(frames)
        await until(lambda: len(b"".join(messages)) == len(whole))
        transport.close()
    assert owner.got == [IKE, PACKETS[0]]
    assert b"".join(messages) == whole
    assert hosts == [f"{NAME}:{address.port}"]
    assert MAX_SENT - 1474 < max(map(len, messages)) <= MAX_SENT
    assert len(messages) == 1 + -(-len(frames) // MAX_SENT)


async def handshake(directory: FilePath, answer: bytes | None) -> None:
    """Try one with a server that answers so, or not at all."""
    context, ca = tls_server(directory)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        address = address_of(server.sockets[0])
        sock = await open_tls(address, NAME, tls_context(ca, None))
        try:
            await open_websocket(sock, NAME, address.port, PATH, timeout_s=0.5)
        finally:
            assert sock.fileno() == -1


UPGRADED = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {}\r\n{}\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n", "no WebSocket at this path:"),
        (b"HTTP/1.1 301 \xe2\x80\xa6\r\nLocation: /\r\n\r\n", "HTTP status 301"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 101 Swi", "peer closed the connection"),
        (None, "no answer to HTTP within 0.5 s"),
        (UPGRADED.format("websocket", "").encode(), "makes no WebSocket"),
        (
            UPGRADED.format(
                "h2c", f"Sec-WebSocket-Accept: {proof(bytes(24)).decode()}\r\n"
            ).encode(),
            "makes no WebSocket",
        ),
    ],
    ids=["404", "301", "ssh", "end", "silence", "no proof", "another protocol"],
)
async def test_what_is_no_websocket_has_a_reason(
    tmp_path: FilePath, answer: bytes | None, words: str
) -> None:
    with pytest.raises(ConnectFailed) as caught:
        await handshake(tmp_path, answer)
    assert words in str(caught.value)
    assert PATH not in str(caught.value)


# --- the gateway's handshake -------------------------------------------------------------------


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(*write_identity(tmp_path_factory.mktemp("identity")))


ASKED = request(authority("localhost", 443), PATH, bytes(NONCE))


@pytest.mark.parametrize("has_tls", [True, False])
async def test_a_client_by_aiohttp_is_understood_and_understands(
    context: ssl.SSLContext, *, has_tls: bool
) -> None:
    async with gateway(context if has_tls else None, secret_path=PATH) as gate:
        url = f"{'wss' if has_tls else 'ws'}://localhost:{gate.port}{PATH}"
        async with ClientSession() as session:
            client = await session.ws_connect(url, ssl=client_context() if has_tls else True)
            sock, carrier, received = await gate.stream()
            assert (carrier, received) == (Carrier.WEBSOCKET, b"")
            owner = Owner()
            transport = stream(sock, owner, received=received, is_websocket=True)
            await talk_with(client, owner, transport)
            transport.close()
            assert (await client.receive()).type is WSMsgType.CLOSE
            await client.close()
        await until(lambda: gate.listener.counters["ike_ws"])
        counted = {"accepted": 1, "http": 1, "ike_ws": 1} | ({"tls": 1} if has_tls else {})
        assert gate.listener.counters == counted


async def talk_with(
    client: ClientWebSocketResponse, owner: Owner, transport: StreamTransport
) -> None:
    await client.send_bytes(PREFIX + frame(IKE))
    frames, ends_of = train(PACKETS[:200])
    await client.send_bytes(bytes(frames))
    await until(lambda: len(owner.got) == 201)
    assert owner.got == [IKE, *PACKETS[:200]]
    assert transport.send_esp(frames, ends_of) == 0
    octets = b""
    while len(octets) < len(frames):
        message = await client.receive(PATIENCE_S)
        assert message.type is WSMsgType.BINARY
        octets += message.data
    assert octets == bytes(frames)


async def test_what_comes_with_the_request_belongs_to_the_stream(context: ssl.SSLContext) -> None:
    async with gateway(context, secret_path=PATH) as gate:
        client = await asyncio.to_thread(open_client, gate.port, client_context())
        early = frame_of(BINARY, STREAM, is_masked=True)
        with client:
            client.sendall(ASKED + early)
            assert (await gate.stream())[1:] == (Carrier.WEBSOCKET, early)
            assert client.recv(4096).startswith(b"HTTP/1.1 101 Switching Protocols\r\n")


async def test_a_visitor_may_look_at_the_site_before(context: ssl.SSLContext) -> None:
    async with gateway(context, secret_path=PATH) as gate:
        client = await asyncio.to_thread(open_client, gate.port, client_context())
        with client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            page = await asyncio.to_thread(client.recv, 4096)
            assert page.startswith(b"HTTP/1.1 200 OK\r\n")
            client.sendall(ASKED)
            assert (await gate.stream())[1] is Carrier.WEBSOCKET


def changed(old: bytes, new: bytes) -> bytes:
    assert ASKED.count(old) == 1
    return ASKED.replace(old, new)


STRANGERS = {
    "another path": changed(PATH.encode(), b"/chat"),
    "longer path": changed(PATH.encode(), PATH.encode() + b"/"),
    "query": changed(PATH.encode(), PATH.encode() + b"?"),
    "other case": changed(PATH.encode(), PATH.lower().encode()),
    "no upgrade": changed(b"Upgrade: websocket\r\n", b""),
    "another upgrade": changed(b"websocket\r\n", b"h2c\r\n"),
    "no connection": changed(b"Connection: Upgrade\r\n", b"Connection: keep-alive\r\n"),
    "old version": changed(b"Version: 13", b"Version: 8"),
    "short key": changed(b": AAAA", b": "),
    "no base64": changed(b": AAAA", b": A-A_"),
    "no key": changed(b"Sec-WebSocket-Key", b"Sec-WebSocket-Kay"),
    "post": changed(b"GET ", b"POST "),
    "http/1.0": changed(b"HTTP/1.1", b"HTTP/1.0"),
    "no host": changed(b"Host: localhost\r\n", b""),
    "malformed": changed(b"Host: ", b"Host : "),
    "the site": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("asked", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("has_tls", [True, False])
async def test_whoever_asks_otherwise_gets_what_there_is_without_a_secret(
    context: ssl.SSLContext, asked: bytes, *, has_tls: bool
) -> None:
    last = asked + b"GET /none HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with gateway(context) as bare:
        expected = await bare.talk(last, context=client_context())
    async with gateway(context if has_tls else None, secret_path=PATH) as gate:
        answer = await gate.talk(last, context=client_context() if has_tls else None)
        assert dateless(answer) == dateless(expected)
        assert gate.listener.counters["ike_ws"] == 0
        assert gate.streams.empty()


def dateless(answer: bytes) -> bytes:
    return re.sub(rb"Date: [^\r]+", b"Date", answer)


async def test_the_last_request_of_a_connection_may_be_the_one(context: ssl.SSLContext) -> None:
    async with gateway(context, secret_path=PATH) as gate:
        client = await asyncio.to_thread(open_client, gate.port, client_context())
        with client:
            client.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n" * (MAX_REQUESTS - 1))
            client.sendall(ASKED)
            assert (await gate.stream())[1] is Carrier.WEBSOCKET


# --- a port for a reverse proxy ----------------------------------------------------------------


async def test_a_proxy_tells_for_whom_it_asks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with gateway(secret_path=PATH) as gate:
        client = await asyncio.to_thread(open_client, gate.port)
        with client:
            client.sendall(ASKED[:-2] + b"X-Forwarded-For: 203.0.113.9\x1b\r\n\r\n")
            await gate.stream()
            name = client.getsockname()
            assert await asyncio.to_thread(client.recv, 12) == b"HTTP/1.1 101"
        assert caplog.messages == [
            rf"ws 127.0.0.1:{name[1]}: forwarded for '203.0.113.9\x1b'",
        ]


@pytest.mark.parametrize("proxies", ["127.0.0.1/32", "127.0.0.2/32"], ids=["told", "untold"])
async def test_clients_of_a_proxy_are_counted_by_their_addresses_if_it_tells_them(
    proxies: str,
) -> None:
    is_told = proxies == "127.0.0.1/32"
    header = b"PROXY TCP4 203.0.113.9 192.0.2.1 5000 80\r\n" if is_told else b""
    routing = Routing(proxies=(ip_network(proxies),))
    limits = Limits(strangers=3, strangers_per_origin=2)
    async with gateway(None, limits, routing=routing, secret_path=PATH) as gate:
        clients = [await connect(gate.port) for _ in range(3)]
        for number, client in enumerate(clients, 1):
            client.send(header + ASKED[:-2])  # strangers still, and all at once
            await until(
                lambda number=number: (
                    gate.listener.counters["http"] + gate.listener.counters["shed"] == number
                )
            )
        assert gate.listener.counters["shed"] == (1 if is_told else 0)
        for client in clients[:2]:
            client.send(b"\r\n")
            assert (await gate.stream())[1] is Carrier.WEBSOCKET
        for client in clients:
            client.close()
        origin = ip_address("203.0.113.9")
        assert gate.origins == [origin.packed if is_told else None] * 2
        assert (gate.paths[0].peer.ip == origin) == is_told


async def test_no_log_has_the_path(
    context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with gateway(context, Limits(deadline_s=1), secret_path=PATH) as gate:
        client = await asyncio.to_thread(open_client, gate.port, client_context())
        with client:
            client.sendall(ASKED)
            await gate.stream()
        await gate.talk(changed(b"Version: 13", b"Version: 8"), context=client_context())
    assert PATH not in caplog.text


async def test_a_proxy_may_hand_on_streams_without_http(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(secret_path=PATH) as gate:
        client = await asyncio.to_thread(open_client, gate.port)
        with client:
            client.sendall(STREAM)
            assert (await gate.stream())[1] is Carrier.TCP


async def test_tls_where_http_is_spoken_is_a_bad_request() -> None:
    async with gateway(secret_path=PATH) as gate:
        answer = await gate.talk(b"\x16\x03\x01\x00\x05hello\r\n")
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
