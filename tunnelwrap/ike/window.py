"""Message IDs, retransmission and cached responses; window size 1. RFC 7296 §2.1-2.3.

On a reliable path a request is sent once for each connection (RFC 9329 §6.2); only its overall
time-out is left.
"""

from enum import Enum
from hashlib import sha256
from typing import Final, NamedTuple

from tunnelwrap.ike.policy import Retransmission

FAREWELLS: Final = 256  # last responses that are kept at once, each of a few hundred octets
FAREWELL_S: Final = 30.0  # strongSwan repeats a request after 4, 11 and 24 s


class Verdict(Enum):
    """What an arriving request is to us."""

    NEW = "new"
    DUPLICATE = "duplicate"  # answered already: the same response goes out again
    PENDING = "pending"  # its answer is being prepared: absorbed
    OUTSIDE = "outside"  # not in the window: dropped


class ResponseWindow:
    """The peer's requests. Owns: the next message ID and the last response."""

    __slots__ = ("_asked", "_expected", "_is_pending", "_response")

    def __init__(self) -> None:
        self._asked = b""
        self._expected = 0
        self._response: tuple[bytes, ...] = ()
        self._is_pending = False

    def judge(self, message_id: int) -> Verdict:
        """What a request with this message ID is; changes nothing."""
        if message_id == self._expected:
            return Verdict.PENDING if self._is_pending else Verdict.NEW
        if message_id == self._expected - 1 and self._response:
            return Verdict.DUPLICATE
        return Verdict.OUTSIDE

    def heard(self, message_id: int, datagram: bytes) -> None:
        """An authentic request has come, or its first fragment: it is known again by that."""
        if self.judge(message_id) is Verdict.NEW:
            self._asked = _digest(datagram)

    def begin(self) -> None:
        """A NEW request is being answered; its repetitions are absorbed meanwhile."""
        self._is_pending = True

    def answered(self, *response: bytes) -> None:
        """Keep the response, one datagram or its fragments; the next request is expected now."""
        self._response = response
        self._expected += 1
        self._is_pending = False

    def split_anew(self, *response: bytes) -> None:
        """The last response goes out in these datagrams from now on. RFC 7383 §2.5.2."""
        self._response = response

    @property
    def response(self) -> tuple[bytes, ...]:
        """The datagrams of the last response, octet for octet; none before the first."""
        return self._response

    @property
    def asked(self) -> bytes:
        """The digest of the datagram by which the request came that was answered last."""
        return self._asked


class Farewell(NamedTuple):
    """The last response of an IKE SA that ended with it."""

    asked: bytes  # the digest of what it answers
    response: tuple[bytes, ...]
    is_reliable: bool  # by what kind of path
    until: float


class Farewells:
    """Last responses that outlive their IKE SAs: one may be lost, and its request comes again.

    strongSwan, for one, misses the answer to the delete of a redundant IKE SA if it comes at once.
    Of the IKE SA nothing is left, no keys either: only the very octets of the request bring the
    response. Where it came in fragments the first of them does. RFC 7296 §2.1, RFC 7383 §2.6.1.
    """

    __slots__ = ("_by_spi",)

    def __init__(self) -> None:
        self._by_spi: dict[bytes, Farewell] = {}

    def keep(self, spi: bytes, responses: ResponseWindow, now: float, *, is_reliable: bool) -> None:
        """The IKE SA with this SPI of ours ends with its last response; the oldest makes room."""
        until = now + FAREWELL_S
        self._by_spi[spi] = Farewell(responses.asked, responses.response, is_reliable, until)
        if len(self._by_spi) > FAREWELLS:
            del self._by_spi[next(iter(self._by_spi))]

    def again(
        self, spi: bytes, datagram: bytes, now: float, *, is_reliable: bool
    ) -> tuple[bytes, ...]:
        """The response to a request that comes again; nothing where it is another, or too late.

        What was on a stream stays on streams. RFC 9329 §2.
        """
        kept = self._by_spi.get(spi)
        if kept is None or now > kept.until or is_reliable < kept.is_reliable:
            return ()
        return kept.response if _digest(datagram) == kept.asked else ()


class RequestWindow:
    """Our own requests. Owns: the next message ID and the one outstanding request."""

    __slots__ = ("_due", "_next_id", "_policy", "_request", "_sends", "_started")

    def __init__(self, policy: Retransmission) -> None:
        self._policy = policy
        self._next_id = 0
        self._request: tuple[bytes, ...] = ()
        self._sends = 0
        self._due = 0.0
        self._started = 0.0

    @property
    def next_id(self) -> int:
        """Message ID of the outstanding request, or of the next one."""
        return self._next_id

    @property
    def request(self) -> tuple[bytes, ...]:
        """The datagrams of the outstanding request: one, or its fragments; none without one."""
        return self._request

    @property
    def sends(self) -> int:
        """How often these datagrams have gone out."""
        return self._sends

    def sent(self, request: tuple[bytes, ...], now: float, *, is_reliable: bool) -> None:
        """A new request goes out now, in one datagram or in fragments."""
        self._request = request
        self._sends = 1
        self._started = now
        self._due = now + (
            self._policy.reliable_timeout_s if is_reliable else self._policy.timeout_s
        )

    def resent(self, request: tuple[bytes, ...], now: float, *, is_reliable: bool) -> None:
        """The outstanding request goes out again on another path. RFC 9329 §6.2."""
        assert self._request, "something is outstanding"
        self.sent(request, now, is_reliable=is_reliable)

    def split_anew(self, request: tuple[bytes, ...], now: float) -> None:
        """The outstanding request goes out in smaller fragments; it has all its chances again.

        RFC 7383 §2.5.2.
        """
        started = self._started
        self.sent(request, now, is_reliable=False)
        self._started = started

    def due(self) -> float | None:
        """When ``expire`` wants to be called, or None."""
        return self._due if self._request else None

    def expire(self, now: float, *, is_reliable: bool) -> tuple[bytes, ...]:
        """The request to repeat now; nothing when the peer has had all its chances."""
        if is_reliable or self._sends > self._policy.tries:
            return ()
        self._due = now + self._policy.timeout_s * self._policy.factor**self._sends
        self._sends += 1
        return self._request

    def waited(self, now: float) -> float:
        """Seconds since the outstanding request was first sent."""
        return now - self._started

    def completed(self) -> None:
        """The response came: the next request takes the next message ID."""
        self._request = ()
        self._next_id += 1

    def withdraw(self) -> None:
        """Forget the outstanding request without a response (IKE_SA_INIT is begun anew)."""
        self._request = ()


def _digest(datagram: bytes) -> bytes:
    return sha256(datagram).digest()
