"""Changes of a host's network in a real namespace: made, undone, and undone after kill -9."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from tests.kit.netns import Namespace
from tests.kit.tunnel_host import (
    ADDRESSES,
    ALL_ROLES,
    GATEWAYS,
    RESOLV_CONF,
    TUN,
    Dump,
    Role,
    full_client,
    split_client,
    tunnel_host,
    way,
)
from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.errors import HostNetError
from tunnelwrap.hostnet import Change
from tunnelwrap.hostnet.journal import Journal, Recovery, recover
from tunnelwrap.hostnet.netlink import MAIN_TABLE, AddressChange, Device, RouteChange, RuleChange

pytestmark = pytest.mark.root


@pytest.fixture
def host() -> Iterator[Namespace]:
    with tunnel_host() as host:
        yield host


@pytest.fixture
def tun(host: Namespace) -> Iterator[Tun]:
    with closing(Tun.open(TUN)) as tun:
        yield tun


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal"


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(RESOLV_CONF)
    return path


# --- made and undone ------------------------------------------------------------------------


@pytest.mark.parametrize("role", ALL_ROLES)
def test_undoing_restores_everything(
    host: Namespace, tun: Tun, journal: Path, resolv_conf: Path, role: Role
) -> None:
    before = Dump.of(host)
    changes = role(resolv_conf)
    made = Journal(journal)

    made.apply_all(changes)
    during = Dump.of(host)
    assert made.undo_all() == []

    assert during != before
    assert Dump.of(host) == before
    assert resolv_conf.read_text() == RESOLV_CONF
    assert not journal.exists()


def settled(host: Namespace) -> Dump:
    """The dump after what the kernel does later: an IPv6 address gets its route by and by."""
    dump = Dump.of(host)
    while (later := Dump.of(host)) != dump:
        dump = later
    return dump


@pytest.mark.parametrize("role", ALL_ROLES)
def test_each_change_alone_is_undone_twice_without_harm(
    host: Namespace, tun: Tun, resolv_conf: Path, role: Role
) -> None:
    changes = role(resolv_conf)
    dumps = []
    for change in changes:
        dumps.append(settled(host))
        change.apply()

    for change, before in zip(reversed(changes), reversed(dumps), strict=True):
        change.undo()
        assert Dump.of(host) == before, change
        change.undo()
        assert Dump.of(host) == before, change


@pytest.mark.parametrize("role", ALL_ROLES)
def test_undoing_when_the_device_is_gone(
    host: Namespace, journal: Path, resolv_conf: Path, role: Role
) -> None:
    before = Dump.of(host)
    made = Journal(journal)
    with closing(Tun.open(TUN)):
        made.apply_all(role(resolv_conf))

    assert made.undo_all() == []

    assert Dump.of(host) == before
    assert resolv_conf.read_text() == RESOLV_CONF


def test_a_younger_device_of_the_same_name_is_left_alone(
    host: Namespace, journal: Path, resolv_conf: Path
) -> None:
    made = Journal(journal)
    with closing(Tun.open(TUN)):
        made.apply_all(split_client(resolv_conf))
    with closing(Tun.open(TUN)):
        host.address(TUN, *(str(address) for address in ADDRESSES))
        host.ip("link", "set", TUN, "up")
        host.route("10.66.0.0/24", dev=TUN)
        before = Dump.of(host)

        assert made.undo_all() == []

        assert Dump.of(host) == before


@pytest.mark.parametrize("role", ALL_ROLES)
def test_a_refusal_half_way_leaves_nothing(
    host: Namespace, tun: Tun, journal: Path, resolv_conf: Path, role: Role
) -> None:
    impossible = RouteChange(ip_network("10.98.0.0/16"), Device("tw9", 999_999), MAIN_TABLE, None)
    before = Dump.of(host)

    for position in range(len(role(resolv_conf)) + 1):
        changes = role(resolv_conf)
        changes.insert(position, impossible)
        with pytest.raises(HostNetError, match=r"route 10\.98\.0\.0/16 by tw9: No such device"):
            Journal(journal).apply_all(changes)
        assert Dump.of(host) == before, position

    assert resolv_conf.read_text() == RESOLV_CONF
    assert not journal.exists()


def test_what_was_there_already_is_refused_and_stays(
    host: Namespace, tun: Tun, journal: Path
) -> None:
    device = Device.find("eth0")
    there: Sequence[Change] = (
        AddressChange(device, ip_interface("192.0.2.1/24")),
        RouteChange(ip_network("192.0.2.0/24"), device, MAIN_TABLE, None),
        RuleChange(4, 32766, MAIN_TABLE),
    )
    host.ip("rule", "add", "priority", "777", "lookup", "main", "protocol", "116")
    before = Dump.of(host)

    for change in (*there, RuleChange(4, 777, MAIN_TABLE)):
        if change == there[2]:
            continue  # the kernel's own has another protocol number: not the same
        with pytest.raises(HostNetError, match="this host has the same already"):
            Journal(journal).apply_all([change])
        assert Dump.of(host) == before, change
    for change in there[1:]:
        change.undo()  # a route and a rule, but not ours
        assert Dump.of(host) == before, change


# --- kill -9 --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deadly:
    """A change during which the process dies."""

    change: Change
    is_made: bool

    def apply(self) -> None:
        if self.is_made:
            self.change.apply()
        os.kill(os.getpid(), signal.SIGKILL)

    def undo(self) -> None:
        raise AssertionError

    def to_json(self) -> dict[str, object]:
        return self.change.to_json()


def die_at(position: int, role: Role, journal: Path, resolv_conf: Path, *, is_made: bool) -> bool:
    """Whether a process that makes changes was killed at one of them."""
    child = os.fork()
    if child == 0:
        try:
            Tun.open(TUN)
            changes = role(resolv_conf)
            if position < len(changes):
                changes[position] = Deadly(changes[position], is_made)
                Journal(journal).apply_all(changes)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("is_made", [False, True])
@pytest.mark.parametrize("role", ALL_ROLES)
def test_kill_at_any_change_is_undone_at_the_next_start(
    host: Namespace, journal: Path, resolv_conf: Path, role: Role, *, is_made: bool
) -> None:
    before = Dump.of(host)
    position = 0

    while die_at(position, role, journal, resolv_conf, is_made=is_made):
        recovery = recover(journal)
        assert recovery.problems == ()
        assert len(recovery.undone) == position + 1
        assert settled(host) == before, recovery.undone[0]
        assert resolv_conf.read_text() == RESOLV_CONF
        assert not journal.exists()
        position += 1

    assert position > 4
    assert recover(journal) == Recovery()


def test_the_host_has_its_network_again_before_any_recovery(
    host: Namespace, journal: Path, resolv_conf: Path
) -> None:
    assert die_at(-1, full_client, journal, resolv_conf, is_made=True)

    assert way(host, "203.0.113.9") == "eth0 192.0.2.2 192.0.2.1"
    assert way(host, GATEWAYS[1]) == "eth0 2001:db8::2 2001:db8::1"


def test_a_running_instance_is_not_touched(
    host: Namespace, tun: Tun, journal: Path, resolv_conf: Path
) -> None:
    made = Journal(journal)
    made.apply_all(full_client(resolv_conf))
    during = Dump.of(host)
    entries = journal.read_text()

    with pytest.raises(HostNetError, match=f"process {os.getpid()} runs and owns these changes"):
        recover(journal)
    with pytest.raises(HostNetError, match="has changes of another run"):
        Journal(journal).apply_all(full_client(resolv_conf))

    assert Dump.of(host) == during
    assert journal.read_text() == entries
    assert made.undo_all() == []


# --- the caller -----------------------------------------------------------------------------


async def test_changes_can_be_made_inside_an_event_loop(
    host: Namespace, tun: Tun, journal: Path, resolv_conf: Path
) -> None:
    before = Dump.of(host)
    made = Journal(journal)

    made.apply_all(full_client(resolv_conf))
    assert way(host, "203.0.113.9") == f"{TUN} - 10.20.0.5"
    assert made.undo_all() == []

    assert Dump.of(host) == before


@pytest.mark.parametrize("role", ALL_ROLES)
def test_without_the_right_nothing_is_changed_and_the_right_is_named(
    host: Namespace, tun: Tun, journal: Path, resolv_conf: Path, role: Role
) -> None:
    before = Dump.of(host)
    changes = [change for change in role(resolv_conf) if "resolv.conf" not in str(change)]

    with nobody():
        for change in changes:
            with pytest.raises(HostNetError, match=r"CAP_NET_ADMIN|sysctl .*: Permission denied"):
                change.apply()

    assert Dump.of(host) == before


@contextmanager
def nobody() -> Iterator[None]:
    """Let this process go without its capabilities for a while."""
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
