"""The gateway's part on a router: what LAN clients send to it arrives, and is answered as by it.

phone ------------- lan router
192.168.1.10/24         192.168.1.1    the gateway's addresses are nowhere
2001:db8:1::10/64       2001:db8:1::1
"""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.netns import Namespace, wire
from tunnelwrap.daemon.host import Hold
from tunnelwrap.daemon.lan import Lan
from tunnelwrap.path import SocketAddress
from tunnelwrap.transport import Transport

pytestmark = pytest.mark.root

GATEWAYS = ("198.51.100.7", "2001:db8:7::7")
OUTSIDE = "203.0.113.9"
IPV4 = 0x0800  # its EtherType, of linux/if_ether.h
PATIENCE_S = 10.0
WHOLE, IN_PIECES = 100, 3000


@pytest.fixture
def phone() -> Iterator[Namespace]:
    """A phone; the calling thread is on its router."""
    with Namespace("phone") as phone, Namespace("router") as router:
        wire(
            *(phone, "eth0", ["192.168.1.10/24", "2001:db8:1::10/64"]),
            *(router, "lan", ["192.168.1.1/24", "2001:db8:1::1/64"]),
        )
        phone.route("default", via="192.168.1.1")
        phone.route("default", via="2001:db8:1::1")
        with router.entered():
            yield phone


class Echo:
    """Answers everything, and keeps whom it was for."""

    def __init__(self) -> None:
        self.asked: list[SocketAddress] = []

    def __call__(self, home: Transport, batch: Sequence[memoryview]) -> None:
        for octets in batch:
            self.asked.append(home.path.local)
            home.send(bytes(octets))


def client(phone: Namespace, gateway: str, port: int) -> socket.socket:
    with phone.entered():
        family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.settimeout(PATIENCE_S)
        sock.connect((gateway, port))  # it hears nobody else
    return sock


def lan_of(gateway: str, directory: Path, on_batch: Echo) -> Lan:
    loop = asyncio.get_running_loop()
    return Lan(Hold("home-1", directory / "state"), ["lan"], gateway, on_batch, loop)


@pytest.mark.parametrize("gateway", GATEWAYS)
async def test_the_gateway_seems_to_answer(phone: Namespace, tmp_path: Path, gateway: str) -> None:
    echo = Echo()
    lan = lan_of(gateway, tmp_path, echo)
    try:
        await lan.start()
        for port in (500, 4500):
            with client(phone, gateway, port) as sock:
                for length in (WHOLE, IN_PIECES):
                    sock.send(bytes(length))
                    assert await asyncio.to_thread(sock.recv, 65536) == bytes(length)
        assert [str(each.ip) for each in echo.asked] == [gateway] * 4
        assert [each.port for each in echo.asked] == [500, 500, 4500, 4500]
    finally:
        lan.close()


async def test_other_ports_of_the_gateway_are_left_alone(phone: Namespace, tmp_path: Path) -> None:
    echo = Echo()
    lan = lan_of(GATEWAYS[0], tmp_path, echo)
    try:
        await lan.start()
        with client(phone, GATEWAYS[0], 501) as other, client(phone, GATEWAYS[0], 500) as sock:
            other.send(b"501")
            sock.send(b"500")
            assert await asyncio.to_thread(sock.recv, 65536) == b"500"
        assert len(echo.asked) == 1
    finally:
        lan.close()


async def test_who_forges_its_source_has_nobody_told_in_the_gateways_name(
    phone: Namespace, tmp_path: Path
) -> None:
    """The address is one that the router reaches on its other side."""
    echo = Echo()
    lan = lan_of(GATEWAYS[0], tmp_path, echo)
    phone.address("lo", f"{OUTSIDE}/32")
    with other_side() as seen, client(phone, GATEWAYS[0], 500) as sock:
        try:
            await lan.start()
            with phone.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forging:
                forging.bind((OUTSIDE, 1234))
                forging.sendto(b"forged", (GATEWAYS[0], 500))
            sock.send(b"honest")
            assert await asyncio.to_thread(sock.recv, 65536) == b"honest"
        finally:
            lan.close()
        assert len(echo.asked) == 2
        with pytest.raises(BlockingIOError):
            seen.recv(65536)


@contextmanager
def other_side() -> Iterator[socket.socket]:
    """A device of the router that leads elsewhere; the socket sees which IPv4 packets go there."""
    for command in (
        "link add wan type veth peer name far",
        "link set wan up",
        "link set far up",
        f"route add {OUTSIDE} dev wan",
        f"neighbour add {OUTSIDE} lladdr 02:00:00:00:00:09 dev wan",
    ):
        subprocess.run(["ip", *command.split()], check=True, timeout=30)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as seen:
        seen.bind(("far", IPV4))
        seen.setblocking(False)
        yield seen


def test_a_device_that_is_not_there_is_named(phone: Namespace, tmp_path: Path) -> None:
    file = tmp_path / "wrap.toml"
    file.write_text(
        f'[wrap]\ngateway = "{GATEWAYS[0]}"\nike_port = 10500\nnat_port = 14500\n'
        'control_socket = "wrap.sock"\nstate_directory = "state"\n'
    )
    line = [sys.executable, "-m", "tunnelwrap", "wrap", "--lan", "wlan9", str(file)]
    done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "tunnelwrap: device wlan9: No such device"
    assert not (tmp_path / "state").exists()
