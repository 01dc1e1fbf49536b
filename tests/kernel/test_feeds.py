"""Streams and the kernel's ESP, in a kernel that has it.

    peers (10.9.0.1, .2)         gateway                                    lan
    ESP of this process ---- bridge ---- lo ---- XFRM 10.77.0.1 ---- eth0 10.77.0.2
                                          inner (dummy) has the routes to the peers

The peers are our own ESP with a transport in memory; their inner addresses exist nowhere. In the
last test the peer is a kernel too, behind a bridge and TCP.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from struct import Struct

import pytest

from tests.io.samples import PATIENCE_S, Owner, tcp_pair, until
from tests.io.samples import stream as stream_of
from tests.kit.carriers import MemoryTransport, packets_of, path_of
from tests.kit.netns import Namespace, wire
from tests.unit.dataplane.samples import keys_of, suite_of, udp
from tunnelwrap.dataplane.bridge import (
    LOOPBACK_SYSCTLS,
    Bridge,
    BridgePort,
    open_entrance,
)
from tunnelwrap.dataplane.esp import IPV4, IPV6, InboundSa, OutboundSa, ReplayWindow, Run
from tunnelwrap.errors import DataPlaneError
from tunnelwrap.ike.child_sa import SaKeys
from tunnelwrap.path import Carrier
from tunnelwrap.transport import Transport

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

LAN = {4: "10.77.0.2", 6: "fd77::2"}
PORT, PEER_PORT = 2000, 1000  # as udp() has them
SPI_TO_PEER = 0x5000  # that all peers have chosen
SUITE = suite_of("aes128gcm16")
XFRM_MAPPING_GROUP = 1 << 7
EXEMPTIONS = [
    f"net.{family}.conf.{device}.disable_policy"
    for family in ("ipv4", "ipv6")
    for device in ("lo", "all")
]
WAVE = 64  # packets under way at most, where none may be lost

_sequence = Struct(">4xI").unpack_from
_number = Struct(">I")


@dataclass
class Peer:
    """A stream client: our ESP at its end of the stream, SAs and policies of the gateway's kernel.

    Its SPI for what it sends follows from its number; so do its keys and inner addresses.
    """

    number: int
    port: BridgePort
    transport: MemoryTransport
    drops: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._outbound = OutboundSa(self.spi, SUITE, self.keys(0), uses_esn=True)
        window = ReplayWindow(64, uses_esn=True)
        self._inbound = InboundSa(
            SPI_TO_PEER, SUITE, self.keys(1), window, uses_esn=True, drops=self.drops
        )

    @property
    def spi(self) -> int:
        return 0x1000 + self.number

    def keys(self, direction: int) -> SaKeys:
        """Keys from (0) and to (1) the peer."""
        return keys_of(SUITE, 10 * self.number + direction)

    def inner(self, version: int = 4) -> str:
        return f"10.9.0.{self.number}" if version == 4 else f"fd09::{self.number}"

    def seal(self, packets: Sequence[bytes]) -> list[memoryview]:
        """ESP packets for inner ones of one length."""
        length = len(packets[0])
        slot, head = self._outbound.slot(length), self._outbound.head
        arena, ends = memoryview(bytearray(slot * len(packets))), list[int]()
        for number, packet in enumerate(packets):
            arena[number * slot + head :][:length] = packet
        next_header = IPV4 if packets[0][0] >> 4 == 4 else IPV6
        self._outbound.seal_batch(arena, 0, (len(packets), length, next_header), ends)
        return packets_of(arena, ends)

    def opened(self, sealed: Sequence[bytes]) -> list[bytes]:
        """The inner packets, with what ESP has behind them."""
        arena, inner = memoryview(bytearray(1 << 17)), list[bytes]()
        views, at = [memoryview(packet) for packet in sealed], 0
        while at < len(views):
            runs: list[Run] = []
            at = self._inbound.open_batch(views, at, arena, runs)
            for offset, count, length, stride in runs:
                starts = range(offset, offset + count * stride, stride)
                inner += [bytes(arena[start : start + length]) for start in starts]
        return inner

    def send(self, packets: Sequence[bytes]) -> None:
        self.port.feed(self.seal(packets))


class Host:
    """A host with a bridge, and the commands that its data plane would spare us."""

    def __init__(self, space: Namespace) -> None:
        self.space = space
        self._counters_before: dict[str, int] = {}
        self.ip("link add inner type dummy", "link set inner up")

    def renew(self) -> None:
        """Be as if no test had been here, and do what the daemon does with LOOPBACK_SYSCTLS."""
        self.ip("xfrm state flush", "xfrm policy flush", "link set lo mtu 65536")
        defaults = ((key, "1" if key == EXEMPTIONS[0] else "0") for key in EXEMPTIONS)
        settings = [*defaults, *LOOPBACK_SYSCTLS]
        self.space.run("sysctl", "-qw", *(f"{key}={value}" for key, value in settings))
        self._counters_before = self._counters()

    def ip(self, *commands: str) -> None:
        """Run commands of iproute2's ip, all in one process: those are slow to start here."""
        self.space.run("ip", "-batch", "-", stdin="\n".join(commands))

    def open_bridge(self) -> Bridge:
        with self.space.entered():
            return Bridge.create(asyncio.get_running_loop())

    def open_unguarded(self) -> Bridge:
        """What ``create`` refuses."""
        with self.space.entered():
            return Bridge(asyncio.get_running_loop(), open_entrance())

    def open_port(self, bridge: Bridge, transport: Transport) -> BridgePort:
        with self.space.entered():
            return bridge.open(transport)

    def peer(self, bridge: Bridge, number: int, *, mapped_from: int | None = None) -> Peer:
        """A peer with its SAs and policies; ``mapped_from``: a port its SA believes in."""
        transport = MemoryTransport(path_of(Carrier.TLS))
        peer = Peer(number, self.open_port(bridge, transport), transport)
        port, alias_port = peer.port, mapped_from or peer.port.alias.port
        self.ip(
            state(port, "in", (peer.spi, peer.keys(0), number), alias_port),
            state(port, "out", (SPI_TO_PEER, peer.keys(1), number), alias_port),
            policy(port, number, f"src {peer.inner(4)} dst 10.77.0.0/24 dir fwd"),
            policy(port, number, f"src {peer.inner(6)} dst fd77::/64 dir fwd"),
            policy(port, number, f"src 0.0.0.0/0 dst {peer.inner(4)} dir out"),
            policy(port, number, f"src ::/0 dst {peer.inner(6)} dir out"),
        )
        return peer

    async def counted(self, name: str, count: int) -> None:
        """Wait until a counter says so."""
        await until(lambda: self.counter(name) >= count)
        assert self.counter(name) == count

    def counter(self, name: str) -> int:
        """One of /proc/net/xfrm_stat, for this test."""
        return self._counters()[name] - self._counters_before[name]

    def _counters(self) -> dict[str, int]:
        lines = map(str.split, self.space.run("cat", "/proc/net/xfrm_stat").splitlines())
        return {name: int(value) for name, value in lines}


def state(port: BridgePort, direction: str, sa: tuple[int, SaKeys, int], alias_port: int) -> str:
    """The command for an SA with this SPI, keys and reqid between an alias and its entrance."""
    (spi, keys, reqid), alias, entrance = sa, port.alias, port.entrance
    ends = [(alias.ip, alias_port), (entrance.ip, entrance.port)]
    source, destination = ends if direction == "in" else ends[::-1]
    return (
        f"xfrm state add src {source[0]} dst {destination[0]} proto esp spi {spi} mode tunnel"
        f" reqid {reqid} replay-window 128 flag af-unspec flag esn"
        f" aead rfc4106(gcm(aes)) 0x{keys.encryption.reveal().hex()} 128"
        f" encap espinudp {source[1]} {destination[1]} 0.0.0.0"
    )


def policy(port: BridgePort, reqid: int, words: str) -> str:
    """The command for a policy on what comes from a peer or goes there."""
    ends = [str(port.alias.ip), str(port.entrance.ip)]
    source, destination = ends[::-1] if words.endswith("out") else ends
    template = f"src {source} dst {destination} proto esp reqid {reqid} mode tunnel"
    return f"xfrm policy add {words} tmpl {template}"


class Handing(Owner):
    """The owner of a stream that hands what comes to a port."""

    def __init__(self, port: BridgePort) -> None:
        super().__init__()
        self._port = port

    def batch(self, _transport: Transport, batch: Sequence[memoryview]) -> None:
        self._port.feed(batch)


@pytest.fixture(scope="module")
def lan() -> Iterator[Namespace]:
    socket.socket(socket.AF_INET6).close()  # makes the kernel load IPv6, which ip would not
    with Namespace("lan") as host:
        yield host


@pytest.fixture(scope="module")
def router(lan: Namespace) -> Iterator[Host]:
    """The gateway; namespaces take their time here."""
    with Namespace("gateway") as space:
        near, far = ["10.77.0.1/24", "fd77::1/64"], ["10.77.0.2/24", "fd77::2/64"]
        wire(space, "eth0", near, lan, "eth0", far)
        host = Host(space)
        host.ip("route add 10.9.0.0/24 dev inner", "route add fd09::/64 dev inner")
        lan.route("10.9.0.0/24", via="10.77.0.1")
        lan.route("fd09::/64", via="fd77::1")
        space.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield host


@pytest.fixture
def gateway(router: Host) -> Host:
    router.renew()
    return router


@pytest.fixture
async def bridge(gateway: Host) -> AsyncIterator[Bridge]:
    bridge = gateway.open_bridge()
    yield bridge
    bridge.close()


@pytest.fixture
def listen(lan: Namespace) -> Iterator[Callable[..., socket.socket]]:
    """Opens sockets of the host on the LAN."""
    with ExitStack() as stack:

        def opened(version: int = 4) -> socket.socket:
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            with lan.entered():
                sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.bind((LAN[version], PORT))
            sock.setblocking(False)
            return sock

        yield opened


def numbered(first: int, count: int, source: str, size: int = 1200) -> list[bytes]:
    """UDP packets to the LAN that begin with their number; with no checksum."""
    packet = udp(size, source, LAN[4])
    head, tail = packet[:26] + bytes(2), packet[32:]
    return [head + _number.pack(number) + tail for number in range(first, first + count)]


def received(sock: socket.socket) -> list[bytes]:
    """All that has come."""
    found = []
    while True:
        try:
            found.append(sock.recv(65535))
        except BlockingIOError:
            return found


def numbers(packets: Sequence[bytes], at: int = 0) -> list[int]:
    return [_number.unpack_from(packet, at)[0] for packet in packets]


async def collected(sock: socket.socket, count: int) -> list[bytes]:
    """That many packets, which may still be in the kernel's queue."""
    found: list[bytes] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            found += received(sock)
            await asyncio.sleep(0)
    return found


async def test_twenty_thousand_packets_from_a_stream_reach_the_lan(
    gateway: Host, bridge: Bridge, listen: Callable[..., socket.socket]
) -> None:
    sock, peer, got = listen(), gateway.peer(bridge, 1), list[int]()
    for first in range(0, 20_000, WAVE):
        count = min(WAVE, 20_000 - first)
        peer.send(numbered(first, count, peer.inner()))
        got += numbers(await collected(sock, count))
    assert got == list(range(20_000))
    assert bridge.drops == {}
    assert gateway.counter("XfrmInStateSeqError") == 0


async def test_twenty_thousand_packets_of_the_lan_reach_the_stream(
    gateway: Host, bridge: Bridge, listen: Callable[..., socket.socket]
) -> None:
    sock, peer = listen(), gateway.peer(bridge, 1)
    sent, to = peer.transport.sent, (peer.inner(), PEER_PORT)
    for first in range(0, 20_000, WAVE):
        last = min(first + WAVE, 20_000)
        for number in range(first, last):
            sock.sendto(_number.pack(number) + bytes(1200), to)
        await until(lambda last=last: len(sent) == last)
    assert [_sequence(packet)[0] for packet in sent] == list(range(1, 20_001))
    assert numbers(peer.opened(sent), 28) == list(range(20_000))
    assert bridge.drops == {}
    assert peer.drops == {}
    assert max(peer.transport.trains) > 8  # packets in one read


async def test_packets_of_many_sizes_both_ways(
    gateway: Host, bridge: Bridge, listen: Callable[..., socket.socket]
) -> None:
    sock, peer = listen(), gateway.peer(bridge, 1)
    sizes = [10, 1200, 1200, 1300, 600, 600, 20, 1000, 1000, 1000, 5, 1400]
    batch = [peer.seal(numbered(0, 1, peer.inner(), size))[0] for size in sizes]
    peer.port.feed(batch)
    assert [len(payload) for payload in await collected(sock, len(sizes))] == sizes
    for size in sizes:
        sock.sendto(bytes(size), (peer.inner(), PEER_PORT))
    await until(lambda: len(peer.transport.sent) == len(sizes))
    inner = peer.opened(peer.transport.sent)
    assert [int.from_bytes(packet[2:4]) - 28 for packet in inner] == sizes


@pytest.mark.parametrize("version", [4, 6])
async def test_peers_that_chose_the_same_spi_each_get_their_own(
    gateway: Host, bridge: Bridge, listen: Callable[..., socket.socket], version: int
) -> None:
    sock = listen(version)
    peers = [gateway.peer(bridge, number) for number in (1, 2)]
    for peer in peers:
        peer.send([udp(100 + peer.number, peer.inner(version), LAN[version])])
        assert [len(payload) for payload in await collected(sock, 1)] == [100 + peer.number]
        sock.sendto(bytes([peer.number]) * 50, (peer.inner(version), PEER_PORT))
    for peer in peers:
        await until(lambda peer=peer: peer.transport.sent)
        (inner,) = peer.opened(peer.transport.sent)
        assert bytes([peer.number]) * 50 in inner


@pytest.mark.parametrize("version", [4, 6])
async def test_forged_inner_sources_are_refused(
    gateway: Host, bridge: Bridge, listen: Callable[..., socket.socket], version: int
) -> None:
    sock = listen(version)
    peer, other = gateway.peer(bridge, 1), gateway.peer(bridge, 2)
    stranger = "10.77.0.99" if version == 4 else "fd77::99"
    peer.send([udp(100, other.inner(version), LAN[version])])
    await gateway.counted("XfrmInTmplMismatch", 1)
    peer.send([udp(100, stranger, LAN[version])])
    await gateway.counted("XfrmInNoPols", 1)
    peer.send([udp(101, peer.inner(version), LAN[version])])
    assert [len(payload) for payload in await collected(sock, 1)] == [101]


async def test_without_the_sysctl_they_would_not_be(
    gateway: Host, listen: Callable[..., socket.socket]
) -> None:
    """Else the test above could not fail."""
    gateway.space.sysctl("net.ipv4.conf.lo.disable_policy", 1)
    sock, bridge = listen(), gateway.open_unguarded()
    gateway.peer(bridge, 1).send([udp(100, "10.77.0.99", LAN[4])])
    assert [len(payload) for payload in await collected(sock, 1)] == [100]
    bridge.close()


@pytest.mark.parametrize("key", EXEMPTIONS)
async def test_no_bridge_opens_where_anything_exempts_from_policies(
    gateway: Host, key: str
) -> None:
    gateway.space.sysctl(key, 1)
    with pytest.raises(DataPlaneError, match=rf"sysctl -w {key}=0"):
        gateway.open_bridge()


async def test_a_second_bridge_has_addresses_of_its_own(gateway: Host, bridge: Bridge) -> None:
    second = gateway.open_bridge()
    blocks = [each.entrance.ip.packed[:2] for each in (bridge, second)]
    assert blocks[0] != blocks[1]
    port = gateway.open_port(second, MemoryTransport(path_of(Carrier.TLS)))
    assert port.alias.ip.packed[:2] == blocks[1]
    second.close()
    third = gateway.open_bridge()
    assert third.entrance == second.entrance
    third.close()


async def test_peers_see_each_other_only_if_allowed(gateway: Host, bridge: Bridge) -> None:
    one, other = gateway.peer(bridge, 1), gateway.peer(bridge, 2)
    one.send([udp(100, one.inner(), other.inner())])
    await gateway.counted("XfrmInNoPols", 1)
    gateway.ip(policy(one.port, 1, f"src {one.inner()} dst {other.inner()} dir fwd"))
    one.send([udp(101, one.inner(), other.inner())])
    await until(lambda: other.transport.sent)
    (inner,) = other.opened(other.transport.sent)
    assert int.from_bytes(inner[2:4]) == 129


async def test_policies_for_all_addresses_leave_the_bridge_alone(
    gateway: Host, bridge: Bridge, listen: Callable[..., socket.socket]
) -> None:
    sock, peer = listen(), gateway.peer(bridge, 1)
    gateway.ip(policy(peer.port, 1, "src 0.0.0.0/0 dst 0.0.0.0/0 dir in"))
    peer.send([udp(100, peer.inner(), LAN[4])])
    assert [len(payload) for payload in await collected(sock, 1)] == [100]
    sock.sendto(bytes(50), (peer.inner(), PEER_PORT))
    await until(lambda: peer.transport.sent)


async def test_a_reconnect_goes_on_with_sequence_numbers_and_replay_window(
    gateway: Host, bridge: Bridge, listen: Callable[..., socket.socket]
) -> None:
    sock, peer = listen(), gateway.peer(bridge, 1)
    old = peer.seal(numbered(0, 3, peer.inner()))
    peer.port.feed(old)
    sock.sendto(bytes(50), (peer.inner(), PEER_PORT))
    await until(lambda: peer.transport.sent)
    peer.transport.is_congested = True  # it is dead, and nobody knows yet
    sock.sendto(bytes(50), (peer.inner(), PEER_PORT))
    await asyncio.sleep(0)
    fresh = MemoryTransport(path_of(Carrier.TLS))
    peer.port.move(fresh)
    sock.sendto(bytes(50), (peer.inner(), PEER_PORT))
    await until(lambda: len(fresh.sent) == 2)
    assert len(peer.transport.sent) == 1
    assert [_sequence(packet)[0] for packet in fresh.sent] == [2, 3]
    assert numbers(await collected(sock, 3)) == [0, 1, 2]
    peer.port.feed(old)
    await gateway.counted("XfrmInStateSeqError", 3)
    peer.send(numbered(3, 1, peer.inner()))
    assert numbers(await collected(sock, 1)) == [3]


@pytest.mark.slow  # alone it passes; behind all the others under coverage it failed twice
async def test_congestion_makes_the_kernel_hold_and_then_drop(
    gateway: Host, bridge: Bridge, listen: Callable[..., socket.socket]
) -> None:
    sock, peer = listen(), gateway.peer(bridge, 1)
    peer.transport.is_congested = True
    for number in range(3000):
        sock.sendto(_number.pack(number) + bytes(1200), (peer.inner(), PEER_PORT))
        if number % WAVE == 0:
            await asyncio.sleep(0)
    await until(lambda: bridge.drops)
    lost = bridge.drops["bridge-out"]
    assert peer.transport.sent == []
    peer.transport.is_congested = False
    await until(lambda: len(peer.transport.sent) == 3000 - lost)
    got = numbers(peer.opened(peer.transport.sent), 28)
    assert got == list(range(3000 - lost))
    assert bridge.drops == {"bridge-out": lost}


@pytest.mark.parametrize("mapped_from", [None, 4999])
async def test_the_kernel_sees_no_mapping_change(
    gateway: Host,
    bridge: Bridge,
    listen: Callable[..., socket.socket],
    mapped_from: int | None,
) -> None:
    """It would with any port but the alias's."""
    sock = listen()
    with gateway.space.entered():
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_XFRM)
    with events:
        events.bind((0, XFRM_MAPPING_GROUP))
        peer = gateway.peer(bridge, 1, mapped_from=mapped_from)
        peer.send([udp(100, peer.inner(), LAN[4])])
        events.setblocking(False)
        await collected(sock, 1)
        assert bool(received(events)) is (mapped_from is not None)


async def test_a_loopback_device_that_takes_no_trains_gets_packets(
    gateway: Host, bridge: Bridge, listen: Callable[..., socket.socket]
) -> None:
    gateway.space.ip("link", "set", "lo", "mtu", "1000")
    sock, peer = listen(), gateway.peer(bridge, 1)
    for first in (0, 20):
        peer.send(numbered(first, 20, peer.inner()))
    assert numbers(await collected(sock, 40)) == list(range(40))
    assert bridge.drops == {}


@pytest.fixture
def client() -> Iterator[Host]:
    with Namespace("client") as space:
        host = Host(space)
        space.address("inner", "10.9.0.1/32")
        space.route("10.77.0.0/24", dev="inner")
        host.renew()
        yield host


async def test_kernels_at_both_ends_of_a_stream(
    gateway: Host, client: Host, bridge: Bridge
) -> None:
    peer, other = gateway.peer(bridge, 1), client.open_bridge()
    port = client.open_port(other, peer.transport)
    client.ip(
        state(port, "in", (SPI_TO_PEER, peer.keys(1), 1), port.alias.port),
        state(port, "out", (peer.spi, peer.keys(0), 1), port.alias.port),
        policy(port, 1, "src 0.0.0.0/0 dst 10.9.0.1 dir in"),
        policy(port, 1, "src 10.9.0.1 dst 0.0.0.0/0 dir out"),
    )
    streams = []
    for sock, end in zip(tcp_pair(), (port, peer.port), strict=True):
        streams.append(stream_of(sock, Handing(end), is_originator=end is port))
        end.move(streams[-1])
    ping = await asyncio.create_subprocess_exec(
        *client.space.command("ping", "-c20", "-i0.05", "-s1200", "-W5", LAN[4]),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await asyncio.wait_for(ping.communicate(), 60)
    assert b" 0% packet loss" in printed, printed.decode()
    assert bridge.drops == other.drops == {}
    other.close()
    for stream in streams:
        stream.close()


async def test_a_host_needs_leave_to_talk_to_itself(client: Host) -> None:
    """Where an in policy covers its address: such packets come by the loopback device as well."""
    bridge = client.open_bridge()
    port = client.open_port(bridge, MemoryTransport(path_of(Carrier.TLS)))
    client.ip(policy(port, 1, "src 0.0.0.0/0 dst 10.9.0.1 dir in priority 100"))
    ping = ("ping", "-c1", "-W1", "10.9.0.1")
    assert not client.space.succeeds(*ping)
    client.ip("xfrm policy add src 10.9.0.1 dst 10.9.0.1 dir in priority 99")
    assert client.space.succeeds(*ping)
    bridge.close()
