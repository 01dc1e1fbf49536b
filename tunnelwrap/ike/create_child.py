"""CREATE_CHILD_SA in both roles: new Child SA, rekey of a Child SA, rekey of the IKE SA.

RFC 7296 §1.3, §2.8, §2.17, §2.18; crossing exchanges are decided by ``ike.collision``.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final

from tunnelwrap.crypto.ke import LocalKey, initiate, respond
from tunnelwrap.crypto.keymat import ike_keys, skeyseed_rekey
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import IkeSuite
from tunnelwrap.errors import (
    ChildSaNotFound,
    InvalidKe,
    InvalidSyntax,
    Malformed,
    NoAdditionalSas,
    PeerRefused,
    TemporaryFailure,
)
from tunnelwrap.iana import ExchangeType, KeMethod, NotifyType, ProtocolId, TransformType, name_of
from tunnelwrap.ike import crash, resumption
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.child_setup import ChildOffer, answer_child, selectors_of
from tunnelwrap.ike.collision import Nonces, ours_is_redundant
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
REFUSED_RETRY_S: Final = 60.0  # after any other refusal of a rekey: until the lifetime is over
SUPERSEDED_S: Final = 30.0  # what the peer should delete, and does not, goes after this


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

    def accept(self, sa: IkeSa, message: Message) -> tuple[ChildSa, Nonces]:
        """The Child SA that the response makes of it.

        Raises:
            PeerRefused: there is none.
            InvalidSyntax: the peer has made one that we cannot have.
        """
        assert self.offer is not None, "the request comes first"
        try:
            refuse_errors(message)
            check_occurrence(message)
            nonces = Nonces(self._nonce, _nonce_of(message))
            return self.offer.accept(sa, message, nonces.initiator, nonces.responder), nonces
        except PeerRefused:
            sa.context.release_spi(self.offer.spi_in)
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

    __slots__ = ("_ask", "_policy")

    def __init__(self, policy: ChildPolicy) -> None:
        self._policy = policy
        self._ask = Ask()

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """SA, Ni, [KEi], TSi, TSr."""
        return self._ask.payloads(sa, self._policy)

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:
        """Install it; or say why there is none.

        Raises:
            InvalidSyntax: the peer has made one that we cannot have.
        """
        try:
            child, _ = self._ask.accept(sa, message)
        except PeerRefused as error:
            if self._ask.may_retry(self._policy, error):
                return Next.AGAIN
            pair = pair_for(sa, self._policy, error)
            if error.notify == NotifyType.TEMPORARY_FAILURE:
                sa.children.want(self._policy, now + _retry_s(sa))
            elif pair is not None:
                sa.enqueue(CreateChild(pair))
            else:
                reason = f"{error}; we asked for {self._ask.offer}"
                sa.context.emit(ChildRefused(sa.id, sa.chosen_policy.name, reason))
            return Next.DONE
        if not _ended_early(sa, child):
            sa.children.install(child, self._policy, now, use_outbound=True, replaces=None)
        assert self._ask.offer is not None, "the request comes first"
        ask_for_more(sa, self._ask.offer.left_over(message, child))
        return Next.DONE


class RekeyChild:
    """A Child SA gets a successor with new keys, in an exchange of ours. RFC 7296 §1.3.3."""

    TYPE: ClassVar = ExchangeType.CREATE_CHILD_SA

    __slots__ = ("_ask", "_policy", "crossed", "spi_in")

    def __init__(self, spi_in: int) -> None:
        self.spi_in = spi_in
        self.crossed: tuple[Nonces, int] | None = None  # the peer's rekey of the same Child SA
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
        spi = self.spi_in.to_bytes(4, "big")
        return [
            Notify.of(NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=spi),
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
            new, nonces = self._ask.accept(sa, message)
        except PeerRefused as error:
            if self._ask.may_retry(self._policy, error):
                return Next.AGAIN
            self._refused(sa, error, now)
            return Next.DONE
        if _ended_early(sa, new):
            sa.enqueue(DeleteChild(self.spi_in))
            return Next.DONE
        is_redundant = self.crossed is not None and ours_is_redundant(nonces, self.crossed[0])
        sa.children.install(
            new, self._policy, now, use_outbound=not is_redundant, replaces=self.spi_in
        )
        if is_redundant:
            sa.enqueue(DeleteChild(new.spi_in))
            return Next.DONE
        sa.children.supersede(self.spi_in, new.spi_in)
        if self.crossed is not None:
            sa.children.supersede(self.crossed[1], None)  # the peer deletes it
        sa.enqueue(DeleteChild(self.spi_in))
        return Next.DONE

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
        is_routine = error.notify == NotifyType.TEMPORARY_FAILURE
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

    __slots__ = ("_key", "_method", "_nonce", "_old", "_spi", "crossed")

    def __init__(self, old: IkeSa) -> None:
        self.crossed: tuple[Nonces, IkeSa] | None = None  # the peer's rekey of the same IKE SA
        self._old = old
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
        new = self._derive(sa, message)
        crash.take(new, message)
        theirs = self.crossed[1] if self.crossed is not None else None
        if self._is_redundant(sa, message):
            if theirs is not None:
                adopt(theirs, now)
            new.replaces = None
            new.enqueue(CloseIke("redundant after a simultaneous rekey"))
            return Next.DONE
        adopt(new, now)
        crash.renew(new)
        resumption.keep(new, message, now)
        sa.enqueue(CloseIke("rekeyed"))
        if theirs is not None:  # the peer deletes it
            theirs.replaces = None
            theirs.timers.arm(Timer.SUPERSEDED, now + SUPERSEDED_S)
        return Next.DONE

    def _is_redundant(self, sa: IkeSa, message: Message) -> bool:
        if self.crossed is None:
            return False
        ours = Nonces(self._nonce, _nonce_of(message))
        return not sa.is_primary or ours_is_redundant(ours, self.crossed[0])

    def _derive(self, sa: IkeSa, message: Message) -> IkeSa:
        payload, ke = message.find(SaPayload), message.find(KeyExchange)
        assert self._key is not None, "the request comes first"
        offered = numbered(sa.chosen_policy.proposals, self._spi)
        if payload is None or len(payload.proposals) != 1 or ke is None:
            raise InvalidSyntax("the response to a rekey lacks SA or KE")
        chosen = payload.proposals[0]
        is_asked_for = ke.method == self._key.method == transform_id(chosen, TransformType.KE)
        if not is_choice_of(chosen, offered) or not is_asked_for:
            raise InvalidSyntax(f"peer chose {chosen}, which was not offered")
        try:
            shared = self._key.shared(ke.data)
        except Malformed as error:
            raise InvalidSyntax(str(error)) from error
        new = sa.successor(self._spi, _ike_spi(chosen), is_initiator=True)
        _install_rekeyed(sa, new, chosen, (self._nonce, _nonce_of(message)), shared)
        return new

    def _refused(self, sa: IkeSa, error: PeerRefused, now: float) -> Next:
        wanted = int.from_bytes(error.data, "big")
        may_retry = self._method is None and wanted in ke_methods(sa.chosen_policy.proposals)
        if error.notify == NotifyType.INVALID_KE_PAYLOAD and may_retry and self.crossed is None:
            self._method = wanted
            return Next.AGAIN
        if self.crossed is not None:  # the peer did not notice that both rekey. RFC 7296 §2.8.2
            adopt(self.crossed[1], now)
            return Next.DONE
        _begin_anew(sa, error, now)
        is_routine = error.notify == NotifyType.TEMPORARY_FAILURE
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
    if isinstance(sa.exchange, RekeyIke):
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
    if isinstance(sa.exchange, RekeyIke) and sa.exchange.crossed is not None:
        adopt(sa.exchange.crossed[1], now)


def _answer_new_child(sa: IkeSa, message: Message, now: float) -> list[Payload]:
    if len(sa.children) >= sa.context.limits.child_sas:
        raise NoAdditionalSas(f"there are {len(sa.children)} Child SAs already")
    n_i, n_r, policy = _nonce_of(message), sa.context.random(NONCE_LENGTH), sa.chosen_policy.child
    child, security, behind = answer_child(sa, policy, message, n_i, n_r, in_ike_auth=False)
    sa.children.install(child, policy, now, use_outbound=True, replaces=None)
    return [*security, Nonce(n_r), *behind]


def _answer_rekey_child(sa: IkeSa, message: Message, notify: Notify, now: float) -> list[Payload]:
    old = sa.children.find_outbound(int.from_bytes(notify.spi, "big"))
    if old is None and isinstance(sa.exchange, CreateChild | RekeyChild):
        raise TemporaryFailure("our own exchange may be about this Child SA")
    if old is None or old.successor is not None or old.state is ChildState.REKEYED:
        raise ChildSaNotFound(f"no Child SA with outbound SPI {notify.spi.hex()}", notify.spi)
    if old.state is ChildState.DELETING:
        raise TemporaryFailure("the Child SA is being deleted")
    n_i, n_r = _nonce_of(message), sa.context.random(NONCE_LENGTH)
    policy = replace(old.policy, ts_local=old.sa.ts_local, ts_peer=old.sa.ts_peer)
    child, security, behind = answer_child(sa, policy, message, n_i, n_r, in_ike_auth=False)
    sa.children.install(child, old.policy, now, use_outbound=False, replaces=old.sa.spi_in)
    sa.children.supersede(old.sa.spi_in, child.spi_in)
    exchange = sa.exchange
    if isinstance(exchange, RekeyChild) and exchange.spi_in == old.sa.spi_in:
        exchange.crossed = (Nonces(n_i, n_r), child.spi_in)
    return [*security, Nonce(n_r), *behind]


def _answer_rekey_ike(sa: IkeSa, message: Message, now: float) -> list[Payload]:
    if isinstance(sa.exchange, CreateChild | RekeyChild | DeleteChild):  # RFC 7296 §2.25.1
        raise TemporaryFailure("a Child SA is being created, rekeyed or deleted")
    payload, ke, n_i = message.find(SaPayload), message.find(KeyExchange), _nonce_of(message)
    if payload is None or ke is None:
        raise InvalidSyntax("a rekey of the IKE SA needs SA and KE")
    chosen = choose_proposal(payload.proposals, sa.chosen_policy.proposals)
    suite = IkeSuite.from_proposal(chosen)
    if ke.method != suite.ke:
        raise InvalidKe(f"KE payload has {name_of(KeMethod, ke.method)}", suite.ke)
    try:
        public, shared = respond(suite.ke, ke.data, sa.context.random)
    except Malformed as error:
        raise InvalidSyntax(str(error)) from error
    n_r, spi = sa.context.random(NONCE_LENGTH), sa.context.new_ike_spi()
    new = sa.successor(_ike_spi(chosen), spi, is_initiator=False)
    _install_rekeyed(sa, new, chosen, (n_i, n_r), shared)
    if isinstance(sa.exchange, RekeyIke):
        sa.exchange.crossed = (Nonces(n_i, n_r), new)
    else:
        adopt(new, now)
    status = [*crash.offer(new), *resumption.give(new, message, now)]
    security = SaPayload((replace(chosen, spi=spi),))
    return [security, Nonce(n_r), KeyExchange(suite.ke, public), *status]


def _install_rekeyed(
    old: IkeSa, new: IkeSa, chosen: Proposal, nonces: tuple[bytes, bytes], shared: Secret
) -> None:
    old_suite, old_keys, _ = old.agreed
    suite = IkeSuite.from_proposal(chosen)
    seed = skeyseed_rekey(old_suite.prf_function(), old_keys.sk_d, shared, *nonces)
    new.chosen = chosen
    new.take_keys(suite, ike_keys(suite, seed, *nonces, new.spi_i, new.spi_r))


def _ended_early(sa: IkeSa, child: ChildSa) -> bool:
    """True where the peer's delete of a Child SA has overtaken the response that makes it."""
    if child.spi_out not in sa.ended_early:
        return False
    sa.context.release_spi(child.spi_in)
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
