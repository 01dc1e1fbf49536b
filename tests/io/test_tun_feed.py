"""The feed by a TUN device, with a socket in the place of the device; no ESP, no root."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from tests.io.samples import esp, until
from tests.kit.carriers import MemoryTransport, path_of
from tests.unit.dataplane.samples import drain, pair_of_packet_sockets
from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.dataplane.tun_feed import HELD_OCTETS, LARGEST, TunFeed, TunPort, network_of
from tunnelwrap.path import Carrier

NETWORK = network_of(64)
ENTRANCE = "0.64.0.1"
WAVE = 8  # packets that such a socket holds, at least


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """What the feed takes for its device, and its other end."""
    device, kernel = pair_of_packet_sockets()
    with device, kernel:
        yield device, kernel


@pytest.fixture
def kernel(ends: tuple[socket.socket, socket.socket]) -> socket.socket:
    return ends[1]


@pytest.fixture
async def feed(ends: tuple[socket.socket, socket.socket]) -> AsyncIterator[TunFeed]:
    feed = TunFeed(asyncio.get_running_loop(), Tun(ends[0].detach(), "tun-test"), NETWORK)
    yield feed
    feed.close()


def transport() -> MemoryTransport:
    return MemoryTransport(path_of(Carrier.TLS))


def views(packets: Sequence[bytes]) -> list[memoryview]:
    return [memoryview(packet) for packet in packets]


def around(port: TunPort, packet: bytes, **fields: object) -> bytes:
    """A packet as the kernel sends it to a client."""
    wanted = {"src": ENTRANCE, "dst": str(port.alias.ip), "proto": 50, "flags": "DF", **fields}
    return bytes(IP(**wanted) / Raw(packet))


async def send(kernel: socket.socket, packets: Sequence[bytes]) -> None:
    """Have the kernel send packets, waiting where the socket is full."""
    for packet in packets:
        while True:
            try:
                kernel.send(packet)
                break
            except BlockingIOError:
                await asyncio.sleep(0)


async def test_packets_in_have_a_header_from_alias_to_entrance(
    feed: TunFeed, kernel: socket.socket
) -> None:
    ports = [feed.open(transport()) for _ in range(2)]
    sizes = [8, 1400, 1400, 1000]
    for number, port in enumerate(ports):
        packets = [esp(number, size) for size in sizes]
        port.feed(views(packets))
        got = [IP(packet) for packet in drain(kernel)]
        assert [bytes(packet.payload) for packet in got] == packets
        for packet in got:
            assert (packet.src, packet.dst, packet.proto) == (str(port.alias.ip), ENTRANCE, 50)
            assert (packet.ihl, packet.len, packet.flags) == (5, len(packet), "DF")
            assert packet.chksum == rebuilt(packet).chksum
    assert feed.drops == {}
    assert ports[0].alias != ports[1].alias


def rebuilt(packet: Packet) -> Packet:
    """With the header's sum as scapy reckons it."""
    other = packet.copy()
    del other.chksum
    return IP(bytes(other))


async def test_a_packet_that_fits_no_ip_packet_is_dropped(
    feed: TunFeed, kernel: socket.socket
) -> None:
    feed.open(transport()).feed(views([esp(0, LARGEST + 1), esp(1, LARGEST)]))
    assert [packet[20:] for packet in drain(kernel)] == [esp(1, LARGEST)]
    assert feed.drops == {"tun-in": 1}


async def test_what_the_device_does_not_take_is_counted(
    feed: TunFeed, kernel: socket.socket
) -> None:
    kernel.close()
    feed.open(transport()).feed(views([esp(0), esp(1)]))
    assert feed.drops == {"tun-in": 2}


async def test_packets_out_arrive_as_they_were_and_in_trains(
    feed: TunFeed, kernel: socket.socket
) -> None:
    carrier = transport()
    port = feed.open(carrier)
    packets = [esp(number, 100 + 7 * number) for number in range(WAVE)]
    await send(kernel, [around(port, packet) for packet in packets])
    await until(lambda: len(carrier.sent) == WAVE)
    assert carrier.sent == packets
    assert carrier.trains == [WAVE]
    await send(kernel, [around(port, esp(0, LARGEST))])
    await until(lambda: len(carrier.sent) == WAVE + 1)
    assert carrier.sent[-1] == esp(0, LARGEST)


async def test_each_client_gets_its_own_in_order(feed: TunFeed, kernel: socket.socket) -> None:
    carriers = [transport(), transport()]
    ports = [feed.open(carrier) for carrier in carriers]
    order = [0, 0, 1, 0, 1, 1, 0, 1]
    sent = [(who, esp(number, 200 + number)) for number, who in enumerate(order)]
    await send(kernel, [around(ports[who], packet) for who, packet in sent])
    for number, carrier in enumerate(carriers):
        await until(lambda carrier=carrier: len(carrier.sent) == 4)
        assert carrier.sent == [packet for who, packet in sent if who == number]
        assert carrier.trains == [4]


FOREIGN: dict[str, dict[str, object]] = {
    "from another source": {"src": "0.64.0.3"},
    "of another protocol": {"proto": 17},
    "a first fragment": {"flags": "MF"},
    "a later fragment": {"frag": 100},
    "with options": {"options": [b"\1\1\1\1"]},
    "to nobody": {"dst": "0.64.99.99"},
}


@pytest.mark.parametrize("fields", FOREIGN.values(), ids=FOREIGN)
async def test_only_esp_of_the_entrance_is_heard(
    feed: TunFeed, kernel: socket.socket, fields: dict[str, object]
) -> None:
    carrier = transport()
    port = feed.open(carrier)
    await send(kernel, [around(port, esp(0), **fields), around(port, esp(1))])
    await until(lambda: carrier.sent)
    assert carrier.sent == [esp(1)]
    assert feed.drops == {}


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        bytes(IPv6(dst="ff02::2") / Raw(bytes(60))),
        bytes(IP(src=ENTRANCE, dst="0.64.0.2") / UDP() / Raw(bytes(60))),
        bytes(IP(src=ENTRANCE, dst="0.64.0.2", proto=50) / Raw(bytes(4) + esp(0))),
        bytes(IP(src=ENTRANCE, dst="0.64.0.2", proto=50) / Raw(esp(0, 7))),
    ],
    ids=["nothing", "an octet", "IPv6", "UDP", "no SPI, as IKE has it", "half a header"],
)
async def test_what_is_no_esp_is_forgotten(
    feed: TunFeed, kernel: socket.socket, packet: bytes
) -> None:
    carrier = transport()
    port = feed.open(carrier)
    await send(kernel, [around(port, esp(0)), packet, around(port, esp(1))])
    await until(lambda: len(carrier.sent) == 2)
    assert carrier.sent == [esp(0), esp(1)]
    assert feed.drops == {}


async def test_a_congested_client_has_its_packets_held_and_stops_no_other(
    feed: TunFeed, kernel: socket.socket
) -> None:
    slow, quick = transport(), transport()
    port, other = feed.open(slow), feed.open(quick)
    slow.is_congested = True
    packets = [esp(number) for number in range(20)]
    await send(kernel, [around(each, packet) for packet in packets for each in (port, other)])
    await until(lambda: len(quick.sent) == 20)
    assert slow.sent == []
    slow.is_congested = False
    await send(kernel, [around(port, esp(20))])
    await until(lambda: len(slow.sent) == 21)
    assert slow.sent == [*packets, esp(20)]
    assert feed.drops == {}


async def test_what_cannot_be_held_is_dropped_and_counted(
    feed: TunFeed, kernel: socket.socket
) -> None:
    carrier = transport()
    port = feed.open(carrier)
    carrier.is_congested = True
    fit, size = HELD_OCTETS // 60_002, 60_000
    await send(kernel, [around(port, esp(number, size)) for number in range(fit + 3)])
    await until(lambda: feed.drops == {"tun-held": 3})
    carrier.is_congested = False
    await until(lambda: len(carrier.sent) == fit)
    assert carrier.sent == [esp(number, size) for number in range(fit)]
    await send(kernel, [around(port, esp(99))])
    await until(lambda: len(carrier.sent) == fit + 1)


async def test_what_the_transport_does_not_take_is_counted(
    feed: TunFeed, kernel: socket.socket
) -> None:
    port = feed.open(Refusing(path_of(Carrier.TLS)))
    await send(kernel, [around(port, esp(number)) for number in range(5)])
    await until(lambda: feed.drops == {"congestion": 5})


class Refusing(MemoryTransport):
    """Says that it is not congested, and is."""

    def send_esp(self, _frames: memoryview, ends: Sequence[int]) -> int:
        return len(ends)


async def test_a_reconnect_keeps_alias_and_packets(feed: TunFeed, kernel: socket.socket) -> None:
    old, new = transport(), transport()
    port = feed.open(old)
    alias = port.alias
    old.is_congested = True
    await send(kernel, [around(port, esp(0))])
    await asyncio.sleep(0.01)
    port.move(new)
    await send(kernel, [around(port, esp(1))])
    await until(lambda: len(new.sent) == 2)
    assert new.sent == [esp(0), esp(1)]
    assert old.sent == []
    assert port.alias == alias


async def test_a_closed_port_hears_nothing(feed: TunFeed, kernel: socket.socket) -> None:
    carrier, other_carrier = transport(), transport()
    port, other = feed.open(carrier), feed.open(other_carrier)
    carrier.is_congested = True
    await send(kernel, [around(port, esp(0))])
    await asyncio.sleep(0.01)
    port.close()
    port.close()
    carrier.is_congested = False
    port.move(carrier)
    await send(kernel, [around(port, esp(1)), around(other, esp(2))])
    await until(lambda: other_carrier.sent)
    assert carrier.sent == []
    assert feed.open(transport()).alias not in (port.alias, other.alias)
