"""``python -m tests.bench.flood``: requests from forged addresses, and a real client among them.

The router of ``tests.kit.daemons`` sends the flood by a raw socket, from addresses that lead
nowhere. Gateway and client are the real programs. Told are how long the client took to connect,
what the gateway did with the flood, and how its memory grew, flood by flood. Needs root.
"""

import argparse
import json
import random
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path
from struct import Struct
from threading import Thread

from rich.console import Console
from rich.table import Table

from tests.flows.scripted import ScriptedInitiator
from tests.kit.daemons import GATEWAY, Daemon, Hosts, Issued, hosts, wait_until
from tests.kit.netns import Namespace
from tests.kit.policies import client, gateway
from tunnelwrap.config.suites import DEFAULT_IKE

FORGED = "100.64.0.0/10"
FIRST_FORGED = int(IPv4Address("100.64.0.0"))
IKE_PORT = 500

_IP = Struct("!BBHHHBBH4s4s")
_UDP = Struct("!HHHH")


@dataclass(frozen=True)
class Figures:
    """What one flood came to."""

    sent: int
    per_second: int
    client_s: float  # from its first packet to the tunnel
    was_amid: bool  # the flood was not over then
    cookies_asked: int
    cookies_returned: int
    memory_before_kb: int
    memory_after_kb: int


def main() -> None:
    """Flood as the command line asks, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=2_500, help="per second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object, no table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        with hosts(Issued.by_init(directory), directory) as net:
            served = serve(net)
            figures = [
                flood(net, served, arguments.count, arguments.rate) for _ in range(arguments.rounds)
            ]
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(each) for each in figures]) + "\n")
    else:
        print_table(figures)


def serve(net: Hosts) -> Daemon:
    """The gateway, with a way out for its answers to forged addresses that ends at the router."""
    net.router.run("ip", "route", "add", "blackhole", FORGED)
    return net.serve()


def flood(net: Hosts, served: Daemon, count: int, rate: int) -> Figures:
    """One flood, and in the middle of it a client that connects and leaves."""
    before, memory = counters(served), resident_kb(served)
    flooding = Flood(net.router, count, rate)
    flooding.start()
    connecting = net.start_client(None, "--carrier", "udp")
    established = connecting.tells("established")
    was_amid = flooding.is_alive()
    flooding.join()
    wait_until("the gateway has read it all", lambda: is_idle(served))
    after = counters(served)
    figures = Figures(
        count,
        round(count / flooding.took_s),
        seconds_of(established),
        was_amid,
        after["cookies_asked"] - before.get("cookies_asked", 0),
        after["cookies_returned"] - before.get("cookies_returned", 0),
        memory,
        resident_kb(served),
    )
    connecting.stop()
    return figures


class Flood(Thread):
    """Sends so many requests at that rate, each from an address and a port of its own."""

    def __init__(self, host: Namespace, count: int, rate: int) -> None:
        super().__init__()
        self._count, self._rate = count, rate
        self.took_s = 0.0
        with host.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def run(self) -> None:
        """Send them, on time even where the machine is late now and then."""
        started = time.monotonic()
        for number, packet in enumerate(forged_packets(self._count)):
            early = started + number / self._rate - time.monotonic()
            if early > 0:
                time.sleep(early)
            self._socket.sendto(packet, (GATEWAY, 0))
        self.took_s = time.monotonic() - started
        self._socket.close()


def forged_packets(count: int) -> Iterator[bytes]:
    """Whole IP packets with requests that the gateway would welcome."""
    rng = random.Random()
    suite = DEFAULT_IKE[0]
    _, request = ScriptedInitiator(client(suite), gateway(suite)).init_request()
    length = _UDP.size + len(request)
    destination = socket.inet_aton(GATEWAY)
    for _ in range(count):
        source = (FIRST_FORGED + rng.getrandbits(22)).to_bytes(4, "big")
        ip = _IP.pack(0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0, source, destination)
        udp = _UDP.pack(1024 + rng.getrandbits(15), IKE_PORT, length, 0)
        yield ip + udp + rng.randbytes(8) + request[8:]


def counters(served: Daemon) -> dict[str, int]:
    """What the gateway has counted so far."""
    told = served.status["counters"]
    assert isinstance(told, dict)
    return told


def is_idle(served: Daemon) -> bool:
    """Whether nothing waits to be read by the gateway: its control socket answers in turn."""
    first = counters(served).get("cookies_asked")
    time.sleep(0.1)
    return counters(served).get("cookies_asked") == first


def resident_kb(served: Daemon) -> int:
    """The gateway's memory."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def seconds_of(established: dict[str, object]) -> float:
    """How long all attempts took together."""
    attempts = established["attempts"]
    assert isinstance(attempts, list)
    return sum(float(attempt["seconds"]) for attempt in attempts)


def print_table(figures: list[Figures]) -> None:
    """Show every flood in a line."""
    table = Table(
        *("sent", "per second", "client connected in", "cookies asked", "returned", "memory grew"),
        title="IKE_SA_INIT from forged addresses",
    )
    for each in figures:
        grown = each.memory_after_kb - each.memory_before_kb
        table.add_row(
            f"{each.sent:,}",
            f"{each.per_second:,}",
            f"{each.client_s:.2f} s{'' if each.was_amid else ', too late'}",
            f"{each.cookies_asked:,}",
            f"{each.cookies_returned:,}",
            f"{grown:,} kB to {each.memory_after_kb:,} kB",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
