"""The feed by a TUN device, with the device and the ways to it, without the kernel's ESP."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.io.samples import esp, until
from tests.kit.carriers import MemoryTransport, path_of
from tests.kit.netns import Namespace
from tests.kit.tunnel_host import tunnel_host, way
from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.dataplane.tun_feed import MTU, TunFeed, network_of, try_outward
from tunnelwrap.errors import DataPlaneError, HostNetError
from tunnelwrap.hostnet import Change
from tunnelwrap.hostnet.links import feed_changes
from tunnelwrap.path import Carrier

pytestmark = pytest.mark.root

FEED, NETWORK = "tf-test", network_of(64)
NO_UDP = "table inet t { chain c { type filter hook output priority 0; ip protocol udp drop; }; }"
MASQUERADE = (
    "table inet t { chain c {"
    " type nat hook postrouting priority srcnat; snat ip to 192.0.2.77; }; }"
)


@pytest.fixture
def host() -> Iterator[Namespace]:
    with tunnel_host() as host:
        yield host


@pytest.fixture
def tun(host: Namespace) -> Iterator[Tun]:
    with closing(Tun.open(FEED, has_header=False)) as tun:
        yield tun


@pytest.fixture
def changes(tun: Tun) -> list[Change]:
    made = feed_changes(tun.name, MTU, NETWORK)
    for change in made:
        change.apply()
    return made


def test_its_addresses_lead_there_whatever_rules_there_are(
    host: Namespace, tun: Tun, changes: list[Change]
) -> None:
    """As a tunnel of somebody else makes them."""
    host.ip("route", "add", "default", "dev", "eth0", "table", "77")
    host.ip("rule", "add", "priority", "1", "table", "77")
    assert way(host, "0.64.0.2").startswith(f"{FEED} ")
    assert way(host, "0.64.255.254").startswith(f"{FEED} ")
    assert host.ip("route", "get", "0.64.0.1", "from", "0.64.9.9", "iif", FEED).startswith("local")
    assert "inet " not in host.ip("address", "show", FEED)
    assert f"mtu {MTU}" in host.ip("link", "show", FEED)

    for change in reversed(changes):
        change.undo()
    assert "0.64." not in host.ip("route", "show", "table", "local")


def test_a_second_instance_does_not_get_the_same(
    host: Namespace, tun: Tun, changes: list[Change]
) -> None:
    with closing(Tun.open("tf-other", has_header=False)):
        link, *routes = feed_changes("tf-other", MTU, NETWORK)
        link.apply()
        for route in routes:
            with pytest.raises(HostNetError, match="the same already"):
                route.apply()
        for change in feed_changes("tf-other", MTU, network_of(65)):
            change.apply()
        assert way(host, "0.65.0.2").startswith("tf-other ")
    assert way(host, "0.64.0.2").startswith(f"{FEED} ")


def test_what_goes_to_an_alias_comes_out(tun: Tun, changes: list[Change]) -> None:
    try_outward(tun, NETWORK)


@pytest.mark.parametrize(
    ("rules", "told"),
    [(NO_UDP, "not permitted"), (MASQUERADE, "does not come out")],
    ids=["drops", "changes the source"],
)
def test_a_firewall_in_the_way_is_noticed(
    host: Namespace, tun: Tun, changes: list[Change], rules: str, told: str
) -> None:
    host.nft(rules)
    with pytest.raises(DataPlaneError, match=told):
        try_outward(tun, NETWORK)


def test_without_its_routes_it_is_no_feed(tun: Tun) -> None:
    with pytest.raises(DataPlaneError, match=FEED):
        try_outward(tun, NETWORK)


async def test_a_device_that_somebody_deletes_is_told_once(
    host: Namespace, tun: Tun, changes: list[Change], caplog: pytest.LogCaptureFixture
) -> None:
    with closing(TunFeed(asyncio.get_running_loop(), tun, NETWORK)) as feed:
        port = feed.open(MemoryTransport(path_of(Carrier.TLS)))
        host.ip("link", "delete", FEED)
        await until(lambda: caplog.messages)
        await asyncio.sleep(0.01)
        (told,) = caplog.messages
        assert re.match(rf"{FEED}: .*; nothing goes to streams any more", told)
        port.feed([memoryview(esp(0))])
        assert feed.drops == {"tun-in": 1}
