"""New files in their places: all of them or none, and none over one that exists."""

import stat
from pathlib import Path

import pytest

from tunnelwrap.config.placement import PRIVATE, all_or_nothing, check_absent, write
from tunnelwrap.errors import ConfigError


def make_two(aside: Path) -> None:
    write(aside / "a", "first", PRIVATE)
    (aside / "below").mkdir()
    write(aside / "below" / "b", "second", PRIVATE)


def names_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_all(tmp_path: Path) -> None:
    with all_or_nothing(tmp_path / "x" / "y") as aside:
        make_two(aside)

    assert names_in(tmp_path) == {"x", "x/y", "x/y/a", "x/y/below", "x/y/below/b"}
    assert (tmp_path / "x" / "y" / "below" / "b").read_text() == "second"


def make_two_and_fail(directory: Path) -> None:
    with all_or_nothing(directory) as aside:
        make_two(aside)
        raise RuntimeError


def make_two_and_be_forestalled(directory: Path) -> None:
    with all_or_nothing(directory) as aside:
        make_two(aside)
        (directory / "below").mkdir()
        (directory / "below" / "b").write_text("mine")


def test_nothing_if_the_making_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        make_two_and_fail(tmp_path / "x" / "y")

    assert names_in(tmp_path) == set()


def test_nothing_if_a_place_is_taken_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="x/below: File exists"):
        make_two_and_be_forestalled(tmp_path / "x")

    assert names_in(tmp_path) == {"x", "x/below", "x/below/b"}
    assert (tmp_path / "x" / "below" / "b").read_text() == "mine"


def test_what_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")

    with pytest.raises(RuntimeError):
        make_two_and_fail(tmp_path)

    assert names_in(tmp_path) == {"old"}


def test_a_private_file_is_so_from_the_beginning(tmp_path: Path) -> None:
    write(tmp_path / "a", "text", PRIVATE)

    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write(tmp_path / "a", "other", PRIVATE)
    assert (tmp_path / "a").read_text() == "text"


def test_absence(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    check_absent([tmp_path / "a"])

    with pytest.raises(ConfigError) as caught:
        check_absent([tmp_path, tmp_path / "a", tmp_path / "dangling"])

    assert caught.value.problems == [
        f"{path}: exists already, and is not overwritten"
        for path in (tmp_path, tmp_path / "dangling")
    ]
