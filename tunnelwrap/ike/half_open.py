"""Half-open IKE SAs: which strangers are let in, and what the others are told without any state.

1. One whose address is proved, by a cookie that came back or by a stream, is let in while there is
   room: in all, and for its address (an IPv4 address, or an IPv6 /64).
2. Any other is let in while few are half open; then it must return a cookie first. So no flood
   from forged addresses fills the room of those who have proved theirs.
3. Where there is no room a datagram is left unanswered, for it will be repeated; a request on a
   stream is not, and is refused at once. No cookie is asked of a stream: TCP has proved the
   address already (RFC 9329 §6.3).

Owns: the names of the half-open IKE SAs and their counts by address, the secrets of the cookies.
RFC 7296 §2.6.
"""

from collections import Counter
from typing import NamedTuple

from tunnelwrap.errors import WireError
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.context import Context
from tunnelwrap.ike.cookie import Cookies, look
from tunnelwrap.ike.outputs import Transmit
from tunnelwrap.path import Datagram, IpAddress
from tunnelwrap.wire.message import IkeHeader, Message
from tunnelwrap.wire.payloads import Notify

_NO_SPI = bytes(8)


class Place(NamedTuple):
    """Under what a half-open IKE SA is counted."""

    network: tuple[int, int]  # IP version, and the IPv4 address or the first half of the IPv6 one
    is_proved: bool


class HalfOpen:
    """The IKE SAs of strangers that we have answered so far only."""

    __slots__ = ("_context", "_cookies", "_counts", "_places")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._cookies = Cookies(context.random)
        self._places: dict[int, Place] = {}
        self._counts: Counter[Place] = Counter()

    def admit(self, header: IkeHeader, datagram: Datagram, now: float) -> Place | None:
        """The place for one who sends the first message; None: told all that it is to know."""
        path = datagram.path
        place = Place(_network_of(path.peer.ip), path.carrier.is_reliable)
        if not place.is_proved and self._must_prove(place):
            if not self._returns_cookie(header, datagram, now):
                return None
            place = place._replace(is_proved=True)
        if place.is_proved and self._is_full(place):
            self._context.counters["dropped_half_open"] += 1
            if path.carrier.is_reliable:
                self._answer(header, datagram, Notify.of(NotifyType.TEMPORARY_FAILURE))
            return None
        return place

    def enter(self, sa_id: int, place: Place) -> None:
        """An IKE SA has been answered."""
        self._places[sa_id] = place
        self._counts[place] += 1

    def leave(self, sa_id: int) -> None:
        """It is authenticated, or gone; unknown is fine."""
        place = self._places.pop(sa_id, None)
        if place is None:
            return
        self._counts[place] -= 1
        if not self._counts[place]:
            del self._counts[place]

    def _must_prove(self, place: Place) -> bool:
        limits = self._context.limits
        is_calm = len(self._places) < min(limits.cookie_threshold, limits.half_open)
        return not is_calm or self._counts[place] >= limits.half_open_per_address

    def _is_full(self, place: Place) -> bool:
        limits = self._context.limits
        is_in_all = len(self._places) >= limits.half_open
        return is_in_all or self._counts[place] >= limits.half_open_per_address

    def _returns_cookie(self, header: IkeHeader, datagram: Datagram, now: float) -> bool:
        try:
            asker, cookie = look(header, datagram.octets, datagram.path.peer.ip)
        except WireError:
            self._context.counters["dropped_malformed"] += 1
            return False
        if cookie is not None and self._cookies.accepts(cookie, asker, now):
            self._context.counters["cookies_returned"] += 1
            return True
        self._context.counters["cookies_asked"] += 1
        made = self._cookies.make(asker, now)
        self._answer(header, datagram, Notify.of(NotifyType.COOKIE, made))
        return False

    def _answer(self, header: IkeHeader, datagram: Datagram, notify: Notify) -> None:
        reply = Message(
            header.spi_i,
            _NO_SPI,
            header.exchange,
            is_response=True,
            is_initiator=False,
            message_id=0,
            payloads=(notify,),
        )
        self._context.emit(Transmit(Datagram(datagram.path, reply.encode())))


def _network_of(ip: IpAddress) -> tuple[int, int]:
    return ip.version, int(ip) if ip.version == 4 else int(ip) >> 64
