"""Route-based operation: everything in the kernel is tied to an xfrm interface.

    near: our ESP of this process, or a plane              far: a plane
    10.1.0.1 ------------- stream or wire ------------- ipsec0 10.2.0.1

``test_plane`` does all the rest under this kernel, too.
"""

import asyncio
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel.ends import DEVICE, IF_ID, OUTER, Ends, Host, answered, install, on
from tests.kernel.test_feeds import received
from tests.kit.carriers import MemoryTransport, packets_of, path_of
from tests.kit.policies import road_warrior
from tests.unit.dataplane.samples import FAR, FAR_6, NEAR, NEAR_6, child_of, selectors, udp
from tunnelwrap.daemon.host import Host as HostNetwork
from tunnelwrap.daemon.planes import Listeners, choose_plane
from tunnelwrap.dataplane.bridge import Bridge
from tunnelwrap.dataplane.esp import IPV4, OutboundSa
from tunnelwrap.dataplane.feed import require_policies
from tunnelwrap.dataplane.xfrm_tags import TAG_SHIFT, tag_of
from tunnelwrap.errors import DataPlaneError
from tunnelwrap.hostnet.netlink import InterfaceChange
from tunnelwrap.ike.child_sa import Mode
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.path import Carrier

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

PORT = 2000  # as udp() has it
FORGED = "10.3.0.1"


async def links(host: Host) -> str:
    return await on(host.host, "ip", "-s", "link", "show", DEVICE)


async def test_packets_go_by_the_interface_both_ways(ends: Ends) -> None:
    install(ends)

    assert await answered(ends[0], NEAR, FAR) == 2
    assert await answered(ends[0], NEAR_6, FAR_6) == 2

    for command in ("state", "policy"):
        printed = await on(ends[1].host, "ip", "xfrm", command)
        assert len(re.findall(rf"^\tif_id {IF_ID:#x}", printed, re.MULTILINE)) in (2, 6)
    counted = re.findall(r"^\s+\d+\s+(\d+)\s", await links(ends[1]), re.MULTILINE)
    assert counted == ["4", "4"]
    assert [end.statistics() for end in ends] == [{}, {}]


async def pings_at(host: Host) -> int:
    """How many have come to a host so far."""
    counters = await on(host.host, "cat", "/proc/net/snmp")
    names, values = re.findall(r"^Icmp: (.*)", counters, re.MULTILINE)
    return int(dict(zip(names.split(), values.split(), strict=True))["InEchos"])


async def test_what_no_policy_takes_does_not_leave_in_clear(ends: Ends) -> None:
    install(ends, local=selectors(f"{NEAR}/32"), peer=selectors("10.2.0.9/32"))
    before = await pings_at(ends[1])

    assert await answered(ends[0], NEAR, FAR) == 0
    assert await pings_at(ends[1]) == before


async def test_nobody_speaks_in_clear_for_a_single_host(ends: Ends) -> None:
    hosts = {"local": selectors(f"{NEAR}/32"), "peer": selectors("10.2.0.0/16")}
    ends[1].install(child_of(1, **hosts))
    ends[0].host.ip("route", "replace", FAR, "dev", "eth0")

    assert await answered(ends[0], NEAR, FAR) == 0
    assert ends[1].statistics() == {"XfrmInPolBlock": 2}

    ends[0].host.ip("route", "replace", FAR, "dev", DEVICE)
    ends[0].install(child_of(0, **hosts))
    assert await answered(ends[0], NEAR, FAR) == 2
    for end in ends:
        end.plane.close()
        assert "dir " not in await on(end.host, "ip", "xfrm", "policy")


async def test_policies_and_sas_of_others_stay(ends: Ends) -> None:
    selector = ("src", "10.4.0.1/32", "dst", f"{FAR}/32")
    ends[0].host.ip("xfrm", "policy", "add", *selector, "dir", "out", "action", "block")
    install(ends)

    assert await answered(ends[0], NEAR, FAR) == 2
    ends[0].plane.close()
    printed = await on(ends[0].host, "ip", "xfrm", "policy")
    assert printed.count("dir ") == 1
    assert "action block" in printed


@pytest.fixture
async def gateway(ends: Ends) -> Host:
    """The far host, which has a stream client instead of a peer on the wire."""
    with ends[1].host.entered():
        bridge = Bridge.create(asyncio.get_running_loop(), is_guarded=True)
        ends[1].plane.open_feed(bridge)
    return ends[1]


class StreamClient:
    """Our ESP at its end of a stream to the gateway, of side 0."""

    def __init__(self, gateway: Host) -> None:
        ours = child_of(0)
        self.transport = MemoryTransport(path_of(Carrier.TLS))
        self._outbound = OutboundSa(ours.spi_out, ours.suite, ours.keys_out, uses_esn=True)
        self._gateway = gateway
        with gateway.host.entered():
            gateway.plane.install(child_of(1), self.transport, use_outbound=True)

    def send(self, source: str) -> None:
        """A UDP packet to the gateway's inner address."""
        packet = udp(100, source, FAR)
        packet = packet[:26] + bytes(2) + packet[28:]  # without a checksum
        arena = memoryview(bytearray(self._outbound.slot(len(packet))))
        head, ends = self._outbound.head, list[int]()
        arena[head : head + len(packet)] = packet
        self._outbound.seal_batch(arena, 0, (1, len(packet), IPV4), ends)
        assert self._gateway.plane.feed(self.transport, packets_of(arena, ends)) == []


@pytest.fixture
def inbox(gateway: Host) -> Iterator[socket.socket]:
    with gateway.host.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind((FAR, PORT))
        sock.setblocking(False)
        yield sock


async def test_a_stream_client_cannot_forge_its_inner_address(
    gateway: Host, inbox: socket.socket
) -> None:
    with gateway.host.entered(), pytest.raises(DataPlaneError, match="disable_policy is not 0"):
        require_policies("lo")  # nothing but the interface guards it here
    client = StreamClient(gateway)

    client.send(NEAR)
    client.send(FORGED)
    client.send(NEAR)

    assert len(received(inbox)) == 2
    assert gateway.statistics() == {"XfrmInNoPols": 1}


async def test_answers_go_into_the_stream(gateway: Host, inbox: socket.socket) -> None:
    client = StreamClient(gateway)
    for _ in range(3):
        inbox.sendto(bytes(100), (NEAR, 9))
    async with asyncio.timeout(10):
        while len(client.transport.sent) < 3:  # noqa: ASYNC110 -- it is the kernel that sends
            await asyncio.sleep(0.01)
    assert gateway.plane.counters(0x1001).packets_out == 3


async def test_a_child_sa_moves_between_udp_and_a_stream(ends: Ends, gateway: Host) -> None:
    install(ends)
    assert await answered(ends[0], NEAR, FAR) == 2

    with gateway.host.entered():
        gateway.plane.move(0x1001, MemoryTransport(path_of(Carrier.TLS)))
    assert "127.64.0.1" in await on(gateway.host, "ip", "xfrm", "state")
    gateway.plane.move(0x1001, gateway.transport(OUTER[1], OUTER[0]))

    assert await answered(ends[0], NEAR, FAR) == 2
    printed = await on(gateway.host, "ip", "xfrm", "state")
    assert printed.count(f"if_id {IF_ID:#x}") == printed.count("proto esp") == 2
    assert gateway.plane.counters(0x1001).packets_in == 4
    assert gateway.statistics() == {}


def test_an_interface_is_made_and_taken_back_even_by_the_next_run(tmp_path: Path) -> None:
    first = HostNetwork("test", tmp_path)
    assert first.why_no_interface(9) is None
    first.make_interface(9)
    assert Path("/sys/class/net", first.device).exists()
    why = HostNetwork("test", tmp_path / "other").why_no_interface(9)
    assert why is not None
    assert "has the same already" in why
    first.close()
    assert not Path("/sys/class/net", first.device).exists()


def test_another_interface_of_that_name_stays() -> None:
    theirs, ours = InterfaceChange("ipsec9", 8), InterfaceChange("ipsec9", 9)
    theirs.apply()
    ours.undo()
    assert Path("/sys/class/net/ipsec9").exists()
    theirs.undo()
    theirs.undo()
    assert not Path("/sys/class/net/ipsec9").exists()


_, TUNNEL = road_warrior()
NOBODY = Listeners(lambda _spi, _is_hard: None, None, lambda _spi, _peer: None)


async def chosen(tmp_path: Path, policy: ConnectionPolicy) -> str:
    """What is said of the choice."""
    found = choose_plane("auto", HostNetwork("test", tmp_path), 1400, NOBODY, [policy], "test")
    found.plane.close()
    assert (found.if_id != 0) == ("xfrm interface tw-test" in str(found))
    return str(found)


async def test_an_interface_is_the_first_choice(tmp_path: Path) -> None:
    said = await chosen(tmp_path, TUNNEL)
    assert said == "data plane: kernel (it has all suites; xfrm interface tw-test)"
    assert "tw-test" not in {name for _, name in socket.if_nameindex()}


@pytest.mark.parametrize(
    "policy",
    [
        replace(TUNNEL, child=replace(TUNNEL.child, mode=Mode.TRANSPORT)),
        replace(TUNNEL, child=replace(TUNNEL.child, on_demand=True)),
        replace(TUNNEL, pool=None),
    ],
    ids=["transport", "on-demand", "own-address"],
)
async def test_what_no_route_can_lead_to_goes_by_policies(
    tmp_path: Path, policy: ConnectionPolicy
) -> None:
    assert "xfrm interface" not in await chosen(tmp_path, policy)


async def test_so_does_all_if_somebody_else_has_its_number(tmp_path: Path) -> None:
    theirs = InterfaceChange("ipsec9", tag_of("test") << TAG_SHIFT)
    theirs.apply()
    assert "xfrm interface" not in await chosen(tmp_path, TUNNEL)
    theirs.undo()
