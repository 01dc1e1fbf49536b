"""Way: what becomes of an attempt, whatever the core and the transport say, in whatever order."""

import asyncio

import pytest

from tests.kit.carriers import MemoryTransport, path_of
from tunnelwrap.daemon.way import Way
from tunnelwrap.errors import ConnectFailed, PathClosed, PeerRefused, RedirectedTo
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.outputs import (
    Answered,
    ChildRefused,
    Closed,
    ReauthenticationDue,
    Redirected,
)
from tunnelwrap.path import Carrier
from tunnelwrap.transport.dial import Rung

SA = 7
LOST = ConnectFailed("connection refused")


def transport(carrier: Carrier) -> MemoryTransport:
    return MemoryTransport(path_of(carrier))


def way(carrier: Carrier) -> Way:
    """A way over one transport; over UDP it floats to another."""
    first = transport(carrier)
    floats_to = transport(carrier) if carrier is Carrier.UDP else None
    return Way(Rung(carrier, first.path.peer, 0.0), first, floats_to)


async def test_udp_floats_and_a_stream_does_not() -> None:
    udp, tls = way(Carrier.UDP), way(Carrier.TLS)

    assert udp.floats_to is udp.last is not udp.first
    assert tls.floats_to is None
    assert tls.last is tls.first


@pytest.mark.parametrize("carrier", [Carrier.UDP, Carrier.TLS])
async def test_what_is_lost_before_an_answer_is_lost(carrier: Carrier) -> None:
    attempt = way(carrier)
    attempt.lose(LOST)

    with pytest.raises(ConnectFailed, match="refused"):
        await attempt.answered


async def test_after_an_answer_only_a_stream_can_be_lost() -> None:
    for carrier in (Carrier.UDP, Carrier.TLS):
        attempt = way(carrier)
        attempt.take(Answered(SA, attempt.first.path))
        attempt.lose(LOST)

        assert attempt.answered.result() is None
        assert attempt.is_lost is attempt.changed.is_set() is carrier.is_reliable
        assert attempt.established.done() is carrier.is_reliable


async def test_a_new_stream_takes_the_place_of_the_lost() -> None:
    attempt, new = way(Carrier.TCP), transport(Carrier.TCP)
    attempt.lose(LOST)
    attempt.replace(new)

    assert not attempt.is_lost
    assert attempt.first is attempt.last is new


@pytest.mark.parametrize(
    ("end", "error", "words"),
    [
        (Closed(SA, "no answer"), PathClosed, "^no answer$"),
        (
            Closed(SA, "peer says no", NotifyType.NO_PROPOSAL_CHOSEN, "ask it"),
            PeerRefused,
            r"^peer says no \(ask it\)$",
        ),
    ],
)
async def test_an_end_fails_what_is_waited_for(
    end: Closed, error: type[Exception], words: str
) -> None:
    attempt = way(Carrier.UDP)
    attempt.take(end)

    assert attempt.end is end
    assert attempt.changed.is_set()
    for waited_for in (attempt.answered, attempt.established):
        with pytest.raises(error, match=words):
            await waited_for


async def test_an_end_that_nobody_waits_for_is_no_error_of_the_loop() -> None:
    problems: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: problems.append(context))
    way(Carrier.UDP).take(Closed(SA, "no answer"))
    await asyncio.sleep(0)

    assert not problems


async def test_a_refused_child_sa_is_remembered() -> None:
    first, second = transport(Carrier.UDP), transport(Carrier.UDP)
    attempt = Way(Rung(Carrier.UDP, first.path.peer, 0.0), first, second)
    attempt.take(ChildRefused(SA, "gateway", "TS_UNACCEPTABLE"))

    assert attempt.refusal == "TS_UNACCEPTABLE"
    assert attempt.decided.done(), "so there is nothing to wait for"


async def test_a_child_sa_decides_it_too() -> None:
    attempt = way(Carrier.UDP)
    assert not attempt.decided.done()
    attempt.take(Closed(SA, "gone"))
    assert isinstance(attempt.decided.exception(), PathClosed)


async def test_a_redirect_fails_what_is_waited_for() -> None:
    attempt = way(Carrier.UDP)
    attempt.take(Redirected(SA, "vpn2.example.org"))
    attempt.take(Closed(SA, "redirected", is_failure=False))

    error = attempt.answered.exception()
    assert isinstance(error, RedirectedTo)
    assert error.gateway == "vpn2.example.org"
    assert attempt.changed.is_set()


async def test_an_ike_sa_that_is_to_be_replaced_says_so() -> None:
    attempt = way(Carrier.UDP)
    attempt.take(ReauthenticationDue(SA))

    assert attempt.is_due
    assert attempt.changed.is_set()
    assert not attempt.established.done()
