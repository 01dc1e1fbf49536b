"""A directory as a web site: what is shown of it, and what is not."""

import asyncio
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import pytest

from tunnelwrap.demux.pages import Elsewhere, Files, Page
from tunnelwrap.errors import ConfigError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A site, and something beside it."""
    root = tmp_path / "www"
    for name in ("index.html", "sub/a.txt", ".git/config", ".well-known/a", "sub/.hidden"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "secret").write_text("secret")
    (root / "out").symlink_to("../secret")
    (root / "over").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "inside").symlink_to("sub/a.txt")
    (root / "to-git").symlink_to(".git/config")
    os.mkfifo(root / "fifo")
    return root


def at(root: Path, path: str) -> str | HTTPStatus | Elsewhere:
    """The text of the page, or what there is instead."""
    with Files(root).open(path.encode()) as found:
        return asyncio.run(found.read(0, found.size)).decode() if isinstance(found, Page) else found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/", "index.html"),
        ("/sub/a.txt", "sub/a.txt"),
        ("/inside", "sub/a.txt"),
        ("/.well-known/a", ".well-known/a"),
    ],
)
def test_what_is_shown(root: Path, path: str, text: str) -> None:
    assert at(root, path) == text


@pytest.mark.parametrize(
    "path",
    [
        *("/none", "/none/", "/out", "/over/secret", "/over/", "/loop", "/fifo"),
        *("/.git/config", "/.git", "/.git/", "/sub/.hidden", "/to-git", "/index.html/"),
        *("/../secret", "/" + "a" * 300, "/a\\0b"),
    ],
)
def test_what_is_not(root: Path, path: str) -> None:
    assert at(root, path.replace("\\0", "\0")) is HTTPStatus.NOT_FOUND


def test_directories(root: Path) -> None:
    assert at(root, "/sub") == Elsewhere()
    assert at(root, "/sub/") is HTTPStatus.FORBIDDEN


def test_no_name_is_shown_that_leads_elsewhere_by_the_time_it_is_looked_at(root: Path) -> None:
    """Somebody turns a directory into a link out of the site and back, as fast as can be."""
    (root / "turns").mkdir()
    (root / "turns/secret").write_text("mine")
    (root / "away").symlink_to("..")
    answers: set[object] = set()
    with ThreadPoolExecutor(1) as pool:
        turning = pool.submit(turn, root)
        while not turning.done():
            answers.add(at(root, "/turns/secret"))
    assert answers <= {"mine", HTTPStatus.NOT_FOUND}


def turn(root: Path) -> None:
    for _ in range(1000):
        for old, new in (("turns", "aside"), ("away", "turns"), ("turns", "away")):
            (root / old).rename(root / new)
        (root / "aside").rename(root / "turns")


def test_a_link_to_the_site_can_be_turned_to_another(root: Path, tmp_path: Path) -> None:
    """So new releases are put in place of old ones."""
    (tmp_path / "now").symlink_to("www")
    files = Files(tmp_path / "now")
    (tmp_path / "next").mkdir()
    (tmp_path / "next/index.html").write_text("new")
    (tmp_path / "link").symlink_to("next")
    (tmp_path / "link").rename(tmp_path / "now")
    with files.open(b"/") as found:
        assert isinstance(found, Page)
        assert found.size == len("new")


def test_without_descriptors_it_is_our_fault(root: Path) -> None:
    files = Files(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with files.open(b"/index.html") as found:
            assert found is HTTPStatus.INTERNAL_SERVER_ERROR
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nothing_stays_open(root: Path) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    for path in ("/", "/sub", "/sub/", "/none", "/fifo", "/out", "/over/", "/.git/", "/loop"):
        at(root, path)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


async def test_a_file_that_gets_shorter(root: Path) -> None:
    with Files(root).open(b"/index.html") as found:
        assert isinstance(found, Page)
        os.truncate(root / "index.html", 3)
        assert await found.read(0, found.size) == b"ind"
        assert await found.read(3, found.size) == b""


async def test_a_file_that_is_on_the_disk_only(root: Path) -> None:
    octets = bytes(range(256)) * 64
    with (root / "cold").open("wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with Files(root).open(b"/cold") as found:
        assert isinstance(found, Page)
        assert await found.read(256, found.size) == octets[256:]


def test_a_directory_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory"):
        Files(tmp_path / "none")
