"""Policies in the kernel: written and read as ``ip xfrm policy`` does, replaced, migrated."""

import errno
import socket
from dataclasses import replace
from ipaddress import ip_address, ip_network
from operator import attrgetter

import pytest

from tests.kernel.iproute import ip
from tests.kernel.test_sas import AEAD, FAR, FAR_6, GCM, NEAR, NEAR_6, SPI
from tunnelwrap.dataplane.netlink import Group, XfrmMonitor, XfrmSocket
from tunnelwrap.dataplane.xfrm_values import (
    Action,
    Direction,
    Encapsulation,
    KernelPolicy,
    KernelSa,
    Limits,
    Mark,
    Migrated,
    Migration,
    PolicyFlag,
    PortMask,
    Proto,
    Replay,
    SaId,
    Selector,
    Template,
    XfrmMode,
)
from tunnelwrap.errors import KernelRefused

pytestmark = pytest.mark.kernel

LAN, REMOTE = ip_network("10.1.0.0/16"), ip_network("10.2.0.0/24")
ANY = ip_address(0)
UDP, ICMP = 17, 1
TUNNEL = Template(NEAR, FAR, XfrmMode.TUNNEL, reqid=7)
OUT = KernelPolicy(
    selector=Selector(LAN, REMOTE), direction=Direction.OUT, templates=(TUNNEL,), priority=1000
)
WORDS = f"src {LAN} dst {REMOTE}"
TMPL = f"tmpl src {NEAR} dst {FAR} proto esp reqid 7 mode tunnel"

# A value, what "ip -d xfrm policy" prints of it, and what "ip xfrm policy add" takes for it.
HABITS = {
    "out": (
        OUT,
        [f"{WORDS} dir out priority 1000", TMPL],
        f"{WORDS} dir out priority 1000 {TMPL}",
    ),
    "fwd": (
        replace(OUT, direction=Direction.FWD),
        [f"{WORDS} dir fwd priority 1000"],
        f"{WORDS} dir fwd priority 1000 {TMPL}",
    ),
    "in, with ICMP": (
        replace(OUT, direction=Direction.IN, flags=PolicyFlag.ICMP),
        [f"{WORDS} dir in priority 1000 ptype main flag icmp"],
        f"{WORDS} dir in priority 1000 flag icmp {TMPL}",
    ),
    "ports": (
        replace(OUT, selector=Selector(LAN, REMOTE, UDP, PortMask(), PortMask.only(53))),
        [f"{WORDS} proto udp dport 53 dir out"],
        f"{WORDS} proto udp dport 53 dir out priority 1000 {TMPL}",
    ),
    "ICMP type and code": (
        replace(OUT, selector=Selector(LAN, REMOTE, ICMP, PortMask.only(3), PortMask.only(4))),
        [f"{WORDS} proto icmp type 3 code 4 dir out"],
        f"{WORDS} proto icmp type 3 code 4 dir out priority 1000 {TMPL}",
    ),
    "block": (
        replace(OUT, templates=(), action=Action.BLOCK),
        [f"{WORDS} dir out action block priority 1000"],
        f"{WORDS} dir out action block priority 1000",
    ),
    "mark and interface": (
        replace(OUT, mark=Mark(5, 0xFF), if_id=9),
        ["mark 0x5/0xff", "if_id 0x9"],
        f"{WORDS} dir out priority 1000 mark 5 mask 0xff if_id 9 {TMPL}",
    ),
    "limits": (
        replace(OUT, limits=Limits(soft_used_s=50, hard_used_s=60)),
        ["expire use: soft 50(sec), hard 60(sec)"],
        f"{WORDS} dir out priority 1000 limit time-use-soft 50 limit time-use-hard 60 {TMPL}",
    ),
    "compressed, then ESP in transport mode": (
        replace(
            OUT,
            direction=Direction.IN,
            templates=(
                replace(TUNNEL, proto=Proto.COMP, is_optional=True),
                Template(ANY, ANY, XfrmMode.TRANSPORT, reqid=7, spi=SPI),
            ),
        ),
        ["proto comp reqid 7 mode tunnel level use", "proto esp spi 0x00001000 reqid 7 mode trans"],
        (
            f"{WORDS} dir in priority 1000"
            f" tmpl src {NEAR} dst {FAR} proto comp reqid 7 mode tunnel level use"
            f" tmpl src {ANY} dst {ANY} proto esp spi {SPI:#x} reqid 7 mode transport"
        ),
    ),
    "IPv4 in IPv6": (
        replace(OUT, templates=(Template(NEAR_6, FAR_6, XfrmMode.TUNNEL),)),
        [f"tmpl src {NEAR_6} dst {FAR_6} proto esp reqid 0 mode tunnel"],
        f"{WORDS} dir out priority 1000 tmpl src {NEAR_6} dst {FAR_6} proto esp mode tunnel",
    ),
}


@pytest.mark.parametrize("habit", HABITS)
def test_a_policy_is_written_and_read_as_by_ip_xfrm(xfrm: XfrmSocket, habit: str) -> None:
    policy, printed, taken = HABITS[habit]
    xfrm.add_policy(policy)
    told = ip("xfrm policy") + ip("-d -s xfrm policy")
    assert [part for part in printed if part not in told] == []
    assert xfrm.find_policy(policy) == policy
    assert xfrm.delete_policy(policy)
    ip(f"xfrm policy add {taken}")
    assert xfrm.policies() == [policy]


def test_an_update_replaces_and_an_addition_does_not(xfrm: XfrmSocket) -> None:
    xfrm.update_policy(OUT)
    with pytest.raises(KernelRefused) as raised:
        xfrm.add_policy(OUT)
    assert raised.value.number == errno.EEXIST
    assert str(raised.value).startswith("add policy out 10.1.0.0/16 to 10.2.0.0/24: File exists")
    other = replace(OUT, priority=5, templates=(replace(TUNNEL, reqid=8),))
    xfrm.update_policy(other)
    assert xfrm.policies() == [other]


def test_what_is_not_there_is_said_and_no_error(xfrm: XfrmSocket) -> None:
    assert xfrm.find_policy(OUT) is None
    assert not xfrm.delete_policy(OUT)
    xfrm.add_policy(OUT)
    assert not xfrm.delete_policy(replace(OUT, mark=Mark(1)))
    assert xfrm.policies() == [OUT]


def test_only_those_that_are_ours_are_deleted(xfrm: XfrmSocket) -> None:
    ours = [replace(OUT, direction=way) for way in (Direction.IN, Direction.OUT, Direction.FWD)]
    theirs = replace(OUT, selector=Selector(REMOTE, LAN))
    for policy in (*ours, theirs):
        xfrm.add_policy(policy)
    assert xfrm.delete_policies(lambda policy: policy.selector.source == LAN) == 3
    assert xfrm.policies() == [theirs]


def test_policies_of_sockets_are_no_policies_of_the_host(xfrm: XfrmSocket) -> None:
    """As every IKE daemon sets them, so that its own packets go by."""
    ip_xfrm_policy = 17
    with socket.socket(type=socket.SOCK_DGRAM) as ike:
        bypass = bytearray(168)
        bypass[40:42] = int(socket.AF_INET).to_bytes(2, "little")
        bypass[56:88] = b"\xff" * 32  # no limits of octets and packets
        bypass[160] = Direction.OUT
        ike.setsockopt(socket.IPPROTO_IP, ip_xfrm_policy, bytes(bypass))
        assert xfrm.policies() == []


def test_a_migration_moves_policies_and_sas_with_their_sequence_numbers(xfrm: XfrmSocket) -> None:
    newer = ip_address("198.51.100.9")
    replay = Replay(128, True, 1000, 2000, 0b1)
    sa = KernelSa(
        id=SaId(FAR, SPI),
        source=NEAR,
        mode=XfrmMode.TUNNEL,
        algorithms=GCM,
        reqid=7,
        replay=replay,
        encapsulation=Encapsulation(4500, 4500),
    )
    xfrm.add_sa(sa)
    xfrm.add_policy(OUT)
    with XfrmMonitor([Group.MIGRATE]) as monitor:
        move = Migration(NEAR, FAR, newer, FAR, XfrmMode.TUNNEL, reqid=7)
        xfrm.migrate(OUT, [move])
        assert monitor.read() == [Migrated(OUT.selector, Direction.OUT, (move,))]
    assert xfrm.sas() == [replace(sa, source=newer)]
    moved = replace(TUNNEL, source=newer)
    assert xfrm.policies() == [replace(OUT, templates=(moved,))]
    with pytest.raises(KernelRefused, match=r"migrate out 10\.1\.0\.0/16 to"):
        xfrm.migrate(OUT, [])
    inward = replace(OUT, direction=Direction.FWD)
    back = Migration(newer, FAR, NEAR, FAR, XfrmMode.TUNNEL, reqid=7)
    further = replace(replay, outbound=3000)
    xfrm.migrate(OUT, [back], Encapsulation(4500, 14500), (sa.id, further), [inward])
    assert xfrm.sas() == [replace(sa, encapsulation=Encapsulation(4500, 14500), replay=further)]
    assert sorted(xfrm.policies(), key=attrgetter("direction")) == [OUT, inward]
    with pytest.raises(KernelRefused):
        xfrm.migrate(OUT, [], None, None, [inward])
    assert sorted(xfrm.policies(), key=attrgetter("direction")) == [OUT, inward], (
        "and the next question has its own answer"
    )
    assert AEAD.split()[-2] in ip("xfrm state")
