"""Two planes between two namespaces: real TUN devices, a real TCP stream, a real kernel above.

    tw-plane-a                                                  tw-plane-b
    10.1.0.1 fd01::1                                            10.2.0.1 fd02::1
    TUN ---- plane ---- RFC 9329 frames over TCP (lo) ---- plane ---- TUN

Both planes run in the test's own event loop; ping and iperf3 run in the namespaces.
"""

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.kit.carriers import SocketTransport
from tests.unit.dataplane.samples import FAR, FAR_6, NEAR, NEAR_6, child_of, suite_of
from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.dataplane.userspace import UserspacePlane, tun_mtu_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

SPACES = ("tw-plane-a", "tw-plane-b")
ADDRESSES = ((NEAR, NEAR_6), (FAR, FAR_6))
MAX_DATAGRAM = 1448


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


async def inside(space: str, *command: str) -> str:
    """What a program prints in a namespace; its exit status is left to the reader."""
    process = await asyncio.create_subprocess_exec(
        *["ip", "netns", "exec", space, *command],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await asyncio.wait_for(process.communicate(), 60)
    return printed.decode()


@pytest.fixture
def spaces() -> Iterator[tuple[str, str]]:
    for space in SPACES:
        subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
        ip("netns", "add", space)
        ip("-n", space, "link", "set", "lo", "up")
    yield SPACES
    for space in SPACES:
        ip("netns", "del", space)


def stream() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over lo."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


class Tunnel:
    """Both planes, their transports and devices."""

    def __init__(self, spaces: tuple[str, str], suite: str, mtu: int, max_datagram: int) -> None:
        loop = asyncio.get_running_loop()
        self.planes: list[UserspacePlane] = []
        self.transports: list[SocketTransport] = []
        for side, (space, end) in enumerate(zip(spaces, stream(), strict=True)):
            tun = Tun.open("twplane%d")
            self._configure(space, tun.name, side, mtu)
            plane = UserspacePlane(tun, loop, lambda _spi, _is_hard: None, mtu)
            transport = SocketTransport(loop, end, self._feed(plane), max_datagram)
            plane.install(child_of(side, suite=suite), transport, use_outbound=True)
            self.planes.append(plane)
            self.transports.append(transport)

    @staticmethod
    def _configure(space: str, name: str, side: int, mtu: int) -> None:
        ip("link", "set", name, "netns", space)
        ip("-n", space, "link", "set", name, "mtu", str(mtu), "up")
        for address in ADDRESSES[side]:
            options = ["nodad"] if ":" in address else []
            ip("-n", space, "address", "add", address, "dev", name, *options)
        for address in ADDRESSES[1 - side]:
            ip("-n", space, "route", "add", address, "dev", name)

    @staticmethod
    def _feed(plane: UserspacePlane) -> Callable[..., None]:
        def feed(transport: SocketTransport, batch: list[memoryview]) -> None:
            assert plane.feed(transport, batch) == []

        return feed

    def drops(self) -> list[dict[str, int]]:
        """Drops but for the kernel's own neighbour and router chatter on the TUN."""
        return [
            {cause: count for cause, count in plane.drops.items() if cause != "no-policy"}
            for plane in self.planes
        ]

    def close(self) -> None:
        for plane, transport in zip(self.planes, self.transports, strict=True):
            plane.close()
            transport.close()


Build = Callable[..., Tunnel]


@pytest.fixture
async def build(spaces: tuple[str, str]) -> AsyncIterator[Build]:
    made: list[Tunnel] = []

    def make(suite: str = "aes256gcm16", mtu: int = 0, max_datagram: int = MAX_DATAGRAM) -> Tunnel:
        mtu = mtu or tun_mtu_for(max_datagram, suite_of(suite))
        made.append(Tunnel(spaces, suite, mtu, max_datagram))
        return made[-1]

    yield make
    for tunnel in made:
        tunnel.close()


async def test_ping_of_both_versions(build: Build) -> None:
    tunnel = build()
    for target in (FAR, FAR_6):
        printed = await inside(SPACES[0], "ping", "-c", "5", "-i", "0.05", target)
        assert " 5 received" in printed
    assert tunnel.drops() == [{}, {}]
    assert tunnel.planes[0].counters(0x1000).packets_out >= 10


async def iperf(*options: str) -> dict:
    """One run of iperf3 from the first namespace to the second."""
    command = ["ip", "netns", "exec", SPACES[1], "iperf3", "-s", "-1", "--forceflush"]
    server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    try:
        async with asyncio.timeout(10):
            while b"listening" not in await server.stdout.readline():
                pass
        return json.loads(await inside(SPACES[0], "iperf3", "-J", *options))
    finally:
        if server.returncode is None:
            server.kill()
        await server.communicate()


@pytest.mark.parametrize("suite", ["aes256gcm16", "chacha20poly1305", "aes256-sha512"])
@pytest.mark.parametrize("options", [[], ["-R"]], ids=["up", "down"])
@pytest.mark.parametrize("target", [FAR, FAR_6], ids=["ipv4", "ipv6"])
async def test_tcp_in_bulk(build: Build, suite: str, options: list[str], target: str) -> None:
    """Super-packets both ways: what iperf3 sent arrived, and nothing was dropped on the way.

    iperf3 stops counting at the receiver a moment before the last octets are there.
    """
    tunnel = build(suite)
    result = await iperf("-c", target, "-n", "40M", *options)
    assert result["end"]["sum_sent"]["bytes"] >= 40 << 20
    assert result["end"]["sum_received"]["bytes"] > 30_000_000
    assert tunnel.drops() == [{}, {}]


async def test_several_flows_at_once(build: Build) -> None:
    tunnel = build()
    result = await iperf("-c", FAR, "-n", "40M", "-P", "8")
    assert result["end"]["sum_received"]["bytes"] > 30_000_000
    assert tunnel.drops() == [{}, {}]


async def test_the_kernel_believes_our_icmp(build: Build) -> None:
    """With a TUN wider than the path, the sender learns the path's MTU from us."""
    tunnel = build(mtu=1500, max_datagram=1340)
    limit = tun_mtu_for(1340, suite_of("aes256gcm16"))
    for target in (FAR, FAR_6):
        command = ["ping", "-M", "do", "-s", str(limit), "-c", "2", "-W", "1", target]
        await inside(SPACES[0], *command)
        route = await inside(SPACES[0], "ip", "route", "get", target)
        assert f"mtu {limit}" in route
    assert tunnel.drops()[0] == {"too-big": 2}


async def test_large_datagrams_are_fragmented_where_they_may(build: Build) -> None:
    tunnel = build(mtu=1500, max_datagram=1000)
    printed = await inside(SPACES[0], "ping", "-M", "dont", "-s", "3000", "-c", "2", FAR)
    assert " 2 received" in printed
    assert tunnel.drops() == [{}, {}]


async def test_tcp_over_a_path_narrower_than_the_tun(build: Build) -> None:
    """MSS clamping makes it fit without a single refusal."""
    tunnel = build(mtu=1500, max_datagram=1000)
    result = await iperf("-c", FAR, "-n", "5M")
    assert result["end"]["sum_sent"]["bytes"] >= 5 << 20
    assert tunnel.drops() == [{}, {}]
