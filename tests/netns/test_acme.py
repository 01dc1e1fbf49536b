"""A gateway whose TLS certificate is by ACME: from the start without one to a tunnel and back.

The hosts are those of ``tests.kit.daemons``; the ACME server is on the router.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.daemons import GATEWAY, NAME, Daemon, Hosts, Issued, Toml, hosts, run_tunnelwrap
from tests.kit.pebble import Pebble, free_port, start_pebble

pytestmark = pytest.mark.root

ROUTER = "203.0.113.1"
MANAGEMENT = f"{ROUTER}:{free_port()}"


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return Issued.by_init(tmp_path_factory.mktemp("issued"))


@pytest.fixture
def net(issued: Issued, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        yield made


def acme_server(net: Hosts) -> Pebble:
    folder = net.directory / "pebble"
    folder.mkdir()
    management = {"managementListenAddress": MANAGEMENT}
    return start_pebble(folder, net.router.popen, ROUTER, GATEWAY, management)


def served(net: Hosts, acme: Pebble, challenge: str) -> Daemon:
    own: Toml = {
        "directory": acme.directory,
        "terms_agreed": True,
        "challenge": challenge,
        "ca": str(acme.ca_file),
    }
    return net.serve({"gateway": {"tls": None, "acme": own}})


def authorities(net: Hosts) -> Path:
    """Who certifies what that server gives: another one at each of its starts."""
    pem = net.router.run("curl", "-sSk", f"https://{MANAGEMENT}/roots/0")
    file = net.directory / "roots.pem"
    file.write_text(pem)
    return file


def by_tls(net: Hosts, root: Path) -> None:
    """A client comes by TLS, and believes no other certificate."""
    net.connect({"client": {"carriers": ["tls"], "server_name": NAME, "tls_ca": str(root)}})
    net.end_clients()


def test_without_an_acme_server_all_but_tls_is_served(net: Hosts) -> None:
    acme = acme_server(net)
    root = authorities(net)
    net.router.nft(
        "table inet t {\nchain c {\ntype filter hook input priority 0\n"
        "iif gateway tcp dport != 443 reject with tcp reset\n}\n}"
    )
    gateway = served(net, acme, "tls-alpn-01")
    gateway.says(f"no new certificate: {acme.directory}: connection refused; tried again in 1")
    net.connect({"client": {"carriers": ["udp"]}})
    net.end_clients()
    net.connect({"client": {"carriers": ["tcp"]}})
    net.end_clients()
    assert "no certificate yet" in run_tunnelwrap(net.gateway, "status", gateway.file).stdout

    net.router.run("nft", "flush", "ruleset")
    gateway.send(signal.SIGHUP)
    gateway.says(f"new certificate for {NAME}, to be renewed on 20")
    by_tls(net, root)
    certificate = gateway.status["certificate"]
    assert isinstance(certificate, dict)
    assert (certificate["names"], certificate["problem"]) == ([NAME], None)
    shown = run_tunnelwrap(net.gateway, "status", gateway.file).stdout
    assert f"  TLS        {NAME} until 20" in shown
    assert acme.orders() == 1
    assert gateway.stop() == 0


def test_the_stored_certificate_serves_after_a_restart(net: Hosts) -> None:
    acme = acme_server(net)
    root = authorities(net)
    gateway = served(net, acme, "http-01")
    gateway.says("new certificate for")
    by_tls(net, root)
    assert gateway.stop() == 0

    again = served(net, acme, "http-01")
    by_tls(net, root)
    assert "certificate" not in again.log
    assert acme.orders() == 1


def test_an_end_in_the_middle_of_an_order(net: Hosts) -> None:
    """Nobody waits for an ACME server that says nothing."""
    acme = acme_server(net)
    net.router.nft(
        "table inet t {\nchain c {\ntype filter hook input priority 0\n"
        "iif gateway tcp dport != 443 drop\n}\n}"
    )
    gateway = served(net, acme, "tls-alpn-01")
    gateway.says("no certificate yet, TLS has to wait")
    gateway.send(signal.SIGTERM)
    assert gateway.ends(timeout_s=8) == 0
    assert acme.orders() == 0
