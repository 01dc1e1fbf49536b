"""BEET mode in the kernel's plane: a tunnel whose inner headers are not sent.

As in ``test_plane``: two planes on a wire, without IKE.
"""

import asyncio

import pytest

from tests.kernel import test_plane
from tests.kernel.ends import (
    IF_ID,
    OUTER,
    OUTER_6,
    THIRD,
    Ends,
    answered,
    install,
    on,
    policies,
    states,
)
from tests.kernel.test_plane import pinged
from tests.kit.carriers import MemoryTransport, path_of
from tests.unit.dataplane.samples import FAR, FAR_6, NEAR, NEAR_6, child_of, selectors
from tunnelwrap.dataplane.bridge import LOOPBACK_SYSCTLS, Bridge
from tunnelwrap.errors import Unsupported
from tunnelwrap.ike.child_sa import Mode
from tunnelwrap.path import Carrier

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

INNER = {"local": selectors(f"{NEAR}/32"), "peer": selectors(f"{FAR}/32")}
INNER_6 = {"local": selectors(f"{NEAR_6}/128"), "peer": selectors(f"{FAR_6}/128")}
IP_HEADERS = {4: 20, 6: 40}


@pytest.mark.parametrize("ways", [OUTER, OUTER_6], ids=["over-ipv4", "over-ipv6"])
@pytest.mark.parametrize("version", IP_HEADERS)
async def test_the_inner_header_is_not_sent(
    ends: Ends, version: int, ways: tuple[str, str]
) -> None:
    inner, source, target = (INNER, NEAR, FAR) if version == 4 else (INNER_6, NEAR_6, FAR_6)
    install(ends, ways, **inner)
    assert await answered(ends[0], source, target) == 2
    in_tunnel = ends[0].plane.counters(0x1000)
    for end in ends:
        end.plane.remove(0x1000 + end.side)

    install(ends, ways, mode=Mode.BEET, **inner)
    assert await answered(ends[0], source, target) == 2

    counted = ends[0].plane.counters(0x1000)
    assert (counted.packets_in, counted.packets_out) == (2, 2)
    assert in_tunnel.octets_out - counted.octets_out == 2 * IP_HEADERS[version]
    assert [end.statistics() for end in ends] == [{}, {}]
    assert (await on(ends[0].host, "ip", "xfrm", "state")).count("mode beet") == 2
    for end in ends:
        assert end.plane.report()["differences"] == []
        end.plane.remove(0x1000 + end.side)
        assert await states(end) == []
        assert await policies(end) == 0


@pytest.mark.skipif(IF_ID != 0, reason="an interface takes fragments, which BEET mode has not")
async def test_two_pairs_of_addresses_and_large_packets(ends: Ends) -> None:
    second = {"local": selectors("10.1.0.2/32"), "peer": selectors("10.2.0.2/32")}
    for end in ends:
        end.host.address("lo", f"10.{end.side + 1}.0.2/32")
        end.host.route(f"10.{2 - end.side}.0.2", dev="eth0")
    install(ends, mode=Mode.BEET, **INNER)
    install(ends, mode=Mode.BEET, spi=0x2000, **second)

    assert await pinged(ends[0], NEAR, FAR, 3000) == 2
    assert await pinged(ends[1], "10.2.0.2", "10.1.0.2", 3000) == 2

    assert ends[0].plane.counters(0x1000).packets_in == 2
    assert ends[0].plane.counters(0x2000).packets_in == 2
    assert [end.statistics() for end in ends] == [{}, {}]


async def test_it_moves_and_is_rekeyed(ends: Ends) -> None:
    install(ends, mode=Mode.BEET, **INNER)
    assert await answered(ends[0], NEAR, FAR) == 2
    for ways in ((THIRD[0], OUTER[1]), OUTER_6, OUTER):
        for end in (ends[1], ends[0]):
            end.plane.move(0x1000 + end.side, end.transport(ways[end.side], ways[1 - end.side]))
        assert await answered(ends[0], NEAR, FAR) == 2

    await test_plane.rekey(ends, 0x1000, 0x2000, mode=Mode.BEET, **INNER)

    assert await answered(ends[0], NEAR, FAR) == 2
    assert ends[0].plane.counters(0x2000).packets_in == 2
    assert [end.statistics() for end in ends] == [{}, {}]


async def test_no_stream_leads_there(ends: Ends) -> None:
    for key, value in LOOPBACK_SYSCTLS:
        ends[0].host.sysctl(key.replace("/", "."), value)
    with ends[0].host.entered():
        ends[0].plane.open_feed(Bridge.create(asyncio.get_running_loop()))
    stream = MemoryTransport(path_of(Carrier.TCP))
    for mode in (Mode.BEET, Mode.TRANSPORT):
        with pytest.raises(Unsupported, match=f"no {mode.value} mode from streams"):
            ends[0].plane.install(child_of(mode=mode, **INNER), stream, use_outbound=True)
    assert await states(ends[0]) == []
