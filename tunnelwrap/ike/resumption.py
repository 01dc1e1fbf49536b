"""Session resumption in both roles: getting a ticket, and IKE_SESSION_RESUME. RFC 5723.

The exchange stands in the place of IKE_SA_INIT: there is no key exchange, the keys come from the
old SK_d, and in IKE_AUTH they prove both sides. A gateway that does not take the ticket says
TICKET_NACK, and IKE_SA_INIT follows as if nothing had been.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from tunnelwrap.auth.identity import Identity
from tunnelwrap.crypto.keymat import skeyseed_resume
from tunnelwrap.crypto.suite import IkeSuite
from tunnelwrap.errors import (
    AuthenticationFailed,
    IntegrityError,
    InvalidSyntax,
    TicketRefused,
)
from tunnelwrap.iana import ExchangeType, NotifyType
from tunnelwrap.ike import bare, redirect
from tunnelwrap.ike.negotiate import is_allowed
from tunnelwrap.ike.outputs import Answered
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.ike.rules import IkeState, check_occurrence
from tunnelwrap.ike.sa import Handshake, IkeSa, Next
from tunnelwrap.ike.sa_init import (
    NONCE_LENGTH,
    SaInit,
    abilities,
    detect_nat,
    float_if_needed,
    install_seed,
    knows_fragments,
    refuse_errors,
)
from tunnelwrap.ike.ticket import HeldTicket, Session
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Nonce, Notify, Payload

MAX_LIFETIME_S: Final = 86400.0
_NO_SPI = bytes(8)

# --- tickets ----------------------------------------------------------------------------------


class AskTicket:
    """INFORMATIONAL: after a rekey of the peer's the ticket is worth nothing. RFC 5723 §4.1."""

    TYPE: ClassVar = ExchangeType.INFORMATIONAL

    __slots__ = ()

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """N(TICKET_REQUEST)."""
        return ask(sa)

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:
        """A ticket, or none."""
        keep(sa, message, now)
        return Next.DONE


def ask(sa: IkeSa) -> list[Payload]:
    """TICKET_REQUEST, if the policy wants to resume; only the initiator asks."""
    is_wanted = sa.is_originator and sa.chosen_policy.resumption
    return [Notify.of(NotifyType.TICKET_REQUEST)] if is_wanted else []


def give(sa: IkeSa, message: Message, now: float) -> list[Payload]:
    """The answer to a TICKET_REQUEST, as responder: a ticket for an IKE SA that has its keys."""
    if message.notify(NotifyType.TICKET_REQUEST) is None or sa.is_originator:
        return []
    policy = sa.chosen_policy
    if not policy.resumption or sa.chosen is None or sa.peer_identity is None:
        return [Notify.of(NotifyType.TICKET_NACK)]
    ends = (policy.hard_s, policy.reauth_s, MAX_LIFETIME_S)
    lifetime = max(1, int(min(end for end in ends if end is not None)))
    ticket = sa.context.tickets.issue(_session_of(sa), now + lifetime, now)
    return [Notify.of(NotifyType.TICKET_LT_OPAQUE, lifetime.to_bytes(4, "big") + ticket)]


def keep(sa: IkeSa, message: Message, now: float) -> None:
    """Keep the ticket of a response, as initiator, for when the IKE SA is lost."""
    notify = message.notify(NotifyType.TICKET_LT_OPAQUE)
    if notify is None or len(notify.data) <= 4 or not sa.is_originator or sa.chosen is None:
        return
    expires_at = now + int.from_bytes(notify.data[:4], "big")
    held = HeldTicket(notify.data[4:], expires_at, _session_of(sa))
    sa.context.held_tickets[sa.chosen_policy.name] = held


def drop(sa: IkeSa) -> None:
    """The ticket of this IKE SA is worth nothing any more. RFC 5723 §6.2."""
    sa.context.drop_ticket(sa.chosen_policy.name, sa.id)


def renew(sa: IkeSa) -> None:
    """A rekey has spoiled the ticket; where it was the peer's, a new one is asked for."""
    drop(sa)
    if ask(sa) and not sa.is_initiator:
        sa.enqueue(AskTicket())


def ticket_for(sa: IkeSa, now: float) -> HeldTicket | None:
    """The ticket with which an IKE SA of ours may begin: one whose own IKE SA is lost."""
    policy = sa.chosen_policy
    held = sa.context.held_tickets.get(policy.name)
    if held is None or not policy.resumption or now >= held.expires_at:
        return None
    if sa.context.peers.named(held.session.sa) is not None:
        return None
    is_fit = is_allowed(held.session.chosen, policy.proposals)
    is_same = held.session.id_i.canonical() == policy.local.identity.canonical()
    return held if is_fit and is_same and policy.peer.identity.matches(held.session.id_r) else None


def _session_of(sa: IkeSa) -> Session:
    assert sa.chosen is not None, "it has keys"
    assert sa.peer_identity is not None, "it is established"
    ours, (_, keys, _) = sa.chosen_policy.local.identity, sa.agreed
    id_i, id_r = (ours, sa.peer_identity) if sa.is_originator else (sa.peer_identity, ours)
    return Session(sa.chosen_policy.name, sa.id, sa.chosen, keys.sk_d, id_i, id_r)


# --- IKE_SESSION_RESUME -----------------------------------------------------------------------


class SessionResume(SaInit):
    """IKE_SESSION_RESUME as initiator, in the place of IKE_SA_INIT. RFC 5723 §4.3.2."""

    TYPE: ClassVar = ExchangeType.IKE_SESSION_RESUME

    __slots__ = ("_held", "_is_refused")

    def __init__(self, sa: IkeSa, held: HeldTicket) -> None:
        super().__init__(sa)
        self._held = held
        self._is_refused = False

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """[N(COOKIE)], Ni, N(TICKET_OPAQUE) and what we can do; None when it was refused."""
        if self._is_refused:
            return None
        return [
            *self.cookie(),
            Nonce(self.nonce),
            Notify.of(NotifyType.TICKET_OPAQUE, self._held.octets),
            *abilities(sa),
            *redirect.support(sa),
        ]

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:
        """Derive the keys; or begin with IKE_SA_INIT where the ticket is not taken.

        Raises:
            PeerRefused: the responder says no.
            InvalidSyntax: what it says makes no sense.
            NoProposalChosen: we want AH, which does not come through here.
        """
        after_cookie = self.follow_cookie(message)
        if after_cookie is not None:
            return after_cookie
        if redirect.is_init_redirect(sa, message, self.nonce):
            return Next.DONE
        if message.notify(NotifyType.TICKET_NACK) is not None:
            return self._begin_anew(sa)
        refuse_errors(message)
        check_occurrence(message)
        nonce = message.find(Nonce)
        if nonce is None or message.spi_r == _NO_SPI:
            raise InvalidSyntax(f"{message} lacks a nonce or an SPI")
        nat = detect_nat(message, sa.path)
        bare.check_policy(sa.chosen_policy.child, sa.path, nat)
        sa.spi_r, sa.nat = message.spi_r, nat
        octets = (self.request_octets, self.response_octets)
        _resume(sa, self._held.session, (self.nonce, nonce.data), octets)
        sa.fragmentation.is_agreed = knows_fragments(message)
        float_if_needed(sa)
        sa.context.emit(Answered(sa.id, sa.path))
        sa.become(IkeState.AUTHENTICATING)
        sa.last_heard = now
        return Next.DONE

    def _begin_anew(self, sa: IkeSa) -> Next:
        """Anyone may have said so, but the ticket is no loss."""
        sa.context.trace(sa.id, "debug", "= the peer does not take the ticket")
        held = sa.context.held_tickets
        if held.get(sa.chosen_policy.name) is self._held:
            del held[sa.chosen_policy.name]
        self._is_refused = True
        sa.queue.appendleft(SaInit(sa))
        return Next.AGAIN


def answer(sa: IkeSa, message: Message, octets: bytes, now: float) -> bytes:
    """Answer an IKE_SESSION_RESUME request; gives the response's octets.

    Raises:
        Refusal: the ticket is not taken; the Notify goes back in clear.
    """
    check_occurrence(message)
    redirect.check_init(sa, message)
    nonce, notify = message.find(Nonce), message.notify(NotifyType.TICKET_OPAQUE)
    if nonce is None or notify is None:
        raise InvalidSyntax(f"{message} lacks a nonce or a ticket")
    try:
        name, session = sa.context.tickets.read(notify.data, now)
    except IntegrityError as error:
        raise TicketRefused(str(error)) from error
    _connection_of(sa, session)
    sa.spi_i, sa.spi_r = message.spi_i, sa.context.new_ike_spi()
    sa.nat = detect_nat(message, sa.path)
    sa.fragmentation.is_agreed = knows_fragments(message)
    sa.ticket_name = name
    n_r = sa.context.random(NONCE_LENGTH)
    payloads = [Nonce(n_r), *abilities(sa)]
    reply = sa.reply(ExchangeType.IKE_SESSION_RESUME, 0, payloads)
    response = reply.encode()
    _resume(sa, session, (nonce.data, n_r), (octets, response))
    sa.peer_follows_redirects = redirect.is_followed(message)
    sa.become(IkeState.AUTHENTICATING)
    sa.context.said(sa.id, reply, sa.path)
    return response


def _connection_of(sa: IkeSa, session: Session) -> ConnectionPolicy:
    """The connection that the ticket was given for; it may have changed since."""
    for connection in sa.connections:
        is_ours = connection.local.identity == session.id_r
        is_theirs = connection.peer.identity.matches(session.id_i)
        is_good = is_ours and is_theirs and is_allowed(session.chosen, connection.proposals)
        if connection.name == session.connection and connection.resumption and is_good:
            return connection
    raise TicketRefused(f"the ticket is for {session.connection}, which has changed")


def _resume(
    sa: IkeSa, session: Session, nonces: tuple[bytes, bytes], octets: tuple[bytes, bytes]
) -> None:
    """The keys of the new IKE SA. RFC 5723 §5.1."""
    suite = IkeSuite.from_proposal(session.chosen)
    seed = skeyseed_resume(suite.prf_function(), session.sk_d, *nonces)
    handshake = Handshake(*nonces, *octets, frozenset(), session.chosen)
    install_seed(sa, suite, handshake, seed)
    sa.resumes = session


# --- IKE_AUTH of a resumed IKE SA -------------------------------------------------------------


def check_initiator(sa: IkeSa, session: Session, claimed: Identity) -> ConnectionPolicy:
    """As responder: who comes is who the ticket was given to.

    Raises:
        AuthenticationFailed: it is somebody else.
    """
    if claimed != session.id_i:
        raise AuthenticationFailed(f"{claimed} shows a ticket of {session.id_i}")
    return _connection_of(sa, session)


def spend(sa: IkeSa, now: float) -> None:
    """As responder, when the peer has proved that it has the keys: the old IKE SA is gone.

    Raises:
        AuthenticationFailed: the ticket was used meanwhile.
    """
    if sa.resumes is None or sa.ticket_name is None:
        return
    if not sa.context.tickets.spend(sa.ticket_name, now):
        raise AuthenticationFailed("the ticket was used before")
    old = sa.context.peers.named(sa.resumes.sa)
    if old is not None:  # RFC 5723 §4.3.4: without a delete
        old.close("resumed", is_failure=False)
        sa.context.touch(old.id)


def check_responder(sa: IkeSa, claimed: Identity) -> None:
    """As initiator: the gateway is the one that gave the ticket.

    Raises:
        AuthenticationFailed: it is another.
    """
    if sa.resumes is not None and claimed != sa.resumes.id_r:
        raise AuthenticationFailed(f"{claimed} took a ticket of {sa.resumes.id_r}")
