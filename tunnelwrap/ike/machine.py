"""What moves an IkeSa: requests and responses of the peer, timers, wishes of the shell.

Flow: ``receive`` -> open -> request: window, rules, answer function, response
                          -> response: window, the exchange that waits for it
      ``handle_timeout`` -> timers, retransmission
      ``pump`` -> the next exchange from the queue, whenever the window is free

Errors end here: a Refusal becomes a Notify, garbage from strangers a counter. RFC 7296 §2.21.
"""

from collections.abc import Callable, Sequence
from typing import Final

from tunnelwrap.errors import (
    AuthenticationFailed,
    ChildSaNotFound,
    IntegrityError,
    InvalidSyntax,
    PeerRefused,
    Refusal,
    WireError,
)
from tunnelwrap.iana import ExchangeType, NotifyType, PayloadType, name_of
from tunnelwrap.ike import (
    crash,
    create_child,
    follow_up,
    ike_auth,
    informational,
    intermediate,
    reauthentication,
    redirect,
    resumption,
)
from tunnelwrap.ike.context import in_fragments
from tunnelwrap.ike.fragments import Sent
from tunnelwrap.ike.ike_auth import IkeAuth
from tunnelwrap.ike.informational import CloseIke, DeleteChild, Liveness, deletes_ike
from tunnelwrap.ike.intermediate import IkeIntermediate
from tunnelwrap.ike.new_child import CreateChild
from tunnelwrap.ike.opening import open_message
from tunnelwrap.ike.outputs import AskActivity, AskUsage, Lease
from tunnelwrap.ike.policy import ChildPolicy
from tunnelwrap.ike.rekey_child import RekeyChild
from tunnelwrap.ike.rekey_ike import RekeyIke, adopt, settle_before_delete
from tunnelwrap.ike.resumption import SessionResume
from tunnelwrap.ike.rules import IkeState, is_legal
from tunnelwrap.ike.sa import Exchange, IkeSa, Next
from tunnelwrap.ike.sa_init import SaInit
from tunnelwrap.ike.timers import Timer
from tunnelwrap.ike.window import Verdict
from tunnelwrap.path import Datagram, Path
from tunnelwrap.wire.message import IkeHeader, Message, decode_chain
from tunnelwrap.wire.payloads import Notify, Payload
from tunnelwrap.wire.reader import Reader

Answer = Callable[[IkeSa, Message, float], list[Payload] | None]

ANSWERS: Final[dict[int, Answer]] = {
    ExchangeType.IKE_INTERMEDIATE: intermediate.answer,
    ExchangeType.IKE_AUTH: ike_auth.answer,
    ExchangeType.CREATE_CHILD_SA: create_child.answer,
    ExchangeType.IKE_FOLLOWUP_KE: follow_up.answer,
    ExchangeType.INFORMATIONAL: informational.answer,
}

BETTER_ANSWER_S: Final = 2.0

ENDS: Final = {
    Timer.EXPIRE_IKE: "its lifetime is over",
    Timer.REPLACED: "replaced by a new IKE SA of the same peer",
}
PROBE_SENDS: Final = 3  # of a request, before its fragments are thought too large

ROUTINE: Final = frozenset(
    {
        NotifyType.TEMPORARY_FAILURE,
        NotifyType.CHILD_SA_NOT_FOUND,
        NotifyType.INVALID_KE_PAYLOAD,
    }
)

HINTS: Final[dict[int, str]] = {
    NotifyType.AUTHENTICATION_FAILED: (
        "the peer does not accept our identity or what proves it: compare identities, "
        "pre-shared key or certificate and CA on both sides; the peer's log has the cause"
    ),
    NotifyType.NO_PROPOSAL_CHOSEN: "the peer accepts none of the suites that we offer",
    NotifyType.TEMPORARY_FAILURE: "the peer has no room for another IKE SA now: try again later",
    NotifyType.INVALID_KE_PAYLOAD: "the peer wants a key exchange method that we do not offer",
}


def receive(sa: IkeSa, header: IkeHeader, datagram: Datagram, now: float) -> None:
    """Take a message for this IKE SA; whatever is wrong with it, nothing is raised."""
    if header.is_initiator is sa.is_initiator:
        _drop(sa, "reflected")
        return
    try:
        if header.exchange in {ExchangeType.IKE_SA_INIT, ExchangeType.IKE_SESSION_RESUME}:
            _receive_init_response(sa, header, datagram, now)
        elif header.next_payload == PayloadType.NOTIFY:
            crash.receive_clear(sa, header, datagram.octets, now)
        elif sa.protection is None:
            _drop(sa, "without_keys")
        else:
            message = open_message(sa, header, datagram, now)
            if message is not None:
                _dispatch(sa, message, datagram.path, now)
    except IntegrityError:
        _drop(sa, "integrity")
    except WireError:
        _drop(sa, "malformed")
    except Refusal as refusal:  # authenticated, but its inside cannot be read
        _on_unreadable(sa, header, refusal, datagram.path, now)
    pump(sa, now)


def initiate(sa: IkeSa, now: float) -> None:
    """Begin with IKE_SA_INIT, or with IKE_SESSION_RESUME if there is a ticket."""
    ticket = resumption.ticket_for(sa, now)
    sa.enqueue(SaInit(sa) if ticket is None else SessionResume(sa, ticket))
    pump(sa, now)


def authenticate(sa: IkeSa, now: float) -> None:
    """Go on with the additional key exchanges and IKE_AUTH."""
    if sa.state is IkeState.AUTHENTICATING and sa.is_initiator:
        sa.enqueue(IkeIntermediate())
        sa.enqueue(IkeAuth())
        pump(sa, now)


def close(sa: IkeSa, reason: str, now: float) -> None:
    """End it in good order: a delete, and Closed when it is answered."""
    if sa.state in {IkeState.CONNECTING, IkeState.AUTHENTICATING}:
        sa.close(reason, is_failure=False)
    elif sa.state is IkeState.ESTABLISHED:
        sa.queue.clear()
        sa.enqueue(CloseIke(reason))
        pump(sa, now)


def path_up(sa: IkeSa, path: Path, now: float) -> None:
    """The peer is reached by a new path: what is unanswered goes out again. RFC 9329 §6.1, §6.2."""
    sa.move_to(path)
    if sa.exchange is not None:
        _resend(sa, now)
    # That may be answered already: only a new request makes the responder follow. An IKE_SA_INIT
    # has no keys for one yet, nor has an IKE SA that waits for ``authenticate``; a rekeyed one
    # may be the only one that the peer knows.
    is_known = sa.state in {IkeState.ESTABLISHED, IkeState.REKEYED}
    if is_known or isinstance(sa.exchange, IkeAuth):
        sa.queue.appendleft(Liveness())
        pump(sa, now)


def new_child(sa: IkeSa, policy: ChildPolicy, now: float) -> None:
    """Ask for a further Child SA."""
    sa.enqueue(CreateChild(policy))
    pump(sa, now)


def close_child(sa: IkeSa, spi_in: int, reason: str, now: float) -> None:
    """End a Child SA with a delete; the IKE SA stays."""
    if sa.children.find(spi_in) is None:
        return
    sa.context.trace(sa.id, "info", f"Child SA {spi_in:08x} ends: {reason}")
    sa.enqueue(DeleteChild(spi_in))
    pump(sa, now)


def usage(sa: IkeSa, spi_in: int, carried: int, now: float) -> None:
    """How many packets a Child SA has carried decides whether it goes on."""
    if sa.children.is_idle(spi_in, carried, now):
        close_child(sa, spi_in, "it has nothing to carry", now)


def limit_reached(sa: IkeSa, spi_in: int, now: float, *, is_hard: bool) -> None:
    """A Child SA has carried enough: rekey it, or end it."""
    sa.enqueue(DeleteChild(spi_in) if is_hard else RekeyChild(spi_in))
    pump(sa, now)


def rekey(sa: IkeSa, now: float) -> None:
    """Give the IKE SA new keys now."""
    sa.enqueue(RekeyIke(sa))
    pump(sa, now)


def resume(sa: IkeSa, lease: Lease | Refusal, now: float) -> None:
    """Go on with the answer that waited for a lease."""
    message, sa.pending, sa.ask = sa.pending, None, None
    if message is None:
        return
    try:
        payloads = ike_auth.resume(sa, lease, now)
    except Refusal as error:
        payloads = [_notify_of(error)]
        _send_response(sa, message, payloads, sa.path)
        _after_refusal(sa, message, error, now)
        return
    _send_response(sa, message, payloads, sa.path)
    pump(sa, now)


def activity(sa: IkeSa, last_in: float | None, now: float) -> None:
    """When ESP came in last decides whether the peer must be asked."""
    sa.activity_ask = None
    if last_in is not None:
        sa.last_heard = max(sa.last_heard, last_in)
    interval = sa.chosen_policy.liveness_s
    if interval is None:
        return
    # the very sum that the timer is armed with: a difference may be rounded to a little less
    # than the interval, and the timer would be due again at once
    check_at = sa.last_heard + interval
    if now < check_at:
        sa.timers.arm(Timer.LIVENESS, check_at)
        return
    sa.enqueue(Liveness())
    sa.timers.arm(Timer.LIVENESS, now + interval)
    pump(sa, now)


def handle_timeout(sa: IkeSa, now: float) -> None:
    """Do what is due."""
    due = sa.requests.due()
    if due is not None and due <= now:
        _retransmit(sa, now)
    for timer, _ in sa.timers.take_due(now):
        _on_timer(sa, timer, now)
    for timer, spi_in in sa.children.timers.take_due(now):
        _on_child_timer(sa, timer, spi_in)
    pump(sa, now)


def next_timeout(sa: IkeSa) -> float | None:
    """When ``handle_timeout`` is due."""
    times = (sa.requests.due(), sa.timers.next(), sa.children.timers.next())
    return min((at for at in times if at is not None), default=None)


def pump(sa: IkeSa, now: float) -> None:
    """Send the next request while the window is free.

    A stream carries a request once: to a peer that does not know the IKE SA yet it would be lost.
    """
    if not sa.is_confirmed:
        return
    while sa.exchange is None and sa.queue and sa.state is not IkeState.CLOSED:
        if sa.state is IkeState.DELETING:
            sa.queue.clear()
            return
        exchange = sa.queue.popleft()
        payloads = exchange.request(sa, now)
        if payloads is not None:
            _send_request(sa, exchange, payloads, now)


def _receive_init_response(sa: IkeSa, header: IkeHeader, datagram: Datagram, now: float) -> None:
    exchange = sa.exchange
    if not header.is_response or not isinstance(exchange, SaInit):
        _drop(sa, "unexpected")
        return
    body = Reader(datagram.octets, offset=28)
    message = Message(
        header.spi_i,
        header.spi_r,
        header.exchange,
        header.is_response,
        header.is_initiator,
        header.message_id,
        decode_chain(header.next_payload, body),
    )
    exchange.response_octets = datagram.octets
    _on_response(sa, message, now, datagram.path)


def _dispatch(sa: IkeSa, message: Message, path: Path, now: float) -> None:
    sa.context.heard(sa.id, message, path)
    if message.is_response:
        _on_response(sa, message, now, path)
    else:
        _on_request(sa, message, path, now)


def _on_request(sa: IkeSa, message: Message, path: Path, now: float) -> None:
    verdict = sa.responses.judge(message.message_id)
    if sa.path.carrier.is_reliable and not path.carrier.is_reliable:
        _drop(sa, "not_by_stream")  # RFC 9329 §2: once on TCP, all of it stays there
    elif verdict is Verdict.DUPLICATE:
        _respond_again(sa, _way_back(sa, path))
    elif verdict is not Verdict.NEW:
        _drop(sa, f"request_{verdict.value}")
    elif not is_legal(sa.state, message.exchange, by_initiator=message.is_initiator):
        _drop(sa, "illegal_exchange")
    else:
        sa.last_heard = now
        sa.is_confirmed = True
        sa.responses.begin()
        _follow(sa, path, now)
        if not deletes_ike(message):  # what the peer uses is what it has chosen
            adopt(sa, now)
        _answer(sa, message, path, now)


def _respond_again(sa: IkeSa, back: Path) -> None:
    """The same response; whole where it goes out by a stream now. RFC 9329 §7.5."""
    sa.responses.split_anew(*sa.fragmentation.response_on(sa.responses.response, back))
    sa.context.counters["repeated_responses"] += 1
    pieces = in_fragments(len(sa.responses.response))
    sa.context.trace(sa.id, "debug", f"> repeats the last response to {back}{pieces}")
    sa.transmit(*sa.responses.response, path=back)


def _follow(sa: IkeSa, path: Path, now: float) -> None:
    """A new authentic message of the originator tells where it is. RFC 9329 §6.1, RFC 7296 §2.23.

    On UDP only a NAT may move a peer that is known, and only when we are behind none.
    """
    if sa.is_originator or path == sa.path:
        return
    if path.carrier.is_reliable:
        sa.move_to(path)
        if sa.exchange is not None:  # RFC 9329 §6.2
            _resend(sa, now)
    elif sa.state is IkeState.AUTHENTICATING or (sa.nat.peer and not sa.nat.local):
        sa.move_to(path)


def esp_from(sa: IkeSa, path: Path, now: float) -> None:
    """The newest authentic ESP packet came by this path; it counts like a message.

    But an IKE SA on a stream stays on streams, whatever comes by UDP. RFC 9329 §5.
    """
    if sa.state is IkeState.ESTABLISHED and (
        path.carrier.is_reliable >= sa.path.carrier.is_reliable
    ):
        _follow(sa, path, now)


def _resend(sa: IkeSa, now: float) -> None:
    datagrams = sa.fragmentation.for_path(sa.requests.request, sa.path, sa.fragment_size)
    sa.requests.resent(datagrams, now, is_reliable=sa.path.carrier.is_reliable)
    sa.context.trace(sa.id, "debug", f"> repeats request {sa.requests.next_id} to {sa.path}")
    sa.transmit(*datagrams)


def _answer(sa: IkeSa, message: Message, path: Path, now: float) -> None:
    refusal: Refusal | PeerRefused | None = None
    try:
        payloads = ANSWERS[message.exchange](sa, message, now)
    except PeerRefused as error:
        payloads, refusal = [], error
    except Refusal as error:
        payloads, refusal = [_notify_of(error)], error
    if payloads is None:
        sa.pending = message
        return
    if message.exchange == ExchangeType.INFORMATIONAL and refusal is None:
        payloads = [*payloads, *resumption.give(sa, message, now)]
    _send_response(sa, message, payloads, path)
    intermediate.use_next_keys(sa)
    if refusal is not None:
        _after_refusal(sa, message, refusal, now)
    elif message.exchange == ExchangeType.INFORMATIONAL and deletes_ike(message):
        settle_before_delete(sa, now)
        _keep_farewell(sa, now)
        sa.close("deleted by the peer", is_failure=False)
    elif message.exchange == ExchangeType.INFORMATIONAL:
        reauthentication.obey(sa, message, now)
        crash.take(sa, message)
        crash.report(sa, message)
        redirect.take(sa, message)


def _notify_of(refusal: Refusal) -> Notify:
    if isinstance(refusal, ChildSaNotFound):  # names the Child SA as the request did
        return Notify.of(refusal.notify, protocol=refusal.protocol, spi=refusal.data)
    return Notify.of(refusal.notify, refusal.data)


def _keep_farewell(sa: IkeSa, now: float) -> None:
    """The IKE SA ends with this response, which may be lost."""
    is_reliable = sa.path.carrier.is_reliable
    sa.context.farewells.keep(sa.local_spi, sa.responses, now, is_reliable=is_reliable)


def _after_refusal(sa: IkeSa, message: Message, refusal: Refusal | PeerRefused, now: float) -> None:
    """What we could not accept ends the IKE SA, or stands in the log; with the peer's name."""
    name = name_of(NotifyType, refusal.notify)
    ends = isinstance(refusal, PeerRefused | InvalidSyntax | AuthenticationFailed)
    if ends or sa.state is IkeState.AUTHENTICATING:
        what = "" if isinstance(refusal, PeerRefused) else f"refused with {name}: "
        _keep_farewell(sa, now)
        sa.close(f"{sa.peer}: {what}{refusal}", notify=refusal.notify)
        return
    level = "debug" if refusal.notify in ROUTINE else "warning"
    sa.context.trace(sa.id, level, f"{sa.peer}: refused {message} with {name}: {refusal}")


def _on_unreadable(sa: IkeSa, header: IkeHeader, refusal: Refusal, path: Path, now: float) -> None:
    """An authentic message whose inside breaks the rules. RFC 7296 §2.21, RFC 9329 §6.1."""
    message = sa.message(header.exchange, header.message_id, ())
    if header.is_response:
        exchange = sa.exchange
        if exchange is None or header.message_id != sa.requests.next_id:
            _drop(sa, "malformed")
        else:
            _fail(sa, exchange, refusal, now)
    elif sa.responses.judge(header.message_id) is not Verdict.NEW:
        _drop(sa, "malformed")
    else:
        sa.responses.begin()
        _send_response(sa, message, [_notify_of(refusal)], path)
        _after_refusal(sa, message, refusal, now)


def _on_response(sa: IkeSa, message: Message, now: float, path: Path) -> None:
    exchange = sa.exchange
    is_expected = (
        exchange is not None
        and message.exchange == exchange.TYPE
        and message.message_id == sa.requests.next_id
    )
    if exchange is None or not is_expected:
        _drop(sa, "unexpected_response")
        return
    if isinstance(exchange, SaInit):
        sa.context.heard(sa.id, message, path)
    sa.exchange = None
    try:
        what_follows = exchange.on_response(sa, message, now)
    except (PeerRefused, Refusal) as error:
        if isinstance(exchange, SaInit) and not path.carrier.is_reliable:
            _await_better(sa, exchange, error, now)
        else:
            _fail(sa, exchange, error, now)
        return
    if what_follows is Next.WAIT:
        sa.exchange = exchange
        _drop(sa, "late_response")
        return
    sa.last_heard = now
    if isinstance(exchange, SaInit):
        exchange.refusal = None
        sa.timers.arm(Timer.REFUSED, None)
    if isinstance(exchange, SaInit) and what_follows is Next.AGAIN:
        sa.requests.withdraw()  # the repeated IKE_SA_INIT has message ID 0 again
    else:
        sa.requests.completed()
    if what_follows is Next.AGAIN:
        sa.queue.appendleft(exchange)
    _follow(sa, path, now)


def _await_better(sa: IkeSa, exchange: SaInit, error: PeerRefused | Refusal, now: float) -> None:
    """Anyone can send an IKE_SA_INIT error by UDP: an answer still may come. RFC 7296 §2.21.1."""
    sa.exchange = exchange
    if exchange.refusal is None:
        exchange.refusal = error
        sa.timers.arm(Timer.REFUSED, now + BETTER_ANSWER_S)


def _fail(sa: IkeSa, exchange: Exchange, error: PeerRefused | Refusal, now: float) -> None:
    """A response that makes the IKE SA useless."""
    if isinstance(error, Refusal) and not isinstance(exchange, SaInit):
        # the responder believes that all is well: it is told. RFC 7296 §2.21.2
        sa.requests.completed()
        _send_request(sa, CloseIke(str(error), error.notify), [Notify.of(error.notify)], now)
    hint = HINTS.get(error.notify, "") if isinstance(error, PeerRefused) else ""
    is_about_ike = isinstance(error, PeerRefused) and isinstance(exchange, SaInit)
    if error.notify == NotifyType.NO_PROPOSAL_CHOSEN and is_about_ike:
        hint += ": " + ", ".join(str(p) for p in sa.chosen_policy.proposals)
    sa.close(str(error), notify=error.notify, hint=hint)


def _send_request(sa: IkeSa, exchange: Exchange, payloads: Sequence[Payload], now: float) -> None:
    message = sa.message(exchange.TYPE, sa.requests.next_id, payloads)
    if isinstance(exchange, SaInit):
        exchange.request_octets = message.encode()
        datagrams: tuple[bytes, ...] = (exchange.request_octets,)
    else:
        sent = Sent(message, sa.agreed[2])
        datagrams = sa.fragmentation.seal_request(sent, sa.path, sa.fragment_size)
    sa.context.said(sa.id, message, sa.path, len(datagrams))
    sa.exchange = exchange
    sa.ended_early.clear()
    sa.requests.sent(datagrams, now, is_reliable=sa.path.carrier.is_reliable)
    sa.transmit(*datagrams)


def _send_response(sa: IkeSa, request: Message, payloads: list[Payload], path: Path) -> None:
    message = sa.reply(request.exchange, request.message_id, payloads)
    back, sent = _way_back(sa, path), Sent(message, sa.agreed[2])
    datagrams = sa.fragmentation.seal_response(sent, back, sa.fragment_size)
    sa.context.said(sa.id, message, back, len(datagrams))
    sa.responses.answered(*datagrams)
    sa.transmit(*datagrams, path=back)


def _way_back(sa: IkeSa, path: Path) -> Path:
    """A response goes where the request came from; the originator knows which stream is alive."""
    return sa.path if sa.is_originator and path.carrier.is_reliable else path


def _retransmit(sa: IkeSa, now: float) -> None:
    datagrams = _smaller(sa, now)
    datagrams = datagrams or sa.requests.expire(now, is_reliable=sa.path.carrier.is_reliable)
    if datagrams:
        sa.context.counters["retransmitted"] += 1
        how = f"to {sa.path}{in_fragments(len(datagrams))}"
        sa.context.trace(sa.id, "debug", f"> repeats request {sa.requests.next_id} {how}")
        sa.transmit(*datagrams)
        return
    silence = f"no answer from {sa.path} for {sa.requests.waited(now):.0f} s"
    if isinstance(sa.exchange, CloseIke):
        sa.close(f"{sa.exchange.reason} ({silence})", is_failure=False)
    else:
        sa.close(silence)


def _smaller(sa: IkeSa, now: float) -> tuple[bytes, ...]:
    """The request in smaller fragments, where the larger ones seem not to get through.

    RFC 7383 §2.5.2.
    """
    if isinstance(sa.exchange, SaInit) or sa.requests.sends < PROBE_SENDS:
        return ()
    datagrams = sa.fragmentation.probe(sa.requests.request, sa.path, sa.fragment_size)
    if datagrams:
        sa.requests.split_anew(datagrams, now)
    return datagrams


def _on_timer(sa: IkeSa, timer: Timer, now: float) -> None:
    if timer is Timer.HALF_OPEN:
        limit = sa.context.limits.half_open_s
        sa.close(f"{sa.peer} did not authenticate itself within {limit:.0f} s")
    elif timer is Timer.SUPERSEDED:
        sa.close("superseded", is_failure=False)
    elif timer is Timer.REKEY_IKE:
        sa.enqueue(RekeyIke(sa))
    elif timer in ENDS:
        sa.queue.clear()
        sa.enqueue(CloseIke(ENDS[timer]))
    elif timer is Timer.REAUTHENTICATE:
        reauthentication.is_due(sa, now)
    elif timer is Timer.LIVENESS:
        _check_liveness(sa, now)
    elif timer is Timer.REASSEMBLY:
        sa.fragmentation.forget()
    elif timer is Timer.FOLLOW_UP:
        follow_up.expire(sa, now)
    elif isinstance(sa.exchange, SaInit) and sa.exchange.refusal is not None:  # Timer.REFUSED
        _fail(sa, sa.exchange, sa.exchange.refusal, now)


def _check_liveness(sa: IkeSa, now: float) -> None:
    spis = tuple(child.sa.spi_in for child in sa.children)
    if sa.exchange is not None:  # what waits for an answer is itself a check
        activity(sa, now, now)
    elif spis:
        sa.activity_ask = sa.context.new_ask()
        sa.context.emit(AskActivity(sa.id, sa.activity_ask, spis))
    else:
        activity(sa, None, now)


def _on_child_timer(sa: IkeSa, timer: Timer, spi_in: int) -> None:
    if timer is Timer.REKEY_CHILD:
        sa.enqueue(RekeyChild(spi_in))
    elif timer is Timer.EXPIRE_CHILD:
        sa.enqueue(DeleteChild(spi_in))
    elif timer is Timer.USE_OUTBOUND:
        sa.children.use_outbound(spi_in)
    elif timer is Timer.LINGER_CHILD:
        sa.children.remove(spi_in)
    elif timer is Timer.IDLE_CHILD:
        sa.context.emit(AskUsage(sa.id, spi_in))
    else:  # Timer.CREATE_CHILD
        sa.queue.extend(CreateChild(policy) for policy in sa.children.take_wanted())


def _drop(sa: IkeSa, cause: str) -> None:
    sa.context.counters[f"dropped_{cause}"] += 1
    sa.context.trace(sa.id, "debug", f"= drops a message to {sa.local_spi.hex()}: {cause}")
