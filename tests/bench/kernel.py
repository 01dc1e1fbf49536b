"""``python -m tests.bench.kernel``: each data plane, and each way into it, in one kernel.

It runs itself in a kernel that has ESP (``tests.kit.kernel``). A client reaches a site behind a
gateway, with one iperf3 stream at a time, up and down. The tunnels take turns, so that a drift of
the machine hits all of them; the figures are medians, and their ratios to ESP in UDP from kernel
to kernel are what counts: both ends, the stream's ends and the kernel share one processor there.

That kernel's ciphers are plain C, some thirty (ChaCha20-Poly1305, the default suite) to fifty times
(AES-GCM; see ``--esp``) as slow as OpenSSL's, and its system calls are slow, too. The first holds
the kernel's plane back, the second those of this process.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.kernel.test_daemons import CLIENT, INNER, gateway_toml
from tests.kit.daemons import SITE, Hosts, Issued, hosts, wait_until
from tests.kit.kernel import DEBIAN, IN_GUEST, INTERFACE, WHOLE, run
from tests.unit.dataplane.samples import suite_of
from tunnelwrap.dataplane.xfrm_espintcp import why_no_espintcp

DIRECTIONS: Final = {"up": (), "down": ("--reverse",)}
TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True)
class Tunnel:
    """Which data plane each end has, and what carries ESP.

    With ``has_others`` others have IPsec policies on the gateway's host, which excludes the bridge.
    """

    client: str
    gateway: str
    carrier: str
    has_others: bool = False
    in_tcp: tuple[bool, bool] = (False, False)  # whether the kernel has the stream itself, there


TUNNELS: Final = {
    "UDP, kernels": Tunnel("kernel", "kernel", "udp"),
    "UDP, kernel at gateway": Tunnel("userspace", "kernel", "udp"),
    "UDP, userspace": Tunnel("userspace", "userspace", "udp"),
    "TLS, userspace": Tunnel("userspace", "userspace", "tls"),
    "TLS, bridge at gateway": Tunnel("userspace", "kernel", "tls"),
    "TLS, TUN at gateway": Tunnel("userspace", "kernel", "tls", has_others=True),
    "TCP, userspace": Tunnel("userspace", "userspace", "tcp"),
    "TCP, bridge at gateway": Tunnel("userspace", "kernel", "tcp"),
    "TCP, TUN at gateway": Tunnel("userspace", "kernel", "tcp", has_others=True),
}
IN_TCP: Final = {
    "TCP, espintcp at both": Tunnel("kernel", "kernel", "tcp", in_tcp=(True, True)),
    "TCP, espintcp at gateway": Tunnel("userspace", "kernel", "tcp", in_tcp=(False, True)),
}
BASE: Final = "UDP, kernels"
FEEDS: Final = ("bridge", "TUN")
OTHERS: Final = "src 198.51.100.1/32 dst 198.51.100.2/32 dir out action block"

Figures = dict[str, dict[str, list[float]]]
"""Mbit/s of each round, by tunnel and direction."""

Medians = dict[str, dict[str, float]]


def main() -> int:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="length of one measurement")
    parser.add_argument("--esp", default="chacha20poly1305", help="the suite (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object, no table")
    parser.add_argument(
        "--kernel", choices=[DEBIAN, INTERFACE, WHOLE], default=DEBIAN, help="%(default)s"
    )
    arguments = parser.parse_args()
    if IN_GUEST not in os.environ:
        command = [sys.executable, "-m", "tests.bench.kernel", *sys.argv[1:]]
        return run(command, {}, "512M", TIMEOUT_S, arguments.kernel)
    figures = measure(arguments.rounds, arguments.seconds, arguments.esp)
    medians = {
        name: {way: statistics.median(values) for way, values in rounds.items()}
        for name, rounds in figures.items()
    }
    if arguments.json:
        print(json.dumps({"mbps": figures, "ratio": ratios(medians)}))
    else:
        print_table(figures, medians)
    return 0


def measure(rounds: int, seconds: int, esp: str) -> Figures:
    """The figures of all rounds."""
    tunnels = TUNNELS | IN_TCP if has_espintcp() else TUNNELS
    figures: Figures = {name: {way: [] for way in DIRECTIONS} for name in tunnels}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        issued = Issued.by_init(Path(folder) / "issued")
        for _ in range(rounds):
            for name, tunnel in tunnels.items():
                with established(issued, Path(folder), tunnel, esp) as net:
                    for way, more in DIRECTIONS.items():
                        mbps = iperf(net, seconds, *more)
                        print(f"{name}, {way}: {mbps:.0f} Mbit/s", file=sys.stderr)
                        figures[name][way].append(mbps)
    return figures


def has_espintcp() -> bool:
    """Whether this kernel has ESP in TCP; if not, it is said."""
    why = why_no_espintcp([suite_of("aes256gcm16")])
    if why is not None:
        print(f"no figures of ESP in TCP (--kernel {WHOLE} has it): {why}", file=sys.stderr)
    return why is None


@contextmanager
def established(issued: Issued, folder: Path, tunnel: Tunnel, esp: str) -> Iterator[Hosts]:
    """All the hosts, a tunnel between client and gateway, and iperf3 on the site."""
    with hosts(issued, folder) as net:
        net.client.address("lo", f"{INNER}/32")
        if tunnel.has_others:
            net.gateway.ip("xfrm", "policy", "add", *OTHERS.split())
        allowed = gateway_toml(esp=[f"{esp}-x25519"])
        ours, theirs = tunnel.in_tcp
        gateway = net.serve(
            {**allowed, "gateway": {"data_plane": tunnel.gateway, "tcp_in_kernel": theirs}}
        )
        client = {"data_plane": tunnel.client, "tcp_in_kernel": ours}
        net.connect({**CLIENT, "client": client}, "--carrier", tunnel.carrier)
        children = [child for sa in gateway.sas for child in sa["child_sas"]]
        assert [child["data_plane"] for child in children] == [tunnel.gateway]
        log = folder / "iperf3.log"
        log.write_text("")
        net.site.popen("iperf3", "--server", "--forceflush", log=log)
        wait_until("iperf3 listens", lambda: "listening" in log.read_text())
        yield net


def iperf(net: Hosts, seconds: int, *more: str) -> float:
    """One measurement, in Mbit/s as the receiver counts."""
    output = net.client.run(
        *("iperf3", "--client", SITE, "--bind", INNER, "--time", str(seconds)),
        *("--omit", "1", "--json", *more),
    )
    return float(json.loads(output)["end"]["sum_received"]["bits_per_second"]) / 1e6


def ratios(medians: Medians) -> Medians:
    """Throughput in times of that from kernel to kernel."""
    return {
        name: {way: round(mbps / medians[BASE][way], 3) for way, mbps in median.items()}
        for name, median in medians.items()
    }


def print_table(figures: Figures, medians: Medians) -> None:
    """Show the medians with the spread of the rounds, the ratios, and who wins for streams."""
    columns = [column for way in DIRECTIONS for column in (f"{way}, Mbit/s", "ratio")]
    table = Table("tunnel", *columns, title="one stream of TCP, in a kernel of one processor")
    for name, ratio in ratios(medians).items():
        cells: list[str] = []
        for way, rounds in figures[name].items():
            median = f"{medians[name][way]:,.0f}"
            cells += [f"{median} ({min(rounds):,.0f} to {max(rounds):,.0f})", f"{ratio[way]:.2f}"]
        table.add_row(name, *cells)
    console = Console(width=100)
    console.print(table)
    for carrier, feed in product(("TLS", "TCP"), FEEDS):
        fed, own = (medians[f"{carrier}, {name}"] for name in (f"{feed} at gateway", "userspace"))
        gains = ", ".join(f"{way} {fed[way] / own[way]:.2f}" for way in DIRECTIONS)
        console.print(f"{carrier}: the {feed} has {gains} times what userspace has")


if __name__ == "__main__":
    sys.exit(main())
