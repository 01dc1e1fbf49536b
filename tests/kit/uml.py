"""A guest with a Linux kernel of its own, for a peer whose ESP is the kernel's.

The kernel is user-mode-linux, a program among the others of ``tests.kit.trixie``: it runs in a
network namespace, its file system is that root, and its network device ``vec0`` is on the wire of a
device of the namespace. The namespace should have no address of the guest's itself.

    with Guest(root, "host", "wire", tmp_path) as guest:
        guest.run("ip addr add 192.0.2.1/24 dev vec0; ip link set vec0 up")
        guest.run("ping -c1 192.0.2.2").returncode
"""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.kit.kernel import BOOT, MOUNTS
from tests.kit.strongswan import wait_until
from tests.kit.trixie import Trixie

BOOT_TIMEOUT_S = 30.0

# The guest reads the names of scripts from its console and leaves what each came to in files, which
# it writes out at their end. The loop stops when the console's other end is closed.
_INIT = """#!/bin/bash
export PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8
@MOUNTS@exec </dev/tty0 >/dev/tty0 2>&1
stty raw -echo
ip link set lo up
cd "${0%/*}"
echo 0 >0.status
while read -r script; do
    bash "./$script" </dev/null >"$script.output" 2>&1
    echo $? >"$script.making"
    mv "$script.making" "$script.status"
done
"""


class Guest:
    """One booted kernel; a context manager that boots and kills it.

    ``directory`` has the guest's console in ``console.log`` and what was run; the guest sees it
    at the same path.
    """

    def __init__(self, root: Trixie, namespace: str, device: str, directory: Path) -> None:
        self.directory = directory
        self._command = root.command(
            *("linux.uml", "mem=256M", *BOOT, "con0=fd:0,fd:1", "panic=-1"),
            f"init={directory}/init",
            f"vec0:transport=raw,ifname={device},depth=64",
            namespace=namespace,
            folders=[directory],
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._scripts = 0

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
        """Boot, and wait until it takes commands."""
        self.directory.mkdir(parents=True, exist_ok=True)
        init = self.directory / "init"
        init.write_text(_INIT.replace("@MOUNTS@", MOUNTS))
        init.chmod(0o755)
        with (self.directory / "console.log").open("wb") as console:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the kernel's and those of the guest's processes
            )
        self._wait_for(self.directory / "0.status", BOOT_TIMEOUT_S, "the guest is up")

    def stop(self) -> None:
        """Switch it off, as if by its plug."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # it died before
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._process = None

    def run(self, script: str, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
        """Run a script of bash to its end; standard error is part of ``stdout``."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._scripts += 1
        file = self.directory / str(self._scripts)
        file.write_text(script)
        self._process.stdin.write(f"{file.name}\n".encode())
        self._process.stdin.flush()
        status = file.with_suffix(".status")
        self._wait_for(status, timeout_s, script)
        output = file.with_suffix(".output").read_text(errors="replace")
        return subprocess.CompletedProcess(script, int(status.read_text()), output)

    @property
    def console(self) -> str:
        """All that came out on the console so far."""
        return (self.directory / "console.log").read_text(errors="replace").replace("\r", "")

    def _wait_for(self, status: Path, timeout_s: float, what: str) -> None:
        """Wait until a status is written, or for the evidence that it never will be."""
        process = self._process
        assert process is not None
        wait_until(
            lambda: (status.exists() and status.read_text() != "") or process.poll() is not None,
            timeout_s,
            what,
            lambda: self.console[-3000:],
        )
        assert process.poll() is None, f"the guest died: {self.console[-3000:]}"
