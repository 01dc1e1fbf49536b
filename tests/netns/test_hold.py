"""A hold on a host's network: what it may do without, it tries; at the end all is as it was."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.netns import Namespace
from tunnelwrap.daemon.host import Hold

pytestmark = pytest.mark.root

TTL = "net/ipv4/ip_default_ttl"
LOST = "packets live shorter"


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace("host") as host, host.entered():
        yield host


@pytest.fixture
def hold(host: Namespace, tmp_path: Path) -> Iterator[Hold]:
    hold = Hold("client", tmp_path / "state")
    yield hold
    hold.undo()


def ttl(host: Namespace) -> str:
    return host.sysctl("net.ipv4.ip_default_ttl")


def test_a_parameter_is_set_until_the_end(host: Namespace, hold: Hold) -> None:
    before = ttl(host)

    hold.set_where_possible(TTL, "99", LOST)

    assert ttl(host) == "99" != before
    hold.undo()
    assert ttl(host) == before


@pytest.mark.parametrize(("key", "value"), [(TTL, "0"), ("net/ipv4/nothing", "1")])
def test_what_cannot_be_set_is_said_once_and_done_without(
    host: Namespace, hold: Hold, caplog: pytest.LogCaptureFixture, key: str, value: str
) -> None:
    hold.set_where_possible("net/ipv4/ip_forward", "1", LOST)
    for _ in range(2):
        hold.set_where_possible(key, value, LOST)

    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert told.getMessage().startswith(f"{LOST}: sysctl {key}")
    assert host.sysctl("net.ipv4.ip_forward") == "1", "what was set before stays"
