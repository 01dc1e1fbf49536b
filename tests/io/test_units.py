"""The systemd units: what systemd says of them, and a socket that it hands over."""

import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kit.daemons import wait_until
from tunnelwrap.cli.main import tunnelwrap

UNITS = Path(__file__).parents[2] / "tunnelwrap/systemd"
SERVICES = ("connect", "relay", "serve", "wrap")
EXPOSURE = {"connect": 2.4, "relay": 2.0, "serve": 2.6, "wrap": 2.0}
"""The most of ``systemd-analyze security``, from 0 (best) to 10."""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with an instance of each, and a program that is there."""
    for file in UNITS.iterdir():
        text = file.read_text().replace("/opt/tunnelwrap/bin/tunnelwrap", "/bin/true")
        (tmp_path / file.name).write_text(text)
        (tmp_path / file.name.replace("@", "@one")).symlink_to(file.name)
    return tmp_path


def test_there_is_a_service_for_each_role() -> None:
    services = {file.name for file in UNITS.glob("*.service")}
    assert services == {f"tunnelwrap-{role}@.service" for role in SERVICES}


@pytest.mark.parametrize("role", SERVICES)
def test_a_service_runs_a_command_that_there_is(role: str) -> None:
    text = (UNITS / f"tunnelwrap-{role}@.service").read_text()
    (command,) = re.findall(
        r"^ExecStart=\S+/tunnelwrap (\S+) /etc/tunnelwrap/%i.toml$", text, re.MULTILINE
    )
    assert command == role
    assert role in tunnelwrap.list_commands(tunnelwrap.make_context("tunnelwrap", [role]))


def test_systemd_has_nothing_to_say_against_them(installed: Path) -> None:
    names = sorted(file.name for file in installed.glob("*@one.*"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        env={"SYSTEMD_UNIT_PATH": f"{installed}:", "PATH": "/usr/bin:/bin"},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if "tunnelwrap" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("role", SERVICES)
def test_a_service_is_exposed_to_little(installed: Path, role: str) -> None:
    file = installed / f"tunnelwrap-{role}@one.service"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(file)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) <= EXPOSURE[role]


def test_a_relay_starts_with_its_first_visitor(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    file = tmp_path / "relay.toml"
    file.write_text(
        f'[relay]\nname = "vpn.example.org"\nlisten = ["127.0.0.1"]\ntcp_ports = [{port}]\n'
        'tls_ports = []\ncontrol_socket = "relay.sock"\n'
    )
    line = [sys.executable, "-m", "tunnelwrap", "relay", "--debug", str(file)]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", *line],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until("systemd listens", lambda: "Listening on" in log.read_text())
        assert not (tmp_path / "relay.sock").exists()
        with socket.create_connection(("127.0.0.1", port), timeout=20) as visitor:
            visitor.sendall(b"G")  # nothing that begins with it is for a relay
            with suppress(ConnectionResetError):
                assert visitor.recv(1) == b""
        assert "ready" in log.read_text()
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
