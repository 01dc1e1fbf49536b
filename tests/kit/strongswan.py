"""A private strongSwan daemon in a network namespace, as a peer for interoperability tests.

Each ``StrongSwan`` is one ``charon-systemd`` with its own strongswan.conf, vici socket, credentials
and log file, so that several run side by side. ESP is done by kernel-libipsec: in userspace over
its own TUN device ``ipsec0``, always UDP-encapsulated on port 4500, without ESN.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.kit.trixie import Trixie

PLUGINS = (
    "random openssl nonce aes sha1 sha2 hmac kdf curve25519 gcm ccm ctr xcbc chapoly gmp mgf1 x509"
    " constraints pem pkcs1 pkcs8 pubkey vici socket-default kernel-libipsec kernel-netlink updown"
    " counters"
)
READY_TIMEOUT_S = 30.0

Tree = Mapping[str, "str | Tree"]
"""A strongswan.conf or swanctl.conf section: settings and sections by name."""


def render(tree: Tree, indent: str = "") -> str:
    """The text of a configuration tree."""
    lines: list[str] = []
    for name, value in tree.items():
        if isinstance(value, str):
            lines.append(f"{indent}{name} = {value}\n")
        else:
            lines.append(f"{indent}{name} {{\n{render(value, indent + '  ')}{indent}}}\n")
    return "".join(lines)


class StrongSwan:
    """One charon with its files; a context manager that starts and stops it.

    ``directory`` keeps strongswan.conf, swanctl.conf, credentials and ``charon.log``. With a
    ``root`` it is the strongSwan of that Debian, and without one that of this machine. ``settings``
    are of strongswan.conf and ``levels`` those of its log by group, read at each start; both go
    before the defaults here.
    """

    def __init__(
        self,
        namespace: str,
        directory: Path,
        settings: Tree | None = None,
        root: Trixie | None = None,
    ) -> None:
        self.namespace = namespace
        self.directory = directory
        self.log_file = directory / "charon.log"
        # Short, because a UNIX socket's path has at most 107 octets.
        self._run_directory = Path(tempfile.mkdtemp(prefix="charon-"))
        self._socket = f"unix://{self._run_directory}/vici"
        self.settings: Tree = settings or {}
        self.levels: Tree = {}
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("x509", "x509ca", "private"):
            (directory / name).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the daemon and wait until it takes commands."""
        (self.directory / "strongswan.conf").write_text(render(self._strongswan_conf()))
        with (self.directory / "charon.out").open("wb") as output:
            self._process = subprocess.Popen(
                self._command("charon-systemd", namespace=self.namespace),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: self._takes_commands(self._process), READY_TIMEOUT_S, "charon is ready")

    def stop(self) -> None:
        """End the daemon (it deletes its IKE SAs first) and remove its socket."""
        if self._process is not None:
            end_process(self._process)
            self._process = None
        shutil.rmtree(self._run_directory, ignore_errors=True)

    def kill(self) -> None:
        """End it at once, without a word to its peers."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def load(self, configuration: Tree) -> None:
        """Replace connections, pools and credentials by those of ``configuration``."""
        (self.directory / "swanctl.conf").write_text(render(configuration))
        done = self.swanctl(
            "--load-all", "--clear", "--noprompt", "--file", str(self.directory / "swanctl.conf")
        )
        assert done.returncode == 0, done.stdout

    def add_certificate(self, name: str, pem: bytes) -> str:
        """Put an end entity certificate where ``certs = NAME.pem`` finds it."""
        (self.directory / "x509" / f"{name}.pem").write_bytes(pem)
        return f"{name}.pem"

    def add_authority(self, name: str, pem: bytes) -> str:
        """Put a CA certificate where it is trusted."""
        (self.directory / "x509ca" / f"{name}.pem").write_bytes(pem)
        return f"{name}.pem"

    def add_key(self, name: str, pem: bytes) -> None:
        """Put an unencrypted private key where it is loaded."""
        (self.directory / "private" / f"{name}.pem").write_bytes(pem)

    def swanctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a swanctl command; standard error is part of ``stdout``."""
        return subprocess.run(
            self._command("swanctl", *arguments, "--uri", self._socket),
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )

    def initiate(self, child: str, timeout_s: float = 15) -> subprocess.CompletedProcess[str]:
        """Bring a Child SA up, and wait for it; the exit status tells whether it is."""
        return self.swanctl("--initiate", "--child", child, "--timeout", str(int(timeout_s)))

    def rekey_child(self, child: str) -> None:
        """Start a rekey of a Child SA."""
        self._must("--rekey", "--child", child)

    def rekey_ike(self, connection: str) -> None:
        """Start a rekey of an IKE SA."""
        self._must("--rekey", "--ike", connection)

    def delete_child(self, child: str) -> None:
        """Delete a Child SA and wait for the answer."""
        self._must("--terminate", "--child", child, "--timeout", "10")

    def delete_ike(self, connection: str) -> None:
        """Delete an IKE SA and wait for the answer."""
        self._must("--terminate", "--ike", connection, "--timeout", "10")

    def sas(self) -> str:
        """What ``swanctl --list-sas`` prints."""
        return self.swanctl("--list-sas").stdout

    @property
    def log(self) -> str:
        """All that the daemon has logged so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def logged(self, pattern: str) -> list[str]:
        """The log lines in which the regular expression occurs."""
        return [line for line in self.log.splitlines() if re.search(pattern, line)]

    def wait_log(self, pattern: str, timeout_s: float = 10.0, count: int = 1) -> list[str]:
        """Wait until at least ``count`` log lines match, and give them back."""
        wait_until(
            lambda: len(self.logged(pattern)) >= count,
            timeout_s,
            f"strongSwan logged {pattern!r} {count} times",
            lambda: self.log[-6000:],
        )
        return self.logged(pattern)

    def _command(self, *command: str, namespace: str | None = None) -> list[str]:
        if self._root is not None:
            folders = [self.directory, self._run_directory]
            return self._root.command(*command, namespace=namespace, folders=folders)
        return [*([] if namespace is None else ["ip", "netns", "exec", namespace]), *command]

    def _must(self, *arguments: str) -> None:
        done = self.swanctl(*arguments)
        assert done.returncode == 0, done.stdout

    def _takes_commands(self, process: subprocess.Popen[bytes] | None) -> bool:
        if process is None or process.poll() is not None:
            raise AssertionError((self.directory / "charon.out").read_text(errors="replace"))
        return self.swanctl("--stats").returncode == 0

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "STRONGSWAN_CONF": str(self.directory / "strongswan.conf")}

    def _strongswan_conf(self) -> Tree:
        log: Tree = {
            "path": str(self.log_file),
            "time_format": "%H:%M:%S",
            "ike": "2",
            "cfg": "2",
            "enc": "1",
            "flush_line": "yes",
            **self.levels,
        }
        charon: Tree = {
            "load": PLUGINS,
            "filelog": {"main": log},
            "journal": {"default": "-1"},
            "plugins": {"vici": {"socket": self._socket}},
            "retransmit_timeout": "1.0",
            "delete_rekeyed_delay": "2",
            "make_before_break": "yes",
            **self.settings,
        }
        swanctl: Tree = {"load": "random openssl pem pkcs1 pkcs8 x509 pubkey"}
        return {"charon-systemd": charon, "swanctl": swanctl}


def end_process(process: "subprocess.Popen[bytes]") -> None:
    """Ask a program to end, and make it if it does not."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(
    condition: Callable[[], bool],
    timeout_s: float,
    what: str,
    evidence: Callable[[], str] = str,
) -> None:
    """Wait until a condition holds; an AssertionError with the evidence if it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}\n{evidence()}")
        time.sleep(0.05)


def psk_sides(local_id: str, peer_id: str, secret: str) -> tuple[Tree, Tree, Tree]:
    """The ``local``, ``remote`` and ``secrets`` sections for a pre-shared key."""
    local: Tree = {"auth": "psk", "id": local_id}
    remote: Tree = {"auth": "psk", "id": peer_id}
    secrets: Tree = {"ike-1": {"secret": f'"{secret}"', "id-1": local_id, "id-2": peer_id}}
    return local, remote, secrets


def certificate_sides(local_id: str, peer_id: str, certificate: str) -> tuple[Tree, Tree]:
    """The ``local`` and ``remote`` sections for certificates; ``certificate`` is in x509/."""
    local: Tree = {"auth": "pubkey", "id": local_id, "certs": certificate}
    remote: Tree = {"auth": "pubkey", "id": peer_id}
    return local, remote


def responder(
    sides: tuple[Tree, Tree],
    *,
    address: str,
    pool: str,
    network: str,
    ike: str,
    esp: str,
    more: Tree | None = None,
    child: Tree | None = None,
) -> dict[str, "str | Tree"]:
    """A responder that gives an address from ``pool`` and opens ``network`` (child ``net``)."""
    return {
        "connections": {
            "peer": {
                "version": "2",
                "local_addrs": address,
                "encap": "yes",
                "mobike": "no",
                "proposals": ike,
                "pools": "clients",
                "local": sides[0],
                "remote": sides[1],
                "children": {"net": {"local_ts": network, "esp_proposals": esp, **(child or {})}},
                **(more or {}),
            }
        },
        "pools": {"clients": {"addrs": pool}},
    }


def initiator(
    sides: tuple[Tree, Tree],
    *,
    peer: str,
    network: str,
    ike: str,
    esp: str,
    more: Tree | None = None,
    child: Tree | None = None,
) -> dict[str, "str | Tree"]:
    """An initiator that asks for an address and reaches ``network`` (child ``net``)."""
    return {
        "connections": {
            "peer": {
                "version": "2",
                "remote_addrs": peer,
                "encap": "yes",
                "mobike": "no",
                "proposals": ike,
                "vips": "0.0.0.0",  # noqa: S104 - any address of the pool, nothing is bound
                "local": sides[0],
                "remote": sides[1],
                "children": {"net": {"remote_ts": network, "esp_proposals": esp, **(child or {})}},
                **(more or {}),
            }
        },
    }
