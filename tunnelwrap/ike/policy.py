"""What the core is told to do: credentials, proposals, selectors, lifetimes, limits.

Plain values, composed by ``config``; times are seconds, sizes octets unless named otherwise.
"""

from dataclasses import dataclass, field
from enum import Enum

from tunnelwrap.auth.identity import Identity, IdentityPattern
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.signature import PrivateKey
from tunnelwrap.crypto.x509 import TrustStore
from tunnelwrap.iana import ProtocolId
from tunnelwrap.ike.child_sa import Mode
from tunnelwrap.wire.payloads import TrafficSelector
from tunnelwrap.wire.proposal import Proposal


class Unique(Enum):
    """What a new IKE SA of a peer that has one already does to the old one. RFC 7296 §2.4."""

    REPLACE = "replace"
    KEEP = "keep"
    NEVER = "never"  # it is refused


class Childless(Enum):
    """Whether an IKE SA may begin without a Child SA. RFC 6023."""

    NEVER = "never"
    ACCEPT = "accept"  # as initiator we ask for it only where a Child SA is made on demand
    REQUIRE = "require"


@dataclass(frozen=True, slots=True)
class CertificateCredential:
    """Our certificate chain (DER, end entity first) and its private key."""

    chain: tuple[bytes, ...]
    key: PrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class NoCredential:
    """We prove nothing: NULL authentication. RFC 7619."""


@dataclass(frozen=True, slots=True)
class LocalAuthentication:
    """Who we are, and how we prove it: a pre-shared key, a certificate, or not at all."""

    identity: Identity
    credential: Secret | CertificateCredential | NoCredential


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """Whom we expect, and what proves it: PSK, certificate, or both; or that nothing need be."""

    identity: IdentityPattern
    psk: Secret | None
    trust: TrustStore | None
    accepts_null: bool = False  # also who proves nothing, as ID_NULL. RFC 7619


@dataclass(frozen=True, slots=True)
class ChildLifetime:
    """When a Child SA is rekeyed (soft) and when it ends at the latest (hard); None: never."""

    rekey_s: float | None = 3600.0
    hard_s: float | None = 4320.0
    rekey_octets: int | None = None
    hard_octets: int | None = None
    rekey_packets: int | None = None
    hard_packets: int | None = None


@dataclass(frozen=True, slots=True)
class ChildPolicy:
    """A Child SA we want or allow.

    An empty ``ts_local`` or ``ts_peer`` is dynamic: the address assigned by the configuration
    payload on that side, else the address of the path.
    """

    name: str
    proposals: tuple[Proposal, ...]
    ts_local: tuple[TrafficSelector, ...]
    ts_peer: tuple[TrafficSelector, ...]
    mode: Mode = Mode.TUNNEL
    lifetime: ChildLifetime = ChildLifetime()
    replay_window: int = 1024  # packets
    ipcomp: bool = False  # compress, where peer and data plane can. RFC 3173
    single_pair: bool = False  # as responder: one pair of addresses for each Child SA
    on_demand: bool = False  # as initiator: made when there is something to carry
    idle_s: float | None = None  # ends when it carried nothing for so long; None: never

    @property
    def has_ah(self) -> bool:
        """Whether it may be of AH."""
        return any(proposal.protocol == ProtocolId.AH for proposal in self.proposals)


@dataclass(frozen=True, slots=True)
class Retransmission:
    """Back-off of requests on datagram carriers: timeout_s * factor**n, ``tries`` repeats."""

    timeout_s: float = 0.5
    factor: float = 1.8
    tries: int = 8
    reliable_timeout_s: float = 60.0  # a request unanswered on a stream ends the IKE SA


@dataclass(frozen=True, slots=True)
class Ppk:
    """A post-quantum preshared key, mixed into the keys of an IKE SA. RFC 8784."""

    identity: bytes  # PPK_ID without the octet of its type
    secret: Secret
    is_required: bool  # False: a peer without it is accepted all the same


@dataclass(frozen=True, slots=True)
class ConnectionPolicy:
    """One peer, or one kind of peer."""

    name: str
    proposals: tuple[Proposal, ...]
    local: LocalAuthentication
    peer: PeerAuthentication
    child: ChildPolicy
    requests_ipv4: bool = False  # ask for an address by the configuration payload
    requests_ipv6: bool = False
    pool: str | None = None  # assign addresses from this pool
    rekey_s: float | None = 14400.0
    hard_s: float | None = 17280.0
    liveness_s: float | None = 30.0  # idle time before a liveness check
    retransmission: Retransmission = Retransmission()
    fragment_size: int = 1280  # IP datagrams that carry longer IKE messages. RFC 7383 §2.5.1
    unique: Unique = Unique.REPLACE
    reauth_s: float | None = None  # how long a proof of identity is good
    childless: Childless = Childless.ACCEPT
    resumption: bool = True  # by tickets, asked for or given. RFC 5723
    follows_redirects: bool = True  # as initiator. RFC 5685
    redirect_to: str | None = None  # as responder: the gateway for these peers
    ppk: Ppk | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers may cost a responder, and what a peer may."""

    half_open: int = 1000  # IKE SAs that are not yet authenticated
    half_open_s: float = 30.0  # time that one may stay so
    child_sas: int = 32  # of one IKE SA, those about to go included
    half_open_per_address: int = 16  # of one IPv4 address or IPv6 /64
    cookie_threshold: int = 32  # so many half open, and who comes by datagrams needs a cookie
