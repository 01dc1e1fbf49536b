"""tcpdump in a namespace, and tshark as a second opinion on what was captured."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

IKEV2_STREAM = Path(__file__).with_name("ikev2_stream.lua")
_READY_S = 10.0
_SETTLE_S = 0.3  # what is on its way through the ring buffer when tcpdump is told to end


class Capture:
    """All packets of one device, from ``start`` to ``stop``; also a context manager."""

    def __init__(self, namespace: str, device: str, file: Path) -> None:
        self.file = file
        self._command = ["ip", "netns", "exec", namespace, "tcpdump"]
        self._command += [
            "-i",
            device,
            "-U",
            "--immediate-mode",
            "-Z",
            "root",
            "-B",
            "16384",
            "-w",
            str(file),
        ]
        self._process: subprocess.Popen[bytes] | None = None

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
        """Begin, and wait until packets are seen."""
        log = self.file.with_suffix(".log")
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + _READY_S
        while b"listening on" not in log.read_bytes():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "tcpdump does not start"
            time.sleep(0.01)

    def stop(self) -> None:
        """End, with the file complete; calling twice is fine."""
        if self._process is not None:
            time.sleep(_SETTLE_S)
            self._process.terminate()
            self._process.wait(10)
            self._process = None


def tshark(
    file: Path,
    *,
    display: str = "",
    fields: Sequence[str] = (),
    keylog: Path | None = None,
    scripts: Sequence[Path] = (IKEV2_STREAM,),
    config: Path | None = None,
) -> list[list[str]]:
    """The values of ``fields`` for each frame that ``display`` lets pass.

    ``config`` is a configuration directory, such as ``--key-log`` makes.

    Several values of one field come as one text, joined by commas.
    """
    command = ["tshark", "-n", "-r", str(file), "-2", "-T", "fields", "-E", "separator=/t"]
    if display:
        command += ["-Y", display]
    for field in fields or ("frame.number",):
        command += ["-e", field]
    if keylog is not None:
        command += ["-o", f"tls.keylog_file:{keylog}"]
    for script in scripts:
        command += ["-X", f"lua_script:{script}"]
    places = {"WIRESHARK_CONFIG_DIR": str(config)} if config else {}
    environment = {**os.environ, **places}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "lua" not in done.stderr.lower(), done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def dissect(file: Path, *, display: str = "", keylog: Path | None = None) -> list[object]:
    """Every layer of the frames that ``display`` lets pass, as tshark's JSON."""
    command = ["tshark", "-n", "-r", str(file), "-2", "-T", "json"]
    command += ["-X", f"lua_script:{IKEV2_STREAM}"]
    if display:
        command += ["-Y", display]
    if keylog is not None:
        command += ["-o", f"tls.keylog_file:{keylog}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    frames: list[object] = json.loads(done.stdout)
    return frames
