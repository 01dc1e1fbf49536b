"""A gateway and its clients as real processes, each on a host of its own (needs root).

client ---- 198.51.100.0/24, 2001:db8:1::/64 ----.
                                                  router ---- 203.0.113.0/24 ---- gateway ---- site
other ----- 192.0.2.0/24, 2001:db8:3::/64 -------'            2001:db8:2::/64     10.66.0.0/24
                                                                                  fd66::/64

Each network's first address is the router's or gateway's, the second the host's. The router also
plays the world behind (``WORLD``); of the site's network it knows nothing.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Thread

from tests.kit.kernel import IN_GUEST
from tests.kit.netns import Namespace, wire
from tests.kit.tunnel_host import NO_LINK_LOCAL
from tunnelwrap.daemon.control import ask

GATEWAY, GATEWAY_6 = "203.0.113.2", "2001:db8:2::2"
SITE, SITE_6 = "10.66.0.2", "fd66::2"
WORLD, WORLD_6 = "198.18.0.80", "2001:db8:80::80"
NAME = "vpn.example.org"
RESOLV_CONF = "# theirs\nnameserver 192.0.2.53\n"

PATIENCE_S = 60.0 if IN_GUEST in os.environ else 20.0  # all is slow there
_POLL_S = 0.02
_CHUNK = 1 << 16
_OCTETS_PER_S = 30 << 20  # what a transfer has at most, lest it end before it can be disturbed

Toml = dict[str, object]


def wait_until(what: str, is_so: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it did not come in time.
    """
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(_POLL_S)


class Daemon:
    """A running ``tunnelwrap connect`` or ``serve``, and what it has printed.

    ``module`` is what runs in the place of tunnelwrap.
    """

    def __init__(
        self,
        host: Namespace,
        file: Path,
        command: str,
        *arguments: str,
        module: str = "tunnelwrap",
    ) -> None:
        self.host, self.file = host, file
        self._log_begins = 0
        self._out, self._log = (file.with_suffix(f".{kind}") for kind in ("out", "log"))
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self.process = subprocess.Popen(
                tunnelwrap(host, command, str(file), *arguments, module=module),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=places(file),
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text(errors="replace")[self._log_begins :]

    @property
    def events(self) -> list[Toml]:
        """What it has told with --json so far; a line that is being written does not count."""
        return [json.loads(line) for line in self._out.read_text().split("\n")[:-1]]

    def named(self, name: str) -> list[Toml]:
        """Its events of one kind."""
        return [event for event in self.events if event["event"] == name]

    @property
    def status(self) -> Toml:
        """What it says of itself on its control socket."""
        return ask(self.file.parent / "run" / f"{self.file.stem}.sock", "status", PATIENCE_S)

    @property
    def sas(self) -> list[Toml]:
        """Its IKE SAs, from its status."""
        sas = self.status["ike_sas"]
        assert isinstance(sas, list)
        return sas

    @property
    def counters(self) -> dict[str, int]:
        """What it has counted, from its status."""
        counters = self.status["counters"]
        assert isinstance(counters, dict)
        return counters

    def says(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until a text stands in the log."""
        self._wait(f"{text!r} in its log", lambda: text in self.log, timeout_s)

    def tells(self, event: str, count: int = 1, timeout_s: float = PATIENCE_S) -> Toml:
        """Wait for an event, as often as that; give back the last."""
        what = f"event {event} {count} times"
        self._wait(what, lambda: len(self.named(event)) >= count, timeout_s)
        return self.named(event)[-1]

    def forget_log(self) -> None:
        """What stands in the log by now does not count any more."""
        self._log_begins += len(self.log)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def ends(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end; give back the exit status."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.log}") from None

    def stop(self) -> int:
        """End it in good order; give back the exit status."""
        self.send(signal.SIGTERM)
        return self.ends()

    def kill(self) -> None:
        """End it without a chance to do anything."""
        self.process.kill()
        self.process.wait()

    def _wait(self, what: str, is_so: Callable[[], bool], timeout_s: float) -> None:
        def has_come() -> bool:
            has_ended = self.process.poll() is not None
            assert is_so() or not has_ended, f"ended before {what}:\n{self.log}"
            return is_so()

        try:
            wait_until(what, has_come, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}{self._out.read_text()}") from None


def tunnelwrap(host: Namespace, *arguments: str, module: str = "tunnelwrap") -> tuple[str, ...]:
    """The command line that runs tunnelwrap on a host."""
    return host.command(sys.executable, "-m", module, *arguments)


def run_tunnelwrap(
    host: Namespace, command: str, file: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of tunnelwrap to its end."""
    line = tunnelwrap(host, command, str(file), *options)
    return subprocess.run(
        line, check=False, capture_output=True, text=True, env=places(file), timeout=60
    )


def places(file: Path) -> dict[str, str]:
    """An environment that puts socket and state beside the configuration."""
    home = file.parent
    own = {"RUNTIME_DIRECTORY": str(home / "run"), "STATE_DIRECTORY": str(home / "state")}
    return {**os.environ, **own}


def merged(base: Mapping[str, object], changes: Mapping[str, object]) -> Toml:
    """Tables laid over tables; None takes a key away."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        if isinstance(value, Mapping):
            result[key] = merged(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = value
    return {key: value for key, value in result.items() if value is not None}


def toml(tables: Mapping[str, object], name: str = "") -> str:
    """Tables as TOML; its texts, lists, numbers and booleans are those of JSON."""
    plain, below = [], []
    for key, value in tables.items():
        inner = f"{name}.{key}" if name else key
        if isinstance(value, Mapping):
            below.append(toml(value, inner))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            below += [f"[[{inner}]]\n{toml(each)}" for each in value]
        else:
            plain.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*([f"[{name}]"] if name else []), *plain, *below])


@dataclass(frozen=True)
class Issued:
    """The configurations that ``tunnelwrap init`` has made for a gateway and two clients."""

    gateway: Toml
    client: Toml
    other: Toml

    @classmethod
    def by_init(cls, directory: Path) -> "Issued":
        """Run it: clients reach the site, and have addresses of both IP versions."""
        new = ("--address", GATEWAY, "--name", NAME, "--network", "10.66.0.0/24")
        _init(
            directory,
            *new,
            "--network",
            "fd66::/64",
            "--pool",
            "10.20.0.0/24",
            "--pool",
            "fd20::/64",
        )
        _init(directory, "--client", "other")
        text = (directory / "gateway.toml").read_text()
        for file in ("gateway.pem", "gateway.key", "ca.pem"):
            text = text.replace(f'"{file}"', json.dumps(str(directory / file)))
        clients = (directory / name / "client.toml" for name in ("client", "other"))
        return cls(tomllib.loads(text), *(tomllib.loads(client.read_text()) for client in clients))


def _init(directory: Path, *options: str) -> None:
    command = [sys.executable, "-m", "tunnelwrap", "init", "--directory", str(directory), *options]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


QUICK: Toml = {
    "liveness_s": 0.5,
    "retransmission": {"timeout_s": 0.2, "factor": 1.5, "tries": 3, "reliable_timeout_s": 1.5},
}
"""A connection that notices within some two seconds that its peer is gone."""


@dataclass
class Hosts:
    """The five hosts; daemons are started here, and all ended with the hosts."""

    client: Namespace
    other: Namespace
    router: Namespace
    gateway: Namespace
    site: Namespace
    issued: Issued
    directory: Path
    daemons: list[Daemon] = field(default_factory=list)
    transfers: list["Transfer"] = field(default_factory=list)

    def serve(self, changes: Mapping[str, object] | None = None, *options: str) -> Daemon:
        """Start the gateway and wait until it is ready."""
        daemon = self.start_gateway(changes, *options)
        daemon.says("ready")
        return daemon

    def start_gateway(self, changes: Mapping[str, object] | None = None, *options: str) -> Daemon:
        """Start the gateway."""
        file = self.write("gateway", merged(self.issued.gateway, changes or {}))
        return self._start(Daemon(self.gateway, file, "serve", *options))

    def connect(
        self, changes: Mapping[str, object] | None = None, *options: str, is_other: bool = False
    ) -> Daemon:
        """Start a client and wait until its tunnel is established."""
        daemon = self.start_client(changes, *options, is_other=is_other)
        daemon.tells("established")
        return daemon

    def start_client(
        self, changes: Mapping[str, object] | None = None, *options: str, is_other: bool = False
    ) -> Daemon:
        """Start a client."""
        host, base = (
            (self.other, self.issued.other) if is_other else (self.client, self.issued.client)
        )
        file = self.write("other" if is_other else "client", merged(base, changes or {}))
        return self._start(Daemon(host, file, "connect", "--json", *options))

    def download(
        self,
        octets: int,
        address: str = SITE,
        *,
        source: Namespace | None = None,
        to: Namespace | None = None,
    ) -> "Transfer":
        """Start a download from the site to the client, or otherwise."""
        transfer = Transfer((source or self.site, address), to or self.client, octets)
        self.transfers.append(transfer)
        return transfer

    def write(self, name: str, tables: Mapping[str, object]) -> Path:
        """Write a configuration, in a directory of its own."""
        file = self.directory / name / f"{name}.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(toml(tables))
        file.chmod(0o600)
        return file

    def block(self, rules: str) -> None:
        """Let the router's firewall obey these rules only."""
        self.router.nft(
            "table inet firewall\ndelete table inet firewall\ntable inet firewall {\n"
            f"chain forward {{\ntype filter hook forward priority filter; policy accept;\n{rules}\n"
            "}\n}\n"
        )

    def end_clients(self) -> None:
        """End all clients, and let everything pass again."""
        clients = [daemon for daemon in self.daemons if daemon.host is not self.gateway]
        for client in clients:
            self.daemons.remove(client)
            client.send(signal.SIGTERM)
            client.ends()
        self.block("")

    def resolv_conf(self) -> str:
        """The client's."""
        return (self.client.etc / "resolv.conf").read_text()

    def _start(self, daemon: Daemon) -> Daemon:
        self.daemons.append(daemon)
        return daemon


@contextmanager
def hosts(issued: Issued, directory: Path) -> Iterator[Hosts]:
    """The hosts, wired up."""
    names = ("client", "other", "router", "gateway", "site")
    with (
        Namespace(names[0]) as client,
        Namespace(names[1]) as other,
        Namespace(names[2]) as router,
        Namespace(names[3]) as gateway,
        Namespace(names[4]) as site,
    ):
        made = Hosts(client, other, router, gateway, site, issued, directory)
        _wire_up(made)
        try:
            yield made
        finally:
            for transfer in made.transfers:
                transfer.close()
            for daemon in reversed(made.daemons):
                daemon.kill()


def _wire_up(made: Hosts) -> None:
    client, other, router, gateway, site = (
        *(made.client, made.other, made.router, made.gateway, made.site),
    )
    for host in (client, other):
        host.sysctl("net.ipv6.conf.default.addr_gen_mode", NO_LINK_LOCAL)
    for host in (router, gateway, site):  # who forwards asks for neighbours from such, at once
        host.sysctl("net.ipv6.conf.default.accept_dad", 0)
    for host, device, v4, v6 in (
        (client, "client", "198.51.100", "2001:db8:1:"),
        (other, "other", "192.0.2", "2001:db8:3:"),
        (gateway, "gateway", "203.0.113", "2001:db8:2:"),
    ):
        wire(
            *(host, "eth0", [f"{v4}.2/24", f"{v6}:2/64"]),
            *(router, device, [f"{v4}.1/24", f"{v6}:1/64"]),
        )
        host.route("default", via=f"{v4}.1")
        host.route("default", via=f"{v6}:1")
    wire(
        gateway, "lan", ["10.66.0.1/24", "fd66::1/64"], site, "eth0", ["10.66.0.2/24", "fd66::2/64"]
    )
    site.route("default", via="10.66.0.1")
    site.route("default", via="fd66::1")
    router.address("lo", f"{WORLD}/32", f"{WORLD_6}/128")
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    client.resolv_conf(RESOLV_CONF)


class Transfer:
    """A download over TCP from one host to another, by threads of ours.

    Args:
        source: the host that gives, and its address.
        sink: the host that takes.
        octets: how many.
    """

    def __init__(self, source: tuple[Namespace, str], sink: Namespace, octets: int) -> None:
        self.received = 0
        self._octets = octets
        host, address = source
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with host.entered():
            self._listening = socket.create_server((address, 0), family=family)
        with sink.entered():
            self._sink = socket.socket(family)
        self._sink.settimeout(PATIENCE_S)
        self._sent, self._got = sha256(), sha256()
        self.peer = ""
        self._problems: list[Exception] = []
        self._threads = [
            Thread(target=self._guard, args=[work]) for work in (self._give, self._take)
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Wait for the end, and see that all has come."""
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
        self.close()
        assert not self._problems, self._problems
        assert self.received == self._octets
        assert self._got.digest() == self._sent.digest()

    def close(self) -> None:
        """Close what is open; calling twice is fine."""
        self._listening.close()
        self._sink.close()

    def has_received(self, octets: int) -> None:
        """Wait until so much has come."""
        wait_until(f"{octets} octets", lambda: self.received >= octets or bool(self._problems))

    def stops_for(self, seconds: float) -> int:
        """Wait until nothing has come for that long; give back how much had come before."""
        seen, since = self.received, time.monotonic()

        def is_silent() -> bool:
            nonlocal seen, since
            if self.received != seen:
                seen, since = self.received, time.monotonic()
            return time.monotonic() - since >= seconds

        wait_until("nothing comes", is_silent)
        return seen

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            self._problems.append(error)

    def _give(self) -> None:
        self._listening.settimeout(PATIENCE_S)
        connection, name = self._listening.accept()
        self.peer = name[0]
        with connection:
            connection.settimeout(PATIENCE_S)
            for number in range(0, self._octets, _CHUNK):
                piece = number.to_bytes(8, "big") * (_CHUNK // 8)
                piece = piece[: self._octets - number]
                self._sent.update(piece)
                connection.sendall(piece)
                time.sleep(len(piece) / _OCTETS_PER_S)

    def _take(self) -> None:
        self._sink.connect(self._listening.getsockname())
        while piece := self._sink.recv(_CHUNK):
            self.received += len(piece)
            self._got.update(piece)
