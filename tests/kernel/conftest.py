"""These tests run under a kernel that has ESP, and nowhere else."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.kernel.ends import Ends, two_ends, two_hosts
from tests.kernel.iproute import ip
from tests.kit.daemons import Issued
from tests.kit.kernel import IN_GUEST
from tests.kit.netns import Namespace
from tunnelwrap.dataplane.netlink import XfrmSocket

HERE = Path(__file__).parent
COMMAND = "python -m tests.kit.kernel -- pytest tests/kernel"

collect_ignore_glob = [] if IN_GUEST in os.environ else ["*"]


def pytest_configure(config: pytest.Config) -> None:
    asked = (Path(argument.split("::")[0]).resolve() for argument in config.args)
    if IN_GUEST not in os.environ and any(path.is_relative_to(HERE) for path in asked):
        raise pytest.UsageError(f"these tests need a kernel that has ESP: {COMMAND}")


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    """What ``init`` makes, for the daemons of a file."""
    return Issued.by_init(tmp_path_factory.mktemp("issued"))


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Namespace, Namespace]]:
    with two_hosts() as made:
        yield made


@pytest.fixture
async def ends(hosts: tuple[Namespace, Namespace]) -> AsyncIterator[Ends]:
    with two_ends(hosts) as made:
        yield made


@pytest.fixture
def xfrm() -> Iterator[XfrmSocket]:
    """A socket to a kernel without any SA or policy, before and after."""
    with XfrmSocket() as kernel:
        yield kernel
        kernel.flush_sas()
        kernel.flush_policies()


@pytest.fixture(scope="session")
def uplink() -> str:
    """A device that takes packets to 192.0.2.0/24 and, by 192.0.2.2, to 198.51.100.0/24."""
    ip("link add uplink type dummy")
    ip("address add 192.0.2.1/24 dev uplink")
    ip("address add 2001:db8::1/64 dev uplink nodad")
    ip("link set uplink up")
    ip("neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev uplink")
    ip("route add 198.51.100.0/24 via 192.0.2.2")
    return "uplink"
