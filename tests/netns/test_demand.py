"""Clients whose Child SA is made on demand, through this process's data plane, as they run.

The hosts are those of ``tests.kit.daemons``.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.daemons import (
    QUICK,
    SITE,
    SITE_6,
    Daemon,
    Hosts,
    Issued,
    Toml,
    hosts,
    merged,
    run_tunnelwrap,
    wait_until,
)

pytestmark = pytest.mark.root

USERSPACE: Toml = {"data_plane": "userspace"}
SITE_ONLY = ["10.66.0.0/24", "fd66::/64"]


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return Issued.by_init(tmp_path_factory.mktemp("issued"))


@pytest.fixture
def net(issued: Issued, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        yield made


def on_demand(idle_s: float = 0, **more: object) -> Toml:
    """A client that has no Child SA while there is nothing for the site.

    It asks for nothing more: what its host says to all the world would count as well.
    """
    child = {"start": "on-demand", "idle_s": idle_s, "peer_ts": SITE_ONLY}
    return {"client": USERSPACE, "connection": {"child": child, **more}}


def gateway(**more: object) -> Toml:
    return merged({"gateway": USERSPACE}, more)


def children(daemon: Daemon) -> list[object]:
    return [child["spi_in"] for sa in daemon.sas for child in sa["child_sas"]]


def waits(daemon: Daemon) -> bool:
    return [sa["waits_for_traffic"] for sa in daemon.sas] == [True]


def pings(net: Hosts, target: str = SITE, count: int = 1) -> None:
    """See that each is answered, from the first on."""
    net.client.run("ping", "-n", "-q", f"-c{count}", "-i0.1", "-W5", target)


@pytest.mark.parametrize("carrier", ["udp", "tls"])
def test_the_first_packet_makes_the_child_sa_and_is_answered(net: Hosts, carrier: str) -> None:
    server = net.serve(gateway())
    client = net.connect(on_demand(), "--carrier", carrier)
    assert waits(client)
    assert children(client) == children(server) == []
    assert client.named("established")[0]["esp_suite"] is None
    shown = run_tunnelwrap(net.client, "status", client.file).stdout
    assert "waiting for traffic" in shown

    pings(net)
    assert len(children(client)) == len(children(server)) == 1
    assert not waits(client)
    pings(net, SITE_6)
    assert len(children(client)) == 1


def test_idle_it_ends_and_the_next_packet_brings_it_back(net: Hosts) -> None:
    server = net.serve(gateway())
    client = net.connect(on_demand(1.0), "--carrier", "udp")
    pings(net)
    first = children(client)
    assert len(first) == 1

    wait_until("the end of the Child SA", lambda: not children(client))
    assert waits(client)
    assert children(server) == []
    pings(net, count=3)

    assert len(children(client)) == 1
    assert children(client) != first
    assert len(client.named("established")) == 1
    assert "it has nothing to carry" in client.log


def test_a_gateway_ends_what_is_idle_as_well(net: Hosts) -> None:
    idle: Toml = {"clients": {"child": {"idle_s": 1.0}}}
    server = net.serve(gateway(connections=idle))
    client = net.connect(on_demand(), "--carrier", "udp")
    pings(net)

    wait_until("the end of the Child SA", lambda: not children(server))
    wait_until("the same at the client", lambda: waits(client))

    pings(net)


def test_a_gateway_that_knows_no_other_beginning_makes_it_at_once(net: Hosts) -> None:
    net.serve(gateway(connections={"clients": {"childless": "never"}}))
    client = net.connect(on_demand(1.0), "--carrier", "udp")
    assert client.named("established")[0]["esp_suite"] is not None

    wait_until("the end of the Child SA", lambda: waits(client))

    pings(net)


def test_what_was_agreed_on_is_what_the_host_sends_into_the_tunnel(net: Hosts) -> None:
    net.serve(gateway(connections={"clients": {"child": {"local_ts": ["10.66.0.0/24"]}}}))
    client = net.connect(on_demand(), "--carrier", "udp")
    assert "tw-client" in net.client.run("ip", "route", "get", SITE_6)

    pings(net)

    wait_until("its route", lambda: "fd66::/64" not in net.client.run("ip", "-6", "route"))
    pings(net)
    assert len(children(client)) == 1


def test_a_packet_that_comes_while_the_gateway_is_away_is_served_when_it_is_back(
    net: Hosts,
) -> None:
    server = net.serve(gateway())
    client = net.connect(on_demand(**QUICK), "--carrier", "udp")
    server.kill()
    client.tells("lost")
    asked = net.client.popen("ping", "-n", "-q", "-c40", "-i0.2", SITE)

    net.serve(gateway())
    client.tells("established", 2)

    wait_until("a Child SA", lambda: len(children(client)) == 1)
    asked.kill()
    asked.wait()
    pings(net)


def test_authenticated_again_it_still_waits_or_goes_on(net: Hosts) -> None:
    server = net.serve(gateway(connections={"clients": {"reauth_s": 2.0}}))
    client = net.connect(on_demand(), "--carrier", "udp")
    client.says("authenticated again")
    wait_until("the end of the old one", lambda: len(client.sas) == 1)
    assert waits(client)

    pings(net)
    client.forget_log()
    client.says("authenticated again")

    pings(net, count=3)
    wait_until("the end of the old one", lambda: len(children(client)) == 1)
    assert children(server)
