"""iproute2, the second opinion on what the kernel was told."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kit.netns import Namespace

_STATE = re.compile(
    r"src (?P<source>\S+) dst (?P<destination>\S+) proto (?P<protocol>\w+) spi (?P<spi>0x\w+)\S*"
    r" reqid (?P<reqid>\d+)\S* mode (?P<mode>\w+)"
)
_ALGORITHM = re.compile(r"\b(?:aead|auth-trunc|enc) (?:.*?) 0x\w+(?: \(\d+ bits\))?(?: \d+)?")
_ENCAP = re.compile(r"encap type espinudp sport (\d+) dport (\d+)")
_PACKETS = re.compile(r"lifetime current: \d+\(bytes\), (\d+)\(packets\)")
_POLICY = re.compile(
    r"src (?P<source>\S+) dst (?P<destination>\S+) dir (?P<direction>in|out|fwd) .*?"
    r"tmpl src (?P<near>\S+) dst (?P<far>\S+) proto (?P<protocol>\w+)"
    r"(?: spi (?P<spi>0x\w+))? reqid (?P<reqid>\d+) mode (?P<mode>\w+)"
)


def ip(words: str) -> str:
    """Run ``ip`` and give back what it prints, its white space made single."""
    command = ["ip", *shlex.split(words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return " ".join(done.stdout.split())


@dataclass(frozen=True, slots=True)
class State:
    """What both ends must agree on of an SA, as ``ip xfrm state`` has it."""

    source: str
    destination: str
    spi: int
    mode: str
    algorithms: tuple[str, ...]  # with their keys
    ports: tuple[int, int] | None  # of ESP in UDP


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy, and the SA that it asks for."""

    source: str
    destination: str
    direction: str
    ends: tuple[str, str]
    spi: int | None
    mode: str

    @property
    def selector(self) -> tuple[str, str]:
        """Whose packets it is for."""
        return self.source, self.destination


def states(host: Namespace) -> set[State]:
    """The SAs of a host."""
    return {_state(text) for text in _blocks(host.run("ip", "xfrm", "state"))}


def policies(host: Namespace) -> set[Policy]:
    """The policies of a host, save those of sockets."""
    found = map(_POLICY.match, _blocks(host.run("ip", "xfrm", "policy")))
    return {
        Policy(
            *(each["source"], each["destination"], each["direction"]),
            (each["near"], each["far"]),
            int(each["spi"], 16) if each["spi"] else None,
            each["mode"],
        )
        for each in found
        if each is not None
    }


def packets_by_spi(host: Namespace, monitor: Path) -> dict[int, int]:
    """How many packets each SA has carried: those there are, and what ``monitor`` saw go.

    One that has carried none does not count.
    """
    there = _blocks(host.run("ip", "-s", "xfrm", "state"))
    gone = (" ".join(text.split()) for text in monitor.read_text().split("Deleted ")[1:])
    return {spi: packets for spi, packets in map(_counted, (*there, *gone)) if packets}


def watch(host: Namespace, log: Path) -> None:
    """Have all SAs that go told in a file, with their counters."""
    host.popen("ip", "-s", "xfrm", "monitor", "SA", log=log)


def statistics(host: Namespace) -> dict[str, int]:
    """What the kernel's IPsec dropped on a host, by cause."""
    lines = host.run("cat", "/proc/net/xfrm_stat").splitlines()
    found = {name: int(value) for name, value in map(str.split, lines)}
    return {name: value for name, value in found.items() if value}


def _blocks(printed: str) -> Iterator[str]:
    """What is printed of one SA or policy each, its white space made single."""
    for block in re.split(r"^(?=src )", printed, flags=re.MULTILINE):
        if block:
            yield " ".join(block.split())


def _state(text: str) -> State:
    found, ports = _STATE.match(text), _ENCAP.search(text)
    assert found is not None, text
    return State(
        *(found["source"], found["destination"], int(found["spi"], 16), found["mode"]),
        tuple(_ALGORITHM.findall(text)),
        (int(ports[1]), int(ports[2])) if ports is not None else None,
    )


def _counted(text: str) -> tuple[int, int]:
    found, packets = _STATE.match(text), _PACKETS.search(text)
    assert found is not None, text
    return int(found["spi"], 16), int(packets[1]) if packets is not None else 0
