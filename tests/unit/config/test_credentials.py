"""Certificates, keys and pre-shared keys: in files, in the environment, or written down."""

import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.kit.certs import BEGIN, END, authority, entity, key
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
from tunnelwrap.config.client import ClientFile
from tunnelwrap.config.load import load, load_client, load_gateway
from tunnelwrap.errors import ConfigError

PSK = f'psk = "{SECRET}"'
TLS = "[gateway.tls]\ncertificate = 'gateway.pem'\nkey = 'gateway.key'\n"


def client_of(directory: Path, text: str) -> ClientFile:
    return load_client(written(directory, text), WHEN)


def problem_of(directory: Path, text: str) -> str:
    """The one line that is printed, without the name of the file."""
    path = written(directory, text)
    with pytest.raises(ConfigError) as caught:
        load(path, WHEN)
    (line,) = caught.value.problems
    return line.removeprefix(f"{path}: ")


# --- pre-shared keys -------------------------------------------------------------------------


def test_a_psk_is_taken_as_it_stands(tmp_path: Path) -> None:
    psk = client_of(tmp_path, changed(CLIENT, PSK, 'psk = " ünter "')).connection.preshared_key

    assert psk is not None
    assert psk.secret.reveal() == " ünter ".encode()
    assert (psk.place, psk.shown) == (None, "(hidden)")


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_psk_file_is_read_without_the_end_of_its_line(tmp_path: Path, end: str) -> None:
    (tmp_path / "psk").write_bytes(f" {SECRET}{end}".encode())

    psk = client_of(tmp_path, changed(CLIENT, PSK, 'psk_file = "psk"')).connection.preshared_key

    assert psk is not None
    assert psk.secret.reveal() == f" {SECRET}".encode()
    assert psk.shown == str(tmp_path / "psk")


@pytest.mark.parametrize("octets", [SECRET.encode(), b"\xff\xfe"])
def test_a_psk_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, octets: bytes) -> None:
    monkeypatch.setenv("TUNNELWRAP_TEST", os.fsdecode(octets))

    text = changed(CLIENT, PSK, 'psk_env = "TUNNELWRAP_TEST"')
    psk = client_of(tmp_path, text).connection.preshared_key

    assert psk is not None
    assert (psk.secret.reveal(), psk.shown) == (octets, "TUNNELWRAP_TEST")


def test_an_empty_psk_variable_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNNELWRAP_TEST", "")

    line = problem_of(tmp_path, changed(CLIENT, PSK, 'psk_env = "TUNNELWRAP_TEST"'))

    assert line.endswith("(TUNNELWRAP_TEST is not set)")


def test_a_psk_file_must_hold_something(tmp_path: Path) -> None:
    text = changed(CLIENT, PSK, 'psk_file = "psk"')
    begin = (
        "connection.psk_file: found 'psk', expected the name of a file that holds the pre-shared"
        f" key ({tmp_path / 'psk'}"
    )

    assert problem_of(tmp_path, text) == f"{begin}: No such file or directory)"
    (tmp_path / "psk").write_bytes(b"\n")
    assert problem_of(tmp_path, text) == f"{begin} is empty)"


def test_no_secret_is_in_a_repr(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    inline = (tmp_path / "alice.key").read_text()
    certified = changed(CERTIFIED_CLIENT, '"alice.key"', f"'''\n{inline}'''")

    for text in (CLIENT, certified):
        shown = repr(client_of(tmp_path, text))
        assert SECRET not in shown
        assert inline.splitlines()[1] not in shown


# --- certificates ----------------------------------------------------------------------------


def test_certificates_in_files(tmp_path: Path) -> None:
    write_credentials(tmp_path)

    connection = client_of(tmp_path, CERTIFIED_CLIENT).connection

    own, own_key = connection.local.certificate, connection.local.key
    assert own is not None
    assert own_key is not None
    assert own.certificates[0].public_key() == own_key.key.public_key()
    assert own.shown == str(tmp_path / "alice.pem")
    assert own_key.shown == str(tmp_path / "alice.key")
    assert [ca.shown for ca in connection.peer.ca] == [str(tmp_path / "ca.pem")]


def test_certificates_in_the_file_itself(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    text = CERTIFIED_CLIENT
    for name in ("alice.pem", "alice.key", "ca.pem"):
        pem = (tmp_path / name).read_text()
        text = changed(text, f'"{name}"', f"'''\n{pem}'''")
        (tmp_path / name).unlink()

    connection = client_of(tmp_path, text).connection

    assert connection.local.certificate is not None
    assert connection.local.certificate.shown == "(in this file: CN=alice)"
    assert connection.local.key is not None
    assert connection.local.key.shown == "(hidden)"
    assert connection.peer.ca[0].shown == "(in this file: CN=Test Root)"


def test_a_certificate_may_be_in_der(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    (tmp_path / "ca.pem").write_bytes(authority("CN=In DER").der)

    ca = client_of(tmp_path, CERTIFIED_CLIENT).connection.peer.ca[0]

    assert ca.certificates[0].subject.rfc4514_string() == "CN=In DER"


@pytest.mark.parametrize(
    ("name", "octets", "expected"),
    [
        ("alice.pem", None, "connection.local.certificate: found 'alice.pem', expected the file"),
        ("alice.pem", b"rubbish", "(no readable certificate: "),
        ("alice.key", None, "connection.local.key: found a value that is not shown, expected the"),
        ("alice.key", b"rubbish", "(private key cannot be read: "),
        ("alice.key", entity("x", authority(), kind="x25519").key_pem, "is neither RSA nor"),
        (
            "alice.key",
            entity("x", None, kind="rsa1024").key_pem,
            "(private key is RSA of 1024 bits",
        ),
        ("ca.pem", None, "connection.peer.ca[0]: found 'ca.pem', expected the file name of a"),
    ],
)
def test_a_file_that_will_not_do(
    tmp_path: Path, name: str, octets: bytes | None, expected: str
) -> None:
    write_credentials(tmp_path)
    if octets is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(octets)

    line = problem_of(tmp_path, CERTIFIED_CLIENT)

    assert expected in line
    assert (f"{tmp_path / name}: No such file or directory" in line) == (octets is None)


@pytest.mark.parametrize("place", ["certificate", "ca"])
def test_a_misplaced_private_key_is_not_shown(tmp_path: Path, place: str) -> None:
    write_credentials(tmp_path)
    pem = (tmp_path / "alice.key").read_text()
    old = '"alice.pem"' if place == "certificate" else '"ca.pem"'

    line = problem_of(tmp_path, changed(CERTIFIED_CLIENT, old, f"'''\n{pem}'''"))

    assert f"{place}" in line
    assert "found a text that is not shown, expected the file name of a certificate" in line
    assert pem.splitlines()[1][:20] not in line


def test_a_key_without_its_armour_is_not_shown(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    inner = (tmp_path / "alice.key").read_text().splitlines()[1:-1]
    text = changed(CERTIFIED_CLIENT, '"alice.key"', f"'''\n{chr(10).join(inner)}'''")

    line = problem_of(tmp_path, text)

    assert line.endswith("(there are control characters in it)")
    assert inner[0][:20] not in line


# --- what belongs together -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        (
            'key = "alice.key"\n',
            "connection.local: expected certificate and key together (key is missing)",
        ),
        (
            'certificate = "alice.pem"\n',
            "connection.local: expected certificate and key together (certificate is missing)",
        ),
    ],
)
def test_half_a_credential(tmp_path: Path, old: str, expected: str) -> None:
    write_credentials(tmp_path)

    assert problem_of(tmp_path, changed(CERTIFIED_CLIENT, old, "")) == expected


def test_anothers_key(tmp_path: Path) -> None:
    write_credentials(tmp_path)

    assert problem_of(tmp_path, changed(CERTIFIED_CLIENT, "alice.key", "gateway.key")) == (
        "connection.local: expected the private key of the certificate"
        " (key is not that of CN=alice)"
    )


def test_an_identity_that_the_certificate_does_not_name(tmp_path: Path) -> None:
    write_credentials(tmp_path)

    assert problem_of(tmp_path, changed(CERTIFIED_CLIENT, "alice@", "bob@")) == (
        "connection.local: expected an identity that the certificate names"
        " (the certificate names alice@example.org, alice@vpn.example.org, CN=alice,"
        " not bob@example.org)"
    )


@pytest.mark.parametrize(
    ("valid", "expected"),
    [
        ((BEGIN, WHEN - timedelta(days=1)), "CN=alice expired on 2026-05-31"),
        ((WHEN + timedelta(days=1), END), "CN=alice is not valid before 2026-06-02"),
    ],
)
def test_our_certificate_must_be_valid_now(
    tmp_path: Path, valid: tuple[datetime, datetime], expected: str
) -> None:
    write_credentials(tmp_path)
    own = entity("CN=alice", authority(), number=1, sans=["alice@example.org"], valid=valid)
    (tmp_path / "alice.pem").write_bytes(own.pem)

    line = problem_of(tmp_path, CERTIFIED_CLIENT)

    assert "expected a certificate that is valid now" in line
    assert expected in line


def test_the_peers_authority_is_judged_when_it_is_used(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    old = authority("CN=Old Root", valid=(BEGIN, WHEN - timedelta(days=1)))
    (tmp_path / "ca.pem").write_bytes(old.pem)

    assert client_of(tmp_path, CERTIFIED_CLIENT).connection.peer.ca


# --- TLS -------------------------------------------------------------------------------------


def test_a_gateway_shows_its_certificate_on_tls(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    text = changed(GATEWAY, "tls_ports = []\n", TLS)

    gateway = load_gateway(written(tmp_path, text), WHEN).gateway

    assert gateway.tls is not None
    assert gateway.tls.certificate.file == tmp_path / "gateway.pem"
    assert gateway.tls_ports == (443,)


def test_tls_needs_files(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    text = changed(GATEWAY, "tls_ports = []\n", TLS)
    for name in ("gateway.pem", "gateway.key"):
        text = changed(text, f"'{name}'", f"'''\n{(tmp_path / name).read_text()}'''")

    assert problem_of(tmp_path, text) == (
        "gateway.tls: expected file names for certificate and key of TLS (they stand in this file)"
    )


def test_tls_needs_the_certificates_own_key(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    text = changed(changed(GATEWAY, "tls_ports = []\n", TLS), "gateway.key", "alice.key")

    assert "(key is not that of CN=gateway)" in problem_of(tmp_path, text)


def test_keys_of_all_kinds(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    for kind in ("rsa", "p384", "ed25519"):
        own = entity("CN=a", authority(), kind=kind, sans=["alice@example.org"])
        (tmp_path / "alice.pem").write_bytes(own.pem)
        (tmp_path / "alice.key").write_bytes(own.key_pem)

        loaded = client_of(tmp_path, CERTIFIED_CLIENT).connection.local.key

        assert loaded is not None
        assert loaded.key.public_key() == key(kind).public_key()
