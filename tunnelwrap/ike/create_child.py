"""CREATE_CHILD_SA in both roles: new Child SA, rekey of a Child SA, rekey of the IKE SA.

RFC 7296 §1.3, §2.8, §2.17, §2.18; crossing exchanges are decided by ``ike.collision``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from tunnelwrap.crypto.ke import LocalKey, initiate
from tunnelwrap.crypto.keymat import ike_keys, skeyseed_rekey
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import IkeSuite
from tunnelwrap.errors import (
    ChildSaNotFound,
    InvalidKe,
    InvalidSyntax,
    NoAdditionalSas,
    PeerRefused,
    StateNotFound,
    TemporaryFailure,
)
from tunnelwrap.iana import ExchangeType, KeMethod, NotifyType, ProtocolId, TransformType, name_of
from tunnelwrap.ike import crash, resumption
from tunnelwrap.ike.additional_ke import respond_with, shared_secret
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.child_setup import (
    Agreement,
    ChildOffer,
    answer_child,
    make_child,
    selectors_of,
)
from tunnelwrap.ike.children import Child
from tunnelwrap.ike.collision import Nonces, ours_is_redundant
from tunnelwrap.ike.follow_up import FOLLOW_UP_S, FollowUp, expect, follow, under_way
from tunnelwrap.ike.informational import CloseIke, DeleteChild
from tunnelwrap.ike.negotiate import (
    choose_proposal,
    is_choice_of,
    ke_methods,
    numbered,
    transform_id,
)
from tunnelwrap.ike.outputs import ChildRefused, Rekeyed
from tunnelwrap.ike.pairs import as_pair
from tunnelwrap.ike.policy import ChildPolicy
from tunnelwrap.ike.rules import ChildState, IkeState, check_occurrence
from tunnelwrap.ike.sa import IkeSa, Next
from tunnelwrap.ike.sa_init import NONCE_LENGTH, refuse_errors
from tunnelwrap.ike.timers import Timer
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import KeyExchange, Nonce, Notify, Payload, TrafficSelectors
from tunnelwrap.wire.proposal import Proposal, SaPayload

RETRY_S: Final = 5.0  # after TEMPORARY_FAILURE. RFC 7296 §2.25
RETRY_JITTER: Final = 0.6  # two peers that refuse each other must not meet again
ROUTINE: Final = frozenset({NotifyType.TEMPORARY_FAILURE, NotifyType.STATE_NOT_FOUND})
REFUSED_RETRY_S: Final = 60.0  # after any other refusal of a rekey: until the lifetime is over
SUPERSEDED_S: Final = 150.0  # what the peer should delete, and does not, goes after this: it may
# repeat the request, whose response was lost, for two minutes


class Ask:
    """The middle of every CREATE_CHILD_SA of ours for a Child SA: offer, nonce, other KE method."""

    __slots__ = ("_method", "_nonce", "_replaces", "offer")

    def __init__(self, replaces: ChildSa | None = None) -> None:
        self._replaces = replaces
        self._method: int | None = None  # that the peer asked for by INVALID_KE_PAYLOAD
        self._nonce = b""
        self.offer: ChildOffer | None = None

    def payloads(self, sa: IkeSa, policy: ChildPolicy) -> list[Payload]:
        """SA, Ni, [KEi], TSi, TSr; with KE where the policy has a method (PFS)."""
        methods = ke_methods(policy.proposals)
        method = self._method or (methods[0] if methods else None)
        self._nonce = sa.context.random(NONCE_LENGTH)
        self.offer = ChildOffer(sa, policy, replaces=self._replaces, method=method)
        security, *ke = self.offer.security()
        return [security, Nonce(self._nonce), *ke, *self.offer.selectors()]

    def accept(self, sa: IkeSa, message: Message) -> Agreement:
        """What the response makes of it.

        Raises:
            PeerRefused: there is none.
            InvalidSyntax: the peer has made one that we cannot have.
        """
        assert self.offer is not None, "the request comes first"
        try:
            refuse_errors(message)
            check_occurrence(message)
            return self.offer.accept(message, self._nonce, _nonce_of(message))
        except PeerRefused:
            sa.context.withdraw_spi(self.offer.spi_in)
            raise

    def may_retry(self, policy: ChildPolicy, error: PeerRefused) -> bool:
        """True, once, where the peer only wants another KE method of ours. RFC 7296 §1.3."""
        wanted = int.from_bytes(error.data, "big")
        if (
            error.notify != NotifyType.INVALID_KE_PAYLOAD
            or self._method is not None
            or wanted not in ke_methods(policy.proposals)
        ):
            return False
        self._method = wanted
        return True


class CreateChild:
    """A further Child SA, in an exchange of ours. RFC 7296 §1.3.1."""

    TYPE: ClassVar = ExchangeType.CREATE_CHILD_SA

    __slots__ = ("_agreement", "_ask", "_policy", "_response")

    def __init__(self, policy: ChildPolicy) -> None:
        self._policy = policy
        self._ask = Ask()
        self._agreement: Agreement | None = None
        self._response: Message | None = None

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """SA, Ni, [KEi], TSi, TSr."""
        return self._ask.payloads(sa, self._policy)

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:
        """Install it; or say why there is none.

        Raises:
            InvalidSyntax: the peer has made one that we cannot have.
        """
        try:
            self._response, self._agreement = message, self._ask.accept(sa, message)
        except PeerRefused as error:
            if self._ask.may_retry(self._policy, error):
                return Next.AGAIN
            self._give_up(sa, error, now)
            return Next.DONE
        if self._agreement.additional_ke:
            follow(sa, message, self, self._agreement.additional_ke)
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
        """Install it: all its key exchanges are done."""
        assert self._agreement is not None, "the response comes first"
        child = make_child(sa, self._agreement, secrets)
        if not _ended_early(sa, child):
            sa.children.install(child, self._policy, now, use_outbound=True, replaces=None)
        assert self._ask.offer is not None, "the request comes first"
        assert self._response is not None, "the response comes first"
        ask_for_more(sa, self._ask.offer.left_over(self._response, child))

    def refused(self, sa: IkeSa, error: PeerRefused, now: float) -> None:
        """The peer does not go on: ask again, or say why not."""
        assert self._agreement is not None, "the response comes first"
        sa.context.withdraw_spi(self._agreement.spi_in)
        self._give_up(sa, error, now)

    def _give_up(self, sa: IkeSa, error: PeerRefused, now: float) -> None:
        pair = pair_for(sa, self._policy, error)
        if error.notify in ROUTINE:
            sa.children.want(self._policy, now + _retry_s(sa))
        elif pair is not None:
            sa.enqueue(CreateChild(pair))
        else:
            reason = f"{error}; we asked for {self._ask.offer}"
            sa.context.emit(ChildRefused(sa.id, sa.chosen_policy.name, reason))


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
        if not _ended_early(sa, new):
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
        if not _ended_early(sa, new):
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
        _begin_anew(sa, error, now)
        is_routine = error.notify in ROUTINE
        sa.context.trace(
            sa.id,
            "debug" if is_routine else "warning",
            f"rekey of Child SA {self.spi_in:08x} failed ({error}), trying again",
        )
        retry_at = now + (_retry_s(sa) if is_routine else REFUSED_RETRY_S)
        sa.children.timers.arm(Timer.REKEY_CHILD, retry_at, self.spi_in)


class RekeyIke:
    """The IKE SA gets a successor with new SPIs and keys, in an exchange of ours. RFC 7296 §2.18.

    Args:
        old: the IKE SA that it is for; a queue may move on to a successor, which needs no rekey.
    """

    TYPE: ClassVar = ExchangeType.CREATE_CHILD_SA

    __slots__ = ("_draft", "_key", "_method", "_nonce", "_old", "_spi", "crossed")

    def __init__(self, old: IkeSa) -> None:
        self.crossed: BegunIke | None = None  # the peer's rekey of the same IKE SA
        self._old = old
        self._draft: IkeDraft | None = None
        self._method: int | None = None
        self._nonce = b""
        self._spi = b""
        self._key: LocalKey | None = None

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """SA with our new SPI, Ni, KEi; None when the IKE SA is replaced already."""
        if sa is not self._old or sa.state is not IkeState.ESTABLISHED:
            return None
        proposals = sa.chosen_policy.proposals
        self._spi = sa.context.new_ike_spi()
        self._nonce = sa.context.random(NONCE_LENGTH)
        self.crossed = self.crossed or _begun_ike(sa)
        self._key = initiate(self._method or ke_methods(proposals)[0], sa.context.random)
        return [
            SaPayload(numbered(proposals, self._spi)),
            Nonce(self._nonce),
            KeyExchange(self._key.method, self._key.public),
            *resumption.ask(sa),
        ]

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:
        """Derive the successor and delete this IKE SA; or find out why not.

        Raises:
            InvalidSyntax: the peer has made one that we cannot have.
        """
        try:
            refuse_errors(message)
        except PeerRefused as error:
            return self._refused(sa, error, now)
        check_occurrence(message)
        draft = self._draft = self._accept(sa, message)
        if self._is_redundant(sa, draft):
            self._give_way(sa, draft, now)
            return Next.DONE
        self._supersede_crossed(sa, now)
        if draft.additional_ke:
            follow(sa, message, self, draft.additional_ke)
        else:
            self.finish(sa, message, (), now)
        return Next.DONE

    def finish(self, sa: IkeSa, message: Message, secrets: Sequence[Secret], now: float) -> None:
        """The successor takes over, this IKE SA is deleted: all key exchanges are done."""
        assert self._draft is not None, "the response comes first"
        new = self._draft.complete(sa, secrets)
        crash.take(new, message)
        adopt(new, now)
        crash.renew(new)
        resumption.keep(new, message, now)
        sa.enqueue(CloseIke("rekeyed"))

    def refused(self, sa: IkeSa, error: PeerRefused, now: float) -> None:
        """The peer does not go on: this IKE SA stays, until another attempt."""
        self._refused(sa, error, now)

    def _is_redundant(self, sa: IkeSa, draft: "IkeDraft") -> bool:
        if self.crossed is None:
            return False
        return not sa.is_primary or ours_is_redundant(draft.nonces, self.crossed.nonces)

    def _give_way(self, sa: IkeSa, draft: "IkeDraft", now: float) -> None:
        """Ours is redundant, the peer's counts: now, or when its key exchanges are done."""
        assert self.crossed is not None, "ours is redundant to something"
        if self.crossed.made is not None:
            adopt(self.crossed.made, now)
        elif sa.is_primary:
            sa.timers.arm(Timer.REKEY_IKE, now + FOLLOW_UP_S)
        if draft.additional_ke:  # nothing is made yet: we just do not go on. RFC 9370 §2.2.4
            return
        new = draft.complete(sa, ())
        new.replaces = None
        new.enqueue(CloseIke("redundant after a simultaneous rekey"))

    def _supersede_crossed(self, sa: IkeSa, now: float) -> None:
        """What the peer has made or begun is redundant: it deletes it, or does not go on."""
        crossed, self.crossed = self.crossed, None
        if crossed is None:
            return
        sa.drop_awaited(crossed)
        if crossed.made is not None:
            crossed.made.replaces = None
            crossed.made.timers.arm(Timer.SUPERSEDED, now + SUPERSEDED_S)

    def _accept(self, sa: IkeSa, message: Message) -> "IkeDraft":
        payload = message.find(SaPayload)
        assert self._key is not None, "the request comes first"
        offered = numbered(sa.chosen_policy.proposals, self._spi)
        if payload is None or len(payload.proposals) != 1:
            raise InvalidSyntax("the response to a rekey lacks SA")
        chosen = payload.proposals[0]
        is_asked_for = self._key.method == transform_id(chosen, TransformType.KE)
        if not is_choice_of(chosen, offered) or not is_asked_for:
            raise InvalidSyntax(f"peer chose {chosen}, which was not offered")
        return IkeDraft(
            chosen,
            IkeSuite.from_proposal(chosen),
            self._spi,
            _ike_spi(chosen),
            Nonces(self._nonce, _nonce_of(message)),
            shared_secret(self._key, message),
            is_initiator=True,
        )

    def _refused(self, sa: IkeSa, error: PeerRefused, now: float) -> Next:
        wanted = int.from_bytes(error.data, "big")
        may_retry = self._method is None and wanted in ke_methods(sa.chosen_policy.proposals)
        if error.notify == NotifyType.INVALID_KE_PAYLOAD and may_retry and self.crossed is None:
            self._method = wanted
            return Next.AGAIN
        if self.crossed is not None and self.crossed.made is not None:
            adopt(
                self.crossed.made, now
            )  # the peer did not notice that both rekey. RFC 7296 §2.8.2
            return Next.DONE
        _begin_anew(sa, error, now)
        is_routine = error.notify in ROUTINE
        sa.context.trace(
            sa.id,
            "debug" if is_routine else "warning",
            f"rekey of the IKE SA failed ({error}), trying again",
        )
        retry_at = now + (_retry_s(sa) if is_routine else REFUSED_RETRY_S)
        sa.timers.arm(Timer.REKEY_IKE, retry_at)
        return Next.DONE


def answer(sa: IkeSa, message: Message, now: float) -> list[Payload]:
    """Answer a CREATE_CHILD_SA request of any kind.

    Raises:
        Refusal: no; the IKE SA lives on.
    """
    check_occurrence(message)
    if sa.state is not IkeState.ESTABLISHED:
        raise TemporaryFailure("the IKE SA is being replaced or deleted")
    if message.find(TrafficSelectors) is None:
        return _answer_rekey_ike(sa, message, now)
    if isinstance(under_way(sa), RekeyIke):
        raise TemporaryFailure("the IKE SA is being rekeyed")
    notify = message.notify(NotifyType.REKEY_SA)
    if notify is None:
        return _answer_new_child(sa, message, now)
    return _answer_rekey_child(sa, message, notify, now)


def adopt(new: IkeSa, now: float) -> None:
    """A successor takes over, once; the IKE SA that it replaces only waits to be deleted."""
    old, new.replaces = new.replaces, None
    if old is None:
        return
    old.hand_over(new)
    old.timers.arm(Timer.SUPERSEDED, now + SUPERSEDED_S)
    new.start_lifetime(now)
    resumption.renew(new)
    new.context.emit(
        Rekeyed(new.id, int.from_bytes(new.spi_i, "big"), int.from_bytes(new.spi_r, "big"))
    )


def pair_for(sa: IkeSa, policy: ChildPolicy, error: PeerRefused) -> ChildPolicy | None:
    """What to ask for after SINGLE_PAIR_REQUIRED; None where we cannot know. RFC 7296 §2.9."""
    if error.notify != NotifyType.SINGLE_PAIR_REQUIRED:
        return None
    return as_pair(policy, selectors_of(sa.local_addresses()), selectors_of(sa.peer_addresses()))


def ask_for_more(sa: IkeSa, rest: ChildPolicy | None) -> None:
    """The peer narrowed, and says that it could make the rest in a separate Child SA."""
    if rest is not None:
        sa.enqueue(CreateChild(rest))


def settle_before_delete(sa: IkeSa, now: float) -> None:
    """The peer deletes an IKE SA that both rekey: its successor is the one that the peer made."""
    crossed = sa.exchange.crossed if isinstance(sa.exchange, RekeyIke) else None
    if crossed is not None and crossed.made is not None:
        adopt(crossed.made, now)


class BegunChild:
    """A Child SA that the peer asks for, also in place of another one of ours (``replaces``)."""

    __slots__ = ("_policy", "_replaces", "agreement", "is_done")

    def __init__(self, agreement: Agreement, policy: ChildPolicy, replaces: int | None) -> None:
        self.agreement = agreement
        self._policy = policy
        self._replaces = replaces
        self.is_done = False

    @property
    def nonces(self) -> Nonces:
        """Of its CREATE_CHILD_SA."""
        return Nonces(self.agreement.n_i, self.agreement.n_r)

    def is_rekey_of(self, spi_in: int) -> bool:
        """True where it takes the place of this Child SA."""
        return self._replaces == spi_in

    def finish(self, sa: IkeSa, secrets: Sequence[Secret], now: float) -> list[Payload]:
        """Install it.

        Raises:
            StateNotFound: what it should replace is gone, or replaced by another one.
        """
        replaces = self._replaces
        if replaces is not None and not _may_be_rekeyed(sa.children.find(replaces)):
            raise StateNotFound("the Child SA to rekey is gone meanwhile")
        child = make_child(sa, self.agreement, secrets)
        sa.children.install(
            child, self._policy, now, use_outbound=replaces is None, replaces=replaces
        )
        self.is_done = True
        if replaces is not None:
            sa.children.supersede(replaces, child.spi_in)
        return []

    def drop(self, sa: IkeSa) -> None:
        """The peer does not go on with it."""
        sa.context.withdraw_spi(self.agreement.spi_in)


class BegunIke:
    """A rekey of the IKE SA by the peer; ``made`` is the successor, once it is."""

    __slots__ = ("_draft", "_request", "made")

    def __init__(self, draft: "IkeDraft", request: Message) -> None:
        self._draft = draft
        self._request = request
        self.made: IkeSa | None = None

    @property
    def nonces(self) -> Nonces:
        """Of its CREATE_CHILD_SA."""
        return self._draft.nonces

    def finish(self, sa: IkeSa, secrets: Sequence[Secret], now: float) -> list[Payload]:
        """Make the successor; it takes over, unless we rekey as well. Gives what belongs to it.

        Raises:
            TemporaryFailure: a Child SA is in the way meanwhile.
        """
        _check_idle(sa)
        self.made = self._draft.complete(sa, secrets)
        if isinstance(sa.exchange, RekeyIke):
            sa.exchange.crossed = self
        else:
            adopt(self.made, now)
        return [*crash.offer(self.made), *resumption.give(self.made, self._request, now)]

    def drop(self, sa: IkeSa) -> None:
        """The peer does not go on with it: nothing is made yet."""


@dataclass(frozen=True, slots=True)
class IkeDraft:
    """An IKE SA that is agreed; its keys follow, once every key exchange is done."""

    chosen: Proposal
    suite: IkeSuite
    spi_i: bytes
    spi_r: bytes
    nonces: Nonces
    shared: Secret
    is_initiator: bool

    @property
    def additional_ke(self) -> tuple[int, ...]:
        """The methods of the key exchanges that follow."""
        return tuple(method for _, method in self.suite.additional_ke)

    def complete(self, old: IkeSa, additional: Sequence[Secret]) -> IkeSa:
        """The successor of ``old``, with its keys. RFC 7296 §2.18, RFC 9370 §2.2.4."""
        old_suite, old_keys, _ = old.agreed
        nonces = (self.nonces.initiator, self.nonces.responder)
        seed = skeyseed_rekey(
            old_suite.prf_function(), old_keys.sk_d, self.shared, *nonces, additional
        )
        new = old.successor(self.spi_i, self.spi_r, is_initiator=self.is_initiator)
        new.chosen = self.chosen
        new.take_keys(self.suite, ike_keys(self.suite, seed, *nonces, self.spi_i, self.spi_r))
        return new


def _answer_new_child(sa: IkeSa, message: Message, now: float) -> list[Payload]:
    if len(sa.children) + len(sa.awaited) >= sa.context.limits.child_sas:
        raise NoAdditionalSas(f"there are {len(sa.children)} Child SAs already")
    n_i, n_r, policy = _nonce_of(message), sa.context.random(NONCE_LENGTH), sa.chosen_policy.child
    agreement, security, behind = answer_child(sa, policy, message, n_i, n_r, in_ike_auth=False)
    link = _begin(sa, BegunChild(agreement, policy, None), agreement.additional_ke, now)
    return [*security, Nonce(n_r), *behind, *link]


def _begin(
    sa: IkeSa, begun: BegunChild | BegunIke, methods: Sequence[int], now: float
) -> list[Payload]:
    """Make it at once, or wait for the key exchanges that must come before.

    Returns:
        What goes into the response: what belongs to the new SA, or the link.
    """
    if methods:
        return [expect(sa, begun, methods, now)]
    return begun.finish(sa, (), now)


def _answer_rekey_child(sa: IkeSa, message: Message, notify: Notify, now: float) -> list[Payload]:
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
    n_i, n_r = _nonce_of(message), sa.context.random(NONCE_LENGTH)
    policy = replace(old.policy, ts_local=old.sa.ts_local, ts_peer=old.sa.ts_peer)
    agreement, security, behind = answer_child(sa, policy, message, n_i, n_r, in_ike_auth=False)
    if (earlier := _begun_rekey(sa, old.sa.spi_in)) is not None:
        sa.drop_awaited(earlier)
    begun = BegunChild(agreement, old.policy, old.sa.spi_in)
    link = _begin(sa, begun, agreement.additional_ke, now)
    if crosses and isinstance(exchange, RekeyChild):
        exchange.crossed = begun
    return [*security, Nonce(n_r), *behind, *link]


def _answer_rekey_ike(sa: IkeSa, message: Message, now: float) -> list[Payload]:
    _check_idle(sa)
    payload, ke, n_i = message.find(SaPayload), message.find(KeyExchange), _nonce_of(message)
    if payload is None or ke is None:
        raise InvalidSyntax("a rekey of the IKE SA needs SA and KE")
    chosen = choose_proposal(payload.proposals, sa.chosen_policy.proposals)
    suite = IkeSuite.from_proposal(chosen)
    if ke.method != suite.ke:
        raise InvalidKe(f"KE payload has {name_of(KeMethod, ke.method)}", suite.ke)
    answered, shared = respond_with(suite.ke, message, sa.context.random)
    spi, nonces = sa.context.new_ike_spi(), Nonces(n_i, sa.context.random(NONCE_LENGTH))
    draft = IkeDraft(chosen, suite, _ike_spi(chosen), spi, nonces, shared, is_initiator=False)
    if (earlier := _begun_ike(sa)) is not None:
        sa.drop_awaited(earlier)
    begun = BegunIke(draft, message)
    if isinstance(sa.exchange, RekeyIke):
        sa.exchange.crossed = begun
    link = _begin(sa, begun, draft.additional_ke, now)
    ours = SaPayload((replace(chosen, spi=spi),))
    return [ours, Nonce(nonces.responder), answered, *link]


def _check_idle(sa: IkeSa) -> None:
    """The peer may rekey the IKE SA unless a Child SA is in the way. RFC 7296 §2.25.1.

    Raises:
        TemporaryFailure: one is, or our own rekey has all nonces already.
    """
    if isinstance(under_way(sa), CreateChild | RekeyChild | DeleteChild):
        raise TemporaryFailure("a Child SA is being created, rekeyed or deleted")
    if isinstance(sa.exchange, FollowUp):
        raise TemporaryFailure("we rekey the IKE SA, and have all nonces")


def _may_be_rekeyed(child: Child | None) -> bool:
    return child is not None and child.state in {ChildState.INSTALLED, ChildState.REKEYING}


def _begun_rekey(sa: IkeSa, spi_in: int) -> BegunChild | None:
    """The rekey of a Child SA that the peer has begun and not finished."""
    begun = (awaited.begun for awaited in sa.awaited.values())
    children = (each for each in begun if isinstance(each, BegunChild))
    return next((each for each in children if each.is_rekey_of(spi_in)), None)


def _begun_ike(sa: IkeSa) -> BegunIke | None:
    """The rekey of the IKE SA that the peer has begun and not finished."""
    begun = (awaited.begun for awaited in sa.awaited.values())
    return next((each for each in begun if isinstance(each, BegunIke)), None)


def _ended_early(sa: IkeSa, child: ChildSa) -> bool:
    """True where the peer's delete of a Child SA has overtaken the response that makes it."""
    if (child.protocol, child.spi_out) not in sa.ended_early:
        return False
    sa.context.withdraw_spi(child.spi_in)
    return True


def _begin_anew(sa: IkeSa, error: PeerRefused, now: float) -> None:
    """A peer that rekeys nothing in this IKE SA gets a new one. RFC 7296 §4."""
    if error.notify == NotifyType.NO_ADDITIONAL_SAS and sa.is_originator:
        sa.timers.arm(Timer.REAUTHENTICATE, now)


def _retry_s(sa: IkeSa) -> float:
    return sa.context.jitter(RETRY_S, RETRY_JITTER)


def _nonce_of(message: Message) -> bytes:
    nonce = message.find(Nonce)
    if nonce is None:
        raise InvalidSyntax(f"{message} lacks a nonce")
    return nonce.data


def _ike_spi(proposal: Proposal) -> bytes:
    if proposal.protocol != ProtocolId.IKE or len(proposal.spi) != 8 or not any(proposal.spi):
        raise InvalidSyntax(f"SPI {proposal.spi.hex()} is none for IKE")
    return proposal.spi
