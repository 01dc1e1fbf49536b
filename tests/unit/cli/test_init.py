"""``tunnelwrap init``: what it prints, and what can be done with it."""

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tunnelwrap.cli.init import init
from tunnelwrap.config.load import load_client, load_gateway
from tunnelwrap.errors import ConfigError

DEMO = ("--address", "203.0.113.2", "--network", "10.66.0.0/24", "--client", "client")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(init, arguments)


def test_what_the_demo_calls(tmp_path: Path) -> None:
    result = run("--directory", str(tmp_path), *DEMO)

    assert result.exit_code == 0, result.output
    gateway = load_gateway(tmp_path / "gateway.toml")
    client = load_client(tmp_path / "client" / "client.toml")
    assert gateway.connections["clients"].child.local_ts == ("10.66.0.0/24",)
    assert client.connection.child.peer_ts == ("10.66.0.0/24",)
    assert client.client.gateway == "203.0.113.2"


def test_it_says_what_to_type_next(tmp_path: Path) -> None:
    result = run("--directory", str(tmp_path), *DEMO)

    lines = result.output.splitlines()
    assert lines[0] == f"Made in {tmp_path}:"
    assert f"  tunnelwrap serve {tmp_path}/gateway.toml" in lines
    assert f"Copy {tmp_path}/client/client.toml to the client, and there:" in lines
    assert lines[-1] == "  tunnelwrap connect client.toml"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or str(path.relative_to(tmp_path)) in result.output
    assert "PRIVATE KEY" not in result.output


def test_another_client(tmp_path: Path) -> None:
    run("--directory", str(tmp_path), *DEMO)

    result = run("--directory", str(tmp_path), "--client", "bob")

    assert result.exit_code == 0, result.output
    assert "bob/client.toml  all that bob@203.0.113.2 needs" in result.output
    assert "tunnelwrap serve" not in result.output


def test_json(tmp_path: Path) -> None:
    said = json.loads(run("--directory", str(tmp_path), *DEMO, "--json").output)

    assert said == {
        "gateway": f"{tmp_path}/gateway.toml",
        "client": f"{tmp_path}/client/client.toml",
        "client_id": "client@203.0.113.2",
        "new_gateway": True,
        "files": [
            f"{tmp_path}/{name}"
            for name in (
                *("gateway.toml", "gateway.pem", "gateway.key", "ca.pem", "ca.key"),
                "client/client.toml",
            )
        ],
    }
    again = json.loads(run("--directory", str(tmp_path), "--client", "bob", "--json").output)
    assert again["new_gateway"] is False
    assert again["files"] == [again["client"]] == [f"{tmp_path}/bob/client.toml"]


def test_all_options(tmp_path: Path) -> None:
    options = ["--address", "203.0.113.2", "--name", "vpn.example.org"]
    options += ["--network", "10.1.0.0/16", "--network", "fd01::/64"]
    options += ["--pool", "10.9.0.0/24", "--pool", "fd09::/64"]
    options += ["--dns", "10.1.0.53", "--dns", "fd01::53", "--client", "alice"]

    result = run("--directory", str(tmp_path), *options)

    assert result.exit_code == 0, result.output
    file = load_gateway(tmp_path / "gateway.toml")
    pool = file.pools["clients"]
    assert file.gateway.name == "vpn.example.org"
    assert file.connections["clients"].child.local_ts == ("10.1.0.0/16", "fd01::/64")
    assert [str(network) for network in pool.networks] == ["10.9.0.0/24", "fd09::/64"]
    assert [str(address) for address in pool.dns] == ["10.1.0.53", "fd01::53"]


def test_mistakes_fly_out_as_one_error(tmp_path: Path) -> None:
    result = run("--directory", str(tmp_path / "new"), "--address", "a b", "--client", "/")

    assert isinstance(result.exception, ConfigError)
    assert len(result.exception.problems) == 2
    assert result.output == ""
    assert not (tmp_path / "new").exists()


def test_help_names_every_option_with_its_default() -> None:
    text = " ".join(run("--help").output.split())

    for option in init.params:
        assert option.opts[0] in text
    for default in ("[default: /etc/tunnelwrap]", "[default: client]", "10.20.0.0/24 where IPv4"):
        assert default in text
    assert "tunnelwrap init --address vpn.example.org" in text


@pytest.mark.parametrize("name", [None, "vpn.example.org"])
def test_openssl_accepts_the_certificates(tmp_path: Path, name: str | None) -> None:
    run("--directory", str(tmp_path), *DEMO, *(["--name", name] if name else []))

    checks = ["-verify_ip", "203.0.113.2"] if name is None else ["-verify_hostname", name]
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", *checks]
    files = ["-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / "gateway.pem")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
