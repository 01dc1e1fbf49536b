"""The two hosts of the interoperability tests, and proof that what passes is ESP.

    initiator 192.0.2.1 ---------- 192.0.2.2 responder --- 10.72.0.1 (its inner network)
         gets 10.71.0.x                                    10.72.0.0/24

A netfilter rule on both ends of the wire drops every inner address in clear: without it a ping
could pass with no SA at all.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

INITIATOR = "192.0.2.1"
RESPONDER = "192.0.2.2"
INNER_HOST = "10.72.0.1"
INNER_NETWORK = "10.72.0.0/24"
POOL = "10.71.0.0/24"

_NO_CLEARTEXT = """
table inet cleartext {
  chain out {
    type filter hook postrouting priority 0
    oifname "wire" ip daddr { 10.71.0.0/16, 10.72.0.0/16 } counter drop
    oifname "wire" ip saddr { 10.71.0.0/16, 10.72.0.0/16 } counter drop
  }
  chain in {
    type filter hook prerouting priority 0
    iifname "wire" ip daddr { 10.71.0.0/16, 10.72.0.0/16 } counter drop
  }
}
"""


@dataclass(frozen=True, slots=True)
class Lan:
    """The names of the two namespaces."""

    initiator: str
    responder: str


@contextmanager
def two_hosts(name: str) -> Iterator[Lan]:
    """Make the two hosts, and remove them at the end; ``name`` tells one pair from another."""
    lan = Lan(f"{name}-i", f"{name}-r")
    hosts = ((lan.initiator, INITIATOR), (lan.responder, RESPONDER))
    try:
        for host, _ in hosts:
            _ip("netns", "add", host)
        _ip(
            *("link", "add", "wire", "netns", lan.initiator),
            *("type", "veth", "peer", "name", "wire", "netns", lan.responder),
        )
        for host, address in hosts:
            _ip("-n", host, "addr", "add", f"{address}/24", "dev", "wire")
            _ip("-n", host, "link", "set", "lo", "up")
            _ip("-n", host, "link", "set", "wire", "up")
            command = ["ip", "netns", "exec", host, "nft", "-f", "-"]
            subprocess.run(command, input=_NO_CLEARTEXT, text=True, check=True)
        _ip("-n", lan.responder, "addr", "add", f"{INNER_HOST}/24", "dev", "lo")
        # A default route, as a host on the Internet has it.
        _ip("-n", lan.initiator, "route", "add", "default", "via", RESPONDER)
        yield lan
    finally:
        for host, _ in hosts:
            subprocess.run(["ip", "netns", "del", host], check=False, stderr=subprocess.DEVNULL)


@dataclass(frozen=True, slots=True)
class PingResult:
    """What a ping flood came to."""

    sent: int
    received: int

    @property
    def lost(self) -> int:
        """How many pings were not answered."""
        return self.sent - self.received


class PingFlood:
    """A ping every few milliseconds through the tunnel, for some seconds.

    ping ends by its count and not by a signal, so that it waits for the answers still on their way.
    """

    def __init__(
        self,
        lan: Lan,
        log: Path,
        seconds: float,
        interval_s: float = 0.005,
        source: str | None = None,
    ) -> None:
        self._log = log
        self._seconds = seconds
        command = ["ip", "netns", "exec", lan.initiator, "ping", "-n", "-q", "-W", "2"]
        command += ["-i", str(interval_s), "-c", str(int(seconds / interval_s))]
        command += [INNER_HOST] if source is None else ["-I", source, INNER_HOST]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def finish(self) -> PingResult:
        """Wait for the last answer, and count."""
        try:
            self._process.wait(self._seconds * 5 + 10)
        finally:
            self._process.kill()
        text = self._log.read_text()
        found = re.search(r"(\d+) packets transmitted, (\d+) received", text)
        assert found is not None, text
        return PingResult(int(found[1]), int(found[2]))


def ping(lan: Lan, count: int = 3, tries: int = 3) -> bool:
    """Whether the inner host answers every one of a few pings, in one of a few tries.

    A daemon may say that it is connected a moment before its routes are there.
    """
    command = ["ip", "netns", "exec", lan.initiator, "ping", "-n", "-q", "-i", "0.05"]
    command += ["-W", "1", "-c", str(count), INNER_HOST]
    for _ in range(tries):
        done = subprocess.run(command, check=False, capture_output=True)
        if done.returncode == 0 and f" {count} received".encode() in done.stdout:
            return True
    return False


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
