"""Which feed a gateway's kernel gets for what comes by streams, and what is left of it."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kit.netns import Namespace
from tests.kit.policies import client
from tunnelwrap.daemon.feeds import open_feed
from tunnelwrap.daemon.host import Host
from tunnelwrap.daemon.planes import Chosen, Listeners, choose_plane
from tunnelwrap.errors import DataPlaneError

pytestmark = pytest.mark.kernel

LOOPBACK, EVERYWHERE = "net.ipv4.conf.lo.disable_policy", "net.ipv4.conf.all.disable_policy"
NOBODY = Listeners(lambda _spi, _is_hard: None, None, lambda _spi, _peer: None)
BRIDGE, TUN, USERSPACE = "kernel by the loopback device", "kernel by a TUN device", "userspace"

Choose = Callable[..., Chosen]


@pytest.fixture
def space() -> Iterator[Namespace]:
    """The host; this process is on it."""
    with Namespace("gateway") as space, space.entered():
        yield space


@pytest.fixture
def choose(space: Namespace, tmp_path: Path) -> Iterator[Choose]:
    """Does what a gateway does at its start."""
    with ExitStack() as stack:

        def chosen(wanted: str, name: str = "gateway") -> Chosen:
            host = Host(name, tmp_path / name)
            made = choose_plane(
                *(wanted, host, 1400, NOBODY, [client()], name), bridges_streams=True
            )
            stack.callback(made.plane.close)
            stack.callback(host.close)
            return open_feed(made, host)

        yield chosen


@contextmanager
def read_only(path: str) -> Iterator[None]:
    """As a container has it."""
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def have_policies(space: Namespace) -> None:
    """Others have."""
    ends = ("src", "198.51.100.1/32", "dst", "198.51.100.2/32")
    space.ip("xfrm", "policy", "add", *ends, "dir", "out", "action", "block")


def traces(space: Namespace) -> str:
    """Devices, what leads to them, what the bridge sets, and SAs."""
    return space.run(
        *("sh", "-c", f"ip -br link; ip route show table local; sysctl {LOOPBACK}; ip xfrm state")
    )


@pytest.mark.parametrize("wanted", ["auto", "kernel"])
async def test_alone_it_is_the_bridge(space: Namespace, choose: Choose, wanted: str) -> None:
    chosen = choose(wanted)
    assert chosen.streams == BRIDGE
    assert str(chosen).endswith("; streams by the loopback device)")
    assert space.sysctl(LOOPBACK) == "0"


async def test_beside_others_policies_it_is_none_or_a_tun_device(
    space: Namespace, choose: Choose, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    have_policies(space)
    exempt = space.sysctl(LOOPBACK)
    assert choose("auto", "one").streams == USERSPACE
    assert choose("kernel", "two").streams == TUN
    assert choose("kernel", "three").streams == TUN
    assert space.sysctl(LOOPBACK) == exempt
    why = "by the loopback device: 1 IPsec policies of others would rule the loopback, too"
    assert caplog.messages.count(f"streams cannot go into the kernel {why}") == 3
    ways = space.ip("route", "show", "table", "local")
    assert "0.64.0.0/16 dev tf-two " in ways
    assert "0.65.0.0/16 dev tf-three " in ways


async def test_where_no_parameter_can_be_set_likewise(choose: Choose) -> None:
    with read_only("/proc/sys"):
        assert choose("auto", "one").streams == USERSPACE
        assert choose("kernel", "two").streams == TUN


async def test_where_no_policy_would_be_asked_it_is_none(space: Namespace, choose: Choose) -> None:
    space.sysctl(EVERYWHERE, 1)
    before = space.sysctl(LOOPBACK)
    assert choose("auto", "one").streams == USERSPACE
    with pytest.raises(DataPlaneError, match=rf"{EVERYWHERE} is not 0.*{EVERYWHERE} is not 0"):
        choose("kernel", "two")
    assert space.sysctl(LOOPBACK) == before


@pytest.mark.parametrize("is_alone", [True, False], ids=["bridge", "tun"])
async def test_the_end_leaves_nothing(space: Namespace, tmp_path: Path, *, is_alone: bool) -> None:
    if not is_alone:
        have_policies(space)
    before = traces(space)
    host = Host("gateway", tmp_path)
    made = choose_plane(
        *("kernel", host, 1400, NOBODY, [client()], "gateway"), bridges_streams=True
    )
    assert open_feed(made, host).streams == (BRIDGE if is_alone else TUN)
    assert traces(space) != before
    host.close()
    made.plane.close()
    assert traces(space) == before
