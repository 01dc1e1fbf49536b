"""The command line as a whole: help, errors as plain lines, exit statuses."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tunnelwrap import __version__
from tunnelwrap.cli.main import main, tunnelwrap

COMMANDS = [
    *("init", "serve", "connect", "relay", "wrap"),
    *("status", "disconnect", "redirect", "check", "demo"),
]


def test_help_lists_the_commands_in_the_order_of_their_use() -> None:
    output = CliRunner().invoke(tunnelwrap, ["--help"]).output

    places = [output.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(tunnelwrap, [command, "--help"])

    assert done.exit_code == 0
    assert "Usage:" in done.output
    assert len(done.output.splitlines()) > 8


def test_version() -> None:
    assert __version__ in CliRunner().invoke(tunnelwrap, ["--version"]).output


def test_an_unknown_command_is_refused() -> None:
    assert CliRunner().invoke(tunnelwrap, ["dance"]).exit_code == 2


@pytest.mark.parametrize(
    "command", ["serve", "connect", "relay", "wrap", "status", "disconnect", "check"]
)
def test_a_missing_file_is_a_plain_line(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["tunnelwrap", command, str(tmp_path / "absent.toml")])

    with pytest.raises(SystemExit) as end:
        main()

    assert end.value.code == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("tunnelwrap: ")
    assert "absent.toml" in errors[0]
    assert "No such file" in errors[0]


def test_connect_does_not_load_what_it_does_not_need() -> None:
    script = (
        "import sys; import tunnelwrap.cli.connect; "
        "print([m for m in ('aiohttp', 'rich', 'tunnelwrap.daemon.server') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
