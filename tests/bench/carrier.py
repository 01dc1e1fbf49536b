"""``python -m tests.bench.carrier``: what the transports alone carry between two processes.

One process hands over trains of frames as the plane does, the other counts what arrives; no ESP.
"""

import argparse
import asyncio
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path as FilePath
from struct import Struct

from tests.io.samples import NAME, tls_server
from tunnelwrap.errors import TransportError
from tunnelwrap.path import Carrier, Path, SocketAddress
from tunnelwrap.transport import Transport
from tunnelwrap.transport.dial import open_tls, open_udp, tls_context
from tunnelwrap.transport.stream import StreamTransport
from tunnelwrap.transport.udp import UdpListener

PAUSE_S = 0.001  # as the plane waits for a congested transport
LOCAL = SocketAddress(ip_address("127.0.0.1"), 0)
FIGURES = Struct("=dqq")


@dataclass
class Count:
    """What arrived: octets, datagrams, batches, and the CPU time that took."""

    octets: int = 0
    datagrams: int = 0
    batches: int = 0

    def take(self, _transport: Transport, batch: Sequence[memoryview]) -> None:
        """Count a batch (BatchCallback)."""
        self.octets += sum(map(len, batch))
        self.datagrams += len(batch)
        self.batches += 1


class Pump:
    """Hands over trains for some time, as fast as the transport takes them."""

    def __init__(self, transport: Transport, train: int, size: int, seconds: float) -> None:
        frame = (size + 2).to_bytes(2, "big") + bytes([1]) * size
        self.frames = memoryview(frame * train)
        self.ends = [len(frame) * number for number in range(1, train + 1)]
        self.transport = transport
        self.loop = asyncio.get_running_loop()
        self.dropped = self.sent = 0
        self.done = self.loop.create_future()
        self.until = self.loop.time() + seconds

    def step(self) -> None:
        """One train, or a pause."""
        if self.loop.time() > self.until:
            self.done.set_result(None)
        elif self.transport.is_congested:
            self.loop.call_later(PAUSE_S, self.step)
        else:
            self.sent += len(self.ends)
            self.dropped += self.transport.send_esp(self.frames, self.ends)
            self.loop.call_soon(self.step)


def ignore(_transport: Transport, _error: TransportError) -> None:
    """What a stream says when it ends."""


def child(serve: Callable[[Count], None]) -> tuple[int, int]:
    """Run a receiver in a process; its number, and where it reports."""
    report, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, report
    count = Count()
    try:
        serve(count)
        os.write(write, FIGURES.pack(time.process_time(), count.octets, count.batches))
    finally:
        os._exit(0)


def serve_stream(
    listener: socket.socket, context: ssl.SSLContext | None, carrier: Carrier, count: Count
) -> None:
    """Take one stream until it ends."""
    sock, _ = listener.accept()
    if context is not None:
        sock = context.wrap_socket(sock, server_side=True)
    sock.setblocking(False)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        path = Path(LOCAL, LOCAL, carrier)
        end = lambda _transport, error: ended.set_result(error)  # noqa: E731 -- one line
        StreamTransport(sock, path, count.take, end, loop, is_originator=False)
        await ended

    asyncio.run(run())


def serve_udp(listener: socket.socket, seconds: float, count: Count) -> None:
    """Take datagrams at the port of ``listener`` for some time."""
    address = SocketAddress.of(listener.getsockname())
    listener.close()

    async def run() -> None:
        udp = UdpListener(address, count.take, asyncio.get_running_loop(), has_marker=True)
        await asyncio.sleep(seconds + 0.5)
        udp.close()

    asyncio.run(run())


async def send_stream(
    peer: SocketAddress, ca: str | None, carrier: Carrier, options: argparse.Namespace
) -> tuple[Pump, float]:
    """Send over TCP, or in TLS if there is somebody to trust."""
    loop = asyncio.get_running_loop()
    if ca is None:
        sock = socket.create_connection((str(peer.ip), peer.port))
        sock.setblocking(False)
    else:
        sock = await open_tls(peer, NAME, tls_context(ca, None))
    path = Path(LOCAL, peer, carrier)
    never = lambda _transport, _batch: None  # noqa: E731 -- one line
    return await pump(StreamTransport(sock, path, never, ignore, loop, is_originator=True), options)


async def send_udp(peer: SocketAddress, options: argparse.Namespace) -> tuple[Pump, float]:
    """Send over UDP."""
    never = lambda _transport, _batch: None  # noqa: E731 -- one line
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0.3)  # the listener's process comes up
    return await pump(open_udp(peer, never, ignore, loop, has_marker=True), options)


async def pump(transport: Transport, options: argparse.Namespace) -> tuple[Pump, float]:
    """Hand over trains; the pump, and the CPU time that took."""
    start = time.process_time()
    work = Pump(transport, options.train, options.size, options.seconds)
    work.step()
    await work.done
    transport.close()
    return work, time.process_time() - start


def measure(name: str, options: argparse.Namespace) -> None:
    """Measure one carrier, and print a line."""
    with socket.socket(type=socket.SOCK_DGRAM if name == "udp" else socket.SOCK_STREAM) as sock:
        sock.bind((str(LOCAL.ip), 0))
        peer = SocketAddress.of(sock.getsockname())
        if name == "udp":
            pid, report = child(lambda count: serve_udp(sock, options.seconds, count))
            sock.close()
            sender = send_udp(peer, options)
        else:
            sock.listen()
            with tempfile.TemporaryDirectory() as directory:
                has_tls = name in ("tls", "ws")
                context, ca = tls_server(FilePath(directory)) if has_tls else (None, None)
            carrier = Carrier(name)
            pid, report = child(lambda count: serve_stream(sock, context, carrier, count))
            sender = send_stream(peer, ca, carrier, options)
        work, cpu_out = asyncio.run(sender)
    with os.fdopen(report, "rb") as pipe:
        cpu_in, octets, batches = FIGURES.unpack(pipe.read())
    os.waitpid(pid, 0)
    offered = (work.sent - work.dropped) * options.size
    print(
        f"{name}: {octets * 8e-6 / options.seconds:7.0f} Mbit/s arrived of"
        f" {offered * 8e-6 / options.seconds:7.0f} sent, {work.dropped} packets dropped;"
        f" CPU a Gbit {cpu_out / (offered * 8e-9):.3f} s out, {cpu_in / (octets * 8e-9):.3f} s in;"
        f" {octets / options.size / batches:.0f} packets a batch"
    )


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("carriers", nargs="*", default=["tcp", "tls", "ws", "udp"])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--train", type=int, default=200, help="packets in a train")
    parser.add_argument("--size", type=int, default=1472, help="octets of a packet")
    options = parser.parse_args()
    for name in options.carriers:
        measure(name, options)


if __name__ == "__main__":
    main()
