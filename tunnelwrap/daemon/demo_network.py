"""The demo's four hosts: network namespaces of this machine, joined by veth pairs.

    client -------------- firewall -------------- gateway -------------- site
    198.51.100.2     .1            203.0.113.1    .2      10.66.0.1      .2

The firewall forwards between the client and the gateway what its rules leave; the site's network
is behind the gateway and can never be reached without the tunnel. Nothing outside the four
namespaces is changed, save for their entries in /run/netns and /etc/netns.
"""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from tunnelwrap.errors import HostNetError, TunnelwrapError

GATEWAY_ADDRESS: Final = "203.0.113.2"
SITE_ADDRESS: Final = "10.66.0.2"
SITE_NETWORK: Final = "10.66.0.0/24"

HOSTS: Final = ("client", "firewall", "gateway", "site")
STOP_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.02


class Block(Enum):
    """What the firewall drops without a word."""

    NONE = "none"
    UDP = "udp"
    ALL_BUT_443 = "all-but-443"


@dataclass(frozen=True, slots=True)
class _Link:
    """A veth pair: (host, device, address) of both ends."""

    one: tuple[str, str, str]
    other: tuple[str, str, str]


_LINKS: Final = (
    _Link(("client", "eth0", "198.51.100.2/24"), ("firewall", "inside", "198.51.100.1/24")),
    _Link(("firewall", "outside", "203.0.113.1/24"), ("gateway", "eth0", "203.0.113.2/24")),
    _Link(("gateway", "lan", "10.66.0.1/24"), ("site", "eth0", "10.66.0.2/24")),
)
_DEFAULT_ROUTES: Final = (
    ("client", "198.51.100.1"),
    ("gateway", "203.0.113.1"),
    ("site", "10.66.0.1"),
)
_RULES: Final = {
    Block.NONE: "",
    Block.UDP: "meta l4proto udp drop",
    Block.ALL_BUT_443: f"""
        ip daddr {GATEWAY_ADDRESS} tcp dport 443 accept
        ip saddr {GATEWAY_ADDRESS} tcp sport 443 accept
        drop""",
}


@dataclass(frozen=True, slots=True)
class Program:
    """A running program, and the files that get its standard output and standard error."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    log: Path

    async def wait_for(self, text: str, timeout_s: float) -> None:
        """Wait until it has printed a text.

        Raises:
            TunnelwrapError: it ended before, or did not print it in time.
        """
        deadline = time.monotonic() + timeout_s
        while text not in self.printed():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise TunnelwrapError(f"{self.name}: not {text!r}\n{self.printed()}")
            await asyncio.sleep(_POLL_S)

    def printed(self) -> str:
        """All that it has printed so far."""
        return self.output.read_text(errors="replace") + self.log.read_text(errors="replace")


class DemoNetwork:
    """The four namespaces; owns them and every process started in them.

    Args:
        name: prefix of the namespaces' names, unique on this machine.
        block: what the firewall drops.
        directory: for what the programs print.
    """

    def __init__(self, name: str, block: Block, directory: Path) -> None:
        self.directory = directory
        self._name = name
        self._block = block
        self._programs: list[Program] = []

    @property
    def namespaces(self) -> dict[str, str]:
        """The namespaces' names on this machine, by host."""
        return {host: self.namespace(host) for host in HOSTS}

    def namespace(self, host: str) -> str:
        """The name of a host's namespace."""
        return f"{self._name}-{host}"

    async def up(self) -> None:
        """Make hosts, links, routes and the firewall's rules.

        Raises:
            HostNetError: a command of iproute2 or nftables failed.
        """
        for host in HOSTS:
            await _run("ip", "netns", "add", self.namespace(host))
            await self.ip(host, "link", "set", "lo", "up")
        for link in _LINKS:
            await self._join(link)
        for host, router in _DEFAULT_ROUTES:
            await self.ip(host, "route", "add", "default", "via", router)
        for host in ("firewall", "gateway"):
            await self.run(host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        await self._set_firewall()
        self._own_resolver("client")

    async def down(self) -> None:
        """Stop the processes, youngest first, and remove the hosts; also of a half-made network."""
        while self._programs:
            await self.stop(self._programs[-1])
        for host in HOSTS:
            with suppress(HostNetError):
                await _run("ip", "netns", "delete", self.namespace(host))
        self._drop_resolver("client")

    async def ip(self, host: str, *arguments: str) -> None:
        """Run a command of iproute2 for a host."""
        await _run("ip", "-n", self.namespace(host), *arguments)

    async def run(
        self,
        host: str,
        *command: str,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> bytes:
        """Run a program on a host to its end, and give back its standard output.

        Raises:
            HostNetError: it failed; the message has its standard error.
        """
        return await _run(*self.command(host, *command), stdin=stdin, environment=environment)

    def start(
        self, host: str, name: str, *command: str, environment: Mapping[str, str] | None = None
    ) -> Program:
        """Start a program on a host, in a session of its own: Ctrl-C reaches only us."""
        output, log = self.directory / f"{name}.out", self.directory / f"{name}.log"
        with output.open("wb") as out, log.open("wb") as errors:
            # Not asyncio's: its processes die with the event loop, and these may be kept.
            process = subprocess.Popen(  # noqa: S603 - our own words only
                self.command(host, *command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        program = Program(name, process, output, log)
        self._programs.append(program)
        return program

    async def stop(self, program: Program) -> int:
        """End a program in good order, by force if it will not; give back its exit status."""
        self._programs.remove(program)
        program.process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while program.process.poll() is None:
            if time.monotonic() > deadline:
                program.process.kill()
            await asyncio.sleep(_POLL_S)
        return program.process.returncode

    def command(self, host: str, *command: str) -> tuple[str, ...]:
        """The command line that runs a program on a host."""
        return ("ip", "netns", "exec", self.namespace(host), *command)

    async def _join(self, link: _Link) -> None:
        (host, device, _), (other, other_device, _) = link.one, link.other
        await self.ip(
            *(host, "link", "add", device, "type", "veth"),
            *("peer", "name", other_device, "netns", self.namespace(other)),
        )
        for end, name, address in (link.one, link.other):
            await self.ip(end, "addr", "add", address, "dev", name)
            await self.ip(end, "link", "set", name, "up")

    async def _set_firewall(self) -> None:
        rules = f"""
        table inet firewall {{
          chain forward {{
            type filter hook forward priority filter; policy accept;
            ip daddr {SITE_NETWORK} drop
            ip saddr {SITE_NETWORK} drop
            {_RULES[self._block]}
          }}
        }}
        """
        await self.run("firewall", "nft", "-f", "-", stdin=rules.encode())

    def _own_resolver(self, host: str) -> None:
        """Give a host a resolv.conf of its own, which ``ip netns exec`` mounts over /etc's."""
        self._etc(host).mkdir(parents=True, exist_ok=True)
        (self._etc(host) / "resolv.conf").write_text("nameserver 192.0.2.53\n")

    def _drop_resolver(self, host: str) -> None:
        shutil.rmtree(self._etc(host), ignore_errors=True)
        with suppress(OSError):  # another demo's is there, or nothing is
            self._etc(host).parent.rmdir()

    def _etc(self, host: str) -> Path:
        return Path("/etc/netns") / self.namespace(host)


def missing_programs() -> list[str]:
    """Programs that the demo needs and this machine lacks."""
    return [name for name in ("ip", "nft", "sysctl") if shutil.which(name) is None]


async def _run(
    *command: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **(environment or {})},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(stdin)
    if process.returncode != 0:
        reason = errors.decode(errors="replace").strip()
        raise HostNetError(f"{' '.join(command)}: {reason or f'status {process.returncode}'}")
    return output
