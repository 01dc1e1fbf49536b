"""The bridge on the loopback device, with a plain socket in the kernel's place; no ESP."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from tests.io.samples import Owner, datagrams_at, esp, stream, tcp_pair, until
from tests.kit.carriers import MemoryTransport, path_of
from tunnelwrap.dataplane.bridge import RECEIVE_BUFFER, Bridge, BridgePort
from tunnelwrap.path import Carrier
from tunnelwrap.transport.udp import UDP_GRO


@pytest.fixture
def kernel() -> Iterator[socket.socket]:
    """What the kernel is to the bridge: sends to aliases, and takes what they send."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.setblocking(False)
        yield sock


@pytest.fixture
async def bridge(kernel: socket.socket) -> AsyncIterator[Bridge]:
    bridge = Bridge(asyncio.get_running_loop(), kernel)
    yield bridge
    bridge.close()


def transport() -> MemoryTransport:
    return MemoryTransport(path_of(Carrier.TLS))


def views(packets: list[bytes]) -> list[memoryview]:
    """Packets as they lie in a stream's inbox: frame lengths between them."""
    inbox = memoryview(b"".join(b"\0\0" + packet for packet in packets))
    found, at = [], 0
    for packet in packets:
        found.append(inbox[at + 2 : at + 2 + len(packet)])
        at += 2 + len(packet)
    return found


def taken(kernel: socket.socket) -> list[tuple[bytes, tuple[str, int]]]:
    """What the kernel got, and from where."""
    found = []
    while True:
        try:
            found.append(kernel.recvfrom(65535))
        except BlockingIOError:
            return found


def send(kernel: socket.socket, port: BridgePort, packets: list[bytes]) -> None:
    for packet in packets:
        kernel.sendto(packet, (str(port.alias.ip), port.alias.port))


async def test_every_client_has_an_alias(bridge: Bridge, kernel: socket.socket) -> None:
    ports = [bridge.open(transport()) for _ in range(3)]
    assert len({port.alias.ip for port in ports}) == 3
    for number, port in enumerate(ports):
        assert port.entrance == bridge.entrance
        port.feed(views([esp(number, 100)]))
    assert taken(kernel) == [
        (esp(number, 100), (str(port.alias.ip), port.alias.port))
        for number, port in enumerate(ports)
    ]


SIZES = {
    "equal": [1000] * 200,
    "one": [8],
    "shorter ends a train": [1400, 1400, 1000, 1400, 1000, 1000, 900, 900, 8],
    "longer begins one": [100, 200, 300, 300, 1400, 1400],
    "large": [30000, 30000, 30000, 65507],
    "mixed": [40 + 37 * number % 1400 for number in range(150)],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
async def test_packets_in_arrive_as_they_were(
    bridge: Bridge, kernel: socket.socket, sizes: list[int]
) -> None:
    packets = [esp(number, size) for number, size in enumerate(sizes)]
    bridge.open(transport()).feed(views(packets))
    assert [packet for packet, _ in taken(kernel)] == packets
    assert bridge.drops == {}


async def test_equal_packets_go_in_as_one_train(bridge: Bridge, kernel: socket.socket) -> None:
    kernel.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)  # shows the train as it was sent
    packets = [esp(number, 1000) for number in range(40)]
    bridge.open(transport()).feed(views([*packets, esp(40, 500)]))
    assert [packet for packet, _ in taken(kernel)] == [b"".join([*packets, esp(40, 500)])]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
async def test_packets_out_arrive_as_they_were(
    bridge: Bridge, kernel: socket.socket, sizes: list[int]
) -> None:
    packets = [esp(number, size) for number, size in enumerate(sizes)]
    carrier = transport()
    port = bridge.open(carrier)
    for _ in range(3):  # sizes are learned from what came
        carrier.sent.clear()
        send(kernel, port, packets)
        await until(lambda: len(carrier.sent) == len(packets))
        assert carrier.sent == packets
    assert bridge.drops == {}


async def test_packets_out_leave_in_trains(bridge: Bridge, kernel: socket.socket) -> None:
    carrier = transport()
    port = bridge.open(carrier)
    send(kernel, port, [esp(number, 1000) for number in range(100)])
    await until(lambda: len(carrier.sent) == 100)
    assert len(carrier.trains) <= 2


async def test_clients_of_different_sizes_share_the_bridge(
    bridge: Bridge, kernel: socket.socket
) -> None:
    carriers = [transport(), transport()]
    ports = [bridge.open(carrier) for carrier in carriers]
    packets = [[esp(at, size) for at in range(20)] for size in (700, 1300)]
    for _ in range(3):
        for port, train in zip(ports, packets, strict=True):
            send(kernel, port, train)
        await asyncio.sleep(0)
    for carrier, train in zip(carriers, packets, strict=True):
        await until(lambda carrier=carrier: len(carrier.sent) == 60)
        assert carrier.sent == train * 3


async def test_only_the_entrance_is_heard(bridge: Bridge, kernel: socket.socket) -> None:
    carrier = transport()
    port = bridge.open(carrier)
    with socket.socket(type=socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        send(stranger, port, [esp(0)])
        send(kernel, port, [esp(1)])
        await until(lambda: carrier.sent)
    assert carrier.sent == [esp(1)]


async def test_through_a_stream(bridge: Bridge, kernel: socket.socket) -> None:
    near, far = tcp_pair()
    with near, far:
        carrier = stream(near, Owner())
        port = bridge.open(carrier)
        packets = [esp(number, 1000 if number % 5 else 100) for number in range(100)]
        send(kernel, port, packets)
        octets = sum(len(packet) + 2 for packet in packets)
        assert await datagrams_at(far, octets, prefix=False) == packets
        carrier.close()


async def test_a_congested_transport_leaves_packets_in_the_kernel(
    bridge: Bridge, kernel: socket.socket
) -> None:
    carrier = transport()
    port = bridge.open(carrier)
    carrier.is_congested = True
    send(kernel, port, [esp(number) for number in range(4000)])
    await asyncio.sleep(0.01)
    assert carrier.sent == []
    lost = bridge.drops["bridge-out"]
    assert 0 < lost < 4000
    carrier.is_congested = False
    await until(lambda: len(carrier.sent) == 4000 - lost)
    assert carrier.sent == [esp(number) for number in range(4000 - lost)]
    port.close()
    assert bridge.drops == {"bridge-out": lost}


async def test_what_the_transport_does_not_take_is_counted(
    bridge: Bridge, kernel: socket.socket
) -> None:
    carrier = Refusing(path_of(Carrier.TLS))
    port = bridge.open(carrier)
    send(kernel, port, [esp(number) for number in range(10)])
    await until(lambda: bridge.drops == {"congestion": 10})
    assert carrier.sent == []


class Refusing(MemoryTransport):
    """Says that it is not congested, and is."""

    def send_esp(self, _frames: memoryview, ends: Sequence[int]) -> int:
        return len(ends)


async def test_a_reconnect_keeps_alias_and_packets(bridge: Bridge, kernel: socket.socket) -> None:
    old, new = transport(), transport()
    port = bridge.open(old)
    alias = port.alias
    old.is_congested = True
    send(kernel, port, [esp(0)])
    await asyncio.sleep(0.01)
    port.move(new)
    send(kernel, port, [esp(1)])
    await until(lambda: len(new.sent) == 2)
    assert new.sent == [esp(0), esp(1)]
    assert old.sent == []
    port.feed(views([esp(2)]))
    assert taken(kernel) == [(esp(2), (str(alias.ip), alias.port))]


async def test_a_closed_port_does_nothing(bridge: Bridge, kernel: socket.socket) -> None:
    carrier = transport()
    port, other = bridge.open(carrier), bridge.open(transport())
    carrier.is_congested = True
    send(kernel, port, [esp(0)])
    await asyncio.sleep(0.01)
    port.close()
    port.close()
    carrier.is_congested = False
    port.move(carrier)
    port.feed(views([esp(1), esp(2)]))
    other.feed(views([esp(3)]))
    await until(lambda: len(taken(kernel)) == 1)
    assert carrier.sent == []
    assert bridge.drops == {"bridge-in": 2}
    assert bridge.open(transport()).alias not in (port.alias, other.alias)
