"""The ladder of carriers: who begins when, who wins, and what is told of the others."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from tunnelwrap.errors import AllCarriersFailed, AuthenticationFailed, ConnectFailed, TlsFailed
from tunnelwrap.path import Carrier, SocketAddress
from tunnelwrap.transport.dial import DELAYS_S, Attempt, Rung, climb

UDP, TCP, TLS = Carrier.UDP, Carrier.TCP, Carrier.TLS
ADDRESS = SocketAddress(ip_address("192.0.2.1"), 4500)
STEP_S = 0.04
NEVER_S = 60.0

Deed = Callable[[], Awaitable[str]]


def ladder(*delays: float) -> list[Rung]:
    carriers = (UDP, TCP, TLS)
    return [Rung(carrier, ADDRESS, delay) for carrier, delay in zip(carriers, delays, strict=False)]


async def succeed() -> str:
    return "here"


async def hang() -> str:
    await asyncio.sleep(NEVER_S)
    return "too late"


def after(delay_s: float, deed: Deed) -> Deed:
    async def later() -> str:
        await asyncio.sleep(delay_s)
        return await deed()

    return later


def fail(error: Exception) -> Deed:
    async def failing() -> str:
        raise error

    return failing


@dataclass
class Network:
    """What each carrier does, and what was seen."""

    deeds: dict[Carrier, Deed]
    began: dict[Carrier, float] = field(default_factory=dict)
    told: list[Attempt] = field(default_factory=list)
    undone: list[Carrier] = field(default_factory=list)
    start: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    async def attempt(self, rung: Rung) -> str:
        """What the caller of ``climb`` would do."""
        self.began[rung.carrier] = asyncio.get_running_loop().time() - self.start
        try:
            return await self.deeds[rung.carrier]()
        except asyncio.CancelledError:
            self.undone.append(rung.carrier)
            raise

    @property
    def results(self) -> list[tuple[Carrier, str]]:
        """What was told, without the times."""
        return [(each.carrier, each.result) for each in self.told]


def beaten(network: Network) -> list[Carrier]:
    """The rungs that had no answer yet when another one won."""
    pattern = re.compile(r"no answer in \d+\.\d s")
    assert all(pattern.fullmatch(each.result) for each in network.told)
    return [each.carrier for each in network.told]


async def test_the_first_rung_wins_and_no_other_begins() -> None:
    network = Network({UDP: succeed})
    won = await climb(ladder(0, STEP_S, STEP_S), network.attempt, network.told.append)
    assert (won.rung.carrier, won.value) == (UDP, "here")
    assert list(network.began) == [UDP]
    assert not network.told


async def test_the_next_rung_begins_after_its_delay_and_may_win() -> None:
    network = Network({UDP: hang, TCP: succeed})
    won = await climb(ladder(0, STEP_S, NEVER_S), network.attempt, network.told.append)
    assert won.rung.carrier is TCP
    assert network.began[TCP] >= STEP_S
    assert beaten(network) == [UDP]
    assert network.told[0].seconds >= STEP_S
    assert network.undone == [UDP]


async def test_a_rung_that_is_slow_wins_over_later_ones_that_are_slower() -> None:
    network = Network({UDP: after(2 * STEP_S, succeed), TCP: hang, TLS: hang})
    won = await climb(ladder(0, STEP_S / 2, STEP_S), network.attempt, network.told.append)
    assert won.rung.carrier is UDP
    assert beaten(network) == [TCP, TLS]
    assert sorted(network.undone, key=lambda each: each.value) == [TCP, TLS]


async def test_failure_of_all_before_calls_the_next_at_once() -> None:
    deeds = {UDP: fail(ConnectFailed("refused")), TCP: fail(TlsFailed("no")), TLS: succeed}
    network = Network(deeds)
    won = await climb(ladder(0, NEVER_S, NEVER_S), network.attempt, network.told.append)
    assert won.rung.carrier is TLS
    assert network.results == [(UDP, "refused"), (TCP, "no")]


async def test_a_failure_in_the_middle_calls_nobody_while_an_earlier_one_still_tries() -> None:
    deeds = {UDP: after(2 * STEP_S, fail(ConnectFailed("late"))), TCP: fail(ConnectFailed("no"))}
    network = Network({**deeds, TLS: succeed})
    won = await climb(ladder(0, 0, NEVER_S), network.attempt, network.told.append)
    assert won.rung.carrier is TLS
    assert network.began[TLS] >= 2 * STEP_S
    assert network.results == [(TCP, "no"), (UDP, "late")]


async def test_failures_are_told_at_once() -> None:
    told_at: list[float] = []
    loop = asyncio.get_running_loop()
    network = Network({UDP: fail(ConnectFailed("no")), TCP: after(2 * STEP_S, succeed)})
    await climb(ladder(0, 0), network.attempt, lambda _: told_at.append(loop.time()))
    assert told_at[0] - network.start < STEP_S


async def test_if_all_fail_each_says_why() -> None:
    deeds = {UDP: after(STEP_S, fail(ConnectFailed("no answer"))), TCP: fail(TlsFailed("no"))}
    network = Network(deeds)
    with pytest.raises(AllCarriersFailed) as caught:
        await climb(ladder(0, 0), network.attempt, network.told.append)
    assert caught.value.attempts == [("udp", "no answer"), ("tcp", "no")]
    assert str(caught.value) == "udp: no answer; tcp: no"


async def test_no_rungs() -> None:
    network = Network({})
    with pytest.raises(AllCarriersFailed):
        await climb([], network.attempt, network.told.append)


async def test_a_rung_is_given_up() -> None:
    network = Network({UDP: hang, TCP: succeed})
    ways = ladder(0, NEVER_S)
    won = await climb(ways, network.attempt, network.told.append, give_up_s=STEP_S)
    assert won.rung.carrier is TCP
    assert network.results == [(UDP, f"no answer within {STEP_S:g} s")]
    assert network.undone == [UDP]


async def test_a_final_refusal_ends_the_climb() -> None:
    network = Network({UDP: hang, TCP: fail(AuthenticationFailed("wrong key")), TLS: succeed})
    with pytest.raises(AuthenticationFailed, match="wrong key"):
        await climb(
            *(ladder(0, STEP_S, 2 * STEP_S), network.attempt, network.told.append),
            final=(AuthenticationFailed,),
        )
    assert TLS not in network.began
    assert network.undone == [UDP]


async def test_what_is_not_final_is_a_failure_like_others() -> None:
    network = Network({UDP: fail(AuthenticationFailed("wrong key")), TCP: succeed})
    won = await climb(ladder(0, NEVER_S), network.attempt, network.told.append)
    assert won.rung.carrier is TCP


async def test_a_bug_in_an_attempt_comes_out() -> None:
    network = Network({UDP: hang, TCP: fail(ZeroDivisionError("bug"))})
    with pytest.raises(ZeroDivisionError):
        await climb(ladder(0, 0), network.attempt, network.told.append)
    assert network.undone == [UDP]


async def test_cancelling_a_climb_cancels_its_attempts() -> None:
    network = Network({UDP: hang, TCP: hang})
    async with asyncio.TaskGroup() as tasks:
        climbing = tasks.create_task(climb(ladder(0, 0), network.attempt, network.told.append))
        await asyncio.sleep(STEP_S)
        climbing.cancel()
    assert climbing.cancelled()
    assert sorted(network.undone, key=lambda each: each.value) == [TCP, UDP]
    assert not network.told


async def test_of_two_that_succeed_at_once_one_wins_and_the_other_is_undone() -> None:
    together = asyncio.Event()

    async def both() -> str:
        await together.wait()
        return "here"

    network = Network({UDP: both, TCP: both})
    asyncio.get_running_loop().call_later(STEP_S, together.set)
    await climb(ladder(0, 0), network.attempt, network.told.append)
    assert len(network.undone) == 1
    assert len(beaten(network)) == 1


@pytest.mark.rfc("9329", "5.1")
def test_u2_udp_repeats_its_first_message_before_tcp_begins() -> None:
    assert DELAYS_S[UDP] == 0
    assert 0.5 < DELAYS_S[TCP] < DELAYS_S[TLS]
