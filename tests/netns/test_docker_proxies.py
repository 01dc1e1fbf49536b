"""The gateway's container behind the proxies of docker/, with the files that are there for them.

client 198.51.100.2 ----- 198.51.100.1 proxy 172.30.44.2 ----- 172.30.44.3 gateway (the container)

Traefik is not to be had here; its file is checked for its form only.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.certs import authority, entity
from tests.kit.container import Container
from tests.kit.daemons import Daemon, wait_until
from tests.kit.image import SOURCE, image
from tests.kit.netns import Namespace, wire

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]

PROXY = "198.51.100.1"
OTHER_SITE = ("curl", "-sk", "--resolve", f"www.example.org:443:{PROXY}", "https://www.example.org")


@dataclass
class Net:
    """The hosts; the gateway is yet to be started."""

    client: Namespace
    proxy: Namespace
    container: Container


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    made = image()
    with (
        Namespace("client") as client,
        Namespace("proxy") as proxy,
        Namespace("gateway") as gateway,
    ):
        wire(client, "eth0", ["198.51.100.2/24"], proxy, "eth0", [f"{PROXY}/24"])
        wire(proxy, "front", ["172.30.44.2/24"], gateway, "eth0", ["172.30.44.3/24"])
        gateway.sysctl("net.ipv4.ip_forward", 1)
        gateway.sysctl("net.ipv6.conf.all.forwarding", 1)
        gateway.route("default", via="172.30.44.2")
        proxy.etc.mkdir(parents=True)
        (proxy.etc / "hosts").write_text("172.30.44.3 vpn\n198.51.100.2 web\n")
        with Container(made, gateway, tmp_path) as container:
            container.environment = {"VPN_NAME": "vpn.example.org", "VPN_ADDRESS": PROXY}
            yield Net(client, proxy, container)


def site_files(directory: Path) -> tuple[Path, Path]:
    """A certificate and a key for the other web site."""
    site = entity("www.example.org", authority("Web CA"), number=7, sans=("www.example.org",))
    files = directory / "site.pem", directory / "site.key"
    for file, text in zip(files, (site.pem, site.key_pem), strict=True):
        file.write_bytes(text)
    return files


def believes_the_proxy(net: Net) -> None:
    """Start the gateway as one that takes PROXY headers from there."""
    net.container.environment["VPN_PROXIES"] = "172.30.44.2"
    net.container.start()


def comes_through(net: Net, directory: Path) -> None:
    """See that a client has its tunnel through the proxy, and the gateway its address."""
    profile = directory / "alice.toml"
    profile.write_bytes(net.container.out.read_bytes())
    client = Daemon(net.client, profile, "connect", "--json", "--carrier", "tls")
    client.tells("established")
    wait_until("a ping", lambda: net.client.succeeds("ping", "-c1", "-W1", "10.20.0.1"))
    (process,) = net.container.processes
    health = net.container.image.words("HEALTHCHECK")
    assert "at         198.51.100.2:" in net.container.says(process, *health)
    assert client.stop() == 0


def test_haproxy(net: Net, tmp_path: Path) -> None:
    believes_the_proxy(net)
    certificate, key = site_files(tmp_path)
    web = ["openssl", "s_server", "-accept", "443", "-www", "-cert", certificate, "-key", key]
    net.client.popen(*map(str, web))
    file = SOURCE / "docker/haproxy/haproxy.cfg"
    net.proxy.popen("haproxy", "-db", "-f", str(file), log=tmp_path / "haproxy.log")
    wait_until("HAProxy serves", lambda: net.client.succeeds(*OTHER_SITE))

    comes_through(net, tmp_path)
    assert "s_server" in net.client.run(*OTHER_SITE)


def test_nginx(net: Net, tmp_path: Path) -> None:
    believes_the_proxy(net)
    site_files(tmp_path)
    text = (SOURCE / "docker/nginx/nginx.conf").read_text()
    assert "/etc/nginx/certificates/" in text
    file = tmp_path / "nginx.conf"
    # nginx's own image has that module in it.
    module = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n"
    file.write_text(module + text.replace("/etc/nginx/certificates", str(tmp_path)))
    options = f"daemon off; user root; pid {tmp_path}/nginx.pid;"
    net.proxy.popen("nginx", "-c", str(file), "-g", options, log=tmp_path / "nginx.log")
    wait_until("nginx serves", lambda: net.client.succeeds(*OTHER_SITE))

    comes_through(net, tmp_path)
    assert "Welcome to nginx" in net.client.run(*OTHER_SITE)


def test_a_websocket_behind_nginx(net: Net, tmp_path: Path) -> None:
    """nginx opens TLS, by the template of docker/websocket, filled in as its own image does."""
    values = {"VPN_NAME": "vpn.example.org", "VPN_PATH": "/OiChohXah5ziehae3ooK"}
    net.container.environment |= {**values, "VPN_WEBSOCKET": "0.0.0.0:8080"}
    net.container.start()
    web = authority("Web CA")
    own = entity("vpn.example.org", web, number=8, sans=("vpn.example.org",))
    (tmp_path / "site.pem").write_bytes(own.pem)
    (tmp_path / "site.key").write_bytes(own.key_pem)
    text = (SOURCE / "docker/websocket/vpn.conf.template").read_text()
    text = text.replace("/etc/nginx/certificates", str(tmp_path))
    for name, value in values.items():
        text = text.replace(f"${{{name}}}", value)
    file = tmp_path / "nginx.conf"
    file.write_text(f"events {{}}\nhttp {{\n{text}}}\n")
    options = f"daemon off; user root; pid {tmp_path}/nginx.pid; error_log stderr;"
    net.proxy.popen("nginx", "-c", str(file), "-g", options, log=tmp_path / "nginx.log")
    wait_until("nginx serves", lambda: net.client.succeeds(*OTHER_SITE))

    (tmp_path / "web.pem").write_bytes(web.pem)
    profile = tmp_path / "alice.toml"
    trusting = f'[client]\ntls_ca = "{tmp_path}/web.pem"'
    profile.write_text(net.container.out.read_text().replace("[client]", trusting))
    client = Daemon(net.client, profile, "connect", "--json", "--carrier", "ws")
    client.tells("established")
    wait_until("a ping", lambda: net.client.succeeds("ping", "-c1", "-W1", "10.20.0.1"))
    assert client.stop() == 0
    assert "Welcome to nginx" in net.client.run(*OTHER_SITE)


def test_who_comes_past_the_proxy_needs_no_header(net: Net, tmp_path: Path) -> None:
    """UDP and TCP 4500 have ports of their own; only what the proxy sends must have one."""
    believes_the_proxy(net)
    net.proxy.sysctl("net.ipv4.ip_forward", 1)
    profile = tmp_path / "alice.toml"
    text = net.container.out.read_text()
    profile.write_text(text.replace(f'gateway = "{PROXY}"', 'gateway = "172.30.44.3"'))
    net.client.route("172.30.44.0/24", via=PROXY)
    client = Daemon(net.client, profile, "connect", "--json", "--carrier", "tcp")
    client.tells("established")
    assert client.stop() == 0
    refused = subprocess.run(
        net.proxy.command("curl", "-sk", "https://172.30.44.3/"), check=False, timeout=30
    )
    assert refused.returncode != 0
