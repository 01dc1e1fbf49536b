"""What a web site has: a directory of files, or one page of our own."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final, Protocol

from tunnelwrap.demux.media import type_of
from tunnelwrap.errors import ConfigError

INDEX: Final = "index.html"

_CHUNK: Final = 1 << 16
_WELL_KNOWN: Final = ".well-known"  # RFC 8615
_WELCOME: Final = (
    b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head>\n"
    b"<body><h1>Welcome</h1></body></html>\n"
)


@dataclass(frozen=True, slots=True)
class Page:
    """Something that can be had.

    Args:
        media_type: of its octets.
        size: how many there are.
        modified: when they were last changed, in seconds of Unix time.
        descriptor: of an open file with them, or
        octets: they themselves.
    """

    media_type: str
    size: int
    modified: int
    descriptor: int | None = None
    octets: bytes = b""

    def read(self, begin: int, end: int) -> Iterator[bytes]:
        """Some of the octets, in pieces; a file that got shorter ends early."""
        while begin < end:
            length = min(end - begin, _CHUNK)
            if self.descriptor is None:
                piece = self.octets[begin : begin + length]
            else:
                piece = os.pread(self.descriptor, length, begin)
            if not piece:
                return
            yield piece
            begin += len(piece)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """It is a directory: with a slash at the end it can be had."""


Found = Page | Elsewhere | HTTPStatus


class Pages(Protocol):
    """The pages of a site."""

    @contextmanager
    def open(self, path: bytes) -> Iterator[Found]:
        """What is at a path, or the status that says why there is nothing."""


class OnePage:
    """A page of our own, and nothing else."""

    @contextmanager
    def open(self, path: bytes) -> Iterator[Found]:
        """The page is at the root."""
        if path not in (b"/", f"/{INDEX}".encode()):
            yield HTTPStatus.NOT_FOUND
            return
        modified = int(Path(__file__).stat().st_mtime)
        yield Page("text/html", len(_WELCOME), modified, octets=_WELCOME)


class Unreachable:
    """A site whose server does not answer."""

    @contextmanager
    def open(self, path: bytes) -> Iterator[Found]:
        """Nothing can be had."""
        del path
        yield HTTPStatus.BAD_GATEWAY


class Files:
    """Files below a directory; none whose name begins with a dot, and no link leads out of it.

    Args:
        root: the directory.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        if not self._root.is_dir():
            raise ConfigError([f"{root}: no directory with the files of the cover site"])

    @property
    def has_index(self) -> bool:
        """Whether there is a page at the root."""
        return (self._root / INDEX).is_file()

    @contextmanager
    def open(self, path: bytes) -> Iterator[Found]:
        """What is at a path; in a directory, its index."""
        name = os.fsdecode(path[1:]) + (INDEX if path.endswith(b"/") else "")
        found = self._opened(name)
        if found is HTTPStatus.NOT_FOUND and path.endswith(b"/") and self._is_folder(path):
            found = HTTPStatus.FORBIDDEN  # what is in it is not told
        try:
            yield found
        finally:
            if isinstance(found, Page) and found.descriptor is not None:
                os.close(found.descriptor)

    def _opened(self, name: str) -> Found:
        try:
            place = (self._root / name).resolve(strict=True)
            if not self._is_shown(name, place):
                return HTTPStatus.NOT_FOUND
            descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except PermissionError:
            return HTTPStatus.FORBIDDEN
        except (OSError, ValueError, RuntimeError):  # a loop of links is the last one
            return HTTPStatus.NOT_FOUND
        found = _described(name, descriptor)
        if not isinstance(found, Page):
            os.close(descriptor)
        return found

    def _is_shown(self, name: str, place: Path) -> bool:
        if not place.is_relative_to(self._root):
            return False
        parts = [*name.split("/"), *place.relative_to(self._root).parts]
        return not any(each.startswith(".") and each != _WELL_KNOWN for each in parts)

    def _is_folder(self, path: bytes) -> bool:
        name = os.fsdecode(path[1:-1])
        with suppress(OSError, ValueError, RuntimeError):
            place = (self._root / name).resolve(strict=True)
            return place.is_dir() and self._is_shown(name, place)
        return False


def _described(name: str, descriptor: int) -> Found:
    state = os.fstat(descriptor)
    if stat.S_ISDIR(state.st_mode):
        return Elsewhere()
    if not stat.S_ISREG(state.st_mode):
        return HTTPStatus.NOT_FOUND
    return Page(type_of(name), state.st_size, int(state.st_mtime), descriptor)
