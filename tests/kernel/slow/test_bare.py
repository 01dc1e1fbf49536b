"""ESP without UDP around it in the kernel's plane, and between bare and encapsulated.

As in ``test_plane``: two planes on a wire, without IKE.
"""

import asyncio

import pytest

from tests.kernel import test_plane
from tests.kernel.ends import (
    OUTER,
    OUTER_6,
    THIRD,
    Ends,
    answered,
    install,
    policies,
    states,
    until,
)
from tests.kernel.test_plane import captured
from tests.unit.dataplane.samples import FAR, NEAR, selectors
from tunnelwrap.ike.child_sa import Mode

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ESP = "ip proto 50 or ip6 proto 50"
UDP = "udp port 4500"


def move(ends: Ends, ways: tuple[str, str], *, is_bare: bool) -> None:
    """Both ends go to other addresses, the one that follows first."""
    for end in (ends[1], ends[0]):
        way = end.transport(ways[end.side], ways[1 - end.side])
        end.plane.move(0x1000 + end.side, way, is_bare=is_bare)


async def check_travel(ends: Ends, wanted: str) -> None:
    """See that pings come back, and that they travel so, both ways."""
    async with captured(ends[1], wanted) as lines:
        assert await answered(ends[0], NEAR, FAR) == 2
        await until(lambda: len(lines) == 4)


@pytest.mark.parametrize("ways", [OUTER, OUTER_6], ids=["over-ipv4", "over-ipv6"])
async def test_it_is_an_ip_protocol_of_its_own(ends: Ends, ways: tuple[str, str]) -> None:
    install(ends, ways, is_bare=True)

    await check_travel(ends, ESP)

    assert [end.plane.counters(0x1000 + end.side).packets_in for end in ends] == [2, 2]
    assert [end.statistics() for end in ends] == [{}, {}]
    for end in ends:
        report = end.plane.report()
        assert report["differences"] == []
        assert [each["udp_ports"] for each in report["sas"]] == [None, None]
        assert [each["offloaded_to"] for each in report["sas"]] == [None, None]
        end.plane.remove(0x1000 + end.side)
        assert await states(end) == []
        assert await policies(end) == 0


async def test_a_rekey_loses_nothing(ends: Ends) -> None:
    install(ends, is_bare=True)
    async with asyncio.TaskGroup() as tasks:
        pings = tasks.create_task(answered(ends[0], NEAR, FAR, 200))
        await asyncio.sleep(0.5)
        for number in range(1, 4):
            await test_plane.rekey(
                ends, 0x1000 + 16 * (number - 1), 0x1000 + 16 * number, is_bare=True
            )

    assert pings.result() == 200
    assert [end.statistics() for end in ends] == [{}, {}]


@pytest.mark.parametrize("mode", [Mode.TUNNEL, Mode.BEET])
async def test_it_is_encapsulated_behind_a_nat_and_bare_again(ends: Ends, mode: Mode) -> None:
    inner = {"local": selectors(NEAR), "peer": selectors(FAR)}
    install(ends, is_bare=True, mode=mode, **inner)
    await check_travel(ends, ESP)

    move(ends, (THIRD[0], OUTER[1]), is_bare=False)
    await check_travel(ends, UDP)
    move(ends, OUTER, is_bare=True)
    await check_travel(ends, ESP)
    move(ends, OUTER, is_bare=False)  # a NAT there and then
    await check_travel(ends, UDP)
    move(ends, OUTER, is_bare=True)
    await check_travel(ends, ESP)

    assert [end.statistics() for end in ends] == [{}, {}]
    assert [len(await states(end)) for end in ends] == [2, 2]


async def test_a_move_behind_a_nat_repeats_no_number(ends: Ends) -> None:
    """What meets the gap between the one's move and the other's is lost, as in any move."""
    install(ends, is_bare=True)
    async with asyncio.TaskGroup() as tasks:
        pings = tasks.create_task(answered(ends[0], NEAR, FAR, 200))
        await asyncio.sleep(0.5)
        move(ends, (THIRD[0], OUTER[1]), is_bare=False)

    assert pings.result() >= 190, "the gap is long here"
    counted = ends[0].plane.counters(0x1000)
    assert (counted.packets_out, counted.packets_in) == (200, pings.result())
    allowed = {"XfrmInNoStates", "XfrmInStateMismatch"}
    assert [set(end.statistics()) - allowed for end in ends] == [set(), set()]
