"""Connected sockets, TLS contexts and recording owners for tests of the transports."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path as FilePath

from tests.kit import certs
from tunnelwrap.errors import TransportError
from tunnelwrap.path import Carrier, Path, SocketAddress
from tunnelwrap.transport import Transport
from tunnelwrap.transport.stream import StreamTransport
from tunnelwrap.wire.framing import Deframer, frame

PATIENCE_S = 10.0
NAME = "gw.example.org"
IKE = bytes(4) + b"IKE message"


def esp(number: int, size: int = 1472) -> bytes:
    """A packet that tells its number and is different in every octet after that."""
    return (0x80000000 | number).to_bytes(4, "big") + bytes(
        (number + at) % 251 for at in range(size - 4)
    )


def train(packets: Sequence[bytes]) -> tuple[memoryview, list[int]]:
    """Frames and their ends, as the plane hands them over; the buffer is writable."""
    octets, ends = bytearray(), []
    for packet in packets:
        octets += frame(packet)
        ends.append(len(octets))
    return memoryview(octets), ends


def local(port: int, ip: str = "127.0.0.1") -> SocketAddress:
    return SocketAddress(ip_address(ip), port)


def address_of(sock: socket.socket) -> SocketAddress:
    return SocketAddress.of(sock.getsockname())


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 -- what is waited for knows no events
            await asyncio.sleep(0.001)


class Owner:
    """Records what a transport tells."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.senders: list[Transport] = []
        self.errors: list[TransportError] = []

    def batch(self, transport: Transport, batch: Sequence[memoryview]) -> None:
        """What arrived (BatchCallback)."""
        self.senders.append(transport)
        self.batches.append([bytes(view) for view in batch])

    def error(self, transport: Transport, error: TransportError) -> None:
        """How it ended (ClosedCallback)."""
        self.senders.append(transport)
        self.errors.append(error)

    @property
    def got(self) -> list[bytes]:
        """All datagrams, in order."""
        return [datagram for batch in self.batches for datagram in batch]


def stream(
    sock: socket.socket,
    owner: Owner,
    *,
    is_originator: bool = False,
    received: bytes = b"",
    is_websocket: bool = False,
) -> StreamTransport:
    """A transport over one end of a connection, whose owner records."""
    sock.setblocking(False)
    carrier = Carrier.TLS if isinstance(sock, ssl.SSLSocket) else Carrier.TCP
    carrier = Carrier.WEBSOCKET if is_websocket else carrier
    path = Path(address_of(sock), SocketAddress.of(sock.getpeername()), carrier)
    loop = asyncio.get_running_loop()
    return StreamTransport(
        *(sock, path, owner.batch, owner.error, loop),
        is_originator=is_originator,
        received=received,
    )


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection, that of who opened it first; blocking, but not for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), PATIENCE_S)
        far, _ = listener.accept()
    for sock in (near, far):
        sock.settimeout(PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


async def tls_pair(directory: FilePath) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """The same inside TLS; an end without close_notify is an error to them."""
    server, ca = tls_server(directory)
    client = ssl.create_default_context(cadata=ca)
    near, far = tcp_pair()
    wrap_near = lambda: client.wrap_socket(  # noqa: E731 -- one call
        near, server_hostname=NAME, suppress_ragged_eofs=False
    )
    wrap_far = lambda: server.wrap_socket(  # noqa: E731 -- one call
        far, server_side=True, suppress_ragged_eofs=False
    )
    both = await asyncio.gather(asyncio.to_thread(wrap_near), asyncio.to_thread(wrap_far))
    return both[0], both[1]


def now_valid(days: int = 1) -> tuple[datetime, datetime]:
    """A validity that ends that many days from now (they may be negative)."""
    end = datetime.now(UTC) + timedelta(days=days)
    return end - timedelta(days=10), end


def tls_server(
    directory: FilePath,
    *,
    name: str = NAME,
    valid: tuple[datetime, datetime] | None = None,
    root: certs.Entity | None = None,
) -> tuple[ssl.SSLContext, str]:
    """A server's context, and the PEM of whom to trust for it."""
    root = root or certs.authority(valid=now_valid())
    leaf = certs.entity(name, root, sans=[name], valid=valid or now_valid())
    file = directory / "server.pem"
    file.write_bytes(leaf.pem + leaf.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, root.pem.decode()


async def receive(sock: socket.socket, count: int) -> bytes:
    """That many octets at a blocking end, or fewer if it ends before."""
    return await asyncio.to_thread(_receive, sock, count)


def _receive(sock: socket.socket, count: int) -> bytes:
    octets = b""
    while len(octets) < count and (more := sock.recv(count - len(octets))):
        octets += more
    return octets


async def datagrams_at(sock: socket.socket, octets: int, *, prefix: bool) -> list[bytes]:
    """The datagrams in that many octets which arrive at a blocking end."""
    return list(map(bytes, Deframer(expect_prefix=prefix).feed(await receive(sock, octets))))
