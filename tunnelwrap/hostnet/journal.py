"""The journal: what we are about to change on the host is on the disk before it is changed.

One file for each running instance, a JSON object a line: first its owner, then each change, and
after a change that the host refused, a line that says so. Every line is on the disk (fsync) before
the work goes on; a line that was torn when the machine stopped stands for a change never made.
Owns: the file, from the first change until all is undone.
"""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Self

from tunnelwrap.errors import HostNetError
from tunnelwrap.hostnet import Change
from tunnelwrap.hostnet.dns import ResolvConfChange, ResolvedChange
from tunnelwrap.hostnet.firewall import ForwardChange, NatChange, UntrackedChange
from tunnelwrap.hostnet.netlink import (
    AddressChange,
    InterfaceChange,
    LinkChange,
    RouteChange,
    RuleChange,
)
from tunnelwrap.hostnet.sysctl import SysctlChange
from tunnelwrap.hostnet.values import from_json

logger = logging.getLogger(__name__)

Kinds = Mapping[str, type[Change]]

KINDS: Final[Kinds] = {
    kind.__name__: kind
    for kind in (
        *(AddressChange, InterfaceChange, LinkChange, RouteChange, RuleChange, SysctlChange),
        *(ResolvedChange, ResolvConfChange, NatChange, ForwardChange, UntrackedChange),
    )
}
"""All changes that a journal may hold."""

_REFUSED: Final = {"refused": True}
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, told from every other that has had or will have its number."""

    pid: int
    started: int  # clock ticks after boot
    boot: str

    @classmethod
    def current(cls) -> Self:
        """This process."""
        return cls(os.getpid(), _started(os.getpid()) or 0, _BOOT_ID.read_text().strip())

    def is_running(self) -> bool:
        """Whether this very process still runs."""
        is_this_boot = self.boot == _BOOT_ID.read_text().strip()
        return is_this_boot and _started(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found of a former run: the changes undone, and what could not be."""

    undone: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class Journal:
    """The changes of this process, youngest last.

    Args:
        path: the file; its folder is made when it is needed.
    """

    __slots__ = ("_file", "_made", "_path")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._made: list[Change] = []

    def apply(self, change: Change) -> None:
        """Write a change down, then make it.

        Raises:
            HostNetError: the host refuses it, or the journal cannot be written; nothing of this
                change is left behind.
        """
        if self._file is None:
            self._file = _create(self._path)
        _append(self._file, {"change": change.to_json()})
        try:
            change.apply()
        except HostNetError:
            _append(self._file, _REFUSED)
            raise
        self._made.append(change)

    def apply_all(self, changes: Iterable[Change]) -> None:
        """Make changes in order; if one is refused, undo everything in this journal.

        Raises:
            HostNetError: the refusal.
        """
        try:
            for change in changes:
                self.apply(change)
        except HostNetError:
            for problem in self.undo_all():
                logger.warning("not undone: %s", problem)
            raise

    def undo_all(self) -> list[str]:
        """Undo everything, youngest first, and remove the file.

        Returns:
            What could not be undone; it stays in the file for ``recover``.
        """
        if self._file is None:
            return []
        left, problems = _undo(self._made)
        self._file.close()
        self._file, self._made = None, []
        try:
            _settle(self._path, left)
        except OSError as error:
            problems.append(f"{self._path}: {error.strerror}")
        return problems


def recover(
    path: Path, is_alive: Callable[[Owner], bool] = Owner.is_running, kinds: Kinds = KINDS
) -> Recovery:
    """Undo what a killed run left; to be called at start, before the first change.

    Raises:
        HostNetError: its owner is running, or somebody else is recovering it; nothing is touched.
    """
    try:
        with path.open("rb") as file:
            return _recover(path, file, is_alive, kinds)
    except FileNotFoundError:
        return Recovery()
    except OSError as error:
        raise HostNetError(f"{path}: {error.strerror}") from error


@dataclass(slots=True)
class _Content:
    owner: Owner | None = None
    changes: list[Change] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _recover(
    path: Path, file: BinaryIO, is_alive: Callable[[Owner], bool], kinds: Kinds
) -> Recovery:
    _lock(path, file)
    if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
        return Recovery()  # somebody else was faster
    content = _parse(file, kinds)
    if content.owner is not None and is_alive(content.owner):
        raise HostNetError(f"{path}: process {content.owner.pid} runs and owns these changes")
    left, problems = _undo(content.changes)
    _settle(path, left)
    undone = tuple(str(change) for change in reversed(content.changes) if change not in left)
    return Recovery(undone, (*content.problems, *problems))


def _lock(path: Path, file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HostNetError(f"{path}: another process is recovering it") from error


def _undo(changes: Sequence[Change]) -> tuple[list[Change], list[str]]:
    """Undo, youngest first; give back what could not be, oldest first, and why."""
    left: list[Change] = []
    problems: list[str] = []
    for change in reversed(changes):
        try:
            change.undo()
        except HostNetError as error:
            left.insert(0, change)
            problems.append(str(error))
    return left, problems


def _settle(path: Path, left: Sequence[Change]) -> None:
    """Remove the file, or leave in it what is still to be undone, with no owner."""
    if not left:
        path.unlink(missing_ok=True)
        return
    draft = _draft(path)
    with _open_new(draft) as file:
        for change in left:
            _append(file, {"change": change.to_json()})
    draft.replace(path)


def _create(path: Path) -> BinaryIO:
    """Make the file appear with its owner in it: a reader never sees it without."""
    draft = _draft(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        file = _open_new(draft)
    except OSError as error:
        raise HostNetError(f"{path}: {error.strerror}") from error
    try:
        _append(file, {"owner": asdict(Owner.current())})
        _publish(draft, path)
    except HostNetError:
        file.close()
        raise
    finally:
        draft.unlink()
    return file


def _publish(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
        _sync_folder(path.parent)
    except FileExistsError as error:
        why = "has changes of another run (of one that runs, or not yet undone)"
        raise HostNetError(f"{path}: {why}") from error
    except OSError as error:
        raise HostNetError(f"{path}: {error.strerror}") from error


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _open_new(path: Path) -> BinaryIO:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return os.fdopen(fd, "wb", buffering=0)


def _append(file: BinaryIO, line: Mapping[str, object]) -> None:
    try:
        file.write(json.dumps(line).encode() + b"\n")
        os.fsync(file.fileno())
    except OSError as error:
        raise HostNetError(f"journal: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _parse(file: BinaryIO, kinds: Kinds) -> _Content:
    content = _Content()
    lines = [_json(text) for text in file if text.endswith(b"\n")]  # a torn one was never obeyed
    for number, line in enumerate(lines, 1):
        is_refused = lines[number : number + 1] == [_REFUSED]
        if line == _REFUSED or is_refused:
            continue
        try:
            _take_line(content, line, kinds)
        except ValueError as error:
            content.problems.append(f"line {number}: {error}")
    return content


def _json(text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _take_line(content: _Content, line: object, kinds: Kinds) -> None:
    match line:
        case {"owner": dict(fields)}:
            content.owner = from_json(Owner, fields)
        case {"change": dict(fields)}:
            kind = str(fields.pop("kind", None))
            if kind not in kinds:
                raise ValueError(f"unknown kind of change {kind}")
            content.changes.append(from_json(kinds[kind], fields))
        case _:
            raise ValueError("not a line of a journal")


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks after boot; None if it is gone or dead already."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *others = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(others[18])
