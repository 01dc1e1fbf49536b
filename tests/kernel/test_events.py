"""What the kernel tells by itself: packets without an SA, limits, peers that moved."""

import select
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from tests.kernel.iproute import ip
from tests.kernel.test_algorithms import ESPINUDP, HERE, UDP_ENCAP, sealed
from tests.kernel.test_policies import OUT
from tests.kernel.test_sas import FAR, NEAR, SA, SPI
from tests.unit.dataplane.samples import keys_of, suite_of, udp
from tunnelwrap.dataplane.esp import OutboundSa
from tunnelwrap.dataplane.netlink import Group, XfrmMonitor, XfrmSocket
from tunnelwrap.dataplane.xfrm_messages import Msg, encoded
from tunnelwrap.dataplane.xfrm_requests import policy_message
from tunnelwrap.dataplane.xfrm_suite import esp_algorithms
from tunnelwrap.dataplane.xfrm_values import (
    Acquire,
    Direction,
    Encapsulation,
    Event,
    EventsLost,
    Expire,
    KernelPolicy,
    KernelSa,
    Limits,
    Mapping,
    PoliciesFlushed,
    PolicyChanged,
    PolicyDeleted,
    PolicyExpire,
    PortMask,
    Proto,
    Replay,
    SaChanged,
    SaDeleted,
    SaId,
    SasFlushed,
    Selector,
    StateReport,
    Template,
    Usage,
    XfrmMode,
)
from tunnelwrap.path import SocketAddress

pytestmark = pytest.mark.kernel

FAR_LAN = ip_network("198.51.100.0/24")
TARGET = ("198.51.100.7", 7)
TRAP = KernelPolicy(
    selector=Selector(ip_network("192.0.2.1/32"), FAR_LAN, protocol=socket.IPPROTO_UDP),
    direction=Direction.OUT,
    templates=(Template(NEAR, FAR, XfrmMode.TUNNEL, reqid=7),),
    priority=10,
)
PATIENCE_S = 10.0
NLM_F_REQUEST = 1


@pytest.fixture
def sender(uplink: str) -> Iterator[socket.socket]:
    """A program whose packets meet the policies."""
    with socket.socket(type=socket.SOCK_DGRAM) as opened:
        opened.bind((str(NEAR), 1000))
        yield opened


def events_until(monitor: XfrmMonitor, count: int) -> list[Event]:
    """The next events, that many at least."""
    events: list[Event] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(events) < count:
        ready = select.select([monitor], [], [], max(0.0, deadline - time.monotonic()))
        assert ready[0], f"only {events}"
        events += monitor.read()
    return events


def test_a_packet_that_meets_a_policy_without_an_sa_asks_for_one(
    xfrm: XfrmSocket, sender: socket.socket
) -> None:
    xfrm.add_policy(TRAP)
    with XfrmMonitor([Group.ACQUIRE]) as monitor:
        sender.sendto(b"first", TARGET)
        (event,) = events_until(monitor, 1)
    assert isinstance(event, Acquire)
    assert (event.id, event.source) == (SaId(FAR, 0), NEAR)
    assert event.policy == TRAP
    assert event.selector == Selector(
        ip_network("192.0.2.1/32"),
        ip_network("198.51.100.7/32"),
        socket.IPPROTO_UDP,
        PortMask.only(1000),
        PortMask.only(7),
        event.selector.ifindex,
    )
    (larval,) = xfrm.sas()  # that keeps it from asking again, until it is answered
    assert larval.sequence == event.sequence
    answer = replace(SA, reqid=7, sequence=event.sequence)
    xfrm.add_sa(answer)
    sender.sendto(b"second", TARGET)
    now = xfrm.find_sa(answer.id)
    assert now is not None
    assert (now.usage.packets, now.replay.outbound) == (1, 1)


def test_soft_and_hard_limits_are_told(xfrm: XfrmSocket, sender: socket.socket) -> None:
    sa = replace(SA, reqid=7, limits=Limits(soft_packets=1, hard_packets=3))
    xfrm.add_sa(sa)
    xfrm.add_policy(TRAP)
    with XfrmMonitor([Group.EXPIRE]) as monitor:
        sender.sendto(b"1", TARGET)
        assert monitor.read() == []
        sender.sendto(b"2", TARGET)
        (soft,) = events_until(monitor, 1)
        sender.sendto(b"3", TARGET)
        with suppress(OSError):  # it is told that its packet is not sent
            sender.sendto(b"4", TARGET)
        (hard,) = events_until(monitor, 1)
    assert isinstance(soft, Expire)
    assert isinstance(hard, Expire)
    assert (soft.is_hard, soft.sa.id, soft.sa.reqid) == (False, sa.id, 7)
    assert (hard.is_hard, hard.sa.id, hard.sa.usage.packets) == (True, sa.id, 3)
    assert hard.sa.usage.octets == 3 * (20 + 8 + 1)  # inner packets whole
    assert xfrm.find_sa(sa.id) is None


def test_age_is_a_limit_too(xfrm: XfrmSocket) -> None:
    xfrm.add_sa(replace(SA, limits=Limits(soft_age_s=1, hard_age_s=2)))
    with XfrmMonitor([Group.EXPIRE]) as monitor:
        soft, hard = events_until(monitor, 2)
    assert isinstance(soft, Expire)
    assert isinstance(hard, Expire)
    assert (soft.is_hard, hard.is_hard) == (False, True)


def test_a_policy_that_is_old_enough_goes(xfrm: XfrmSocket) -> None:
    old = replace(OUT, limits=Limits(hard_age_s=1))
    xfrm.add_policy(old)
    with XfrmMonitor([Group.EXPIRE]) as monitor:
        (event,) = events_until(monitor, 1)
    assert event == PolicyExpire(old, is_hard=True)
    assert xfrm.policies() == []


def test_an_authentic_packet_from_elsewhere_tells_the_peers_new_address(xfrm: XfrmSocket) -> None:
    suite = suite_of("aes128gcm16", uses_esn=False)
    keys = keys_of(suite)
    with (
        socket.socket(type=socket.SOCK_DGRAM) as kernels,
        socket.socket(type=socket.SOCK_DGRAM) as peer,
        XfrmMonitor([Group.MAPPING]) as monitor,
    ):
        kernels.bind(("127.0.0.1", 4500))
        kernels.setsockopt(socket.IPPROTO_UDP, UDP_ENCAP, ESPINUDP)
        peer.bind(("127.0.0.9", 0))
        sa = KernelSa(
            id=SaId(HERE, SPI),
            source=ip_address("127.0.0.8"),
            mode=XfrmMode.TUNNEL,
            reqid=3,
            algorithms=esp_algorithms(suite, keys),
            encapsulation=Encapsulation(1, 4500),
            replay=Replay(32),
        )
        xfrm.add_sa(sa)
        forged = bytearray(sealed(OutboundSa(SPI, suite, keys, uses_esn=False), udp(10)))
        forged[-1] ^= 1
        peer.sendto(forged, kernels.getsockname())
        assert monitor.read() == []
        authentic = sealed(OutboundSa(SPI, suite, keys, uses_esn=False), udp(10))
        peer.sendto(authentic, kernels.getsockname())
        (event,) = events_until(monitor, 1)
        old = SocketAddress(ip_address("127.0.0.8"), 1)
        assert event == Mapping(sa.id, 3, old, SocketAddress.of(peer.getsockname()))


def test_changes_are_told_whoever_makes_them(xfrm: XfrmSocket) -> None:
    with XfrmMonitor([Group.SA, Group.POLICY, Group.STATE]) as monitor:
        xfrm.add_sa(SA)
        xfrm.update_sa(replace(SA, limits=Limits(hard_octets=5000)))
        xfrm.set_state(SA.id, Replay(0, False, 5, 0), Usage())
        xfrm.delete_sa(SA.id)
        xfrm.add_policy(OUT)
        xfrm.update_policy(replace(OUT, priority=3))
        xfrm.delete_policy(OUT)
        ip("xfrm state flush proto esp")
        xfrm.add_policy(OUT)
        ip("xfrm policy flush")
        events = monitor.read()
    assert kinds(events) == [
        *(SaChanged, SaChanged, StateReport, SaDeleted),
        *(PolicyChanged, PolicyChanged, PolicyDeleted),
        *(PolicyChanged, PoliciesFlushed),
    ]
    assert events[0] == SaChanged(SA, is_new=True)
    assert isinstance(events[2], StateReport)
    assert events[2].state.outbound == 5
    assert events[3] == SaDeleted(SA.id)
    assert events[6] == PolicyDeleted(replace(OUT, priority=3))


def test_of_the_messages_of_a_group_come_those_that_are_asked_for(xfrm: XfrmSocket) -> None:
    with XfrmMonitor([Group.SA, Group.POLICY], [Msg.DELSA, Msg.DELPOLICY]) as monitor:
        xfrm.add_sa(SA)
        xfrm.delete_sa(SA.id)
        xfrm.add_policy(OUT)
        xfrm.delete_policy(OUT)
        events = monitor.read()
    assert kinds(events) == [SaDeleted, PolicyDeleted]


def kinds(events: Iterable[Event]) -> list[type]:
    return [type(event) for event in events]


def test_a_flush_is_told(xfrm: XfrmSocket) -> None:
    xfrm.add_sa(SA)
    with XfrmMonitor([Group.SA]) as monitor:
        xfrm.flush_sas(Proto.ESP)
        assert SasFlushed(Proto.ESP) in monitor.read()


def test_events_that_were_not_read_in_time_are_told_as_lost(xfrm: XfrmSocket) -> None:
    update = encoded(policy_message(OUT), Msg.UPDPOLICY, NLM_F_REQUEST, 0)
    with (
        XfrmMonitor([Group.POLICY]) as monitor,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_XFRM) as busy,
    ):
        for _ in range(4000):
            busy.send(update)
        events = monitor.read()
    assert events.index(EventsLost()) < len(events) < 4000
