"""Driver: IKE and ESP arrive in one batch, and belong together."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.kit.carriers import MemoryTransport, loopback
from tests.kit.pair import NOW
from tests.kit.policies import client, gateway, quiet
from tunnelwrap.daemon.driver import Driver
from tunnelwrap.dataplane import SaCounters
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.endpoint import Endpoint
from tunnelwrap.ike.outputs import Answered
from tunnelwrap.transport import Transport


class Plane:
    """A DataPlane that takes the packets of the Child SAs that it knows, and keeps them."""

    def __init__(self) -> None:
        self.known: dict[bytes, ChildSa] = {}
        self.taken: list[bytes] = []
        self.drops: dict[str, int] = {}

    def install(self, child: ChildSa, transport: Transport, *, use_outbound: bool) -> None:
        del transport, use_outbound
        self.known[child.spi_in.to_bytes(4, "big")] = child

    def use_outbound(self, spi_in: int) -> None:
        del spi_in

    def move(self, spi_in: int, transport: Transport, *, is_bare: bool) -> None:
        del spi_in, transport, is_bare

    def remove(self, spi_in: int) -> None:
        del self.known[spi_in.to_bytes(4, "big")]

    def counters(self, spi_in: int) -> SaCounters:
        del spi_in
        return SaCounters()

    def feed(self, transport: Transport, batch: Sequence[memoryview]) -> list[memoryview]:
        del transport
        rest = [view for view in batch if bytes(view[:4]) not in self.known]
        self.taken += [bytes(view) for view in batch if bytes(view[:4]) in self.known]
        return rest

    def close(self) -> None:
        self.known.clear()


class Client:
    """An initiator; what its gateway sends is kept until the test hands it over."""

    def __init__(self, transport: MemoryTransport, driver: Driver, plane: Plane) -> None:
        self.transport, self.driver, self.plane = transport, driver, plane
        self.arrived: list[bytes] = []
        transport.receive = self._keep

    def hand_over(self, *more: bytes) -> None:
        """What has arrived, and more datagrams, in one batch."""
        batch, self.arrived = [*self.arrived, *more], []
        self.driver.datagrams(self.transport, [memoryview(octets) for octets in batch])

    def _keep(self, transport: Transport, batch: Sequence[memoryview]) -> None:
        del transport
        self.arrived += map(bytes, batch)


@contextmanager
def connecting() -> Iterator[tuple[Client, Plane]]:
    """A client that only lacks the response that makes its Child SA; and the gateway's plane."""
    loop = asyncio.get_running_loop()
    ours, theirs = loopback()
    planes = Plane(), Plane()
    i = Driver(endpoint("i"), planes[0], loop, lambda fact: answered(i, fact))
    r = Driver(endpoint("r"), planes[1], loop, lambda _fact: None)
    theirs.receive = r.datagrams
    r.attach(theirs)
    initiator = Client(ours, i, planes[0])
    try:
        i.initiate(quiet(client()), ours)
        initiator.hand_over()
        yield initiator, planes[1]
    finally:
        i.close()
        r.close()


def endpoint(name: str) -> Endpoint:
    connections = [quiet(gateway())] if name == "r" else []
    return Endpoint(random.Random(name).randbytes, lambda: NOW, connections=connections)


def answered(driver: Driver, fact: object) -> None:
    if isinstance(fact, Answered):
        driver.authenticate(fact.sa)


async def test_esp_right_behind_the_response_that_makes_its_child_sa_is_not_lost() -> None:
    with connecting() as (initiator, gateway_plane):
        (child,) = gateway_plane.known.values()
        packet = child.spi_out.to_bytes(4, "big") + bytes(40)
        initiator.hand_over(packet, packet)
        assert initiator.plane.taken == [packet, packet]
        assert "dropped_unknown_esp" not in initiator.driver.all_counters()


async def test_esp_of_no_child_sa_is_counted_wherever_it_stands() -> None:
    with connecting() as (initiator, _):
        initiator.hand_over(b"none" + bytes(40))
        assert initiator.driver.all_counters()["dropped_unknown_esp"] == 1
