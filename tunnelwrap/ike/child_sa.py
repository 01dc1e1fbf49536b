"""ChildSa: everything a data plane needs to know about a pair of SAs, and nothing else."""

from dataclasses import dataclass
from enum import Enum

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import ChildSuite
from tunnelwrap.iana import ProtocolId
from tunnelwrap.path import Path
from tunnelwrap.wire.payloads import TrafficSelector


class Mode(Enum):
    """IPsec mode of a Child SA. RFC 4301 §3.2."""

    TUNNEL = "tunnel"
    TRANSPORT = "transport"
    BEET = "beet"  # draft-nikander-esp-beet-mode; strongSwan's and ours only


@dataclass(frozen=True, slots=True)
class SaKeys:
    """Keys of one direction: encryption key (with the salt of an AEAD at its end) and INTEG key."""

    encryption: Secret
    integrity: Secret


@dataclass(frozen=True, slots=True)
class SaLimits:
    """When a Child SA has carried enough; ``None`` is no limit. The soft limits ask for a rekey."""

    soft_octets: int | None
    hard_octets: int | None
    soft_packets: int | None
    hard_packets: int | None


@dataclass(frozen=True, slots=True)
class Cpis:
    """Where packets may come compressed (DEFLATE): our CPI and the peer's. RFC 3173 §3.3."""

    inbound: int
    outbound: int


@dataclass(frozen=True, slots=True)
class ChildSa:
    """A negotiated pair of ESP or AH SAs. RFC 7296 §1.2, RFC 4301 §4.4.2.

    ``ts_local`` and ``ts_peer`` are seen from this host: an outbound packet has its source in
    ``ts_local`` and its destination in ``ts_peer``. ``spi_in`` (ours, what the peer writes into
    its packets) names the Child SA on this host.
    """

    name: str
    peer: str  # the authenticated identity, for logs and status
    spi_in: int
    spi_out: int
    suite: ChildSuite
    keys_in: SaKeys
    keys_out: SaKeys
    uses_esn: bool
    mode: Mode
    ts_local: tuple[TrafficSelector, ...]
    ts_peer: tuple[TrafficSelector, ...]
    path: Path
    replay_window: int  # packets
    limits: SaLimits
    cpis: Cpis | None = None  # None: nothing is compressed
    is_bare: bool = False  # ESP travels without UDP around it

    @property
    def protocol(self) -> ProtocolId:
        """ESP or AH: an SPI is one of it. RFC 4301 §4.1."""
        return self.suite.PROTOCOL
