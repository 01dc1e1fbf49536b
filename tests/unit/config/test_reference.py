"""The example configurations: each can be loaded, and two of them are the reference of all keys."""

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.unit.config.writing import WHEN, write_credentials
from tunnelwrap.config.client import ClientFile
from tunnelwrap.config.effective import effective
from tunnelwrap.config.load import load
from tunnelwrap.config.model import GatewayFile
from tunnelwrap.config.suites import parse_esp, parse_ike
from tunnelwrap.config.wrapper import RelayFile, WrapFile
from tunnelwrap.iana import TransformType

CONFIGS = Path(__file__).parents[3] / "configs"
KINDS: dict[str, type[BaseModel]] = {
    "gateway.toml": GatewayFile,
    "client.toml": ClientFile,
    "relay.toml": RelayFile,
    "wrap.toml": WrapFile,
    "gateway-psk.toml": GatewayFile,
    "client-psk.toml": ClientFile,
}
NAMES = tuple(KINDS)
REFERENCES = {name: kind for name, kind in KINDS.items() if "psk" not in name}
WITHOUT_DEFAULT = {
    *("gateway.redirect_to", "connections.clients.redirect_to"),
    *(f"gateway.acme.{key}" for key in ("directory", "terms_agreed", "email", "challenge")),
    *(f"gateway.acme.{key}" for key in ("http_port", "names", "eab_key_id", "eab_key", "ca")),
    *(
        f"{role}.routes.{key}"
        for role in ("gateway", "relay")
        for key in ("begins_with", "sni", "alpn", "backend", "send_proxy")
    ),
    *("client.server_name", "wrap.server_name", "relay.sources"),
    *("client.websocket_path", "wrap.websocket_path"),
    *(
        f"{role}.{key}"
        for role in ("gateway", "relay")
        for key in (
            *("cover.files", "cover.proxy", "cover.send_proxy"),
            *("gate.word", "gate.path", "gate.client_ca"),
        )
    ),
    *(
        f"{role}.gate.{key}"
        for role in ("client", "wrap")
        for key in ("word", "path", "certificate", "key")
    ),
    *(
        f"{table}.{key}"
        for table in ("connection", "connections.clients")
        for key in (
            "psk",
            "psk_file",
            "psk_env",
            "ppk_id",
            "ppk",
            "ppk_file",
            "ppk_env",
            "child.ah",
        )
    ),
}
"""Keys of which the reference shows an example, for nothing counts where they are left out."""


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples, with the credentials beside them that they name."""
    for name in NAMES:
        shutil.copy(CONFIGS / name, tmp_path)
    write_credentials(tmp_path)
    (tmp_path / "psk").write_text("from a file\n")
    monkeypatch.setenv("TUNNELWRAP_PSK", "from the environment")
    for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_there_are_no_other_examples() -> None:
    assert {path.name for path in CONFIGS.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_example_can_be_loaded(configs: Path, name: str) -> None:
    assert isinstance(load(configs / name, WHEN), KINDS[name])


@pytest.mark.parametrize("name", REFERENCES)
def test_the_reference_has_every_key_and_no_other(name: str) -> None:
    shown = {key for key, _ in values_in(document_of(name))}
    known = set(keys_of(REFERENCES[name]))

    assert {re.sub(r"^(pools|connections)\.clients\.", r"\1.NAME.", key) for key in shown} == known


@pytest.mark.parametrize("name", REFERENCES)
def test_what_the_reference_leaves_out_is_shown_as_it_counts(configs: Path, name: str) -> None:
    counts = dict(values_in(tomllib.loads(effective(load(configs / name, WHEN)))))
    written = dict(values_in(tomllib.loads((configs / name).read_text())))
    shown = dict(values_in(document_of(name)))
    left_out = {key: value for key, value in shown.items() if key not in written}

    assert left_out.keys() >= WITHOUT_DEFAULT & known_in(name)
    for key in left_out.keys() - WITHOUT_DEFAULT:
        assert counts[key] == left_out[key], key


@pytest.mark.parametrize("name", ["gateway.toml", "client.toml"])
def test_the_reference_knows_all_algorithms(name: str) -> None:
    text = (CONFIGS / name).read_text()
    listed = {
        word
        for line in re.findall(r"^#   (?:encryption|PRF|key exchange|   ) .*", text, re.MULTILINE)
        for word in re.findall(r"\b(?:aes|chacha|prf|x\d|ecp|modp|sha)\w+", line)
    }
    assert len(listed) == 7 + 3 + 3 + 8
    for word in listed:
        is_ke = word[0] in "xem"
        ike = f"{word}-aes256gcm16-prfsha256" if is_ke else f"{word}-prfsha256-x25519"
        if word.startswith(("prf", "sha")):
            ike = f"aes256-sha256-x25519-{word}"
        elif word in ("aes128", "aes192", "aes256"):
            ike += "-sha256"
        assert parse_ike(ike).transforms
        if is_ke:
            kinds = {each.type for each in parse_esp(f"aes256gcm16-{word}").transforms}
            assert TransformType.KE in kinds


@pytest.mark.parametrize("name", NAMES)
def test_no_line_but_a_list_of_suites_is_long(name: str) -> None:
    lines = (CONFIGS / name).read_text().splitlines()

    assert [line for line in lines if len(line) > 100 and "aes256gcm16" not in line] == []


# --- reading them ----------------------------------------------------------------------------


def document_of(name: str) -> dict[str, object]:
    """A reference with the keys in it that are left out: lines ``#key = value``, ``#[table]``."""
    text = (CONFIGS / name).read_text()
    return tomllib.loads(re.sub(r"^#(?=\w+ = |\[)", "", text, flags=re.MULTILINE))


def values_in(table: object, place: str = "") -> Iterator[tuple[str, object]]:
    """All values of a document with their keys, written with dots."""
    assert isinstance(table, dict)
    for key, value in table.items():
        if isinstance(value, dict):
            yield from values_in(value, f"{place}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from values_in(value[0], f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def keys_of(model: type[BaseModel], place: str = "") -> Iterator[str]:
    """All keys of a model, written with dots; NAME stands for a name of the user's."""
    for key, field in model.model_fields.items():
        tables = [each for each in tables_in(field.annotation) if issubclass(each, BaseModel)]
        if not tables:
            yield f"{place}{key}"
        for table in tables:
            is_named = "dict" in str(field.annotation)
            yield from keys_of(table, f"{place}{key}.{'NAME.' if is_named else ''}")


def tables_in(annotation: object) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from tables_in(argument)


def known_in(name: str) -> set[str]:
    return {key.replace("NAME", "clients") for key in keys_of(REFERENCES[name])}
