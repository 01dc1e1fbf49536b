"""Tunnels in a WebSocket, where nothing else passes: from the gateway itself, and through nginx.

The hosts are those of ``tests.kit.daemons``.
"""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kit import nginx
from tests.kit.daemons import (
    GATEWAY,
    NAME,
    Daemon,
    Hosts,
    Issued,
    Toml,
    hosts,
    run_tunnelwrap,
    wait_until,
)
from tunnelwrap.wire.websocket import NONCE, authority, request

pytestmark = pytest.mark.root

ONLY_443 = "tcp dport 443 accept; tcp sport 443 accept; drop"
BEHIND_NGINX: Toml = {
    "gateway": {
        "tls_ports": [],
        "tls": None,
        "websocket": {"ports": [8080]},
        "strangers_per_address": 1,
    }
}
OCTETS = 24 << 20


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return Issued.by_init(tmp_path_factory.mktemp("issued"))


@pytest.fixture
def net(issued: Issued, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        yield made


def path_of(issued: Issued) -> str:
    """The secret path that ``tunnelwrap init`` has made."""
    client = issued.client["client"]
    assert isinstance(client, dict)
    return str(client["websocket_path"])


def proxied(net: Hosts) -> Daemon:
    """A gateway of which nginx has the port 443."""
    gateway = net.serve(BEHIND_NGINX)
    own = net.issued.gateway["gateway"]
    assert isinstance(own, dict)
    nginx.start(net.gateway, net.directory / "nginx", own["tls"], path_of(net.issued))
    return gateway


def carrier_of(gateway: Daemon) -> object:
    """What carries the only IKE SA."""
    (sa,) = gateway.sas
    return sa["carrier"]


@pytest.mark.rfc("9329", "4")
def test_a_tunnel_in_a_websocket_of_the_gateways_own(net: Hosts) -> None:
    gateway = net.serve({}, "--debug")
    net.block(ONLY_443)
    client = net.connect({}, "--debug", "--carrier", "ws")

    net.download(OCTETS).finish()
    (address, _) = client.tells("established")["addresses"]
    net.download(OCTETS, address, source=net.client, to=net.site).finish()

    assert carrier_of(gateway) == "ws"
    assert gateway.status["streams"] == {"accepted": 1, "tls": 1, "http": 1, "ike_ws": 1}
    assert "Welcome" in net.other.run("curl", "-sk", f"https://{GATEWAY}/")
    for daemon in (client, gateway):
        assert path_of(net.issued) not in daemon.log
    assert client.stop() == 0
    gateway.says("closed: deleted by the peer")
    assert "corrupt_streams" not in gateway.status["counters"]


def test_behind_nginx_it_is_the_ladders_last_rung(net: Hosts) -> None:
    gateway = proxied(net)
    net.block(ONLY_443)
    client = net.connect()

    net.download(OCTETS).finish()

    assert carrier_of(gateway) == "ws"
    reasons = {attempt["carrier"]: attempt["result"] for attempt in client.named("attempt")}
    assert reasons["tls"] == "a web server answers there, and no gateway"
    assert reasons["ws"] == "established"
    gateway.says("forwarded for '198.51.100.2'")
    site = net.other.run("curl", "-sk", f"https://{GATEWAY}/", "-w", "%{http_code}")
    assert site == f"{nginx.SITE}200"


def test_behind_nginx_a_stream_that_breaks_is_opened_again(net: Hosts) -> None:
    gateway = proxied(net)
    client = net.connect({}, "--carrier", "ws")
    transfer = net.download(2 * OCTETS)
    transfer.has_received(1 << 20)

    net.client.run("ss", "-K", "-t", "dport", "=", "443")
    transfer.finish()

    assert "broke, opening it again" in client.log
    assert gateway.status["streams"]["ike_ws"] == 2
    assert len(client.named("established")) == 1


def test_behind_nginx_clients_are_not_counted_by_its_address(net: Hosts) -> None:
    gateway = proxied(net)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(silent_websocket(net))
        client = net.connect({}, "--carrier", "ws")
        assert gateway.status["streams"]["ike_ws"] == 4
    net.download(OCTETS).finish()
    assert client.stop() == 0


def silent_websocket(net: Hosts) -> ssl.SSLSocket:
    """A WebSocket in which nobody says anything."""
    with net.other.entered():
        plain = socket.create_connection((GATEWAY, 443), timeout=5)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    sock = context.wrap_socket(plain)
    sock.sendall(request(authority(NAME, 443), path_of(net.issued), bytes(NONCE)))
    assert sock.recv(12) == b"HTTP/1.1 101"
    return sock


def test_a_proxy_that_knows_another_path_is_told_apart(net: Hosts) -> None:
    proxied(net)
    client = net.start_client({"client": {"websocket_path": "/another-path"}}, "--carrier", "ws")

    assert client.ends() == 1
    assert client.log == "tunnelwrap: ws: no WebSocket at this path: HTTP status 200 OK\n"


def test_without_a_path_there_is_no_websocket(net: Hosts) -> None:
    file = net.write("client", {**net.issued.client, "client": {"gateway": NAME}})

    done = run_tunnelwrap(net.client, "connect", file, "--carrier", "ws")

    assert done.returncode == 1
    assert (
        done.stderr == f"tunnelwrap: {file}: found no client.websocket_path, expected one for ws\n"
    )


def test_a_stream_without_frames_is_closed_and_counted(net: Hosts) -> None:
    gateway = net.serve()
    with net.other.entered():
        stranger = socket.create_connection((GATEWAY, 4500))
    with stranger:
        stranger.settimeout(5)
        stranger.sendall(b"IKETCP\0\1")
        assert stranger.recv(1) == b""

    def is_counted() -> bool:
        return gateway.status["counters"].get("corrupt_streams") == 1

    wait_until("it is counted", is_counted)
