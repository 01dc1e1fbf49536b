"""Gateway and client whose bare TCP streams are the kernel's (espintcp), as they run.

The hosts are those of ``tests.kit.daemons``; the client's stream may pass a router that breaks it.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernel.iproute import states, statistics
from tests.kernel.slow.test_stream_clients import (
    OTHER_INNER,
    PING,
    PING_ON,
    SITES,
    STRANGER,
    client_of,
    echoes,
)
from tests.kernel.test_daemons import CLIENT, INNER, INNER_6, gateway_toml, planes_of, spis_of
from tests.kit.daemons import (
    GATEWAY_6,
    SITE,
    SITE_6,
    Daemon,
    Hosts,
    Issued,
    Toml,
    hosts,
    merged,
    wait_until,
)
from tests.kit.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(300)]

TCP_PORT = 4500
TOO_BIG = "XfrmOutStateModeError"  # and told so by ICMP
IN_KERNEL: Toml = {"tcp_in_kernel": True}
BRIDGED: Toml = {"data_plane": "kernel"}
USERSPACE: Toml = {"data_plane": "userspace"}
QUICK: Toml = {"rekey_s": 3, "child": {"rekey_s": 2}}


@pytest.fixture
def net(issued: Issued, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        made.client.address("lo", f"{INNER}/32", f"{INNER_6}/128")
        yield made


def start(
    net: Hosts, ours: Toml = IN_KERNEL, theirs: Toml = IN_KERNEL, connection: Toml | None = None
) -> tuple[Daemon, Daemon]:
    """Client and gateway over bare TCP."""
    gateway = net.serve(merged(gateway_toml(), {"gateway": theirs}), "--debug")
    own: Toml = {"client": ours, "connection": connection or {}}
    return net.connect(merged(CLIENT, own), "--debug", "--carrier", "tcp"), gateway


def encapsulated(host: Namespace) -> list[tuple[str, str]]:
    """The ports of the SAs in TCP."""
    listed = host.run("ip", "xfrm", "state")
    return sorted(re.findall(r"encap type espintcp sport (\d+) dport (\d+)", listed))


def stream_port(host: Namespace) -> str:
    """The client's port of the stream that is there."""
    listed = host.run("ss", "-Htn", "state", "established", "dport", f"= :{TCP_PORT}")
    (port,) = re.findall(rf":(\d+) +\S+:{TCP_PORT}\b", listed)
    return str(port)


def break_stream(net: Hosts) -> None:
    """Have the router reset the stream that is there, and no other one."""
    port = stream_port(net.client)
    net.block(f"tcp sport {port} tcp dport {TCP_PORT} reject with tcp reset")


def test_packets_never_come_to_either_process(net: Hosts) -> None:
    client, gateway = start(net)

    net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)
    net.download(2 << 20).finish()
    net.download(2 << 20, SITE_6).finish()
    net.download(2 << 20, INNER, source=net.client, to=net.site).finish()

    assert planes_of(client) == planes_of(gateway) == ["kernel"]
    assert "bare TCP in the kernel" in gateway.log
    port = stream_port(net.client)
    both = sorted([(port, str(TCP_PORT)), (str(TCP_PORT), port)])
    assert encapsulated(net.client) == encapsulated(net.gateway) == both
    for host in (net.client, net.gateway):
        assert set(statistics(host)) <= {TOO_BIG}


def test_what_is_forwarded_arrives_however_the_segments_came(net: Hosts) -> None:
    """Here they come joined: nothing between these hosts cuts up what TCP hands down at once."""
    start(net)
    # so large that a frame takes more than a segment
    net.client.run("ip", "link", "set", "tw-client", "mtu", "1500")
    net.client.run("ip", "route", "change", SITES, "dev", "tw-client", "mtu", "1500")

    for size in (1300, 1384, 1400):
        net.client.run(*PING, "-s", str(size), "-I", INNER, SITE)
    net.download(4 << 20, INNER, source=net.client, to=net.site).finish()

    (dropped,) = re.findall(
        r"TX:.*\n +\d+ +\d+ +\d+ +(\d+)", net.gateway.run("ip", "-s", "link", "show", "lan")
    )
    assert int(dropped) == 0


def test_over_ipv6(net: Hosts) -> None:
    start(net, {**IN_KERNEL, "gateway": GATEWAY_6})
    net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)
    net.download(1 << 20, SITE_6).finish()
    assert {state.destination for state in states(net.gateway)} > {GATEWAY_6}
    assert len(encapsulated(net.gateway)) == 2


@pytest.mark.parametrize("plane", [BRIDGED, USERSPACE], ids=["bridge", "userspace"])
@pytest.mark.parametrize("is_ours", [True, False], ids=["client", "gateway"])
def test_the_other_end_does_as_it_likes(net: Hosts, plane: Toml, *, is_ours: bool) -> None:
    ours, theirs = (IN_KERNEL, plane) if is_ours else (USERSPACE, IN_KERNEL)
    if not is_ours and plane is BRIDGED:
        pytest.skip("a client has no bridge")
    start(net, ours, theirs)

    net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)
    net.download(2 << 20).finish()

    assert len(encapsulated(net.client if is_ours else net.gateway)) == 2


def test_rekeys_under_load(net: Hosts) -> None:
    client, gateway = start(net, connection=QUICK)
    before = spis_of(client)

    printed = net.client.run(*PING_ON, "-i", "0.02", "-c", "400", SITE)
    wait_until("other Child SA", lambda: not spis_of(client) & before)

    assert "400 packets transmitted, 400 received" in printed
    assert len(client.sas) == len(gateway.sas) == 1
    assert re.search(r"> (CREATE_CHILD_SA|INFORMATIONAL) request 0 ", client.log), "a new IKE SA"
    assert len(set(encapsulated(net.gateway))) == 2, "all of one stream"
    assert set(statistics(net.gateway)) | set(statistics(net.client)) <= {TOO_BIG}
    assert planes_of(gateway)[0] == "kernel"


def test_a_broken_stream_is_opened_again_and_repeats_no_number(net: Hosts) -> None:
    client, gateway = start(net)
    before = {state.spi for state in states(net.gateway)}

    with ThreadPoolExecutor(1) as pool:
        pings = pool.submit(net.client.run, *PING_ON, "-i", "0.02", "-c", "300", SITE)
        for _ in range(2):
            client.forget_log()
            port = stream_port(net.client)
            break_stream(net)
            client.says("opening it again")
            client.says("< INFORMATIONAL response")
            assert stream_port(net.client) != port

    received = re.findall(r"(\d+) received", pings.result())
    assert int(received[0]) > 200
    assert net.client.succeeds(*PING, "-I", INNER, SITE)
    assert {state.spi for state in states(net.gateway)} == before
    port = stream_port(net.client)
    assert encapsulated(net.gateway) == sorted([(port, str(TCP_PORT)), (str(TCP_PORT), port)])
    for host in (net.gateway, net.client):
        assert "XfrmInStateSeqError" not in statistics(host), "no number comes twice"
    assert len(gateway.sas) == 1


def test_the_end_of_the_gateway_is_seen(net: Hosts) -> None:
    client, gateway = start(net)
    gateway.kill()
    client.says("the stream to the gateway broke")


@pytest.mark.parametrize(
    ("source", "refusal"), [(OTHER_INNER, "XfrmInTmplMismatch"), (STRANGER, "XfrmInNoPols")]
)
def test_forged_inner_sources_are_refused(net: Hosts, source: str, refusal: str) -> None:
    net.other.address("lo", f"{OTHER_INNER}/32")
    child: Toml = {"peer_ts": ["10.20.0.0/24"], "local_ts": [SITES]}
    clients: Toml = {"pool": None, "child": child}
    net.serve({"pools": None, "connections": {"clients": clients}, "gateway": IN_KERNEL})
    net.connect(client_of(OTHER_INNER, SITES), "--carrier", "tcp", is_other=True)
    own = merged(client_of(INNER, SITES), {"client": USERSPACE})
    file = net.write("client", merged(net.issued.client, own))
    options = ("connect", "--json", "--carrier", "tcp")
    net.daemons.append(Daemon(net.client, file, *options, module="tests.kernel.forger"))
    net.daemons[-1].tells("established")
    assert net.client.succeeds(*PING, "-I", INNER, SITE)
    assert len(encapsulated(net.gateway)) == 4
    before = echoes(net.site)

    net.client.address("lo", f"{source}/32")
    assert not net.client.succeeds(*PING, "-I", source, SITE)

    assert echoes(net.site) == before
    assert statistics(net.gateway) == {refusal: 3}, "they were authentic"
