"""A Listener on loopback with whoever takes over its streams, and simple clients for it."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import tunnelwrap.path
from tests.kit.certs import authority, entity
from tunnelwrap.demux.cover import OwnSite
from tunnelwrap.demux.listener import Limits, Listener, Site
from tunnelwrap.demux.opening import Secrets
from tunnelwrap.demux.pages import OnePage
from tunnelwrap.demux.routing import Routing
from tunnelwrap.demux.shown import Shown
from tunnelwrap.demux.web import Times
from tunnelwrap.path import Carrier
from tunnelwrap.wire.framing import PREFIX, frame

LOCALHOST = ip_address("127.0.0.1")
STREAM = PREFIX + frame(bytes(4) + b"an IKE message")
TLS_VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
_CA = authority("Web CA")


@dataclass
class Gateway:
    """A running Listener and the streams that it handed over."""

    listener: Listener
    streams: asyncio.Queue[tuple[socket.socket, Carrier, bytes]]
    paths: list[tunnelwrap.path.Path]
    origins: list[bytes | None]
    running: asyncio.Task[None]

    @property
    def port(self) -> int:
        """Where to connect to."""
        return self.listener.ports[0]

    async def stream(self) -> tuple[socket.socket, Carrier, bytes]:
        """The next stream that is handed over; closed at the end."""
        return await asyncio.wait_for(self.streams.get(), 10)

    async def talk(self, *pieces: bytes, context: ssl.SSLContext | None = None) -> bytes:
        """Say something, then listen to the end."""
        return await asyncio.to_thread(talk, self.port, *pieces, context=context)

    async def counted(self, what: str, number: int = 1) -> None:
        """Wait until the counter has reached a number."""
        await until(lambda: self.listener.counters[what] >= number)

    async def left(self) -> None:
        """Wait until no connection is in our care."""
        await until(lambda: asyncio.all_tasks() == {self.running, asyncio.current_task()})


@asynccontextmanager
async def gateway(
    context: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    addresses: Sequence[str] = ("127.0.0.1",),
    routing: Routing | None = None,
    secret_path: str | None = None,
    *,
    shown: Shown | None = None,
    site: Site | None = None,
) -> AsyncIterator[Gateway]:
    """A gateway that must leave no descriptor and no task behind."""
    before = descriptors()
    streams: asyncio.Queue[tuple[socket.socket, Carrier, bytes]] = asyncio.Queue()
    taken: list[socket.socket] = []
    paths: list[tunnelwrap.path.Path] = []
    origins: list[bytes | None] = []

    def take(
        sock: socket.socket, path: tunnelwrap.path.Path, origin: bytes | None, received: bytes
    ) -> None:
        taken.append(sock)
        paths.append(path)
        origins.append(origin)
        streams.put_nowait((sock, path.carrier, received))

    ips = [ip_address(each) for each in addresses]
    shown = shown or (Shown(context) if context else None)
    if site is None and (shown or secret_path):
        site = site_of(shown, limits or Limits(), secret_path)
    listener = Listener(
        *(ips, 0, take, site),
        limits or Limits(),
        routing or Routing(),
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(listener.run())
        try:
            yield Gateway(listener, streams, paths, origins, running)
        finally:
            listener.close()
            for sock in taken:
                sock.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert descriptors() == before


def site_of(shown: Shown | None, limits: Limits, secret_path: str | None = None) -> Site:
    """The small one, whose visitors have as much time as others."""
    seconds = limits.deadline_s
    path = secret_path.encode() if secret_path else None
    own = OwnSite(OnePage(), Times(*[seconds] * 5), path)
    return Site(shown, own, Secrets(websocket_path=path), patience_s=min(seconds, 1.0))


def descriptors() -> int:
    """How many are open in this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(is_true: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    async with asyncio.timeout(10):
        while not is_true():  # noqa: ASYNC110 - what it waits for happens in other threads and the kernel
            await asyncio.sleep(0.002)


async def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    """A connected non-blocking client that sends each write as its own segment."""
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    sock.bind((source, 0))
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


async def rest(sock: socket.socket) -> bytes:
    """All that comes until the end, which may be a reset; closes the socket."""
    octets = b""
    with sock, suppress(ConnectionResetError):
        while piece := await asyncio.wait_for(
            asyncio.get_running_loop().sock_recv(sock, 65536), 10
        ):
            octets += piece
    return octets


async def some(sock: socket.socket, size: int) -> bytes:
    """So many octets from a non-blocking socket, of TLS or not."""
    octets = b""

    def is_enough() -> bool:
        nonlocal octets
        with suppress(BlockingIOError, ssl.SSLWantReadError):
            octets += sock.recv(size - len(octets))
        return len(octets) >= size

    await until(is_enough)
    return octets


def reset(sock: socket.socket) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def open_client(port: int, context: ssl.SSLContext | None = None) -> socket.socket:
    """A blocking client."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is None:
        return sock
    try:
        # A TLS stream that just breaks off is an error to this client.
        return context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)
    except OSError:
        sock.close()
        raise


def talk(port: int, *pieces: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """Say something, then listen to the end, which may be a reset."""
    octets = b""
    with open_client(port, context) as sock, suppress(ConnectionResetError, BrokenPipeError):
        for piece in pieces:
            sock.sendall(piece)
        while octets_more := sock.recv(65536):
            octets += octets_more
    return octets


def write_identity(folder: Path) -> tuple[Path, Path]:
    """Files with a server's certificate and key."""
    server = entity("localhost", _CA, number=7, sans=("localhost", "127.0.0.1"))
    certificate_file, key_file = folder / "server.pem", folder / "server.key"
    certificate_file.write_bytes(server.pem)
    key_file.write_bytes(server.key_pem)
    return certificate_file, key_file


def client_context(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client that trusts the server and speaks one version of TLS."""
    context = ssl.create_default_context(cadata=_CA.pem.decode())
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context
