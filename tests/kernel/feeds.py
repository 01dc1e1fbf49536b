"""A gateway that feeds its kernel with ESP of streams, and their peers, for tests of the feeds."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.io.samples import until
from tests.kit.carriers import MemoryTransport, packets_of, path_of
from tests.kit.netns import Namespace
from tests.unit.dataplane.samples import keys_of, suite_of
from tunnelwrap.dataplane.bridge import LOOPBACK_SYSCTLS, Bridge, open_entrance
from tunnelwrap.dataplane.esp import IPV4, IPV6, InboundSa, OutboundSa, ReplayWindow, Run
from tunnelwrap.dataplane.feed import Feed, FeedPort
from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.dataplane.tun_feed import BLOCKS, MTU, TunFeed, network_of
from tunnelwrap.dataplane.xfrm_trial import why_not
from tunnelwrap.hostnet.links import feed_changes
from tunnelwrap.ike.child_sa import SaKeys
from tunnelwrap.path import Carrier
from tunnelwrap.transport import Transport

SUITE: Final = suite_of("aes128gcm16")
SPI_TO_PEER: Final = 0x5000  # that all peers have chosen
TUN: Final = "tf-test"
EXEMPTIONS: Final = [
    f"net.{family}.conf.{device}.disable_policy"
    for family in ("ipv4", "ipv6")
    for device in ("lo", "all")
]


@dataclass
class Peer:
    """A stream client: our ESP at its end of the stream, SAs and policies of the gateway's kernel.

    Its SPI for what it sends follows from its number; so do its keys and inner addresses.
    """

    number: int
    port: FeedPort
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
    """A host with feeds, and the commands that its data plane would spare us."""

    def __init__(self, space: Namespace) -> None:
        self.space = space
        self._counters_before: dict[str, int] = {}
        self.ip("link add inner type dummy", "link set inner up")
        with space.entered():
            assert why_not([SUITE]) is None  # and the kernel has loaded its modules

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

    def open_tun(self, name: str = TUN, block: int = BLOCKS[0]) -> TunFeed:
        """A feed by a TUN device; the device is gone where it cannot be had."""
        with self.space.entered():
            tun = Tun.open(name, has_header=False)
            try:
                for change in feed_changes(name, MTU, network_of(block)):
                    change.apply()
                return TunFeed.create(asyncio.get_running_loop(), tun, network_of(block))
            except BaseException:
                tun.close()
                raise

    def open_unguarded(self) -> Bridge:
        """What ``create`` refuses."""
        with self.space.entered():
            return Bridge(asyncio.get_running_loop(), open_entrance())

    def open(self, kind: str) -> Feed:
        """The bridge, or the feed by a TUN device; that needs no sysctl."""
        if kind == "bridge":
            return self.open_bridge()
        self.space.sysctl(EXEMPTIONS[0], 1)
        return self.open_tun()

    def open_port(self, feed: Feed, transport: Transport) -> FeedPort:
        with self.space.entered():
            return feed.open(transport)

    def peer(self, feed: Feed, number: int, *, mapped_from: int | None = None) -> Peer:
        """A peer with its SAs and policies; ``mapped_from``: a port its SA believes in."""
        transport = MemoryTransport(path_of(Carrier.TLS))
        peer = Peer(number, self.open_port(feed, transport), transport)
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


def state(port: FeedPort, direction: str, sa: tuple[int, SaKeys, int], alias_port: int) -> str:
    """The command for an SA with this SPI, keys and reqid between an alias and its entrance."""
    (spi, keys, reqid), alias, entrance = sa, port.alias, port.entrance
    ends = [(alias.ip, alias_port), (entrance.ip, entrance.port)]
    source, destination = ends if direction == "in" else ends[::-1]
    ports = f" encap espinudp {source[1]} {destination[1]} 0.0.0.0"
    encapsulation = ports if port.is_encapsulated else ""
    return (
        f"xfrm state add src {source[0]} dst {destination[0]} proto esp spi {spi} mode tunnel"
        f" reqid {reqid} replay-window 128 flag af-unspec flag esn"
        f" aead rfc4106(gcm(aes)) 0x{keys.encryption.reveal().hex()} 128"
        f"{encapsulation}"
    )


def policy(port: FeedPort, reqid: int, words: str) -> str:
    """The command for a policy on what comes from a peer or goes there."""
    ends = [str(port.alias.ip), str(port.entrance.ip)]
    source, destination = ends[::-1] if words.endswith("out") else ends
    template = f"src {source} dst {destination} proto esp reqid {reqid} mode tunnel"
    return f"xfrm policy add {words} tmpl {template}"
