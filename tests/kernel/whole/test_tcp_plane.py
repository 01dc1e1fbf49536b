"""The kernel's data plane with streams that the kernel has (espintcp), between two hosts on a wire.

    near                                                              far
    10.1.0.1 fd01::1 on lo                          10.2.0.1 fd02::1 on lo
    192.0.2.1, 2001:db8::1 ------------------------ 192.0.2.2, 2001:db8::2

The planes run in this process, in the event loop of the test; programs run on the hosts.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address

import pytest

from tests.kernel.iproute import statistics
from tests.kernel.test_plane import OUTER, OUTER_6, Host, answered, on, until
from tests.kit.daemons import Transfer
from tests.kit.netns import Namespace, wire
from tests.unit.dataplane.samples import FAR, FAR_6, NEAR, NEAR_6, child_of, suite_of
from tunnelwrap.dataplane.xfrm_espintcp import why_no_espintcp
from tunnelwrap.errors import TransportError
from tunnelwrap.path import Carrier, Path, SocketAddress
from tunnelwrap.transport import Transport
from tunnelwrap.transport.dial import open_tcp
from tunnelwrap.transport.kernel_stream import KernelStream, suits_kernel
from tunnelwrap.wire.framing import PREFIX, frame

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(120)]

PORT = 4500
INNER = ((NEAR, NEAR_6), (FAR, FAR_6))
SPI = 0x1000
IKE = bytes(4) + b"as good as IKE"
TOO_BIG = "XfrmOutStateModeError"  # and told so by ICMP


class End(Host):
    """One end: its plane, and what its streams have told."""

    def __init__(self, host: Namespace, side: int) -> None:
        super().__init__(host, side)
        self.got: list[bytes] = []
        self.ended: list[TransportError] = []
        self.on_ike: Callable[[], None] = lambda: None
        self._streams: list[KernelStream] = []

    def stream(self, sock: socket.socket, *, is_originator: bool) -> KernelStream:
        sock.setblocking(False)
        ends = SocketAddress.of(sock.getsockname()), SocketAddress.of(sock.getpeername())
        stream = KernelStream(
            *(sock, Path(*ends, Carrier.TCP), self._take, self._end, asyncio.get_running_loop()),
            is_originator=is_originator,
        )
        self._streams.append(stream)
        return stream

    def close(self) -> None:
        super().close()
        for stream in self._streams:
            stream.close()

    @property
    def spi_in(self) -> int:
        return SPI + self.side

    def _take(self, transport: Transport, batch: list[memoryview]) -> None:
        self.got += map(bytes, self.plane.feed(transport, batch))
        self.on_ike()

    def _end(self, _transport: Transport, error: TransportError) -> None:
        self.ended.append(error)


Ends = tuple[End, End]
Streams = tuple[KernelStream, KernelStream]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    with Namespace("near") as near, Namespace("far") as far:
        wire(
            *(near, "eth0", [f"{OUTER[0]}/24", f"{OUTER_6[0]}/64"]),
            *(far, "eth0", [f"{OUTER[1]}/24", f"{OUTER_6[1]}/64"]),
        )
        for host, own, others in ((near, INNER[0], INNER[1]), (far, INNER[1], INNER[0])):
            host.address("lo", f"{own[0]}/32", f"{own[1]}/128")
            for other in others:
                family = "-6" if ":" in other else "-4"
                host.ip(*f"{family} route add {other} dev eth0 mtu 1400".split())
        made = End(near, 0), End(far, 1)
        yield made
        for end in made:
            end.close()


async def connected(ends: Ends, ways: tuple[str, str] = OUTER) -> Streams:
    """A stream that has begun: near has sent the prefix and a message, and far has taken it."""
    near, far = ends
    with far.host.entered():
        family = socket.AF_INET6 if ":" in ways[1] else socket.AF_INET
        listening = socket.create_server((ways[1], PORT), family=family)
    with near.host.entered():
        ours = await open_tcp(SocketAddress(ip_address(ways[1]), PORT))
    theirs, _ = listening.accept()
    listening.close()
    with near.host.entered():
        assert suits_kernel(ours, Carrier.TCP)
    streams = near.stream(ours, is_originator=True), far.stream(theirs, is_originator=False)
    streams[0].send(IKE)
    await until(lambda: IKE in far.got)
    far.got.clear()
    return streams


def install(ends: Ends, ways: tuple[Transport, Transport], **of: object) -> None:
    for end, way in zip(ends, ways, strict=True):
        end.plane.install(child_of(end.side, **of), way, use_outbound=True)


def move(ends: Ends, ways: tuple[Transport, Transport]) -> None:
    for end, way in zip(ends, ways, strict=True):
        end.plane.move(end.spi_in, way)


def over_udp(ends: Ends) -> tuple[Transport, Transport]:
    return ends[0].transport(*OUTER), ends[1].transport(*OUTER[::-1])


async def sequences(end: End) -> tuple[int, int]:
    """The newest sequence numbers of its SAs: taken, sent."""
    printed = await on(end.host, "ip", "-d", "xfrm", "state")
    found = re.findall(r"seq 0x(\w+), oseq-hi 0x\w+, oseq 0x(\w+)", printed)
    return max(int(taken, 16) for taken, _ in found), max(int(sent, 16) for _, sent in found)


async def carried(octets: int, source: tuple[End, str], sink: End) -> None:
    """Have TCP inside the tunnel bring so much."""
    transfer = await asyncio.to_thread(Transfer, (source[0].host, source[1]), sink.host, octets)
    try:
        await asyncio.to_thread(transfer.finish)
    finally:
        transfer.close()


async def test_nothing_is_against_this_kernel() -> None:
    assert why_no_espintcp([suite_of("aes256gcm16")]) is None


@pytest.mark.parametrize("ways", [OUTER, OUTER_6], ids=["over-ipv4", "over-ipv6"])
async def test_esp_and_ike_share_a_stream_that_is_the_kernels(
    ends: Ends, ways: tuple[str, str]
) -> None:
    streams = await connected(ends, ways)
    install(ends, streams)

    assert await answered(ends[0], NEAR, FAR, 5) == 5
    assert await answered(ends[1], FAR_6, NEAR_6, 5) == 5
    for here, there, stream in ((0, 1, streams[0]), (1, 0, streams[1])):
        for size in (1, 1000, 60_000):
            stream.send(IKE * size if size < 60_000 else bytes(size))
        await until(lambda there=there: len(ends[there].got) == 3)
        assert ends[there].got == [IKE, IKE * 1000, bytes(60_000)], here

    counted = [end.plane.counters(end.spi_in) for end in ends]
    assert [(each.packets_in, each.packets_out) for each in counted] == [(10, 10), (10, 10)]
    assert [statistics(end.host) for end in ends] == [{}, {}]


@pytest.mark.parametrize("is_up", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("suite", ["aes128gcm16", "chacha20poly1305", "aes256-sha512"])
async def test_much_passes_unharmed(ends: Ends, suite: str, *, is_up: bool) -> None:
    install(ends, await connected(ends), suite=suite)
    source, sink = (ends[0], ends[1]) if is_up else (ends[1], ends[0])
    await carried(4 << 20, (source, INNER[source.side][0]), sink)
    for end in ends:
        assert set(statistics(end.host)) <= {TOO_BIG}
        assert not end.ended


async def test_the_peers_first_packets_behind_its_message_are_the_kernels(ends: Ends) -> None:
    """They may be there before the Child SA is, which that message brings."""
    near, far = ends
    streams = await connected(ends)
    far.plane.install(child_of(1), streams[1], use_outbound=True)

    def install_once() -> None:
        near.on_ike = lambda: None
        near.plane.install(child_of(0), streams[0], use_outbound=True)

    near.on_ike = install_once
    streams[1].send(IKE)
    quickly = ("ping", "-n", "-c3", "-i0.01", "-W1", "-I", FAR, NEAR)
    far.host.succeeds(*quickly)  # while nothing is read here

    await until(lambda: near.plane.counters(SPI).packets_in == 3)
    assert near.got == [IKE]


async def test_a_new_stream_takes_the_child_sa_and_no_number_comes_twice(ends: Ends) -> None:
    old = await connected(ends)
    install(ends, old)
    assert await answered(ends[0], NEAR, FAR, 5) == 5
    before = [await sequences(end) for end in ends]

    new = await connected(ends)
    old[0].close()
    move(ends, new)

    assert await answered(ends[0], NEAR, FAR, 5) == 5
    assert [await sequences(end) for end in ends] == [
        (taken + 5, sent + 5) for taken, sent in before
    ]
    printed = await on(ends[1].host, "ip", "xfrm", "state")
    ports = {str(new[1].peer.port), str(PORT)}
    assert set(re.findall(r"port (\d+)", printed)) == ports
    assert [statistics(end.host) for end in ends] == [{}, {}]
    assert not ends[1].mapped


async def test_the_responder_takes_esp_of_either_stream(ends: Ends) -> None:
    """The originator has moved already, the responder has not heard of it."""
    old = await connected(ends)
    install(ends, old)
    assert await answered(ends[0], NEAR, FAR) == 2

    new = await connected(ends)
    ends[0].plane.move(SPI, new[0])
    assert await answered(ends[0], NEAR, FAR) == 0  # here none is read yet
    new[0].send(IKE)
    await until(lambda: ends[1].got == [IKE])
    assert ends[1].plane.drops["before-hand-over"] == 2

    ends[1].plane.move(SPI + 1, new[1])
    assert await answered(ends[0], NEAR, FAR) == 2


async def test_to_udp_and_back(ends: Ends) -> None:
    streams = await connected(ends)
    install(ends, streams)
    assert await answered(ends[0], NEAR, FAR, 3) == 3

    for ways, kind in (
        (over_udp(ends), "espinudp"),
        (await connected(ends), "espintcp"),
        (over_udp(ends), "espinudp"),
    ):
        before = [await sequences(end) for end in ends]
        move(ends, ways)
        assert await answered(ends[0], NEAR, FAR, 3) == 3
        for end, (taken, sent) in zip(ends, before, strict=True):
            now = await sequences(end)
            assert now[0] > taken
            assert now[1] > sent
            printed = await on(end.host, "ip", "xfrm", "state")
            assert re.findall(r"type (\w+)", printed) == [kind] * 2
    assert not any("Seq" in name for end in ends for name in statistics(end.host))


async def test_without_a_stream_packets_are_lost_until_there_is_another(ends: Ends) -> None:
    old = await connected(ends)
    install(ends, old)
    old[0].close()
    await until(lambda: ends[1].ended)
    assert str(ends[1].ended[0]) == "peer closed the stream"
    assert await answered(ends[0], NEAR, FAR) == 0

    move(ends, await connected(ends))
    assert await answered(ends[0], NEAR, FAR) == 2


async def test_a_reset_is_seen(ends: Ends) -> None:
    streams = await connected(ends)
    install(ends, streams)
    far = ends[1].host
    far.nft(
        "table inet t { chain c { type filter hook input priority 0;"
        f" tcp dport {PORT} reject with tcp reset\n}}\n}}"
    )
    streams[0].send(IKE)
    await until(lambda: ends[0].ended)


@pytest.mark.parametrize("octets", [b"\0\0", b"\0\1", b"\0\1" + bytes(100)])
async def test_lengths_that_are_none_end_the_stream(ends: Ends, octets: bytes) -> None:
    near, far = ends
    with far.host.entered():
        listening = socket.create_server((OUTER[1], PORT))
    with near.host.entered():
        raw = await open_tcp(SocketAddress(ip_address(OUTER[1]), PORT))
    sock, _ = listening.accept()
    listening.close()
    stream = far.stream(sock, is_originator=False)
    raw.send(PREFIX + frame(IKE))
    await until(lambda: far.got)
    far.plane.install(child_of(1), stream, use_outbound=True)
    for harmless in (b"\0\2", frame(b"\xff"), frame(b"abc")):
        raw.send(harmless)
    raw.send(frame(IKE))
    await until(lambda: len(far.got) == 2)
    assert not far.ended

    raw.send(octets)

    await until(lambda: far.ended)
    assert "corrupt" in str(far.ended[0])
    raw.close()


async def test_ike_passes_while_esp_fills_the_stream(ends: Ends) -> None:
    streams = await connected(ends)
    install(ends, streams)
    sent = 0
    async with asyncio.TaskGroup() as tasks:
        load = tasks.create_task(carried(8 << 20, (ends[0], NEAR), ends[1]))
        while not load.done():
            streams[0].send(IKE)
            sent += 1
            await asyncio.sleep(0.01)
    await until(lambda: len(ends[1].got) == sent)
    assert set(ends[1].got) == {IKE}
