"""Gateway and client with the kernel's data plane, as they run.

A daemon takes half a minute to start there, so that most of these are no part of the gate:

    python -m tests.kit.kernel --timeout 1500 -- pytest tests/kernel/test_daemons.py

The hosts are those of ``tests.kit.daemons``. This kernel has no tables of nftables, so there are no
pools (they need rules for forwarding): each client brings the address that it has inside.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.ends import IF_ID, by_policies
from tests.kernel.iproute import states
from tests.kit import daemons
from tests.kit.daemons import (
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

pytestmark = pytest.mark.kernel

POLICIES = 10 if IF_ID else 6
"""Each way and for each IP version; an interface has guards besides."""
INNER, INNER_6 = "10.20.0.2", "fd20::2"
THEIRS = "src 198.51.100.1/32 dst 198.51.100.2/32 dir out action block"
HOLDS = "net.core.xfrm_larval_drop"  # 0: a packet waits for its SA


def gateway_toml(**child: object) -> Toml:
    """A gateway without pools, and what its Child SAs are to be."""
    allowed = {"peer_ts": [f"{INNER}/32", f"{INNER_6}/128"], **child}
    return {"pools": None, "connections": {"clients": {"pool": None, "child": allowed}}}


def client_toml(**child: object) -> Toml:
    """A client with an address of its own."""
    wanted = {"local_ts": [f"{INNER}/32", f"{INNER_6}/128"], **child}
    return {"connection": {"requests_ipv4": False, "requests_ipv6": False, "child": wanted}}


GATEWAY, CLIENT = gateway_toml(), client_toml()


@pytest.fixture
def net(issued: Issued, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        made.client.address("lo", f"{INNER}/32", f"{INNER_6}/128")
        yield made


def planes_of(daemon: Daemon) -> list[object]:
    return [child["data_plane"] for sa in daemon.sas for child in sa["child_sas"]]


def spis_of(daemon: Daemon) -> set[object]:
    return {child["spi_in"] for sa in daemon.sas for child in sa["child_sas"]}


@pytest.mark.slow
def test_ah_and_compression_between_daemons(net: Hosts) -> None:
    child: Toml = {"ah": ["sha256-x25519"], "ipcomp": True}
    gateway = net.serve(gateway_toml(**child))
    over_udp: Toml = {"client": {"carriers": ["udp"]}}
    client = net.connect({**client_toml(**child), **over_udp})

    net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)

    for daemon in (client, gateway):
        ((told,),) = [sa["child_sas"] for sa in daemon.sas]
        assert (told["protocol"], told["esp_suite"]) == ("AH", "sha256-esn")
        assert (told["data_plane"], told["packets_in"]) == ("kernel", 3)
        assert told["is_compressed"]


@pytest.mark.slow
@pytest.mark.parametrize("wishes", [(True, True), (True, False), (False, True)])
def test_esp_is_bare_where_both_daemons_want_it(net: Hosts, wishes: tuple[bool, bool]) -> None:
    ours, theirs = ({"data_plane": "kernel", "bare_esp": each} for each in wishes)
    gateway = net.serve({**GATEWAY, "gateway": theirs})
    client = net.connect({**CLIENT, "client": ours}, "--carrier", "udp")

    net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)
    net.download(2 << 20).finish()

    ports = {state.ports is None for host in (net.client, net.gateway) for state in states(host)}
    assert ports == {all(wishes)}
    shown = run_tunnelwrap(net.gateway, "status", gateway.file, "--kernel").stdout
    assert ("in UDP" in shown) is not all(wishes)
    assert planes_of(client) == ["kernel"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("kernel", "kernel"),
        *(
            pytest.param(*both, marks=pytest.mark.slow)
            for both in (("kernel", "userspace"), ("userspace", "kernel"), ("userspace",) * 2)
        ),
    ],
)
def test_kernel_and_userspace_understand_each_other_over_udp(
    net: Hosts, ours: str, theirs: str
) -> None:
    gateway = net.serve({**GATEWAY, "gateway": {"data_plane": theirs}})
    client = net.connect({**CLIENT, "client": {"data_plane": ours}}, "--carrier", "udp")

    net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)
    net.download(2 << 20).finish()

    assert planes_of(client) == [ours]
    assert planes_of(gateway) == [theirs]


@pytest.mark.slow
@pytest.mark.parametrize("outer", [daemons.GATEWAY, daemons.GATEWAY_6], ids=["ipv4", "ipv6"])
def test_both_ip_versions_go_through_either(net: Hosts, outer: str) -> None:
    net.serve({**GATEWAY, "gateway": {"data_plane": "kernel"}})
    tells = {"gateway": outer, "data_plane": "kernel"}
    client = net.connect({**CLIENT, "client": tells}, "--carrier", "udp")

    net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)
    net.client.run("ping", "-c3", "-i0.2", "-I", INNER_6, SITE_6)
    net.download(1 << 20).finish()
    net.download(1 << 20, SITE_6).finish()

    assert {state.destination for state in states(net.gateway)} > {outer}
    assert planes_of(client) == ["kernel"]


@pytest.mark.parametrize(
    ("plane", "carrier"),
    [
        ("auto", "tls"),
        *(
            pytest.param(*both, marks=pytest.mark.slow)
            for both in (("userspace", "tls"), ("auto", "tcp"), ("kernel", "tcp"))
        ),
    ],
)
def test_streams_go_through_either_plane_of_the_gateway(
    net: Hosts, plane: str, carrier: str
) -> None:
    gateway = net.serve({**GATEWAY, "gateway": {"data_plane": plane}})
    net.connect(CLIENT, "--carrier", carrier)

    net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)
    net.download(2 << 20).finish()

    assert planes_of(gateway) == ["userspace" if plane == "userspace" else "kernel"]


@by_policies
@pytest.mark.slow
def test_streams_stay_out_of_the_kernel_where_others_have_policies(net: Hosts) -> None:
    exempt = net.gateway.sysctl("net.ipv4.conf.lo.disable_policy")
    net.gateway.ip("xfrm", "policy", "add", *THEIRS.split())
    gateway = net.serve(GATEWAY)
    client = net.connect(CLIENT, "--carrier", "tcp")

    net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)

    assert planes_of(gateway) == ["userspace"]
    assert "by the loopback device: 1 IPsec policies of others" in gateway.log
    assert net.gateway.sysctl("net.ipv4.conf.lo.disable_policy") == exempt
    client.stop()
    gateway.stop()
    assert "198.51.100.1" in net.gateway.run("ip", "xfrm", "policy")


@pytest.mark.slow
def test_who_insists_has_them_go_by_a_tun_device_there_of_which_a_kill_leaves_nothing(
    net: Hosts,
) -> None:
    net.gateway.ip("xfrm", "policy", "add", *THEIRS.split())
    ways = net.gateway.ip("route", "show", "table", "local")
    for _ in range(2):
        gateway = net.serve({**GATEWAY, "gateway": {"data_plane": "kernel"}})
        client = net.connect(CLIENT, "--carrier", "tls")
        net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)
        net.client.run("ping", "-c3", "-i0.2", "-I", INNER_6, SITE_6)
        net.download(2 << 20).finish()
        assert planes_of(gateway) == ["kernel"]
        shown = run_tunnelwrap(net.gateway, "status", gateway.file).stdout
        assert "1 peer, data plane kernel; of streams kernel by a TUN device\n" in shown
        client.stop()
        gateway.kill()
        assert net.gateway.ip("route", "show", "table", "local") == ways
        assert "tf-" not in net.gateway.ip("link")


@pytest.mark.slow
def test_the_end_takes_all_of_it_back(net: Hosts) -> None:
    exempt = net.gateway.sysctl("net.ipv4.conf.lo.disable_policy")
    gateway = net.serve({**GATEWAY, "gateway": {"data_plane": "kernel"}})
    client = net.connect(CLIENT)

    client.stop()
    gateway.stop()

    for host in (net.client, net.gateway):
        assert host.run("ip", "xfrm", "state") == ""
        assert host.run("ip", "xfrm", "policy") == ""
    assert net.gateway.sysctl("net.ipv4.conf.lo.disable_policy") == exempt


@pytest.mark.slow
def test_what_somebody_deletes_is_made_anew(net: Hosts) -> None:
    gateway = net.serve({**GATEWAY, "gateway": {"data_plane": "kernel"}})
    client = net.connect(CLIENT, "--carrier", "udp")
    net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)
    shown = run_tunnelwrap(net.gateway, "status", gateway.file, "--kernel").stdout
    assert shown.startswith(f"in the kernel: SAs 2, policies {POLICIES}, as they should be\n")
    assert "3 packets" in shown
    before = spis_of(gateway)

    net.gateway.run("ip", "xfrm", "state", "flush")
    net.gateway.run("ip", "xfrm", "policy", "flush")

    gateway.says("somebody has deleted what is ours in the kernel")
    wait_until("other keys", lambda: not spis_of(gateway) & before)
    wait_until("one Child SA", lambda: len(spis_of(client)) == 1)
    net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)
    shown = run_tunnelwrap(net.gateway, "status", gateway.file, "--kernel").stdout
    assert shown.startswith(f"in the kernel: SAs 2, policies {POLICIES}, as they should be\n")


@pytest.mark.slow
def test_on_demand_a_packet_makes_the_child_sa_and_idle_it_ends(net: Hosts) -> None:
    """The first packet is answered as are those that follow it."""
    assert net.client.sysctl(HOLDS) == "1"
    kernel: Toml = {"data_plane": "kernel"}
    gateway = net.serve({**GATEWAY, "gateway": kernel})
    child: Toml = {"child": {"start": "on-demand", "idle_s": 2, "peer_ts": ["10.66.0.0/24"]}}
    settings = merged(CLIENT, {"client": kernel, "connection": child})
    client = net.connect(settings, "--carrier", "udp")

    for _ in range(2):
        assert planes_of(client) == []
        assert client.sas[0]["waits_for_traffic"]
        printed = net.client.run("ping", "-n", "-q", "-c10", "-i0.1", "-W5", "-I", INNER, SITE)
        assert "10 packets transmitted, 10 received" in printed
        assert planes_of(client) == planes_of(gateway) == ["kernel"]
        wait_until("the end of the Child SA", lambda: planes_of(client) == [])

    assert len(client.named("established")) == 1
    assert net.client.sysctl(HOLDS) == "0"
    client.stop()
    assert net.client.sysctl(HOLDS) == "1"
