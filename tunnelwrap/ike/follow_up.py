"""IKE_FOLLOWUP_KE in both roles: the key exchanges behind a CREATE_CHILD_SA. RFC 9370 §2.2.4.

The SA is made when the last of them is done. As initiator, ``FollowUp`` goes on with what a
CREATE_CHILD_SA of ours has begun (``Followed``); as responder, an ``Awaited`` waits for the next
request that names its link.
"""

from collections import deque
from collections.abc import Sequence
from typing import ClassVar, Final, Protocol

from tunnelwrap.crypto.ke import LocalKey, initiate
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.errors import InvalidSyntax, PeerRefused, Refusal, StateNotFound, TemporaryFailure
from tunnelwrap.iana import ExchangeType, NotifyType
from tunnelwrap.ike.additional_ke import respond_with, shared_secret
from tunnelwrap.ike.informational import CloseIke
from tunnelwrap.ike.rules import IkeState, check_occurrence
from tunnelwrap.ike.sa import Awaited, Begun, Exchange, IkeSa, Next
from tunnelwrap.ike.sa_init import refuse_errors
from tunnelwrap.ike.timers import Timer
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import KeyExchange, Notify, Payload

FOLLOW_UP_S: Final = 20.0  # how long the next request may take. RFC 9370 §2.2.4: 5 to 20 seconds
MAX_STATES_LOST: Final = 3  # STATE_NOT_FOUND in a row that we take before the IKE SA ends
LINK_LENGTH: Final = 8


class Followed(Exchange, Protocol):
    """A CREATE_CHILD_SA exchange of ours that goes on."""

    def finish(self, sa: IkeSa, message: Message, secrets: Sequence[Secret], now: float) -> None:
        """All additional key exchanges are done: the last response, and their secrets."""

    def refused(self, sa: IkeSa, error: PeerRefused, now: float) -> None:
        """The peer does not go on: there will be no SA."""


class FollowUp:
    """IKE_FOLLOWUP_KE as initiator, as often as there are additional key exchanges."""

    TYPE: ClassVar = ExchangeType.IKE_FOLLOWUP_KE

    __slots__ = ("_key", "_link", "_methods", "_secrets", "whole")

    def __init__(self, whole: Followed, methods: Sequence[int], link: bytes) -> None:
        self.whole = whole
        self._methods = deque(methods)
        self._link = link
        self._key: LocalKey | None = None
        self._secrets: list[Secret] = []

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """KEi(n), N(ADDITIONAL_KEY_EXCHANGE) with the link that the peer has given."""
        self._key = initiate(self._methods[0], sa.context.random)
        return [
            KeyExchange(self._key.method, self._key.public),
            Notify.of(NotifyType.ADDITIONAL_KEY_EXCHANGE, self._link),
        ]

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:
        """Keep the secret; the last of them makes the SA.

        Raises:
            InvalidSyntax: what the peer says makes no sense.
        """
        assert self._key is not None, "the request comes first"
        try:
            refuse_errors(message)
        except PeerRefused as error:
            self._refused(sa, error, now)
            return Next.DONE
        check_occurrence(message)
        self._secrets.append(shared_secret(self._key, message))
        self._methods.popleft()
        sa.states_lost = 0
        if self._methods:
            self._link = _link_of(message)
            return Next.AGAIN
        self.whole.finish(sa, message, self._secrets, now)
        return Next.DONE

    def _refused(self, sa: IkeSa, error: PeerRefused, now: float) -> None:
        self.whole.refused(sa, error, now)
        if error.notify != NotifyType.STATE_NOT_FOUND:
            return
        sa.states_lost += 1
        if sa.states_lost > MAX_STATES_LOST:  # RFC 9370 §2.2.4: a fatal error
            sa.queue.clear()
            sa.enqueue(CloseIke("the peer forgets every additional key exchange"))


def follow(sa: IkeSa, message: Message, whole: Followed, methods: Sequence[int]) -> None:
    """Go on with the additional key exchanges that a CREATE_CHILD_SA response asks for.

    Raises:
        InvalidSyntax: the response has no link.
    """
    sa.queue.appendleft(FollowUp(whole, methods, _link_of(message)))


def under_way(sa: IkeSa) -> Exchange | None:
    """What of ours waits for a response; of IKE_FOLLOWUP_KE the exchange that it goes on with."""
    return sa.exchange.whole if isinstance(sa.exchange, FollowUp) else sa.exchange


def expect(sa: IkeSa, begun: Begun, methods: Sequence[int], now: float) -> Notify:
    """Wait for the peer to go on with what it has begun; gives the Notify with the link."""
    return _expect(sa, Awaited(begun, deque(methods), 0.0, []), now)


def answer(sa: IkeSa, message: Message, now: float) -> list[Payload]:
    """Answer an IKE_FOLLOWUP_KE request.

    Raises:
        Refusal: no; the IKE SA lives on, save where the request makes no sense.
    """
    check_occurrence(message)
    if sa.state is not IkeState.ESTABLISHED:
        raise TemporaryFailure("the IKE SA is being replaced or deleted")
    notify = message.notify(NotifyType.ADDITIONAL_KEY_EXCHANGE)
    awaited = sa.awaited.pop(notify.data, None) if notify is not None else None
    if awaited is None:
        raise StateNotFound("nothing that the peer has begun waits for this key exchange")
    try:
        ke, shared = respond_with(awaited.methods.popleft(), message, sa.context.random)
        awaited.secrets.append(shared)
        if awaited.methods:
            return [ke, _expect(sa, awaited, now)]
        return [ke, *awaited.begun.finish(sa, awaited.secrets, now)]
    except Refusal:
        awaited.begun.drop(sa)
        raise


def expire(sa: IkeSa, now: float) -> None:
    """Drop what the peer has not gone on with in time."""
    for awaited in list(sa.awaited.values()):
        if awaited.due <= now:
            sa.context.trace(sa.id, "debug", "= the peer does not go on with its key exchanges")
            sa.drop_awaited(awaited.begun)
    _arm(sa)


def _expect(sa: IkeSa, awaited: Awaited, now: float) -> Notify:
    link = sa.context.random(LINK_LENGTH)
    awaited.due = now + FOLLOW_UP_S
    sa.awaited[link] = awaited
    _arm(sa)
    return Notify.of(NotifyType.ADDITIONAL_KEY_EXCHANGE, link)


def _arm(sa: IkeSa) -> None:
    due = min((awaited.due for awaited in sa.awaited.values()), default=None)
    sa.timers.arm(Timer.FOLLOW_UP, due)


def _link_of(message: Message) -> bytes:
    notify = message.notify(NotifyType.ADDITIONAL_KEY_EXCHANGE)
    if notify is None:
        raise InvalidSyntax(f"{message} lacks N(ADDITIONAL_KEY_EXCHANGE)")
    return notify.data
