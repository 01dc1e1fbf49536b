"""The systemd unit of one wrapper: ours for all of them, with one file's name in it."""

import re
import sys
from importlib.resources import files
from pathlib import Path

from tunnelwrap.profile import Fallback

_HIDDEN = ("/home/", "/root/", "/run/user/")
_FOR_A_LAN = {
    "\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n": (
        "\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_NET_ADMIN\n"
    ),
    "\nProtectProc=invisible\n": "\nProtectProc=default\nStateDirectory=tunnelwrap\n",
}


def wrap_unit(fallback: Fallback, file: Path) -> str:
    """A file for /etc/systemd/system."""
    package = files("tunnelwrap")
    text = (package / "systemd" / "tunnelwrap-wrap@.service").read_text()
    command = " ".join(map(_quoted, (sys.executable, "-m", "tunnelwrap", "wrap", str(file))))
    text = re.sub(r"\A(#.*\n)+", f"# tunnelwrap for the connection {fallback.name}.\n", text)
    text = re.sub(r"(?m)^ExecStart=.*$", lambda _: f"ExecStart={command}", text)
    text = text.replace("%i", fallback.name)
    places = (file, sys.executable, package, *_certificate_files(fallback))
    if any(str(each).startswith(_HIDDEN) for each in places):
        text = text.replace("ProtectHome=yes", "ProtectHome=read-only")
    for old, new in _FOR_A_LAN.items() if fallback.wrap.lan else ():
        text = text.replace(old, new)
    return text


def _certificate_files(fallback: Fallback) -> list[Path]:
    """What the wrapper reads besides its configuration: for TLS, and for the gate in it."""
    wrap, gate = fallback.wrap, fallback.wrap.gate
    named = [wrap.tls_ca.file if wrap.tls_ca else None]
    if gate is not None and gate.certificate is not None and gate.key is not None:
        named += [gate.certificate.file, gate.key.file]
    return [file.absolute() for file in named if file is not None]


def _quoted(word: str) -> str:
    """A word as it stands in a unit. systemd.syntax(7), systemd.unit(5)."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[\s\"'\\]", word) else escaped
