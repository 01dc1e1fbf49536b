"""The gateway's stream port on loopback: who comes is told apart, and nothing is lost or kept."""

import asyncio
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.unit.demux.gateway import (
    LOCALHOST,
    STREAM,
    TLS_VERSIONS,
    Gateway,
    client_context,
    connect,
    descriptors,
    gateway,
    open_client,
    reset,
    rest,
    some,
    talk,
    until,
    write_identity,
)
from tests.unit.wire.samples import load
from tunnelwrap.demux.listener import Limits, Listener
from tunnelwrap.demux.places import Places
from tunnelwrap.demux.shown import server_context
from tunnelwrap.demux.stranger import Stranger
from tunnelwrap.errors import TransportError
from tunnelwrap.path import Carrier, SocketAddress
from tunnelwrap.wire.framing import PREFIX
from tunnelwrap.wire.proxy import Ends

HELLO = load("client_hello")[0]["octets"]
SSH = b"SSH-2.0-OpenSSH_9.2\r\n"
HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
SHORT = Limits(deadline_s=0.3)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(*write_identity(tmp_path_factory.mktemp("identity")))


async def serves(gate: Gateway) -> None:
    """A new stream is taken over: the gateway is in order."""
    with await connect(gate.port) as client:
        client.send(STREAM)
        sock, _, _ = await gate.stream()
        assert await some(sock, len(STREAM)) == STREAM


# --- IKE streams


@pytest.mark.parametrize("has_tls", [False, True])
async def test_a_bare_stream_is_handed_over_unread(
    context: ssl.SSLContext, *, has_tls: bool
) -> None:
    async with gateway(context if has_tls else None) as gate:
        with await connect(gate.port) as client:
            client.send(STREAM)
            sock, carrier, received = await gate.stream()
            assert (carrier, received) == (Carrier.TCP, b"")
            assert sock.getpeername() == client.getsockname()
            assert not sock.getblocking()
            assert await some(sock, len(STREAM)) == STREAM
            sock.send(b"answer")
            assert await some(client, 6) == b"answer"
        assert gate.listener.counters == {"accepted": 1, "ike_tcp": 1}


async def test_a_prefix_in_six_segments() -> None:
    async with gateway() as gate:
        with await connect(gate.port) as client:
            for octet in PREFIX:
                assert gate.streams.empty()
                client.send(bytes([octet]))
                await asyncio.sleep(0.01)
            sock, _, _ = await gate.stream()
            assert await some(sock, len(PREFIX)) == PREFIX
            client.send(b"x")  # a single octet makes it readable again
            assert await some(sock, 1) == b"x"
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


@pytest.mark.rfc("9329", "A")
@pytest.mark.rfc("9329", "4")
@pytest.mark.parametrize("version", TLS_VERSIONS)
async def test_a_stream_in_tls(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    async with gateway(context) as gate:
        client = await asyncio.to_thread(open_client, gate.port, client_context(version))
        with client:
            client.sendall(STREAM)
            sock, carrier, received = await gate.stream()
            assert (carrier, received) == (Carrier.TLS, STREAM)
            assert isinstance(sock, ssl.SSLSocket)
            assert not sock.getblocking()
            client.sendall(b"more")
            assert await some(sock, 4) == b"more"
            sock.send(b"answer")
            assert client.recv(100) == b"answer"
        assert gate.listener.counters == {"accepted": 1, "tls": 1, "ike_tls": 1}


@pytest.mark.parametrize("version", TLS_VERSIONS)
async def test_a_prefix_in_six_records(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    async with gateway(context) as gate:
        client = await asyncio.to_thread(open_client, gate.port, client_context(version))
        with client:
            for octet in PREFIX:
                assert gate.streams.empty()
                client.sendall(bytes([octet]))
                await asyncio.sleep(0.01)
            _, carrier, received = await gate.stream()
            assert (carrier, received) == (Carrier.TLS, PREFIX)


async def test_no_octet_stays_behind_in_tls(context: ssl.SSLContext) -> None:
    """What the TLS engine holds never makes a socket readable: all of a record is handed over."""
    record = (PREFIX + bytes(1 << 14))[: 1 << 14]
    async with gateway(context) as gate:
        client = await asyncio.to_thread(open_client, gate.port, client_context())
        with client:
            client.sendall(record)
            sock, _, received = await gate.stream()
            assert received == record
            assert isinstance(sock, ssl.SSLSocket)
            assert sock.pending() == 0


async def test_ipv4_and_ipv6_side_by_side() -> None:
    async with gateway(addresses=["127.0.0.1", "::1"]) as gate:
        for address, port in zip(("127.0.0.1", "::1"), gate.listener.ports, strict=True):
            with await asyncio.to_thread(socket.create_connection, (address, port)) as client:
                client.sendall(STREAM)
                sock, _, _ = await gate.stream()
                assert sock.getpeername()[0] == address


async def test_300_at_once(context: ssl.SSLContext) -> None:
    async with gateway(context, Limits(strangers_per_origin=300)) as gate:
        with ExitStack() as stack:
            clients = [stack.enter_context(await connect(gate.port)) for _ in range(300)]
            for number, client in enumerate(clients):
                client.send(STREAM[: number % len(PREFIX)])
            await gate.counted("accepted", 300)
            for number, client in enumerate(clients):
                client.send(STREAM[number % len(PREFIX) :])
            for _ in range(300):
                sock, _, _ = await gate.stream()
                assert await some(sock, len(STREAM)) == STREAM
        assert gate.listener.counters == {"accepted": 300, "ike_tcp": 300}


# --- Strangers


@pytest.mark.parametrize("octets", [HTTP, SSH, HELLO, b"\0", b"IKEV2", b"GE\r\n", bytes(5000)])
async def test_without_tls_all_but_ike_is_closed_at_once(octets: bytes) -> None:
    async with gateway() as gate:
        assert await gate.talk(octets) == b""
        await serves(gate)
        assert gate.listener.counters.keys() <= {"accepted", "ike_tcp", "http", "other", "tls"}


@pytest.mark.parametrize("octets", [SSH, b"\x05\1\0", b"IKEV2", bytes(100_000)])
async def test_what_is_not_http_gets_400_on_a_port_with_tls(
    context: ssl.SSLContext, octets: bytes
) -> None:
    async with gateway(context) as gate:
        said = await gate.talk(octets)
        assert said.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert gate.listener.counters == {"accepted": 1, "other": 1}


async def test_plain_http_on_a_port_with_tls(context: ssl.SSLContext) -> None:
    async with gateway(context) as gate:
        said = await gate.talk(*(HTTP[at : at + 1] for at in range(len(HTTP))))
        assert said.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"The plain HTTP request was sent to HTTPS port" in said
        assert gate.listener.counters == {"accepted": 1, "http": 1}


async def test_tls_in_tls_is_nothing_that_is_known(context: ssl.SSLContext) -> None:
    async with gateway(context) as gate:
        said = await gate.talk(HELLO, context=client_context())
        assert said.startswith(b"HTTP/1.1 400 ")
        assert gate.listener.counters == {"accepted": 1, "tls": 1, "other": 1}


@pytest.mark.parametrize(
    "octets", [b"\x16\x03\x01\x00\x04junk", HELLO[:40] + bytes(400), HELLO[:-4] + b"junk"]
)
async def test_broken_handshakes(context: ssl.SSLContext, octets: bytes) -> None:
    async with gateway(context, SHORT) as gate:
        await gate.talk(octets)
        await gate.left()
        assert gate.listener.counters == {"accepted": 1, "tls": 1, "tls_failed": 1}


async def test_a_client_that_does_not_trust_us(context: ssl.SSLContext) -> None:
    async with gateway(context) as gate:
        with pytest.raises(ssl.SSLCertVerificationError):
            await gate.talk(STREAM, context=ssl.create_default_context())
        await gate.counted("tls_failed")


# --- Silence and ends


@pytest.mark.parametrize("has_tls", [False, True])
@pytest.mark.parametrize("octets", [b"", b"I", b"IKETC", b"GET", b"\x16"])
async def test_who_falls_silent_is_closed_at_the_deadline(
    context: ssl.SSLContext, octets: bytes, *, has_tls: bool
) -> None:
    async with gateway(context if has_tls else None, SHORT) as gate:
        begin, cpu = time.monotonic(), time.process_time()
        with await connect(gate.port) as client:
            client.send(octets)
            assert await rest(client) == b""
        assert 0.25 < time.monotonic() - begin < 5
        assert time.process_time() - cpu < 0.15  # it slept
        await gate.left()
        assert gate.listener.counters == {"accepted": 1, "timed_out": 1}


async def test_a_slow_sender_gains_no_time() -> None:
    async with gateway(limits=SHORT) as gate:
        begin = time.monotonic()
        with await connect(gate.port) as client, suppress(ConnectionError):
            for octet in PREFIX:
                client.send(bytes([octet]))
                await asyncio.sleep(0.1)
        assert gate.listener.counters == {"accepted": 1, "timed_out": 1}
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("octets", [HELLO[:5], HELLO[:-1], HELLO])
async def test_silence_in_the_handshake(context: ssl.SSLContext, octets: bytes) -> None:
    async with gateway(context, SHORT) as gate:
        with await connect(gate.port) as client:
            client.send(octets)
            await rest(client)
        assert gate.listener.counters == {"accepted": 1, "tls": 1, "timed_out": 1}


@pytest.mark.parametrize("octets", [b"", b"I", b"GET"])
async def test_silence_in_tls(context: ssl.SSLContext, octets: bytes) -> None:
    async with gateway(context, SHORT) as gate:
        client = await asyncio.to_thread(open_client, gate.port, client_context())
        with client:
            client.sendall(octets)
            with suppress(ssl.SSLEOFError):  # without a word, in the middle of a request
                assert await asyncio.to_thread(client.recv, 1) == b""
        assert gate.listener.counters == {"accepted": 1, "tls": 1, "other": 1}


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("octets", [b"", b"I", b"IKETC", b"\x16", HELLO[:5], HELLO[:-1]])
async def test_who_leaves_before_a_verdict(
    context: ssl.SSLContext, octets: bytes, *, is_reset: bool
) -> None:
    async with gateway(context) as gate:
        client = await connect(gate.port)
        client.send(octets)
        await gate.counted("accepted")
        (reset if is_reset else socket.socket.close)(client)
        await gate.counted("closed_early")
        await serves(gate)
        assert not gate.listener.counters.keys() & {"tls_failed", "timed_out", "failed"}


@pytest.mark.parametrize("octets", [b"", b"I", SSH, HTTP, HELLO])
async def test_who_has_left_before_accept(
    context: ssl.SSLContext, octets: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The octets can be read still, but nothing else works with such a socket."""
    async with gateway(context) as gate:
        with socket.create_connection(("127.0.0.1", gate.port)) as client:
            client.sendall(octets)
            reset(client)
        await serves(gate)
        await gate.left()
        assert gate.listener.counters["accepted"] == 2
        assert gate.listener.counters["failed"] == 0
        assert caplog.records == []


async def test_a_stream_whose_peer_is_gone_when_its_owner_looks() -> None:
    listener = Listener([LOCALHOST], 0, lambda sock, *_: sock.getpeername())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listener.run())
        with socket.create_connection(("127.0.0.1", listener.ports[0])) as client:
            client.sendall(STREAM)
            reset(client)
        await until(lambda: listener.counters.total() > 1)
        listener.close()
    assert listener.counters == {"accepted": 1, "closed_early": 1}


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("octets", [b"", b"IKETC"])
async def test_who_leaves_inside_tls(
    context: ssl.SSLContext, octets: bytes, *, is_reset: bool
) -> None:
    async with gateway(context) as gate:
        client = await asyncio.to_thread(open_client, gate.port, client_context())
        client.sendall(octets)
        await gate.counted("tls")
        (reset if is_reset else socket.socket.close)(client)
        await until(lambda: gate.listener.counters.total() > 2)
        await serves(gate)


async def test_an_end_right_after_the_prefix_is_for_the_owner_to_see() -> None:
    async with gateway() as gate:
        with await connect(gate.port) as client:
            client.send(PREFIX)
        sock, _, _ = await gate.stream()
        assert await rest(sock) == PREFIX


async def test_sending_waits_for_room() -> None:
    """Who reads slowly gets every octet all the same."""
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    place = Places(1, 1).take(LOCALHOST)
    assert place is not None
    ends = Ends(SocketAddress(LOCALHOST, 1), SocketAddress(LOCALHOST, 2))
    stranger, octets = Stranger(near, ends, place), bytes(range(256)) * 1000
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(stranger.send(octets))
        await asyncio.sleep(0.01)
        assert not sending.done()
        far.setblocking(False)
        assert await some(far, len(octets)) == octets
    stranger.close()
    far.close()


# --- Limits


async def test_the_newest_strangers_are_shed() -> None:
    async with gateway(limits=Limits(strangers=3)) as gate:
        with ExitStack() as clients:
            first = [clients.enter_context(await connect(gate.port)) for _ in range(3)]
            await gate.counted("accepted", 3)
            assert await gate.talk(STREAM) == b""
            assert gate.listener.counters["shed"] == 1
            first[0].send(STREAM)  # who was there before is served
            await gate.stream()
            await serves(gate)  # and gives up the place


async def test_an_address_has_its_own_limit() -> None:
    async with gateway(limits=Limits(strangers_per_origin=2)) as gate:
        with ExitStack() as clients:
            for _ in range(2):
                clients.enter_context(await connect(gate.port))
            await gate.counted("accepted", 2)
            assert await gate.talk(STREAM) == b""
            with await connect(gate.port, "127.0.0.2") as other:
                other.send(STREAM)
                await gate.stream()
        await gate.counted("closed_early", 2)
        await serves(gate)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing for a while."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as filling:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 50, limits[1]))
        try:
            with suppress(OSError):
                while True:
                    filling.enter_context(socket.socket())
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_out_of_descriptors_it_sheds_and_pauses(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway() as gate:
        await serves(gate)
        loop, cpu = asyncio.get_running_loop(), time.process_time()
        with ExitStack() as stack:
            # They stay open: a descriptor that is closed would be one for the gateway.
            clients = [stack.enter_context(socket.socket()) for _ in range(5)]
            stack.enter_context(no_descriptors())
            for client in clients:
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", gate.port))
            for client in clients:
                assert await asyncio.wait_for(loop.sock_recv(client, 1), 10) == b""
        assert time.process_time() - cpu < 0.5
        assert gate.listener.counters["shed"] == 5
        assert 1 <= gate.listener.counters["exhausted"] <= 5
        assert "Too many open files" in caplog.text
        await serves(gate)


async def test_without_a_reserve_those_who_wait_are_served_after_the_pause() -> None:
    loop = asyncio.get_running_loop()
    async with gateway() as gate:
        with socket.socket() as client:
            client.setblocking(False)
            with no_descriptors():  # from before it runs
                await loop.sock_connect(client, ("127.0.0.1", gate.port))
                client.send(STREAM)
                await gate.counted("exhausted", 2)
            await gate.stream()
        assert 2 <= gate.listener.counters.pop("exhausted") <= 3
        assert gate.listener.counters == {"accepted": 1, "ike_tcp": 1}


# --- Begin and end


async def test_close_ends_all_that_was_not_handed_over(context: ssl.SSLContext) -> None:
    async with gateway(context) as gate:
        with ExitStack() as clients:
            clients.enter_context(owner := await connect(gate.port))
            owner.send(STREAM)
            sock, _, _ = await gate.stream()
            undecided = [clients.enter_context(await connect(gate.port)) for _ in range(3)]
            for client, octets in zip(undecided, (b"", b"IKE", HELLO[:9]), strict=True):
                client.send(octets)
            reader = await asyncio.to_thread(open_client, gate.port, client_context())
            clients.enter_context(reader)
            reader.sendall(b"GET / HT")
            await gate.counted("http")
            gate.listener.close()
            gate.listener.close()
            await asyncio.wait_for(asyncio.shield(gate.running), 5)
            for client in undecided:
                assert await rest(client) == b""
            with pytest.raises(ConnectionRefusedError):
                await connect(gate.port)
            assert await some(sock, len(STREAM)) == STREAM


async def test_one_who_was_just_accepted_is_closed_too() -> None:
    """Its task is cancelled before its first step."""
    async with gateway() as gate:
        with await connect(gate.port) as client:
            loop = asyncio.get_running_loop()
            closed = asyncio.Event()

            def close_once_accepted() -> None:
                if gate.listener.counters["accepted"]:
                    gate.listener.close()
                    closed.set()
                else:
                    loop.call_soon(close_once_accepted)

            close_once_accepted()
            await closed.wait()
            assert await rest(client) == b""


async def test_cancelling_run_closes_it() -> None:
    async with gateway() as gate:
        with await connect(gate.port) as client:
            client.send(b"IKE")
            await gate.counted("accepted")
            gate.running.cancel()
            assert await rest(client) == b""
        await until(gate.running.done)


async def test_close_before_run() -> None:
    before = descriptors()
    listener = Listener([LOCALHOST], 0, lambda *_: None)
    listener.close()
    assert descriptors() == before
    await asyncio.wait_for(listener.run(), 5)


async def test_an_owner_who_fails_harms_no_one_else(caplog: pytest.LogCaptureFixture) -> None:
    def take(*_: object) -> None:
        raise RuntimeError("no room")

    before = descriptors()
    listener = Listener([LOCALHOST], 0, take)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listener.run())
        for number in (1, 2):
            assert await asyncio.to_thread(talk, listener.ports[0], STREAM) == b""
            assert listener.counters["failed"] == number
        listener.close()
    assert "no room" in caplog.text
    assert descriptors() == before


async def test_an_owner_without_room() -> None:
    def take(*_: object) -> None:
        raise TransportError("no room")

    listener = Listener([LOCALHOST], 0, take)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listener.run())
        assert await asyncio.to_thread(talk, listener.ports[0], STREAM) == b""
        listener.close()
    assert listener.counters == {"accepted": 1, "shed": 1}


async def test_a_port_that_is_taken() -> None:
    before = descriptors()
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        # Not 127.0.0.1, where other programs have ports, too.
        addresses = [type(LOCALHOST)(f"127.0.0.{number}") for number in (9, 2)]
        with pytest.raises(TransportError, match=rf"TCP 127\.0\.0\.2:{port}: Address already in"):
            Listener(addresses, port, lambda *_: None)
    assert descriptors() == before


# --- TLS


async def test_tls_looks_like_that_of_a_web_server(context: ssl.SSLContext) -> None:
    async with gateway(context) as gate:
        for version in TLS_VERSIONS:
            client = await asyncio.to_thread(open_client, gate.port, client_context(version))
            with client:
                assert isinstance(client, ssl.SSLSocket)
                assert client.selected_alpn_protocol() == "http/1.1"
                cipher = client.cipher()
                assert cipher is not None
                assert cipher[0].startswith(("TLS_", "ECDHE-"))
        old = client_context(ssl.TLSVersion.TLSv1_2)
        old.set_ciphers("AES128-SHA:DHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-SHA")
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(open_client, gate.port, old)


@pytest.mark.rfc("9329", "B.3")
@pytest.mark.parametrize("version", TLS_VERSIONS)
async def test_sessions_can_be_resumed(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    trusting, session = client_context(version), None

    def visit(sock: socket.socket) -> ssl.SSLSocket:
        client = trusting.wrap_socket(sock, server_hostname="localhost", session=session)
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while client.recv(1000):
            pass
        return client

    async with gateway(context) as gate:
        for is_second in (False, True):
            sock = await asyncio.to_thread(open_client, gate.port)
            with await asyncio.to_thread(visit, sock) as client:
                await gate.left()  # an end that comes before the server's costs the session
                session = client.session
                assert client.session_reused == is_second
