"""Rekey of the IKE SA by CREATE_CHILD_SA, in both roles; also when both ends begin at once.

RFC 7296 §1.3.2, §2.8.2, §2.18, §2.25.2; crossing exchanges are decided by ``ike.collision``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from tunnelwrap.crypto.ke import LocalKey, initiate
from tunnelwrap.crypto.keymat import ike_keys, skeyseed_rekey
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import IkeSuite
from tunnelwrap.errors import (
    InvalidKe,
    InvalidSyntax,
    PeerRefused,
    TemporaryFailure,
)
from tunnelwrap.iana import ExchangeType, KeMethod, NotifyType, ProtocolId, TransformType, name_of
from tunnelwrap.ike import crash, resumption
from tunnelwrap.ike.additional_ke import respond_with, shared_secret
from tunnelwrap.ike.collision import Nonces, ours_is_redundant
from tunnelwrap.ike.follow_up import FOLLOW_UP_S, FollowUp, follow, under_way
from tunnelwrap.ike.informational import CloseIke, DeleteChild
from tunnelwrap.ike.negotiate import (
    choose_proposal,
    is_choice_of,
    ke_methods,
    numbered,
    transform_id,
)
from tunnelwrap.ike.new_child import ROUTINE, CreateChild, begin, nonce_of, retry_s
from tunnelwrap.ike.outputs import Rekeyed
from tunnelwrap.ike.rekey_child import REFUSED_RETRY_S, RekeyChild, begin_anew
from tunnelwrap.ike.rules import IkeState, check_occurrence
from tunnelwrap.ike.sa import IkeSa, Next
from tunnelwrap.ike.sa_init import NONCE_LENGTH, refuse_errors
from tunnelwrap.ike.timers import Timer
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import KeyExchange, Nonce, Payload
from tunnelwrap.wire.proposal import Proposal, SaPayload

SUPERSEDED_S: Final = 150.0  # what the peer should delete, and does not, goes after this: it may
# repeat the request, whose response was lost, for two minutes


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

    def _is_redundant(self, sa: IkeSa, draft: IkeDraft) -> bool:
        if self.crossed is None:
            return False
        return not sa.is_primary or ours_is_redundant(draft.nonces, self.crossed.nonces)

    def _give_way(self, sa: IkeSa, draft: IkeDraft, now: float) -> None:
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

    def _accept(self, sa: IkeSa, message: Message) -> IkeDraft:
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
            Nonces(self._nonce, nonce_of(message)),
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
            # the peer did not notice that both rekey. RFC 7296 §2.8.2
            adopt(self.crossed.made, now)
            return Next.DONE
        begin_anew(sa, error, now)
        is_routine = error.notify in ROUTINE
        sa.context.trace(
            sa.id,
            "debug" if is_routine else "warning",
            f"rekey of the IKE SA failed ({error}), trying again",
        )
        retry_at = now + (retry_s(sa) if is_routine else REFUSED_RETRY_S)
        sa.timers.arm(Timer.REKEY_IKE, retry_at)
        return Next.DONE


class BegunIke:
    """A rekey of the IKE SA by the peer; ``made`` is the successor, once it is."""

    __slots__ = ("_draft", "_request", "made")

    def __init__(self, draft: IkeDraft, request: Message) -> None:
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


def answer(sa: IkeSa, message: Message, now: float) -> list[Payload]:
    """Answer the peer's rekey of the IKE SA.

    Raises:
        Refusal: no; the IKE SA lives on.
    """
    _check_idle(sa)
    payload, ke, n_i = message.find(SaPayload), message.find(KeyExchange), nonce_of(message)
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
    link = begin(sa, begun, draft.additional_ke, now)
    ours = SaPayload((replace(chosen, spi=spi),))
    return [ours, Nonce(nonces.responder), answered, *link]


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


def settle_before_delete(sa: IkeSa, now: float) -> None:
    """The peer deletes an IKE SA that both rekey: its successor is the one that the peer made."""
    crossed = sa.exchange.crossed if isinstance(sa.exchange, RekeyIke) else None
    if crossed is not None and crossed.made is not None:
        adopt(crossed.made, now)


def _check_idle(sa: IkeSa) -> None:
    """The peer may rekey the IKE SA unless a Child SA is in the way. RFC 7296 §2.25.1.

    Raises:
        TemporaryFailure: one is, or our own rekey has all nonces already.
    """
    if isinstance(under_way(sa), CreateChild | RekeyChild | DeleteChild):
        raise TemporaryFailure("a Child SA is being created, rekeyed or deleted")
    if isinstance(sa.exchange, FollowUp):
        raise TemporaryFailure("we rekey the IKE SA, and have all nonces")


def _begun_ike(sa: IkeSa) -> BegunIke | None:
    """The rekey of the IKE SA that the peer has begun and not finished."""
    begun = (awaited.begun for awaited in sa.awaited.values())
    return next((each for each in begun if isinstance(each, BegunIke)), None)


def _ike_spi(proposal: Proposal) -> bytes:
    if proposal.protocol != ProtocolId.IKE or len(proposal.spi) != 8 or not any(proposal.spi):
        raise InvalidSyntax(f"SPI {proposal.spi.hex()} is none for IKE")
    return proposal.spi
