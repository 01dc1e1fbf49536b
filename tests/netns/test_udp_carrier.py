"""UDP transports where the link is narrow, slow or gone.

client 192.0.2.1 ---- MTU 1400 ---- 192.0.2.2 gateway, which knows no way to 198.51.100.0/24
"""

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.io.samples import IKE, PATIENCE_S, Owner, esp, local, train, until
from tests.kit.netns import Namespace, wire
from tunnelwrap.errors import ConnectFailed
from tunnelwrap.transport.dial import open_udp
from tunnelwrap.transport.udp import UdpTransport

pytestmark = pytest.mark.root

MTU = 1400
GATEWAY = local(4500, "192.0.2.2")


@dataclass
class Link:
    """Two hosts on a wire, and a plain socket on the gateway."""

    client: Namespace
    gateway: Namespace
    receiver: socket.socket

    def open(self, owner: Owner, ip: str = "192.0.2.2") -> UdpTransport:
        """A transport of the client's."""
        with self.client.entered():
            loop = asyncio.get_running_loop()
            return open_udp(local(4500, ip), owner.batch, owner.error, loop, has_marker=True)

    async def receive(self, count: int) -> list[bytes]:
        """That many datagrams at the gateway."""
        receive = self.receiver.recv
        return [await asyncio.to_thread(receive, 65536) for _ in range(count)]


@pytest.fixture
def link() -> Iterator[Link]:
    with Namespace("client") as client, Namespace("gateway") as gateway:
        wire(client, "eth0", ["192.0.2.1/24"], gateway, "eth0", ["192.0.2.2/24"])
        for host in (client, gateway):
            host.ip("link", "set", "eth0", "mtu", str(MTU))
        client.route("default", via="192.0.2.2")
        gateway.sysctl("net.ipv4.ip_forward", 1)
        gateway.ip("route", "add", "unreachable", "198.51.100.0/24")
        with gateway.entered():
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with receiver:
            receiver.settimeout(PATIENCE_S)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            receiver.bind(("192.0.2.2", 4500))
            yield Link(client, gateway, receiver)


async def test_max_datagram_is_what_the_mtu_carries(link: Link) -> None:
    transport = link.open(Owner())
    with link.client.entered():  # where the route is asked for
        assert transport.max_datagram == MTU - 28
    transport.close()


async def test_what_exceeds_the_mtu_arrives_all_the_same(link: Link) -> None:
    """The plane may not know yet that the MTU has shrunk, and IKE has no fragments of its own."""
    transport = link.open(Owner())
    packets = [esp(number, 1472) for number in range(100)]
    assert transport.send_esp(*train(packets)) == 0
    assert await link.receive(len(packets)) == packets
    transport.send(esp(1, 6000))
    assert await link.receive(1) == [esp(1, 6000)]
    transport.close()


async def test_a_full_socket_loses_esp_and_lets_ike_wait(link: Link) -> None:
    link.client.run(
        *("tc", "qdisc", "add", "dev", "eth0", "root"),
        *("tbf", "rate", "50mbit", "burst", "20000", "limit", "8000000"),
    )
    owner = Owner()
    transport = link.open(owner)
    packets = [esp(number, 1372) for number in range(400)]
    sent = lost = 0
    for _ in range(10):
        dropped = transport.send_esp(*train(packets))
        sent, lost = sent + len(packets) - dropped, lost + dropped
    transport.send(IKE)
    transport.send(IKE + b"2")
    assert lost
    arrived = await link.receive(sent + 2)
    assert arrived[-2:] == [IKE, IKE + b"2"]
    assert not owner.errors
    transport.close()


async def test_a_router_that_knows_no_way_says_so(link: Link) -> None:
    owner = Owner()
    transport = link.open(owner, "198.51.100.9")
    transport.send(IKE)
    await until(lambda: owner.errors)
    assert str(owner.errors[0]) == "no route to host"
    transport.close()


async def test_no_route(link: Link) -> None:
    link.client.ip("route", "del", "default")
    with pytest.raises(ConnectFailed, match=r"^network is unreachable$"):
        link.open(Owner(), "198.51.100.9")


async def test_a_route_that_is_lost_is_told(link: Link) -> None:
    owner = Owner()
    transport = link.open(owner, "198.51.100.9")
    link.client.ip("route", "del", "default")
    transport.send(IKE)
    assert transport.send_esp(*train([esp(1), esp(2)])) == 2
    await until(lambda: owner.errors)
    assert {str(error) for error in owner.errors} == {"network is unreachable"}
    transport.close()
