"""IKE_SA_INIT in both roles: suite, key exchange, NAT detection. RFC 7296 §1.2, §2.6, §2.23."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final

from tunnelwrap.crypto.ke import LocalKey, initiate, respond
from tunnelwrap.crypto.keymat import ike_keys, skeyseed
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.signature import OUR_HASHES
from tunnelwrap.crypto.suite import IkeSuite
from tunnelwrap.errors import (
    AuthenticationFailed,
    InvalidKe,
    InvalidSyntax,
    Malformed,
    PeerRefused,
    Refusal,
)
from tunnelwrap.iana import CertEncoding, ExchangeType, KeMethod, NotifyType, TransformType, name_of
from tunnelwrap.ike import bare, childless, modes, redirect
from tunnelwrap.ike.additional_ke import Intermediate
from tunnelwrap.ike.negotiate import (
    choose_proposal,
    is_choice_of,
    ke_methods,
    numbered,
    transform_id,
    with_single_ke,
)
from tunnelwrap.ike.outputs import Answered
from tunnelwrap.ike.rules import IkeState, check_occurrence
from tunnelwrap.ike.sa import Handshake, IkeSa, Nat, Next
from tunnelwrap.path import Path, SocketAddress
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import (
    CertificateRequest,
    KeyExchange,
    Nonce,
    Notify,
    Payload,
)
from tunnelwrap.wire.proposal import Proposal, SaPayload

NONCE_LENGTH: Final = 32  # at least half the key of the PRF. RFC 7296 §2.10
MAX_RESTARTS: Final = 4  # INVALID_KE_PAYLOAD and COOKIE answers that we follow
MAX_COOKIE: Final = 64  # octets. RFC 7296 §2.6


class SaInit:
    """IKE_SA_INIT as initiator, with its restarts."""

    TYPE: ClassVar = ExchangeType.IKE_SA_INIT

    __slots__ = (
        "_cookie",
        "_key",
        "_method",
        "_restarts",
        "nonce",
        "refusal",
        "request_octets",
        "response_octets",
    )

    def __init__(self, sa: IkeSa) -> None:
        self._method = ke_methods(sa.chosen_policy.proposals)[0]
        self.nonce = sa.context.random(NONCE_LENGTH)
        self._key: LocalKey = initiate(self._method, sa.context.random)
        self._cookie: bytes | None = None
        self._restarts = 0
        self.refusal: PeerRefused | Refusal | None = None  # what came first, where all may send
        self.request_octets = b""  # both as they were on the wire: they are signed
        self.response_octets = b""

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """SAi1, KEi, Ni and what we can do."""
        payloads: list[Payload] = [
            SaPayload(numbered(sa.chosen_policy.proposals, b"")),
            KeyExchange(self._method, self._key.public),
            Nonce(self.nonce),
            *abilities(sa),
            Notify.of(NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED),
            *_ppk_wishes(sa),
            *redirect.support(sa),
        ]
        return [*self.cookie(), *payloads]

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:
        """Derive the keys, or begin anew as the responder asks.

        Raises:
            PeerRefused: the responder says no.
            InvalidSyntax: what it says makes no sense.
            NoProposalChosen: we want AH, which does not come through here.
        """
        restart = self._restarted(sa, message)
        if restart is not None:
            return restart
        if redirect.is_init_redirect(sa, message, self.nonce):
            return Next.DONE
        refuse_errors(message)
        check_occurrence(message)
        childless.check_support(sa, message)
        self._agree(sa, message)
        sa.context.emit(Answered(sa.id, sa.path))
        sa.become(IkeState.AUTHENTICATING)
        sa.last_heard = now
        return Next.DONE

    def cookie(self) -> list[Payload]:
        """The cookie that the responder has asked for. RFC 7296 §2.6."""
        return [] if self._cookie is None else [Notify.of(NotifyType.COOKIE, self._cookie)]

    def follow_cookie(self, message: Message) -> Next | None:
        """Follow COOKIE; None where the response is none.

        The cookie goes into all that follows, so that a responder need not ask for it again after
        INVALID_KE_PAYLOAD; if it does, it gets what it wants. RFC 7296 §2.6.1.
        """
        notify = message.notify(NotifyType.COOKIE)
        if notify is None or message.find(Nonce) is not None:
            return None
        return self._take_cookie(notify.data)

    def _restarted(self, sa: IkeSa, message: Message) -> Next | None:
        """Follow COOKIE or INVALID_KE_PAYLOAD; None where the response is neither."""
        after_cookie = self.follow_cookie(message)
        if after_cookie is not None:
            return after_cookie
        invalid = message.notify(NotifyType.INVALID_KE_PAYLOAD)
        if invalid is None or len(invalid.data) != 2:
            return None
        wanted = int.from_bytes(invalid.data, "big")
        if wanted == self._method and self._restarts:
            return Next.WAIT
        if self._restarts == MAX_RESTARTS:
            return None
        self._change_method(sa, wanted)
        self._restarts += 1
        return Next.AGAIN

    def _take_cookie(self, cookie: bytes) -> Next:
        if cookie == self._cookie:  # asked for by an earlier request, that came twice or late
            return Next.WAIT
        if not 1 <= len(cookie) <= MAX_COOKIE:
            raise InvalidSyntax(f"cookie of {len(cookie)} octets")
        if self._restarts == MAX_RESTARTS:
            raise PeerRefused(
                NotifyType.COOKIE, f"peer wants yet another cookie after {MAX_RESTARTS} restarts"
            )
        self._cookie = cookie
        self._restarts += 1
        return Next.AGAIN

    def _change_method(self, sa: IkeSa, wanted: int) -> None:
        offered = ke_methods(sa.chosen_policy.proposals)
        if wanted not in offered or wanted == self._method:
            raise PeerRefused(
                NotifyType.INVALID_KE_PAYLOAD,
                f"peer wants key exchange {name_of(KeMethod, wanted)}, offered "
                + ", ".join(name_of(KeMethod, method) for method in offered),
            )
        sa.context.trace(sa.id, "debug", f"= peer prefers {name_of(KeMethod, wanted)}")
        self._method = wanted
        self._key = initiate(wanted, sa.context.random)

    def _agree(self, sa: IkeSa, message: Message) -> None:
        chosen = _single_choice(message)
        offered = numbered(sa.chosen_policy.proposals, b"")
        if not is_choice_of(chosen, offered):
            raise InvalidSyntax(f"peer chose {chosen}, which was not offered")
        ke, nonce = _ke_and_nonce(message)
        is_asked_for = ke.method == self._method == transform_id(chosen, TransformType.KE)
        if not is_asked_for or message.spi_r == bytes(8):
            raise InvalidSyntax(f"peer answered with key exchange {ke.method}")
        try:
            shared = self._key.shared(ke.data)
        except Malformed as error:
            raise InvalidSyntax(str(error)) from error
        suite, uses_ppk = IkeSuite.from_proposal(chosen), _uses_ppk(sa, message)
        if suite.additional_ke and not _knows_intermediate(message):
            raise InvalidSyntax(f"peer chose {chosen} and does not know IKE_INTERMEDIATE")
        handshake = Handshake(
            self.nonce,
            nonce.data,
            self.request_octets,
            self.response_octets,
            _hashes(message),
            chosen,
            uses_ppk,
        )
        nat = detect_nat(message, sa.path)
        bare.check_policy(sa.chosen_policy.child, sa.path, nat)
        sa.spi_r, sa.nat = message.spi_r, nat
        install_keys(sa, suite, handshake, shared)
        sa.fragmentation.is_agreed = knows_fragments(message)
        float_if_needed(sa)


def answer(sa: IkeSa, message: Message, octets: bytes) -> bytes:
    """Answer an IKE_SA_INIT request; gives the response's octets.

    Raises:
        Refusal: the SA is not to be kept; the Notify goes back in clear.
    """
    check_occurrence(message)
    redirect.check_init(sa, message)
    offers = [p for payload in message.all(SaPayload) for p in payload.proposals]
    proposals = [p for connection in sa.connections for p in connection.proposals]
    knows_intermediate = _knows_intermediate(message)
    chosen = choose_proposal(offers, proposals if knows_intermediate else with_single_ke(proposals))
    ke, nonce = _ke_and_nonce(message)
    suite = IkeSuite.from_proposal(chosen)
    if ke.method != suite.ke:
        raise InvalidKe(
            f"KE payload has {name_of(KeMethod, ke.method)}, chosen {name_of(KeMethod, suite.ke)}",
            suite.ke,
        )
    try:
        public, shared = respond(suite.ke, ke.data, sa.context.random)
    except Malformed as error:
        raise InvalidSyntax(str(error)) from error
    sa.spi_i, sa.spi_r = message.spi_i, sa.context.new_ike_spi()
    sa.nat = detect_nat(message, sa.path)
    sa.fragmentation.is_agreed = knows_fragments(message)
    n_r = sa.context.random(NONCE_LENGTH)
    uses_ppk = _uses_ppk(sa, message)
    reply = sa.reply(
        ExchangeType.IKE_SA_INIT,
        0,
        [
            SaPayload((replace(chosen, spi=b""),)),
            KeyExchange(suite.ke, public),
            Nonce(n_r),
            *abilities(sa),
            *childless.support(sa.connections),
            *([Notify.of(NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED)] * knows_intermediate),
            *([Notify.of(NotifyType.USE_PPK)] * uses_ppk),
            *_certificate_requests(sa),
        ],
    )
    response = reply.encode()
    handshake = Handshake(nonce.data, n_r, octets, response, _hashes(message), chosen, uses_ppk)
    install_keys(sa, suite, handshake, shared)
    sa.peer_follows_redirects = redirect.is_followed(message)
    sa.become(IkeState.AUTHENTICATING)
    sa.context.said(sa.id, reply, sa.path)
    return response


def install_keys(sa: IkeSa, suite: IkeSuite, handshake: Handshake, shared: Secret) -> None:
    """SKEYSEED and all that follows from it. RFC 7296 §2.14."""
    seed = skeyseed(suite.prf_function(), handshake.n_i, handshake.n_r, shared)
    install_seed(sa, suite, handshake, seed)
    nonces, spis = (handshake.n_i, handshake.n_r), (sa.spi_i, sa.spi_r)
    sa.intermediate = Intermediate(suite, nonces, spis)


def install_seed(sa: IkeSa, suite: IkeSuite, handshake: Handshake, seed: Secret) -> None:
    """All keys of a new IKE SA, however its SKEYSEED came about."""
    sa.chosen = handshake.chosen
    sa.handshake = handshake
    keys = ike_keys(suite, seed, handshake.n_i, handshake.n_r, sa.spi_i, sa.spi_r)
    sa.take_keys(suite, keys)


def float_if_needed(sa: IkeSa) -> None:
    """Go on by UDP port 4500 where ESP must be in UDP. RFC 7296 §2.23."""
    encapsulates = sa.forces_encapsulation or sa.nat.local or sa.nat.peer
    if sa.floats_to is not None and encapsulates:
        sa.path, sa.floats_to = sa.floats_to, None


def refuse_errors(message: Message) -> None:
    """Raise PeerRefused for the first error Notify of a response."""
    for notify in message.all(Notify):
        if notify.is_error:
            name = name_of(NotifyType, notify.notify)
            raise PeerRefused(notify.notify, f"peer answered {name}", notify.data)


def nat_hash(spi_i: bytes, spi_r: bytes, address: SocketAddress) -> bytes:
    """Data of the NAT_DETECTION_*_IP notifies. RFC 7296 §2.23."""
    octets = spi_i + spi_r + address.ip.packed + address.port.to_bytes(2, "big")
    return hashlib.sha1(octets, usedforsecurity=False).digest()


def detect_nat(message: Message, path: Path) -> Nat:
    """Who is behind a NAT, by the hashes of the peer's message."""
    spis = (message.spi_i, message.spi_r)
    sources = _data_of(message, NotifyType.NAT_DETECTION_SOURCE_IP)
    destinations = _data_of(message, NotifyType.NAT_DETECTION_DESTINATION_IP)
    return Nat(
        local=bool(destinations) and nat_hash(*spis, path.local) not in destinations,
        peer=bool(sources) and nat_hash(*spis, path.peer) not in sources,
        between=(path.local.ip, path.peer.ip),
    )


def abilities(sa: IkeSa) -> list[Payload]:
    """NAT detection, the hashes that we know, and whose private numbers.

    RFC 7296 §2.23, §3.12, RFC 7427 §4.
    """
    hashes = b"".join(h.to_bytes(2, "big") for h in OUR_HASHES)
    source = sa.path.local
    if sa.forces_encapsulation and not sa.path.carrier.is_reliable:
        # a source that cannot match makes the peer see a NAT and encapsulate ESP in UDP
        source = SocketAddress(type(source.ip)(0), 0)
    fragments = Notify.of(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED)  # RFC 7383 §2.3
    return [
        Notify.of(NotifyType.NAT_DETECTION_SOURCE_IP, nat_hash(sa.spi_i, sa.spi_r, source)),
        Notify.of(
            NotifyType.NAT_DETECTION_DESTINATION_IP, nat_hash(sa.spi_i, sa.spi_r, sa.path.peer)
        ),
        Notify.of(NotifyType.SIGNATURE_HASH_ALGORITHMS, hashes),
        *([fragments] if sa.is_initiator or sa.fragmentation.is_agreed else []),
        *modes.vendor_ids(sa),
    ]


def _knows_intermediate(message: Message) -> bool:
    return message.notify(NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED) is not None


def _ppk_wishes(sa: IkeSa) -> list[Payload]:
    return [Notify.of(NotifyType.USE_PPK)] if sa.chosen_policy.ppk else []


def _uses_ppk(sa: IkeSa, message: Message) -> bool:
    """Whether both sides want a PPK; which one is for IKE_AUTH to settle. RFC 8784 §3.

    Raises:
        AuthenticationFailed: the peer does not, and our policy requires it.
    """
    is_wanted = message.notify(NotifyType.USE_PPK) is not None
    ppk = sa.policy.ppk if sa.policy is not None else None
    if ppk is not None and ppk.is_required and not is_wanted:
        raise AuthenticationFailed("the peer uses no PPK, and our policy requires one")
    return is_wanted and any(connection.ppk for connection in sa.connections)


def _certificate_requests(sa: IkeSa) -> list[Payload]:
    hashes = b"".join(c.peer.trust.key_hashes() for c in sa.connections if c.peer.trust is not None)
    return [CertificateRequest(CertEncoding.X509_SIGNATURE, hashes)] if hashes else []


def _data_of(message: Message, notify_type: int) -> list[bytes]:
    return [n.data for n in message.all(Notify) if n.notify == notify_type]


def knows_fragments(message: Message) -> bool:
    """True where a peer can put fragments together. RFC 7383 §2.3."""
    return message.notify(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED) is not None


def _hashes(message: Message) -> frozenset[int]:
    notify = message.notify(NotifyType.SIGNATURE_HASH_ALGORITHMS)
    if notify is None:
        return frozenset()
    pairs = range(0, len(notify.data) - 1, 2)
    return frozenset(int.from_bytes(notify.data[i : i + 2], "big") for i in pairs)


def _single_choice(message: Message) -> Proposal:
    payload = message.find(SaPayload)
    if payload is None or len(payload.proposals) != 1:
        raise InvalidSyntax("the response must choose exactly one proposal")
    return payload.proposals[0]


def _ke_and_nonce(message: Message) -> tuple[KeyExchange, Nonce]:
    ke, nonce = message.find(KeyExchange), message.find(Nonce)
    if ke is None or nonce is None:
        raise InvalidSyntax(f"{message} lacks KE or nonce")
    return ke, nonce
