"""A second way for another daemon's connection: the two files, and what is refused."""

import configparser
import stat
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from tunnelwrap.cli.fallback import fallback
from tunnelwrap.errors import ConfigError
from tunnelwrap.profile.export import DAEMONS, Exported, export

ROAD = {"local_id": "alice@vpn.example.org", "remote_id": "vpn.example.org"}
ROAD_WARRIOR = {**ROAD, "remote_ts": ("10.66.0.0/24", "10.67.0.0/24")}
SITE = {
    "local_id": "b.example.org",
    "remote_id": "a.example.org",
    "local_ts": ("10.2.0.0/16",),
    "remote_ts": ("10.1.0.0/16",),
}
OTHER_PORTS = "ike_port = 10500\nnat_port = 14500\n"
OTHER_HOST = 'listen = "192.0.2.9"\n'


def exported(directory: Path, daemon: str, more: str = "", **options: object) -> Exported:
    """The files for a wrapper ``office`` whose configuration has more in it."""
    file = directory / "office.toml"
    file.write_text(f'[wrap]\ngateway = "vpn.example.org"\n{more}')
    return export(daemon, file, directory / "out", options, datetime.now(UTC))


def problems_of(directory: Path, daemon: str, more: str = "", **options: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        exported(directory, daemon, more, **options)
    assert not (directory / "out").exists()
    return [problem.removeprefix(f"{directory}/") for problem in caught.value.problems]


def settings_of(made: Exported) -> list[str]:
    """The lines of the daemon's file that are no comments."""
    lines = [line.strip() for line in made.configuration.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


# --- what is written -------------------------------------------------------------------------


def test_strongswan_on_the_same_host_is_told_the_port(tmp_path: Path) -> None:
    made = exported(tmp_path, "strongswan", OTHER_PORTS, **ROAD_WARRIOR)

    assert made.configuration.name == "office.conf"
    settings = settings_of(made)
    for line in (
        "remote_addrs = 127.0.0.2",
        "remote_port = 14500",
        "local_port = 4500",
        "encap = yes",
        "mobike = no",
        "vips = 0.0.0.0, ::",
        "auth = psk",
        'id = "alice@vpn.example.org"',
        'id = "vpn.example.org"',
        "remote_ts = 10.66.0.0/24, 10.67.0.0/24",
    ):
        assert line in settings
    assert not [line for line in settings if line.startswith(("local_ts", "certs"))]


def test_strongswan_between_two_sites(tmp_path: Path) -> None:
    certificate = {"auth": "certificate", "certificate": "b.pem"}
    made = exported(tmp_path, "strongswan", OTHER_HOST, **SITE, **certificate)

    settings = settings_of(made)
    assert "remote_addrs = 192.0.2.9" in settings
    assert settings.count("auth = pubkey") == 2
    assert 'certs = "b.pem"' in settings
    assert "local_ts = 10.2.0.0/16" in settings
    assert not [line for line in settings if line.startswith(("remote_port", "local_port", "vips"))]


def test_libreswan_has_names_that_it_does_not_look_up(tmp_path: Path) -> None:
    made = exported(tmp_path, "libreswan", **SITE)

    settings = settings_of(made)
    assert settings[0] == "conn office"
    for line in (
        "right=127.0.0.2",
        "leftid=@b.example.org",
        "rightid=@a.example.org",
        "authby=secret",
        "leftsubnet=10.2.0.0/16",
        "rightsubnet=10.1.0.0/16",
        "encapsulation=yes",
        "mobike=no",
    ):
        assert line in settings


def test_libreswan_as_a_road_warrior_with_a_certificate(tmp_path: Path) -> None:
    certificate = {"auth": "certificate", "certificate": "alice"}
    settings = settings_of(exported(tmp_path, "libreswan", **ROAD_WARRIOR, **certificate))

    assert "leftcert=alice" in settings
    assert "leftmodecfgclient=yes" in settings
    assert 'rightsubnets="10.66.0.0/24 10.67.0.0/24"' in settings


def test_networkmanager_gets_a_file_that_it_takes(tmp_path: Path) -> None:
    certificate = {"auth": "certificate", "certificate": "/etc/a.pem", "key": "/etc/a.key"}
    made = exported(tmp_path, "networkmanager", OTHER_PORTS, **ROAD_WARRIOR, **certificate)

    assert made.configuration.name == "office.nmconnection"
    assert stat.S_IMODE(made.configuration.stat().st_mode) == 0o600
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(made.configuration)
    assert dict(parser["connection"]) == {"id": "office", "type": "vpn"}
    assert dict(parser["vpn"]) == {
        "service-type": "org.freedesktop.NetworkManager.strongswan",
        "address": "127.0.0.2",
        "server-port": "14500",
        "local-identity": "alice@vpn.example.org",
        "remote-identity": "vpn.example.org",
        "method": "cert",
        "cert-source": "file",
        "usercert": "/etc/a.pem",
        "userkey": "/etc/a.key",
        "remote-ts": "10.66.0.0/24;10.67.0.0/24",
        "encap": "yes",
        "virtual": "yes",
        "password-flags": "1",
    }


def test_windows_is_led_to_another_host(tmp_path: Path) -> None:
    made = exported(tmp_path, "windows", OTHER_HOST, **ROAD_WARRIOR, auth="certificate")

    text = made.configuration.read_text()
    assert made.configuration.name == "office.ps1"
    assert "-Value '192.0.2.9 vpn.example.org'" in text
    assert "-ServerAddress 'vpn.example.org' -TunnelType Ikev2" in text
    assert text.count("Add-VpnConnectionRoute") == 2
    assert "-SplitTunneling:$true" in text


@pytest.mark.parametrize("daemon", DAEMONS)
def test_no_daemon_gets_a_secret(tmp_path: Path, daemon: str) -> None:
    proof = {"auth": "certificate", "certificate": "a.pem", "key": "a.key"}
    more = {"strongswan": OTHER_PORTS, "windows": OTHER_HOST}.get(daemon, "")
    text = exported(tmp_path, daemon, more, **ROAD_WARRIOR, **proof).configuration.read_text()
    assert "secret =" not in text
    assert "password=" not in text


def test_the_unit_runs_the_wrapper_of_that_file(tmp_path: Path) -> None:
    made = exported(tmp_path, "strongswan", OTHER_PORTS, **ROAD_WARRIOR)

    assert made.unit.name == "tunnelwrap-office.service"
    text = made.unit.read_text()
    assert f" -m tunnelwrap wrap {tmp_path}/office.toml\n" in text
    assert "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n" in text
    assert "%i" not in text
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", made.unit],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not [line for line in done.stderr.splitlines() if "tunnelwrap-office" in line]


@pytest.mark.parametrize("daemon", ["strongswan", "networkmanager"])
def test_a_gate_is_the_wrappers_affair_and_its_secret_stays_in_its_file(
    tmp_path: Path, daemon: str
) -> None:
    gate = '[wrap.gate]\nword = "OHBAEPHEIWAHCHAI"\n'
    made = exported(tmp_path, daemon, OTHER_PORTS + gate, **ROAD_WARRIOR)

    assert f" wrap {tmp_path}/office.toml\n" in made.unit.read_text()
    assert "OHBAEPHEIWAHCHAI" not in made.unit.read_text() + made.configuration.read_text()


def test_what_is_wrong_with_a_gate_is_told_before_anything_is_written(tmp_path: Path) -> None:
    gate = '[wrap.gate]\nword = "hunter2"\n'
    (problem,) = problems_of(tmp_path, "strongswan", OTHER_PORTS + gate, **ROAD_WARRIOR)
    assert problem.startswith("office.toml: wrap.gate.word: found a value that is not shown,")


def test_a_unit_for_a_lan_has_the_rights_for_it(tmp_path: Path) -> None:
    made = exported(tmp_path, "strongswan", OTHER_PORTS + 'lan = ["br-lan"]\n', **ROAD_WARRIOR)

    text = made.unit.read_text()
    assert "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_NET_ADMIN\n" in text
    assert "ProtectProc=default\nStateDirectory=tunnelwrap\n" in text


def test_a_file_name_with_a_blank_is_one_word_to_systemd(tmp_path: Path) -> None:
    directory = tmp_path / "100% of it"
    directory.mkdir()
    text = exported(directory, "strongswan", OTHER_PORTS, **ROAD_WARRIOR).unit.read_text()
    assert f' wrap "{tmp_path}/100%% of it/office.toml"\n' in text


# --- what is refused -------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    made = exported(tmp_path, "strongswan", OTHER_PORTS, **ROAD_WARRIOR)
    made.configuration.unlink()
    before = made.unit.read_text()

    with pytest.raises(ConfigError) as caught:
        exported(tmp_path, "strongswan", OTHER_PORTS, **SITE)

    assert caught.value.problems == [f"{made.unit}: exists already, and is not overwritten"]
    assert made.unit.read_text() == before
    assert not made.configuration.exists()


@pytest.mark.parametrize(
    ("daemon", "more", "options", "problems"),
    [
        (
            "strongswan",
            "",
            ROAD_WARRIOR,
            [
                "wrap.ike_port: found 500, expected another, as strongSwan here has it",
                "wrap.nat_port: found 4500, expected another, as strongSwan here has it",
            ],
        ),
        (
            "libreswan",
            OTHER_PORTS,
            {**SITE, "auth": "certificate"},
            [
                "wrap: expected ike_port = 500 and nat_port = 4500 (libreswan",
                "libreswan needs --certificate, its nickname in the NSS database",
            ],
        ),
        (
            "windows",
            OTHER_PORTS,
            {**SITE, "remote_id": "a@example.org"},
            [
                "wrap.listen: expected an address that Windows reaches (Windows has these ports",
                "wrap: expected ike_port = 500 and nat_port = 4500, as Windows has no others",
                "Windows needs --auth certificate, as it knows no pre-shared key for IKEv2",
                "Windows needs a host name as --remote-id: it looks that up, and compares it",
                "Windows takes no --local-ts: its side is the address that it is given",
            ],
        ),
        (
            "networkmanager",
            "",
            {**SITE, "auth": "certificate"},
            [
                "NetworkManager needs --certificate and --key, both names of files",
                "NetworkManager takes no --local-ts: its side is the address it is given",
            ],
        ),
    ],
)
def test_what_a_daemon_cannot(
    tmp_path: Path, daemon: str, more: str, options: dict[str, object], problems: list[str]
) -> None:
    found = problems_of(tmp_path, daemon, more, **options)
    assert len(found) == len(problems)
    for line, problem in zip(found, problems, strict=True):
        assert line.startswith(f"office.toml: {problem}")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"local_id": "192.0.2.1"}, "expected a name for --local-id, as addresses"),
        ({"remote_id": "%null"}, "expected a name for --remote-id, as addresses change on the way"),
        ({"local_id": "a'b"}, "expected no quotes and the like in --local-id"),
        ({"certificate": "a.pem"}, "expected --auth certificate, where there is"),
        ({"remote_ts": ("10.1.2.3/16",)}, "--remote-ts[0]: found '10.1.2.3/16'"),
        ({"auth": "eap"}, "--auth: found 'eap', expected 'psk' or 'certificate'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, options: dict[str, object], problem: str) -> None:
    (found,) = problems_of(tmp_path, "strongswan", OTHER_PORTS, **{**ROAD_WARRIOR, **options})
    assert found.startswith(problem)


def test_a_name_that_is_none_for_a_connection(tmp_path: Path) -> None:
    file = tmp_path / "my office.toml"
    file.write_text(f'[wrap]\ngateway = "vpn.example.org"\n{OTHER_PORTS}')
    with pytest.raises(ConfigError, match="its name is the connection's"):
        export("strongswan", file, tmp_path / "out", ROAD_WARRIOR, datetime.now(UTC))


def test_the_command_says_what_to_type_next(tmp_path: Path) -> None:
    file = tmp_path / "office.toml"
    file.write_text(f'[wrap]\ngateway = "vpn.example.org"\n{OTHER_PORTS}')
    words = ["export", "--for", "strongswan", "--directory", str(tmp_path / "out"), str(file)]
    words += ["--local-id", "alice@vpn.example.org", "--remote-id", "vpn.example.org"]

    result = CliRunner().invoke(fallback, [*words, "--remote-ts", "10.66.0.0/24"])

    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[1:] == [
        f"  cp {tmp_path}/out/tunnelwrap-office.service /etc/systemd/system/",
        "  systemctl enable --now tunnelwrap-office.service",
        f"  cp {tmp_path}/out/office.conf /etc/swanctl/conf.d/",
        "  swanctl --load-all",
        "  swanctl --initiate --child office",
    ]
