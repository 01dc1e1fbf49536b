"""Child SAs on demand in the kernel's plane: packets call for them, and wait for them.

As in ``test_plane``: two planes on a wire, without IKE.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.kernel.ends import (
    OUTER,
    OUTER_6,
    THIRD,
    Ends,
    Host,
    answered,
    install,
    on,
    policies,
    states,
    until,
)
from tests.unit.dataplane.samples import FAR, FAR_6, NEAR, NEAR_6, child_of, selectors
from tunnelwrap.dataplane import Trap
from tunnelwrap.dataplane.xfrm_traps import TRAP_SYSCTLS
from tunnelwrap.ike.child_sa import Mode

pytestmark = pytest.mark.kernel

((_KEY, _VALUE),) = TRAP_SYSCTLS
HOLDS = _KEY.replace("/", ".")


@pytest.fixture
def ends(ends: Ends) -> Ends:
    """The near one lets packets wait, as the daemon does by TRAP_SYSCTLS."""
    ends[0].host.sysctl(HOLDS, _VALUE)
    return ends


def set_trap(end: Host, ways: tuple[str, str] = OUTER, mode: Mode = Mode.TUNNEL) -> list[None]:
    """Set a trap for what the Child SAs of these tests carry; gives the calls for one."""
    calls: list[None] = []
    child = child_of(end.side)
    trap = Trap(child.name, mode, child.ts_local, child.ts_peer)
    way = end.transport(ways[end.side], ways[1 - end.side])
    end.plane.trap(trap, way, lambda: calls.append(None))
    return calls


@pytest.mark.parametrize("ways", [OUTER, OUTER_6], ids=["over-ipv4", "over-ipv6"])
async def test_a_packet_calls_for_its_child_sa(ends: Ends, ways: tuple[str, str]) -> None:
    """And is lost, where the kernel is not told to have it wait."""
    ends[0].host.sysctl(HOLDS, 1)
    calls = set_trap(ends[0], ways)
    assert await answered(ends[0], NEAR, FAR, 1) == 0
    await until(lambda: bool(calls))

    install(ends, ways)

    left = sorted(await states(ends[0]))
    assert left == ["0x00001000", "0x00001001"], "nothing is left of the call"
    assert await answered(ends[0], NEAR, FAR) == 2
    assert await answered(ends[0], NEAR_6, FAR_6) == 2
    assert len(calls) == 1


@pytest.mark.slow
async def test_packets_that_come_meanwhile_do_not_silence_the_next_call(ends: Ends) -> None:
    calls = set_trap(ends[0])
    async with asyncio.TaskGroup() as tasks:
        pings = tasks.create_task(answered(ends[0], NEAR, FAR, 100))
        await until(lambda: bool(calls))
        install(ends)
    assert pings.result() > 0, "all but the first, until the Child SA was there"
    so_far = len(calls)
    for end in ends:
        end.plane.remove(0x1000 + end.side)

    await answered(ends[0], NEAR, FAR, 1)

    await until(lambda: len(calls) > so_far)


@pytest.mark.slow
async def test_what_is_not_for_the_trap_calls_for_nothing(ends: Ends) -> None:
    calls = set_trap(ends[0])

    assert await answered(ends[0], OUTER[0], OUTER[1]) == 2

    assert not calls


async def test_when_the_child_sa_is_gone_the_same_packet_calls_again(ends: Ends) -> None:
    calls = set_trap(ends[0])
    await answered(ends[0], NEAR, FAR, 1)
    await until(lambda: len(calls) == 1)
    install(ends)
    assert await answered(ends[0], NEAR, FAR) == 2
    for end in ends:
        end.plane.remove(0x1000 + end.side)

    await answered(ends[0], NEAR, FAR, 1)
    await until(lambda: len(calls) == 2)

    assert await policies(ends[0]) == 2, "the trap's, one for each IP version"


async def test_nothing_leaves_in_clear_while_a_trap_waits(ends: Ends) -> None:
    set_trap(ends[0])

    assert await answered(ends[0], NEAR, FAR) == 0

    assert set(ends[0].statistics()) <= {"XfrmOutNoStates", "XfrmAcquireError"}


async def test_a_trap_follows_the_peer_and_goes(ends: Ends) -> None:
    set_trap(ends[0])
    calls = set_trap(ends[0], THIRD)
    printed = await on(ends[0].host, "ip", "xfrm", "policy")
    assert f"tmpl src {THIRD[0]} dst {THIRD[1]}" in printed
    assert f"tmpl src {OUTER[0]} " not in printed
    await answered(ends[0], NEAR, FAR, 1)
    await until(lambda: bool(calls))

    ends[0].plane.untrap(child_of(0).name)

    assert await policies(ends[0]) == 0


async def test_the_end_leaves_no_trap_and_no_spi(ends: Ends) -> None:
    set_trap(ends[0])
    install(ends)
    assert ends[0].plane.reserve_spi(0x5000, ends[0].transport(*OUTER).path)

    ends[0].plane.close()

    assert await states(ends[0]) == []
    assert await policies(ends[0]) == 0


# --- what comes before the Child SA is there --------------------------------------------------


def agree(ends: Ends, ways: tuple[str, str] = OUTER, **of: tuple) -> None:
    """The responder is the first to have the Child SA."""
    install((ends[1], ends[0]), ways, **of)


@asynccontextmanager
async def waiting(end: Host, source: str = NEAR, target: str = FAR) -> AsyncIterator[list[int]]:
    """Ten pings from before what is done here; how many came back."""
    calls = set_trap(end)
    received: list[int] = []
    async with asyncio.TaskGroup() as tasks:
        pings = tasks.create_task(answered(end, source, target, 10, patience_s=20))
        await until(lambda: bool(calls))
        yield received
    received.append(pings.result())


@pytest.mark.parametrize(("source", "target"), [(NEAR, FAR), (NEAR_6, FAR_6)], ids=["4", "6"])
async def test_the_first_of_ten_packets_is_answered(ends: Ends, source: str, target: str) -> None:
    async with waiting(ends[0], source, target) as received:
        agree(ends)

    assert received == [10]
    assert ends[1].plane.counters(0x1001).packets_in == 10


async def test_what_waits_follows_the_trap_to_another_path(ends: Ends) -> None:
    async with waiting(ends[0]) as received:
        set_trap(ends[0], THIRD)
        agree(ends, THIRD)

    assert received == [10]


@pytest.mark.slow
async def test_what_waits_goes_by_a_child_sa_for_less(ends: Ends) -> None:
    async with waiting(ends[0]) as received:
        agree(ends, peer=selectors(f"{FAR}/32"))

    assert received == [10]


@pytest.mark.slow
async def test_a_socket_that_has_its_route_sends_by_the_child_sa(ends: Ends) -> None:
    """A connected socket keeps its route, which led to the trap."""
    calls = set_trap(ends[0])
    with ends[0].host.entered():
        near = socket.socket(type=socket.SOCK_DGRAM)
    with ends[1].host.entered():
        far = socket.socket(type=socket.SOCK_DGRAM)
    with near, far:
        far.bind((FAR, 7))
        far.setblocking(False)
        near.bind((NEAR, 0))
        near.connect((FAR, 7))
        for octet in range(3):
            near.send(bytes([octet]))
        await until(lambda: bool(calls))

        agree(ends)
        near.send(bytes([3]))

        loop = asyncio.get_running_loop()
        came = [await asyncio.wait_for(loop.sock_recv(far, 1), 5) for _ in range(4)]
    assert sorted(came) == [bytes([octet]) for octet in range(4)]
