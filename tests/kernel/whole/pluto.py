"""libreswan's pluto on a host of this kernel, which has espintcp: so it can speak TCP.

Its programs are those of ``tests.kit.trixie``. One runs at a time: its socket is in /run/pluto.
"""

import subprocess
from pathlib import Path
from typing import Final, Self

from tests.kit.netns import Namespace
from tests.kit.strongswan import end_process, wait_until
from tests.kit.trixie import Trixie

READY_TIMEOUT_S: Final = 40.0
WHACK_TIMEOUT_S: Final = 60.0

_PROGRAMS: Final = "/usr/libexec/ipsec"
_RUN: Final = Path("/run/pluto")


class Pluto:
    """A pluto with one connection, named ``peer``; a context manager that ends it.

    ``directory`` keeps its configuration, its database and its log.
    """

    def __init__(self, root: Trixie, host: Namespace, directory: Path) -> None:
        self._root, self._host, self._directory = root, host, directory
        self._log = directory / "pluto.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, options: dict[str, str], secrets: str) -> Self:
        """Start it with a connection by its options of ipsec.conf."""
        (self._directory / "nss").mkdir(parents=True)
        _RUN.mkdir(exist_ok=True)
        (self._directory / "ipsec.secrets").write_text(secrets)
        lines = "".join(f"    {key}={value}\n" for key, value in options.items())
        (self._directory / "ipsec.conf").write_text(f"conn peer\n{lines}")
        self._run("certutil", "-N", "-d", f"sql:{self._directory}/nss", "--empty-password")
        command = self._command(
            *(f"{_PROGRAMS}/pluto", "--nofork", "--stderrlog", "--listen-tcp"),
            *("--nssdir", f"{self._directory}/nss"),
            *("--secretsfile", f"{self._directory}/ipsec.secrets"),
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.says("loading secrets")
        self._run(f"{_PROGRAMS}/addconn", "--config", f"{self._directory}/ipsec.conf", "peer")
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            end_process(self._process)

    def whack(self, *arguments: str) -> str:
        """Command it; what it says, whatever came of it."""
        return self._run(f"{_PROGRAMS}/whack", *arguments, is_checked=False)

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text(errors="replace")

    def says(self, text: str) -> None:
        """Wait for something in its log."""
        wait_until(
            lambda: text in self.log, READY_TIMEOUT_S, f"pluto says {text!r}", lambda: self.log
        )

    def _command(self, *command: str) -> list[str]:
        folders = [self._directory, _RUN]
        return self._root.command(*command, namespace=self._host.name, folders=folders)

    def _run(self, *command: str, is_checked: bool = True) -> str:
        done = subprocess.run(
            self._command(*command),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WHACK_TIMEOUT_S,
        )
        assert not is_checked or done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout
