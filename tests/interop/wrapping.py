"""strongSwan on both hosts, unmodified, and between them a wrapper and a relay.

strongSwan - wrap 192.0.2.1 ---------- 192.0.2.2 relay - strongSwan
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.interop.lan import INNER_NETWORK, POOL, RESPONDER, Lan
from tests.interop.settings import ESP, GATEWAY, IKE
from tests.kit.certs import authority, entity
from tests.kit.strongswan import StrongSwan, Tree, initiator, psk_sides, responder, wait_until

IKE_PORT, NAT_PORT = 10500, 14500
SECRET_PATH = "/OiChohXah5ziehae3ooK"
SECRET = "correct horse battery staple"
READY_S = 30.0

UDP_DROPPED = """
table inet firewall {
  chain in { type filter hook prerouting priority 0; iifname "wire" meta l4proto udp drop; }
}
"""


class Wrapper:
    """A relay or a wrapper, or several of the latter in one process, running on a host."""

    def __init__(self, host: str, command: str, texts: Sequence[str], directory: Path) -> None:
        self._directory = directory / command
        self._directory.mkdir(exist_ok=True)
        files = [self._directory / f"{command}{number}.toml" for number in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_text(f'{text}control_socket = "{file.stem}.sock"\n')
        self._file = files[0]
        python = ["ip", "netns", "exec", host, sys.executable, "-m"]
        self._prefix = [*python, "tunnelwrap"]
        one, many = [*self._prefix, command, "--debug"], [*python, "tests.interop.wraps"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*(one if len(files) == 1 else many), *map(str, files)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(
                lambda: self.log.count("ready") == len(files), READY_S, "ready", lambda: self.log
            )
        except AssertionError:
            self.stop()
            raise

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text(errors="replace")

    @property
    def status(self) -> dict[str, object]:
        """What ``tunnelwrap status`` says."""
        done = subprocess.run(
            [*self._prefix, "status", "--json", str(self._file)], check=True, capture_output=True
        )
        told = json.loads(done.stdout)
        assert isinstance(told, dict)
        return told

    @property
    def ways(self) -> list[dict[str, object]]:
        """Those of its status."""
        ways = self.status["ways"]
        assert isinstance(ways, list)
        return ways

    def stop(self) -> None:
        """End it in good order."""
        self.process.terminate()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()

    @property
    def _log(self) -> Path:
        return self._directory / "log"


class Wrapped:
    """Both daemons, and what is between them."""

    def __init__(
        self,
        lan: Lan,
        directory: Path,
        *,
        carriers: Sequence[str] = ("udp", "tcp", "tls"),
        connection: Tree | None = None,
        child: Tree | None = None,
        clients: int = 1,
    ) -> None:
        self.lan = lan
        self.clients = clients
        self._connection = connection or {}
        self._child = child or {}
        texts = [_wrap_toml(directory, carriers, number) for number in range(clients)]
        with ExitStack() as started:
            self.relay = Wrapper(lan.responder, "relay", [relay_toml(directory)], directory)
            started.callback(self.relay.stop)
            self.wrap = Wrapper(lan.initiator, "wrap", texts, directory)
            started.callback(self.wrap.stop)
            self.gateway = StrongSwan(lan.responder, directory / "gateway")
            started.callback(self.gateway.stop)
            self.client = StrongSwan(lan.initiator, directory / "client")
            started.callback(self.client.stop)
            self._started = started.pop_all()

    def start(self) -> None:
        """Start and configure both daemons; connection 0 is ``peer``, its Child SA ``net``."""
        self.gateway.start()
        self.client.start()
        common = {"network": INNER_NETWORK, "ike": IKE, "esp": ESP}
        child = self._child
        local, remote, _ = psk_sides(GATEWAY, "*.example.org", SECRET)
        more = {"local_addrs": "%any", **self._connection}
        tree = responder(
            (local, remote), address="%any", pool=POOL, more=more, child=child, **common
        )
        secrets: Tree = {"ike-1": {"secret": f'"{SECRET}"'}}
        self.gateway.load({**tree, "secrets": secrets})
        more = {"remote_port": str(NAT_PORT), "local_port": "4500", **self._connection}
        connections: dict[str, str | Tree] = {}
        for number in range(self.clients):
            local, remote, _ = psk_sides(f"client{number}.example.org", GATEWAY, SECRET)
            tree = initiator(
                (local, remote), peer=_wrap_address(number), more=more, child=child, **common
            )
            connections |= _numbered(tree, number)
        self.client.load({"connections": connections, "secrets": secrets})

    def connect(self, number: int = 0) -> None:
        """Bring a connection's tunnel up."""
        done = self.client.initiate(f"net{number or ''}", 30)
        assert done.returncode == 0, f"{done.stdout}\n{self.wrap.log}\n{self.relay.log}"

    def on_wire(self, host: str, rules: str) -> None:
        """Load rules of nftables on one of the hosts."""
        command = ["ip", "netns", "exec", host, "nft", "-f", "-"]
        subprocess.run(command, input=rules, text=True, check=True)

    def drop_udp(self) -> None:
        """Let no UDP pass between the hosts."""
        for host in (self.lan.initiator, self.lan.responder):
            self.on_wire(host, UDP_DROPPED)

    def reset_streams(self) -> None:
        """Kill what stands between the hosts, with a reset to both."""
        command = ["ip", "netns", "exec", self.lan.initiator, "ss", "-K", "dst", RESPONDER]
        subprocess.run(command, check=True, capture_output=True)

    def stop(self) -> None:
        """End everything, the client first."""
        self._started.close()


@contextmanager
def wrapped(
    lan: Lan,
    directory: Path,
    *,
    carriers: Sequence[str] = ("udp", "tcp", "tls"),
    connection: Tree | None = None,
    child: Tree | None = None,
    clients: int = 1,
) -> Iterator[Wrapped]:
    """Everything, started; stopped at the end. Clients are connections of one daemon."""
    options = {"carriers": carriers, "connection": connection, "child": child, "clients": clients}
    made = Wrapped(lan, directory, **options)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _numbered(tree: Tree, number: int) -> Tree:
    """The connection of an initiator, and its Child SA, under names of their own."""
    connections = tree["connections"]
    assert not isinstance(connections, str)
    peer = connections["peer"]
    assert not isinstance(peer, str)
    children = peer["children"]
    assert not isinstance(children, str)
    end = f"{number or ''}"
    return {f"peer{end}": {**peer, "children": {f"net{end}": children["net"]}}}


def relay_toml(directory: Path) -> str:
    """A relay's configuration, its certificate beside it."""
    root = authority("CN=Web Root", "p256")
    leaf = entity(f"CN={GATEWAY}", root, kind="p256", sans=[GATEWAY])
    (directory / "ca.pem").write_bytes(root.pem)
    (directory / "web.pem").write_bytes(leaf.pem)
    (directory / "web.key").write_bytes(leaf.key_pem)
    return (
        f'[relay.tls]\ncertificate = "{directory}/web.pem"\nkey = "{directory}/web.key"\n'
        f'[relay.websocket]\npath = "{SECRET_PATH}"\n'
        f'[relay]\nname = "{GATEWAY}"\ndaemon = "{RESPONDER}"\n'
    )


def _wrap_address(number: int) -> str:
    return f"127.0.0.{2 + number}"


def _wrap_toml(directory: Path, carriers: Sequence[str], number: int) -> str:
    return (
        "[wrap]\n"
        f'gateway = "{RESPONDER}"\n'
        f'server_name = "{GATEWAY}"\n'
        f'tls_ca = "{directory}/ca.pem"\n'
        f'websocket_path = "{SECRET_PATH}"\n'
        f"carriers = {json.dumps(list(carriers))}\n"
        f'listen = "{_wrap_address(number)}"\n'
        f"ike_port = {IKE_PORT}\n"
        f"nat_port = {NAT_PORT}\n"
    )
