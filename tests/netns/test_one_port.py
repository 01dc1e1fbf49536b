"""TCP 443 for all: the tunnel, the web site, another web server and sshd, with real clients.

The hosts are those of ``tests.kit.daemons``. Where HAProxy is in front it runs on the router:
clients connect to that then, and the gateway is told for whom it comes.
"""

import shutil
import socket
import subprocess
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from threading import Thread

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.kit import nginx
from tests.kit.certs import entity
from tests.kit.daemons import GATEWAY, NAME, Daemon, Hosts, Issued, hosts, wait_until
from tests.kit.netns import Namespace
from tests.kit.nginx import SITE
from tunnelwrap.crypto.x509 import load_certificates

pytestmark = pytest.mark.root

CLIENT, ROUTER, IN_FRONT = "198.51.100.2", "198.51.100.1", "203.0.113.1"
OTHER_NAME = "other.example"
OCTETS = 24 << 20
GATE = {"word": "OHBAEPHEIWAHCHAI"}
SSHD = """
ListenAddress 127.0.0.1:22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/login_key.pub
PidFile none
StrictModes no
UsePAM no
"""
HAPROXY = f"""
defaults
 mode tcp
 timeout connect 5s
 timeout client 60s
 timeout server 60s
listen gateway
 bind {ROUTER}:443
 server gateway {GATEWAY}:443 send-proxy-v2
"""


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return Issued.by_init(tmp_path_factory.mktemp("issued"))


@dataclass
class OnePort:
    """Hosts with a gateway that has servers behind it, and the address to connect to."""

    net: Hosts
    gateway: Daemon
    address: str
    folder: Path

    def ssh(self, command: str) -> str:
        """Run a command on the gateway by ssh on port 443."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        return self.net.client.run(
            *("ssh", "-p", "443", "-i", str(self.folder / "login_key"), "-o", "BatchMode=yes"),
            *(word for option in options for word in ("-o", option)),
            *(f"root@{self.address}", command),
        )

    def curl(self, name: str) -> str:
        """The page of a web site on port 443."""
        there = f"{name}:443:{self.address}"
        return self.net.client.run("curl", "-sSk", "--resolve", there, f"https://{name}/")

    def chromium(self, name: str) -> str:
        """What a browser makes of a web site on port 443 whose certificate it trusts."""
        return self.net.client.run(
            *(program("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--disable-dev-shm-usage", "--dump-dom", "--timeout=20000"),
            f"--user-data-dir={mkdtemp(dir=self.folder)}",
            f"--host-resolver-rules=MAP {name} {self.address}",
            f"--ignore-certificate-errors-spki-list={self.spki}",
            f"https://{name}/",
        )

    @property
    def spki(self) -> str:
        """The fingerprint of the gateway's public key, by which the browser knows it."""
        gateway = self.net.issued.gateway["gateway"]
        assert isinstance(gateway, dict)
        certificate = load_certificates(Path(gateway["tls"]["certificate"]).read_bytes())[0]
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        digest = sha256(certificate.public_key().public_bytes(*form)).digest()
        return b64encode(digest).decode()

    def counters(self) -> Counter[str]:
        """Those of the gateway's stream ports."""
        streams = self.gateway.status["streams"]
        assert isinstance(streams, dict)
        return Counter(streams)


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "haproxy"])
def port(
    issued: Issued, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[OnePort]:
    has_front, tmp_path = request.param, tmp_path_factory.mktemp("port")
    with hosts(issued, tmp_path) as net:
        start_servers(net.gateway, tmp_path)
        own = issued.gateway["gateway"]
        assert isinstance(own, dict)
        nginx.start_behind(net.gateway, tmp_path / "nginx", own["tls"])
        settings: dict[str, object] = {
            "routes": [
                {"sni": [OTHER_NAME, f"*.{OTHER_NAME}"], "backend": "127.0.0.1:8443"},
                {"begins_with": "ssh", "backend": "127.0.0.1:22"},
                {"begins_with": "silent", "backend": "127.0.0.1:22"},
            ],
            "route_silence_s": 1,
            "gate": GATE,
            "cover": {"proxy": "https://127.0.0.1:9443", "send_proxy": "v2"},
        }
        if has_front:
            (tmp_path / "haproxy.cfg").write_text(HAPROXY)
            net.router.popen(program("haproxy"), "-db", "-f", str(tmp_path / "haproxy.cfg"))
            settings["proxies"] = [IN_FRONT]
        gateway = net.serve({"gateway": settings})
        address = ROUTER if has_front else GATEWAY
        wait_until("somebody listens", lambda: listens(net.client, address, 443))
        yield OnePort(net, gateway, address, tmp_path)
        assert gateway.process.poll() is None


def program(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/bin")
    assert found is not None, f"the Debian package of {name}"
    return found


def start_servers(host: Namespace, folder: Path) -> None:
    """An sshd and a web server, where nobody but the gateway reaches them."""
    for key in ("host_key", "login_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(command, check=True, timeout=20)
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    host.popen(program("sshd"), "-D", "-f", str(folder / "sshd_config"))
    other = entity(OTHER_NAME, None, number=9, sans=(OTHER_NAME,))
    (folder / "other.pem").write_bytes(other.pem + other.key_pem)
    host.popen(
        *("openssl", "s_server", "-accept", "127.0.0.1:8443", "-www", "-quiet"),
        *("-cert", str(folder / "other.pem")),
    )
    for number in (22, 8443):
        wait_until(f"port {number}", lambda number=number: listens(host, "127.0.0.1", number))


def listens(host: Namespace, address: str, number: int) -> bool:
    with host.entered(), socket.socket() as sock:
        return sock.connect_ex((address, number)) == 0


def test_all_at_once(port: OnePort) -> None:
    before, pages = port.counters(), list[str]()
    client = port.net.connect(
        {"client": {"gateway": port.address, "carriers": ["tls"], "gate": GATE}}
    )
    transfer = port.net.download(OCTETS)
    transfer.has_received(1 << 20)
    browsing = Thread(target=lambda: pages.append(port.chromium(NAME)))
    browsing.start()
    for _ in range(3):
        assert port.ssh("echo from sshd; echo $SSH_CONNECTION").startswith("from sshd\n127.0.0.1")
        assert SITE in port.curl(NAME)
        assert "s_server" in port.curl(OTHER_NAME)
        assert "s_server" in port.curl(f"www.{OTHER_NAME}")
    browsing.join()
    transfer.finish()
    assert SITE in pages[0]
    seen = (port.folder / "nginx" / "log").read_text().splitlines()
    assert set(seen) == {f"{CLIENT} 200", "0.0.0.0 200"}  # the latter at the start
    new = port.counters() - before
    assert new["ssh"] == new["to 127.0.0.1:22"] == 3
    assert new["tls_passed"] == new["to 127.0.0.1:8443"] == 6
    assert new["ike_tls"] == 1
    (sa,) = port.gateway.sas
    assert str(sa["peer"]).rpartition(":")[0] == CLIENT
    assert client.stop() == 0


def test_who_waits_for_the_servers_words(port: OnePort) -> None:
    before = port.counters()
    with port.net.client.entered():
        sock = socket.create_connection((port.address, 443), timeout=20)
    with sock:
        assert sock.recv(100).startswith(b"SSH-2.0-OpenSSH")
        sock.sendall(b"SSH-2.0-late\r\n")
        assert sock.recv(100)
    assert (port.counters() - before)["silent"] == 1


def test_a_long_way_through_ssh(port: OnePort) -> None:
    """Both directions, each to its end."""
    size = 8 << 20
    assert port.ssh(f"head -c {size} /dev/zero | wc -c").strip() == str(size)
    octets = port.ssh(f"head -c {size} /dev/zero | tr '\\0' x")
    assert octets == "x" * size


def test_a_server_that_is_gone(port: OnePort) -> None:
    port.net.gateway.nft(
        "table inet gone {\nchain output {\ntype filter hook output priority 0\n"
        "oif lo tcp dport 8443 reject with tcp reset\n}\n}"
    )
    assert not port.net.client.succeeds(
        *("curl", "-sSk", "--resolve", f"{OTHER_NAME}:443:{port.address}", f"https://{OTHER_NAME}/")
    )
    port.gateway.says("127.0.0.1:8443 behind us cannot be reached: connection refused")
    assert SITE in port.curl(NAME)
    assert port.counters()["unreachable"] == 1
