"""libreswan over bare TCP, in both roles: it leaves streams to the kernel, we as we are told.

libreswan stands in the place of one daemon of ``tests.kit.daemons``, with the same networks. What
its kernel is to forward gets lost where segments come joined, as here; so we part it there, too.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.iproute import statistics
from tests.kernel.test_daemons import INNER, planes_of, spis_of
from tests.kernel.whole.pluto import Pluto
from tests.kernel.whole.test_tcp_daemons import TOO_BIG, encapsulated
from tests.kit.daemons import GATEWAY, SITE, Daemon, Hosts, Issued, Toml, hosts, wait_until
from tests.kit.trixie import trixie
from tunnelwrap.hostnet.netlink import Device
from tunnelwrap.hostnet.parting import part_packets

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(300)]

CLIENT_OUTER = "198.51.100.2"
SITES = "10.66.0.0/24"
IDS = ("client.example.org", "gateway.example.org")
PSK = "a key that both have been told, which is long"
SUITES: Toml = {"ike": ["aes256gcm16-prfsha384-ecp384"]}
CHILD: Toml = {"esp": ["aes256gcm16-ecp384"]}
SECRETS = f'@{IDS[0]} @{IDS[1]} : PSK "{PSK}"\n'
OPTIONS = {
    "authby": "secret",
    "ike": "aes_gcm256-sha2_384-dh20",
    "esp": "aes_gcm256",
    "enable-tcp": "yes",
    "tcp-remoteport": "4500",
    "ikev2": "insist",
    "mobike": "no",
}
PLANES: dict[str, Toml] = {
    "espintcp": {"tcp_in_kernel": True},
    "bridge": {"data_plane": "kernel"},
    "userspace": {"data_plane": "userspace"},
}


@pytest.fixture
def net(issued: Issued, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        made.client.address("lo", f"{INNER}/32")
        yield made


@pytest.fixture
def pluto_at_gateway(net: Hosts, tmp_path: Path) -> Iterator[Pluto]:
    with Pluto(trixie(), net.gateway, tmp_path / "pluto") as pluto:
        net.gateway.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        with net.gateway.entered():
            part_packets(Device.find("eth0"))
        yield pluto


@pytest.fixture
def pluto_at_client(net: Hosts, tmp_path: Path) -> Iterator[Pluto]:
    with Pluto(trixie(), net.client, tmp_path / "pluto") as pluto:
        yield pluto


def side(left: bool) -> dict[str, str]:  # noqa: FBT001 -- left or right
    """The options for its own end as ``left``, at the gateway or at the client."""
    gateway = {"": GATEWAY, "subnet": SITES, "id": f"@{IDS[1]}"}
    client = {
        "": CLIENT_OUTER,
        "subnet": f"{INNER}/32",
        "sourceip": INNER,
        "id": f"@{IDS[0]}",
    }
    ours, theirs = (gateway, client) if left else (client, gateway)
    return {
        **{f"left{key}": value for key, value in ours.items()},
        **{f"right{key}": value for key, value in theirs.items()},
    }


def connect(net: Hosts, plane: Toml, connection: Toml | None = None) -> Daemon:
    """Our client, to a libreswan at the gateway."""
    wanted: Toml = {"local_ts": [f"{INNER}/32"], "peer_ts": [SITES], **CHILD}
    wanted |= (connection or {}).get("child", {})  # type: ignore[operator] -- it is a table
    tables: Toml = {
        "client": {"gateway": GATEWAY, "carriers": ["tcp"], **plane},
        "connection": {
            **SUITES,
            **(connection or {}),
            "psk": PSK,
            "requests_ipv4": False,
            "requests_ipv6": False,
            "local": {"id": IDS[0]},
            "peer": {"id": IDS[1]},
            "child": wanted,
        },
    }
    daemon = Daemon(net.client, net.write("client", tables), "connect", "--json", "--debug")
    net.daemons.append(daemon)
    daemon.tells("established", timeout_s=60)
    return daemon


def serve(net: Hosts, plane: Toml) -> Daemon:
    """Our gateway, for a libreswan at the client."""
    connection: Toml = {
        **SUITES,
        "psk": PSK,
        "local": {"id": IDS[1]},
        "peer": {"id": IDS[0]},
        "child": {"local_ts": [SITES], "peer_ts": [f"{INNER}/32"], **CHILD},
    }
    own: Toml = {"name": "gateway.example.org", "tls_ports": [], "tcp_ports": [4500], **plane}
    tables: Toml = {"gateway": own, "connections": {"libreswan": connection}}
    daemon = Daemon(net.gateway, net.write("gateway", tables), "serve", "--debug")
    net.daemons.append(daemon)
    daemon.says("ready")
    return daemon


def check(net: Hosts, plane: str, ours: Daemon) -> None:
    """Traffic goes both ways, and where it should."""
    net.client.run("ping", "-c3", "-i0.2", "-I", INNER, SITE)
    net.download(2 << 20).finish()
    net.download(1 << 20, INNER, source=net.client, to=net.site).finish()
    assert planes_of(ours) == ["userspace" if plane == "userspace" else "kernel"]
    (here, there) = (net.client, net.gateway)
    if ours.host is net.gateway:
        here, there = there, here
    assert len(encapsulated(there)) == 2
    assert len(encapsulated(here)) == (2 if plane == "espintcp" else 0)
    for host in (here, there):
        assert set(statistics(host)) <= {TOO_BIG}


@pytest.mark.parametrize("plane", ["espintcp", "userspace"])
def test_it_responds(net: Hosts, pluto_at_gateway: Pluto, plane: str) -> None:
    pluto_at_gateway.start({**side(left=True), **OPTIONS}, SECRETS)
    client = connect(net, PLANES[plane])
    check(net, plane, client)
    client.stop()
    pluto_at_gateway.says("deleting")
    assert "Traceback" not in client.log


@pytest.mark.parametrize("plane", list(PLANES))
def test_it_initiates(net: Hosts, pluto_at_client: Pluto, plane: str) -> None:
    gateway = serve(net, PLANES[plane])
    pluto_at_client.start({**side(left=False), **OPTIONS}, SECRETS)
    said = pluto_at_client.whack("--initiate", "--name", "peer")
    assert "established Child SA" in said, f"{said}\n{pluto_at_client.log}\n{gateway.log}"
    check(net, plane, gateway)
    pluto_at_client.whack("--terminate", "--name", "peer")
    wait_until("it has left", lambda: gateway.sas == [])


@pytest.mark.parametrize("plane", ["espintcp", "userspace"])
def test_we_rekey(net: Hosts, pluto_at_gateway: Pluto, plane: str) -> None:
    pluto_at_gateway.start({**side(left=True), **OPTIONS}, SECRETS)
    client = connect(net, PLANES[plane], {"rekey_s": 6, "child": {"rekey_s": 4}})
    before = spis_of(client)
    printed = net.client.run("ping", "-q", "-c100", "-i0.1", "-I", INNER, SITE)
    assert "100 packets transmitted, 100 received" in printed
    assert not spis_of(client) & before
    assert len(client.sas) == 1


@pytest.mark.parametrize("plane", ["espintcp", "bridge"])
def test_it_rekeys(net: Hosts, pluto_at_client: Pluto, plane: str) -> None:
    gateway = serve(net, PLANES[plane])
    times = {"ikelifetime": "15s", "salifetime": "12s", "rekeymargin": "5s", "rekeyfuzz": "0%"}
    pluto_at_client.start({**side(left=False), **OPTIONS, **times}, SECRETS)
    said = pluto_at_client.whack("--initiate", "--name", "peer")
    assert "established Child SA" in said, f"{said}\n{pluto_at_client.log}\n{gateway.log}"
    before = spis_of(gateway)
    printed = net.client.run("ping", "-q", "-c150", "-i0.1", "-I", INNER, SITE)
    assert "150 packets transmitted, 150 received" in printed
    assert not spis_of(gateway) & before
