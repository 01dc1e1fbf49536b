"""Negotiating one Child SA, in IKE_AUTH and in CREATE_CHILD_SA. RFC 7296 §1.2, §1.3, §2.9, §2.17.

``ChildOffer`` is the side that begins the exchange, ``answer_child`` the other one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network

from tunnelwrap.crypto.ke import LocalKey, initiate
from tunnelwrap.crypto.keymat import child_keys
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import ChildSuite, child_suite
from tunnelwrap.errors import InvalidKe, InvalidSyntax, TsUnacceptable
from tunnelwrap.iana import KeMethod, NotifyType, PayloadType, ProtocolId, TransformType, name_of
from tunnelwrap.ike import bare, ipcomp, modes
from tunnelwrap.ike.additional_ke import respond_with, shared_secret
from tunnelwrap.ike.child_sa import ChildSa, Cpis, Mode, SaKeys, SaLimits
from tunnelwrap.ike.negotiate import (
    choose_proposal,
    is_choice_of,
    narrow,
    numbered,
    transform_id,
    without_ke,
)
from tunnelwrap.ike.pairs import left_over, narrow_to_pair
from tunnelwrap.ike.policy import ChildLifetime, ChildPolicy
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.path import IpAddress
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import (
    KeyExchange,
    Notify,
    Payload,
    TrafficSelector,
    TrafficSelectors,
)
from tunnelwrap.wire.proposal import Proposal, SaPayload

Selectors = tuple[TrafficSelector, ...]

ANY_IPV4 = TrafficSelector.from_network(ip_network("0.0.0.0/0"))
ANY_IPV6 = TrafficSelector.from_network(ip_network("::/0"))


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both sides settled; the keys follow from it, once every key exchange is done."""

    policy: ChildPolicy
    suite: ChildSuite
    spi_in: int
    spi_out: int
    ts_local: tuple[TrafficSelector, ...]
    ts_peer: tuple[TrafficSelector, ...]
    mode: Mode
    n_i: bytes
    n_r: bytes
    shared: Secret | None  # of the first key exchange; None: there is none
    is_initiator: bool  # of the exchange that makes it
    cpis: Cpis | None

    @property
    def additional_ke(self) -> tuple[int, ...]:
        """The methods of the key exchanges that follow."""
        return tuple(method for _, method in self.suite.additional_ke)


class ChildOffer:
    """A Child SA that we ask for."""

    __slots__ = ("_cpi", "_key", "_mode", "_proposals", "_ts_local", "_ts_peer", "policy", "spi_in")

    def __init__(
        self, sa: IkeSa, policy: ChildPolicy, *, replaces: ChildSa | None, method: int | None
    ) -> None:
        self.policy = policy
        self.spi_in = sa.context.allocate_spi(sa.path)
        self._cpi = ipcomp.own_cpi(sa, policy, self.spi_in)
        self._mode = modes.wanted(sa, policy)
        proposals = policy.proposals if method else without_ke(policy.proposals)
        self._proposals = numbered(proposals, self.spi_in.to_bytes(4, "big"))
        self._key: LocalKey | None = initiate(method, sa.context.random) if method else None
        if replaces is not None:
            self._ts_local, self._ts_peer = replaces.ts_local, replaces.ts_peer
        else:
            self._ts_local = policy.ts_local or _offered_addresses(sa)
            self._ts_peer = policy.ts_peer or selectors_of(sa.peer_addresses())

    def security(self) -> list[Payload]:
        """The SA payload, and the KE payload behind it where keys are exchanged."""
        payloads: list[Payload] = [SaPayload(self._proposals)]
        if self._key is not None:
            payloads.append(KeyExchange(self._key.method, self._key.public))
        return payloads

    def selectors(self) -> list[Payload]:
        """TSi and TSr, behind the compression and the mode we want."""
        return [
            *ipcomp.supported(self._cpi),
            *modes.notifies(self._mode),
            TrafficSelectors(PayloadType.TS_I, self._ts_local),
            TrafficSelectors(PayloadType.TS_R, self._ts_peer),
        ]

    def __str__(self) -> str:
        proposals, ts_local, ts_peer = (
            ", ".join(map(str, part)) for part in (self._proposals, self._ts_local, self._ts_peer)
        )
        return f"{proposals} for {ts_local} === {ts_peer}"

    def accept(self, message: Message, n_i: bytes, n_r: bytes) -> Agreement:
        """What the response makes of the offer.

        Raises:
            InvalidSyntax: the response is not an answer to what was offered.
        """
        proposals, ts_i, ts_r = _essentials(message)
        if len(proposals) != 1 or not is_choice_of(proposals[0], self._proposals):
            raise InvalidSyntax("the peer's choice for the Child SA was not offered")
        mode = modes.agreed(message, self._mode)
        try:  # what the peer added or joined to what was offered does not count
            ts_local, ts_peer = narrow(ts_i, self._ts_local), narrow(ts_r, self._ts_peer)
            modes.check_selectors(mode, ts_local, ts_peer)
        except TsUnacceptable as error:
            raise InvalidSyntax(f"the peer chose other traffic selectors: {error}") from error
        return Agreement(
            self.policy,
            child_suite(proposals[0]),
            self.spi_in,
            _spi(proposals[0]),
            ts_local,
            ts_peer,
            mode,
            n_i,
            n_r,
            self._shared(message, proposals[0]),
            is_initiator=True,
            cpis=ipcomp.accepted(message, self._cpi),
        )

    def left_over(self, message: Message, child: ChildSa) -> ChildPolicy | None:
        """What to ask for besides, where the peer made less of it but could make more."""
        if message.notify(NotifyType.ADDITIONAL_TS_POSSIBLE) is None:
            return None
        return left_over(self.policy, child)

    def _shared(self, message: Message, chosen: Proposal) -> Secret | None:
        method = transform_id(chosen, TransformType.KE)
        if not method:
            return None
        if self._key is None or self._key.method != method:
            raise InvalidSyntax("the KE payload does not fit the chosen proposal")
        return shared_secret(self._key, message)


def answer_child(
    sa: IkeSa,
    policy: ChildPolicy,
    message: Message,
    n_i: bytes,
    n_r: bytes,
    *,
    in_ike_auth: bool,
) -> tuple[Agreement, list[Payload], list[Payload]]:
    """Judge the peer's offer.

    Returns:
        What is agreed, the payloads up to the nonce's place (SA), and those behind it (KE, TS).

    Raises:
        Refusal: nothing acceptable was offered.
    """
    offers, ts_i, ts_r = _essentials(message)
    configured = without_ke(policy.proposals) if in_ike_auth else policy.proposals
    chosen = choose_proposal(offers, configured)
    mode = modes.agreed(message, modes.wanted(sa, policy))
    suite, spi_out = child_suite(chosen), _spi(chosen)
    bare.check_way(suite.PROTOCOL, sa.path, sa.nat)
    seen_i, seen_r = _behind_nats(sa, ts_i, ts_r) if mode is Mode.TRANSPORT else (ts_i, ts_r)
    ts_peer = narrow(seen_i, policy.ts_peer or selectors_of(sa.peer_addresses()))
    ts_local = narrow(seen_r, policy.ts_local or selectors_of(sa.local_addresses()))
    has_more = False
    if policy.single_pair:
        ts_peer, ts_local, has_more = narrow_to_pair((seen_i, seen_r), (ts_peer, ts_local))
    modes.check_selectors(mode, ts_local, ts_peer)
    ke_payloads, shared = _answer_ke(sa, message, chosen)
    spi_in = sa.context.allocate_spi(sa.path)
    cpis = _answer_ipcomp(sa, policy, message, spi_in)
    agreement = Agreement(
        *(policy, suite, spi_in, spi_out, ts_local, ts_peer, mode, n_i, n_r, shared),
        is_initiator=False,
        cpis=cpis,
    )
    ours = replace(chosen, spi=spi_in.to_bytes(4, "big"))
    behind: list[Payload] = [
        *ke_payloads,
        *ipcomp.supported(cpis.inbound if cpis else None),
        *modes.notifies(mode),
        TrafficSelectors(PayloadType.TS_I, _as_offered(ts_peer, ts_i, seen_i)),
        TrafficSelectors(PayloadType.TS_R, _as_offered(ts_local, ts_r, seen_r)),
    ]
    if has_more:
        behind.append(Notify.of(NotifyType.ADDITIONAL_TS_POSSIBLE))
    return agreement, [SaPayload((ours,))], behind


def make_child(sa: IkeSa, agreement: Agreement, additional: Sequence[Secret] = ()) -> ChildSa:
    """KEYMAT for an agreement. RFC 7296 §2.17, RFC 9370 §2.2.4.

    Args:
        sa: the IKE SA, whose SK_d it is.
        agreement: what was settled.
        additional: the secrets of the additional key exchanges.
    """
    ike_suite, keys, _ = sa.agreed
    suite, is_initiator = agreement.suite, agreement.is_initiator
    enc_i, integ_i, enc_r, integ_r = child_keys(
        suite,
        ike_suite.prf_function(),
        keys.sk_d,
        agreement.n_i,
        agreement.n_r,
        agreement.shared,
        additional=additional,
    )
    initiator, responder = SaKeys(enc_i, integ_i), SaKeys(enc_r, integ_r)
    return ChildSa(
        name=agreement.policy.name,
        peer=str(sa.peer_identity),
        spi_in=agreement.spi_in,
        spi_out=agreement.spi_out,
        suite=suite,
        keys_in=responder if is_initiator else initiator,
        keys_out=initiator if is_initiator else responder,
        uses_esn=suite.uses_esn,
        mode=agreement.mode,
        ts_local=agreement.ts_local,
        ts_peer=agreement.ts_peer,
        path=sa.path,
        replay_window=agreement.policy.replay_window,
        limits=_limits(agreement.policy.lifetime),
        cpis=agreement.cpis,
        is_bare=sa.is_bare,
    )


def selectors_of(addresses: Sequence[IpAddress]) -> tuple[TrafficSelector, ...]:
    """One selector for each address."""
    return tuple(TrafficSelector.from_network(ip_network(address)) for address in addresses)


def _offered_addresses(sa: IkeSa) -> tuple[TrafficSelector, ...]:
    policy = sa.chosen_policy
    if sa.lease_local is not None or not (policy.requests_ipv4 or policy.requests_ipv6):
        return selectors_of(sa.local_addresses())
    # the address is not known before the response: the responder narrows to it. RFC 7296 §2.19
    families = ((policy.requests_ipv4, ANY_IPV4), (policy.requests_ipv6, ANY_IPV6))
    return tuple(selector for is_wanted, selector in families if is_wanted)


def _essentials(message: Message) -> tuple[tuple[Proposal, ...], Selectors, Selectors]:
    security = message.find(SaPayload)
    selectors = {ts.type: ts.selectors for ts in message.all(TrafficSelectors)}
    ts_i, ts_r = selectors.get(PayloadType.TS_I), selectors.get(PayloadType.TS_R)
    if security is None or ts_i is None or ts_r is None:
        raise InvalidSyntax(f"{message} lacks SA, TSi or TSr")
    return security.proposals, ts_i, ts_r


def _answer_ipcomp(sa: IkeSa, policy: ChildPolicy, message: Message, spi_in: int) -> Cpis | None:
    """What is agreed on compression: DEFLATE, or nothing."""
    theirs = ipcomp.offered(message)
    ours = ipcomp.own_cpi(sa, policy, spi_in) if theirs is not None else None
    return None if theirs is None or ours is None else Cpis(ours, theirs)


def _behind_nats(sa: IkeSa, ts_i: Selectors, ts_r: Selectors) -> tuple[Selectors, Selectors]:
    """Where the peer means itself or us, but a NAT stands between. RFC 7296 §2.23.1."""
    return (
        _at(ts_i, sa.path.peer.ip) if sa.nat.peer else ts_i,
        _at(ts_r, sa.path.local.ip) if sa.nat.local else ts_r,
    )


def _as_offered(narrowed: Selectors, offered: Selectors, seen: Selectors) -> Selectors:
    """The answer in the peer's own addresses. RFC 7296 §2.23.1."""
    return narrowed if seen == offered else _at(narrowed, offered[0].start)


def _at(selectors: Selectors, address: IpAddress) -> Selectors:
    """Selectors of a single address, at another."""
    if len({end for each in selectors for end in (each.start, each.end)}) != 1:
        return selectors
    return tuple(replace(each, start=address, end=address) for each in selectors)


def _spi(proposal: Proposal) -> int:
    spi = int.from_bytes(proposal.spi, "big")
    if len(proposal.spi) != 4 or spi == 0:
        name = name_of(ProtocolId, proposal.protocol)
        raise InvalidSyntax(f"SPI {proposal.spi.hex()} is none for {name}")
    return spi


def _answer_ke(
    sa: IkeSa, message: Message, chosen: Proposal
) -> tuple[list[Payload], Secret | None]:
    method = transform_id(chosen, TransformType.KE)
    if not method:
        return [], None
    ke = message.find(KeyExchange)
    if ke is None or ke.method != method:
        sent = "none" if ke is None else name_of(KeMethod, ke.method)
        raise InvalidKe(f"KE payload is {sent}, chosen {name_of(KeMethod, method)}", method)
    answered, shared = respond_with(method, message, sa.context.random)
    return [answered], shared


def _limits(lifetime: ChildLifetime) -> SaLimits:
    return SaLimits(
        lifetime.rekey_octets,
        lifetime.hard_octets,
        lifetime.rekey_packets,
        lifetime.hard_packets,
    )
