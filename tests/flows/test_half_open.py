"""Limits on IKE SAs whose peer has not proved who it is: in all, and for each address."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.flows.scripted import THERE, ScriptedInitiator, clear
from tests.kit.pair import Pair
from tests.kit.policies import client, gateway
from tunnelwrap.iana import ExchangeType, NotifyType
from tunnelwrap.ike.outputs import Closed, Established
from tunnelwrap.ike.policy import Limits
from tunnelwrap.path import Carrier, Path, SocketAddress
from tunnelwrap.wire.payloads import KeyExchange, Nonce, Notify

ROOMY = Limits(half_open=100, half_open_per_address=100, cookie_threshold=100)


class Crowd:
    """Initiators of all kinds before one responder."""

    def __init__(self, limits: Limits) -> None:
        self.peer = ScriptedInitiator(client(), gateway(), limits)
        self._number = 0

    @property
    def counters(self) -> dict[str, int]:
        return self.peer.endpoint.counters

    def arrive(self, ip: str, carrier: Carrier = Carrier.UDP) -> str:
        """A new initiator from an address; what it is told."""
        return self._ask(self._request(), self._path(ip, carrier))

    def arrive_with_cookie(self, ip: str) -> str:
        """One that returns the cookie that it is asked for."""
        path = self._path(ip, Carrier.UDP)
        request = self._request()
        assert self._ask(request, path) == "COOKIE"
        (demand,) = clear(self.peer.sent[-1]).all(Notify)
        payloads = [demand, *clear(request).payloads]
        return self._ask(self.peer.sa.message(ExchangeType.IKE_SA_INIT, 0, payloads).encode(), path)

    def _request(self) -> bytes:
        self._number += 1
        self.peer.sa.spi_i, self.peer.sa.spi_r = self._number.to_bytes(8, "big"), bytes(8)
        return self.peer.init_request()[1]

    def _path(self, ip: str, carrier: Carrier) -> Path:
        where = SocketAddress(ip_address(ip), 1024 + self._number)
        there = THERE if where.ip.version == 4 else SocketAddress(ip_address("2001:db8::1"), 4500)
        return Path(there, where, carrier, id=self._number)

    def _ask(self, request: bytes, path: Path) -> str:
        self.peer.arrival = path
        sent = self.peer.deliver(request)
        if not sent:
            return "silence"
        message = clear(sent[0])
        if message.find(KeyExchange) is not None:
            return "welcome"
        return NotifyType(message.all(Notify)[0].notify).name


@pytest.mark.rfc("7296", "2.6")
def test_where_there_is_no_room_a_datagram_costs_nothing_even_with_a_cookie() -> None:
    crowd = Crowd(replace(ROOMY, half_open=3))
    assert [crowd.arrive(f"192.0.2.{n}") for n in range(1, 4)] == ["welcome"] * 3
    assert crowd.arrive("192.0.2.4") == "COOKIE"
    assert crowd.arrive_with_cookie("192.0.2.4") == "silence", "it will be repeated"
    assert crowd.counters["dropped_half_open"] == 1


@pytest.mark.parametrize("carrier", [Carrier.TCP, Carrier.TLS])
def test_on_a_stream_there_is_an_answer_for_nothing_is_repeated_there(carrier: Carrier) -> None:
    crowd = Crowd(replace(ROOMY, half_open=1))
    assert crowd.arrive("192.0.2.1", carrier) == "welcome"
    assert crowd.arrive("192.0.2.2", carrier) == "TEMPORARY_FAILURE"
    assert crowd.peer.endpoint.next_timeout() is not None
    crowd.peer.wait(31.0)
    assert crowd.arrive("192.0.2.2", carrier) == "welcome"


def test_who_is_refused_on_a_stream_is_told_so_at_once() -> None:
    pair = Pair(client(), gateway(), carrier=Carrier.TCP, limits=Limits(half_open=1))
    pair.i.authenticates = False
    pair.initiate()
    pair.initiate(path=replace(pair.path, id=1))
    pair.run(0.1)
    closed = pair.i.fact(Closed)
    assert closed is not None
    assert closed.notify == NotifyType.TEMPORARY_FAILURE
    assert "try again later" in closed.hint


@pytest.mark.parametrize(
    ("first", "same", "other"),
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1"),
    ],
)
def test_one_address_has_less_room_than_all(first: str, same: str, other: str) -> None:
    """An IPv6 host has a /64 to choose addresses from."""
    crowd = Crowd(replace(ROOMY, half_open_per_address=2))
    assert crowd.arrive(first, Carrier.TCP) == "welcome"
    assert crowd.arrive(same, Carrier.TCP) == "welcome"
    assert crowd.arrive(same, Carrier.TCP) == "TEMPORARY_FAILURE"
    assert crowd.arrive(other, Carrier.TCP) == "welcome"


def test_forged_datagrams_do_not_take_the_room_of_the_one_whose_address_they_bear() -> None:
    crowd = Crowd(replace(ROOMY, half_open_per_address=2))
    assert [crowd.arrive("192.0.2.1") for _ in range(3)] == ["welcome", "welcome", "COOKIE"]
    assert crowd.arrive_with_cookie("192.0.2.1") == "welcome"
    assert crowd.arrive("192.0.2.1", Carrier.TCP) == "welcome"
    assert crowd.arrive_with_cookie("192.0.2.1") == "silence"


def test_forged_datagrams_from_everywhere_leave_room_for_those_who_prove_their_address() -> None:
    crowd = Crowd(replace(ROOMY, half_open=20, cookie_threshold=5))
    told = [crowd.arrive(f"203.0.113.{n}") for n in range(200)]
    assert told == ["welcome"] * 5 + ["COOKIE"] * 195
    assert crowd.arrive_with_cookie("192.0.2.1") == "welcome"
    assert crowd.arrive("192.0.2.2", Carrier.TLS) == "welcome"


def test_room_is_free_again_when_the_time_of_the_half_open_is_over() -> None:
    crowd = Crowd(replace(ROOMY, half_open=3, half_open_s=10.0))
    for n in range(1, 4):
        crowd.arrive(f"192.0.2.{n}")
    crowd.peer.wait(11.0)
    assert crowd.arrive("192.0.2.4") == "welcome"
    assert len([fact for fact in crowd.peer.facts if isinstance(fact, Closed)]) == 3


def test_one_that_authenticates_is_half_open_no_more() -> None:
    crowd = Crowd(replace(ROOMY, half_open=1))
    crowd.peer.connect()
    assert crowd.peer.fact(Established) is not None
    assert crowd.arrive("192.0.2.9") == "welcome"


def test_a_repeated_request_gets_its_response_again_however_full_it_is() -> None:
    crowd = Crowd(replace(ROOMY, half_open=1, cookie_threshold=1))
    _, request = crowd.peer.init_request()
    (response,) = crowd.peer.deliver(request)
    assert crowd.arrive("192.0.2.9") == "COOKIE"
    crowd.peer.arrival = Path(THERE, SocketAddress(ip_address("192.0.2.1"), 4500), Carrier.UDP)
    assert crowd.peer.deliver(request) == [response]


@pytest.mark.parametrize("what", ["no nonce", "cut short"])
def test_what_cannot_be_read_is_asked_for_no_cookie(what: str) -> None:
    crowd = Crowd(replace(ROOMY, cookie_threshold=0))
    _, request = crowd.peer.init_request()
    payloads = [p for p in clear(request).payloads if not isinstance(p, Nonce)]
    octets = crowd.peer.sa.message(ExchangeType.IKE_SA_INIT, 0, payloads).encode()
    if what == "cut short":
        octets = request[:24] + (40).to_bytes(4, "big") + request[28:40]
    assert crowd.peer.deliver(octets) == []
    assert crowd.counters == {"dropped_malformed": 1}
