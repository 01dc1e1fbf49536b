"""The journal, with changes of a world that is a folder: one file for each change."""

import fcntl
import json
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunnelwrap.errors import HostNetError
from tunnelwrap.hostnet import Change
from tunnelwrap.hostnet.journal import Journal, Owner, Recovery, recover
from tunnelwrap.hostnet.values import to_json


@dataclass(frozen=True, slots=True)
class Made:
    """A file exists; its age tells when it was made, the log when it went."""

    world: str
    name: str

    def apply(self) -> None:
        if self.name == "refused":
            raise HostNetError("refused as asked")
        (Path(self.world) / self.name).touch()

    def undo(self) -> None:
        if (Path(self.world) / f"{self.name}.stuck").exists():
            raise HostNetError(f"{self.name} is stuck")
        with (Path(self.world) / "log").open("a") as log:
            log.write(f"{self.name} ")
        (Path(self.world) / self.name).unlink(missing_ok=True)

    def to_json(self) -> dict[str, object]:
        return to_json(self)

    def __str__(self) -> str:
        return f"file {self.name}"


@dataclass(frozen=True, slots=True)
class Witness(Made):
    """Notes what the journal says while it is applied."""

    journal: str = ""

    def apply(self) -> None:
        (Path(self.world) / "witness").write_text(Path(self.journal).read_text())


KINDS: dict[str, type[Change]] = {"Made": Made}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    folder = tmp_path / "world"
    folder.mkdir()
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal"


def made(world: Path, *names: str) -> list[Made]:
    return [Made(str(world), name) for name in names]


def log(world: Path) -> list[str]:
    return (world / "log").read_text().split() if (world / "log").exists() else []


def left_by_a_dead_process(path: Path, world: Path, *names: str) -> int:
    """Let a process make changes and end without undoing them; it is a zombie still."""
    child = os.fork()
    if child == 0:
        Journal(path).apply_all(made(world, *names))
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    return child


def test_the_intent_is_written_before_the_change_is_made(path: Path, world: Path) -> None:
    journal = Journal(path)
    journal.apply(Witness(str(world), "a", str(path)))

    entries = [json.loads(line) for line in (world / "witness").read_text().splitlines()]
    assert entries[0]["owner"]["pid"] == os.getpid()
    assert entries[1]["change"]["name"] == "a"
    assert journal.undo_all() == []


def test_undoing_goes_backwards_and_removes_the_file(path: Path, world: Path) -> None:
    journal = Journal(path)
    journal.apply_all(made(world, "a", "b", "c"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    assert journal.undo_all() == []

    assert log(world) == ["c", "b", "a"]
    assert list(path.parent.iterdir()) == []


def test_a_journal_can_be_used_again(path: Path, world: Path) -> None:
    journal = Journal(path)
    for name in "ab":
        journal.apply_all(made(world, name))
        assert journal.undo_all() == []

    assert log(world) == ["a", "b"]
    assert journal.undo_all() == []


def test_a_refused_change_is_not_undone(path: Path, world: Path) -> None:
    journal = Journal(path)
    journal.apply_all(made(world, "a"))
    with pytest.raises(HostNetError, match="refused as asked"):
        journal.apply(made(world, "refused")[0])
    journal.apply_all(made(world, "b"))

    assert journal.undo_all() == []

    assert log(world) == ["b", "a"]


def test_a_refusal_among_many_undoes_all(path: Path, world: Path) -> None:
    with pytest.raises(HostNetError, match="refused as asked"):
        Journal(path).apply_all(made(world, "a", "b", "refused", "c"))

    assert log(world) == ["b", "a"]
    assert not path.exists()


def test_what_a_dead_process_left_is_undone(path: Path, world: Path) -> None:
    child = left_by_a_dead_process(path, world, "a", "b")

    recovery = recover(path, kinds=KINDS)

    assert recovery == Recovery(("file b", "file a"))
    assert log(world) == ["b", "a"]
    assert not path.exists()
    assert recover(path, kinds=KINDS) == Recovery()
    os.waitpid(child, 0)


def test_a_refused_change_of_a_dead_process_is_not_undone(path: Path, world: Path) -> None:
    journal = Journal(path)
    journal.apply_all(made(world, "a"))
    with pytest.raises(HostNetError):
        journal.apply(made(world, "refused")[0])

    assert recover(path, lambda _: False, KINDS) == Recovery(("file a",))
    assert journal.undo_all() == []


def test_a_running_owner_is_not_touched(path: Path, world: Path) -> None:
    journal = Journal(path)
    journal.apply_all(made(world, "a"))

    with pytest.raises(HostNetError, match=f"process {os.getpid()} runs and owns these changes"):
        recover(path, kinds=KINDS)
    with pytest.raises(HostNetError, match="has changes of another run"):
        Journal(path).apply_all(made(world, "b"))

    assert log(world) == []
    assert (world / "a").exists()
    assert not (world / "b").exists()
    assert journal.undo_all() == []


def test_a_process_is_told_from_others_that_had_its_number() -> None:
    owner = Owner.current()

    assert owner.is_running()
    assert not replace(owner, started=owner.started + 1).is_running()
    assert not replace(owner, boot="another").is_running()
    assert not replace(owner, pid=2**22 + 1).is_running()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 200))
def test_a_torn_line_stands_for_a_change_never_made(path: Path, world: Path, cut: int) -> None:
    (world / "log").unlink(missing_ok=True)
    journal = Journal(path)
    journal.apply_all(made(world, "a", "b", "c"))
    whole = path.read_bytes()
    torn = whole[: max(len(whole) - cut, 0)]
    path.write_bytes(torn)

    recovery = recover(path, lambda _: False, KINDS)

    assert recovery.problems == ()
    assert log(world) == ["c", "b", "a"][4 - torn.count(b"\n") :]
    assert not path.exists()
    journal.undo_all()


def test_unknown_kinds_and_nonsense_are_reported_and_the_rest_is_undone(
    path: Path, world: Path
) -> None:
    left_by_a_dead_process(path, world, "a", "b")
    owner, first, second = path.read_text().splitlines()
    lines = [
        *(owner, first, '{"change": {"kind": "Teleport"}}', "{not json", '{"change": 7}'),
        *('{"change": {"kind": "Made", "name": 5}}', second),
        *('{"change": {"kind": "Teleport"}}', '{"refused": true}'),
    ]
    path.write_text("\n".join(lines) + "\n")

    recovery = recover(path, kinds=KINDS)

    assert recovery.undone == ("file b", "file a")
    assert recovery.problems == (
        "line 3: unknown kind of change Teleport",
        "line 4: not a line of a journal",
        "line 5: not a line of a journal",
        "line 6: Made: 2 wrong fields",
    )
    assert not path.exists()


def test_what_cannot_be_undone_is_kept_for_another_try(path: Path, world: Path) -> None:
    left_by_a_dead_process(path, world, "a", "b", "c")
    (world / "b.stuck").touch()

    recovery = recover(path, kinds=KINDS)
    assert recovery == Recovery(("file c", "file a"), ("b is stuck",))
    with pytest.raises(HostNetError, match="not yet undone"):
        Journal(path).apply_all(made(world, "d"))
    (world / "b.stuck").unlink()

    assert recover(path, kinds=KINDS) == Recovery(("file b",))
    assert log(world) == ["c", "a", "b"]
    assert not path.exists()


def test_a_living_process_keeps_what_it_cannot_undo(path: Path, world: Path) -> None:
    (world / "a.stuck").touch()
    journal = Journal(path)
    journal.apply_all(made(world, "a", "b"))

    assert journal.undo_all() == ["a is stuck"]

    (world / "a.stuck").unlink()
    assert recover(path, kinds=KINDS) == Recovery(("file a",))


def test_only_one_process_recovers(path: Path, world: Path) -> None:
    left_by_a_dead_process(path, world, "a")

    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(HostNetError, match="another process is recovering it"):
            recover(path, kinds=KINDS)

    assert log(world) == []
    assert recover(path, kinds=KINDS) == Recovery(("file a",))


def test_a_folder_that_cannot_be_is_named(tmp_path: Path, world: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "journal"

    with pytest.raises(HostNetError, match=r"file/journal: (Not a directory|File exists)"):
        Journal(path).apply_all(made(world, "a"))
    with pytest.raises(HostNetError, match=r"file/journal: Not a directory"):
        recover(path)

    assert not (world / "a").exists()
