"""What the kernel's IPsec (XFRM) is told and tells, as values: SAs, policies, events.

Numbers are those of linux/xfrm.h. Octets, packets and sequence numbers count as the kernel counts:
an SA's octets are those of the ESP packet's inside, before encryption; its times are seconds of the
wall clock, and 0 is never.
"""

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from ipaddress import IPv4Network, IPv6Network

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.path import IpAddress, SocketAddress

IpNetwork = IPv4Network | IPv6Network


class Direction(IntEnum):
    """Which packets a policy is for."""

    IN = 0  # for this host
    OUT = 1
    FWD = 2  # came in, and go out again
    SOCKET_IN = 3  # of one socket: setsockopt IP_XFRM_POLICY
    SOCKET_OUT = 4


class XfrmMode(IntEnum):
    """How a packet is wrapped; the kernel's words, which include Mobile IPv6's."""

    TRANSPORT = 0
    TUNNEL = 1
    ROUTE_OPTIMIZATION = 2
    IN_TRIGGER = 3
    BEET = 4


class Proto(IntEnum):
    """What an SA does; IP protocol numbers."""

    IPIP = 4  # made by the kernel for IPComp in tunnel mode
    IPV6 = 41  # the same
    ROUTING = 43
    ESP = 50
    AH = 51
    DESTINATION_OPTIONS = 60
    COMP = 108
    ANY = 255  # in a template or a flush


class Action(IntEnum):
    """What a policy does to the packets that it selects; ALLOW wraps them by its templates."""

    ALLOW = 0
    BLOCK = 1


class EncapKind(IntEnum):
    """What stands around ESP packets. RFC 3948, RFC 8229."""

    UDP_NON_IKE = 1
    UDP = 2
    TCP = 7


class SaFlag(IntFlag):
    """Habits of an SA. AF_UNSPEC and ESN follow from other fields and are not set by hand."""

    NO_ECN = 1
    DECAP_DSCP = 2
    NO_PMTU_DISCOVERY = 4
    WILD_RECEIVE = 8
    ICMP = 16
    AF_UNSPEC = 32
    ALIGN4 = 64
    ESN = 128


class SaExtraFlag(IntFlag):
    """More habits of an SA."""

    DONT_ENCAP_DSCP = 1
    OUTBOUND_MAY_WRAP = 2


class PolicyFlag(IntFlag):
    """Habits of a policy."""

    LOCAL_OK = 1  # sockets may have policies that go before it
    ICMP = 2  # ICMP errors about selected packets are selected too


@dataclass(frozen=True, slots=True)
class SaId:
    """What the kernel finds an inbound SA by. RFC 4301 §4.1."""

    destination: IpAddress
    spi: int
    proto: Proto = Proto.ESP

    def __str__(self) -> str:
        return f"{self.proto.name} {self.spi:08x} to {self.destination}"


@dataclass(frozen=True, slots=True)
class PortMask:
    """The ports that equal ``port`` where ``mask`` has ones; the default is any."""

    port: int = 0
    mask: int = 0

    @classmethod
    def only(cls, port: int) -> "PortMask":
        """One port (or ICMP type or code)."""
        return cls(port, 0xFFFF)


@dataclass(frozen=True, slots=True)
class Selector:
    """Which packets; for ICMP the type stands in ``source_port``, the code in the other."""

    source: IpNetwork
    destination: IpNetwork
    protocol: int = 0  # any
    source_port: PortMask = PortMask()
    destination_port: PortMask = PortMask()
    ifindex: int = 0  # any

    def __str__(self) -> str:
        protocol = f" protocol {self.protocol}" if self.protocol else ""
        return f"{self.source} to {self.destination}{protocol}"


@dataclass(frozen=True, slots=True)
class Limits:
    """When an SA or a policy has lived enough; ``None`` is never. Soft limits only tell.

    The kernel looks before each packet: a limit of n packets is noticed by packet n + 1, which a
    hard one does not let through.
    """

    soft_octets: int | None = None
    hard_octets: int | None = None
    soft_packets: int | None = None
    hard_packets: int | None = None
    soft_age_s: int | None = None  # since it was added
    hard_age_s: int | None = None
    soft_used_s: int | None = None  # since it was first used
    hard_used_s: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What an SA or a policy carried, and when it was added and first used."""

    octets: int = 0
    packets: int = 0
    added_at: int = 0
    used_at: int = 0


@dataclass(frozen=True, slots=True)
class Replay:
    """Sequence numbers of an SA, whole also with ESN; an SA uses one direction of them.

    ``seen`` has bit n set where ``inbound - n`` was seen. RFC 4303 §3.4.3.
    """

    window: int = 0  # packets, up to 4096; 0: replays are not looked for, which ESN cannot have
    uses_esn: bool = False
    outbound: int = 0  # of the newest packet sent
    inbound: int = 0  # of the newest packet taken
    seen: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark of packets: ``value`` in the bits of ``mask``."""

    value: int
    mask: int = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """The header around ESP packets, as they travel."""

    source_port: int
    destination_port: int
    kind: EncapKind = EncapKind.UDP


BY_ROUTE = 0
"""In place of a device: the one by which the other end is reached."""


@dataclass(frozen=True, slots=True)
class Offload:
    """The device that does the SA's cryptography."""

    ifindex: int
    is_inbound: bool
    is_whole_packet: bool = False  # and the headers and policies too


@dataclass(frozen=True, slots=True)
class Algorithm:
    """An algorithm by its kernel name, and the key it takes there (with its salt, if any)."""

    name: str
    key: Secret
    icv_bits: int = 0  # 0 where it is not one that authenticates


@dataclass(frozen=True, slots=True)
class Algorithms:
    """What an SA computes: an AEAD, or encryption and integrity, or compression (RFC 3173)."""

    aead: Algorithm | None = None
    encryption: Algorithm | None = None
    integrity: Algorithm | None = None
    compression: Algorithm | None = None


@dataclass(frozen=True, slots=True)
class SaFailures:
    """Packets that an inbound SA refused."""

    replay_window: int = 0  # left of the window
    replayed: int = 0
    not_authentic: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSa:
    """An SA as the kernel has it; the last three fields are what it tells, not what it is told.

    ``selector`` None is any packet, of both IP versions; in transport mode that is for an SA around
    another one, and older kernels refuse it. An SA with a
    ``mark`` is found only by packets that bear it, ``output_mark`` is put on what it made, and
    ``if_id`` ties it to an xfrm interface.
    """

    id: SaId
    source: IpAddress
    mode: XfrmMode
    algorithms: Algorithms = Algorithms()
    replay: Replay = Replay()
    reqid: int = 0  # ties it to the templates of policies
    selector: Selector | None = None
    encapsulation: Encapsulation | None = None
    mark: Mark | None = None
    output_mark: Mark | None = None
    if_id: int = 0
    offload: Offload | None = None
    limits: Limits = Limits()
    flags: SaFlag = field(default=SaFlag(0))
    extra_flags: SaExtraFlag = field(default=SaExtraFlag(0))
    tfc_padding: int = 0  # RFC 4303 §2.7: shorter packets are made that long
    mapping_interval_s: int = 0  # at most one Mapping event in that time
    sequence: int = 0  # of the Acquire that it answers
    report_every_packets: int = field(default=0, compare=False)  # StateReport; never read back
    usage: Usage = field(default=Usage(), compare=False)
    failures: SaFailures = field(default=SaFailures(), compare=False)
    last_used_at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Template:
    """How a policy wants its packets wrapped; an unspecified address leaves that to the packet."""

    source: IpAddress
    destination: IpAddress
    mode: XfrmMode
    reqid: int = 0
    proto: Proto = Proto.ESP
    spi: int = 0  # any
    is_optional: bool = False  # inbound: packets without are fine (IPComp). RFC 3173 §2.2


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPolicy:
    """A policy as the kernel has it: the one with the lowest ``priority`` that selects wins.

    ``index`` and ``usage`` are what the kernel tells.
    """

    selector: Selector
    direction: Direction
    templates: tuple[Template, ...] = ()
    priority: int = 0
    action: Action = Action.ALLOW
    flags: PolicyFlag = field(default=PolicyFlag(0))
    mark: Mark | None = None
    if_id: int = 0
    limits: Limits = Limits()
    index: int = field(default=0, compare=False)
    usage: Usage = field(default=Usage(), compare=False)

    @property
    def key(self) -> tuple[Selector, Direction, int]:
        """What the kernel tells policies without a mark apart by."""
        return self.selector, self.direction, self.if_id


@dataclass(frozen=True, slots=True)
class Migration:
    """SAs and templates with the old addresses get the new ones. RFC 4555 §3.5, for the kernel."""

    old_source: IpAddress
    old_destination: IpAddress
    new_source: IpAddress
    new_destination: IpAddress
    mode: XfrmMode
    reqid: int = 0
    proto: Proto = Proto.ESP


@dataclass(frozen=True, slots=True)
class SaState:
    """The moving part of an SA: where its sequence numbers are, and what it carried."""

    id: SaId
    source: IpAddress
    reqid: int
    outbound: int  # as in Replay
    inbound: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class Acquire:
    """A packet met a policy without an SA: ``selector`` is the packet's, exactly."""

    sequence: int
    id: SaId  # without an SPI
    source: IpAddress
    selector: Selector
    policy: KernelPolicy


@dataclass(frozen=True, slots=True)
class Expire:
    """An SA has reached a limit; a hard one deleted it. The value has no keys."""

    sa: KernelSa
    is_hard: bool


@dataclass(frozen=True, slots=True)
class PolicyExpire:
    """A policy has reached a limit; a hard one deleted it."""

    policy: KernelPolicy
    is_hard: bool


@dataclass(frozen=True, slots=True)
class Mapping:
    """An authentic packet in UDP came from elsewhere than the SA says: a NAT moved the peer."""

    id: SaId
    reqid: int
    old: SocketAddress
    new: SocketAddress


@dataclass(frozen=True, slots=True)
class SaChanged:
    """Somebody, also we, added or updated an SA."""

    sa: KernelSa
    is_new: bool


@dataclass(frozen=True, slots=True)
class SaDeleted:
    """Somebody, also we, deleted an SA."""

    id: SaId


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """Somebody, also we, added or updated a policy."""

    policy: KernelPolicy
    is_new: bool


@dataclass(frozen=True, slots=True)
class PolicyDeleted:
    """Somebody, also we, deleted a policy."""

    policy: KernelPolicy


@dataclass(frozen=True, slots=True)
class SasFlushed:
    """Somebody deleted all SAs of a protocol, or of all."""

    proto: int


@dataclass(frozen=True, slots=True)
class PoliciesFlushed:
    """Somebody deleted all policies."""


@dataclass(frozen=True, slots=True)
class StateReport:
    """The kernel tells how far an SA is, or somebody set it."""

    state: SaState


@dataclass(frozen=True, slots=True)
class Migrated:
    """SAs and policies with a selector got new addresses."""

    selector: Selector
    direction: Direction
    migrations: tuple[Migration, ...]


@dataclass(frozen=True, slots=True)
class EventsLost:
    """More happened than was read in time: look at everything anew."""


Event = (
    Acquire
    | Expire
    | PolicyExpire
    | Mapping
    | SaChanged
    | SaDeleted
    | PolicyChanged
    | PolicyDeleted
    | SasFlushed
    | PoliciesFlushed
    | StateReport
    | Migrated
    | EventsLost
)
