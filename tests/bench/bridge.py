"""What the bridge costs a packet, beside ESP in userspace: ``python -m tests.bench.bridge``.

A plain socket stands in the kernel's place, so its ESP is not in the figures: what the bridge
leaves for it is the difference to the userspace plane of the same run. CPU time of this process,
median of several rounds.
"""

import argparse
import asyncio
import socket
import statistics
import time
from collections.abc import Callable, Sequence

from tests.bench.plane import SUITES, Stages
from tests.kit.carriers import MemoryTransport, path_of
from tunnelwrap.dataplane.bridge import RECEIVE_BUFFER, Bridge
from tunnelwrap.path import Carrier
from tunnelwrap.transport.udp import RUN_OCTETS, UDP_SEGMENT

ROUNDS = 9
TRAINS = 200  # a round
WAVE = 8  # trains that wait when reading begins


class Sink(MemoryTransport):
    """Counts packets, looks at none, and tells when all have come."""

    def __init__(self) -> None:
        super().__init__(path_of(Carrier.TLS))
        self.missing = 0
        self.all_came = asyncio.Event()

    def send_esp(self, _frames: memoryview, ends: Sequence[int]) -> int:
        """Take a train."""
        self.missing -= len(ends)
        if self.missing == 0:
            self.all_came.set()
        return 0


class Loopback:
    """A bridge with one port, and the socket at its other end."""

    def __init__(self) -> None:
        self.kernel = socket.socket(type=socket.SOCK_DGRAM)
        self.kernel.bind(("127.0.0.1", 0))
        self.kernel.setblocking(False)
        self.kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self.bridge = Bridge(asyncio.get_running_loop(), self.kernel)
        self.sink = Sink()
        self.port = self.bridge.open(self.sink)
        self.to = (str(self.port.alias.ip), self.port.alias.port)

    def drain(self) -> None:
        """Make room for the next train."""
        try:
            while True:
                self.kernel.recv(1)
        except BlockingIOError:
            return

    def inward(self, batch: Sequence[memoryview]) -> float:
        """Seconds for a round of trains into the kernel."""
        spent = 0.0
        for _ in range(TRAINS):
            start = time.process_time()
            self.port.feed(batch)
            spent += time.process_time() - start
            self.drain()
        return spent

    async def outward(self, batch: Sequence[memoryview]) -> float:
        """Seconds for a round of trains out of it, with the event loop's part."""
        spent, control = 0.0, (socket.IPPROTO_UDP, UDP_SEGMENT, len(batch[0]).to_bytes(2, "little"))
        for _ in range(TRAINS // WAVE):
            for _ in range(WAVE):
                self.kernel.sendmsg(batch, [control], 0, self.to)
            self.sink.missing = WAVE * len(batch)
            self.sink.all_came.clear()
            start = time.process_time()
            await self.sink.all_came.wait()
            spent += time.process_time() - start
        return spent


def stage_cost(stage: Callable[[], object], packets: int) -> float:
    """Microseconds a packet of one stage of the userspace plane."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(TRAINS):
            stage()
        times.append(time.process_time() - start)
    return statistics.median(times) / TRAINS / packets * 1e6


async def bridge_costs(batch: Sequence[memoryview]) -> tuple[float, float]:
    """Microseconds a packet, in and out."""
    loopback = Loopback()
    inward = [loopback.inward(batch) for _ in range(ROUNDS)]
    outward = [await loopback.outward(batch) for _ in range(ROUNDS)]
    assert loopback.bridge.drops == {}
    loopback.bridge.close()
    scale = 1e6 / len(batch)
    waves = TRAINS // WAVE * WAVE
    return statistics.median(inward) / TRAINS * scale, statistics.median(outward) / waves * scale


def report(name: str, max_datagram: int) -> None:
    """Print a line for each direction."""
    stages = Stages(SUITES[name], max_datagram)
    batch = [memoryview(bytes(packet)) for packet in stages.batch[: RUN_OCTETS // max_datagram]]
    costs = asyncio.run(bridge_costs(batch))
    stages.refresh()
    seal, split = stage_cost(stages.seal, stages.count), stage_cost(stages.split, stages.count)
    stages.refresh()
    opened, join = stage_cost(stages.open, stages.count), stage_cost(stages.join, stages.count)
    print(f"{name}, datagrams of {max_datagram}, trains of {len(batch)}")
    for way, cost, cipher, rest in (
        ("in", costs[0], opened, join),
        ("out", costs[1], seal, split),
    ):
        print(
            f"  {way:4} bridge {cost:5.2f} us; userspace {'open' if way == 'in' else 'seal'}"
            f" {cipher:5.2f} us ({cost / cipher:.2f} of it), with"
            f" {'join' if way == 'in' else 'split'} {cipher + rest:5.2f} us"
            f" ({cost / (cipher + rest):.2f} of it)"
        )


def main() -> None:
    """Measure the suites asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, action="append")
    parser.add_argument("--max-datagram", type=int, default=1448)
    options = parser.parse_args()
    for name in options.suite or ("aes128gcm16", "aes256-sha256"):
        report(name, options.max_datagram)


if __name__ == "__main__":
    main()
