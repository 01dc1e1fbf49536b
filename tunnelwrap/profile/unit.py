"""The systemd unit of one wrapper: ours for all of them, with one file's name in it."""

import re
import sys
from importlib.resources import files
from pathlib import Path

from tunnelwrap.profile import Fallback

_HIDDEN = ("/home/", "/root/", "/run/user/")


def wrap_unit(fallback: Fallback, file: Path) -> str:
    """A file for /etc/systemd/system."""
    package = files("tunnelwrap")
    text = (package / "systemd" / "tunnelwrap-wrap@.service").read_text()
    command = " ".join(map(_quoted, (sys.executable, "-m", "tunnelwrap", "wrap", str(file))))
    text = re.sub(r"\A(#.*\n)+", f"# tunnelwrap for the connection {fallback.name}.\n", text)
    text = re.sub(r"(?m)^ExecStart=.*$", lambda _: f"ExecStart={command}", text)
    text = text.replace("%i", fallback.name)
    if any(str(each).startswith(_HIDDEN) for each in (file, sys.executable, package)):
        text = text.replace("ProtectHome=yes", "ProtectHome=read-only")
    return text


def _quoted(word: str) -> str:
    """A word as it stands in a unit. systemd.syntax(7), systemd.unit(5)."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[\s\"'\\]", word) else escaped
