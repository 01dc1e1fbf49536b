"""Two hosts and a daemon on each, for every scenario."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.lan import Lan, two_hosts
from tests.interop.pair import Pair
from tests.interop.settings import Role
from tests.kit.trixie import Trixie, trixie


@pytest.fixture(scope="session")
def root() -> Trixie:
    """Debian 13 with its newer daemons; the first run on a machine makes it."""
    return trixie()


@pytest.fixture
def lan() -> Iterator[Lan]:
    with two_hosts(f"tw-{secrets.token_hex(2)}") as hosts:
        yield hosts


@pytest.fixture(params=list(Role), ids=["tunnelwrap-initiates", "tunnelwrap-responds"])
def pair(request: pytest.FixtureRequest, lan: Lan, tmp_path: Path) -> Iterator[Pair]:
    """A tunnelwrap and a strongSwan, not started; in both roles, one after the other."""
    ends = Pair(lan, tmp_path, request.param)
    yield ends
    ends.stop()
