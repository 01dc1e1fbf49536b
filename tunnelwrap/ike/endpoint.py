"""Endpoint: routes datagrams, answers and wishes to IKE SAs; answers strangers without state.

Owns: the IKE SAs, and the tables that find them by SPI, name, first message, stream and due time.
Flow: every method changes the IKE SAs of one name, then ``_settle`` brings the tables up to date.
RFC 7296 §2.1, §2.4, §2.6.
"""

import heapq
from collections.abc import Sequence
from typing import Final

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.errors import Refusal, UnsupportedVersion, UsageError, WireError
from tunnelwrap.iana import ExchangeType, NotifyType, name_of
from tunnelwrap.ike import crash, machine, redirect, resumption, sa_init
from tunnelwrap.ike.context import Context, Random, ReserveSpi, WallClock, in_fragments
from tunnelwrap.ike.half_open import HalfOpen, Place
from tunnelwrap.ike.outputs import AskActivity, AskLease, AskUsage, Lease, Output, Transmit
from tunnelwrap.ike.policy import ChildPolicy, ConnectionPolicy, Limits
from tunnelwrap.ike.rules import IkeState
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.ike.timers import Timer
from tunnelwrap.path import Datagram, IpAddress, Path
from tunnelwrap.wire.message import (
    HEADER_LENGTH,
    MAJOR_VERSION,
    VERSION_OFFSET,
    IkeHeader,
    Message,
    decode_chain,
)
from tunnelwrap.wire.payloads import Notify
from tunnelwrap.wire.reader import Reader

_NO_SPI = bytes(8)
ROUTINE: Final = frozenset(
    {NotifyType.INVALID_KE_PAYLOAD, NotifyType.REDIRECT, NotifyType.TICKET_NACK}
)
STRAY_PER_S: Final = 10.0  # messages in answer to what is of no SA. RFC 7296 §2.21.4
STRAY_BURST: Final = 20.0
WARNINGS_PER_S: Final = 0.2  # refused strangers in the log, and a few more at once
WARNINGS_BURST: Final = 5.0


class Endpoint:
    """All IKE SAs of this host, in both roles.

    Args:
        random: gives that many random octets.
        wall_clock: the time of day, for certificates only.
        connections: whom we answer as responder; empty: nobody.
        limits: what strangers may cost.
        forces_encapsulation: ESP must travel in UDP (or a stream), never bare.
        token_secret: survives us, so that peers can be told when we have lost our state.
        exports_keys: say ``KeysDerived`` with the keys of each IKE SA.
        reserve_spi: says of an inbound SPI whether this host has it free.
        compresses: the data plane can do IPComp for what comes by UDP.
        has_beet: likewise, BEET mode.
    """

    __slots__ = (
        "_by_id",
        "_by_spi",
        "_connections",
        "_context",
        "_departed",
        "_due",
        "_half_open",
        "_initial",
        "_stray",
        "_streams",
        "_warnings",
    )

    def __init__(  # noqa: PLR0913 -- each is a fact of its own
        self,
        random: Random,
        wall_clock: WallClock,
        *,
        connections: Sequence[ConnectionPolicy] = (),
        limits: Limits | None = None,
        forces_encapsulation: bool = True,
        token_secret: Secret | None = None,
        exports_keys: bool = False,
        reserve_spi: ReserveSpi = lambda _spi, _path: True,
        compresses: bool = False,
        has_beet: bool = False,
    ) -> None:
        self._context = Context(
            random,
            wall_clock,
            limits or Limits(),
            forces_encapsulation=forces_encapsulation,
            exports_keys=exports_keys,
            reserve_spi=reserve_spi,
        )
        self._context.token_secret = token_secret
        self._context.compresses = compresses
        self._context.has_beet = has_beet
        self._departed = crash.Departed()
        self._stray = crash.Allowance(STRAY_PER_S, STRAY_BURST)
        self._warnings = crash.Allowance(WARNINGS_PER_S, WARNINGS_BURST)
        self._connections = tuple(connections)
        self._by_spi: dict[bytes, IkeSa] = {}
        self._by_id: dict[int, _Peer] = {}
        self._initial: dict[bytes, IkeSa] = {}  # by their IKE_SA_INIT request, octet for octet
        self._half_open = HalfOpen(self._context)
        self._streams: dict[Path, int] = {}  # who travels by a stream
        self._due: list[tuple[float, int]] = []  # a heap; an entry counts if its _Peer agrees

    @property
    def counters(self) -> dict[str, int]:
        """What was dropped and repeated, by cause."""
        return dict(self._context.counters)

    def receive(self, datagram: Datagram, now: float) -> None:
        """Take one IKE message; never raises for what is in it."""
        try:
            header = IkeHeader.decode(datagram.octets)
        except WireError as error:
            self._context.counters[f"dropped_{type(error).__name__.lower()}"] += 1
            if isinstance(error, UnsupportedVersion):
                self._refuse_version(datagram)
            return
        local_spi = header.spi_r if header.is_initiator else header.spi_i
        sa = self._by_spi.get(local_spi)
        if sa is not None:
            machine.receive(sa, header, datagram, now)
            self._settle(sa.id, now)
        elif _is_initial(header):
            self._receive_initial(header, datagram, now)
        elif farewell := self._farewell(local_spi, datagram, now):
            self._repeat(farewell, datagram.path, None)
        else:
            self._receive_stray(header, datagram, now)

    def unknown_esp(self, spi: bytes, path: Path, now: float) -> None:
        """ESP has come that no Child SA is for: its sender is told. RFC 7296 §1.5, §2.21.4."""
        if not self._stray.take(now):
            return
        known = self._established_at(path)
        for sa in known:
            if sa.exchange is None and not sa.queue:
                sa.enqueue(crash.Tell([Notify.of(NotifyType.INVALID_SPI, spi)]))
                self._settle(sa.id, now)
        if not known:
            message = crash.invalid_spi(spi, self._context.new_ike_spi())
            self._context.emit(Transmit(Datagram(path, message.encode())))

    def handle_timeout(self, now: float) -> None:
        """Do whatever is due by now."""
        while (due := self.next_timeout()) is not None and due <= now:
            _, sa_id = heapq.heappop(self._due)
            for sa in self._all(sa_id):
                machine.handle_timeout(sa, now)
            self._by_id[sa_id].due = None
            self._settle(sa_id, now)

    def answer(
        self,
        ask: AskLease | AskActivity | AskUsage,
        value: Lease | Refusal | float | None,
        now: float,
    ) -> None:
        """Answer a question; late answers to IKE SAs that are gone are fine."""
        for sa in self._all(ask.sa):
            if isinstance(ask, AskUsage):
                if isinstance(value, float | int):
                    machine.usage(sa, ask.spi_in, int(value), now)
            elif isinstance(ask, AskLease):
                if sa.ask == ask.ask and isinstance(value, Lease | Refusal):
                    machine.resume(sa, value, now)
            elif sa.activity_ask == ask.ask and not isinstance(value, Lease | Refusal):
                machine.activity(sa, value, now)
        self._settle(ask.sa, now)

    def initiate(
        self,
        connection: ConnectionPolicy,
        path: Path,
        now: float,
        *,
        floats_to: Path | None = None,
        replaces: int | None = None,
        redirected_from: IpAddress | None = None,
    ) -> int:
        """Begin an IKE SA with IKE_SA_INIT; gives the name by which outputs speak of it.

        ``Answered`` says that the path works; ``authenticate`` goes on from there, so that of
        several attempts over different carriers only one need prove itself.
        ``floats_to`` is the path on UDP port 4500 that belongs to one on port 500.
        ``replaces`` is the name of an IKE SA that ends once this one is established.
        ``redirected_from`` is the gateway that has sent us to this one.
        """
        sa = IkeSa(self._context, (connection,), path, self._register, is_initiator=True)
        sa.floats_to, sa.reauthenticates = floats_to, replaces
        sa.redirected_from = redirected_from
        self._register(sa)
        machine.initiate(sa, now)
        self._settle(sa.id, now)
        return sa.id

    def authenticate(self, sa_id: int, now: float) -> None:
        """Go on with IKE_AUTH after ``Answered``; unknown is fine."""
        for sa in self._all(sa_id):
            machine.authenticate(sa, now)
        self._settle(sa_id, now)

    def close(self, sa_id: int, reason: str, now: float) -> None:
        """End an IKE SA with a delete; unknown is fine."""
        for sa in self._all(sa_id):
            if sa.is_primary:
                machine.close(sa, reason, now)
        self._settle(sa_id, now)

    def abandon(self, sa_id: int, reason: str) -> None:
        """Forget an IKE SA at once and without a word (another carrier won, or we must go)."""
        for sa in self._all(sa_id):
            sa.close(reason, is_failure=False)
        self._forget_closed(sa_id)

    def path_up(self, sa_id: int, path: Path, now: float) -> None:
        """The peer is reached by a new path: a new stream for an IKE SA that lost its own."""
        for sa in self._all(sa_id):
            machine.path_up(sa, path, now)
        self._settle(sa_id, now)

    def limit_reached(self, sa_id: int, spi_in: int, now: float, *, is_hard: bool) -> None:
        """A Child SA reached a limit of its data plane; unknown is fine."""
        for sa in self._all(sa_id):
            if sa.is_primary:
                machine.limit_reached(sa, spi_in, now, is_hard=is_hard)
        self._settle(sa_id, now)

    def esp_from(self, sa_id: int, path: Path, now: float) -> None:
        """The peer's newest authentic ESP packet came by this path; unknown is fine."""
        for sa in self._all(sa_id):
            if sa.is_primary:
                machine.esp_from(sa, path, now)
        self._settle(sa_id, now)

    def rekey(self, sa_id: int, now: float) -> None:
        """Give an IKE SA new keys now.

        Raises:
            UsageError: there is no such IKE SA, or it is not established.
        """
        machine.rekey(self._established(sa_id), now)
        self._settle(sa_id, now)

    def create_child(self, sa_id: int, child: ChildPolicy, now: float) -> None:
        """Ask the peer for a further Child SA: InstallChildSa follows, or ChildRefused.

        Raises:
            UsageError: there is no such IKE SA, or it is not established.
        """
        machine.new_child(self._established(sa_id), child, now)
        self._settle(sa_id, now)

    def close_child(self, sa_id: int, spi_in: int, reason: str, now: float) -> None:
        """End a Child SA with a delete; the IKE SA stays; unknown is fine."""
        for sa in self._all(sa_id):
            machine.close_child(sa, spi_in, reason, now)
        self._settle(sa_id, now)

    def redirect(self, sa_id: int, gateway: str, now: float) -> bool:
        """Send a peer to another gateway; False where it does not follow. RFC 5685 §5.

        Raises:
            UsageError: there is no such IKE SA, or it is not established.
        """
        is_sent = redirect.send_away(self._established(sa_id), gateway)
        self._settle(sa_id, now)
        return is_sent

    def redirect_newcomers(self, gateway: str | None) -> None:
        """From now on send all that come, and can follow, to another gateway; None: serve them."""
        self._context.redirect_to = gateway

    def outputs(self) -> list[Output]:
        """Everything to do, in order; the queue is empty afterwards."""
        return self._context.drain()

    def next_timeout(self) -> float | None:
        """When ``handle_timeout`` is due, or None."""
        while self._due:
            at, sa_id = self._due[0]
            peer = self._by_id.get(sa_id)
            if peer is not None and peer.due == at:
                return at
            heapq.heappop(self._due)
        return None

    def _receive_initial(self, header: IkeHeader, datagram: Datagram, now: float) -> None:
        known = self._initial.get(datagram.octets)
        if known is not None and known.handshake is not None:
            self._repeat([known.handshake.response], datagram.path, known.id)
            return
        if not self._connections or datagram.path in self._streams:
            # one IKE SA for each stream. RFC 9329 §6.1
            self._context.counters["dropped_initial"] += 1
            return
        place = self._half_open.admit(header, datagram, now)
        if place is not None:
            self._respond(header, datagram, place, now)

    def _farewell(self, spi: bytes, datagram: Datagram, now: float) -> tuple[bytes, ...]:
        """The response that an IKE SA has ended with, if this is its request again."""
        is_reliable = datagram.path.carrier.is_reliable
        return self._context.farewells.again(spi, datagram.octets, now, is_reliable=is_reliable)

    def _repeat(self, response: Sequence[bytes], path: Path, sa_id: int | None) -> None:
        """The last response again, to a request that has come again."""
        self._context.counters["repeated_responses"] += 1
        pieces = in_fragments(len(response))
        text = f"> repeats the last response to {path}{pieces}"
        self._context.trace(sa_id, "debug", text)
        for octets in response:
            self._context.emit(Transmit(Datagram(path, octets)))

    def _receive_stray(self, header: IkeHeader, datagram: Datagram, now: float) -> None:
        """A message of no IKE SA that we know. RFC 7296 §2.21.4.

        The flag that tells which of the SPIs is ours can be forged: where either is of an IKE SA
        that lives, the answer would hold the token that ends it. RFC 6290 §9.2.
        """
        self._context.counters["dropped_unknown_spi"] += 1
        spis = (header.spi_i, header.spi_r)
        if any(spi in self._by_spi or spi in self._departed for spi in spis):
            return
        if not self._stray.take(now):
            return
        reply = crash.answer_unknown(self._context, header)
        if reply is not None:
            self._context.emit(Transmit(Datagram(datagram.path, reply.encode())))
        elif crash.is_hint(header):
            for sa in self._established_at(datagram.path):
                crash.suspect(sa, now)
                self._settle(sa.id, now)

    def _established_at(self, path: Path) -> list[IkeSa]:
        return [
            sa
            for peer in self._by_id.values()
            for sa in peer.sas
            if sa.is_primary and sa.path == path and sa.state is IkeState.ESTABLISHED
        ]

    def _respond(self, header: IkeHeader, datagram: Datagram, place: Place, now: float) -> None:
        try:
            message = _clear_message(header, datagram.octets)
        except WireError:
            self._context.counters["dropped_malformed"] += 1
            return
        sa = IkeSa(
            self._context, self._connections, datagram.path, self._register, is_initiator=False
        )
        self._context.heard(sa.id, message, datagram.path)
        try:
            if header.exchange == ExchangeType.IKE_SESSION_RESUME:
                response = resumption.answer(sa, message, datagram.octets, now)
            else:
                response = sa_init.answer(sa, message, datagram.octets)
        except Refusal as refusal:
            self._refuse(message, datagram.path, refusal, now)
            return
        sa.responses.answered(response)
        sa.timers.arm(Timer.HALF_OPEN, now + self._context.limits.half_open_s)
        self._register(sa)
        self._initial[datagram.octets] = sa
        self._half_open.enter(sa.id, place)
        sa.transmit(response)
        self._settle(sa.id, now)

    def _refuse(self, message: Message, path: Path, refusal: Refusal, now: float) -> None:
        """Say no in clear; strangers who knock without end do not fill the log."""
        name = name_of(NotifyType, refusal.notify)
        is_worth_it = refusal.notify not in ROUTINE and self._warnings.take(now)
        level = "warning" if is_worth_it else "debug"
        exchange = name_of(ExchangeType, message.exchange)
        self._context.trace(None, level, f"{exchange} from {path} refused with {name}: {refusal}")
        reply = Message(
            message.spi_i,
            _NO_SPI,
            message.exchange,
            is_response=True,
            is_initiator=False,
            message_id=0,
            payloads=(Notify.of(refusal.notify, refusal.data),),
        )
        self._context.said(None, reply, path)
        self._context.emit(Transmit(Datagram(path, reply.encode())))

    def _refuse_version(self, datagram: Datagram) -> None:
        """Tell a request of a later major version which one we speak. RFC 7296 §1.5, §2.5."""
        if len(datagram.octets) < HEADER_LENGTH:
            return
        head = bytearray(datagram.octets[:HEADER_LENGTH])
        head[VERSION_OFFSET] = MAJOR_VERSION << 4
        head[-4:] = HEADER_LENGTH.to_bytes(4, "big")
        asked = IkeHeader.decode(bytes(head))
        if asked.is_response:
            return
        reply = Message(
            asked.spi_i,
            asked.spi_r,
            asked.exchange,
            is_response=True,
            is_initiator=not asked.is_initiator,
            message_id=asked.message_id,
            payloads=(Notify.of(NotifyType.INVALID_MAJOR_VERSION, bytes([MAJOR_VERSION])),),
        )
        self._context.said(None, reply, datagram.path)
        self._context.emit(Transmit(Datagram(datagram.path, reply.encode())))

    def _register(self, sa: IkeSa) -> None:
        self._by_spi[sa.local_spi] = sa
        self._by_id.setdefault(sa.id, _Peer(sa.path)).sas.append(sa)

    def _all(self, sa_id: int) -> list[IkeSa]:
        peer = self._by_id.get(sa_id)
        return list(peer.sas) if peer is not None else []

    def _established(self, sa_id: int) -> IkeSa:
        for sa in self._all(sa_id):
            if sa.is_primary and sa.state is IkeState.ESTABLISHED:
                return sa
        raise UsageError(f"no established IKE SA {sa_id}")

    def _settle(self, sa_id: int, now: float) -> None:
        """Send what was queued in another IKE SA of the same peer; bring the tables up to date."""
        self._settle_one(sa_id, now)
        while touched := self._context.take_touched():
            for other in touched:
                self._settle_one(other, now)

    def _settle_one(self, sa_id: int, now: float) -> None:
        for sa in self._all(sa_id):
            machine.pump(sa, now)
        self._forget_closed(sa_id)
        peer = self._by_id.get(sa_id)
        if peer is None:
            return
        primary = next(sa for sa in peer.sas if sa.is_primary)
        if primary.state is not IkeState.AUTHENTICATING:
            self._half_open.leave(sa_id)
        self._note_path(sa_id, peer, primary.path)
        times = (machine.next_timeout(sa) for sa in peer.sas)
        due = min((at for at in times if at is not None), default=None)
        if due is not None and due != peer.due:
            heapq.heappush(self._due, (due, sa_id))
        peer.due = due

    def _note_path(self, sa_id: int, peer: "_Peer", path: Path) -> None:
        if path != peer.path and self._streams.get(peer.path) == sa_id:
            del self._streams[peer.path]
        peer.path = path
        if path.carrier.is_reliable:
            self._streams[path] = sa_id

    def _forget_closed(self, sa_id: int) -> None:
        """The primary IKE SA takes with it what is left of those that it rekeyed."""
        peer = self._by_id.get(sa_id)
        if peer is None:
            return
        if not any(sa.is_primary and sa.state is not IkeState.CLOSED for sa in peer.sas):
            for sa in peer.sas:
                sa.close("closed", is_failure=False)
        for sa in [sa for sa in peer.sas if sa.state is IkeState.CLOSED]:
            peer.sas.remove(sa)
            del self._by_spi[sa.local_spi]
            self._departed.add(sa.local_spi)
            if sa.handshake is not None:
                self._initial.pop(sa.handshake.request, None)
        if not peer.sas:
            del self._by_id[sa_id]
            self._half_open.leave(sa_id)
            if self._streams.get(peer.path) == sa_id:
                del self._streams[peer.path]


class _Peer:
    """All IKE SAs of one name, one of them primary; and under what the tables know them."""

    __slots__ = ("due", "path", "sas")

    def __init__(self, path: Path) -> None:
        self.sas: list[IkeSa] = []
        self.path = path
        self.due: float | None = None


def _is_initial(header: IkeHeader) -> bool:
    return (
        header.exchange in {ExchangeType.IKE_SA_INIT, ExchangeType.IKE_SESSION_RESUME}
        and header.is_initiator
        and not header.is_response
        and header.spi_r == _NO_SPI
        and header.spi_i != _NO_SPI
        and header.message_id == 0
    )


def _clear_message(header: IkeHeader, octets: bytes) -> Message:
    return Message(
        header.spi_i,
        header.spi_r,
        header.exchange,
        header.is_response,
        header.is_initiator,
        header.message_id,
        decode_chain(header.next_payload, Reader(octets, offset=28)),
    )
