"""``python -m tests.bench.relay``: many strongSwan clients through one relay, over TLS on 443.

strongSwan is at both ends, unmodified, and UDP is dropped between them. The clients are connections
of one daemon, each with an identity, an address, an IKE SA, a wrapper and so a stream of its own;
to the gateway's daemon each has an address and port of the relay's. All of them ping the
inner network, rekey both SAs again and again, and at half time every stream is reset. Exits with 1
where a client lost its IKE SA, or is not there at the end. Needs root.
"""

import argparse
import os
import re
import secrets
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.interop.lan import Lan, PingFlood, two_hosts
from tests.interop.wrapping import Wrapped, wrapped

PING_EVERY_S = 0.5
AT_ONCE = 4
"""Clients that connect; strongSwan lets one address have five IKE SAs half-open."""

_ESTABLISHED = r"IKE_SA peer\d*\[\d+\] established between"
_IKE_REKEYED = r"IKE_SA peer\d*\[\d+\] rekeyed between"
_CHILD_REKEYED = r"inbound CHILD_SA net\d*\{\d+\} established"
_ADDRESS = r"local  (10\.71\.0\.\d+)/32"


@dataclass(frozen=True)
class Figures:
    """What it came to."""

    clients: int
    connected_s: float
    sent: int
    lost: int
    most_lost: int  # of one client
    ike_rekeys: int
    child_rekeys: int
    came_back: int
    handed_over: int
    relay_cpu_s: float
    relay_kb: int
    has_stood: bool


def main() -> None:
    """Run as the command line asks, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rekey", type=int, default=120, help="seconds from rekey to rekey")
    arguments = parser.parse_args()
    with (
        two_hosts(f"tw-{secrets.token_hex(2)}") as lan,
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
    ):
        seconds = arguments.minutes * 60
        figures = measure(lan, Path(directory), arguments.clients, seconds, arguments.rekey)
    print_table(figures)
    sys.exit(0 if figures.has_stood else 1)


def measure(lan: Lan, directory: Path, clients: int, seconds: float, rekey_s: int) -> Figures:
    """Connect all clients, let them be, reset every stream at half time, and count."""
    connection = {"rekey_time": f"{rekey_s}s", "over_time": "60s", "rand_time": "1s"}
    child = {"rekey_time": f"{rekey_s}s", "life_time": f"{rekey_s + 60}s", "rand_time": "1s"}
    options = {"connection": connection, "child": child, "clients": clients}
    with wrapped(lan, directory, carriers=["udp", "tls"], **options) as ends:
        ends.drop_udp()
        begun = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(ends.connect, range(clients)))
        connected_s = time.monotonic() - begun
        ports = {way["local"] for way in ends.relay.ways}
        pings = [
            PingFlood(lan, directory / f"ping{address}", seconds, PING_EVERY_S, address)
            for address in addresses(ends)
        ]
        time.sleep(seconds / 2)
        ends.reset_streams()
        came = [each.finish() for each in pings]
        is_same = {way["local"] for way in ends.relay.ways} == ports
        counters = ends.relay.status["counters"]
        assert isinstance(counters, dict)
        return Figures(
            clients=clients,
            connected_s=connected_s,
            sent=sum(each.sent for each in came),
            lost=sum(each.lost for each in came),
            most_lost=max(each.lost for each in came),
            ike_rekeys=len(ends.client.logged(_IKE_REKEYED)),
            child_rekeys=len(ends.client.logged(_CHILD_REKEYED)),
            came_back=counters.get("back", 0),
            handed_over=counters.get("handed_over", 0),
            relay_cpu_s=cpu_s(ends.relay.process.pid),
            relay_kb=resident_kb(ends.relay.process.pid),
            has_stood=is_same and len(came) == len(ports) == clients and stands(ends, directory),
        )


def addresses(ends: Wrapped) -> list[str]:
    """Those that the clients were given; a Child SA that was just rekeyed may still be listed."""
    return sorted(set(re.findall(_ADDRESS, ends.client.sas())))


def stands(ends: Wrapped, directory: Path) -> bool:
    """Whether every client is there, and by its first IKE SA or what that was rekeyed to."""
    log = ends.client.log
    pings = [
        PingFlood(ends.lan, directory / f"last{address}", 3, PING_EVERY_S, address)
        for address in addresses(ends)
    ]
    arrive = [each.finish().received > 0 for each in pings]
    return len(re.findall(_ESTABLISHED, log)) == ends.clients == len(arrive) and all(arrive)


def cpu_s(process: int) -> float:
    """Processor time that a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_kb(process: int) -> int:
    """Memory of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def print_table(figures: Figures) -> None:
    """Show it."""
    table = Table("what", "figure", title=f"{figures.clients} clients through one relay")
    rows = {
        "connected within": f"{figures.connected_s:.0f} s",
        "pings lost": f"{figures.lost:,} of {figures.sent:,}, {figures.most_lost} of one client",
        "rekeys of IKE SAs": figures.ike_rekeys,
        "rekeys of Child SAs": figures.child_rekeys,
        "clients that came back": figures.came_back,
        "ways handed over": figures.handed_over,
        "the relay's processor time": f"{figures.relay_cpu_s:.1f} s",
        "the relay's memory": f"{figures.relay_kb:,} kB",
        "every client stood": "yes" if figures.has_stood else "NO",
    }
    for what, figure in rows.items():
        table.add_row(what, str(figure))
    Console().print(table)


if __name__ == "__main__":
    main()
