"""What the core can say: a closed union of facts and orders, matched with ``assert_never``."""

from dataclasses import dataclass

from tunnelwrap.crypto.keymat import IkeKeys
from tunnelwrap.crypto.suite import IkeSuite
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.path import Datagram, IpAddress, Path

SaId = int
"""Names an IKE SA on this host for its whole life, across rekeys."""


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send one IKE message."""

    datagram: Datagram


@dataclass(frozen=True, slots=True)
class InstallChildSa:
    """Take a Child SA into use; before anything that follows in the queue."""

    sa: SaId
    child: ChildSa
    use_outbound: bool
    replaces: int | None  # spi_in of the Child SA that it rekeys


@dataclass(frozen=True, slots=True)
class UseOutbound:
    """Send through this Child SA from now on."""

    sa: SaId
    spi_in: int


@dataclass(frozen=True, slots=True)
class MoveChildSa:
    """The peer is now reached by another path."""

    sa: SaId
    spi_in: int
    path: Path
    is_bare: bool  # as in ChildSa


@dataclass(frozen=True, slots=True)
class Moved:
    """The peer is reached by another path now; each Child SA is told apart."""

    sa: SaId
    path: Path


@dataclass(frozen=True, slots=True)
class RemoveChildSa:
    """Forget a Child SA."""

    sa: SaId
    spi_in: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Addresses and servers assigned by the configuration payload. RFC 7296 §3.15."""

    addresses: tuple[IpAddress, ...]
    dns: tuple[IpAddress, ...] = ()
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """Our IKE_SA_INIT is answered: this path works, and the shell may go on to authenticate."""

    sa: SaId
    path: Path


@dataclass(frozen=True, slots=True)
class Established:
    """Both peers are authenticated."""

    sa: SaId
    connection: str  # name of the policy
    peer_identity: str
    local_identity: str
    path: Path
    ike_suite: str
    lease: Lease | None
    behind_nat: bool
    peer_behind_nat: bool
    is_initiator: bool
    replaces: SaId | None = None  # the IKE SA that we authenticate again with this one
    uses_ppk: bool = False  # RFC 8784


@dataclass(frozen=True, slots=True)
class ReauthenticationDue:
    """Authenticate again: begin an IKE SA that replaces this one. RFC 7296 §2.8.3.

    It is said again after a while, for as long as nothing came of it.
    """

    sa: SaId


@dataclass(frozen=True, slots=True)
class Redirected:
    """The peer sends us to another gateway, a name or an address; this IKE SA ends. RFC 5685."""

    sa: SaId
    gateway: str


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """The IKE SA has new SPIs and keys."""

    sa: SaId
    spi_i: int
    spi_r: int


@dataclass(frozen=True, slots=True)
class KeysDerived:
    """New keys of an IKE SA, for who must read its messages; only if ``exports_keys`` is set."""

    sa: SaId
    spi_i: bytes
    spi_r: bytes
    suite: IkeSuite
    keys: IkeKeys


@dataclass(frozen=True, slots=True)
class ChildRefused:
    """A Child SA that we asked for was refused; the IKE SA lives on."""

    sa: SaId
    connection: str
    reason: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The IKE SA is gone, with all its Child SAs; nothing more is said about it.

    ``notify`` is the Notify type that ended it, ``hint`` how a human could mend the cause.
    Without ``was_established`` the peer never proved who it is, and ``reason`` says who it was.
    """

    sa: SaId
    reason: str
    notify: int | None = None
    hint: str = ""
    is_failure: bool = True
    lease: Lease | None = None
    was_established: bool = True


@dataclass(frozen=True, slots=True)
class AskLease:
    """Which addresses does this peer get? Answer with a Lease or a Refusal."""

    sa: SaId
    ask: int
    pool: str
    peer_identity: str
    wants_ipv4: bool
    wants_ipv6: bool
    requested: tuple[IpAddress, ...]


@dataclass(frozen=True, slots=True)
class AskActivity:
    """When did the peer last send an authentic packet? Answer with monotonic seconds or None."""

    sa: SaId
    ask: int
    spis_in: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AskUsage:
    """How many inner packets has a Child SA carried, in and out? Answer with their number."""

    sa: SaId
    spi_in: int


@dataclass(frozen=True, slots=True)
class ReleaseSpi:
    """An inbound SPI that was reserved is not needed: no Child SA came of it."""

    spi_in: int


@dataclass(frozen=True, slots=True)
class Trace:
    """One line of the story for the log: ``level`` is "debug", "info" or "warning"."""

    sa: SaId | None
    level: str
    text: str


Output = (
    Transmit
    | InstallChildSa
    | UseOutbound
    | MoveChildSa
    | Moved
    | RemoveChildSa
    | Answered
    | Established
    | Rekeyed
    | Redirected
    | ReauthenticationDue
    | KeysDerived
    | ChildRefused
    | Closed
    | AskLease
    | AskActivity
    | AskUsage
    | ReleaseSpi
    | Trace
)
