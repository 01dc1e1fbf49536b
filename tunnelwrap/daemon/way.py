"""A way to the gateway: one rung of the ladder, its transports, and what becomes of its IKE SA."""

import asyncio
from typing import TypeVar

from tunnelwrap.errors import (
    PathClosed,
    PeerRefused,
    RedirectedTo,
    TransportError,
    TunnelwrapError,
)
from tunnelwrap.ike.outputs import (
    Answered,
    ChildRefused,
    Closed,
    Established,
    InstallChildSa,
    ReauthenticationDue,
    Redirected,
)
from tunnelwrap.transport import Transport
from tunnelwrap.transport.dial import Rung

T = TypeVar("T")


class Way:
    """What is known of one attempt, from its first message to the end of its IKE SA.

    ``answered``, ``established`` and ``decided`` fail when the IKE SA ends or the stream breaks
    before; ``changed`` is set when it happens afterwards.

    Args:
        rung: the carrier and the gateway's address.
        transport: carries the first message.
        floats_to: carries all others, if not ``transport``: UDP port 4500. RFC 7296 §2.23.
    """

    __slots__ = (
        "_transports",
        "answered",
        "changed",
        "decided",
        "end",
        "established",
        "is_due",
        "is_lost",
        "redirect",
        "refusal",
        "rung",
        "sa",
    )

    def __init__(self, rung: Rung, transport: Transport, floats_to: Transport | None) -> None:
        loop = asyncio.get_running_loop()
        self.rung = rung
        self.sa = 0
        self.answered: asyncio.Future[None] = loop.create_future()
        self.established: asyncio.Future[Established] = loop.create_future()
        self.decided: asyncio.Future[None] = loop.create_future()  # there is a Child SA, or none
        self.changed = asyncio.Event()
        self.is_lost = False
        self.is_due = False  # an IKE SA that replaces this one is to be begun
        self.end: Closed | None = None
        self.redirect: RedirectedTo | None = None
        self.refusal = ""  # why there is no Child SA
        self._transports = [transport] if floats_to is None else [transport, floats_to]

    @property
    def first(self) -> Transport:
        """What carries IKE_SA_INIT."""
        return self._transports[0]

    @property
    def last(self) -> Transport:
        """What carries everything else."""
        return self._transports[-1]

    @property
    def floats_to(self) -> Transport | None:
        """The transport for UDP port 4500, where the first message goes to port 500."""
        return self.last if self.last is not self.first else None

    def take(
        self,
        fact: Answered
        | Established
        | InstallChildSa
        | ReauthenticationDue
        | Redirected
        | ChildRefused
        | Closed,
    ) -> None:
        """The core says something about the IKE SA."""
        match fact:
            case Answered():
                _settle(self.answered, None)
            case Established():
                _settle(self.established, fact)
            case InstallChildSa():
                _settle(self.decided, None)
                self.changed.set()
            case ReauthenticationDue():
                self.is_due = True
                self.changed.set()
            case Redirected():
                self.redirect = RedirectedTo(fact.gateway)
                self._fail(self.redirect)
            case ChildRefused():
                self.refusal = fact.reason
                _settle(self.decided, None)
            case Closed():
                self.end = fact
                self._fail(_error_of(fact))

    def lose(self, error: TransportError) -> None:
        """The stream broke, or UDP is refused: the latter counts only before there is an answer."""
        if self.rung.carrier.is_reliable:
            self.is_lost = True
            self._fail(error)
        elif not self.answered.done():
            self._fail(error)

    def replace(self, transport: Transport) -> None:
        """A new stream carries the IKE SA from now on."""
        self._transports = [transport]
        self.is_lost = False

    def _fail(self, error: TunnelwrapError) -> None:
        for future in (self.answered, self.established, self.decided):
            if not future.done():
                future.set_exception(error)
                future.exception()  # it is no fault if nobody asks
        self.changed.set()


def _error_of(end: Closed) -> TunnelwrapError:
    text = f"{end.reason} ({end.hint})" if end.hint else end.reason
    return PathClosed(text) if end.notify is None else PeerRefused(end.notify, text)


def _settle(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)
