"""The web site on the TLS ports and the gate in it: what a file may say of them."""

from pathlib import Path

import pytest

from tests.unit.config.writing import CLIENT, GATEWAY, changed, written
from tunnelwrap.config.effective import effective
from tunnelwrap.config.load import load, load_client, load_gateway
from tunnelwrap.errors import ConfigError

WORD, PATH = "OHBAEPHEIWAHCHAI", "/eeFah2ohX1aeng0Aibuo"
TLS_PORT = "listen = ['192.0.2.1']\ntcp_ports = [8443]\ntls_ports = []\n"


def gateway_with(tables: str) -> str:
    return changed(GATEWAY, "tls_ports = []\n", TLS_PORT + tables)


def test_none_by_default(tmp_path: Path) -> None:
    gateway = load_gateway(written(tmp_path, GATEWAY)).gateway
    assert (gateway.cover, gateway.gate) == (None, None)


def test_a_server_and_a_word(tmp_path: Path) -> None:
    tables = f"[gateway.cover]\nproxy = 'https://[::1]:8443'\n[gateway.gate]\nword = '{WORD}'\n"
    file = load(written(tmp_path, gateway_with(tables)))
    shown = effective(file)
    assert 'proxy = "https://[::1]:8443"' in shown
    assert 'word = "(hidden)"' in shown
    assert WORD not in repr(file) + shown


def test_what_a_client_shows(tmp_path: Path) -> None:
    text = changed(CLIENT, "[connection]\n", f"[client.gate]\npath = '{PATH}'\n\n[connection]\n")
    client = load_client(written(tmp_path, text)).client
    assert client.gate is not None
    assert client.gate.path is not None
    assert client.gate.path.path == PATH


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ("[gateway.cover]\n", "gateway.cover: expected one of files and proxy"),
        (
            "[gateway.cover]\nfiles = 'gone'\n",
            "gateway.cover.files: found 'gone', expected the name of a directory that exists",
        ),
        (
            "[gateway.cover]\nproxy = '127.0.0.1:80'\n",
            "gateway.cover.proxy: found '127.0.0.1:80', expected http://HOST:PORT or",
        ),
        (
            "[gateway.cover]\nfiles = '.'\nsend_proxy = 'v2'\n",
            "gateway.cover: expected proxy beside send_proxy",
        ),
        (
            "[gateway.cover]\nproxy = 'http://192.0.2.1:8443'\n",
            "gateway: expected another server for cover.proxy than the gateway itself",
        ),
        ("[gateway.gate]\n", "gateway.gate: expected one of word, path, client_ca"),
        (
            f"[gateway.gate]\nword = '{WORD}'\npath = '{PATH}'\n",
            "gateway.gate: expected one of word, path, client_ca",
        ),
        (
            "[gateway.gate]\nword = 'hunter2'\n",
            "gateway.gate.word: found a value that is not shown, expected a word that nobody",
        ),
        (
            f"[gateway.gate]\npath = '{PATH}'\n[gateway.websocket]\npath = '{PATH}'\n",
            "gateway: expected other paths in gate than in websocket",
        ),
    ],
)
def test_what_is_wrong(tmp_path: Path, tables: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_gateway(written(tmp_path, gateway_with(tables)))
    (line,) = caught.value.problems
    assert problem in line
