"""Transports for tests: a loopback pair in memory, and one over a connected stream socket."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from struct import Struct

from tunnelwrap.path import Carrier, Path, SocketAddress
from tunnelwrap.transport import BatchCallback

FRAME = Struct(">H").unpack_from


def path_of(carrier: Carrier, *, near: str = "192.0.2.1", far: str = "192.0.2.2") -> Path:
    """A path between two documentation addresses."""
    local, peer = SocketAddress(ip_address(near), 4500), SocketAddress(ip_address(far), 4500)
    return Path(local, peer, carrier)


def packets_of(frames: memoryview, ends: Sequence[int]) -> list[memoryview]:
    """The packets of a train of RFC 9329 frames, whose lengths must agree with ``ends``."""
    starts = [0, *ends]
    for start, end in zip(starts, ends, strict=False):
        assert FRAME(frames, start)[0] == end - start
    assert len(frames) == starts[-1]
    return [frames[start + 2 : end] for start, end in zip(starts, ends, strict=False)]


class MemoryTransport:
    """One end of a loopback: what is sent arrives in the other end's callback at once.

    ``lose`` is asked for each ESP packet with its number from 0 on; ``is_congested`` is set by
    the test and makes ``send_esp`` drop.
    """

    def __init__(self, path: Path, max_datagram: int = 1500) -> None:
        self._path = path
        self.max_datagram = max_datagram
        self.is_congested = False
        self.is_closed = False
        self.lose: Callable[[int], bool] = lambda _number: False
        self.sent: list[bytes] = []
        self.trains: list[int] = []
        self.peer: MemoryTransport | None = None
        self.receive: BatchCallback = lambda _transport, _batch: None

    @property
    def path(self) -> Path:
        """Where it claims to lead."""
        return self._path

    def send(self, datagram: bytes) -> None:
        """Hand over one IKE datagram."""
        self._arrive([datagram])

    def send_esp(self, frames: memoryview, ends: Sequence[int]) -> int:
        """Hand over the packets of a train, but those that are lost."""
        packets = packets_of(frames, ends)
        if self.is_congested or self.is_closed:
            return len(packets)
        self.trains.append(len(packets))
        number = len(self.sent)
        copies = [bytes(packet) for packet in packets]
        self.sent += copies
        self._arrive([copy for at, copy in enumerate(copies, number) if not self.lose(at)])
        return 0

    def close(self) -> None:
        """Nothing arrives any more."""
        self.is_closed = True

    def _arrive(self, datagrams: list[bytes]) -> None:
        if self.peer is not None and datagrams and not self.is_closed:
            self.peer.receive(self.peer, [memoryview(datagram) for datagram in datagrams])


def loopback(max_datagram: int = 1500, carrier: Carrier = Carrier.UDP) -> list[MemoryTransport]:
    """Two ends that are each other's peer."""
    first = MemoryTransport(path_of(carrier), max_datagram)
    second = MemoryTransport(path_of(carrier, near="192.0.2.2", far="192.0.2.1"), max_datagram)
    first.peer, second.peer = second, first
    return [first, second]


class SocketTransport:
    """RFC 9329 frames over a connected stream socket, with the least that can carry a plane."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        receive: BatchCallback,
        max_datagram: int,
    ) -> None:
        sock.setblocking(False)
        self._loop, self._socket, self._receive = loop, sock, receive
        self._waiting = b""
        self._buffer = memoryview(bytearray(1 << 18))
        self._have = 0
        self.max_datagram = max_datagram
        self.path = path_of(Carrier.TCP)
        loop.add_reader(sock, self._readable)

    @property
    def is_congested(self) -> bool:
        """True while a train could not be written in full."""
        return bool(self._waiting)

    def send(self, datagram: bytes) -> None:
        """Queue one framed datagram."""
        self._write((len(datagram) + 2).to_bytes(2, "big") + datagram)

    def send_esp(self, frames: memoryview, ends: Sequence[int]) -> int:
        """Write a train; all of it is dropped while an earlier one waits."""
        if self._waiting:
            return len(ends)
        self._write(frames)
        return 0

    def close(self) -> None:
        """Close the socket."""
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()

    def _write(self, octets: bytes | memoryview) -> None:
        if self._waiting:
            self._waiting += bytes(octets)
            return
        try:
            sent = self._socket.send(octets)
        except BlockingIOError:
            sent = 0
        if sent < len(octets):
            self._waiting = bytes(octets[sent:])
            self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        self._waiting = self._waiting[self._socket.send(self._waiting) :]
        if not self._waiting:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        count = self._socket.recv_into(self._buffer[self._have :])
        if not count:
            self._loop.remove_reader(self._socket)
            return
        have, start, batch = self._have + count, 0, []
        while have - start >= 2 and (end := start + FRAME(self._buffer, start)[0]) <= have:
            batch.append(self._buffer[start + 2 : end])
            start = end
        self._receive(self, batch)
        self._have = have - start
        self._buffer[: self._have] = bytes(self._buffer[start:have])
