"""Child SAs and traps as the kernel's plane knows them, and how they look there as SAs.

Values only: nothing here asks the kernel.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from tunnelwrap.dataplane import AcquireCallback, Progress, Trap
from tunnelwrap.dataplane.flows import KernelFlow
from tunnelwrap.dataplane.xfrm_suite import DEFLATE, child_algorithms
from tunnelwrap.dataplane.xfrm_values import (
    BY_ROUTE,
    Direction,
    EncapKind,
    Encapsulation,
    KernelSa,
    Limits,
    Migration,
    Offload,
    Proto,
    Replay,
    SaFlag,
    SaId,
    Selector,
    XfrmMode,
)
from tunnelwrap.iana import ProtocolId
from tunnelwrap.ike.child_sa import ChildSa, Mode
from tunnelwrap.path import IpAddress, SocketAddress
from tunnelwrap.transport import Transport

MODES: Final = {
    Mode.TUNNEL: XfrmMode.TUNNEL,
    Mode.TRANSPORT: XfrmMode.TRANSPORT,
    Mode.BEET: XfrmMode.BEET,
}
PROTOS: Final[dict[int, Proto]] = {ProtocolId.ESP: Proto.ESP, ProtocolId.AH: Proto.AH}


@dataclass(frozen=True, slots=True)
class Ends:
    """Between which addresses the packets of a Child SA travel."""

    local: SocketAddress
    peer: SocketAddress
    is_encapsulated: bool
    kind: EncapKind = EncapKind.UDP  # of the encapsulation, if there is one

    @classmethod
    def of(cls, transport: Transport, protocol: int, *, is_bare: bool = False) -> "Ends":
        """Those of a path on UDP; AH is bare on any, ESP on port 500. RFC 7296 §2.23."""
        path = transport.path
        is_in_udp = protocol == ProtocolId.ESP and path.has_marker and not is_bare
        return cls(path.local, path.peer, is_in_udp)


@dataclass(slots=True, eq=False)
class Pair:
    """One installed Child SA."""

    child: ChildSa
    flows: list[KernelFlow]
    ends: Ends
    request_id: int
    progress: Progress | None  # of what it was in another plane
    has_outbound: bool = False
    has_told_soft: bool = False
    packets_in: int = 0  # when it was last asked for
    last_in: float | None = None
    is_incomplete: bool = False  # somebody deleted an SA of it, and that was told
    sends_plain: bool = False  # although compression is agreed: the peer's CPI is another's here
    added: set[SaId] = field(default_factory=set)
    if_id: int = 0  # of the xfrm interface that it is tied to

    def flows_of(self, direction: Direction) -> list[KernelFlow]:
        """Those that policies of a direction are for.

        Where the peer may have any address, this host's packets to itself are told apart.
        """
        if direction is not Direction.IN:
            return self.flows
        return [*self.flows, *(each.own for each in self.flows if each.covers_own)]

    @property
    def mode(self) -> Mode:
        """That of the Child SA."""
        return self.child.mode

    @property
    def proto(self) -> Proto:
        """Likewise."""
        return PROTOS[self.child.protocol]

    @property
    def inbound(self) -> SaId:
        """Where packets come to."""
        return SaId(self.ends.local.ip, self.child.spi_in, self.proto)

    @property
    def outbound(self) -> SaId:
        """Where packets go to."""
        return SaId(self.ends.peer.ip, self.child.spi_out, self.proto)


@dataclass(slots=True, eq=False)
class Trapped:
    """A trap that is set."""

    trap: Trap
    flows: list[KernelFlow]
    ends: Ends
    on_acquire: AcquireCallback
    request_id: int = 0
    sequence: int = 0  # of the call that the outbound SA to come will answer; 0: there is none
    if_id: int = 0

    def flows_of(self, direction: Direction) -> list[KernelFlow]:
        """A trap is for what goes out only."""
        del direction
        return self.flows

    @property
    def mode(self) -> Mode:
        """That of the Child SA to come."""
        return self.trap.mode

    @property
    def proto(self) -> Proto:
        """Likewise."""
        return PROTOS[self.trap.protocol]


Holder = Pair | Trapped
"""What may have a policy."""


def kind_of(child: ChildSa) -> object:
    """Child SAs with the same selectors are of one."""
    return child.ts_local, child.ts_peer, child.mode, child.protocol, child.cpis is None


def inbound_directions(child: ChildSa) -> tuple[Direction, ...]:
    """What goes on to others is forwarded, which transport mode never is."""
    is_forwarded = child.mode is not Mode.TRANSPORT
    return (Direction.IN, Direction.FWD) if is_forwarded else (Direction.IN,)


def migrations(old: Pair, new: Pair) -> list[Migration]:
    """The moves of both SAs of a Child SA."""
    local, peer = (old.ends.local.ip, new.ends.local.ip), (old.ends.peer.ip, new.ends.peer.ip)
    mode, reqid, proto = MODES[old.mode], old.request_id, old.proto
    return [
        Migration(source[0], destination[0], source[1], destination[1], mode, reqid, proto)
        for source, destination in ((local, peer), (peer, local))
    ]


def inbound_sa(pair: Pair) -> KernelSa:
    """What packets come by, new."""
    return _sa(pair, pair.inbound, is_outbound=False)


def outbound_sa(pair: Pair) -> KernelSa:
    """What packets go by, new."""
    return _sa(pair, pair.outbound, is_outbound=True)


def _sa(pair: Pair, sa_id: SaId, *, is_outbound: bool) -> KernelSa:
    child, ends = pair.child, pair.ends
    near, far = (ends.local, ends.peer) if is_outbound else (ends.peer, ends.local)
    limits = child.limits
    return KernelSa(
        id=sa_id,
        source=near.ip,
        mode=MODES[child.mode]
        if cpi_of(pair, is_outbound=is_outbound) is None
        else XfrmMode.TRANSPORT,
        algorithms=child_algorithms(child.suite, child.keys_out if is_outbound else child.keys_in),
        replay=Replay(1 if is_outbound else child.replay_window, child.uses_esn),
        reqid=pair.request_id,
        selector=_selector(child, near.ip, is_outbound=is_outbound),
        encapsulation=Encapsulation(near.port, far.port, ends.kind)
        if ends.is_encapsulated
        else None,
        offload=Offload(BY_ROUTE, not is_outbound) if _may_be_offloaded(pair) else None,
        limits=Limits(
            limits.soft_octets, limits.hard_octets, limits.soft_packets, limits.hard_packets
        ),
        flags=_flags(sa_id),
        if_id=pair.if_id,
    )


def _may_be_offloaded(pair: Pair) -> bool:
    """Whether a device may do its cryptography: none does that of ESP in UDP, nor of IPComp."""
    is_esp = pair.proto is Proto.ESP
    return is_esp and not pair.ends.is_encapsulated and pair.child.cpis is None


def _flags(sa_id: SaId) -> SaFlag:
    """AH aligns to 4 octets in IPv4, which the kernel does only if it is told. RFC 4302 §2.2."""
    is_aligned = sa_id.proto is Proto.AH and sa_id.destination.version == 4
    return SaFlag.NO_PMTU_DISCOVERY | SaFlag.ALIGN4 if is_aligned else SaFlag.NO_PMTU_DISCOVERY


def compression_sa(pair: Pair, *, is_outbound: bool) -> KernelSa | None:
    """The SA that stands inside of the one that protects, if packets are compressed. RFC 3173 §4.

    In tunnel mode it is the tunnel, for the protected packet is its.
    """
    child, ends, cpi = pair.child, pair.ends, cpi_of(pair, is_outbound=is_outbound)
    if cpi is None:
        return None
    source, destination = (
        (ends.local.ip, ends.peer.ip) if is_outbound else (ends.peer.ip, ends.local.ip)
    )
    return KernelSa(
        id=SaId(destination, cpi, Proto.COMP),
        source=source,
        mode=MODES[child.mode],
        algorithms=DEFLATE,
        reqid=pair.request_id,
        selector=_selector(child, source, is_outbound=is_outbound),
        flags=SaFlag.NO_PMTU_DISCOVERY,
        if_id=pair.if_id,
    )


def _selector(child: ChildSa, address: IpAddress, *, is_outbound: bool) -> Selector | None:
    """A tunnel has packets of both IP versions inside, transport mode those of its addresses.

    BEET mode has inner addresses that are not sent: the receiver takes them from here.
    """
    if child.mode is Mode.TUNNEL:
        return None
    if child.mode is Mode.BEET:
        ends = child.ts_local[0].start, child.ts_peer[0].start
        source, destination = ends if is_outbound else reversed(ends)
        return Selector(ip_network(source), ip_network(destination))
    every = ip_network((anywhere(address), 0))
    return Selector(every, every)


def cpi_of(holder: Holder, *, is_outbound: bool) -> int | None:
    """Under which packets are compressed; None: they are not."""
    if isinstance(holder, Trapped) or holder.child.cpis is None:
        return None
    cpis = holder.child.cpis
    if is_outbound:
        return None if holder.sends_plain else cpis.outbound
    return cpis.inbound


def anywhere(address: IpAddress) -> IpAddress:
    """Any address of the same IP version."""
    return IPv4Address(0) if address.version == 4 else IPv6Address(0)


def last_sequence(sa: KernelSa) -> int:
    """Behind which no packet can be sent."""
    return (1 << 64) - 1 if sa.replay.uses_esn else (1 << 32) - 1
