"""``tunnelwrap check``: the effective configuration, or everything that is wrong with it."""

import json
import tomllib
from pathlib import Path

from click.testing import CliRunner, Result

from tests.unit.config.writing import CLIENT, GATEWAY, SECRET, changed, written
from tunnelwrap.cli.check import check
from tunnelwrap.config.effective import effective
from tunnelwrap.config.load import load
from tunnelwrap.errors import ConfigError

WRONG = changed(CLIENT, 'gateway = "vpn.example.org"', "tls_port = 0")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(check, arguments)


def test_a_right_file_is_printed_as_it_counts(tmp_path: Path) -> None:
    for text in (CLIENT, GATEWAY):
        path = written(tmp_path, text)

        result = run(str(path))

        assert result.exit_code == 0, result.output
        assert result.output == effective(load(path))
        assert SECRET not in result.output


def test_json_of_a_right_file(tmp_path: Path) -> None:
    path = written(tmp_path, CLIENT)

    said = json.loads(run(str(path), "--json").output)

    assert said == {
        "file": str(path),
        "is_valid": True,
        "problems": [],
        "configuration": tomllib.loads(effective(load(path))),
    }
    assert said["configuration"]["connection"]["psk"] == "(hidden)"


def test_all_mistakes_fly_out_as_one_error(tmp_path: Path) -> None:
    result = run(str(written(tmp_path, WRONG)))

    assert isinstance(result.exception, ConfigError)
    assert result.exit_code == 1
    assert len(result.exception.problems) == 2
    assert result.output == ""


def test_json_of_a_wrong_file(tmp_path: Path) -> None:
    path = written(tmp_path, WRONG)

    result = run(str(path), "--json")

    assert result.exit_code == 1
    assert json.loads(result.output) == {
        "file": str(path),
        "is_valid": False,
        "problems": [
            f"{path}: client.gateway: found nothing, expected host name or address of the gateway",
            f"{path}: client.tls_port: found 0, expected at least 1",
        ],
    }


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = run(str(tmp_path / "none.toml"))

    assert isinstance(result.exception, ConfigError)
    assert "No such file or directory" in str(result.exception)


def test_help() -> None:
    text = " ".join(run("--help").output.split())

    assert "FILE" in text
    assert "tunnelwrap check --json client.toml" in text
