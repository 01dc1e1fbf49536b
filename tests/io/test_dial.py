"""Opening carriers on real sockets: what is told when nobody is there, or the wrong one."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from pathlib import Path as FilePath

import pytest

from tests.io.samples import (
    NAME,
    PATIENCE_S,
    Owner,
    address_of,
    now_valid,
    stream,
    tls_server,
    until,
)
from tests.kit import certs
from tunnelwrap.errors import ConnectFailed, TlsFailed
from tunnelwrap.path import SocketAddress
from tunnelwrap.transport.dial import open_tcp, open_tls, open_udp, resolve, tls_context
from tunnelwrap.wire.framing import frame

SHORT_S = 0.1
IPV6_AUTOFLOWLABEL = 70


@contextmanager
def listening(
    ip: str = "127.0.0.1", backlog: int = 10
) -> Iterator[tuple[socket.socket, SocketAddress]]:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.create_server((ip, 0), family=family, backlog=backlog) as listener:
        yield listener, address_of(listener)


@contextmanager
def deaf() -> Iterator[SocketAddress]:
    """An address whose queue of connections is full, so that it answers no more."""
    with listening(backlog=0) as (_, address):
        fillers = [socket.socket() for _ in range(2)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex((str(address.ip), address.port))
        yield address
        for filler in fillers:
            filler.close()


@asynccontextmanager
async def tls_listening(context: ssl.SSLContext) -> AsyncIterator[SocketAddress]:
    """A TLS server that takes connections and says nothing."""
    server = await asyncio.start_server(_hold, "127.0.0.1", 0, ssl=context)
    async with server:
        yield address_of(server.sockets[0])


async def _hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.close()


def nobody() -> SocketAddress:
    with listening() as (_, address):
        return address


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_tcp(ip: str) -> None:
    with listening(ip) as (listener, address), await open_tcp(address) as sock:
        far, peer = listener.accept()
        assert SocketAddress.of(peer) == address_of(sock)
        assert not sock.getblocking()
        far.close()


@pytest.mark.rfc("9329", "6.1")
async def test_c7_the_flow_label_is_the_same_on_every_connection() -> None:
    """The system makes up one for each connection unless it is told to leave it zero."""
    with listening("::1") as (_, address), await open_tcp(address) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, IPV6_AUTOFLOWLABEL) == 0


async def test_tcp_refused() -> None:
    with pytest.raises(ConnectFailed, match=r"^connection refused$"):
        await open_tcp(nobody())


async def test_tcp_without_answer() -> None:
    with deaf() as address, pytest.raises(ConnectFailed, match=r"^no answer within 0.1 s$"):
        await open_tcp(address, timeout_s=SHORT_S)


async def test_cancelling_leaves_no_socket(recwarn: pytest.WarningsRecorder) -> None:
    """A socket that is forgotten open makes a ResourceWarning."""
    with deaf() as address:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(open_tcp(address))
            await asyncio.sleep(0.01)
            task.cancel()
        assert task.cancelled()
    assert not recwarn


async def test_tls(tmp_path: FilePath) -> None:
    server, ca = tls_server(tmp_path)
    server.set_alpn_protocols(["h2", "http/1.1"])
    async with tls_listening(server) as address:
        with await open_tls(address, NAME, tls_context(ca, None)) as sock:
            assert sock.version() == "TLSv1.3"
            assert sock.selected_alpn_protocol() == "http/1.1"
            assert not sock.getblocking()


async def test_whom_to_trust_may_be_a_file_and_secrets_go_to_one(tmp_path: FilePath) -> None:
    server, ca = tls_server(tmp_path)
    file, keylog = tmp_path / "ca.pem", tmp_path / "keys"
    file.write_text(ca)
    async with tls_listening(server) as address:
        with await open_tls(address, NAME, tls_context(str(file), keylog)):
            pass
    assert "CLIENT_TRAFFIC_SECRET_0" in keylog.read_text()


async def test_a_context_of_nothing(tmp_path: FilePath) -> None:
    with pytest.raises(TlsFailed, match="No such file"):
        tls_context(str(tmp_path / "missing"), None)


async def test_an_expired_certificate(tmp_path: FilePath) -> None:
    server, ca = tls_server(tmp_path, valid=now_valid(-1))
    async with tls_listening(server) as address:
        with pytest.raises(TlsFailed, match=r"^certificate has expired$"):
            await open_tls(address, NAME, tls_context(ca, None))


async def test_a_certificate_of_tomorrow(tmp_path: FilePath) -> None:
    server, ca = tls_server(tmp_path, valid=now_valid(11))
    async with tls_listening(server) as address:
        with pytest.raises(TlsFailed, match=r"^certificate is not valid yet$"):
            await open_tls(address, NAME, tls_context(ca, None))


@pytest.mark.parametrize("name", ["other.example.org", "192.0.2.1"])
async def test_a_certificate_of_somebody_else(tmp_path: FilePath, name: str) -> None:
    server, ca = tls_server(tmp_path)
    async with tls_listening(server) as address:
        with pytest.raises(TlsFailed, match=f"^certificate is not for {name}$"):
            await open_tls(address, name, tls_context(ca, None))


async def test_an_issuer_whom_we_do_not_trust_is_named(tmp_path: FilePath) -> None:
    proxy = certs.authority("C=CH, O=Hotel, CN=Inspection", valid=now_valid(), number=101)
    server, _ = tls_server(tmp_path, root=proxy)
    trusted = certs.authority(valid=now_valid())
    async with tls_listening(server) as address:
        with pytest.raises(TlsFailed, match=r"issuer is not trusted: CN=Inspection,O=Hotel,C=CH$"):
            await open_tls(address, NAME, tls_context(trusted.pem.decode(), None))


async def test_no_tls_there() -> None:
    server = await asyncio.start_server(_babble, "127.0.0.1", 0)
    async with server:
        with pytest.raises(TlsFailed, match=r"^TLS handshake failed: wrong version number$"):
            await open_tls(address_of(server.sockets[0]), NAME, tls_context(None, None))


async def _babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await writer.drain()
    writer.close()


async def test_who_hangs_up_in_the_handshake() -> None:
    server = await asyncio.start_server(_hang_up, "127.0.0.1", 0)
    async with server:
        with pytest.raises(
            TlsFailed, match=r"^TLS handshake failed: (peer broke|connection reset)"
        ):
            await open_tls(address_of(server.sockets[0]), NAME, tls_context(None, None))


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.close()


async def test_who_says_nothing_in_the_handshake() -> None:
    silence = pytest.raises(TlsFailed, match=r"^TLS handshake not complete within 0.1 s$")
    with listening() as (_, address), silence:
        await open_tls(address, NAME, tls_context(None, None), timeout_s=SHORT_S)


async def test_cancelling_a_handshake_leaves_no_socket(recwarn: pytest.WarningsRecorder) -> None:
    with listening() as (listener, address):
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(open_tls(address, NAME, tls_context(None, None)))
            far, _ = await asyncio.to_thread(listener.accept)
            await asyncio.to_thread(far.recv, 1)  # the handshake has begun
            task.cancel()
        far.close()
    assert not recwarn


@pytest.mark.rfc("9329", "B.3")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
async def test_l4_the_session_of_a_stream_that_ended_is_resumed(
    tmp_path: FilePath, version: ssl.TLSVersion, *, is_reset: bool
) -> None:
    server, ca = tls_server(tmp_path)
    server.maximum_version = version
    context = tls_context(ca, None)
    with listening() as (listener, address):
        sock, far = await both_ends(listener, server, address, context, None)
        assert not sock.session_reused
        owner = Owner()
        transport = stream(sock, owner, is_originator=True)
        far.sendall(frame(b"with the ticket before it"))
        await until(lambda: owner.got)
        if is_reset:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
            socket.close(far.detach())
            await until(lambda: owner.errors)
        else:
            transport.close()
            far.close()
        session = transport.tls_session
        again, far = await both_ends(listener, server, address, context, session)
        assert again.session_reused
        again.close()
        far.close()


async def both_ends(
    listener: socket.socket,
    server: ssl.SSLContext,
    address: SocketAddress,
    context: ssl.SSLContext,
    session: ssl.SSLSession | None,
) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Both ends of a TLS connection that we open."""

    def accept() -> ssl.SSLSocket:
        sock, _ = listener.accept()
        sock.settimeout(PATIENCE_S)
        return server.wrap_socket(sock, server_side=True)

    opening = open_tls(address, NAME, context, session=session)
    near, far = await asyncio.gather(opening, asyncio.to_thread(accept))
    return near, far


async def test_udp_to_our_own_address_does_not_talk_to_itself() -> None:
    loop, owner = asyncio.get_running_loop(), Owner()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        there = address_of(probe)
    transport = open_udp(there, owner.batch, owner.error, loop, has_marker=True)
    transport.send(b"hello")
    await until(lambda: owner.errors)
    assert not owner.got
    transport.close()


async def test_resolve() -> None:
    assert await resolve("192.0.2.7") == [ip_address("192.0.2.7")]
    assert await resolve("2001:db8::7") == [ip_address("2001:db8::7")]
    assert ip_address("127.0.0.1") in await resolve("localhost")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".example", ""])
async def test_resolve_nothing(host: str) -> None:
    with pytest.raises(ConnectFailed, match=f"^{host}: "):
        await resolve(host)
