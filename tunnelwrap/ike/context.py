"""Context: what all IKE SAs of an Endpoint share. Owns: the output queue, SPIs and counters."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.ike.outputs import Output, Trace
from tunnelwrap.ike.peers import Peers
from tunnelwrap.ike.policy import Limits
from tunnelwrap.ike.ticket import HeldTicket, TicketOffice

Random = Callable[[int], bytes]
WallClock = Callable[[], datetime]

FIRST_SPI = 256  # 0 is the non-ESP marker, 1-255 are reserved. RFC 4303 §2.1


class Context:
    """Randomness, wall clock, output queue, identifiers and counters of one Endpoint."""

    __slots__ = (
        "_asks",
        "_outputs",
        "_sa_ids",
        "_spis",
        "_touched",
        "counters",
        "forces_encapsulation",
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
    ) -> None:
        self.random = random
        self.wall_clock = wall_clock
        self.limits = limits
        self.forces_encapsulation = forces_encapsulation
        self.counters: Counter[str] = Counter()
        self.peers = Peers()
        self.tickets = TicketOffice(random)
        self.held_tickets: dict[str, HeldTicket] = {}  # by connection; the shell keeps none
        self.redirect_to: str | None = None  # the gateway for whoever comes. RFC 5685
        self.token_secret: Secret | None = None  # of tokens that we make. RFC 6290
        self._outputs: list[Output] = []
        self._spis: set[int] = set()
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

    def allocate_spi(self) -> int:
        """An inbound ESP SPI that no other Child SA of this host has."""
        while True:
            spi = int.from_bytes(self.random(4), "big")
            if spi >= FIRST_SPI and spi not in self._spis:
                self._spis.add(spi)
                return spi

    def release_spi(self, spi: int) -> None:
        """The inbound SPI is free again."""
        self._spis.discard(spi)

    def jitter(self, seconds: float, share: float = 0.1) -> float:
        """``seconds``, shortened by up to ``share`` so that two peers rarely collide."""
        fraction = int.from_bytes(self.random(4), "big") / 2**32
        return seconds * (1.0 - share * fraction)
