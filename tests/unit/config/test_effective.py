"""The effective configuration: TOML that says everything but secrets."""

import tomllib
from pathlib import Path

import pytest

from tests.unit.config.writing import (
    CERTIFIED_CLIENT,
    CLIENT,
    GATEWAY,
    SECRET,
    WHEN,
    changed,
    write_credentials,
    written,
)
from tunnelwrap.config.effective import effective, toml_text
from tunnelwrap.config.load import load

Table = dict[str, object]


def effective_of(directory: Path, text: str) -> Table:
    return tomllib.loads(effective(load(written(directory, text), WHEN)))


def at(document: object, *keys: str) -> object:
    for key in keys:
        assert isinstance(document, dict)
        document = document[key]
    return document


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    document = effective_of(tmp_path, CLIENT)

    assert at(document, "client", "carriers") == ["udp", "tcp", "tls"]
    assert at(document, "client", "dns") is True
    assert at(document, "connection", "rekey_s") == 14400
    assert at(document, "connection", "child", "local_ts") == "dynamic"
    assert at(document, "connection", "child", "peer_ts") == ["0.0.0.0/0", "::/0"]


def test_the_path_of_a_websocket_is_hidden_and_adds_a_carrier(tmp_path: Path) -> None:
    path = f'gateway = "vpn.example.org"\nwebsocket_path = "/{SECRET}"'
    document = effective_of(tmp_path, changed(CLIENT, 'gateway = "vpn.example.org"', path))

    assert SECRET not in str(document)
    assert at(document, "client", "websocket_path") == "(hidden)"
    assert at(document, "client", "carriers") == ["udp", "tcp", "tls", "ws"]


def test_a_psk_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNNELWRAP_TEST", SECRET)
    (tmp_path / "psk").write_text(SECRET)
    psk = f'psk = "{SECRET}"'

    shown = {
        "psk": effective_of(tmp_path, CLIENT),
        "psk_file": effective_of(tmp_path, changed(CLIENT, psk, "psk_file = 'psk'")),
        "psk_env": effective_of(tmp_path, changed(CLIENT, psk, "psk_env = 'TUNNELWRAP_TEST'")),
    }

    assert SECRET not in str(shown)
    assert at(shown, "psk", "connection", "psk") == "(hidden)"
    assert at(shown, "psk_file", "connection", "psk_file") == str(tmp_path / "psk")
    assert at(shown, "psk_env", "connection", "psk_env") == "TUNNELWRAP_TEST"


def test_a_private_key_is_hidden(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    pem = (tmp_path / "alice.key").read_text()

    document = effective_of(tmp_path, changed(CERTIFIED_CLIENT, '"alice.key"', f"'''\n{pem}'''"))

    assert at(document, "connection", "local", "key") == "(hidden)"
    assert at(document, "connection", "local", "certificate") == str(tmp_path / "alice.pem")
    assert at(document, "connection", "peer", "ca") == [str(tmp_path / "ca.pem")]
    assert pem.splitlines()[1] not in str(document)


@pytest.mark.parametrize("name", ["office", "1st-floor", "büro", "a.b", 'quo"te', "two words", "*"])
def test_any_name_of_a_connection_can_be_shown(tmp_path: Path, name: str) -> None:
    text = GATEWAY.replace("connections.office", f"connections.{toml_text(name)}")
    text += (
        f"[pools.{toml_text(name)}]\nnetworks = ['10.0.0.0/8', 'fd00::/64']\ndns = ['9.9.9.9']\n"
    )

    document = effective_of(tmp_path, text)

    assert at(document, "connections", name, "local", "id") == "vpn.example.org"
    assert at(document, "pools", name, "networks") == ["10.0.0.0/8", "fd00::/64"]
    assert at(document, "pools", name, "dns") == ["9.9.9.9"]


def test_what_is_shown_can_be_loaded_where_nothing_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "psk").write_text(SECRET)
    path = written(tmp_path, changed(CLIENT, f'psk = "{SECRET}"', "psk_file = 'psk'"))
    text = effective(load(path))

    assert effective(load(written(tmp_path, text, "again.toml"))) == text


@pytest.mark.parametrize("text", ["plain", 'quo"te', "back\\slash", "\x00\x1f\x7f", "é\n\t", ""])
def test_texts_survive(text: str) -> None:
    assert tomllib.loads(f"text = {toml_text(text)}") == {"text": text}
