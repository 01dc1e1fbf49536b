"""Clients that reach the gateway by TCP 443 only, and its kernel through each feed.

The router drops all UDP, and all TCP but that to port 443.
"""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernel.iproute import states, statistics
from tests.kernel.test_daemons import INNER
from tests.kit.daemons import GATEWAY, SITE, Daemon, Hosts, Issued, Toml, hosts, merged, wait_until
from tests.kit.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(300)]

OTHER_INNER, STRANGER = "10.20.0.3", "10.77.0.99"
INSIDE, SITES = "10.20.0.0/24", "10.66.0.0/24"
ONLY_443 = (
    "priority 3 ipproto tcp dport 443 table main",
    "priority 4 ipproto tcp sport 443 table main",
    "priority 5 ipproto tcp blackhole",
    "priority 6 ipproto udp blackhole",
)
PING = ("ping", "-n", "-q", "-W", "2", "-i", "0.2", "-c", "3")
PING_ON = ("ping", "-n", "-q", "-W", "5", "-I", INNER)
OTHERS = "src 198.51.100.1/32 dst 198.51.100.2/32 dir out action block"  # exclude the bridge
TRIED = {"XfrmInNoStates": 1}  # the packet with which a TUN device is tried out
CLIENT_OUTER, FORGOTTEN = "198.51.100.2", 999


@pytest.fixture(params=["kernel by the loopback device", "kernel by a TUN device"])
def feed(request: pytest.FixtureRequest) -> str:
    """What the gateway calls it."""
    return str(request.param)


@pytest.fixture
def net(issued: Issued, tmp_path: Path, feed: str) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        if "TUN" in feed:
            made.gateway.ip("xfrm", "policy", "add", *OTHERS.split())
        for rule in ONLY_443:
            made.router.ip("rule", "add", *rule.split())
        made.router.run("tc", "qdisc", "add", "dev", "gateway", "clsact")
        made.client.address("lo", f"{INNER}/32")
        made.other.address("lo", f"{OTHER_INNER}/32")
        yield made


def serve(net: Hosts, *opened: str) -> Daemon:
    """The gateway, which opens these networks to its clients."""
    child = {"peer_ts": [INSIDE], "local_ts": list(opened)}
    clients = {"pool": None, "child": child}
    changes: Toml = {"pools": None, "connections": {"clients": clients}}
    return net.serve({**changes, "gateway": {"data_plane": "kernel"}})


def dropped(net: Hosts, feed: str) -> dict[str, int]:
    """What the gateway's kernel has dropped of its clients' packets."""
    tried = TRIED if "TUN" in feed else {}
    return dict(+(Counter(statistics(net.gateway)) - Counter(tried)))


def client_of(inner: str, *reached: str) -> Toml:
    child = {"local_ts": [f"{inner}/32"], "peer_ts": list(reached)}
    requests = {"requests_ipv4": False, "requests_ipv6": False}
    return {"connection": {**requests, "child": child}}


def connect(net: Hosts, *reached: str) -> tuple[Daemon, Daemon]:
    """Both clients, by the whole ladder."""
    client = net.connect(client_of(INNER, *reached), "--debug")
    other = net.connect(client_of(OTHER_INNER, *reached), is_other=True)
    assert [each.named("established")[0]["carrier"] for each in (client, other)] == ["tls", "tls"]
    return client, other


def connect_forger(net: Hosts) -> None:
    """The client, with a data plane that lets everything out."""
    forging = {**client_of(INNER, SITES), "client": {"data_plane": "userspace"}}
    file = net.write("client", merged(net.issued.client, forging))
    options = ("connect", "--json", "--carrier", "tls")
    net.daemons.append(Daemon(net.client, file, *options, module="tests.kernel.forger"))
    net.daemons[-1].tells("established")
    net.client.route(f"{OTHER_INNER}/32", dev="tw-client")


def echoes(host: Namespace) -> int:
    """How many pings have reached a host."""
    names, values = re.findall(r"^Icmp: (.*)", host.run("cat", "/proc/net/snmp"), re.MULTILINE)
    return int(dict(zip(names.split(), values.split(), strict=True))["InEchos"])


def test_clients_do_not_see_each_other(net: Hosts, feed: str) -> None:
    serve(net, SITES)
    net.connect(client_of(OTHER_INNER, SITES), is_other=True)
    connect_forger(net)
    assert net.client.succeeds(*PING, "-I", INNER, SITE)

    assert not net.client.succeeds(*PING, "-I", INNER, OTHER_INNER)

    assert echoes(net.other) == 0
    assert dropped(net, feed) == {"XfrmInNoPols": 3}


def test_unless_it_is_allowed(net: Hosts, feed: str) -> None:
    gateway = serve(net, SITES, INSIDE)
    connect(net, SITES, INSIDE)

    assert net.client.succeeds(*PING, "-I", INNER, OTHER_INNER)
    assert net.other.succeeds(*PING, "-I", OTHER_INNER, INNER)
    net.download(1 << 20, OTHER_INNER, source=net.other).finish()

    children = [child for sa in gateway.sas for child in sa["child_sas"]]
    assert [child["data_plane"] for child in children] == ["kernel", "kernel"]
    assert gateway.status["data_plane_of_streams"] == feed
    assert dropped(net, feed) == {}


@pytest.mark.parametrize(
    ("source", "refusal"), [(OTHER_INNER, "XfrmInTmplMismatch"), (STRANGER, "XfrmInNoPols")]
)
def test_forged_inner_sources_are_refused(net: Hosts, feed: str, source: str, refusal: str) -> None:
    serve(net, SITES)
    net.connect(client_of(OTHER_INNER, SITES), is_other=True)
    connect_forger(net)
    assert net.client.succeeds(*PING, "-I", INNER, SITE)
    before = echoes(net.site)

    net.client.address("lo", f"{source}/32")
    assert not net.client.succeeds(*PING, "-I", source, SITE)

    assert echoes(net.site) == before
    assert dropped(net, feed) == {refusal: 3}, "they were authentic"


def forget_stream(net: Hosts) -> None:
    """From now on the router, a NAT that has forgotten it, gives the client's stream another port.

    The gateway answers what comes from there with a reset. (Nothing here can kill a socket.)
    """
    listed = net.client.run("ss", "-Htn", "state", "established", "dst", GATEWAY)
    (port,) = re.findall(rf"{CLIENT_OUTER}:(\d+) +{GATEWAY}:443", listed)
    for way, match, change in (
        ("egress", f"src_ip {CLIENT_OUTER} src_port {port}", f"sport set {FORGOTTEN}"),
        ("ingress", f"src_ip {GATEWAY} dst_port {FORGOTTEN}", f"dport set {port}"),
    ):
        net.router.run(
            *f"tc filter replace dev gateway {way} pref 1 handle 1 protocol ip".split(),
            *f"flower ip_proto tcp {match}".split(),
            *f"action pedit ex munge tcp {change} pipe action csum ip and tcp".split(),
        )


def test_a_stream_reset_repeats_no_number(net: Hosts, feed: str) -> None:
    serve(net, SITES)
    client = net.connect(client_of(INNER, SITES), "--debug")
    before = {state.spi for state in states(net.gateway)}

    with ThreadPoolExecutor(1) as pool:
        pings = pool.submit(net.client.run, *PING_ON, "-i", "0.02", "-c", "300", SITE)
        for _ in range(2):
            client.forget_log()
            forget_stream(net)
            client.says("opening it again")
            client.says("< INFORMATIONAL response")

    assert " received" in pings.result()
    assert net.client.succeeds(*PING, "-I", INNER, SITE)
    assert {state.spi for state in states(net.gateway)} == before
    assert "dropped_esp_replay" not in client.counters, "the gateway repeats none"
    assert dropped(net, feed) == {}, "nor does the client"


def test_what_is_repeated_after_a_reset_is_refused(net: Hosts, feed: str) -> None:
    serve(net, SITES)
    connect_forger(net)
    assert net.client.succeeds(*PING, "-I", INNER, SITE)
    before = echoes(net.site)

    forget_stream(net)
    wait_until("it is back", lambda: net.client.succeeds(*PING_ON, "-c", "1", SITE))

    assert echoes(net.site) == before + 1
    assert dropped(net, feed) == {"XfrmInStateSeqError": 1}
