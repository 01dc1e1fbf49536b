"""Rekey of a Child SA by CREATE_CHILD_SA, in both roles; also when both ends begin at once.

RFC 7296 §1.3.3, §2.8.1, §2.25.1; crossing exchanges are decided by ``ike.collision``.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.errors import (
    ChildSaNotFound,
    PeerRefused,
    TemporaryFailure,
)
from tunnelwrap.iana import ExchangeType, NotifyType, ProtocolId, name_of
from tunnelwrap.ike.child_setup import (
    Agreement,
    answer_child,
    make_child,
)
from tunnelwrap.ike.collision import Nonces, ours_is_redundant
from tunnelwrap.ike.follow_up import FOLLOW_UP_S, FollowUp, follow, under_way
from tunnelwrap.ike.informational import DeleteChild
from tunnelwrap.ike.new_child import (
    ROUTINE,
    Ask,
    BegunChild,
    CreateChild,
    begin,
    ended_early,
    nonce_of,
    retry_s,
)
from tunnelwrap.ike.policy import ChildPolicy
from tunnelwrap.ike.rules import ChildState
from tunnelwrap.ike.sa import IkeSa, Next
from tunnelwrap.ike.sa_init import NONCE_LENGTH
from tunnelwrap.ike.timers import Timer
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Nonce, Notify, Payload

REFUSED_RETRY_S: Final = 60.0  # after any other refusal of a rekey: until the lifetime is over


class RekeyChild:
    """A Child SA gets a successor with new keys, in an exchange of ours. RFC 7296 §1.3.3."""

    TYPE: ClassVar = ExchangeType.CREATE_CHILD_SA

    __slots__ = ("_agreement", "_ask", "_policy", "crossed", "spi_in")

    def __init__(self, spi_in: int) -> None:
        self.spi_in = spi_in
        self.crossed: BegunChild | None = None  # the peer's rekey of the same Child SA
        self._agreement: Agreement | None = None
        self._ask: Ask | None = None
        self._policy: ChildPolicy | None = None

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """N(REKEY_SA), SA, Ni, [KEi], TSi, TSr; None when the Child SA is gone or replaced."""
        child = sa.children.find(self.spi_in)
        if child is None or child.state not in {ChildState.INSTALLED, ChildState.REKEYING}:
            return None
        child.become(ChildState.REKEYING)
        self._policy = child.policy
        self._ask = self._ask or Ask(child.sa)
        self.crossed = self.crossed or _begun_rekey(sa, self.spi_in)
        spi = self.spi_in.to_bytes(4, "big")
        return [
            Notify.of(NotifyType.REKEY_SA, protocol=child.sa.protocol, spi=spi),
            *self._ask.payloads(sa, child.policy),
        ]

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:
        """Install the successor, delete the old one; or find out why not.

        Raises:
            InvalidSyntax: the peer has made one that we cannot have.
        """
        assert self._ask is not None, "the request comes first"
        assert self._policy is not None, "the request comes first"
        try:
            agreement = self._agreement = self._ask.accept(sa, message)
        except PeerRefused as error:
            if self._ask.may_retry(self._policy, error):
                return Next.AGAIN
            self._refused(sa, error, now)
            return Next.DONE
        nonces = Nonces(agreement.n_i, agreement.n_r)
        if self.crossed is not None and ours_is_redundant(nonces, self.crossed.nonces):
            self._give_way(sa, agreement, now)
        elif agreement.additional_ke:
            follow(sa, message, self, agreement.additional_ke)
            self._claim(sa)
        else:
            self.finish(sa, message, (), now)
        return Next.DONE

    def finish(
        self,
        sa: IkeSa,
        message: Message,  # noqa: ARG002 (contract)
        secrets: Sequence[Secret],
        now: float,
    ) -> None:
        """Install the successor, delete the old one: all its key exchanges are done."""
        assert self._agreement is not None, "the response comes first"
        assert self._policy is not None, "the request comes first"
        new = make_child(sa, self._agreement, secrets)
        if not ended_early(sa, new):
            sa.children.install(new, self._policy, now, use_outbound=True, replaces=self.spi_in)
            sa.children.supersede(self.spi_in, new.spi_in)
            self._supersede_crossed(sa)
        sa.enqueue(DeleteChild(self.spi_in))

    def refused(self, sa: IkeSa, error: PeerRefused, now: float) -> None:
        """The peer does not go on: the old one stays, until another attempt."""
        assert self._agreement is not None, "the response comes first"
        sa.context.withdraw_spi(self._agreement.spi_in)
        self._refused(sa, error, now)

    def _give_way(self, sa: IkeSa, agreement: Agreement, now: float) -> None:
        """Ours is redundant, the peer's counts: now, or when its key exchanges are done."""
        assert self._policy is not None, "the request comes first"
        old = sa.children.find(self.spi_in)
        if old is not None and old.state is ChildState.REKEYING:
            old.become(ChildState.INSTALLED)
            sa.children.timers.arm(Timer.REKEY_CHILD, now + FOLLOW_UP_S, self.spi_in)
        if agreement.additional_ke:  # nothing is made yet: we just do not go on. RFC 9370 §2.2.4
            sa.context.withdraw_spi(agreement.spi_in)
            return
        new = make_child(sa, agreement)
        if not ended_early(sa, new):
            sa.children.install(new, self._policy, now, use_outbound=False, replaces=self.spi_in)
            sa.enqueue(DeleteChild(new.spi_in))

    def _claim(self, sa: IkeSa) -> None:
        """Ours counts and goes on: the Child SA is being rekeyed still, by us."""
        self._supersede_crossed(sa)
        old = sa.children.find(self.spi_in)
        if old is not None and old.state is ChildState.REKEYED:
            old.become(ChildState.REKEYING)
            old.successor = None

    def _supersede_crossed(self, sa: IkeSa) -> None:
        """What the peer has made or begun is redundant: it deletes it, or does not go on."""
        crossed, self.crossed = self.crossed, None
        if crossed is None:
            return
        sa.drop_awaited(crossed)
        if crossed.is_done:
            sa.children.supersede(crossed.agreement.spi_in, None)

    def _refused(self, sa: IkeSa, error: PeerRefused, now: float) -> None:
        child = sa.children.find(self.spi_in)
        if child is None or child.state is not ChildState.REKEYING:
            return  # deleted or rekeyed by the peer meanwhile. RFC 7296 §2.8.1, §2.25.1
        if error.notify == NotifyType.CHILD_SA_NOT_FOUND:
            # RFC 7296 §2.25: silently deleted here too, and made anew
            sa.context.trace(sa.id, "warning", f"peer has no Child SA {child.sa.spi_out:08x}")
            sa.children.remove(self.spi_in)
            sa.enqueue(CreateChild(child.policy))
            return
        child.become(ChildState.INSTALLED)
        begin_anew(sa, error, now)
        is_routine = error.notify in ROUTINE
        sa.context.trace(
            sa.id,
            "debug" if is_routine else "warning",
            f"rekey of Child SA {self.spi_in:08x} failed ({error}), trying again",
        )
        retry_at = now + (retry_s(sa) if is_routine else REFUSED_RETRY_S)
        sa.children.timers.arm(Timer.REKEY_CHILD, retry_at, self.spi_in)


def answer(sa: IkeSa, message: Message, notify: Notify, now: float) -> list[Payload]:
    """Answer the peer's rekey of the Child SA that its REKEY_SA (``notify``) names.

    Raises:
        Refusal: no; the IKE SA lives on.
    """
    old = sa.children.find_outbound(notify.protocol, int.from_bytes(notify.spi, "big"))
    exchange = under_way(sa)
    if old is None and isinstance(exchange, CreateChild | RekeyChild):
        raise TemporaryFailure("our own exchange may be about this Child SA")
    if old is None or old.successor is not None or old.state is ChildState.REKEYED:
        name = f"{name_of(ProtocolId, notify.protocol)} SPI {notify.spi.hex()}"
        raise ChildSaNotFound(f"no Child SA with outbound {name}", notify.protocol, notify.spi)
    if old.state is ChildState.DELETING:
        raise TemporaryFailure("the Child SA is being deleted")
    crosses = isinstance(exchange, RekeyChild) and exchange.spi_in == old.sa.spi_in
    if crosses and isinstance(sa.exchange, FollowUp):
        raise TemporaryFailure("we rekey it, and have all nonces")
    n_i, n_r = nonce_of(message), sa.context.random(NONCE_LENGTH)
    policy = replace(old.policy, ts_local=old.sa.ts_local, ts_peer=old.sa.ts_peer)
    agreement, security, behind = answer_child(sa, policy, message, n_i, n_r, in_ike_auth=False)
    if (earlier := _begun_rekey(sa, old.sa.spi_in)) is not None:
        sa.drop_awaited(earlier)
    begun = BegunChild(agreement, old.policy, old.sa.spi_in)
    link = begin(sa, begun, agreement.additional_ke, now)
    if crosses and isinstance(exchange, RekeyChild):
        exchange.crossed = begun
    return [*security, Nonce(n_r), *behind, *link]


def _begun_rekey(sa: IkeSa, spi_in: int) -> BegunChild | None:
    """The rekey of a Child SA that the peer has begun and not finished."""
    begun = (awaited.begun for awaited in sa.awaited.values())
    children = (each for each in begun if isinstance(each, BegunChild))
    return next((each for each in children if each.is_rekey_of(spi_in)), None)


def begin_anew(sa: IkeSa, error: PeerRefused, now: float) -> None:
    """A peer that rekeys nothing in this IKE SA gets a new one. RFC 7296 §4."""
    if error.notify == NotifyType.NO_ADDITIONAL_SAS and sa.is_originator:
        sa.timers.arm(Timer.REAUTHENTICATE, now)
