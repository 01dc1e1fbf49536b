"""A further Child SA by CREATE_CHILD_SA, in both roles, and what a rekey shares with it.

RFC 7296 §1.3.1, §2.9, §2.17.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.errors import (
    InvalidSyntax,
    NoAdditionalSas,
    PeerRefused,
    StateNotFound,
)
from tunnelwrap.iana import ExchangeType, NotifyType
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.child_setup import (
    Agreement,
    ChildOffer,
    answer_child,
    make_child,
    selectors_of,
)
from tunnelwrap.ike.children import Child
from tunnelwrap.ike.collision import Nonces
from tunnelwrap.ike.follow_up import expect, follow
from tunnelwrap.ike.negotiate import (
    ke_methods,
)
from tunnelwrap.ike.outputs import ChildRefused
from tunnelwrap.ike.pairs import as_pair
from tunnelwrap.ike.policy import ChildPolicy
from tunnelwrap.ike.rules import ChildState, check_occurrence
from tunnelwrap.ike.sa import Begun, IkeSa, Next
from tunnelwrap.ike.sa_init import NONCE_LENGTH, refuse_errors
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Nonce, Payload

RETRY_S: Final = 5.0  # after TEMPORARY_FAILURE. RFC 7296 §2.25
RETRY_JITTER: Final = 0.6  # two peers that refuse each other must not meet again
ROUTINE: Final = frozenset({NotifyType.TEMPORARY_FAILURE, NotifyType.STATE_NOT_FOUND})


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
            return self.offer.accept(message, self._nonce, nonce_of(message))
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
        if not ended_early(sa, child):
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
            sa.children.want(self._policy, now + retry_s(sa))
        elif pair is not None:
            sa.enqueue(CreateChild(pair))
        else:
            reason = f"{error}; we asked for {self._ask.offer}"
            sa.context.emit(ChildRefused(sa.id, sa.chosen_policy.name, reason))


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


def answer(sa: IkeSa, message: Message, now: float) -> list[Payload]:
    """Answer a request for a further Child SA.

    Raises:
        Refusal: no; the IKE SA lives on.
    """
    if len(sa.children) + len(sa.awaited) >= sa.context.limits.child_sas:
        raise NoAdditionalSas(f"there are {len(sa.children)} Child SAs already")
    n_i, n_r, policy = nonce_of(message), sa.context.random(NONCE_LENGTH), sa.chosen_policy.child
    agreement, security, behind = answer_child(sa, policy, message, n_i, n_r, in_ike_auth=False)
    link = begin(sa, BegunChild(agreement, policy, None), agreement.additional_ke, now)
    return [*security, Nonce(n_r), *behind, *link]


def begin(sa: IkeSa, begun: Begun, methods: Sequence[int], now: float) -> list[Payload]:
    """Make it at once, or wait for the key exchanges that must come before.

    Returns:
        What goes into the response: what belongs to the new SA, or the link.
    """
    if methods:
        return [expect(sa, begun, methods, now)]
    return begun.finish(sa, (), now)


def pair_for(sa: IkeSa, policy: ChildPolicy, error: PeerRefused) -> ChildPolicy | None:
    """What to ask for after SINGLE_PAIR_REQUIRED; None where we cannot know. RFC 7296 §2.9."""
    if error.notify != NotifyType.SINGLE_PAIR_REQUIRED:
        return None
    return as_pair(policy, selectors_of(sa.local_addresses()), selectors_of(sa.peer_addresses()))


def ask_for_more(sa: IkeSa, rest: ChildPolicy | None) -> None:
    """The peer narrowed, and says that it could make the rest in a separate Child SA."""
    if rest is not None:
        sa.enqueue(CreateChild(rest))


def _may_be_rekeyed(child: Child | None) -> bool:
    return child is not None and child.state in {ChildState.INSTALLED, ChildState.REKEYING}


def ended_early(sa: IkeSa, child: ChildSa) -> bool:
    """True where the peer's delete of a Child SA has overtaken the response that makes it."""
    if (child.protocol, child.spi_out) not in sa.ended_early:
        return False
    sa.context.withdraw_spi(child.spi_in)
    return True


def retry_s(sa: IkeSa) -> float:
    """How many seconds to wait after TEMPORARY_FAILURE; no two peers take the same."""
    return sa.context.jitter(RETRY_S, RETRY_JITTER)


def nonce_of(message: Message) -> bytes:
    """The nonce of a message.

    Raises:
        InvalidSyntax: it has none.
    """
    nonce = message.find(Nonce)
    if nonce is None:
        raise InvalidSyntax(f"{message} lacks a nonce")
    return nonce.data
