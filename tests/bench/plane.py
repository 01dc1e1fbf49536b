"""Packets per second of each stage of the userspace plane: ``python -m tests.bench.plane``.

A command, not a test. Each stage handles trains as they come from one 64 KiB read of the TUN;
the figure is the median of several rounds on one core, and Gbit/s are of inner packets.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from struct import Struct

import numpy as np

from tests.kit.carriers import packets_of
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import EspSuite
from tunnelwrap.dataplane.esp import (
    IPV4,
    InboundSa,
    OutboundSa,
    ReplayWindow,
    Run,
    inner_limit,
)
from tunnelwrap.dataplane.offload import Place, Train, gather, plan, split
from tunnelwrap.iana import Encr, Integ
from tunnelwrap.ike.child_sa import SaKeys

SUITES = {
    "aes128gcm16": EspSuite(Encr.AES_GCM_16, 128, None, None, uses_esn=True),
    "aes256gcm16": EspSuite(Encr.AES_GCM_16, 256, None, None, uses_esn=True),
    "chacha20poly1305": EspSuite(Encr.CHACHA20_POLY1305, None, None, None, uses_esn=True),
    "aes256-sha256": EspSuite(Encr.AES_CBC, 256, Integ.HMAC_SHA2_256_128, None, uses_esn=True),
    "aes256ccm16": EspSuite(Encr.AES_CCM_16, 256, None, None, uses_esn=True),
    "aes256ctr-sha256": EspSuite(Encr.AES_CTR, 256, Integ.HMAC_SHA2_256_128, None, uses_esn=True),
    "aes128-aesxcbc": EspSuite(Encr.AES_CBC, 128, Integ.AES_XCBC_96, None, uses_esn=True),
    "aes256gmac": EspSuite(Encr.NULL_AUTH_AES_GMAC, 256, None, None, uses_esn=True),
}
HEADERS = 52  # IPv4, and TCP with timestamps
ROUNDS = 7


def super_packet(size: int, count: int) -> memoryview:
    """A TSO super-packet of ``count`` segments as the kernel hands it over."""
    total = HEADERS + size * count
    network = Struct(">BBHHHBBH4s4s").pack(
        0x45, 0, total, 1, 0x4000, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2"
    )
    transport = Struct(">HHIIBBHHH").pack(40000, 5201, 1, 1, 8 << 4, 0x10, 501, 0, 0)
    return memoryview(bytearray(network + transport + bytes(12) + bytes(size * count)))


class Stages:
    """One super-packet on its way out and back, stage by stage."""

    def __init__(self, suite: EspSuite, max_datagram: int) -> None:
        keys = SaKeys(
            Secret(bytes(suite.encryption_key_length)), Secret(bytes(suite.integrity_key_length))
        )
        size = (inner_limit(max_datagram, suite) - HEADERS) & ~1
        self.keys, self.suite = keys, suite
        self.count = (65535 - HEADERS) // size
        self.packet = super_packet(size, self.count)
        cut = plan(self.packet, 20, size, 65535)
        assert cut is not None
        self.cut = cut
        self.outbox = memoryview(bytearray(1 << 18))
        self.out_octets = np.frombuffer(self.outbox, np.uint8)
        self.plainbox = memoryview(bytearray(1 << 18))
        self.plain_octets = np.frombuffer(self.plainbox, np.uint8)
        self.outbound = OutboundSa(1, suite, keys, uses_esn=True)
        self.place = Place(0, self.outbound.head, self.outbound.slot(cut.length))
        self.drops: Counter[str] = Counter()
        self.split()
        self.batch = self.seal()
        self.runs = self.open()

    def split(self) -> None:
        """Cut the super-packet into segments with right headers."""
        split(self.packet, self.cut, self.out_octets, self.place)

    def seal(self) -> list[memoryview]:
        """Seal a train (what is in the outbox is sealed again and again)."""
        ends: list[int] = []
        self.outbound.seal_batch(self.outbox, 0, (self.count, self.cut.length, IPV4), ends)
        return packets_of(self.outbox[: ends[-1]], ends)

    def open(self) -> list[Run]:
        """Open the train with a fresh replay window."""
        window = ReplayWindow(1024, uses_esn=True)
        window.advance(self.outbound.sequence - self.count)
        inbound = InboundSa(1, self.suite, self.keys, window, uses_esn=True, drops=self.drops)
        runs: list[Run] = []
        inbound.open_batch(self.batch, 0, self.plainbox, runs)
        return runs

    def join(self) -> None:
        """Join the opened train into one super-packet."""
        offset, count, length, stride = self.runs[0]
        rows = self.plain_octets[offset : offset + count * stride].reshape(count, stride)
        for item in gather(rows, length):
            assert isinstance(item, Train)
            item.pieces()

    def refresh(self) -> None:
        """What the stages after sealing work on."""
        self.split()
        self.batch = self.seal()
        self.runs = self.open()


def replay(count: int) -> Callable[[], None]:
    """Judge numbers that arrive in pairs the wrong way round: no short cut for order."""
    window = ReplayWindow(1024, uses_esn=True)

    def judge() -> None:
        top = window.top
        for number in range(top + 1, top + count + 1, 2):
            for low in (number + 1, number):
                window.accept(window.locate(low))

    return judge


def microseconds(stage: Callable[[], object], packets: int) -> float:
    """Median time of a packet in a stage."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(200):
            stage()
        times.append((time.perf_counter() - start) / 200 / packets * 1e6)
    return statistics.median(times)


def report(name: str, max_datagram: int) -> None:
    """Print one block for a suite."""
    stages = Stages(SUITES[name], max_datagram)
    bits = stages.cut.length * 8
    print(f"{name}, datagrams of {max_datagram}, trains of {stages.count}")
    outward = {"split": stages.split, "seal": stages.seal}
    inward = {"open": stages.open, "join": stages.join}
    for title, group in (("out", outward), ("in", inward)):
        stages.refresh()
        costs = {key: microseconds(stage, stages.count) for key, stage in group.items()}
        costs[title] = sum(costs.values())
        for key, cost in costs.items():
            print(f"  {key:8}{cost:8.2f} us{1e6 / cost:12,.0f} /s{bits / cost / 1e3:8.2f} Gbit/s")


def main() -> None:
    """Measure the suites asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, action="append")
    parser.add_argument("--max-datagram", type=int, default=1448)
    options = parser.parse_args()
    for name in options.suite or SUITES:
        report(name, options.max_datagram)
    cost = microseconds(replay(1000), 1000)
    print(f"replay window, out of order: {cost:.2f} us{1e6 / cost:12,.0f} /s")


if __name__ == "__main__":
    main()
