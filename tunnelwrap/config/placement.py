"""New files in their places: all of them or none, and none over one that exists."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Final

from tunnelwrap.errors import ConfigError

PUBLIC: Final = 0o644
PRIVATE: Final = 0o600
PRIVATE_DIRECTORY: Final = 0o700


def check_absent(paths: Iterable[Path]) -> None:
    """Check that nothing has the places of new files.

    Raises:
        ConfigError: something has; all of it is named.
    """
    taken = [path for path in paths if os.path.lexists(path)]
    if taken:
        raise ConfigError([f"{path}: exists already, and is not overwritten" for path in taken])


def write(path: Path, text: str, mode: int) -> None:
    """Write a new file that has its mode from the beginning."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


@contextmanager
def all_or_nothing(directory: Path) -> Iterator[Path]:
    """A directory to write to; what is in it is put in place at the end, if nothing goes wrong.

    Args:
        directory: where the files will be; made if it does not exist.

    Raises:
        ConfigError: something cannot be written, or its place was taken meanwhile.
    """
    new = [each for each in (directory, *directory.parents) if not each.exists()]
    try:
        for each in reversed(new):
            each.mkdir(PRIVATE_DIRECTORY if each == directory else 0o755)
        aside = Path(mkdtemp(prefix=".new-", dir=directory))
        try:
            yield aside
            _put_in_place(aside, directory)
        finally:
            rmtree(aside)
    except OSError as error:
        raise ConfigError([f"{error.filename2 or error.filename}: {error.strerror}"]) from error
    finally:
        for each in new:
            with suppress(OSError):  # there is something in it, or it could not be made
                each.rmdir()


def _put_in_place(aside: Path, directory: Path) -> None:
    """Link every file to its place, where none may be; undo that if one cannot be linked."""
    with ExitStack() as undo:
        for path in sorted(aside.rglob("*")):
            target = directory / path.relative_to(aside)
            if path.is_dir():
                target.mkdir(PRIVATE_DIRECTORY)
                undo.callback(target.rmdir)
            else:
                os.link(path, target)
                undo.callback(target.unlink)
        undo.pop_all()
