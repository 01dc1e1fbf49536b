"""Network namespaces for tests: hosts, wires between them, programs in them; always cleaned up.

Two hosts on a wire, a route, a rule of nftables and a program (needs root):

    with Namespace("client") as client, Namespace("gateway") as gateway:
        wire(client, "eth0", ["192.0.2.1/24"], gateway, "eth0", ["192.0.2.2/24"])
        client.route("default", via="192.0.2.2")
        gateway.nft("table inet t { chain c { type filter hook input priority 0; ... } }")
        client.run("ping", "-c1", "192.0.2.2")        # standard output; raises if it fails
        server = gateway.popen("sleep", "1000")       # killed when the block ends
        with client.entered():                        # this thread's sockets, sysctls and
            ...                                       # child processes belong to the client

The names of the namespaces end in random letters, so that runs side by side do not meet. Devices,
routes, rules, nftables and sysctls vanish with a namespace; so do all processes left in it.
"""

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from pyroute2 import netns as _pyroute2_netns

STOP_TIMEOUT_S = 10.0


class Namespace:
    """A host: one network namespace of ``ip netns``, with its loopback device up.

    Owns: the namespace, its /etc/netns folder if it got one, and every process in it.
    """

    def __init__(self, label: str = "host") -> None:
        self.name = f"tw-{label}-{secrets.token_hex(3)}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        _call("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:  # each step is made, whatever the others came to
            stack.callback(self._forget_etc)
            stack.callback(_call, "ip", "netns", "del", self.name)
            stack.callback(self._end_strays)
            for process in self._processes:
                stack.callback(_end, process)

    @property
    def etc(self) -> Path:
        """The folder whose files ``ip netns exec`` mounts over those of /etc."""
        return Path("/etc/netns") / self.name

    def ip(self, *arguments: str) -> str:
        """Run iproute2's ip for this host, and give back what it printed."""
        return _call("ip", "-n", self.name, *arguments)

    def run(self, *command: str, stdin: str = "") -> str:
        """Run a program on this host to its end, and give back its standard output.

        Raises:
            AssertionError: it failed; the message has its standard error.
        """
        return _call(*self.command(*command), stdin=stdin)

    def succeeds(self, *command: str) -> bool:
        """Whether a program on this host ends with status 0."""
        done = subprocess.run(self.command(*command), check=False, capture_output=True)
        return done.returncode == 0

    def popen(
        self, *command: str, log: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program on this host; what it prints goes to ``log``, or nowhere."""
        with (log or Path(os.devnull)).open("ab") as output:
            process = subprocess.Popen(
                self.command(*command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )
        self._processes.append(process)
        return process

    def command(self, *command: str) -> tuple[str, ...]:
        """The command line that runs a program on this host."""
        return ("ip", "netns", "exec", self.name, *command)

    def address(self, device: str, *addresses: str) -> None:
        """Give a device addresses with their prefix length; IPv6 ones are usable at once."""
        for address in addresses:
            options = ["nodad"] if ":" in address else []
            self.ip("address", "add", address, "dev", device, *options)

    def route(self, destination: str, *, via: str | None = None, dev: str | None = None) -> None:
        """Add a route by a next hop, a device or both; the family is the destination's or hop's."""
        family = "-6" if ":" in f"{destination}{via}" else "-4"
        hop = [*(("via", via) if via else ()), *(("dev", dev) if dev else ())]
        _call("ip", "-n", self.name, family, "route", "add", destination, *hop)

    def nft(self, rules: str) -> None:
        """Load rules of nftables."""
        self.run("nft", "-f", "-", stdin=rules)

    def sysctl(self, key: str, value: str | int | None = None) -> str:
        """Set a sysctl if a value is given, and read it."""
        if value is not None:
            self.run("sysctl", "-qw", f"{key}={value}")
        return self.run("sysctl", "-n", key).strip()

    def resolv_conf(self, text: str) -> Path:
        """Give this host a resolv.conf of its own: a bind mount for programs run in it."""
        self.etc.mkdir(parents=True, exist_ok=True)
        path = self.etc / "resolv.conf"
        path.write_text(text)
        return path

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread into this host; its files, /etc too, stay the machine's."""
        with Path("/proc/thread-self/ns/net").open("rb") as home:
            _pyroute2_netns.setns(self.name)
            try:
                yield
            finally:
                _pyroute2_netns.setns(home.fileno())

    def _end_strays(self) -> None:
        strays = {int(pid) for pid in _call("ip", "netns", "pids", self.name).split()}
        for pid in strays - {os.getpid()}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _forget_etc(self) -> None:
        shutil.rmtree(self.etc, ignore_errors=True)
        with suppress(OSError):  # another namespace's is there, or there never was one
            self.etc.parent.rmdir()


def wire(
    one: Namespace,
    device: str,
    addresses: Iterable[str],
    other: Namespace,
    other_device: str,
    other_addresses: Iterable[str],
) -> None:
    """Join two hosts by a veth pair whose ends are up and have addresses (``192.0.2.1/24``)."""
    one.ip(
        *("link", "add", device, "type", "veth"),
        *("peer", "name", other_device, "netns", other.name),
    )
    ends = ((one, device, addresses), (other, other_device, other_addresses))
    for host, name, wanted in ends:
        host.address(name, *wanted)
        host.ip("link", "set", name, "up")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _call(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip() or done.returncode}"
    return done.stdout
