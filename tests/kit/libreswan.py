"""A private libreswan, as a peer for interoperability tests: pluto and the kernel that it drives.

This machine's kernel may have no ESP, and libreswan has none but a kernel's: so pluto runs in a
``Guest``, whose kernel has ESP, also in UDP, but no ``espintcp``. Without that libreswan says no
more than "IKETCP" over TCP and closes, in both roles: it leaves IKE's framing to the kernel too.
"""

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.kit.strongswan import wait_until
from tests.kit.trixie import Trixie
from tests.kit.uml import Guest

READY_TIMEOUT_S = 10.0

_PROGRAMS = "/usr/libexec/ipsec"
_P12_PASSWORD = "transport"


class Libreswan:
    """One pluto in a guest of its own; a context manager that starts and stops it.

    ``directory`` keeps ipsec.conf, ipsec.secrets, the NSS database ``nss`` and ``console.log``.
    """

    def __init__(self, root: Trixie, namespace: str, device: str, directory: Path) -> None:
        self.directory = directory
        self._root = root
        self.guest = Guest(root, namespace, device, directory)
        (directory / "nss").mkdir(parents=True)
        self._nss("certutil", "-N", "--empty-password")

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

    def add_authority(self, name: str, pem: bytes) -> None:
        """Trust a CA certificate; before the start."""
        file = self.directory / f"{name}.pem"
        file.write_bytes(pem)
        self._nss("certutil", "-A", "-n", name, "-t", "CT,,", "-i", str(file))

    def add_certificate(self, name: str, pem: bytes, key_pem: bytes) -> None:
        """Add an end entity certificate with its key, for ``leftcert=NAME``; before the start."""
        both, file = (self.directory / f"{name}.{kind}" for kind in ("pem", "p12"))
        both.write_bytes(pem + key_pem)
        export = [
            "openssl",
            "pkcs12",
            "-export",
            "-name",
            name,
            "-in",
            str(both),
            "-out",
            str(file),
        ]
        subprocess.run([*export, "-passout", f"pass:{_P12_PASSWORD}"], check=True)
        self._nss("pk12util", "-i", str(file), "-W", _P12_PASSWORD)

    def start(self, network: str = "", setup: str = "", secrets: str = "") -> None:
        """Boot the guest and start pluto in it, and wait until it takes commands.

        Args:
            network: A script for the guest's network, run before pluto.
            setup: pluto's options, as on its command line.
            secrets: The text of ipsec.secrets.
        """
        (self.directory / "ipsec.secrets").write_text(secrets)
        self.guest.start()
        self.must(network)
        self.must(
            f"mkdir -p /run/pluto; {_PROGRAMS}/pluto --nofork --stderrlog"
            f" --nssdir {self.directory}/nss --secretsfile {self.directory}/ipsec.secrets"
            f" {setup} >/dev/tty0 2>&1 &"
        )
        wait_until(
            lambda: "loading secrets" in self.log, READY_TIMEOUT_S, "pluto is ready", self._evidence
        )

    def stop(self) -> None:
        """Switch the guest off, without a word to the peer."""
        self.guest.stop()

    def load(self, name: str, options: dict[str, str]) -> None:
        """Add a connection by its options of ipsec.conf."""
        lines = "".join(f"    {key}={value}\n" for key, value in options.items())
        (self.directory / "ipsec.conf").write_text(f"conn {name}\n{lines}")
        self.must(f"{_PROGRAMS}/addconn --config {self.directory}/ipsec.conf {name}")

    def whack(self, arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Command pluto."""
        return self.guest.run(f"{_PROGRAMS}/whack {arguments}", timeout_s)

    def must(self, script: str) -> str:
        """Run a script in the guest that has to succeed, and give back what it printed."""
        done = self.guest.run(script)
        assert done.returncode == 0, f"{script}: {done.stdout}\n{self._evidence()}"
        return done.stdout

    @property
    def log(self) -> str:
        """All that pluto and the guest's kernel have logged so far."""
        return self.guest.console

    def _nss(self, program: str, *arguments: str) -> None:
        command = [program, "-d", f"sql:{self.directory}/nss", *arguments]
        subprocess.run(
            self._root.command(*command, folders=[self.directory]), check=True, capture_output=True
        )

    def _evidence(self) -> str:
        return self.log[-3000:]
