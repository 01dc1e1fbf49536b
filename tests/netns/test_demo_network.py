"""The demo's hosts by themselves: what the firewall lets through, and the web site.

client -------------- firewall -------------- gateway -------------- site
198.51.100.2     .1            203.0.113.1    .2      10.66.0.1      .2
"""

import json
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tunnelwrap.daemon.demo_network import GATEWAY_ADDRESS, SITE_ADDRESS, Block, DemoNetwork
from tunnelwrap.daemon.demo_words import Done, Ready, Received, Words
from tunnelwrap.errors import HostNetError, TunnelwrapError

pytestmark = pytest.mark.root

OCTETS = 3_000_001
TIMEOUT_S = 10.0

# Prints "open" where a probe is answered: by a TCP reset, or by an ICMP error for UDP.
PROBE = """
import socket, sys
kind = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}[sys.argv[1]]
sock = socket.socket(type=kind)
sock.settimeout(0.5)
try:
    sock.connect((sys.argv[2], int(sys.argv[3])))
    sock.send(b"?")
    sock.recv(1)
except ConnectionRefusedError:
    print("open")
except TimeoutError:
    print("dropped")
except OSError as error:
    print(error.strerror)
"""


@pytest.fixture
async def network(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DemoNetwork]:
    hosts = DemoNetwork(f"tw-{secrets.token_hex(2)}", request.param, tmp_path)
    try:
        await hosts.up()
        yield hosts
    finally:
        await hosts.down()


async def probe(network: DemoNetwork, kind: str, port: int, address: str = GATEWAY_ADDRESS) -> str:
    command = [sys.executable, "-c", PROBE, kind, address, str(port)]
    return (await network.run("client", *command)).decode().strip()


@pytest.mark.parametrize(
    ("network", "open_ports"),
    [
        (Block.NONE, {("udp", 4500), ("udp", 443), ("tcp", 4500), ("tcp", 443)}),
        (Block.UDP, {("tcp", 4500), ("tcp", 443)}),
        (Block.ALL_BUT_443, {("tcp", 443)}),
    ],
    indirect=["network"],
)
async def test_what_the_firewall_drops(
    network: DemoNetwork, open_ports: set[tuple[str, int]]
) -> None:
    for kind, port in (("udp", 4500), ("udp", 443), ("tcp", 4500), ("tcp", 443)):
        expected = "open" if (kind, port) in open_ports else "dropped"
        assert await probe(network, kind, port) == expected, (kind, port)


@pytest.mark.parametrize("network", [Block.NONE], indirect=True)
async def test_the_site_cannot_be_reached_without_the_tunnel(network: DemoNetwork) -> None:
    assert await probe(network, "tcp", 80, SITE_ADDRESS) == "Network is unreachable"


@pytest.mark.parametrize("network", [Block.NONE], indirect=True)
async def test_the_site_gives_and_takes_a_file(network: DemoNetwork, tmp_path: Path) -> None:
    site = network.start(
        *("site", "site", sys.executable, "-m", "tunnelwrap.daemon.demo_site"),
        *(SITE_ADDRESS, "80", str(tmp_path / "file"), str(OCTETS)),
    )
    ready = await Words(site).next(Ready, TIMEOUT_S)
    visitor = (sys.executable, "-m", "tunnelwrap.daemon.demo_visitor")

    first = await network.run("gateway", *visitor, "first", SITE_ADDRESS, "80")
    download = network.start("gateway", "down", *visitor, "download", SITE_ADDRESS, "80")
    upload = network.start("gateway", "up", *visitor, "upload", SITE_ADDRESS, "80", str(OCTETS))

    assert json.loads(first.splitlines()[-1])["event"] == "answered"
    done = await Words(download).next(Done, TIMEOUT_S)
    assert (done.octets, done.sha256) == (OCTETS, ready.sha256)
    words = Words(upload)
    sent = await words.next(Done, TIMEOUT_S)
    received = await words.next(Received, TIMEOUT_S)
    assert (received.octets, received.sha256) == (sent.octets, sent.sha256) == (OCTETS, sent.sha256)


@pytest.mark.parametrize("network", [Block.NONE], indirect=True)
async def test_a_program_that_fails_is_reported_with_what_it_said(network: DemoNetwork) -> None:
    code = "import sys; sys.exit('broken by design')"
    program = network.start("client", "failing", sys.executable, "-c", code)

    with pytest.raises(TunnelwrapError, match=r"failing: ended with status 1\n.*broken by design"):
        await Words(program).next(Ready, TIMEOUT_S)
    with pytest.raises(TunnelwrapError, match="broken by design"):
        await program.wait_for("ready", TIMEOUT_S)
    with pytest.raises(HostNetError, match="broken by design"):
        await network.run("client", sys.executable, "-c", code)


@pytest.mark.parametrize("network", [Block.NONE], indirect=True)
async def test_nothing_is_left_behind(network: DemoNetwork) -> None:
    sleeper = network.start("client", "sleeper", "sleep", "1000")
    resolver = Path("/etc/netns") / network.namespaces["client"] / "resolv.conf"
    assert resolver.exists()

    await network.down()

    assert sleeper.process.poll() is not None
    assert not resolver.exists()
    assert not [n for n in network.namespaces.values() if (Path("/run/netns") / n).exists()]
