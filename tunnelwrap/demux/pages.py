"""What a web site has: a directory of files, or one page of our own."""

import asyncio
import errno
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
_OUT_OF_THEM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
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

    async def read(self, begin: int, end: int) -> bytes:
        """Some of the octets from there on; none of a file that has got too short for it.

        What the kernel has not read yet is waited for in a thread: the tunnels go on meanwhile.
        """
        length = min(end - begin, _CHUNK)
        if self.descriptor is None:
            return self.octets[begin : begin + length]
        buffer = bytearray(length)
        try:
            return bytes(buffer[: os.preadv(self.descriptor, [buffer], begin, os.RWF_NOWAIT)])
        except OSError:  # or its file system never tells
            return await asyncio.to_thread(os.pread, self.descriptor, length, begin)


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
        self._root = root.absolute()  # a link there may lead elsewhere tomorrow
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
            with self._found(name) as (is_shown, handle):
                kind = os.fstat(handle).st_mode
                if not is_shown:
                    return HTTPStatus.NOT_FOUND
                if stat.S_ISDIR(kind):
                    return Elsewhere()
                return _page(name, handle) if stat.S_ISREG(kind) else HTTPStatus.NOT_FOUND
        except PermissionError:
            return HTTPStatus.FORBIDDEN
        except OSError as error:
            is_ours = error.errno in _OUT_OF_THEM
            return HTTPStatus.INTERNAL_SERVER_ERROR if is_ours else HTTPStatus.NOT_FOUND
        except ValueError:
            return HTTPStatus.NOT_FOUND

    def _is_folder(self, path: bytes) -> bool:
        name = os.fsdecode(path[1:-1])
        with suppress(OSError, ValueError), self._found(name) as (is_shown, handle):
            return is_shown and stat.S_ISDIR(os.fstat(handle).st_mode)
        return False

    @contextmanager
    def _found(self, name: str) -> Iterator[tuple[bool, int]]:
        """What a name leads to: whether it may be shown, and a handle."""
        with _held(str(self._root)) as (root, top), _held(name or ".", top) as (place, handle):
            yield _is_shown(name, place, root), handle


@contextmanager
def _held(name: str, within: int | None = None) -> Iterator[tuple[Path, int]]:
    """What a name leads to now, whatever becomes of the name: where it really is, and a handle.

    Nothing is opened by that, so that no device and no FIFO notices.
    """
    handle = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=within)
    try:
        yield Path(f"/proc/self/fd/{handle}").readlink(), handle
    finally:
        os.close(handle)


def _is_shown(name: str, place: Path, root: Path) -> bool:
    if not place.is_relative_to(root):
        return False
    parts = [*name.split("/"), *place.relative_to(root).parts]
    return not any(each.startswith(".") and each != _WELL_KNOWN for each in parts)


def _page(name: str, handle: int) -> Page:
    """A regular file, opened by its handle."""
    descriptor = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    state = os.fstat(descriptor)
    return Page(type_of(name), state.st_size, int(state.st_mtime), descriptor)
