"""The kernel's data plane between two hosts on a wire, without IKE.

By policies for all devices, and under a kernel with xfrm interfaces by those (``ends``):

    python -m tests.kit.kernel --kernel interface -- pytest tests/kernel/test_plane.py
"""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.kernel.ends import (
    IF_ID,
    NAT_PORT,
    OUTER,
    OUTER_6,
    THIRD,
    Ends,
    Host,
    answered,
    by_policies,
    install,
    on,
    policies,
    states,
    until,
)
from tests.unit.dataplane.samples import (
    AH_SUITES,
    FAR,
    FAR_6,
    NEAR,
    NEAR_6,
    SUITES,
    child_of,
    selectors,
)
from tunnelwrap.dataplane.netlink import Group, XfrmMonitor
from tunnelwrap.dataplane.xfrm_sas import SKIPPED
from tunnelwrap.dataplane.xfrm_statistics import MEANINGS, read_statistics
from tunnelwrap.dataplane.xfrm_trial import why_not, why_uncompressed
from tunnelwrap.errors import DataPlaneError
from tunnelwrap.ike.child_sa import Mode, SaLimits
from tunnelwrap.path import SocketAddress

pytestmark = pytest.mark.kernel


@asynccontextmanager
async def captured(end: Host, wanted: str) -> AsyncIterator[list[str]]:
    """What comes and goes on the wire, a line for each packet."""
    command = end.host.command("tcpdump", "-l", "-n", "-v", "-i", "eth0", wanted)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    lines: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None
    await process.stderr.readuntil(b"listening on")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_gather(process.stdout, lines))
        try:
            yield lines
        finally:
            process.terminate()
            await process.wait()


async def _gather(stream: asyncio.StreamReader, lines: list[str]) -> None:
    while line := await stream.readline():
        if b"AH(" in line or b"ESP(" in line:
            lines.append(line.decode())


def test_every_counter_of_the_kernel_has_a_meaning() -> None:
    assert read_statistics().keys() <= MEANINGS.keys()


@pytest.mark.parametrize("ways", [OUTER, OUTER_6], ids=["over-ipv4", "over-ipv6"])
async def test_both_ip_versions_go_through_either(ends: Ends, ways: tuple[str, str]) -> None:
    install(ends, ways)

    assert await answered(ends[0], NEAR, FAR) == 2
    assert await answered(ends[0], NEAR_6, FAR_6) == 2

    counted = [end.plane.counters(0x1000 + end.side) for end in ends]
    assert [(each.packets_in, each.packets_out) for each in counted] == [(4, 4), (4, 4)]
    assert all(each.last_in is not None and each.octets_in > 0 for each in counted)
    assert [end.statistics() for end in ends] == [{}, {}]


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["chacha20poly1305", "aes256-sha512", "aes128gmac"])
@pytest.mark.parametrize("uses_esn", [False, True])
async def test_suites(ends: Ends, suite: str, *, uses_esn: bool) -> None:
    install(ends, suite=suite, uses_esn=uses_esn)

    assert await answered(ends[0], NEAR, FAR) == 2


async def test_a_suite_is_tried_out_before_it_is_promised() -> None:
    assert why_not([child_of(suite=name).suite for name in (*SUITES, *AH_SUITES)]) is None
    assert why_not([child_of().suite], Mode.BEET) is None


@pytest.mark.parametrize("ways", [OUTER, OUTER_6], ids=["over-ipv4", "over-ipv6"])
async def test_a_host_whose_peer_may_have_any_address_still_reaches_itself(
    ends: Ends, ways: tuple[str, str]
) -> None:
    own, all_of_it = (f"{NEAR}/32", f"{NEAR_6}/128"), ("0.0.0.0/0", "::/0")
    install(ends, ways, local=selectors(*own), peer=selectors(*all_of_it))

    # without an interface the kernel takes what IPv6 has for itself into the tunnel
    itself = ((NEAR, NEAR), (NEAR_6, NEAR_6)) if IF_ID else ((NEAR, NEAR),)
    for source, target in ((NEAR, FAR), (NEAR_6, FAR_6), *itself):
        assert await answered(ends[0], source, target) == 2


HOSTS = {"local": selectors(f"{OUTER[0]}/32"), "peer": selectors(f"{OUTER[1]}/32")}


@by_policies
async def test_transport_mode_between_the_hosts_themselves(ends: Ends) -> None:
    install(ends, mode=Mode.TRANSPORT, **HOSTS)

    assert await answered(ends[0], OUTER[0], OUTER[1]) == 2
    assert ends[1].plane.counters(0x1001).packets_in == 2
    printed = await on(ends[0].host, "ip", "xfrm", "state")
    assert printed.count("mode transport") == 2


async def test_beet_mode_and_no_udp(ends: Ends) -> None:
    """Each by itself, and more of both: tests/kernel/slow."""
    inner = {"local": selectors(f"{NEAR}/32"), "peer": selectors(f"{FAR}/32")}
    install(ends, mode=Mode.BEET, is_bare=True, **inner)

    async with captured(ends[1], "ip proto 50") as lines:
        assert await answered(ends[0], NEAR, FAR) == 2
        await until(lambda: len(lines) == 4)

    assert (await on(ends[0].host, "ip", "xfrm", "state")).count("mode beet") == 2
    assert [end.statistics() for end in ends] == [{}, {}]


@pytest.mark.slow
@pytest.mark.rfc("4302", "2.6")
@pytest.mark.rfc("4302", "3.1.2")
@pytest.mark.parametrize("ways", [OUTER, OUTER_6], ids=["over-ipv4", "over-ipv6"])
@pytest.mark.parametrize("suite", ["ah-sha256", "ah-sha1", "ah-sha512"])
async def test_ah_travels_bare(ends: Ends, ways: tuple[str, str], suite: str) -> None:
    install(ends, ways, suite=suite)

    async with captured(ends[1], "ip proto 51 or ip6 proto 51") as lines:
        assert await answered(ends[0], NEAR, FAR) == 2
        assert await answered(ends[0], NEAR_6, FAR_6) == 2
        await until(lambda: len(lines) == 8)

    assert ends[1].plane.counters(0x1001).packets_in == 4
    assert [end.statistics() for end in ends] == [{}, {}]
    icv = child_of(suite=suite).suite.icv_length
    # RFC 4302 §2.2: its length is a multiple of 4 octets in IPv4, of 8 in IPv6, less 2 words
    words = (12 + icv) // 4 if ways is OUTER else (12 + icv + 7) // 8 * 2
    assert {int(re.findall(r"length=(\d+)", line)[0]) for line in lines} == {words - 2}


@by_policies
@pytest.mark.slow
@pytest.mark.rfc("4302", "2.5.1")
@pytest.mark.rfc("4302", "3.1.1")
@pytest.mark.parametrize("uses_esn", [False, True])
async def test_ah_in_transport_mode(ends: Ends, *, uses_esn: bool) -> None:
    install(ends, suite="ah-sha256", mode=Mode.TRANSPORT, uses_esn=uses_esn, **HOSTS)

    assert await answered(ends[0], OUTER[0], OUTER[1]) == 2
    assert ends[1].plane.counters(0x1001).packets_in == 2
    printed = await on(ends[0].host, "ip", "xfrm", "state")
    assert printed.count("proto ah") == printed.count("mode transport") == 2


@pytest.mark.slow
@pytest.mark.rfc("4302", "3.4.4")
async def test_ah_with_another_key_is_dropped(ends: Ends) -> None:
    install(ends, suite="ah-sha256")
    ends[0].plane.remove(0x1000)
    ours = child_of(0, suite="ah-sha256")
    ends[0].install(replace(ours, keys_out=ours.keys_in))

    assert await answered(ends[0], NEAR, FAR) == 0
    assert ends[1].plane.counters(0x1001).packets_in == 0
    assert ends[1].statistics() == {"XfrmInStateProtoError": 2}


@pytest.mark.slow
@pytest.mark.rfc("4302", "3.4.2")
async def test_esp_and_ah_may_have_the_same_spi(ends: Ends) -> None:
    install(ends, suite="ah-sha256")
    ours = child_of(0, local=selectors("10.1.0.1/32"), peer=selectors("10.2.0.1/32"))
    # the peer has given its AH and its ESP the same
    ends[0].install(replace(ours, spi_in=0x2000))

    assert len(await states(ends[0])) == 4


# --- compressed -------------------------------------------------------------------------------


async def compressed(end: Host) -> dict[int, int]:
    """How many packets each IPComp SA of a host has carried, by CPI."""
    printed = await on(end.host, "ip", "-s", "xfrm", "state")
    found = {}
    for part in re.split(r"^src ", printed, flags=re.MULTILINE):
        cpi = re.search(r"proto comp spi (0x\w+)", part)
        counted = re.search(r"current:\s+\d+\(bytes\), (\d+)\(packets\)", part)
        if cpi and counted:
            found[int(cpi[1], 16)] = int(counted[1])
    return found


async def pinged(end: Host, source: str, target: str, size: int) -> int:
    """How many of two pings come back, each with so many octets that are all the same."""
    shape = ["-s", str(size), "-p", "00", "-c", "2", "-i", "0.01", "-W", "1"]
    printed = await on(end.host, "ping", "-n", "-q", *shape, "-I", source, target)
    found = re.search(r"(\d+) received", printed)
    assert found is not None, printed
    return int(found[1])


@pytest.mark.rfc("3173", "2.2")
@pytest.mark.parametrize("suite", ["aes128gcm16", "ah-sha256"])
@pytest.mark.parametrize("ways", [OUTER, OUTER_6], ids=["over-ipv4", "over-ipv6"])
async def test_compressible_packets_are_compressed(
    ends: Ends, ways: tuple[str, str], suite: str
) -> None:
    install(ends, ways, suite=suite, is_compressed=True)

    for source, target in ((NEAR, FAR), (NEAR_6, FAR_6)):
        assert await pinged(ends[0], source, target, 1000) == 2
    assert await compressed(ends[0]) == {0x1000: 4, 0x1001: 4}
    assert await compressed(ends[1]) == {0x1000: 4, 0x1001: 4}

    assert await pinged(ends[0], NEAR, FAR, 10) == 2, "too short to get smaller"
    assert (await compressed(ends[1]))[0x1001] == 4
    assert ends[1].plane.counters(0x1001).packets_in == 6
    assert [end.statistics() for end in ends] == [{}, {}]

    for end in ends:
        end.plane.remove(0x1000 + end.side)
        assert await states(end) == []
        assert await policies(end) == 0


@by_policies
async def test_compressed_in_transport_mode(ends: Ends) -> None:
    install(ends, mode=Mode.TRANSPORT, is_compressed=True, **HOSTS)

    assert await pinged(ends[0], *OUTER, 1000) == 2
    assert await pinged(ends[0], *OUTER, 10) == 2
    assert (await compressed(ends[1]))[0x1001] == 2
    assert ends[1].plane.counters(0x1001).packets_in == 4


async def test_what_is_compressed_moves_and_is_rekeyed(ends: Ends) -> None:
    install(ends, is_compressed=True)
    assert await pinged(ends[0], NEAR, FAR, 1000) == 2
    moved = THIRD[0], OUTER[1]
    for end in (ends[1], ends[0]):
        way = end.transport(moved[end.side], moved[1 - end.side])
        end.plane.move(0x1000 + end.side, way)

    assert await pinged(ends[0], NEAR, FAR, 1000) == 2
    assert (await compressed(ends[1]))[0x1001] == 4

    install(ends, moved, spi=0x2000, is_compressed=True)
    for end in ends:
        end.plane.remove(0x1000 + end.side)
    assert await pinged(ends[0], NEAR, FAR, 1000) == 2
    assert await compressed(ends[1]) == {0x2000: 2, 0x2001: 2}


async def test_a_cpi_that_is_another_peers_too_is_not_used(ends: Ends) -> None:
    install(ends, is_compressed=True)
    narrow = {"local": selectors("10.1.0.1/32"), "peer": selectors("10.2.0.1/32")}
    for end in ends:
        sa = child_of(end.side, spi=0x2000, is_compressed=True, **narrow)
        assert sa.cpis is not None
        # what the far end takes has the CPI that its other Child SA gave too
        cpis = replace(sa.cpis, outbound=0x1001) if end.side == 0 else sa.cpis
        end.install(replace(sa, cpis=cpis))

    assert await pinged(ends[0], NEAR, FAR, 1000) == 2
    assert await compressed(ends[0]) == {0x1000: 0, 0x1001: 0, 0x2000: 2}
    ends[0].plane.remove(0x2000)
    assert await compressed(ends[0]) == {0x1000: 0, 0x1001: 0}


async def test_this_kernel_compresses() -> None:
    assert why_uncompressed() is None


async def test_what_was_not_agreed_is_dropped_coming_in(ends: Ends) -> None:
    install(ends)
    ends[0].host.address("lo", "10.9.0.1/32")
    # what the far end would never have agreed to: a source of another network
    forged = child_of(0, local=selectors("10.9.0.0/16"), peer=selectors("10.2.0.0/16"))
    ends[0].plane.remove(0x1000)
    ends[0].install(forged)

    assert await answered(ends[0], "10.9.0.1", FAR) == 0
    assert ends[1].plane.counters(0x1001).packets_in == 2, "they were authentic"
    assert ends[1].statistics() == {"XfrmInNoPols": 2}


@by_policies
async def test_nobody_speaks_in_clear_for_the_peer(ends: Ends) -> None:
    ends[1].install(child_of(1))

    assert await answered(ends[0], NEAR, FAR) == 0
    assert ends[1].statistics() == {"XfrmInNoPols": 2} or "XfrmInTmplMismatch" in (
        ends[1].statistics()
    )


async def test_the_narrower_selectors_win(ends: Ends) -> None:
    install(ends)
    install(ends, spi=0x2000, local=selectors("10.1.0.1/32"), peer=selectors("10.2.0.1/32"))

    assert await answered(ends[0], NEAR, FAR) == 2

    assert ends[0].plane.counters(0x2000).packets_out == 2
    assert ends[0].plane.counters(0x1000).packets_out == 0


async def test_a_rekey_loses_nothing(ends: Ends) -> None:
    install(ends)
    async with asyncio.TaskGroup() as tasks:
        pings = tasks.create_task(answered(ends[0], NEAR, FAR, 200))
        await asyncio.sleep(0.5)
        for number in range(1, 6):
            await rekey(ends, 0x1000 + 16 * (number - 1), 0x1000 + 16 * number)

    assert pings.result() == 200
    assert [len(await states(end)) for end in ends] == [2, 2]


async def rekey(ends: Ends, old: int, new: int, **of: object) -> None:
    for end in ends:
        end.install(child_of(end.side, spi=new, **of), out=False)
    for end in ends:
        end.plane.use_outbound(new + end.side)
        await asyncio.sleep(0.05)
    for end in ends:
        end.plane.remove(old + end.side)


def add_policy(end: Host, source: str, destination: str) -> None:
    """A policy of another program."""
    selector = ["src", source, "dst", destination, "dir", "out"]
    template = ["tmpl", "proto", "esp", "reqid", "7", "mode", "tunnel"]
    end.host.run("ip", "xfrm", "policy", "add", *selector, *template)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1], ids=["initiator", "responder"])
async def test_an_address_move_loses_nothing_and_repeats_no_number(ends: Ends, who: int) -> None:
    """``who`` moves to its other address; the other end follows."""
    install(ends)
    moved = [THIRD[side] if side == who else OUTER[side] for side in (0, 1)]
    async with asyncio.TaskGroup() as tasks:
        pings = tasks.create_task(answered(ends[0], NEAR, FAR, 200))
        await asyncio.sleep(0.5)
        for end in (ends[1 - who], ends[who]):
            way = end.transport(moved[end.side], moved[1 - end.side])
            end.plane.move(0x1000 + end.side, way)

    assert pings.result() >= 190, "a few meet the gap between the two ends, which is long here"
    assert [set(end.statistics()) - {"XfrmInNoStates"} for end in ends] == [set(), set()]
    counted = ends[0].plane.counters(0x1000)
    assert (counted.packets_out, counted.packets_in) == (200, pings.result())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("port", "source", "target"),
    [(NAT_PORT, NEAR, FAR), (14500, NEAR_6, FAR_6)],
    ids=["ipv4", "ipv6-from-another-port"],
)
async def test_what_goes_to_the_end_that_stays_is_lost_by_no_move(
    ends: Ends, port: int, source: str, target: str
) -> None:
    """The near end goes to and fro; the far end takes its packets whenever it hears of that."""
    install(ends)
    with ends[0].host.entered():
        monitor = XfrmMonitor([Group.MIGRATE])
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(answered(ends[0], source, target, 200))
        for address in (THIRD[0], OUTER[0]) * 5:
            await asyncio.sleep(0.2)
            near = ends[0].transport(address, OUTER[1], port=port)
            ends[0].plane.move(0x1000, near)
            await asyncio.sleep(0.05)
            ends[1].plane.move(0x1001, ends[1].transport(OUTER[1], address, peer_port=port))

    with monitor:
        assert len(monitor.read()) == 10, "policy and SAs at one instant"
    assert ends[0].plane.counters(0x1000).packets_out == 200
    assert ends[1].plane.counters(0x1001).packets_in == 200
    assert ends[1].statistics() == {}
    assert set(ends[0].statistics()) <= {"XfrmInNoStates"}
    ends[1].plane.remove(0x1001)
    assert await states(ends[1]) == []
    assert 10 * SKIPPED < ends[0].plane.take_out(0x1000).outbound <= 200 + 11 * SKIPPED


@pytest.mark.slow
async def test_both_move_to_the_other_ip_version_and_back(ends: Ends) -> None:
    install(ends)
    for ways in (OUTER_6, OUTER):
        for end in ends:
            end.plane.move(0x1000 + end.side, end.transport(ways[end.side], ways[1 - end.side]))
        assert await answered(ends[0], NEAR, FAR) == 2
        assert await answered(ends[0], NEAR_6, FAR_6) == 2

    assert ends[0].plane.counters(0x1000).packets_in == 8
    for end in ends:
        assert len(await states(end)) == 2
        end.plane.remove(0x1000 + end.side)
        assert await states(end) == []
        assert await policies(end) == 0


@pytest.mark.slow
async def test_a_child_sa_and_the_one_that_replaces_it_move(ends: Ends) -> None:
    install(ends)
    for end in ends:
        end.install(child_of(end.side, spi=0x2000))
    for spi in (0x1000, 0x2000):
        for end in ends:
            way = end.transport((THIRD[0], OUTER[1])[end.side], (OUTER[1], THIRD[0])[end.side])
            end.plane.move(spi + end.side, way)

    assert await answered(ends[0], NEAR, FAR) == 2
    for end in ends:
        end.plane.remove(0x2000 + end.side)
    assert await answered(ends[0], NEAR, FAR) == 2
    assert [len(await states(end)) for end in ends] == [2, 2]


async def test_a_plane_hands_over_how_far_a_child_sa_is(ends: Ends) -> None:
    install(ends)
    assert await answered(ends[0], NEAR, FAR, 5) == 5

    progress = ends[0].plane.take_out(0x1000)

    assert await states(ends[0]) == []
    assert (progress.outbound, progress.inbound, progress.seen) == (5 + SKIPPED, 5, 0b11111)
    assert (progress.counters.packets_in, progress.counters.packets_out) == (5, 5)
    way = ends[0].transport(*OUTER)
    ends[0].plane.install(child_of(0), way, use_outbound=True, progress=progress)
    assert await answered(ends[0], NEAR, FAR, 5) == 5
    assert ends[0].plane.counters(0x1000).packets_out == 10
    assert ends[0].plane.take_out(0x1000).outbound == 10 + 2 * SKIPPED


async def test_a_nat_that_gives_another_port_is_told(ends: Ends) -> None:
    install(ends)
    ends[0].plane.move(0x1000, ends[0].transport(*OUTER, port=14500))

    await answered(ends[0], NEAR, FAR, 1)
    await until(lambda: bool(ends[1].mapped))

    assert ends[1].mapped[0] == (0x1001, SocketAddress(ip_address(OUTER[0]), 14500))


async def test_limits_are_told_soft_and_hard(ends: Ends) -> None:
    limits = SaLimits(None, None, soft_packets=2, hard_packets=4)
    ends[0].install(child_of(0, limits=limits))
    ends[1].install(child_of(1))

    await answered(ends[0], NEAR, FAR, 3)
    await until(lambda: ends[0].expired == [(0x1000, False)])
    await answered(ends[0], NEAR, FAR, 5)
    await until(lambda: (0x1000, True) in ends[0].expired)


async def test_what_a_killed_run_left_is_removed_and_nothing_else(ends: Ends) -> None:
    install(ends)
    other = "src 198.51.100.1 dst 198.51.100.2 proto esp spi 0x99 reqid 7 mode tunnel"
    key = "0x" + "11" * 20
    command = f"ip xfrm state add {other} aead rfc4106(gcm(aes)) {key} 128"
    ends[0].host.run(*command.split())
    add_policy(ends[0], "198.51.100.0/24", "10.0.0.0/8")

    again = ends[0].make_plane()

    # Nothing is awaited: the plane that is to be dead would find its SAs gone.
    assert re.findall(r"spi (0x\w+)", ends[0].host.run("ip", "xfrm", "state")) == ["0x00000099"]
    assert len(re.findall(r"\bdir (?:in|out|fwd)", ends[0].host.run("ip", "xfrm", "policy"))) == 1
    again.close()


@by_policies
async def test_a_refused_child_sa_leaves_nothing(ends: Ends) -> None:
    add_policy(ends[0], "10.1.0.0/16", "10.2.0.0/16")

    with pytest.raises(DataPlaneError, match="from another program"):
        ends[0].install(child_of(0))

    assert await states(ends[0]) == []
    assert await policies(ends[0]) == 1


async def test_the_end_leaves_nothing(ends: Ends) -> None:
    install(ends)
    install(ends, spi=0x2000)

    ends[0].plane.close()

    assert await states(ends[0]) == []
    assert await policies(ends[0]) == 0


# --- SPIs -------------------------------------------------------------------------------------


async def test_a_reserved_spi_is_filled_in(ends: Ends) -> None:
    for end in ends:
        way = end.transport(OUTER[end.side], OUTER[1 - end.side])
        assert end.plane.reserve_spi(0x1000 + end.side, way.path)
    assert await states(ends[0]) == ["0x00001000"]

    install(ends)

    assert await answered(ends[0], NEAR, FAR) == 2
    assert len(await states(ends[0])) == 2
    assert not ends[0].expired


async def test_an_spi_of_another_program_is_not_reserved(ends: Ends) -> None:
    other = f"src {OUTER[1]} dst {OUTER[0]} proto esp spi 0x5000 reqid 7 mode tunnel"
    key = "0x" + "11" * 20
    ends[0].host.run(*f"ip xfrm state add {other} aead rfc4106(gcm(aes)) {key} 128".split())
    way = ends[0].transport(*OUTER)

    assert not ends[0].plane.reserve_spi(0x5000, way.path)
    assert ends[0].plane.reserve_spi(0x5001, way.path)
    assert not ends[0].plane.reserve_spi(0x5001, way.path)


async def test_a_released_spi_is_free_again(ends: Ends) -> None:
    way = ends[0].transport(*OUTER)
    assert ends[0].plane.reserve_spi(0x5000, way.path)

    ends[0].plane.release_spi(0x5000)

    assert "0x00005000" not in await states(ends[0])
    assert ends[0].plane.reserve_spi(0x5000, way.path)


async def test_an_spi_that_the_kernel_has_forgotten_meanwhile_is_used_all_the_same(
    ends: Ends,
) -> None:
    ends[0].host.run("sysctl", "-qw", "net.core.xfrm_acq_expires=1")
    assert ends[0].plane.reserve_spi(0x1000, ends[0].transport(*OUTER).path)
    await until(lambda: "0x00001000" not in ends[0].host.run("ip", "xfrm", "state"))
    ends[0].host.run("sysctl", "-qw", "net.core.xfrm_acq_expires=30")

    install(ends)

    assert await answered(ends[0], NEAR, FAR) == 2
    assert not ends[0].expired, "it is not the end of the Child SA"


async def test_an_spi_reserved_for_another_address_is_used_all_the_same(ends: Ends) -> None:
    assert ends[0].plane.reserve_spi(0x1000, ends[0].transport(*THIRD).path)

    install(ends)

    assert await answered(ends[0], NEAR, FAR) == 2
    assert sorted(await states(ends[0])) == ["0x00001000", "0x00001001"]
