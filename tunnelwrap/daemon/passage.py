"""One IKE SA of a daemon here, on its way to the gateway by whatever carrier there is.

The daemon's own requests are the probes. Flow: ``carry`` keeps the request and asks for a carrier
-> ``_race`` climbs the ladder: each rung opens and sends the request; the first by which an IKE
message comes back has it -> ``_keep``: a stream that broke is opened again, the request sent once
more (RFC 9329 §6.2), which also tells the other end whose stream it is; on UDP a request that stays
unanswered for too long, or a stream that cannot be had again, begins a new race.

RFC 9329 §5.1 wants a new IKE_SA_INIT for TCP after UDP. Only the daemon can make one, so the same
goes by each rung, and the responder takes the later ones for retransmissions. Retransmissions of
the daemon go on as they are, as §6.2 allows: behind a relay there may be UDP again, which loses.
Owns: its carriers.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from tunnelwrap.daemon.headers import Esp, Ike, read, with_marker, without_marker
from tunnelwrap.errors import AllCarriersFailed, ConnectFailed, TransportError
from tunnelwrap.iana import ExchangeType
from tunnelwrap.path import Carrier, IpAddress
from tunnelwrap.transport import BatchCallback, ClosedCallback, Transport
from tunnelwrap.transport.dial import Attempt, Rung, climb
from tunnelwrap.wire.esp import NAT_KEEPALIVE
from tunnelwrap.wire.framing import train

logger = logging.getLogger(__name__)

REPEAT_S: Final = 0.5  # until the request is sent a second time over UDP. RFC 9329 §5.1
UNANSWERED_S: Final = 5.0
"""How long a request may stay unanswered on UDP before another carrier is tried: networks that drop
fragments, or port 4500, let IKE_SA_INIT pass."""

REDIAL_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0)  # pauses before the same carrier is tried again
PAUSE_S: Final = 1.0  # between races that nobody won
MAX_PIECES: Final = 64  # datagrams of one request, which may be fragments. RFC 7383


class Opener(Protocol):
    """Opens carriers to the gateway."""

    async def rungs(self) -> list[Rung]:
        """The ladder as it is now.

        Raises:
            TransportError: the gateway has no address.
        """

    async def open(
        self, rung: Rung, on_batch: BatchCallback, on_closed: ClosedCallback, old: Transport | None
    ) -> tuple[Transport, Transport | None]:
        """A transport for everything, and one to UDP port 500, if that is another.

        Args:
            rung: which carrier.
            on_batch: gets what arrives.
            on_closed: told of the end of a stream, and of what ICMP says.
            old: the stream that this one is for, which has ended.

        Raises:
            TransportError: it cannot be had.
        """

    def won(self, carrier: Carrier) -> None:
        """By this one there was an answer."""


@dataclass(eq=False, slots=True)
class Crossing:
    """A carrier that is open."""

    rung: Rung
    main: Transport
    bare: Transport | None  # to UDP port 500
    answered: asyncio.Future[None]
    is_lost: bool = False

    def send(self, datagram: bytes, *, is_bare: bool) -> None:
        """Send IKE; bare as it came, if this is UDP with a port for it."""
        if is_bare and self.bare is not None:
            self.bare.send(without_marker(datagram))
        else:
            self.main.send(datagram)

    def lose(self, error: TransportError) -> None:
        """The stream has ended, or UDP is refused: the latter counts before an answer only."""
        if not self.answered.done():
            self.answered.set_exception(error)
            self.answered.exception()  # it is no fault if nobody asks
        elif self.rung.carrier.is_reliable:
            self.is_lost = True

    def close(self) -> None:
        """Close it."""
        for transport in (self.main, self.bare):
            if transport is not None:
                transport.close()


class Passage:
    """Carries one IKE SA, with those it is rekeyed to, and the ESP that seems to be theirs.

    Args:
        daemon: the address of the daemon whose IKE SA it is.
        opener: opens carriers.
        learn: told of each IKE message that the gateway sends.
        loop: from which everything is called.
    """

    def __init__(
        self,
        daemon: IpAddress,
        opener: Opener,
        learn: Callable[["Passage", Ike], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.daemon = daemon
        self._opener = opener
        self._learn = learn
        self._loop = loop
        self.since = self.used = loop.time()
        self.answered_at = 0.0  # when the gateway last answered a request
        self.is_settled = False  # the gateway answered one that was protected: it knows the keys
        self._made_at = 0.0  # when an exchange was answered that makes SPIs
        self._made_ike = False  # it may have made those of an IKE SA
        self.octets_in = 0  # from the gateway
        self.octets_out = 0
        self.undelivered = 0  # datagrams that nothing carried
        self._home: Transport | None = None  # to the daemon, for IKE
        self._esp_home: Transport | None = None
        self._request: list[bytes] = []
        self._request_id: tuple[bytes, int] | None = None
        self._is_bare = False  # the request came without marker
        self._is_answered = False
        self._crossing: Crossing | None = None
        self._open: dict[Transport, Crossing] = {}
        self._tries = 0  # to open a stream again, since something came
        self._patience: asyncio.TimerHandle | None = None
        self._is_unanswered = False  # for too long
        self._wanted = asyncio.Event()  # there is something to carry
        self._changed = asyncio.Event()  # the carrier that we have will not do any more

    @property
    def rung(self) -> Rung | None:
        """What carries it now."""
        return None if self._crossing is None else self._crossing.rung

    @property
    def home(self) -> Transport | None:
        """The way to the daemon."""
        return self._home

    def claim(self, seen: Ike | Esp, home: Transport) -> tuple[bool, bool, float]:
        """How likely SPIs that nobody has are of this IKE SA; the higher, the likelier.

        They are of one that has just made some. Of several daemons at one address, as behind NAT,
        each has its port.
        """
        is_there = home.path.peer in {each.path.peer for each in self._homes if each is not None}
        has_made = self._made_at > 0 and (self._made_ike or isinstance(seen, Esp))
        return is_there, has_made, self._made_at if has_made else self.answered_at

    def show(self) -> None:
        """SPIs that it has made have been seen."""
        self._made_at = 0.0

    @property
    def _homes(self) -> tuple[Transport | None, Transport | None]:
        return self._home, self._esp_home

    # --- from the daemon ---------------------------------------------------------------------

    def carry(self, home: Transport, seen: Ike, datagram: bytes) -> None:
        """Send an IKE message, with its marker, of the daemon at ``home``."""
        self.used = self._loop.time()
        self._home = home
        if home.path.has_marker:
            self._esp_home = home
        is_bare = not home.path.has_marker
        if seen.is_response:
            self._heed(seen)
        else:
            self._keep_request(seen, datagram, is_bare=is_bare)
        if self._crossing is not None:
            self._crossing.send(datagram, is_bare=is_bare)
            self.octets_out += len(datagram)
            self._be_patient(seen)
            return
        self._wanted.set()
        for contender in set(self._open.values()):
            if contender.rung.carrier is Carrier.UDP:  # streams have it, and lose nothing
                contender.send(datagram, is_bare=is_bare)

    def carry_esp(self, home: Transport, packets: Sequence[memoryview]) -> None:
        """Send ESP of the daemon at ``home``."""
        self.used = self._loop.time()
        self._esp_home = home
        if self._crossing is None:
            self.undelivered += len(packets)
            self._wanted.set()
        else:
            self.octets_out += sum(map(len, packets))
            self.undelivered += self._crossing.main.send_esp(*train(packets))

    def keep_alive(self) -> None:
        """The daemon keeps its NAT mapping: on UDP that is ours."""
        if self._crossing is not None and self._crossing.rung.carrier is Carrier.UDP:
            self._crossing.main.send(NAT_KEEPALIVE)

    def _heed(self, response: Ike) -> None:
        if response.makes_spis:
            self._made_at = self._loop.time()
            self._made_ike = response.exchange == ExchangeType.CREATE_CHILD_SA

    def _keep_request(self, seen: Ike, datagram: bytes, *, is_bare: bool) -> None:
        """Keep the last request whole, which may be several fragments, for other carriers."""
        request_id = seen.spi_i, seen.message_id
        if datagram in self._request:
            return
        # One with the same ID that comes after an answer is another: IKE_SA_INIT with a cookie.
        if request_id != self._request_id or self._is_answered:
            self._request, self._request_id = [], request_id
            self._is_answered = False
        self._is_bare = is_bare
        if len(self._request) < MAX_PIECES:
            self._request.append(datagram)

    def _be_patient(self, seen: Ike) -> None:
        crossing = self._crossing
        is_udp = crossing is not None and crossing.rung.carrier is Carrier.UDP
        if is_udp and self._patience is None and not seen.is_response:
            self._patience = self._loop.call_later(UNANSWERED_S, self._give_up)

    def _give_up(self) -> None:
        self._is_unanswered = True
        self._changed.set()

    # --- from the gateway --------------------------------------------------------------------

    def _arrived(self, transport: Transport, batch: Sequence[memoryview]) -> None:
        crossing = self._open.get(transport)
        packets: list[memoryview] = []
        for octets in batch:
            datagram = octets if transport.path.has_marker else memoryview(with_marker(octets))
            seen = read(datagram)
            if isinstance(seen, Ike) and self._has_won(crossing):
                self._deliver(seen, bytes(datagram))
            elif isinstance(seen, Esp) and crossing is self._crossing:
                packets.append(datagram)
        if packets:
            self._deliver_esp(packets)

    def _has_won(self, crossing: Crossing | None) -> bool:
        """Whether a carrier is the one; the first by which IKE comes is it from then on."""
        if self._crossing is None and crossing is not None and not crossing.answered.done():
            self._crossing = crossing
            crossing.answered.set_result(None)
        return crossing is not None and self._crossing is crossing

    def _deliver(self, seen: Ike, datagram: bytes) -> None:
        self._tries = 0
        self.used = self._loop.time()
        self.octets_in += len(datagram)
        self._learn(self, seen)
        if seen.is_response:
            self._heed(seen)
            self.answered_at = self._loop.time()
            self.is_settled = self.is_settled or seen.is_protected
            if (seen.spi_i, seen.message_id) == self._request_id:
                self._is_answered = True
                self._stop_waiting()
        if self._home is not None:
            has_marker = self._home.path.has_marker
            self._home.send(datagram if has_marker else without_marker(datagram))

    def _deliver_esp(self, packets: Sequence[memoryview]) -> None:
        self._tries = 0
        self.used = self._loop.time()
        self.octets_in += sum(map(len, packets))
        if self._esp_home is None:
            self.undelivered += len(packets)
        else:
            self.undelivered += self._esp_home.send_esp(*train(packets))

    def _lost(self, transport: Transport, error: TransportError) -> None:
        crossing = self._open.get(transport)
        if crossing is None:
            return
        crossing.lose(error)
        if crossing.is_lost and crossing is self._crossing:
            logger.info("%s ended (%s), opening it again", transport.path, error)
            self._crossing = None
            self._changed.set()

    # --- carriers ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Find carriers and keep them, until cancelled."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                crossing = await self._race()
                if crossing is None:
                    await asyncio.sleep(PAUSE_S)
                else:
                    await self._keep(crossing)
                    self._wanted.set()
        finally:
            self._stop_waiting()
            for crossing in set(self._open.values()):
                self._drop(crossing)

    async def _race(self) -> Crossing | None:
        """Try the carriers until one has brought an answer; None if none does."""
        failed: list[str] = []

        def note(attempt: Attempt) -> None:
            failed.append(f"{attempt.carrier.value}: {attempt.result}")

        try:
            won = await climb(await self._opener.rungs(), self._knock, note)
        except AllCarriersFailed:
            logger.info("no way to the gateway (%s)", "; ".join(failed))
            return None
        except TransportError as error:
            logger.info("no way to the gateway (%s)", error)
            return None
        self._opener.won(won.rung.carrier)
        because = f" ({'; '.join(failed)})" if failed else ""
        logger.info("goes by %s%s", won.value.main.path, because)
        return won.value

    async def _knock(self, rung: Rung) -> Crossing:
        crossing = await self._open_crossing(rung, None)
        try:
            self._send_request(crossing)
            if rung.carrier is Carrier.UDP:
                with suppress(TimeoutError):
                    async with asyncio.timeout(REPEAT_S):
                        await asyncio.shield(crossing.answered)
                if not crossing.answered.done():
                    self._send_request(crossing)
            await crossing.answered
        except BaseException:
            self._drop(crossing)
            raise
        return crossing

    async def _keep(self, crossing: Crossing) -> None:
        """Carry by this, or by a stream opened again, until it will not do any more."""
        current: Crossing | None = crossing
        while current is not None:
            await self._changed.wait()
            self._changed.clear()
            if current.is_lost:
                self._drop(current)
                current = await self._redial(current)
            elif self._is_unanswered:
                logger.info("no answer by %s", current.main.path)
                self._drop(current)
                current = None
        self._stop_waiting()

    async def _redial(self, old: Crossing) -> Crossing | None:
        for pause in REDIAL_S[self._tries :]:
            self._tries += 1
            await asyncio.sleep(pause)
            try:
                crossing = await self._open_crossing(old.rung, old.main)
            except TransportError as error:
                logger.debug("= %s: %s", old.rung.address, error)
                continue
            crossing.answered.set_result(None)
            self._crossing = crossing
            self._send_request(crossing)
            return crossing
        self._tries = 0
        return None

    async def _open_crossing(self, rung: Rung, old: Transport | None) -> Crossing:
        main, bare = await self._opener.open(rung, self._arrived, self._lost, old)
        crossing = Crossing(rung, main, bare, self._loop.create_future())
        self._open[main] = crossing
        if bare is not None:
            self._open[bare] = crossing
        return crossing

    def _send_request(self, crossing: Crossing) -> None:
        if not self._request:
            raise ConnectFailed("nothing to ask the gateway")
        for datagram in self._request:
            crossing.send(datagram, is_bare=self._is_bare)

    def _drop(self, crossing: Crossing) -> None:
        if self._crossing is crossing:
            self._crossing = None
        for transport in (crossing.main, crossing.bare):
            if transport is not None:
                self._open.pop(transport, None)
        crossing.close()

    def _stop_waiting(self) -> None:
        self._is_unanswered = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
