"""Gateway and client by xfrm interfaces, as they run.

    python -m tests.kit.kernel --kernel interface -- pytest tests/kernel/interface

What policies do is in ``tests.kernel.test_daemons`` and ``tests.kernel.slow``, which all do the
same under this kernel.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.test_daemons import CLIENT, GATEWAY, INNER, planes_of
from tests.kit.daemons import SITE, Hosts, Issued, hosts
from tests.kit.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

THEIRS = ("src", "198.51.100.1/32", "dst", "198.51.100.2/32", "dir", "out", "action", "block")
EXEMPT = "net.ipv4.conf.lo.disable_policy"
PING = ("ping", "-c3", "-i0.2", "-W2", "-I", INNER, SITE)


@pytest.fixture
def net(issued: Issued, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        made.client.address("lo", f"{INNER}/32")
        for host in (made.client, made.gateway):
            host.ip("xfrm", "policy", "add", *THEIRS)
        yield made


def interfaces(host: Namespace) -> str:
    return host.run("ip", "link", "show", "type", "xfrm")


def test_streams_go_into_the_kernel_beside_others_and_a_killed_run_leaves_nothing(
    net: Hosts,
) -> None:
    exempt = net.gateway.sysctl(EXEMPT)
    gateway = net.serve(GATEWAY)
    client = net.connect(CLIENT, "--carrier", "tls")
    net.client.run(*PING)
    assert planes_of(gateway) == planes_of(client) == ["kernel"]
    assert net.gateway.sysctl(EXEMPT) == exempt
    for daemon in (client, gateway):
        daemon.kill()
        net.daemons.remove(daemon)
    assert "tw-gateway" in interfaces(net.gateway)

    gateway = net.serve(GATEWAY)
    client = net.connect(CLIENT, "--carrier", "udp")
    net.client.run(*PING)

    assert "undone what a former run left: xfrm interface tw-gateway" in gateway.log
    for daemon in (client, gateway):
        daemon.stop()
    for host in (net.client, net.gateway):
        assert interfaces(host) == ""
        assert host.run("ip", "xfrm", "state") == ""
        assert host.run("ip", "xfrm", "policy").count("dir ") == 1, "theirs"
