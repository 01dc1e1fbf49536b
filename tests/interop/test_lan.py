"""Phones behind a router that knows a way where UDP does not pass.

    phone0 192.168.1.10 --+
                          +-- br-lan router 192.0.2.1 --- no UDP --- 192.0.2.2 relay
    phone1 192.168.1.11 --+     wrap --lan                           strongSwan --- 10.72.0.1

The phones are strongSwan as it is, with its ports 500 and 4500, and know the gateway's address
only. The router masquerades what it forwards, as routers do, and one phone
has spoken to the gateway by it before. README.md has the recipe.
"""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.lan import INNER_HOST, INNER_NETWORK, POOL, RESPONDER, Lan
from tests.interop.settings import ESP, GATEWAY, IKE
from tests.interop.wrapping import SECRET, UDP_DROPPED, Wrapper, relay_toml
from tests.kit.netns import Namespace
from tests.kit.strongswan import StrongSwan, Tree, initiator, psk_sides, responder, wait_until

pytestmark = [pytest.mark.root, pytest.mark.interop]

PHONES = 2

MASQUERADED = """
table inet nat {
  chain out { type nat hook postrouting priority srcnat; oifname "wire" masquerade; }
}
"""


@dataclass
class House:
    """A router's side of the world."""

    lan: Lan
    phones: list[StrongSwan]
    gateway: StrongSwan
    relay: Wrapper
    router: str
    directory: Path

    def wrap(self) -> Wrapper:
        """Start it on the router."""
        text = (
            f'[wrap]\ngateway = "{RESPONDER}"\nserver_name = "{GATEWAY}"\n'
            f'tls_ca = "{self.directory}/ca.pem"\ncarriers = ["udp", "tls"]\n'
            f'lan = ["br-lan"]\nstate_directory = "{self.directory}/state"\n'
        )
        return Wrapper(self.router, "wrap", [text], self.directory)

    def rules(self) -> str:
        """What is changed for clients on the router."""
        commands = (
            ["ip", "rule"],
            ["ip", "route", "show", "table", "all"],
            ["nft", "list", "tables"],
        )
        prefix = ["ip", "netns", "exec", self.router]
        text = "".join(subprocess.check_output([*prefix, *each], text=True) for each in commands)
        # Of themselves links get addresses, once nobody has objected for a second or two.
        return "".join(line for line in text.splitlines(True) if "local fe80::" not in line)


@contextmanager
def house(lan: Lan, directory: Path) -> Iterator[House]:
    """The phones' LAN on the initiator's side of a wire by which no UDP passes."""
    with ExitStack() as stack:
        phones = [stack.enter_context(Namespace(f"phone{n}")) for n in range(PHONES)]
        _join(lan.initiator, phones)
        _speak(phones[0])
        relay = Wrapper(lan.responder, "relay", [relay_toml(directory)], directory)
        stack.callback(relay.stop)
        gateway = stack.enter_context(StrongSwan(lan.responder, directory / "gateway"))
        local, remote, _ = psk_sides(GATEWAY, "*.example.org", SECRET)
        common = {"network": INNER_NETWORK, "ike": IKE, "esp": ESP}
        tree = responder((local, remote), address="%any", pool=POOL, **common)
        secrets: Tree = {"ike-1": {"secret": f'"{SECRET}"'}}
        gateway.load({**tree, "secrets": secrets})
        daemons = []
        for number, phone in enumerate(phones):
            daemon = StrongSwan(phone.name, directory / f"phone{number}")
            stack.enter_context(daemon)
            local, remote, _ = psk_sides(f"client{number}.example.org", GATEWAY, SECRET)
            sides = initiator((local, remote), peer=RESPONDER, more={"encap": "no"}, **common)
            daemon.load({**sides, "secrets": secrets})
            daemons.append(daemon)
        yield House(lan, daemons, gateway, relay, lan.initiator, directory)


def _join(router: str, phones: list[Namespace]) -> None:
    def ip(*words: str) -> None:
        subprocess.run(["ip", "-n", router, *words], check=True)

    ip("link", "add", "br-lan", "type", "bridge")
    ip("address", "add", "192.168.1.1/24", "dev", "br-lan")
    ip("link", "set", "br-lan", "up")
    for number, phone in enumerate(phones):
        port = f"port{number}"
        ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", phone.name)
        ip("link", "set", port, "master", "br-lan", "up")
        phone.address("eth0", f"192.168.1.{10 + number}/24")
        phone.ip("link", "set", "eth0", "up")
        phone.route("default", via="192.168.1.1")
    enter = ["ip", "netns", "exec", router]
    subprocess.run([*enter, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
    rules = UDP_DROPPED + MASQUERADED
    subprocess.run([*enter, "nft", "-f", "-"], input=rules, text=True, check=True)


def _speak(phone: Namespace) -> None:
    """Have the router's NAT know that this phone speaks to the gateway."""
    with phone.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 500))
        sock.sendto(b"nothing", (RESPONDER, 500))


def pings(phone: StrongSwan) -> bool:
    """Whether the inner host answers."""
    command = ["ip", "netns", "exec", phone.namespace, "ping", "-q", "-c1", "-W1", INNER_HOST]
    return any(
        subprocess.run(command, check=False, capture_output=True).returncode == 0 for _ in range(10)
    )


def test_phones_connect_through_the_router(lan: Lan, tmp_path: Path) -> None:
    with house(lan, tmp_path) as at:
        before = at.rules()
        wrap = at.wrap()
        try:
            for phone in at.phones:
                done = phone.initiate("net", 30)
                assert done.returncode == 0, f"{done.stdout}\n{wrap.log}"
            assert all(map(pings, at.phones)), wrap.log
            assert [way["carrier"] for way in wrap.ways] == ["tls", "tls"]
            homes = sorted(str(way["local"]) for way in wrap.ways)
            assert homes == ["192.168.1.10:4500", "192.168.1.11:4500"]
            assert len(at.relay.ways) == 2
            at.phones[1].rekey_ike("peer")
            at.phones[0].rekey_child("net")
            assert all(map(pings, at.phones))
        finally:
            wrap.stop()
        assert at.rules() == before


@pytest.mark.slow
def test_a_wrapper_that_was_killed_is_no_loss(lan: Lan, tmp_path: Path) -> None:
    """The next one takes back what it has left, and the IKE SAs go on."""
    with house(lan, tmp_path) as at:
        before = at.rules()
        killed = at.wrap()
        try:
            done = at.phones[0].initiate("net", 30)
            assert done.returncode == 0, f"{done.stdout}\n{killed.log}"
        finally:
            killed.process.kill()
            killed.process.wait()
        assert at.rules() != before
        wrap = at.wrap()
        try:
            at.phones[0].rekey_child("net")
            wait_until(lambda: pings(at.phones[0]), 10, "the tunnel goes on", lambda: wrap.log)
            assert len(at.relay.ways) == 1
            assert len(at.phones[0].logged("IKE_SA peer.* established between")) == 1
        finally:
            wrap.stop()
        assert at.rules() == before
