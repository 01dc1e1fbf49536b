"""Secrets of a daemon that must survive it, each in a file of its own; and other such files."""

import os
import secrets
from pathlib import Path

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.errors import StoreError

LENGTH = 32


def lasting_secret(path: Path) -> Secret:
    """The secret in a file; made at random, and kept, where there is none yet.

    Raises:
        StoreError: the file cannot be read or written.
    """
    try:
        octets = path.read_bytes() if path.exists() else b""
        if len(octets) == LENGTH:
            return Secret(octets)
        return _make(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error


def write_private(path: Path, octets: bytes) -> None:
    """Write a file for its owner alone, beside its place first: a crash leaves the old or the new.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)


def _make(path: Path) -> Secret:
    octets = secrets.token_bytes(LENGTH)
    write_private(path, octets)
    return Secret(octets)
