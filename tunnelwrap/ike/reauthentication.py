"""Authenticating again, make before break: a whole new IKE SA beside the old one. RFC 7296 §2.8.3.

When it is time, the shell is told (``ReauthenticationDue``), for it may have to open a stream, and
begins the new IKE SA with ``Endpoint.initiate(replaces=...)``. Once that is authenticated it makes
what Child SAs the old one had, and only then deletes it. RFC 4478: a responder cannot begin, so
it says how long it trusts what was proved.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from tunnelwrap.iana import ExchangeType, NotifyType
from tunnelwrap.ike.informational import CloseIke
from tunnelwrap.ike.new_child import CreateChild
from tunnelwrap.ike.outputs import ReauthenticationDue
from tunnelwrap.ike.rules import IkeState
from tunnelwrap.ike.sa import IkeSa, Next
from tunnelwrap.ike.timers import Timer
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Notify, Payload

OBEY_SHARE: Final = 0.9  # of the lifetime that the responder gives: authenticate before its end
RETRY_S: Final = 30.0  # until it is asked for again, where nothing came of it


class Retire:
    """Deletes the old IKE SA, when all Child SAs of the new one have been asked for."""

    TYPE: ClassVar = ExchangeType.INFORMATIONAL

    __slots__ = ("_old",)

    def __init__(self, old: int) -> None:
        self._old = old

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """None: the delete is the old IKE SA's own exchange."""
        old = sa.context.peers.named(self._old)
        is_taken_over = bool(len(sa.children))  # else the old one is all that there is
        if is_taken_over and old is not None and old.state is IkeState.ESTABLISHED:
            old.queue.clear()
            old.enqueue(CloseIke("authenticated again"))
            sa.context.touch(old.id)
        return None

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:  # noqa: ARG002 (contract)
        """There is no request, so there is no response."""
        return Next.DONE


def lifetime(sa: IkeSa, now: float) -> list[Payload]:
    """AUTH_LIFETIME, as responder: the peer must have authenticated itself again by then."""
    seconds = sa.chosen_policy.reauth_s
    if seconds is None:
        return []
    _set(sa, now + seconds)
    return [Notify.of(NotifyType.AUTH_LIFETIME, max(1, int(seconds)).to_bytes(4, "big"))]


def obey(sa: IkeSa, message: Message, now: float) -> None:
    """As initiator, authenticate again when our own policy or the responder wants it."""
    notify = message.notify(NotifyType.AUTH_LIFETIME)
    if notify is None or len(notify.data) != 4 or not sa.is_originator:
        return
    at = now + sa.context.jitter(int.from_bytes(notify.data, "big") * OBEY_SHARE)
    _set(sa, at if sa.reauth_at is None else min(at, sa.reauth_at))


def schedule(sa: IkeSa, now: float) -> None:
    """As initiator, authenticate again as our own policy wants it."""
    seconds = sa.chosen_policy.reauth_s
    if seconds is not None:
        _set(sa, now + sa.context.jitter(seconds))


def is_due(sa: IkeSa, now: float) -> None:
    """The time has come: begin, or end what the peer did not renew."""
    if sa.is_originator:
        demand(sa, now)
    else:
        sa.enqueue(CloseIke("the peer did not authenticate itself again in time"))


def demand(sa: IkeSa, now: float) -> None:
    """Ask the shell for a new IKE SA, now and again."""
    sa.context.emit(ReauthenticationDue(sa.id))
    _set(sa, now + RETRY_S)


def take_over(sa: IkeSa) -> None:
    """The new IKE SA is there: it gets what the old one had, which then goes."""
    old = None if sa.reauthenticates is None else sa.context.peers.named(sa.reauthenticates)
    if old is None:
        return
    old.timers.arm(Timer.REAUTHENTICATE, None)
    first = sa.chosen_policy.child
    for child in old.children:
        if child.policy != first and child.successor is None:
            sa.enqueue(CreateChild(child.policy))
    sa.enqueue(Retire(old.id))


def _set(sa: IkeSa, at: float) -> None:
    sa.reauth_at = at
    sa.timers.arm(Timer.REAUTHENTICATE, at)
