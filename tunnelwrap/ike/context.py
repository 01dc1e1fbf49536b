"""Context: what all IKE SAs of an Endpoint share. Owns: the output queue, SPIs and counters."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.outputs import Output, ReleaseSpi, Trace
from tunnelwrap.ike.peers import Peers
from tunnelwrap.ike.policy import Limits
from tunnelwrap.ike.ticket import HeldTicket, TicketOffice
from tunnelwrap.ike.window import Farewells
from tunnelwrap.path import Path
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Notify

Random = Callable[[int], bytes]
WallClock = Callable[[], datetime]
ReserveSpi = Callable[[int, Path], bool]
"""Whether an inbound SPI is free on this host, at the local end of a path; then it is ours."""

_NOTIFIES = {int(known): known.name.lower() for known in NotifyType}

FIRST_SPI = 256  # 0 is the non-ESP marker, 1-255 are reserved. RFC 4303 §2.1
FIRST_CPI, LAST_CPI = 256, 61439  # those that are negotiated. RFC 3173 §3.3
MOST_CPIS = 4096  # in use at once; whoever comes then goes uncompressed


class Context:
    """Randomness, wall clock, output queue, identifiers and counters of one Endpoint."""

    __slots__ = (
        "_asks",
        "_cpis",
        "_outputs",
        "_reserve_spi",
        "_sa_ids",
        "_spis",
        "_touched",
        "compresses",
        "counters",
        "exports_keys",
        "farewells",
        "forces_encapsulation",
        "has_beet",
        "held_tickets",
        "limits",
        "peers",
        "random",
        "redirect_to",
        "tickets",
        "token_secret",
        "wall_clock",
    )

    def __init__(
        self,
        random: Random,
        wall_clock: WallClock,
        limits: Limits,
        *,
        forces_encapsulation: bool,
        exports_keys: bool = False,
        reserve_spi: ReserveSpi = lambda _spi, _path: True,
    ) -> None:
        self.random = random
        self.wall_clock = wall_clock
        self.limits = limits
        self.forces_encapsulation = forces_encapsulation
        self.exports_keys = exports_keys
        self.compresses = False  # the data plane can, what comes by UDP. RFC 3173
        self.has_beet = False  # likewise, BEET mode
        self.counters: Counter[str] = Counter()
        self.peers = Peers()
        self.farewells = Farewells()
        self.tickets = TicketOffice(random)
        self.held_tickets: dict[str, HeldTicket] = {}  # by connection; the shell keeps none
        self.redirect_to: str | None = None  # the gateway for whoever comes. RFC 5685
        self.token_secret: Secret | None = None  # of tokens that we make. RFC 6290
        self._reserve_spi = reserve_spi
        self._outputs: list[Output] = []
        self._spis: set[int] = set()
        self._cpis: dict[int, int] = {}  # by the inbound SPI of their Child SA
        self._sa_ids = 0
        self._asks = 0
        self._touched: set[int] = set()

    def emit(self, output: Output) -> None:
        """Queue an output."""
        self._outputs.append(output)

    def drain(self) -> list[Output]:
        """All queued outputs, in order; the queue is empty afterwards."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def trace(self, sa: int | None, level: str, text: str) -> None:
        """Queue one line for the log."""
        self.emit(Trace(sa, level, text))

    def touch(self, sa: int) -> None:
        """Something was done to another IKE SA than the one that is being served."""
        self._touched.add(sa)

    def take_touched(self) -> list[int]:
        """The names of those that were touched since the last call."""
        touched, self._touched = sorted(self._touched), set()
        return touched

    def drop_ticket(self, connection: str, sa: int) -> None:
        """The ticket that came with an IKE SA of ours is worth nothing any more. RFC 5723 §6.2."""
        held = self.held_tickets.get(connection)
        if held is not None and held.session.sa == sa:
            del self.held_tickets[connection]

    def heard(self, sa: int | None, message: Message, path: Path) -> None:
        """Tell of a message that came, and count what it notifies."""
        self._count_notifies("received", message)
        self.trace(sa, "debug", f"< {message} from {path}")

    def said(self, sa: int | None, message: Message, path: Path, datagrams: int = 1) -> None:
        """Tell of a message that goes out, in so many datagrams; count what it notifies."""
        self._count_notifies("sent", message)
        self.trace(sa, "debug", f"> {message} to {path}{in_fragments(datagrams)}")

    def _count_notifies(self, direction: str, message: Message) -> None:
        """By name; those without one together, or strangers would fill the memory."""
        for notify in message.all(Notify):
            name = _NOTIFIES.get(notify.notify, "unknown")
            self.counters[f"notify_{direction}_{name}"] += 1

    def new_sa_id(self) -> int:
        """A name for a new IKE SA, never given twice."""
        self._sa_ids += 1
        return self._sa_ids

    def new_ask(self) -> int:
        """A number for a question to the shell."""
        self._asks += 1
        return self._asks

    def new_ike_spi(self) -> bytes:
        """Eight random octets that are not all zero."""
        while not any(spi := self.random(8)):
            pass
        return spi

    def allocate_spi(self, path: Path) -> int:
        """An inbound SPI that nobody else on this host has, for what comes by a path."""
        while True:
            spi = int.from_bytes(self.random(4), "big")
            if spi >= FIRST_SPI and spi not in self._spis and self._reserve_spi(spi, path):
                self._spis.add(spi)
                return spi

    def allocate_cpi(self, spi: int) -> int | None:
        """An inbound CPI for the Child SA with that SPI; None: too many are in use."""
        while len(self._cpis) < MOST_CPIS:
            cpi = int.from_bytes(self.random(2), "big")
            if FIRST_CPI <= cpi <= LAST_CPI and cpi not in self._cpis.values():
                self._cpis[spi] = cpi
                return cpi
        return None

    def release_spi(self, spi: int) -> None:
        """The inbound SPI of a Child SA is free again, and its CPI."""
        self._spis.discard(spi)
        self._cpis.pop(spi, None)

    def withdraw_spi(self, spi: int) -> None:
        """No Child SA comes of an inbound SPI that was allocated."""
        self.release_spi(spi)
        self.emit(ReleaseSpi(spi))

    def jitter(self, seconds: float, share: float = 0.1) -> float:
        """``seconds``, shortened by up to ``share`` so that two peers rarely collide."""
        fraction = int.from_bytes(self.random(4), "big") / 2**32
        return seconds * (1.0 - share * fraction)


def in_fragments(datagrams: int) -> str:
    """What to add to a line about a message that travels in so many datagrams."""
    return f" in {datagrams} fragments" if datagrams > 1 else ""
