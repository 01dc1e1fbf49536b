"""``python -m tests.bench.storm``: strongSwan and tunnelwrap rekey all the time, both at once.

Both ends rekey the IKE SA and the Child SA every couple of seconds, by timers that run out at the
same time, with a key exchange that takes its time, so that the exchanges cross on the wire. Pings
and a stream pass meanwhile, and every role has its turn. What happened is counted in strongSwan's
log. Exits with 1 where the tunnel was lost. Needs root.
"""

import argparse
import json
import re
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.interop.lan import INNER_HOST, Lan, PingFlood, PingResult, ping, two_hosts
from tests.interop.pair import Pair, psk_proofs
from tests.interop.settings import Role, Settings
from tests.kit.strongswan import wait_until

IKE = "aes256gcm16-prfsha256-modp4096"
ESP = "aes256gcm16-modp4096"
STREAM = "10M"
BLOCK = "4K"
"""At a time; a larger one comes as a burst that overflows strongSwan's socket by itself."""

MEAN_OF_JITTER = 0.95
"""tunnelwrap rekeys up to a tenth early, strongSwan here not at all."""

IKE_ESTABLISHED = r"IKE_SA peer\[\d+\] established between"
IKE_REKEYED = r"IKE_SA peer\[\d+\] rekeyed between"
CHILD_ESTABLISHED = r"CHILD_SA net\{(\d+)\} established with SPIs"
COLLISIONS = (
    r"detected (\w+ collision with \w+)",
    r"(\w+ rekey collision (?:won|lost))",
    r"(\w+ rekey/delete collision)",
    r"(peer did not notice IKE_SA rekey collision)",
    r"(generating|parsed) CREATE_CHILD_SA response \d+ \[ N\((TEMP_FAIL|CHILD_NOT_FOUND)\)",
)
"""What strongSwan says of two exchanges that crossed, and of refusals for that reason."""


@dataclass(frozen=True)
class Figures:
    """What one storm came to."""

    child_rekeys: int
    ike_rekeys: int
    collisions: Counter[str]
    pings: PingResult
    stream: str
    drops: dict[str, int]  # packets, by who dropped them and why
    child_sas_left: int
    has_stood: bool


def main() -> None:
    """Let it storm as the command line asks, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="of each role")
    parser.add_argument("--every", type=int, default=2, help="seconds from rekey to rekey")
    parser.add_argument("--role", choices=[role.value for role in Role], help="tunnelwrap's only")
    parser.add_argument("--keep", type=Path, help="a directory to keep the logs in")
    arguments = parser.parse_args()
    roles = [Role(arguments.role)] if arguments.role else list(Role)
    have_stood = True
    for role in roles:
        with directory_for(arguments.keep, role) as directory:
            figures = storm(role, directory, arguments.minutes * 60, arguments.every)
        print_table(role, figures)
        have_stood &= figures.has_stood
    sys.exit(0 if have_stood else 1)


@contextmanager
def directory_for(kept: Path | None, role: Role) -> Iterator[Path]:
    """Where the files of one storm are: for its time, or for good."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            yield Path(name)
    else:
        directory = kept / role.value
        directory.mkdir(parents=True)
        yield directory


def storm(role: Role, directory: Path, seconds: float, every_s: int) -> Figures:
    """One storm; tunnelwrap has that role."""
    with two_hosts(f"tw-{secrets.token_hex(2)}") as lan:
        pair = Pair(lan, directory, role)
        try:
            if not pair.start(*settings(role, every_s)):
                raise SystemExit(f"no tunnel\n{pair.tunnelwrap.log}")
            with stream(lan, directory, seconds) as told:
                pings = PingFlood(lan, directory / "ping", seconds, 0.01).finish()
            return count(pair, role, pings, told)
        finally:
            pair.stop()


def settings(role: Role, every_s: int) -> list[Settings]:
    """The initiator's and the responder's; their timers run out together, in the mean."""
    ours = every_s / MEAN_OF_JITTER
    return [
        replace(
            Settings(proof, IKE, ESP),
            rekey_child_s=ours if end is role else every_s,
            rekey_ike_s=ours if end is role else every_s,
        )
        for end, proof in zip(Role, psk_proofs(), strict=True)
    ]


@contextmanager
def stream(lan: Lan, directory: Path, seconds: float) -> Iterator[Path]:
    """A TCP stream to the inner host for as long; where iperf3 tells what it came to."""
    told = directory / "iperf3"
    inside = ("ip", "netns", "exec")
    server = subprocess.Popen(
        [*inside, lan.responder, "iperf3", "--server", "--bind", INNER_HOST],
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: is_listening(lan.responder), 10, "iperf3 serves")
    command = [*inside, lan.initiator, "iperf3", "--client", INNER_HOST, "--json"]
    command += ["--bitrate", STREAM, "--length", BLOCK, "--interval", "0"]
    command += ["--time", str(int(seconds))]
    with told.open("wb") as output:
        client = subprocess.Popen(command, stdout=output)
    try:
        yield told
        client.wait(30)
    except subprocess.TimeoutExpired:
        told.write_text("")
    finally:
        for process in (client, server):
            process.kill()
            process.wait()


def is_listening(host: str) -> bool:
    """Whether iperf3 can be reached there."""
    command = ["ip", "netns", "exec", host, "ss", "-Hltn", "sport = :5201"]
    return bool(subprocess.run(command, check=True, capture_output=True).stdout)


def count(pair: Pair, role: Role, pings: PingResult, told: Path) -> Figures:
    """The figures, while both daemons still run."""
    log = pair.strongswan.log
    has_stood = pair.tunnelwrap.has_tunnel() and pair.peer.has_tunnel() and ping(pair.lan)
    return Figures(
        child_rekeys=len(set(re.findall(CHILD_ESTABLISHED, log))) - 1,
        ike_rekeys=len(re.findall(IKE_REKEYED, log)),
        collisions=collisions(log),
        pings=pings,
        stream=words_of(told),
        drops=drops(pair, role),
        child_sas_left=pair.strongswan.sas().count("INSTALLED"),
        has_stood=has_stood and len(re.findall(IKE_ESTABLISHED, log)) == 1,
    )


def collisions(log: str) -> Counter[str]:
    """How often each kind was seen."""
    return Counter(
        " ".join(found.groups()) for each in COLLISIONS for found in re.finditer(each, log)
    )


def drops(pair: Pair, role: Role) -> dict[str, int]:
    """What each host has dropped: in its full queues, and tunnelwrap for any reason."""
    found = {}
    for end in Role:
        who = "tunnelwrap" if end is role else "strongSwan"
        host = getattr(pair.lan, end.value)
        found[f"{who}'s full socket"] = full_socket(host)
        found[f"{who}'s full TUN"] = full_tun(host)
    counted = pair.tunnelwrap.counters()
    return found | {
        f"tunnelwrap ({cause.removeprefix('dropped_')})": times
        for cause, times in counted.items()
        if "_esp" in cause
    }


def full_socket(host: str) -> int:
    """Datagrams that the kernel of a host dropped because nobody read them soon enough."""
    command = ["ip", "netns", "exec", host, "nstat", "--json", "-asz", "UdpRcvbufErrors"]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    return int(json.loads(output)["kernel"]["UdpRcvbufErrors"])


def full_tun(host: str) -> int:
    """Packets that it dropped so on their way into the tunnel."""
    command = ["ip", "-n", host, "-json", "-s", "link", "show", "type", "tun"]
    links = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return sum(int(link["stats64"]["tx"]["dropped"]) for link in links)


def words_of(told: Path) -> str:
    """What the stream came to."""
    text = told.read_text()
    end = json.loads(text)["end"] if text else {}
    if "sum_received" not in end:
        return "broken off"
    mbps = end["sum_received"]["bits_per_second"] / 1e6
    return f"{mbps:.1f} Mbit/s, {end['sum_sent']['retransmits']} retransmits"


def print_table(role: Role, figures: Figures) -> None:
    """Show one storm."""
    table = Table("what", "figure", title=f"tunnelwrap as {role.value}")
    pings = figures.pings
    rows = {
        "rekeys of Child SAs": figures.child_rekeys,
        "rekeys of IKE SAs": figures.ike_rekeys,
        **{f"  {what}": times for what, times in sorted(figures.collisions.items())},
        "pings lost": f"{pings.lost:,} of {pings.sent:,}",
        f"stream of {STREAM}bit/s": figures.stream,
        **{f"  dropped by {cause}": times for cause, times in figures.drops.items()},
        "Child SAs left": figures.child_sas_left,
        "the tunnel stood": "yes" if figures.has_stood else "NO",
    }
    for what, figure in rows.items():
        table.add_row(what, str(figure))
    Console().print(table)


if __name__ == "__main__":
    main()
