"""Name servers in a resolv.conf."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from tunnelwrap.errors import HostNetError
from tunnelwrap.hostnet import Change
from tunnelwrap.hostnet.dns import ResolvConfChange, dns_change

FORMER = "# theirs\nsearch lan\nnameserver 192.0.2.2\nnameserver 192.0.2.3\noptions rotate\n"
SERVERS = [ip_address("10.20.0.1"), ip_address("fd20::1")]
OURS = """\
# tunnelwrap's while lo is up; then the former content returns
nameserver 10.20.0.1
nameserver fd20::1
search corp.example lan
options rotate
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(FORMER)
    path.chmod(0o640)
    return path


def change_of(path: Path) -> Change:
    return dns_change("lo", SERVERS, ["corp.example"], is_default=True, path=path)


def test_our_servers_take_the_place_of_theirs_and_the_rest_stays(path: Path) -> None:
    change = change_of(path)

    change.apply()
    assert path.read_text() == OURS
    assert path.stat().st_mode & 0o777 == 0o640
    change.undo()

    assert path.read_text() == FORMER
    assert path.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in path.parent.iterdir()] == ["resolv.conf"]


def test_undoing_what_was_never_made(path: Path) -> None:
    change_of(path).undo()

    assert path.read_text() == FORMER


def test_no_more_servers_than_are_read(path: Path) -> None:
    servers = [ip_address(f"10.20.0.{n}") for n in range(1, 6)]

    dns_change("lo", servers, [], is_default=True, path=path).apply()

    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith("nameserver")] == [
        f"nameserver 10.20.0.{n}" for n in (1, 2, 3)
    ]


def test_a_file_that_was_not_there_is_removed(path: Path) -> None:
    path.unlink()
    change = change_of(path)

    change.apply()
    assert path.read_text().count("nameserver") == 2
    change.undo()
    change.undo()

    assert not path.exists()


def test_what_somebody_else_wrote_meanwhile_stays(path: Path) -> None:
    change = change_of(path)
    change.apply()
    path.write_text("nameserver 203.0.113.53\n")

    change.undo()

    assert path.read_text() == "nameserver 203.0.113.53\n"


def test_a_file_that_was_removed_meanwhile_stays_away(path: Path) -> None:
    change = change_of(path)
    change.apply()
    path.unlink()

    change.undo()

    assert not path.exists()


@pytest.mark.parametrize("is_back", [False, True])
@pytest.mark.parametrize("former", [FORMER, "nameserver 192.0.2.2\n"])
def test_a_writing_in_place_that_was_stopped_before_the_cut_is_ours(
    path: Path, former: str, *, is_back: bool
) -> None:
    path.write_text(former)
    change = change_of(path)
    assert isinstance(change, ResolvConfChange)
    new, old = (former, change.content) if is_back else (change.content, former)
    path.write_text(new + old[len(new) :])

    change.undo()

    assert path.read_text() == former


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "etc" / "resolv.conf"
    link.parent.mkdir()
    link.symlink_to("../resolv.conf")
    change = change_of(link)

    change.apply()
    assert path.read_text() == OURS
    change.undo()

    assert link.readlink() == Path("../resolv.conf")
    assert path.read_text() == FORMER


def test_a_file_that_is_not_text_comes_back_as_it_was(path: Path) -> None:
    path.write_bytes(b"# \xff\xfe\nnameserver 192.0.2.2\n")
    change = change_of(path)

    change.apply()
    change.undo()

    assert path.read_bytes() == b"# \xff\xfe\nnameserver 192.0.2.2\n"


def test_what_cannot_be_read_or_written_is_named(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(HostNetError, match=r"folder: Is a directory"):
        change_of(tmp_path / "folder")
    with pytest.raises(HostNetError, match=r"nowhere/resolv.conf: No such file"):
        change_of(tmp_path / "nowhere" / "resolv.conf").apply()
    with pytest.raises(HostNetError, match=r"device tw-none: No such device"):
        dns_change("tw-none", SERVERS, [], is_default=True, path=path)
