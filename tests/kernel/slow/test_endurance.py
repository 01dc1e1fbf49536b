"""What tunnels in the kernel must outlive: a NAT that forgets, rekeys, the end of a daemon.

Both ends have the kernel's data plane, and all goes over UDP.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import eq
from pathlib import Path

import pytest

from tests.kernel.iproute import packets_by_spi, policies, states, statistics, watch
from tests.kernel.test_daemons import CLIENT, GATEWAY, INNER, INNER_6
from tests.kit.daemons import SITE, Daemon, Hosts, Issued, Toml, hosts, merged, wait_until
from tests.kit.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(300)]

CLIENT_OUTER, NAT_OUTER = "198.51.100.2", "203.0.113.1"
IKE_PORTS = (500, 4500)
SECONDS = 7
REKEYS: Toml = {"rekey_s": 3, "child": {"rekey_s": 2}}
FOREIGN_SPI = 0x99
FOREIGN_ENDS = "src 198.18.1.1 dst 198.18.1.2 proto esp"
FOREIGN_SELECTOR = ("198.18.2.0/24", "198.18.3.0/24")
FOREIGN = f"""\
xfrm state add {FOREIGN_ENDS} spi {FOREIGN_SPI} mode tunnel aead rfc4106(gcm(aes)) 0x{"11" * 20} 128
xfrm policy add src {FOREIGN_SELECTOR[0]} dst {FOREIGN_SELECTOR[1]} dir out tmpl {FOREIGN_ENDS}
"""


@pytest.fixture
def net(issued: Issued, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        made.client.address("lo", f"{INNER}/32", f"{INNER_6}/128")
        yield made


def start(net: Hosts, connection: Toml | None = None) -> tuple[Daemon, Daemon]:
    """Both daemons, the gateway first; what the client is told besides."""
    gateway = net.serve({**GATEWAY, "gateway": {"data_plane": "kernel"}})
    own: Toml = {"client": {"data_plane": "kernel"}, "connection": connection or {}}
    return gateway, net.connect(merged(CLIENT, own), "--debug", "--carrier", "udp")


def ping(net: Hosts, interval_s: float, count: int) -> int:
    """How many are answered."""
    every = ("-i", str(interval_s), "-c", str(count))
    printed = net.client.run("ping", "-n", "-q", "-W", "5", *every, "-I", INNER, SITE)
    found = re.search(r"(\d+) received", printed)
    assert found is not None, printed
    return int(found[1])


class Nat:
    """The router as a NAT for the client's UDP: 500 and 4500 become ``first`` and the next.

    By filters of tc, which need no memory: as soon as other ports are said, they are used.
    """

    def __init__(self, router: Namespace, first: int) -> None:
        self._router = router
        router.run("tc", "qdisc", "add", "dev", "gateway", "clsact")
        self.give(first)

    def give(self, first: int) -> None:
        words = [
            f"filter replace dev gateway {way} pref 1 handle {handle} protocol ip"
            f" flower ip_proto udp {match}"
            f" action pedit ex munge ip {address} munge udp {port} pipe action csum ip and udp"
            for handle, (own, given) in enumerate(
                zip(IKE_PORTS, (first, first + 1), strict=True), 1
            )
            for way, match, address, port in (
                (
                    *("egress", f"src_ip {CLIENT_OUTER} src_port {own}"),
                    *(f"src set {NAT_OUTER}", f"sport set {given}"),
                ),
                (
                    *("ingress", f"dst_ip {NAT_OUTER} dst_port {given}"),
                    *(f"dst set {CLIENT_OUTER}", f"dport set {own}"),
                ),
            )
        ]
        self._router.run("tc", "-batch", "-", stdin="\n".join(words))


def test_a_nat_that_gives_another_port_is_followed(net: Hosts) -> None:
    first, last, count, seldom_s = 10_000, 30_000, 30, 0.2
    nat = Nat(net.router, first)
    gateway, _ = start(net)
    assert gateway.sas[0]["peer"] == f"{NAT_OUTER}:{first + 1}"

    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(ping, net, seldom_s, count)
        for given in (20_000, last):
            nat.give(given)
            wait_until("it is followed", lambda given=given: outward(net) == given + 1)

    assert answered.result() >= count - 4, "two for each time"
    assert gateway.sas[0]["peer"] == f"{NAT_OUTER}:{last + 1}"
    assert len(states(net.gateway)) == 2


def outward(net: Hosts) -> int:
    """The port to which the gateway's kernel sends."""
    ports = [s.ports[1] for s in states(net.gateway) if s.destination == NAT_OUTER and s.ports]
    return ports[0] if len(ports) == 1 else 0


def test_rekeys_under_load_lose_nothing(net: Hosts, tmp_path: Path) -> None:
    _, client = start(net, REKEYS)
    ends = (net.client, net.gateway)
    logs = [tmp_path / "gone-client", tmp_path / "gone-gateway"]
    for host, log in zip(ends, logs, strict=True):
        watch(host, log)

    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(ping, net, 0.01, SECONDS * 100)
        net.download(4 << 20).finish()

    assert answered.result() == SECONDS * 100
    assert client.log.count(" replaces ") >= 2
    wait_until("both have counted the same", lambda: eq(*map(packets_by_spi, ends, logs)))
    here = packets_by_spi(ends[0], logs[0])
    assert sum(here.values()) > 2 * SECONDS * 100
    assert [statistics(host) for host in ends] == [{}, {}]


def test_what_killed_daemons_left_is_cleared_away_and_nothing_else(net: Hosts) -> None:
    ends = (net.client, net.gateway)
    killed = start(net)
    for host in ends:
        host.run("ip", "-batch", "-", stdin=FOREIGN)
    for daemon in killed:
        daemon.kill()
        net.daemons.remove(daemon)
    left = {state.spi for state in states(net.gateway)}
    assert len(left) == 3
    assert len(policies(net.client)) > 1

    gateway, client = start(net)

    assert ping(net, 0.2, 3) == 3
    for host in ends:
        now = {state.spi for state in states(host)}
        assert now & left == {FOREIGN_SPI}
        assert len(now) == 3
    for daemon in (client, gateway):
        daemon.stop()
    for host in ends:
        assert [state.spi for state in states(host)] == [FOREIGN_SPI]
        assert [policy.selector for policy in policies(host)] == [FOREIGN_SELECTOR]
