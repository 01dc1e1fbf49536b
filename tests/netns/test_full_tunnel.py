"""All of a client's traffic through the tunnel, several clients at once, other outer networks.

The hosts are those of ``tests.kit.daemons``; the router is the world beyond the gateway, too.
"""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import NamedTuple, Self

import pytest
from pyroute2 import NFCTSocket

from tests.kit.daemons import (
    GATEWAY,
    GATEWAY_6,
    NAME,
    QUICK,
    RESOLV_CONF,
    SITE,
    SITE_6,
    WORLD,
    WORLD_6,
    Daemon,
    Hosts,
    Issued,
    Toml,
    hosts,
    merged,
    wait_until,
)
from tests.kit.netns import Namespace
from tests.kit.tunnel_host import Dump, way

pytestmark = pytest.mark.root

MIB = 1 << 20
INNER_DNS = "10.66.0.2"
LIVENESS_S = 30

OPEN: Toml = {
    "pools": {"clients": {"dns": [INNER_DNS]}},
    "connections": {"clients": {**QUICK, "child": {"local_ts": ["0.0.0.0/0", "::/0"]}}},
}
"""A gateway that lets its clients go everywhere."""

FULL: Toml = {"connection": {**QUICK, "child": {"peer_ts": ["0.0.0.0/0", "::/0"]}}}
"""A client that sends everything through the tunnel."""


class Served(NamedTuple):
    """Hosts with a gateway that goes on from test to test."""

    net: Hosts
    gateway: Daemon


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return Issued.by_init(tmp_path_factory.mktemp("issued"))


@pytest.fixture
def net(issued: Issued, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def running(issued: Issued, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with hosts(issued, tmp_path_factory.mktemp("served")) as made:
        yield Served(made, made.serve(OPEN))


@pytest.fixture
def served(running: Served) -> Iterator[Served]:
    running.gateway.forget_log()
    yield running
    running.net.end_clients()
    assert running.gateway.process.poll() is None


def addresses(client: Daemon) -> list[str]:
    """The client's inner addresses, IPv4 first."""
    return list(client.named("established")[-1]["addresses"])


# --- everything in the tunnel ----------------------------------------------------------------


def test_the_world_sees_the_gateway_and_the_gateway_itself_is_reached_outside(
    served: Served,
) -> None:
    net, _ = served
    before = Dump.of(net.client)
    client = net.connect(FULL)

    for address, seen in ((WORLD, GATEWAY), (WORLD_6, GATEWAY_6)):
        transfer = net.download(MIB, address, source=net.router)
        transfer.finish()
        assert transfer.peer == seen
        assert way(net.client, address).startswith("tw-client ")
    assert way(net.client, GATEWAY).startswith("eth0 ")
    assert "Welcome" in net.client.run("curl", "-sk", "--max-time", "5", f"https://{GATEWAY}/")
    assert f"nameserver {INNER_DNS}\n" in net.resolv_conf()
    assert "192.0.2.53" not in net.resolv_conf()

    client.stop()
    assert net.resolv_conf() == RESOLV_CONF
    assert Dump.of(net.client) == before


def test_a_killed_client_leaves_nothing_after_its_next_end(served: Served) -> None:
    net, _ = served
    before = Dump.of(net.client)
    net.connect(FULL).kill()
    assert net.resolv_conf() != RESOLV_CONF

    client = net.connect(FULL)
    assert "undone what a former run left: " in client.log
    net.download(MIB, WORLD, source=net.router).finish()

    client.stop()
    assert net.resolv_conf() == RESOLV_CONF
    assert Dump.of(net.client) == before


NETWORKS = ["10.20.0.0/24", "fd20::/64"]
OTHER_NETWORKS = ["10.21.0.0/24", "fd21::/64"]


@pytest.mark.parametrize(("carrier", "networks"), [("udp", OTHER_NETWORKS), ("tls", NETWORKS)])
def test_a_gateway_found_again_leaves_nothing_either(
    net: Hosts, carrier: str, networks: list[str]
) -> None:
    before = Dump.of(net.client)
    gateway = net.serve(OPEN)
    client = net.connect(FULL, "--carrier", carrier)
    gateway.kill()
    client.tells("lost")
    assert way(net.client, WORLD).startswith("tw-client "), "in clear while the tunnel is down"

    net.serve(merged(OPEN, {"pools": {"clients": {"networks": networks}}}))
    client.tells("established", 2)
    assert addresses(client)[0].startswith(networks[0].removesuffix("0/24"))
    net.download(MIB, WORLD, source=net.router).finish()
    assert f"nameserver {INNER_DNS}\n" in net.resolv_conf()

    client.stop()
    assert net.resolv_conf() == RESOLV_CONF
    assert Dump.of(net.client) == before


def test_a_name_is_found_again_though_its_name_servers_are_in_the_tunnel(net: Hosts) -> None:
    net.client.resolv_conf(f"nameserver {WORLD}\noptions timeout:1 attempts:1\n")
    gateway = net.serve(OPEN)
    wish = {**FULL, "client": {"gateway": NAME}}
    with NameServer(net.router, WORLD, GATEWAY):
        client = net.connect(wish)
        gateway.kill()
        client.tells("lost")
        client.says("no way to the gateway yet")

        net.serve(OPEN)
        client.tells("established", 2)

    net.download(MIB, WORLD, source=net.router).finish()


class NameServer:
    """Answers each question for an IPv4 address with one, and all others with nothing."""

    def __init__(self, host: Namespace, address: str, answer: str) -> None:
        self._answer = socket.inet_aton(answer)
        with host.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        self._thread = Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(512)
            if not query:
                return
            end = query.index(b"\0", 12) + 5
            (kind,) = struct.unpack_from(">H", query, end - 4)
            records = b""
            if kind == 1:
                records = struct.pack(">HHHIH4s", 0xC00C, 1, 1, 60, 4, self._answer)
            head = struct.pack(">2sHHHHH", query[:2], 0x8180, 1, bool(records), 0, 0)
            self._socket.sendto(head + query[12:end] + records, peer)


# --- several clients -------------------------------------------------------------------------


def test_two_clients_over_udp_and_tls_at_once(served: Served) -> None:
    net, gateway = served
    client = net.connect(FULL, "--carrier", "udp")
    other = net.connect(FULL, "--carrier", "tls", is_other=True)

    assert not set(addresses(client)) & set(addresses(other))
    assert {sa["carrier"] for sa in gateway.sas} == {"udp", "tls"}
    transfers = [
        net.download(24 * MIB),
        net.download(24 * MIB, to=net.other),
        net.download(8 * MIB, WORLD_6, source=net.router),
        net.download(8 * MIB, WORLD_6, source=net.router, to=net.other),
    ]
    for transfer in transfers:
        transfer.finish()
    assert net.client.succeeds("ping", "-c1", "-W2", addresses(other)[0])


def test_a_client_cannot_take_the_address_of_another(served: Served) -> None:
    net, _ = served
    net.connect(FULL)
    other = net.connect(FULL, is_other=True)
    theirs = addresses(other)[0]
    net.client.address("tw-client", f"{theirs}/32")

    assert net.client.succeeds("ping", "-c1", "-W2", SITE)
    assert not net.client.succeeds("ping", "-c1", "-W1", "-I", theirs, SITE)
    assert net.other.succeeds("ping", "-c1", "-W2", "-I", theirs, SITE)


# --- outer networks --------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["udp", "tcp", "tls"])
def test_ipv6_carries_both_versions(served: Served, carrier: str) -> None:
    net, _ = served
    wish = {**FULL, "client": {"gateway": GATEWAY_6, "server_name": NAME}}
    client = net.connect(wish, "--carrier", carrier)

    (sa,) = client.sas
    assert sa["peer"].startswith(f"[{GATEWAY_6}]:")
    net.download(8 * MIB).finish()
    net.download(8 * MIB, SITE_6).finish()
    assert way(net.client, GATEWAY_6).startswith("eth0 ")


def masquerade(net: Hosts, ports: str) -> None:
    """Let the router hide the client, behind these ports, and forget what it knew."""
    net.router.nft(
        "table ip hide\ndelete table ip hide\ntable ip hide {\nchain post {\n"
        "type nat hook postrouting priority srcnat;\n"
        f'oifname "gateway" ip protocol udp masquerade to :{ports}\n'
        'oifname "gateway" masquerade\n}\n}\n'
    )
    with net.router.entered(), NFCTSocket() as tracking:
        tracking.flush()


@pytest.mark.parametrize("carrier", ["udp", "tls"])
def test_behind_a_nat(net: Hosts, carrier: str) -> None:
    masquerade(net, "20000-20999")
    gateway = net.serve(OPEN)
    net.connect(FULL, "--carrier", carrier)

    (sa,) = gateway.sas
    assert sa["peer"].startswith("203.0.113.1:")
    net.download(8 * MIB).finish()


def test_a_nat_that_forgets_gives_another_port_and_the_gateway_follows(net: Hosts) -> None:
    masquerade(net, "20000-20999")
    gateway = net.serve({**OPEN, "connections": {"clients": {"liveness_s": LIVENESS_S}}})
    wish = merged(FULL, {"connection": {"liveness_s": LIVENESS_S}})
    client = net.connect(wish, "--carrier", "udp")
    transfer = net.download(48 * MIB)
    transfer.has_received(MIB)

    masquerade(net, "30000-30999")
    started = time.monotonic()
    assert transfer.received < 48 * MIB
    # What comes in may have been answered before: then the download has nothing to say.
    assert net.client.succeeds("ping", "-c3", "-i0.2", "-W2", SITE)
    transfer.finish()

    wait_until("the new port", lambda: gateway.sas[0]["peer"].startswith("203.0.113.1:30"))
    assert not client.named("lost")
    assert time.monotonic() - started < LIVENESS_S, "ESP told it, not a liveness check"


# --- packets of all sizes --------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["udp", "tls"])
def test_large_packets_and_udp(served: Served, carrier: str) -> None:
    net, _ = served
    net.connect(FULL, "--carrier", carrier)

    for address in (SITE, SITE_6):
        for size in (56, 1300, 1400, 1472, 4000, 20000):
            assert pings(net, address, size), size
        assert echoes(net, address, 50, size=1200) >= 48
        assert echoes(net, address, 20, size=8000) >= 18


def pings(net: Hosts, address: str, size: int) -> bool:
    """Whether an echo comes back; the first may only tell somebody what is too big."""
    return net.client.succeeds("ping", "-c3", "-i0.1", "-W2", "-s", str(size), address)


def echoes(net: Hosts, address: str, count: int, size: int) -> int:
    """How many of that many UDP datagrams come back from the site."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with net.site.entered():
        site = socket.socket(family, socket.SOCK_DGRAM)
    with net.client.entered():
        client = socket.socket(family, socket.SOCK_DGRAM)
    with closing(site), closing(client):
        site.bind((address, 0))
        site.settimeout(1)
        client.settimeout(1)
        client.connect(site.getsockname())
        returned = 0
        for number in range(count):
            datagram = number.to_bytes(2, "big") * (size // 2)
            client.send(datagram)
            try:
                received, peer = site.recvfrom(65535)
                site.sendto(received, peer)
                returned += client.recv(65535) == datagram
            except TimeoutError:
                continue
    return returned


@pytest.mark.parametrize(
    ("carrier", "silence"),
    [
        ("udp", ""),
        ("udp", "icmp type destination-unreachable drop\nicmpv6 type packet-too-big drop\n"),
        ("tcp", ""),
    ],
)
def test_a_narrow_link_in_the_middle(net: Hosts, carrier: str, silence: str) -> None:
    for host, device in ((net.router, "gateway"), (net.gateway, "eth0")):
        host.ip("link", "set", device, "mtu", "1300")
    net.router.nft(
        "table inet quiet {\nchain out {\n"
        f"type filter hook output priority filter;\n{silence}}}\n}}\n"
    )
    net.serve(OPEN)
    client = net.connect(FULL, "--carrier", carrier)

    net.download(8 * MIB).finish()
    net.download(8 * MIB, addresses(client)[0], source=net.client, to=net.site).finish()
    for size in (1200, 1300, 1400, 3000):
        assert pings(net, SITE, size), size
