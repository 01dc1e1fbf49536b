"""SAs in the kernel: written and read as ``ip xfrm state`` does, allocated, moved on, refused."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from tests.kernel.iproute import ip
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.dataplane.netlink import Group, XfrmMonitor, XfrmSocket
from tunnelwrap.dataplane.xfrm_values import (
    Algorithm,
    Algorithms,
    Encapsulation,
    KernelSa,
    Limits,
    Mark,
    Offload,
    PortMask,
    Proto,
    Replay,
    SaExtraFlag,
    SaFlag,
    SaId,
    Selector,
    Usage,
    XfrmMode,
)
from tunnelwrap.errors import KernelRefused

pytestmark = pytest.mark.kernel

NEAR, FAR = ip_address("192.0.2.1"), ip_address("192.0.2.2")
NEAR_6, FAR_6 = ip_address("2001:db8::1"), ip_address("2001:db8::2")
SPI = 0x1000
KEY = Secret(bytes(range(20)))
GCM = Algorithms(aead=Algorithm("rfc4106(gcm(aes))", KEY, 128))
AEAD = f"aead 'rfc4106(gcm(aes))' 0x{KEY.reveal().hex()} 128"
ADD = f"xfrm state add src {NEAR} dst {FAR} proto esp spi {SPI:#x}"

SA = KernelSa(id=SaId(FAR, SPI), source=NEAR, mode=XfrmMode.TUNNEL, algorithms=GCM)
WIDE = Replay(window=1024, uses_esn=True)
ONE_PORT = Selector(
    ip_network("192.0.2.1/32"),
    ip_network("192.0.2.2/32"),
    protocol=17,
    source_port=PortMask.only(53),
    destination_port=PortMask(0x1200, 0xFF00),
)

# A value, what "ip -d xfrm state" prints of it, and what "ip xfrm state add" takes for it.
HABITS = {
    "tunnel": (SA, ["reqid 0 mode tunnel", "flag af-unspec"], "mode tunnel flag af-unspec"),
    "transport": (
        replace(
            SA,
            mode=XfrmMode.TRANSPORT,
            selector=Selector(ip_network("0.0.0.0/0"), ip_network("0.0.0.0/0")),
        ),
        ["mode transport", "sel src 0.0.0.0/0 dst 0.0.0.0/0"],
        "mode transport",
    ),
    "beet": (
        replace(SA, mode=XfrmMode.BEET, selector=ONE_PORT),
        ["mode beet", "sel src 192.0.2.1/32 dst 192.0.2.2/32 proto udp sport 53 dport 4608"],
        "",  # iproute2 takes and prints no mask of a port
    ),
    "reqid": (replace(SA, reqid=77), ["reqid 77"], "mode tunnel flag af-unspec reqid 77"),
    "window": (
        replace(SA, replay=Replay(window=32)),
        ["replay-window 32"],
        "mode tunnel flag af-unspec replay-window 32",
    ),
    "wide window with ESN": (
        replace(SA, replay=WIDE),
        ["flag af-unspec esn", "replay_window 1024, bitmap-length 32"],
        "mode tunnel flag af-unspec flag esn replay-window 1024",
    ),
    "sequence numbers": (
        replace(SA, replay=Replay(1024, True, 0x1_0000_0005, 0x2_0000_0007, 0b1011)),
        ["seq-hi 0x2, seq 0x7, oseq-hi 0x1, oseq 0x5", "00000000 00000068"],
        "",
    ),
    "short sequence numbers": (
        replace(SA, replay=Replay(32, False, 5, 7, 0b1011)),
        ["anti-replay context: seq 0x7, oseq 0x5, bitmap 0x0000000b"],
        "",
    ),
    "UDP": (
        replace(SA, encapsulation=Encapsulation(4500, 40000)),
        ["encap type espinudp sport 4500 dport 40000 addr 0.0.0.0"],
        "mode tunnel flag af-unspec encap espinudp 4500 40000 0.0.0.0",
    ),
    "marks": (
        replace(SA, mark=Mark(1, 0xFF), output_mark=Mark(2, 0xF)),
        ["mark 0x1/0xff output-mark 0x2/0xf"],
        "mode tunnel flag af-unspec mark 1 mask 0xff output-mark 2 mask 0xf",
    ),
    "interface": (
        replace(SA, if_id=9),
        ["if_id 0x9"],
        "mode tunnel flag af-unspec if_id 9",
    ),
    "limits": (
        replace(SA, limits=Limits(1000, 2000, 30, 40, 500, 600, 700, 800)),
        [
            *("soft 1000(bytes), hard 2000(bytes)", "soft 30(packets), hard 40(packets)"),
            *("expire add: soft 500(sec), hard 600(sec)", "expire use: soft 700(sec), hard 8"),
        ],
        (
            "mode tunnel flag af-unspec limit byte-soft 1000 limit byte-hard 2000"
            " limit packet-soft 30 limit packet-hard 40 limit time-soft 500 limit time-hard 600"
            " limit time-use-soft 700 limit time-use-hard 800"
        ),
    ),
    "flags": (
        replace(
            SA,
            flags=SaFlag.NO_ECN | SaFlag.DECAP_DSCP,
            extra_flags=SaExtraFlag.DONT_ENCAP_DSCP,
            tfc_padding=100,
        ),
        ["flag noecn decap-dscp af-unspec", "extra_flag dont-encap-dscp", "tfcpad 100"],
        (
            "mode tunnel flag noecn flag decap-dscp flag af-unspec extra-flag dont-encap-dscp"
            " tfcpad 100"
        ),
    ),
}


@pytest.mark.parametrize("habit", HABITS)
def test_an_sa_is_written_and_read_as_by_ip_xfrm(xfrm: XfrmSocket, habit: str) -> None:
    sa, printed, taken = HABITS[habit]
    xfrm.add_sa(sa)
    told = ip("xfrm state") + ip("-d -s xfrm state")
    assert [part for part in printed if part not in told] == []
    assert xfrm.find_sa(sa.id, sa.mark) == sa
    if taken:
        assert xfrm.delete_sa(sa.id, sa.mark)
        ip(f"{ADD} {AEAD} {taken}")
        assert xfrm.sas() == [sa]


@pytest.mark.parametrize("outer", [(NEAR, FAR), (NEAR_6, FAR_6)])
def test_an_sa_without_a_selector_takes_both_ip_versions(
    xfrm: XfrmSocket, outer: tuple[object, ...]
) -> None:
    source, destination = map(ip_address, map(str, outer))
    sa = replace(SA, id=SaId(destination, SPI), source=source)
    xfrm.add_sa(sa)
    assert f"src {source} dst {destination}" in ip("xfrm state")
    now = xfrm.find_sa(sa.id)
    assert now == sa
    assert now.usage.added_at > 0


def test_a_window_of_more_than_32_packets_needs_no_esn(xfrm: XfrmSocket) -> None:
    sa = replace(SA, replay=Replay(window=128))
    xfrm.add_sa(sa)
    assert "replay_window 128, bitmap-length 4" in ip("-d xfrm state")
    assert xfrm.find_sa(sa.id) == sa


def test_a_spi_is_allocated_and_its_sa_filled_in(xfrm: XfrmSocket) -> None:
    asked = replace(SA, id=SaId(FAR, 0), reqid=5, algorithms=Algorithms())
    spi = xfrm.allocate_spi(asked, 0xC000_0000, 0xC000_00FF)
    assert 0xC000_0000 <= spi <= 0xC000_00FF
    larval = xfrm.find_sa(SaId(FAR, spi))
    assert larval is not None
    assert larval.algorithms == Algorithms()
    whole = replace(asked, id=SaId(FAR, spi), algorithms=GCM, replay=WIDE)
    xfrm.update_sa(whole)
    assert xfrm.sas() == [whole]


def test_a_range_without_a_free_spi_is_refused(xfrm: XfrmSocket) -> None:
    xfrm.add_sa(SA)
    with pytest.raises(KernelRefused, match=r"allocate an SPI for ESP to 192\.0\.2\.2"):
        xfrm.allocate_spi(replace(SA, id=SaId(FAR, 0)), SPI, SPI)


def test_an_update_changes_limits_and_encapsulation_but_no_sequence_number(
    xfrm: XfrmSocket,
) -> None:
    sa = replace(SA, replay=WIDE, encapsulation=Encapsulation(4500, 4500))
    xfrm.add_sa(sa)
    moved = Replay(1024, True, 100, 200, 1)
    xfrm.set_state(sa.id, moved)
    changed = replace(sa, encapsulation=Encapsulation(4500, 1), limits=Limits(hard_octets=1 << 40))
    xfrm.update_sa(changed)
    assert xfrm.find_sa(sa.id) == replace(changed, replay=moved)


@pytest.mark.parametrize(
    "replay",
    [Replay(1024, True, 0x1_0000_0000, 0x1_0000_0001, 0b11), Replay(32, False, 9, 8, 0b101)],
    ids=["ESN", "short"],
)
def test_where_an_sa_is_can_be_set_and_read(xfrm: XfrmSocket, replay: Replay) -> None:
    sa = replace(SA, replay=Replay(replay.window, replay.uses_esn), reqid=3)
    xfrm.add_sa(sa)
    xfrm.set_state(sa.id, replay, Usage(octets=1000, packets=10))
    state = xfrm.find_state(sa.id)
    assert state is not None
    assert (state.outbound, state.inbound) == (replay.outbound, replay.inbound)
    assert (state.usage.octets, state.usage.packets, state.reqid) == (1000, 10, 3)
    now = xfrm.find_sa(sa.id)
    assert now is not None
    assert now.replay == replay


def test_only_those_that_are_ours_are_deleted(xfrm: XfrmSocket) -> None:
    ours = [replace(SA, id=SaId(FAR, SPI + n), reqid=1, mark=Mark(n)) for n in range(3)]
    theirs = replace(SA, id=SaId(FAR, SPI + 9), reqid=2)
    for sa in (*ours, theirs):
        xfrm.add_sa(sa)
    assert xfrm.delete_sas(lambda sa: sa.reqid == 1) == 3
    assert xfrm.sas() == [theirs]


def test_hundreds_of_sas_are_read_in_one_call(xfrm: XfrmSocket) -> None:
    sas = [replace(SA, id=SaId(FAR, SPI + n), reqid=n) for n in range(200)]
    for sa in sas:
        xfrm.add_sa(sa)
    assert sorted(xfrm.sas(), key=lambda sa: sa.reqid) == sas


def test_what_is_not_there_is_said_and_no_error(xfrm: XfrmSocket) -> None:
    assert xfrm.find_sa(SA.id) is None
    assert xfrm.find_state(SA.id) is None
    assert not xfrm.delete_sa(SA.id)
    assert xfrm.sas() == []


def refusal_of(xfrm: XfrmSocket, sa: KernelSa) -> KernelRefused:
    with pytest.raises(KernelRefused) as raised:
        xfrm.add_sa(sa)
    assert raised.value.operation == f"add {sa.id}"
    return raised.value


def test_a_refusal_names_the_cause(xfrm: XfrmSocket) -> None:
    xfrm.add_sa(SA)
    twice = refusal_of(xfrm, SA)
    assert twice.number == errno.EEXIST
    assert "the kernel has the same already" in str(twice)

    other = replace(SA, id=SaId(FAR, SPI + 1))
    unknown = Algorithms(aead=Algorithm("rfc0(none)", KEY, 128))
    lacking = refusal_of(xfrm, replace(other, algorithms=unknown))
    assert lacking.number == errno.ENOSYS
    assert "Requested AEAD algorithm not found" in str(lacking)  # what the kernel says itself
    assert "lacks an algorithm" in str(lacking)

    no_window = refusal_of(xfrm, replace(other, replay=Replay(0, uses_esn=True)))
    assert no_window.number == errno.EINVAL
    with pytest.raises(KernelRefused) as nothing_to_update:
        xfrm.update_sa(other)
    assert nothing_to_update.value.number == errno.ESRCH
    assert KEY.reveal().hex() not in f"{twice!r}{lacking!r}{other!r}"


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_without_the_right_nothing_is_done_nor_heard(xfrm: XfrmSocket) -> None:
    with as_nobody(), XfrmSocket() as unprivileged:
        for ask in (lambda: unprivileged.add_sa(SA), unprivileged.sas):
            with pytest.raises(KernelRefused, match="CAP_NET_ADMIN") as raised:
                ask()
            assert raised.value.number == errno.EPERM
        with pytest.raises(KernelRefused, match="CAP_NET_ADMIN"):
            XfrmMonitor([Group.SA])


def test_a_device_that_cannot_offload_is_no_hindrance(xfrm: XfrmSocket, uplink: str) -> None:
    """The kernel forgets the wish where the device knows nothing of it: what is read says so."""
    index = int(ip(f"-o link show {uplink}").split(":")[0])
    xfrm.add_sa(replace(SA, offload=Offload(index, is_inbound=False)))
    assert xfrm.sas() == [SA]


def test_no_device_encrypts_what_travels_in_udp(xfrm: XfrmSocket, uplink: str) -> None:
    """So the plane asks for no offload there. Of bare ESP: tests/kernel/whole."""
    index = int(ip(f"-o link show {uplink}").split(":")[0])
    in_udp = replace(SA, encapsulation=Encapsulation(4500, 4500))
    for is_inbound in (False, True):
        with pytest.raises(KernelRefused, match="can't be offloaded"):
            xfrm.add_sa(replace(in_udp, offload=Offload(index, is_inbound)))
    assert xfrm.sas() == []


def test_ipv6_ah_and_compression_have_their_own_protocols(xfrm: XfrmSocket) -> None:
    mac = Algorithms(integrity=Algorithm("hmac(sha256)", Secret(bytes(32)), 128))
    ah = replace(SA, id=SaId(FAR_6, SPI, Proto.AH), source=NEAR_6, algorithms=mac)
    xfrm.add_sa(ah)
    assert "proto ah spi 0x00001000" in ip("xfrm state")
    assert not xfrm.delete_sa(SaId(FAR_6, SPI))
    xfrm.flush_sas(Proto.ESP)
    assert xfrm.sas() == [ah]
    xfrm.flush_sas(Proto.AH)
    assert xfrm.sas() == []
