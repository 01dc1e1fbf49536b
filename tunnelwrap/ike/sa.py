"""IkeSa: one IKE SA, its invariants and the small operations that exchanges are made of.

Owns: SPIs, keys, windows, the queue of our exchanges, the timers; and the table of Child SAs as
long as it is the primary IKE SA of its peer. ``ike.machine`` moves it. RFC 7296 §2.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol

from tunnelwrap.auth.identity import Identity
from tunnelwrap.crypto.keymat import IkeKeys
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import IkeSuite
from tunnelwrap.errors import UsageError
from tunnelwrap.iana import ExchangeType
from tunnelwrap.ike.additional_ke import Intermediate
from tunnelwrap.ike.children import Children
from tunnelwrap.ike.context import Context
from tunnelwrap.ike.fragments import Fragmentation
from tunnelwrap.ike.outputs import Closed, KeysDerived, Lease, Moved, Transmit
from tunnelwrap.ike.policy import ConnectionPolicy, Ppk, Retransmission
from tunnelwrap.ike.protect import Protection
from tunnelwrap.ike.rules import TRANSITIONS, IkeState
from tunnelwrap.ike.ticket import Session
from tunnelwrap.ike.timers import Timer, Timers
from tunnelwrap.ike.window import RequestWindow, ResponseWindow
from tunnelwrap.path import Datagram, IpAddress, Path
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Payload
from tunnelwrap.wire.proposal import Proposal


class Next(Enum):
    """What follows a response."""

    AGAIN = "again"  # the exchange has another request (INVALID_KE_PAYLOAD, EAP)
    WAIT = "wait"  # it answers an earlier request of the exchange: the right one is still to come
    DONE = "done"


class Exchange(Protocol):
    """One exchange that we start; it lives from its place in the queue to its response.

    It is asked for its request only when the window is free, and is given the IKE SA each time:
    a queue moves on to the IKE SA that rekeys this one.
    """

    TYPE: ClassVar[ExchangeType]

    def request(self, sa: "IkeSa", now: float) -> Sequence[Payload] | None:
        """The payloads of the next request; None when there is no longer a need for it."""

    def on_response(self, sa: "IkeSa", message: Message, now: float) -> Next:
        """Take the response.

        Raises:
            TunnelwrapError: what the response says makes the IKE SA useless.
        """


class Begun(Protocol):
    """What the peer has begun by CREATE_CHILD_SA and goes on with. RFC 9370 §2.2.4."""

    def finish(self, sa: "IkeSa", secrets: Sequence[Secret], now: float) -> list[Payload]:
        """All key exchanges are done; gives what goes into the last response besides.

        Raises:
            Refusal: what it was about is no longer there.
        """

    def drop(self, sa: "IkeSa") -> None:
        """The peer does not go on with it."""


@dataclass(slots=True)
class Awaited:
    """The IKE_FOLLOWUP_KE exchanges that something begun waits for."""

    begun: Begun
    methods: deque[int]
    due: float  # when the next of them must have come
    secrets: list[Secret]


@dataclass(frozen=True, slots=True)
class Handshake:
    """What IKE_SA_INIT leaves for IKE_AUTH. RFC 7296 §2.15."""

    n_i: bytes
    n_r: bytes
    request: bytes  # both messages octet for octet: they are signed
    response: bytes
    peer_hashes: frozenset[int]  # RFC 7427; empty: the peer does not know it
    chosen: Proposal
    uses_ppk: bool = False  # both sides have sent USE_PPK. RFC 8784 §3


@dataclass(slots=True)
class Nat:
    """Who sits behind a NAT, as IKE_SA_INIT found out. RFC 7296 §2.23."""

    local: bool = False
    peer: bool = False
    between: tuple[IpAddress, IpAddress] | None = None  # where NATs were looked for

    def may_stand_on(self, path: Path) -> bool:
        """Whether there is one, or nobody has looked."""
        is_elsewhere = self.between != (path.local.ip, path.peer.ip)
        return self.local or self.peer or is_elsewhere


class IkeSa:
    """One IKE SA."""

    __slots__ = (
        "_register",
        "activity_ask",
        "ask",
        "auth_request",
        "awaited",
        "children",
        "chosen",
        "claimed",
        "connections",
        "context",
        "ended_early",
        "exchange",
        "floats_to",
        "fragmentation",
        "handshake",
        "id",
        "intermediate",
        "is_confirmed",
        "is_initiator",
        "is_originator",
        "is_primary",
        "keys",
        "last_heard",
        "lease_local",
        "lease_peer",
        "nat",
        "path",
        "peer_follows_redirects",
        "peer_identity",
        "peer_may_be_childless",
        "peer_token",
        "pending",
        "policy",
        "ppk",
        "protection",
        "queue",
        "reauth_at",
        "reauthenticates",
        "redirected_from",
        "replaced_by",
        "replaces",
        "requests",
        "responses",
        "resumes",
        "spi_i",
        "spi_r",
        "state",
        "states_lost",
        "suite",
        "suspect_again_at",
        "ticket_name",
        "timers",
    )

    policy: ConnectionPolicy | None  # the connection; a responder finds it in IKE_AUTH
    floats_to: Path | None  # our path on UDP port 4500, if a NAT is found
    is_originator: bool  # of the first IKE SA, for life. RFC 9329 §1.2
    is_confirmed: bool  # False: the peer may not have our response that makes it yet
    replaces: "IkeSa | None"  # the IKE SA that this one rekeys, until it takes over
    replaced_by: "IkeSa | None"  # the one that has taken over
    suite: IkeSuite | None
    keys: IkeKeys | None
    protection: Protection | None
    handshake: Handshake | None
    intermediate: Intermediate | None  # up to IKE_AUTH
    ppk: Ppk | None  # that the keys have in them. RFC 8784 §3
    awaited: dict[bytes, Awaited]  # what the peer goes on with by IKE_FOLLOWUP_KE, by its link
    states_lost: int  # IKE_FOLLOWUP_KE of ours in a row that the peer knew nothing of
    claimed: Identity | None  # who the peer says it is
    peer_identity: Identity | None  # who it has proved to be
    lease_local: Lease | None
    lease_peer: Lease | None
    ended_early: set[tuple[int, int]]  # protocol and outbound SPI of what was deleted before the
    # response that makes it
    reauthenticates: int | None  # the name of the IKE SA that this one shall replace
    reauth_at: float | None  # when the proofs of identity are too old
    peer_follows_redirects: bool  # RFC 5685
    peer_may_be_childless: bool  # RFC 6023
    redirected_from: IpAddress | None  # the gateway that has sent us here
    chosen: Proposal | None  # what the suite comes from
    resumes: Session | None  # what the ticket has brought, if there was one. RFC 5723
    ticket_name: bytes | None  # of the ticket that the peer has shown
    peer_token: Secret | None  # what the peer shows when it has lost its state. RFC 6290
    suspect_again_at: float  # until then hints of strangers count for nothing
    exchange: Exchange | None  # what waits for a response
    queue: deque[Exchange]  # what waits for the window
    ask: int | None  # the question for a lease that ``pending`` waits for
    auth_request: Message | None  # the first of IKE_AUTH: what the peer asks for
    pending: Message | None  # a request whose answer waits for the shell
    activity_ask: int | None  # the question whether ESP came in

    def __init__(
        self,
        context: Context,
        connections: Sequence[ConnectionPolicy],
        path: Path,
        register: "Callable[[IkeSa], None]",
        *,
        is_initiator: bool,
        sa_id: int | None = None,
    ) -> None:
        self.context, self._register = context, register
        self.id = context.new_sa_id() if sa_id is None else sa_id
        self.connections = tuple(connections)
        self.policy = connections[0] if is_initiator else None
        self.path, self.floats_to, self.nat = path, None, Nat()
        self.is_initiator = self.is_originator = is_initiator
        self.is_primary = self.is_confirmed = True
        self.replaces = self.replaced_by = None
        self.reauthenticates = self.reauth_at = None
        self.spi_i = context.new_ike_spi() if is_initiator else bytes(8)
        self.spi_r = bytes(8)
        self.state = IkeState.CONNECTING
        self.suite = self.keys = self.protection = self.handshake = None
        self.intermediate = self.ppk = None
        self.awaited, self.states_lost = {}, 0
        self.claimed = self.peer_identity = self.lease_local = self.lease_peer = None
        self.children, self.ended_early = Children(context, self.id), set()
        self.timers, self.fragmentation = Timers(), Fragmentation()
        retransmission = self.policy.retransmission if self.policy else Retransmission()
        self.requests, self.responses = RequestWindow(retransmission), ResponseWindow()
        self.exchange, self.queue = None, deque()
        self.ask = self.pending = self.activity_ask = self.auth_request = None
        self.last_heard = self.suspect_again_at = 0.0
        self.peer_token = self.redirected_from = None
        self.chosen = self.resumes = self.ticket_name = None
        self.peer_follows_redirects = self.peer_may_be_childless = False

    def __str__(self) -> str:
        return f"{self.spi_i.hex()}_i {self.spi_r.hex()}_r"

    @property
    def peer(self) -> str:
        """Who the peer says it is, and where, for the log."""
        return f"{self.claimed or 'a peer'} at {self.path}"

    @property
    def local_spi(self) -> bytes:
        """The SPI by which messages find this IKE SA here."""
        return self.spi_i if self.is_initiator else self.spi_r

    @property
    def agreed(self) -> tuple[IkeSuite, IkeKeys, Protection]:
        """Suite, keys and protection; an IKE SA in AUTHENTICATING or later has them."""
        if self.suite is None or self.keys is None or self.protection is None:
            raise UsageError(f"IKE SA {self} has no keys in state {self.state}")
        return self.suite, self.keys, self.protection

    @property
    def chosen_policy(self) -> ConnectionPolicy:
        """The connection; an IKE SA that is authenticated has one."""
        if self.policy is None:
            raise UsageError(f"IKE SA {self} has no connection in state {self.state}")
        return self.policy

    def take_keys(self, suite: IkeSuite, keys: IkeKeys) -> None:
        """Protect messages with these keys from now on; both SPIs are known."""
        self.suite, self.keys = suite, keys
        random = self.context.random
        self.protection = Protection(suite, keys, is_initiator=self.is_initiator, random=random)
        if self.context.exports_keys:
            self.context.emit(KeysDerived(self.id, self.spi_i, self.spi_r, suite, keys))

    def become(self, state: IkeState) -> None:
        """The only writer of ``state``."""
        if state not in TRANSITIONS[self.state]:
            raise UsageError(f"IKE SA {self}: {self.state} to {state}")
        self.state = state

    def enqueue(self, exchange: Exchange) -> None:
        """Start an exchange when the window is free."""
        self.queue.append(exchange)

    def message(self, exchange: int, message_id: int, payloads: Sequence[Payload]) -> Message:
        """A request of ours."""
        return Message(
            self.spi_i,
            self.spi_r,
            exchange,
            is_response=False,
            is_initiator=self.is_initiator,
            message_id=message_id,
            payloads=tuple(payloads),
        )

    def reply(self, exchange: int, message_id: int, payloads: Sequence[Payload]) -> Message:
        """A response of ours."""
        return Message(
            self.spi_i,
            self.spi_r,
            exchange,
            is_response=True,
            is_initiator=self.is_initiator,
            message_id=message_id,
            payloads=tuple(payloads),
        )

    @property
    def fragment_size(self) -> int:
        """Into IP datagrams of what size longer messages are split."""
        return (self.policy or self.connections[0]).fragment_size

    def transmit(self, *datagrams: bytes, path: Path | None = None) -> None:
        """Send a message, whole or its fragments, on a path; by default that of this IKE SA."""
        if self.state is not IkeState.CLOSED:
            for octets in datagrams:
                self.context.emit(Transmit(Datagram(path or self.path, octets)))

    def move_to(self, path: Path) -> None:
        """The peer is reached by another path from now on."""
        if path == self.path:
            return
        self.path = path
        if self.is_primary:
            self.context.emit(Moved(self.id, path))
            self.children.move(path, is_bare=self.is_bare)

    @property
    def forces_encapsulation(self) -> bool:
        """Whether ESP must be in UDP where no NAT asks for it; to force it is to feign a NAT.

        Where AH may be wanted, what is said of NATs must be true.
        """
        has_ah = any(connection.child.has_ah for connection in self.connections)
        return self.context.forces_encapsulation and not has_ah

    @property
    def is_bare(self) -> bool:
        """Whether ESP travels without UDP around it, as no NAT asks for that. RFC 7296 §2.23."""
        needs_udp = self.forces_encapsulation or self.nat.may_stand_on(self.path)
        return not (needs_udp or self.path.carrier.is_reliable)

    def local_addresses(self) -> tuple[IpAddress, ...]:
        """What a dynamic local selector means: the lease, else the address of the path."""
        return self.lease_local.addresses if self.lease_local else (self.path.local.ip,)

    def peer_addresses(self) -> tuple[IpAddress, ...]:
        """What a dynamic selector of the peer means: its lease, else the address of the path."""
        return self.lease_peer.addresses if self.lease_peer else (self.path.peer.ip,)

    def establish(self, now: float) -> None:
        """Both peers are authenticated: lifetimes begin."""
        self.become(IkeState.ESTABLISHED)
        self.context.peers.enter(self)
        self.intermediate = None
        self.start_lifetime(now)

    def start_lifetime(self, now: float) -> None:
        """Arm the timers of an established IKE SA."""
        policy = self.chosen_policy
        self.last_heard = now
        self.timers.arm(Timer.HALF_OPEN, None)
        if policy.rekey_s is not None:
            self.timers.arm(Timer.REKEY_IKE, now + self.context.jitter(policy.rekey_s))
        if policy.hard_s is not None:
            self.timers.arm(Timer.EXPIRE_IKE, now + policy.hard_s)
        if policy.liveness_s is not None:
            self.timers.arm(Timer.LIVENESS, now + policy.liveness_s)
        self.timers.arm(Timer.REAUTHENTICATE, self.reauth_at)

    def successor(self, spi_i: bytes, spi_r: bytes, *, is_initiator: bool) -> "IkeSa":
        """The IKE SA that rekeys this one: known, but not yet primary. RFC 7296 §2.18.

        Its peer is known, so it is established at once; ``rekey_ike.adopt`` lets it take over.
        """
        new = IkeSa(
            self.context,
            self.connections,
            self.path,
            self._register,
            is_initiator=is_initiator,
            sa_id=self.id,
        )
        new.policy, new.is_originator, new.is_primary = self.policy, self.is_originator, False
        new.requests = RequestWindow(self.chosen_policy.retransmission)
        new.fragmentation = Fragmentation(is_agreed=self.fragmentation.is_agreed)
        new.spi_i, new.spi_r = spi_i, spi_r
        new.replaces = self
        new.is_confirmed = is_initiator
        new.nat, new.claimed, new.peer_identity = self.nat, self.claimed, self.peer_identity
        new.lease_local, new.lease_peer = self.lease_local, self.lease_peer
        new.reauth_at = self.reauth_at
        new.peer_follows_redirects = self.peer_follows_redirects
        new.ppk = self.ppk
        new.become(IkeState.AUTHENTICATING)
        new.become(IkeState.ESTABLISHED)
        self._register(new)
        return new

    def hand_over(self, new: "IkeSa") -> None:
        """Child SAs and waiting exchanges go on in the new IKE SA, what the peer began does not."""
        self.drop_awaited()
        new.children, self.children = self.children, Children(self.context, self.id)
        new.queue.extend(self.queue)
        self.queue.clear()
        new.is_primary, self.is_primary = True, False
        self.replaced_by = new
        self.context.peers.enter(new)
        self.timers.stop_all()
        self.become(IkeState.REKEYED)

    def drop_awaited(self, begun: Begun | None = None) -> None:
        """Forget one thing that the peer has begun, or all of them."""
        for link, awaited in list(self.awaited.items()):
            if begun is None or awaited.begun is begun:
                del self.awaited[link]
                awaited.begun.drop(self)

    def close(
        self,
        reason: str,
        *,
        notify: int | None = None,
        hint: str = "",
        is_failure: bool = True,
    ) -> None:
        """The IKE SA ends here and now; nothing is sent any more."""
        if self.state is IkeState.CLOSED:
            return
        was_established = self.state not in {IkeState.CONNECTING, IkeState.AUTHENTICATING}
        self.become(IkeState.CLOSED)
        self.timers.stop_all()
        self.queue.clear()
        self.exchange = None
        for other in self.context.peers.others(self):
            other.children.use_all()
        self.drop_awaited()
        self.children.remove_all()
        self.requests.withdraw()
        if self.replaced_by is not None:
            self.replaced_by.is_confirmed = True
        self.context.peers.leave(self)
        if self.is_primary and self.policy is not None and not (is_failure and notify is None):
            self.context.drop_ticket(self.policy.name, self.id)
        if self.is_primary:
            lease = None if self._shares_lease() else self.lease_peer
            self.context.emit(
                Closed(self.id, reason, notify, hint, is_failure, lease, was_established)
            )

    def _shares_lease(self) -> bool:
        """True where an IKE SA that replaces this one, or is replaced by it, has its addresses."""
        if self.lease_peer is None or self.policy is None:
            return False
        return any(other.lease_peer == self.lease_peer for other in self.context.peers.others(self))
