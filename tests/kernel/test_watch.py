"""What somebody else deletes in the kernel is noticed and mended.

As in ``test_plane``: two planes on a wire, without IKE.
"""

import logging

import pytest

from tests.kernel import test_plane
from tests.kernel.ends import (
    OUTER,
    OUTER_6,
    THIRD,
    Ends,
    answered,
    by_policies,
    install,
    policies,
    states,
    until,
)
from tests.kernel.test_traps import set_trap
from tests.unit.dataplane.samples import FAR, NEAR

pytestmark = pytest.mark.kernel


def differences(ends: Ends) -> list[object]:
    found = ends[0].plane.report()["differences"]
    assert isinstance(found, list)
    return found


async def test_policies_are_put_back_and_child_sas_are_replaced(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    install(ends)
    other = "src 198.51.100.1 dst 198.51.100.2 proto esp spi 0x99 reqid 7 mode tunnel"
    add = f"ip xfrm state add {other} aead rfc4106(gcm(aes)) 0x{'11' * 20} 128"
    ends[0].host.run(*add.split())
    before = await policies(ends[0])
    assert differences(ends) == []

    ends[0].host.run("ip", "xfrm", "policy", "flush")
    await until(lambda: bool(caplog.records))
    assert await policies(ends[0]) == before
    assert await answered(ends[0], NEAR, FAR) == 2
    assert ends[0].expired == [], "policies have no past"

    delete = f"ip xfrm state delete src {OUTER[0]} dst {OUTER[1]} proto esp spi 0x1001"
    ends[0].host.run(*delete.split())
    assert await answered(ends[0], NEAR, FAR, 1) == 0
    await until(lambda: bool(ends[0].expired))

    assert ends[0].expired == [(0x1000, False)], "its sequence numbers are lost: other keys"
    assert differences(ends) == [
        f"ESP 00001001 to {OUTER[1]} was deleted or changed by somebody else"
    ]
    assert "0x00001000" in await states(ends[0])
    install(ends, spi=0x2000)
    for end in ends:
        end.plane.remove(0x1000 + end.side)
    assert await answered(ends[0], NEAR, FAR) == 2
    assert differences(ends) == []
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert all(text.startswith("somebody has deleted what is ours") for text in told)
    assert told[0].endswith("6 policies put back")
    assert told[1].endswith("1 Child SA to be replaced")
    assert "0x00000099" in await states(ends[0])


@pytest.mark.slow
async def test_of_each_child_sa_it_is_told_once(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    install(ends)
    install(ends, spi=0x2000)

    ends[0].host.run("ip", "xfrm", "state", "flush")
    ends[0].host.run("ip", "xfrm", "policy", "deleteall")
    await until(lambda: "6 policies put back" in caplog.text)
    assert len(differences(ends)) == 4

    assert sorted(ends[0].expired) == [(0x1000, False), (0x2000, False)]
    assert "2 Child SAs to be replaced" in caplog.text


@by_policies
@pytest.mark.slow
async def test_what_we_do_ourselves_is_no_difference(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    set_trap(ends[0])
    assert ends[0].plane.reserve_spi(0x5000, ends[0].transport(*OUTER).path)
    await answered(ends[0], NEAR, FAR, 1)
    install(ends)
    assert differences(ends) == []
    for ways in (THIRD, OUTER_6, OUTER):
        for end in ends:
            end.plane.move(0x1000 + end.side, end.transport(ways[end.side], ways[1 - end.side]))
        assert differences(ends) == []
    await test_plane.rekey(ends, 0x1000, 0x2000)
    assert await answered(ends[0], NEAR, FAR) == 2
    for end in ends:
        end.plane.remove(0x2000 + end.side)
    ends[0].plane.release_spi(0x5000)
    await answered(ends[0], NEAR, FAR, 1)

    assert differences(ends) == []
    assert caplog.records == []


@by_policies
@pytest.mark.slow
async def test_a_policy_of_another_program_in_our_place_stays(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    install(ends)
    selector = "src 10.1.0.0/16 dst 10.2.0.0/16 dir out"
    theirs = f"tmpl src {OUTER[0]} dst {OUTER[1]} proto esp reqid 7 mode tunnel"

    ends[0].host.run(*f"ip xfrm policy update {selector} {theirs}".split())
    assert len(differences(ends)) == 1
    await until(lambda: "another program has one in its place" in caplog.text)

    assert "reqid 7 " in ends[0].host.run("ip", "xfrm", "policy")


@pytest.mark.slow
@pytest.mark.rfc("4303", "3.3.3")
@pytest.mark.parametrize("asks", [False, True], ids=["nothing-there", "a-packet-waits"])
async def test_a_move_does_not_put_back_an_sa_whose_numbers_are_lost(
    ends: Ends, *, asks: bool
) -> None:
    install(ends)
    delete = f"ip xfrm state delete src {OUTER[0]} dst {OUTER[1]} proto esp spi 0x1001"
    ends[0].host.run(*delete.split())
    if asks:
        assert await answered(ends[0], NEAR, FAR, 1) == 0
        assert "0x00001001" in await states(ends[0]), "the kernel asks for it"

    ends[0].plane.move(0x1000, ends[0].transport(THIRD[0], OUTER[1]))

    assert len(differences(ends)) == 1
    assert await answered(ends[0], NEAR, FAR, 1) == 0
    assert ends[0].plane.take_out(0x1000).outbound == (1 << 64) - 1, "none is left for userspace"
    assert await states(ends[0]) == []
