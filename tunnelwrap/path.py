"""Path and Datagram: the only vocabulary that the core and the transports share."""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address

IpAddress = IPv4Address | IPv6Address


class Carrier(Enum):
    """What carries the datagrams of a path."""

    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"
    WEBSOCKET = "ws"

    @property
    def is_reliable(self) -> bool:
        """True where the carrier itself repeats what was lost: no IKE retransmission there."""
        return self is not Carrier.UDP


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """An IP address with its port."""

    ip: IpAddress
    port: int

    @classmethod
    def of(cls, name: tuple[str, int] | tuple[str, int, int, int]) -> "SocketAddress":
        """The address that a socket names; a scope in it is dropped."""
        return cls(ip_address(name[0].partition("%")[0]), name[1])

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class Path:
    """Where datagrams travel: both socket addresses as this host sees them, and the carrier."""

    local: SocketAddress
    peer: SocketAddress
    carrier: Carrier
    has_marker: bool = True  # non-ESP marker before IKE; False only on UDP port 500
    id: int = 0  # tells one stream from another between equal addresses

    def __str__(self) -> str:
        return f"{self.carrier.value} {self.peer}"


@dataclass(frozen=True, slots=True)
class Datagram:
    """One IKE message with the path it came by or goes by; the non-ESP marker is not part of it."""

    path: Path
    octets: bytes
