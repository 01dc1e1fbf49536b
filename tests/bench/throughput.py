"""``python -m tests.bench.throughput``: TLS and WebSocket beside OpenVPN, over TCP 443, in one run.

All tunnels cross the demo's firewall, which drops all but TCP 443, and carry an iperf3 stream
between the client and the site behind the gateway. They take turns, so that a drift of the machine
hits all; the figures are medians.
"""

import argparse
import asyncio
import json
import secrets
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import openvpn
from tunnelwrap.daemon.demo_network import SITE_ADDRESS, Block, DemoNetwork
from tunnelwrap.daemon.demo_tunnel import DemoTunnel

DIRECTIONS = {"up": (), "down": ("--reverse",)}
READY_S = 10.0

Figures = dict[str, list[float]]
"""Mbit/s of each round, by direction."""


def main() -> None:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="length of one measurement")
    parser.add_argument("--only", choices=sorted(TUNNELS), help="leave the others out")
    parser.add_argument("--json", action="store_true", help="one JSON object, no table")
    arguments = parser.parse_args()
    chosen = [arguments.only] if arguments.only else list(TUNNELS)
    figures = asyncio.run(measure(chosen, arguments.rounds, arguments.seconds))
    medians = {
        name: {way: statistics.median(values) for way, values in rounds.items()}
        for name, rounds in figures.items()
    }
    if arguments.json:
        sys.stdout.write(json.dumps(report(figures, medians)) + "\n")
    else:
        print_table(figures, medians)


async def measure(names: list[str], rounds: int, seconds: int) -> dict[str, Figures]:
    """The figures of each tunnel, all rounds."""
    figures: dict[str, Figures] = {name: {way: [] for way in DIRECTIONS} for name in names}
    for _ in range(rounds):
        for name in names:
            for way, mbps in (await one_round(name, seconds)).items():
                figures[name][way].append(mbps)
    return figures


async def one_round(name: str, seconds: int) -> dict[str, float]:
    """Build the hosts and one tunnel, and measure both directions, in Mbit/s."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        unique = f"tw-{secrets.token_hex(2)}"
        network = DemoNetwork(unique, Block.ALL_BUT_443, Path(directory))
        try:
            await network.up()
            await TUNNELS[name](network)
            await start_server(network)
            return {way: await iperf(network, seconds, *more) for way, more in DIRECTIONS.items()}
        finally:
            await network.down()


async def start_server(network: DemoNetwork) -> None:
    """Start iperf3 on the site."""
    server = network.start(
        "site", "iperf3", "iperf3", "--server", "--forceflush", "--bind", SITE_ADDRESS
    )
    await server.wait_for("listening", READY_S)


async def iperf(network: DemoNetwork, seconds: int, *more: str) -> float:
    """One measurement, in Mbit/s as the receiver counts."""
    output = await network.run(
        *("client", "iperf3", "--client", SITE_ADDRESS, "--time", str(seconds)),
        *("--omit", "1", "--json", *more),
    )
    return float(json.loads(output)["end"]["sum_received"]["bits_per_second"]) / 1e6


async def start_tunnelwrap(carrier: str, network: DemoNetwork) -> None:
    """The demo's own tunnel."""
    tunnel = DemoTunnel(network)
    await tunnel.make_configuration()
    await tunnel.serve()
    await tunnel.connect(carrier)


TUNNELS: dict[str, Callable[[DemoNetwork], Awaitable[None]]] = {
    "tunnelwrap": partial(start_tunnelwrap, "tls"),
    "websocket": partial(start_tunnelwrap, "ws"),
    "openvpn": openvpn.start,
}


def report(figures: dict[str, Figures], medians: dict[str, dict[str, float]]) -> dict[str, object]:
    """The result as plain JSON, with the ratio if both were measured."""
    result: dict[str, object] = {"mbps": figures, "median_mbps": medians}
    if len(medians) > 1:
        result["ratio"] = {way: ratio(medians, way) for way in DIRECTIONS}
    return result


def ratio(medians: dict[str, dict[str, float]], way: str) -> float:
    """How many times OpenVPN's throughput is reached."""
    return round(medians["tunnelwrap"][way] / medians["openvpn"][way], 2)


def print_table(figures: dict[str, Figures], medians: dict[str, dict[str, float]]) -> None:
    """Show the medians, and the spread of the rounds."""
    table = Table("tunnel", *(f"{way}, Mbit/s" for way in DIRECTIONS), title="TCP 443 only")
    for name, median in medians.items():
        cells = [
            f"{median[way]:,.0f}  ({min(rounds):,.0f} to {max(rounds):,.0f})"
            for way, rounds in figures[name].items()
        ]
        table.add_row(name, *cells)
    if len(medians) > 1:
        table.add_row("ratio", *(f"{ratio(medians, way):.2f}" for way in DIRECTIONS))
    Console().print(table)


if __name__ == "__main__":
    main()
