"""The configurations of relay and wrap."""

from pathlib import Path

import pytest

from tests.unit.config.writing import CLIENT, written
from tunnelwrap.config.load import control_socket, load, load_relay, load_wrap
from tunnelwrap.errors import ConfigError

RELAY = '[relay]\nname = "vpn.example.org"\ntls_ports = []\n'
WRAP = '[wrap]\ngateway = "192.0.2.1"\n'


def problem(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(written(directory, text))
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[relay]\nname = "x"\n',
            "a table [relay.tls] with certificate and key, or tls_ports = []",
        ),
        (f"{RELAY}tcp_ports = []", "a port in tcp_ports or tls_ports"),
        (f'{RELAY}daemon = "::1"\nsources = "127.128.0.0/10"', "sources of IPv6, as daemon is"),
        (f"{WRAP}ike_port = 4500", "another nat_port than ike_port"),
        (f'{RELAY}state_directory = "x"', "unknown key"),
        (f'{WRAP}lan = ["br lan"]', "wrap.lan[0]: found 'br lan', expected a network device"),
        (f'{WRAP}lan = ["a-name-too-long-"]', "expected a network device"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problem(tmp_path, text)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found a table \[client\], expected a table \[relay\]"):
        load_relay(written(tmp_path, CLIENT))
    with pytest.raises(ConfigError, match=r"found a table \[relay\], expected a table \[wrap\]"):
        load_wrap(written(tmp_path, RELAY))


def test_the_control_socket_has_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/x")

    assert control_socket(written(tmp_path, WRAP, "office.toml")) == Path("/run/x/office.sock")
