"""The image with volumes of its own, on a host: a container, as far as that goes without engine."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.kit.daemons import wait_until
from tests.kit.image import NOT_GIVEN, RIGHTS, Image
from tests.kit.netns import Namespace

Process = subprocess.Popen[bytes]


class Container:
    """A context manager that ends what was started in it.

    What an engine is told can be changed before the start: ``environment``, ``rights`` and
    ``devices``. ``options`` are setpriv's.
    """

    def __init__(self, made: Image, host: Namespace, directory: Path) -> None:
        self.image, self.host = made, host
        self.configuration, self.state = directory / "configuration", directory / "state"
        for volume in (self.configuration, self.state):
            volume.mkdir()
            os.chown(volume, made.user, made.user)
        self.out, self.log = directory / "out", directory / "log"
        self.environment: dict[str, str] = {}
        self.rights: Sequence[str] = RIGHTS
        self.devices = {"/dev/net/tun": Path("/dev/net/tun")}
        self.options: tuple[str, ...] = (NOT_GIVEN,)
        self.processes: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def command(self, *command: str) -> list[str]:
        volumes = {"/etc/tunnelwrap": self.configuration, "/var/lib/tunnelwrap": self.state}
        return self.image.command(
            *command,
            namespace=self.host.name,
            folders={**volumes, **self.devices},
            rights=self.rights,
            environment=self.environment,
            options=self.options,
        )

    def add(self, name: str, octets: bytes) -> None:
        """Put a file into the volume with the configuration."""
        path = self.configuration / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(octets)

    def start(self, *command: str) -> Process:
        """Start a command, by default what the image starts, and wait until it is ready."""
        words = [*self.image.words("ENTRYPOINT"), *(command or self.image.words("CMD"))]
        with self.out.open("wb") as out, self.log.open("wb") as log:
            process = subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=out, stderr=log
            )
        self.processes.append(process)

        def is_ready() -> bool:
            assert process.poll() is None, self.log.read_text()
            return "ready:" in self.log.read_text()

        wait_until("ready", is_ready)
        return process

    def refuses(self, *command: str) -> str:
        """What it says where it does not start."""
        words = command or (*self.image.words("ENTRYPOINT"), *self.image.words("CMD"))
        done = subprocess.run(
            self.command(*words), check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        return done.stderr

    def says(self, beside: Process, *command: str) -> str:
        """What a command says that is run in the container, as a health check is."""
        line = self.image.beside(beside.pid, *command)
        return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout

    def files(self) -> dict[str, bytes]:
        """All that is in the volume with the configuration."""
        found = (path for path in self.configuration.rglob("*") if path.is_file())
        return {str(path.relative_to(self.configuration)): path.read_bytes() for path in found}
