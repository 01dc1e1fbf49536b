"""A secret that outlives its process."""

from pathlib import Path

import pytest

from tunnelwrap.errors import StoreError
from tunnelwrap.store.secret_file import lasting_secret


@pytest.mark.rfc("6290", "9.1")
def test_it_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "secret"
    first = lasting_secret(path)
    assert lasting_secret(path) == first
    assert len(first.reveal()) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["secret"]


def test_each_file_has_its_own(tmp_path: Path) -> None:
    assert lasting_secret(tmp_path / "one") != lasting_secret(tmp_path / "other")


def test_what_is_no_secret_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"cut")
    assert len(lasting_secret(path).reveal()) == 32


def test_a_file_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="secret: Is a directory"):
        lasting_secret(tmp_path.joinpath("secret").mkdir() or tmp_path / "secret")
