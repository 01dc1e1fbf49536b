"""IKE messages that are headers only, and both ends of a relay or a wrapper as plain sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tests.io.samples import PATIENCE_S
from tunnelwrap.daemon.lanes import IpNetwork, Lanes, Limits
from tunnelwrap.demux.listener import Listener
from tunnelwrap.iana import ExchangeType, PayloadType
from tunnelwrap.path import SocketAddress
from tunnelwrap.wire.framing import PREFIX, Deframer, frame
from tunnelwrap.wire.message import HEADER_LENGTH, IkeHeader

SPI_I, SPI_R = b"initiatr", b"responder"[:8]
OTHER_I, OTHER_R = b"INITIATR", b"RESPONDE"
NONE = bytes(8)
KEEPALIVE = b"\xff"
MARKER = bytes(4)


def ike(
    message_id: int,
    spis: tuple[bytes, bytes] = (SPI_I, SPI_R),
    *,
    response: bool = False,
    protected: bool = True,
    body: bytes = b"",
    exchange: ExchangeType = ExchangeType.INFORMATIONAL,
) -> bytes:
    """A bare message: IKE_SA_INIT while there is one SPI, else INFORMATIONAL or another."""
    if not any(spis[1]):
        exchange = ExchangeType.IKE_SA_INIT
    first = PayloadType.SK if protected and any(spis[1]) else PayloadType.NOTIFY
    header = IkeHeader(
        *(*spis, first, 2, 0, exchange, response, not response),
        *(message_id, HEADER_LENGTH + len(body)),
    )
    return header.encode() + body


def marked(*arguments: object, **options: object) -> bytes:
    """The same behind the marker."""
    return MARKER + ike(*arguments, **options)


def esp(spi: int, number: int = 1) -> bytes:
    """An ESP packet, as far as its header."""
    return spi.to_bytes(4, "big") + number.to_bytes(4, "big") + bytes(24)


class Udp:
    """One end of UDP, of a daemon or of a gateway."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((address, port))
        self.sock.setblocking(False)

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    async def receive(self) -> tuple[bytes, tuple[str, int]]:
        """The next datagram, and where it is from."""
        loop = asyncio.get_running_loop()
        octets, source = await asyncio.wait_for(loop.sock_recvfrom(self.sock, 65536), PATIENCE_S)
        return octets, source

    def send(self, datagram: bytes, to: tuple[str, int]) -> None:
        self.sock.sendto(datagram, to)

    def has_nothing(self) -> bool:
        """Whether nothing waits."""
        try:
            self.sock.recv(65536)
        except BlockingIOError:
            return True
        return False


class Stream:
    """The originator's end of a stream, in plain TCP or in whatever socket is given."""

    def __init__(self, sock: socket.socket, *, is_originator: bool = True) -> None:
        self.sock = sock
        self._deframer = Deframer(expect_prefix=not is_originator)
        self._prefix = PREFIX if is_originator else b""
        self._got: list[bytes] = []

    def send(self, *datagrams: bytes) -> None:
        self.sock.sendall(self._prefix + b"".join(map(frame, datagrams)))
        self._prefix = b""

    async def receive(self) -> bytes:
        """The next datagram; none if the other end closes."""
        self.sock.settimeout(PATIENCE_S)
        while not self._got:
            octets = await asyncio.to_thread(self._read)
            if not octets:
                return b""
            self._got += map(bytes, self._deframer.feed(octets))
        return self._got.pop(0)

    def _read(self) -> bytes:
        try:
            return self.sock.recv(65536)
        except ConnectionResetError:
            return b""


class Bench:
    """A relay's lanes behind a stream port, with a daemon that is a socket."""

    def __init__(self, lanes: Lanes, listener: Listener, daemon: Udp) -> None:
        self.lanes, self.listener, self.daemon = lanes, listener, daemon
        self._open: list[socket.socket] = []

    async def stream(self, *datagrams: bytes, source: str = "127.0.0.1") -> Stream:
        """A new stream that begins with these."""
        sock = socket.socket()
        self._open.append(sock)
        sock.bind((source, 0))
        sock.setblocking(False)
        port = self.listener.ports[0]
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        sock.setblocking(True)
        made = Stream(sock)
        made.send(*datagrams)
        return made

    async def established(self, source: str = "127.0.0.1") -> tuple[Stream, tuple[str, int]]:
        """A client with an IKE SA and ESP in both directions; its stream, its address."""
        stream = await self.stream(marked(0, (SPI_I, NONE)), source=source)
        _, at = await self.daemon.receive()
        for message_id in (0, 1):
            self.daemon.send(marked(message_id, response=True), at)
            await stream.receive()
            stream.send(marked(message_id + 1))
            assert (await self.daemon.receive())[1] == at
        self.daemon.send(marked(2, response=True), at)
        self.daemon.send(esp(0x1111), at)
        await stream.receive()
        await stream.receive()
        stream.send(esp(0x2222))
        assert (await self.daemon.receive())[1] == at
        return stream, at

    def close(self) -> None:
        for sock in self._open:
            sock.close()


@asynccontextmanager
async def bench(
    sources: IpNetwork | None = None, limits: Limits | None = None
) -> AsyncIterator[Bench]:
    """Lanes that serve until the end of the block."""
    daemon = Udp()
    at = SocketAddress.of(daemon.sock.getsockname())
    lanes = Lanes(at, sources, limits or Limits(), asyncio.get_running_loop())
    listener = Listener([at.ip], 0, lanes.admit)
    made = Bench(lanes, listener, daemon)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listener.run())
        try:
            yield made
        finally:
            listener.close()
            lanes.close()
            made.close()
            daemon.sock.close()


async def all_of(daemon: Udp, count: int) -> Sequence[bytes]:
    """So many datagrams, whoever sent them."""
    return [(await daemon.receive())[0] for _ in range(count)]
