"""The plane: packets of a TUN through Child SAs and transports and back, and what is dropped."""

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6

from tests.kit.carriers import MemoryTransport, loopback
from tests.unit.dataplane.samples import (
    FAR,
    FAR_6,
    NEAR,
    NEAR_6,
    NO_LIMITS,
    child_of,
    drain,
    pair_of_packet_sockets,
    selectors,
    suite_of,
    tcp,
    udp,
    with_right_sums,
)
from tunnelwrap.dataplane import SaCounters, Trap
from tunnelwrap.dataplane.esp import IPV4, IPV6, OutboundSa
from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.dataplane.userspace import HELD_MOST, UserspacePlane, tun_mtu_for
from tunnelwrap.errors import DataPlaneError, Unsupported, UsageError
from tunnelwrap.iana import Encr
from tunnelwrap.ike.child_sa import ChildSa, Mode, SaLimits
from tunnelwrap.path import Carrier, Path

PLAIN = bytes(10)
NEAR_SPI, FAR_SPI = 0x1000, 0x1001
INNER_MTU = 1400


def super_packet(payload: bytes, size: int, version: int = 4) -> bytes:
    """A TSO super-packet with its virtio-net header, as the kernel hands it over."""
    ends = (NEAR, FAR) if version == 4 else (NEAR_6, FAR_6)
    packet, start = tcp(payload, 1000, *ends, flags="PA"), 20 if version == 4 else 40
    kind = 1 if version == 4 else 4
    return struct.pack("=BBHHHH", 1, kind, start + 32, size, start, 16) + packet


class Side:
    """A plane with the host's end of its TUN."""

    def __init__(self) -> None:
        end, self.host = pair_of_packet_sockets()
        self.expired: list[tuple[int, bool]] = []
        loop = asyncio.get_running_loop()
        tun = Tun(end.detach(), "tun-test")
        note = lambda spi, is_hard: self.expired.append((spi, is_hard))  # noqa: E731 -- one line
        self.elsewhere: list[tuple[int, Path]] = []
        here = lambda spi, transport: self.elsewhere.append((spi, transport.path))  # noqa: E731
        self.plane = UserspacePlane(tun, loop, note, INNER_MTU, here)

    async def send(self, *packets: bytes, header: bytes = PLAIN) -> None:
        """Let the host send packets, and the plane take them."""
        for packet in packets:
            self.host.send(header + packet)
        await settle()

    def taken(self) -> list[bytes]:
        """Packets that reached the host, without their header."""
        return [packet[10:] for packet in drain(self.host)]


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


class Pair:
    """Two planes joined by a loopback."""

    def __init__(self, max_datagram: int = 1500) -> None:
        self.near, self.far = Side(), Side()
        self.there, self.back = loopback(max_datagram)
        self.there.receive, self.back.receive = self.to(self.near), self.to(self.far)

    def to(self, side: Side) -> Callable[..., None]:
        def receive(transport: MemoryTransport, batch: list[memoryview]) -> None:
            assert side.plane.feed(transport, batch) == []

        return receive

    def install(self, near: ChildSa | None = None, far: ChildSa | None = None) -> None:
        self.near.plane.install(near or child_of(0), self.there, use_outbound=True)
        self.far.plane.install(far or child_of(1), self.back, use_outbound=True)

    def close(self) -> None:
        for side in (self.near, self.far):
            side.plane.close()
            side.host.close()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    both = Pair()
    yield both
    both.close()


@pytest.fixture
async def ready(pair: Pair) -> Pair:
    pair.install()
    return pair


async def test_packets_travel_both_ways(ready: Pair) -> None:
    out, back = [udp(n) for n in (0, 1, 100, 101)], [udp(50, FAR, NEAR), udp(9, FAR_6, NEAR_6)]
    await ready.near.send(*out)
    await ready.far.send(*back)
    assert ready.far.taken() == out
    assert ready.near.taken() == back
    assert ready.near.plane.drops == ready.far.plane.drops == {}


async def test_where_the_newest_packet_came_from_is_told(ready: Pair) -> None:
    """RFC 7296 §2.23: but never what is repeated or late, for anyone can send that again."""
    moved, _ = loopback(carrier=Carrier.TCP)
    await ready.near.send(udp(1))
    await ready.near.send(udp(2))
    await ready.near.send(udp(3))
    first, second, third = ready.there.sent
    plane = ready.far.plane
    assert ready.far.elsewhere == []

    plane.feed(moved, [memoryview(third)])
    plane.remove(FAR_SPI)
    plane.install(child_of(1), ready.back, use_outbound=True)
    plane.feed(moved, [memoryview(second)])
    plane.feed(moved, [memoryview(first)])
    plane.feed(moved, [memoryview(second)])
    plane.feed(ready.back, [memoryview(third)])
    await settle()

    assert ready.far.elsewhere == [(FAR_SPI, moved.path)]


async def test_counters_tell_inner_packets_and_octets(ready: Pair) -> None:
    await ready.near.send(udp(100), udp(200))
    near, far = ready.near.plane.counters(NEAR_SPI), ready.far.plane.counters(FAR_SPI)
    assert (near.packets_out, near.octets_out, near.packets_in) == (2, 356, 0)
    assert (far.packets_in, far.octets_in, far.packets_out) == (2, 356, 0)
    assert near.last_in is None
    assert far.last_in == pytest.approx(asyncio.get_running_loop().time(), abs=5)
    assert ready.near.plane.counters(77) == SaCounters()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("suite", ["aes256gcm16", "chacha20poly1305", "aes128-sha256"])
async def test_super_packets_are_cut_sealed_opened_and_joined(
    pair: Pair, version: int, suite: str
) -> None:
    pair.install(child_of(0, suite=suite), child_of(1, suite=suite))
    payload = os.urandom(40 * 1200 + 77)
    await pair.near.send(super_packet(payload, 1200, version), header=b"")
    (joined,) = drain(pair.far.host)
    flags, kind, headers, size, start, _ = struct.unpack("=BBHHHH", joined[:10])
    assert (flags, kind, size) == (1, 1 if version == 4 else 4, 1200)
    packet = (IP if version == 4 else IPv6)(with_right_sums(joined[10:]))
    assert bytes(packet[TCP].payload) == payload
    assert headers == start + 32
    assert len(pair.there.sent) == 41
    counters = pair.far.plane.counters(FAR_SPI)
    assert counters.packets_in == pair.near.plane.counters(NEAR_SPI).packets_out == 41
    assert counters.octets_in == len(payload) + 41 * headers


async def test_small_super_packets_come_out_as_segments(ready: Pair) -> None:
    await ready.near.send(super_packet(bytes(2000), 1000), header=b"")
    segments = ready.far.taken()
    assert [len(segment) for segment in segments] == [1052, 1052]
    assert all(with_right_sums(segment) == segment for segment in segments)


async def test_trains_of_several_reads_are_sent_at_once(ready: Pair) -> None:
    for _ in range(3):
        ready.near.host.send(super_packet(bytes(60000), 1200))
    await settle()
    assert sum(ready.there.trains) == 150
    assert len(ready.there.trains) < 3
    assert sum(len(packet) for packet in ready.far.taken()) == 180000 + 3 * 52


async def test_checksums_left_to_us_are_completed(ready: Pair) -> None:
    right = udp(31)
    pseudo = sum(struct.unpack(">4H", right[12:20])) + 17 + 39
    partial = right[:26] + (pseudo % 0xFFFF).to_bytes(2, "big") + right[28:]
    await ready.near.send(partial, header=struct.pack("=BBHHHH", 1, 0, 0, 0, 20, 6))
    assert ready.far.taken() == [right]


async def test_nonsense_from_the_tun_is_dropped(ready: Pair) -> None:
    broken = struct.pack("=BBHHHH", 1, 1, 52, 0, 20, 16)
    await ready.near.send(tcp(bytes(99), 1), header=broken)
    await ready.near.send(udp(9), header=struct.pack("=BBHHHH", 1, 0, 0, 0, 30000, 6))
    await ready.near.send(b"")
    await ready.near.send(b"\x45")
    assert ready.far.taken() == []
    assert ready.near.plane.drops == {"malformed": 2, "no-policy": 2}


async def test_packets_outside_of_all_selectors_do_not_leave(ready: Pair) -> None:
    await ready.near.send(udp(10, NEAR, "10.3.0.1"), udp(10, "10.9.0.1", FAR))
    assert ready.there.sent == []
    assert ready.near.plane.drops == {"no-policy": 2}


@pytest.mark.rfc("3948", "3.1.1")
async def test_packets_outside_of_the_selectors_do_not_come_in(pair: Pair) -> None:
    """RFC 4301 §5.2: a peer with wider ideas cannot speak from other addresses."""
    wide = selectors("0.0.0.0/0")
    pair.install(child_of(0, local=wide, peer=wide))
    await pair.near.send(udp(10, "10.9.0.1", FAR), udp(10, NEAR, "10.9.0.1"), udp(11))
    assert pair.far.taken() == [udp(11)]
    assert pair.far.plane.drops == {"selector": 2}
    forged = super_packet(bytes(9000), 1000)
    forged = forged[:22] + bytes([10, 9, 0, 1]) + forged[26:]
    await pair.near.send(forged, header=b"")
    assert pair.far.plane.drops == {"selector": 11}
    assert pair.far.taken() == []


@pytest.mark.rfc("4303", "3.4.2")
async def test_what_is_not_ours_is_given_back_in_order(ready: Pair) -> None:
    """IKE, keepalives and unknown SPIs are the core's business."""
    await ready.near.send(udp(10))
    esp = memoryview(ready.there.sent[0])
    others = [bytes(4) + b"ike message", b"\xff", b"", bytes.fromhex("00001999") + bytes(60)]
    batch = [memoryview(others[0]), esp, *map(memoryview, others[1:])]
    rest = ready.far.plane.feed(ready.back, batch)
    assert [bytes(view) for view in rest] == others


async def test_what_was_forged_or_sent_twice_never_reaches_the_tun(ready: Pair) -> None:
    ready.there.lose = lambda _number: True
    await ready.near.send(*[udp(100)] * 12)
    sealed = ready.there.sent
    forged = [packet[:-1] + bytes([packet[-1] ^ 1]) for packet in sealed]
    ready.far.plane.feed(ready.back, [memoryview(packet) for packet in forged])
    assert ready.far.taken() == []
    assert ready.far.plane.counters(FAR_SPI) == SaCounters()
    for _ in range(2):
        ready.far.plane.feed(ready.back, [memoryview(packet) for packet in sealed])
    assert ready.far.taken() == [udp(100)] * 12
    assert ready.far.plane.drops == {"integrity": 12, "replay": 12}


def sealed_by_hand(inner: bytes, next_header: int) -> bytes:
    """One packet of the near side around any octets."""
    child = child_of(0)
    sa = OutboundSa(child.spi_out, child.suite, child.keys_out, uses_esn=True)
    arena, ends = memoryview(bytearray(4096)), []
    arena[sa.head : sa.head + len(inner)] = inner
    sa.seal_batch(arena, 0, (1, len(inner), next_header), ends)
    return bytes(arena[2 : ends[0]])


@pytest.mark.rfc("4303", "2.6")
@pytest.mark.parametrize(
    ("inner", "next_header", "drops"),
    [
        (bytes(60), 59, {}),  # RFC 4303 §2.6: a dummy packet
        (b"", 59, {}),
        (udp(10), IPV6, {"malformed": 1}),
        (udp(10, NEAR_6, FAR_6), IPV4, {"malformed": 1}),
        (udp(10), 17, {"malformed": 1}),
        (udp(10)[:-1], IPV4, {"malformed": 1}),
        (udp(10, NEAR_6, FAR_6)[:-1], IPV6, {"malformed": 1}),
        (b"\x45" + bytes(10), IPV4, {"malformed": 1}),
        (b"\x45" + bytes(30), IPV4, {"malformed": 1}),
        (b"", IPV4, {"malformed": 1}),
    ],
)
async def test_authentic_nonsense_is_dropped(
    ready: Pair, inner: bytes, next_header: int, drops: dict[str, int]
) -> None:
    packet = sealed_by_hand(inner, next_header)
    assert ready.far.plane.feed(ready.back, [memoryview(packet)]) == []
    assert ready.far.taken() == []
    assert ready.far.plane.drops == drops
    assert ready.far.plane.counters(FAR_SPI).packets_in == 0
    assert ready.far.plane.counters(FAR_SPI).last_in is not None


@pytest.mark.rfc("4303", "2.7")
async def test_traffic_flow_confidentiality_padding_is_cut_off(ready: Pair) -> None:
    """RFC 4303 §2.7: the length in the inner header decides."""
    for inner in (udp(10), udp(10, NEAR_6, FAR_6)):
        far = child_of(1)
        packet = sealed_by_hand(inner + os.urandom(99), IPV4 if inner[0] == 0x45 else IPV6)
        ready.far.plane.remove(FAR_SPI)
        ready.far.plane.install(far, ready.back, use_outbound=False)
        ready.far.plane.feed(ready.back, [memoryview(packet)])
        assert ready.far.taken() == [inner]


async def test_a_rekeyed_sa_takes_over_without_loss(ready: Pair) -> None:
    """Inbound at once, outbound when told; the old one still opens what is on its way."""
    near, far = ready.near.plane, ready.far.plane
    far.install(child_of(1, spi=0x2000), ready.back, use_outbound=False)
    near.install(child_of(0, spi=0x2000), ready.there, use_outbound=True)
    await ready.near.send(udp(1))
    await ready.far.send(udp(2, FAR, NEAR))
    assert far.counters(0x2001).packets_in == near.counters(NEAR_SPI).packets_in == 1
    far.use_outbound(0x2001)
    await ready.far.send(udp(3, FAR, NEAR))
    assert near.counters(0x2000).packets_in == 1
    near.remove(NEAR_SPI)
    far.remove(FAR_SPI)
    near.remove(NEAR_SPI)
    await ready.near.send(udp(4))
    assert ready.far.taken() == [udp(1), udp(4)]


async def test_packets_follow_a_move_and_numbers_go_on(ready: Pair) -> None:
    await ready.near.send(udp(1), udp(2))
    other, other_end = loopback(1500)
    other_end.receive = ready.to(ready.far)
    ready.near.plane.move(NEAR_SPI, other)
    ready.near.plane.move(0x7777, other)
    await ready.near.send(udp(3))
    assert ready.far.taken() == [udp(1), udp(2), udp(3)]
    assert struct.unpack(">II", other.sent[0][:8]) == (FAR_SPI, 3)
    assert len(ready.there.sent) == 2


async def test_each_peer_gets_its_own(pair: Pair) -> None:
    """A gateway: two clients behind two transports, their packets mixed in the TUN."""
    others = [loopback(1500)[0] for _ in range(3)]
    for number, transport in enumerate(others):
        peer = selectors(f"10.2.0.{number}/32")
        child = child_of(0, spi=0x3000 + 16 * number, peer=peer)
        pair.near.plane.install(child, transport, use_outbound=True)
    mixed = [udp(n, NEAR, f"10.2.0.{n % 3}") for n in range(30)]
    await pair.near.send(*mixed)
    for number, transport in enumerate(others):
        assert len(transport.sent) == 10
        spis = {struct.unpack(">I", packet[:4])[0] for packet in transport.sent}
        assert spis == {0x3001 + 16 * number}


async def test_a_lone_transport_that_is_congested_holds_the_tun_back(ready: Pair) -> None:
    ready.there.is_congested = True
    await ready.near.send(*[udp(n) for n in range(20)])
    await asyncio.sleep(0.01)
    assert ready.there.sent == []
    assert ready.near.plane.drops == {}
    ready.there.is_congested = False
    await asyncio.sleep(0.05)
    assert ready.far.taken() == [udp(n) for n in range(20)]
    await ready.near.send(udp(5))
    assert ready.far.taken() == [udp(5)]


async def test_among_several_only_the_congested_peer_loses(ready: Pair) -> None:
    other = loopback(1500)[0]
    child = child_of(0, spi=0x3000, peer=selectors("10.2.0.7/32"))
    ready.near.plane.install(child, other, use_outbound=True)
    ready.there.is_congested = True
    await ready.near.send(udp(1), udp(2, NEAR, "10.2.0.7"), udp(3))
    assert len(other.sent) == 1
    assert ready.near.plane.drops == {"congestion": 2}
    assert ready.near.plane.counters(NEAR_SPI).packets_out == 0


async def test_what_a_transport_drops_is_counted(ready: Pair) -> None:
    ready.there.is_closed = True
    await ready.near.send(udp(1), udp(2))
    assert ready.near.plane.drops == {"congestion": 2}


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (replace(NO_LIMITS, soft_packets=3), [(NEAR_SPI, False)]),
        (replace(NO_LIMITS, soft_octets=300), [(NEAR_SPI, False)]),
        (replace(NO_LIMITS, hard_packets=3), [(NEAR_SPI, True)]),
        (replace(NO_LIMITS, hard_octets=300), [(NEAR_SPI, True)]),
        (SaLimits(None, None, 2, 4), [(NEAR_SPI, False), (NEAR_SPI, True)]),
    ],
)
async def test_limits_are_told_once(
    pair: Pair, limits: SaLimits, told: list[tuple[int, bool]]
) -> None:
    pair.install(child_of(0, limits=limits))
    for _ in range(3):
        await pair.near.send(udp(72))
        await pair.far.send(udp(1, FAR, NEAR))
    for _ in range(3):
        await pair.near.send(udp(72))
    assert pair.near.expired == told


async def test_a_hard_limit_stops_both_directions(pair: Pair) -> None:
    pair.install(child_of(0, limits=replace(NO_LIMITS, hard_packets=2)))
    for n in range(4):
        await pair.near.send(udp(n))
    await pair.far.send(udp(9, FAR, NEAR))
    assert pair.far.taken() == [udp(0), udp(1)]
    assert pair.near.taken() == []
    assert pair.near.plane.drops == {"expired": 3}


async def test_limits_count_what_comes_in_too(pair: Pair) -> None:
    pair.install(child_of(0, limits=replace(NO_LIMITS, soft_packets=2)))
    await pair.far.send(udp(1, FAR, NEAR), udp(2, FAR, NEAR))
    await settle()
    assert pair.near.expired == [(NEAR_SPI, False)]


def mss_of(packet: bytes) -> int:
    parsed = IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)
    return dict(parsed[TCP].options)["MSS"]


def syn(source: str, destination: str, mss: int, flags: str = "S") -> bytes:
    layer = IPv6 if ":" in source else IP
    options = [("MSS", mss), ("SAckOK", b"")]
    return bytes(layer(src=source, dst=destination) / TCP(flags=flags, options=options))


@pytest.mark.rfc("9329", "9.4")
@pytest.mark.parametrize(("ends", "headers"), [((NEAR, FAR), 40), ((NEAR_6, FAR_6), 60)])
async def test_mss_is_clamped_in_both_directions(ends: tuple[str, str], headers: int) -> None:
    """The near path is narrower than the TUN, so that only the near side clamps."""
    pair = Pair(1000)
    pair.install()
    pair.back.max_datagram = 9000
    limit = tun_mtu_for(1000, suite_of("aes128gcm16")) - headers
    try:
        await pair.near.send(syn(*ends, 1460), syn(*ends, 500))
        await pair.far.send(syn(*reversed(ends), 1460, "SA"))
        outward, inward = pair.far.taken(), pair.near.taken()
        assert [mss_of(packet) for packet in outward] == [limit, 500]
        assert [mss_of(packet) for packet in inward] == [limit]
        assert all(with_right_sums(p) == p for p in outward + inward)
    finally:
        pair.close()


async def test_mss_never_exceeds_the_inner_mtu() -> None:
    pair = Pair(9000)
    pair.install()
    await pair.near.send(syn(NEAR, FAR, 8960))
    assert mss_of(pair.far.taken()[0]) == INNER_MTU - 40
    pair.close()


async def test_senders_learn_what_fits() -> None:
    """RFC 1191 and RFC 8201: what may not be fragmented is refused with the path's MTU."""
    pair = Pair(1000)
    pair.install()
    limit = tun_mtu_for(1000, suite_of("aes128gcm16"))
    try:
        await pair.near.send(udp(limit - 28, flags="DF"), udp(limit - 27, flags="DF"))
        await pair.near.send(udp(limit - 47, NEAR_6, FAR_6))
        assert [len(packet) for packet in pair.far.taken()] == [limit]
        needed, too_big = pair.near.taken()
        needed, too_big = IP(needed), IPv6(too_big)
        assert (needed[ICMP].type, needed[ICMP].code, needed[ICMP].nexthopmtu) == (3, 4, limit)
        assert (needed.dst, needed.src) == (NEAR, FAR)
        assert too_big[ICMPv6PacketTooBig].mtu == max(limit, 1)
        assert (too_big.dst, too_big.src) == (NEAR_6, FAR_6)
        assert pair.near.plane.drops == {"too-big": 2}
    finally:
        pair.close()


@pytest.mark.rfc("4303", "3.3.4")
async def test_packets_that_may_be_fragmented_are() -> None:
    pair = Pair(1000)
    pair.install()
    await pair.near.send(udp(2000))
    pieces = [IP(packet) for packet in pair.far.taken()]
    assert len(pieces) == 3
    assert b"".join(bytes(piece.payload) for piece in pieces) == udp(2000)[20:]
    assert pair.near.plane.drops == {}
    pair.close()


async def test_super_packets_are_cut_to_a_narrower_path() -> None:
    pair = Pair(1000)
    pair.install()
    await pair.near.send(super_packet(bytes(20000), 1348), header=b"")
    assert max(map(len, pair.there.sent)) <= 1000
    (joined,) = pair.far.taken()
    assert len(joined) == 20052
    pair.close()


async def test_a_path_that_changes_is_followed(ready: Pair) -> None:
    await ready.near.send(udp(1300, flags="DF"))
    ready.there.max_datagram = 1200
    await ready.near.send(udp(1300, flags="DF"))
    assert len(ready.far.taken()) == 1
    assert ready.near.plane.drops == {"too-big": 1}


async def test_what_cannot_be_installed(ready: Pair) -> None:
    plane = ready.near.plane
    with pytest.raises(DataPlaneError, match="00001000 is taken"):
        plane.install(child_of(0), ready.there, use_outbound=True)
    with pytest.raises(Unsupported, match="transport mode"):
        plane.install(child_of(0, spi=0x4000, mode=Mode.TRANSPORT), ready.there, use_outbound=True)
    with pytest.raises(Unsupported, match="IPComp needs the kernel's data plane"):
        plane.install(child_of(0, spi=0x4000, is_compressed=True), ready.there, use_outbound=True)
    with pytest.raises(Unsupported, match="AH needs the kernel's data plane"):
        plane.install(child_of(0, spi=0x4000, suite="ah-sha256"), ready.there, use_outbound=True)
    odd = replace(
        child_of(0, spi=0x4000), suite=replace(suite_of("aes128gcm16"), encr=Encr.AES_CTR)
    )
    with pytest.raises(Unsupported):
        plane.install(odd, ready.there, use_outbound=True)
    with pytest.raises(UsageError):
        plane.use_outbound(0x4000)
    assert plane.counters(0x4000) == SaCounters()


async def test_after_close_nothing_is_left(ready: Pair) -> None:
    ready.there.is_congested = True
    await ready.near.send(udp(1))
    ready.near.plane.close()
    ready.near.plane.close()
    ready.there.is_congested = False
    await asyncio.sleep(0.01)
    assert ready.near.plane.counters(NEAR_SPI) == SaCounters()
    with pytest.raises(ConnectionError):
        ready.near.host.send(PLAIN + udp(1))


async def test_lost_packets_do_no_harm(ready: Pair) -> None:
    ready.there.lose = lambda number: number % 10 == 3
    payload = bytes(n & 0xFF for n in range(50 * 1000))
    await ready.near.send(super_packet(payload, 1000), header=b"")
    arrived = sum(len(packet) - 52 for packet in ready.far.taken())
    assert arrived == 45 * 1000
    assert ready.far.plane.drops == {}


@pytest.mark.parametrize("suite", ["aes128gcm16", "aes256-sha512", "chacha20poly1305"])
def test_tun_mtu_makes_every_inner_packet_fit(suite: str) -> None:
    chosen = suite_of(suite)
    mtu = tun_mtu_for(1400, chosen)
    sa = OutboundSa(1, chosen, child_of(0, suite=suite).keys_out, uses_esn=True)
    assert sa.slot(mtu) - 2 <= 1400 < sa.slot(mtu + 1) - 2
    assert 1300 < mtu < 1400


# --- traps ------------------------------------------------------------------------------------


def set_trap(pair: Pair, **of: object) -> list[None]:
    """Set a trap for the packets of the near Child SA; gives the calls for it."""
    calls: list[None] = []
    child = child_of(0, **of)
    trap = Trap("net", Mode.TUNNEL, child.ts_local, child.ts_peer)
    pair.near.plane.trap(trap, pair.there, lambda: calls.append(None))
    return calls


def come(pair: Pair, near: ChildSa | None = None) -> None:
    """The Child SA is there, first at the far side, as it is with IKE."""
    pair.far.plane.install(child_of(1), pair.back, use_outbound=True)
    pair.near.plane.install(near or child_of(0), pair.there, use_outbound=True)


async def test_a_packet_calls_for_its_child_sa_and_is_not_lost(pair: Pair) -> None:
    calls, packets = set_trap(pair), [udp(n) for n in (1, 2, 3)]

    await pair.near.send(*packets)
    assert calls == [None], "once"
    assert pair.far.taken() == []
    come(pair)

    assert pair.far.taken() == [with_right_sums(packet) for packet in packets]
    assert pair.near.plane.drops == {}
    assert pair.near.plane.counters(NEAR_SPI).packets_out == 3


async def test_a_packet_that_no_trap_selects_calls_for_nothing(pair: Pair) -> None:
    calls = set_trap(pair, peer=selectors("10.3.0.0/16"))

    await pair.near.send(udp(1))

    assert not calls
    assert pair.near.plane.drops == {"no-policy": 1}


async def test_a_trap_does_nothing_where_a_child_sa_takes_the_packet(ready: Pair) -> None:
    calls = set_trap(ready)

    await ready.near.send(udp(1))

    assert not calls
    assert len(ready.far.taken()) == 1


async def test_it_calls_again_when_the_child_sa_is_gone(pair: Pair) -> None:
    calls = set_trap(pair)
    await pair.near.send(udp(1))
    come(pair)
    pair.near.plane.remove(NEAR_SPI)

    await pair.near.send(udp(2))

    assert len(calls) == 2


async def test_so_many_packets_wait_and_no_more(pair: Pair) -> None:
    set_trap(pair)

    await pair.near.send(*(udp(n) for n in range(HELD_MOST + 3)))
    await settle()
    come(pair)

    assert len(pair.far.taken()) == HELD_MOST
    assert pair.near.plane.drops == {"on-demand": 3}


async def test_what_the_child_sa_was_narrowed_to_decides_what_is_sent(pair: Pair) -> None:
    set_trap(pair)
    await pair.near.send(udp(1), udp(2, NEAR_6, FAR_6))

    come(pair, child_of(0, local=selectors("10.1.0.0/16"), peer=selectors("10.2.0.0/16")))

    assert pair.far.taken() == [with_right_sums(udp(1))]


async def test_a_super_packet_waits_whole(pair: Pair) -> None:
    set_trap(pair)
    await pair.near.send(super_packet(bytes(3000), 1000)[10:], header=super_packet(b"", 1000)[:10])

    come(pair)

    assert pair.near.plane.counters(NEAR_SPI).packets_out == 3


async def test_a_trap_in_the_place_of_another_keeps_what_waits(pair: Pair) -> None:
    first = set_trap(pair)
    await pair.near.send(udp(1))
    second = set_trap(pair)
    await pair.near.send(udp(2))
    come(pair)

    assert (len(first), len(second)) == (1, 0)
    assert len(pair.far.taken()) == 2


async def test_a_trap_that_is_taken_away_calls_for_nothing(pair: Pair) -> None:
    calls = set_trap(pair)
    pair.near.plane.untrap("net")

    await pair.near.send(udp(1))

    assert not calls
    assert pair.near.plane.drops == {"no-policy": 1}
