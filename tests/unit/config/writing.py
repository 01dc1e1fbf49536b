"""Configuration files for tests: right ones with credentials beside them, to be spoiled."""

from pathlib import Path

from tests.kit.certs import NOW, authority, entity

WHEN = NOW
"""The time at which the certificates are valid."""

SECRET = "hunter2-is-not-to-be-seen"

GATEWAY = """\
[gateway]
name = "vpn.example.org"
tls_ports = []

[connections.office]
psk = "hunter2-is-not-to-be-seen"

[connections.office.local]
id = "vpn.example.org"

[connections.office.peer]
id = "%any"
"""

CLIENT = """\
[client]
gateway = "vpn.example.org"

[connection]
psk = "hunter2-is-not-to-be-seen"

[connection.local]
id = "alice@example.org"

[connection.peer]
id = "vpn.example.org"
"""

CERTIFIED_CLIENT = """\
[client]
gateway = "vpn.example.org"

[connection.local]
id = "alice@example.org"
certificate = "alice.pem"
key = "alice.key"

[connection.peer]
id = "vpn.example.org"
ca = ["ca.pem"]
"""


def written(directory: Path, text: str, name: str = "tunnelwrap.toml") -> Path:
    """A file with a text, which may be a secret."""
    path = directory / name
    path.write_text(text)
    path.chmod(0o600)
    return path


def changed(text: str, old: str, new: str) -> str:
    """A text with one part changed, which must be there once."""
    assert text.count(old) == 1, old
    return text.replace(old, new)


def write_credentials(directory: Path) -> None:
    """An authority's certificate, and certificates with their keys for a gateway and for Alice."""
    root = authority("CN=Test Root")
    (directory / "ca.pem").write_bytes(root.pem)
    names = {
        "gateway": ["vpn.example.org"],
        "alice": ["alice@example.org", "alice@vpn.example.org"],
    }
    for number, (name, sans) in enumerate(names.items()):
        own = entity(f"CN={name}", root, number=number, sans=sans)
        (directory / f"{name}.pem").write_bytes(own.pem)
        (directory / f"{name}.key").write_bytes(own.key_pem)
