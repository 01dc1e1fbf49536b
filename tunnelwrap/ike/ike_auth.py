"""IKE_AUTH in both roles: AUTH, configuration payload, first Child SA. RFC 7296 §1.2, §2.15, §2.19.

As initiator, ``IkeAuth`` asks, ``_verify`` judges the responder, ``_begin`` takes what it gives.
As responder, ``answer`` finds out who it is and judges the proof, ``welcome`` lets in who has
proved itself, and ``resume`` gives what the first request asked for. In between the answer may
wait for a lease: ``welcome`` gives None, and ``resume`` goes on when the shell has answered.

Where there are several rounds (EAP, RFC 7296 §2.16) they stand between finding out and welcoming:
``on_response`` gives AGAIN and ``answer`` gives the payloads of the next round, until there is an
AUTH payload to judge. Neither ``_begin`` nor ``welcome`` cares in which message that came.
"""

from collections.abc import Sequence
from typing import ClassVar

from tunnelwrap.auth.identity import Identity
from tunnelwrap.errors import (
    AuthenticationFailed,
    FailedCpRequired,
    InvalidSyntax,
    PeerRefused,
    Refusal,
)
from tunnelwrap.iana import (
    CertEncoding,
    CfgType,
    ExchangeType,
    NotifyType,
    PayloadType,
    name_of,
)
from tunnelwrap.ike import childless, crash, ppk, reauthentication, redirect, resumption
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.child_setup import ChildOffer, answer_child, make_child
from tunnelwrap.ike.configuration import lease_of, reply_of, request_of, requested
from tunnelwrap.ike.intermediate import check_complete
from tunnelwrap.ike.negotiate import is_allowed
from tunnelwrap.ike.new_child import CreateChild, ask_for_more, pair_for
from tunnelwrap.ike.outputs import AskLease, ChildRefused, Established, Lease
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.ike.ppk import PpkOffer
from tunnelwrap.ike.proof import accepts, is_acceptable, judge, prove
from tunnelwrap.ike.rules import check_occurrence
from tunnelwrap.ike.sa import IkeSa, Next
from tunnelwrap.ike.uniqueness import (
    admit,
    honour,
    inherited_lease,
    initial_contact,
    is_replacing,
    replace_others,
    switch_later,
)
from tunnelwrap.ike.window import RequestWindow
from tunnelwrap.path import IpAddress
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import (
    Auth,
    Certificate,
    CertificateRequest,
    Configuration,
    IdPayload,
    Notify,
    Payload,
)
from tunnelwrap.wire.proposal import SaPayload


class IkeAuth:
    """IKE_AUTH as initiator."""

    TYPE: ClassVar = ExchangeType.IKE_AUTH

    __slots__ = ("_offer", "_ppk")

    def __init__(self) -> None:
        self._offer: ChildOffer | None = None
        self._ppk = PpkOffer()

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """IDi, certificates, AUTH, configuration, and the first Child SA."""
        policy = sa.chosen_policy
        identity = _id_payload(PayloadType.ID_I, policy.local.identity)
        certificates, auth, ppk_notifies = self._ppk.prove(sa, identity)
        if not childless.begins_so(sa):
            self._offer = ChildOffer(sa, policy.child, replaces=None, method=None)
        wanted = sa.resumes.id_r if sa.resumes else policy.peer.identity.exact
        return [
            identity,
            *certificates,
            *(() if sa.resumes else _certificate_request(policy)),
            *([_id_payload(PayloadType.ID_R, wanted)] if wanted else []),
            auth,
            *crash.offer(sa),
            *initial_contact(sa),
            *resumption.ask(sa),
            *request_of(policy, _held_addresses(sa)),
            *(self._offer.security() if self._offer else ()),
            *(self._offer.selectors() if self._offer else ()),
            *ppk_notifies,
        ]

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:
        """Judge the responder; take the configuration and the Child SA.

        Raises:
            PeerRefused: the responder did not accept us.
            AuthenticationFailed: we do not accept the responder.
            InvalidSyntax: its answer is none to what we asked for.
        """
        auth, identity = message.find(Auth), _identity_of(message, PayloadType.ID_R)
        if auth is None or identity is None:
            raise _refusal(message)
        check_occurrence(message)
        self._verify(sa, identity, auth, message)
        return self._begin(sa, message, now)

    def _verify(self, sa: IkeSa, identity: IdPayload, auth: Auth, message: Message) -> None:
        """Judge who the responder is, and that it is."""
        policy = sa.chosen_policy
        sa.claimed = Identity(identity.id_type, identity.data)
        if not is_acceptable(policy.peer, sa.claimed):
            raise AuthenticationFailed(f"the peer is {sa.claimed}, expected {policy.peer.identity}")
        resumption.check_responder(sa, sa.claimed)
        self._ppk.settle(sa, message)
        judge(sa, policy.peer, identity, auth, message.all(Certificate))
        sa.peer_identity = sa.claimed

    def _begin(self, sa: IkeSa, message: Message, now: float) -> Next:
        """Both are authenticated: take the configuration and the Child SA, or go elsewhere."""
        honour(sa, message)
        crash.take(sa, message)
        configuration = message.find(Configuration)
        if configuration is not None and configuration.cfg_type == CfgType.REPLY:
            sa.lease_local = lease_of(configuration)
        if self._is_sent_away(sa, message, now):
            return Next.DONE
        child = self._child_of(sa, self._offer, message) if self._offer is not None else None
        sa.establish(now)
        reauthentication.schedule(sa, now)
        reauthentication.obey(sa, message, now)
        resumption.keep(sa, message, now)
        announce(sa, sa.lease_local)
        self._begin_children(sa, child, message, now)
        reauthentication.take_over(sa)
        return Next.DONE

    def _is_sent_away(self, sa: IkeSa, message: Message, now: float) -> bool:
        """RFC 5685 §6: both are authenticated, and the IKE SA is there to be deleted."""
        if message.find(SaPayload) is not None or message.notify(NotifyType.REDIRECT) is None:
            return False
        if self._offer is not None:
            sa.context.withdraw_spi(self._offer.spi_in)
        sa.establish(now)
        if not redirect.is_auth_redirect(sa, message):
            raise InvalidSyntax("a redirect that was not asked for")
        return True

    def _child_of(
        self, sa: IkeSa, offer: ChildOffer, message: Message
    ) -> ChildSa | PeerRefused | InvalidSyntax:
        """The first Child SA, or why there is none."""
        assert sa.handshake is not None, "IKE_SA_INIT comes first"
        if message.find(SaPayload) is None:
            sa.context.withdraw_spi(offer.spi_in)
            return _refusal(message)
        return make_child(sa, offer.accept(message, sa.handshake.n_i, sa.handshake.n_r))

    def _begin_children(
        self,
        sa: IkeSa,
        child: ChildSa | PeerRefused | InvalidSyntax | None,
        message: Message,
        now: float,
    ) -> None:
        """Install the Child SA, if any; or ask for one, or say why there is none."""
        policy = sa.chosen_policy.child
        if child is None or self._offer is None:
            if childless.wants_child(sa):
                sa.enqueue(CreateChild(policy))
        elif isinstance(child, ChildSa):
            sa.children.install(child, policy, now, use_outbound=True, replaces=None)
            ask_for_more(sa, self._offer.left_over(message, child))
        else:
            pair = pair_for(sa, policy, child) if isinstance(child, PeerRefused) else None
            if pair is not None:
                sa.enqueue(CreateChild(pair))
                return
            reason = f"{child}; we asked for {self._offer}"
            sa.context.emit(ChildRefused(sa.id, sa.chosen_policy.name, reason))


def answer(sa: IkeSa, message: Message, now: float) -> list[Payload] | None:
    """Answer an IKE_AUTH request; None while a lease is being fetched.

    Raises:
        Refusal: the initiator is not accepted; the IKE SA ends.
    """
    check_complete(sa)
    check_occurrence(message)
    identity, auth = _identity_of(message, PayloadType.ID_I), message.find(Auth)
    if identity is None:
        raise InvalidSyntax(f"{message} lacks IDi")
    sa.claimed = Identity(identity.id_type, identity.data)
    if auth is None:  # what it asks for here has to wait until it has proved itself
        raise AuthenticationFailed("the peer wants EAP, which no connection offers")
    sa.auth_request = message
    if sa.resumes is None:
        policy = _choose_connection(sa, message, sa.claimed, auth)
        auth = ppk.choose(sa, policy, message, auth)
    else:
        policy = resumption.check_initiator(sa, sa.resumes, sa.claimed)
    judge(sa, policy.peer, identity, auth, message.all(Certificate))
    return welcome(sa, policy, now)


def welcome(sa: IkeSa, policy: ConnectionPolicy, now: float) -> list[Payload] | None:
    """Let in a peer that has proved itself; None while a lease is being fetched.

    Raises:
        Refusal: it is not let in all the same; the IKE SA ends.
    """
    message = sa.auth_request
    assert message is not None, "something was asked for"
    sa.policy, sa.peer_identity = policy, sa.claimed
    sa.requests = RequestWindow(policy.retransmission)
    childless.check_request(policy, message)
    resumption.spend(sa, now)
    admit(sa, message)
    crash.take(sa, message)
    elsewhere = redirect.away(sa, now)
    if elsewhere:
        introduction = _introduction(sa)
        sa.establish(now)
        return [*introduction, *elsewhere]
    wishes = requested(message.find(Configuration))
    if policy.pool is None or wishes is None:
        return resume(sa, None, now)
    kept = inherited_lease(sa, wants_ipv4=wishes.wants_ipv4, wants_ipv6=wishes.wants_ipv6)
    if kept is not None:
        return resume(sa, kept, now)
    ask = AskLease(
        sa.id,
        sa.context.new_ask(),
        policy.pool,
        str(sa.peer_identity),
        wishes.wants_ipv4,
        wishes.wants_ipv6,
        wishes.addresses,
    )
    sa.ask = ask.ask
    sa.context.emit(ask)
    return None


def resume(sa: IkeSa, lease: Lease | Refusal | None, now: float) -> list[Payload]:
    """The response, once the lease is known."""
    message = sa.auth_request
    assert message is not None, "something was asked for"
    sa.lease_peer = lease if isinstance(lease, Lease) else None
    introduction = _introduction(sa)
    sa.establish(now)
    announce(sa, sa.lease_peer)
    replace_others(sa, now)
    status = [*crash.offer(sa), *reauthentication.lifetime(sa, now)]
    status += resumption.give(sa, message, now)
    return [*introduction, *status, *_answer_child(sa, message, lease, now)]


def _introduction(sa: IkeSa) -> list[Payload]:
    """Who we are as responder, and what proves it: IDr, [CERT], AUTH."""
    local = sa.chosen_policy.local
    identity = _id_payload(PayloadType.ID_R, local.identity)
    certificates, auth = prove(sa, local, identity)
    return [identity, *certificates, auth, *ppk.confirmation(sa)]


def announce(sa: IkeSa, lease: Lease | None) -> None:
    """Say that both peers are authenticated."""
    policy, (suite, _, _) = sa.chosen_policy, sa.agreed
    sa.context.emit(
        Established(
            sa=sa.id,
            connection=policy.name,
            peer_identity=str(sa.peer_identity),
            local_identity=str(policy.local.identity),
            path=sa.path,
            ike_suite=str(suite),
            lease=lease,
            behind_nat=sa.nat.local,
            peer_behind_nat=sa.nat.peer,
            is_initiator=sa.is_initiator,
            replaces=sa.reauthenticates,
            uses_ppk=sa.ppk is not None,
        )
    )


def _answer_child(
    sa: IkeSa, message: Message, lease: Lease | Refusal | None, now: float
) -> list[Payload]:
    """CP, SA and selectors; or the one Notify that says why there is no Child SA."""
    policy, handshake = sa.chosen_policy, sa.handshake
    assert handshake is not None, "IKE_SA_INIT comes first"
    try:
        if isinstance(lease, Refusal):
            raise lease
        if policy.pool is not None and lease is None:
            raise FailedCpRequired(f"{policy.name} assigns addresses, the peer asked for none")
        if childless.is_childless(message):
            return reply_of(lease)
        childless.check_child(policy)
        agreement, security, behind = answer_child(
            sa, policy.child, message, handshake.n_i, handshake.n_r, in_ike_auth=True
        )
    except Refusal as refusal:
        name = name_of(NotifyType, refusal.notify)
        sa.context.emit(ChildRefused(sa.id, policy.name, f"{name} for {sa.peer}: {refusal}"))
        return [Notify.of(refusal.notify, refusal.data)]
    child = make_child(sa, agreement)
    is_first = not is_replacing(sa)
    sa.children.install(child, policy.child, now, use_outbound=is_first, replaces=None)
    if not is_first:
        switch_later(sa, child, now)
    return [*reply_of(lease), *security, *behind]


def _choose_connection(
    sa: IkeSa, message: Message, claimed: Identity, auth: Auth
) -> ConnectionPolicy:
    wanted = _identity_of(message, PayloadType.ID_R)
    asked = Identity(wanted.id_type, wanted.data).canonical() if wanted else None
    fitting = [c for c in sa.connections if is_acceptable(c.peer, claimed)]
    if not fitting:
        raise AuthenticationFailed(f"no connection is for a peer called {claimed}")
    named = [c for c in fitting if asked is None or c.local.identity.canonical() == asked]
    if not named:
        ours = ", ".join(str(c.local.identity) for c in fitting)
        raise AuthenticationFailed(f"{claimed} asks for {asked}, we are {ours}")
    # IKE_SA_INIT chose among the proposals of all connections: it must be one of this one's
    assert sa.handshake is not None, "IKE_SA_INIT comes first"
    chosen = sa.handshake.chosen
    allowed = [c for c in named if is_allowed(chosen, c.proposals)]
    if not allowed:
        names = ", ".join(c.name for c in named)
        raise AuthenticationFailed(f"{chosen} is not a proposal of {names}")
    for connection in allowed:
        if accepts(connection.peer, auth.method):
            return connection
    return allowed[0]  # judging will say what is wrong


def _held_addresses(sa: IkeSa) -> tuple[IpAddress, ...]:
    """What was assigned to us in the IKE SA that this one replaces: we ask for it again."""
    old = None if sa.reauthenticates is None else sa.context.peers.named(sa.reauthenticates)
    return old.lease_local.addresses if old is not None and old.lease_local is not None else ()


def _certificate_request(policy: ConnectionPolicy) -> list[Payload]:
    if policy.peer.trust is None:
        return []
    return [CertificateRequest(CertEncoding.X509_SIGNATURE, policy.peer.trust.key_hashes())]


def _id_payload(payload_type: int, identity: Identity) -> IdPayload:
    return IdPayload(payload_type, identity.type, identity.data)


def _identity_of(message: Message, payload_type: int) -> IdPayload | None:
    return next((p for p in message.all(IdPayload) if p.type == payload_type), None)


def _refusal(message: Message) -> PeerRefused | InvalidSyntax:
    for notify in message.all(Notify):
        if notify.is_error:
            name = name_of(NotifyType, notify.notify)
            return PeerRefused(notify.notify, f"peer answered {name}", notify.data)
    return InvalidSyntax(f"{message} has neither what was asked for nor an error")
