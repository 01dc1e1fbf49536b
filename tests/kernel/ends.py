"""Two hosts on a wire with the kernel's data plane, without IKE.

    near                                                              far
    10.1.0.1 fd01::1 on lo                          10.2.0.1 fd02::1 on lo
    192.0.2.1, 2001:db8::1 ------------------------ 192.0.2.2, 2001:db8::2

The planes run in this process, in the event loop of the test; ping runs on the hosts. Under a
kernel with xfrm interfaces, such interfaces lead to the other host's inner addresses.
"""

import asyncio
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.kit.kernel import IN_GUEST, INTERFACE
from tests.kit.netns import Namespace, wire
from tests.unit.dataplane.samples import FAR, FAR_6, NEAR, NEAR_6, child_of
from tunnelwrap.dataplane.netlink import XfrmSocket
from tunnelwrap.dataplane.xfrm import KernelPlane
from tunnelwrap.dataplane.xfrm_tags import tag_of
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.path import Carrier, SocketAddress
from tunnelwrap.path import Path as NetworkPath
from tunnelwrap.transport import Transport
from tunnelwrap.transport.udp import UdpListener

IF_ID = 0x4200 if os.environ.get(IN_GUEST) == INTERFACE else 0
DEVICE = "ipsec0"

by_policies = pytest.mark.skipif(
    IF_ID != 0, reason="it is about policies that rule all devices, which choose_plane knows"
)
"""Transport mode, traps, and what others have for all devices or send by another one."""

OUTER = ("192.0.2.1", "192.0.2.2")
OUTER_6 = ("2001:db8::1", "2001:db8::2")
THIRD = ("192.0.2.11", "192.0.2.12")
INNER = ((NEAR, NEAR_6), (FAR, FAR_6))
TAG = tag_of("test")
NAT_PORT = 4500


class Host:
    """One end: its plane, its UDP sockets, and what the plane told."""

    def __init__(self, host: Namespace, side: int) -> None:
        self.host, self.side = host, side
        self.expired: list[tuple[int, bool]] = []
        self.mapped: list[tuple[int, SocketAddress]] = []
        self._listeners: dict[SocketAddress, UdpListener] = {}
        self._counted_before = self._counters()
        self.plane = self.make_plane()

    def make_plane(self) -> KernelPlane:
        with self.host.entered():
            return KernelPlane(
                TAG,
                asyncio.get_running_loop(),
                lambda spi, is_hard: self.expired.append((spi, is_hard)),
                lambda spi, peer: self.mapped.append((spi, peer)),
                IF_ID,
            )

    def transport(
        self, local: str, peer: str, *, port: int = NAT_PORT, peer_port: int = NAT_PORT
    ) -> Transport:
        """A way over UDP, by a socket of its own."""
        ours = SocketAddress(ip_address(local), port)
        if ours not in self._listeners:
            with self.host.entered():
                self._listeners[ours] = UdpListener(
                    *(ours, lambda _transport, _batch: None, asyncio.get_running_loop()),
                    has_marker=True,
                    kernel_esp=True,
                )
        path = NetworkPath(ours, SocketAddress(ip_address(peer), peer_port), Carrier.UDP)
        found = self._listeners[ours].transport_for(path)
        assert found is not None
        return found

    def install(self, child: ChildSa, ways: tuple[str, str] = OUTER, *, out: bool = True) -> None:
        """Install a side of a Child SA between two addresses."""
        way = self.transport(ways[self.side], ways[1 - self.side])
        self.plane.install(child, way, use_outbound=out)

    def statistics(self) -> dict[str, int]:
        """What the kernel's IPsec dropped on this host since the test began."""
        return dict(self._counters() - self._counted_before)

    def _counters(self) -> Counter[str]:
        with self.host.entered():
            lines = Path("/proc/thread-self/net/xfrm_stat").read_text().splitlines()
        return Counter({name: int(value) for name, value in map(str.split, lines)})

    def close(self) -> None:
        self.plane.close()
        for listener in self._listeners.values():
            listener.close()


Ends = tuple[Host, Host]


@contextmanager
def two_hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """The hosts, which may serve many tests: a program takes half a second to start there."""
    with Namespace("near") as near, Namespace("far") as far:
        wire(
            *(near, "eth0", [f"{OUTER[0]}/24", f"{THIRD[0]}/24", f"{OUTER_6[0]}/64"]),
            *(far, "eth0", [f"{OUTER[1]}/24", f"{THIRD[1]}/24", f"{OUTER_6[1]}/64"]),
        )
        for host, own, others in ((near, INNER[0], INNER[1]), (far, INNER[1], INNER[0])):
            host.address("lo", f"{own[0]}/32", f"{own[1]}/128")
            if IF_ID:
                host.ip("link", "add", DEVICE, "type", "xfrm", "if_id", str(IF_ID))
                host.ip("link", "set", DEVICE, "mtu", "1400", "up")
            for other in others:
                host.route(other, dev=DEVICE if IF_ID else "eth0")
        yield near, far


@contextmanager
def two_ends(hosts: tuple[Namespace, Namespace]) -> Iterator[Ends]:
    """Each host with its plane, in a kernel where nobody else has anything."""
    for host in hosts:
        with host.entered(), XfrmSocket() as kernel:
            kernel.flush_sas()
            kernel.flush_policies()
    made = Host(hosts[0], 0), Host(hosts[1], 1)
    yield made
    for end in made:
        end.close()


async def on(host: Namespace, *command: str) -> str:
    """What a program prints on a host, while the event loop goes on."""
    process = await asyncio.create_subprocess_exec(
        *host.command(*command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    printed, _ = await asyncio.wait_for(process.communicate(), 60)
    return printed.decode()


async def answered(
    end: Host, source: str, target: str, count: int = 2, *, patience_s: int = 1
) -> int:
    """How many pings come back, and none later than that."""
    pause = ["-i", "0.01", "-W", str(patience_s), "-c", str(count)]
    printed = await on(end.host, "ping", "-n", "-q", *pause, "-I", source, target)
    found = re.search(r"(\d+) received", printed)
    assert found is not None, printed
    return int(found[1])


def install(ends: Ends, ways: tuple[str, str] = OUTER, **of: object) -> None:
    for end in ends:
        end.install(child_of(end.side, **of), ways)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 -- it is the kernel that changes it
            await asyncio.sleep(0.02)


async def states(end: Host) -> list[str]:
    return re.findall(r"spi (0x\w+)", await on(end.host, "ip", "xfrm", "state"))


async def policies(end: Host) -> int:
    """How many there are that no socket has to itself."""
    return len(re.findall(r"\bdir (?:in|out|fwd)", await on(end.host, "ip", "xfrm", "policy")))
