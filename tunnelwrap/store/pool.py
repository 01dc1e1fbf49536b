"""A pool: which addresses of some networks can be given to peers. Arithmetic only, no memory.

Of each network with four addresses or more, the first and (IPv4) the last are nobody's, as the
network's own and the broadcast address, and the second is the gateway's. In a network of two the
gateway has the first; a single address is for a peer.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from tunnelwrap.errors import PoolExhausted
from tunnelwrap.path import IpAddress

IpNetwork = IPv4Network | IPv6Network

_SMALL: Final = 4  # networks below this size have no address of their own and no broadcast


@dataclass(frozen=True, slots=True)
class _Range:
    """The addresses for peers of one network: ``size`` of them, from ``start`` on."""

    network: IpNetwork
    gateway: IpAddress | None
    start: int
    size: int

    @classmethod
    def of(cls, network: IpNetwork) -> "_Range":
        first, count = int(network.network_address), network.num_addresses
        if count == 1:
            return cls(network, None, first, 1)
        if count < _SMALL:
            return cls(network, network[0], first + 1, count - 1)
        broadcast = 1 if network.version == 4 else 0
        return cls(network, network[1], first + 2, count - 2 - broadcast)

    def __contains__(self, address: IpAddress) -> bool:
        same = address.version == self.network.version
        return same and 0 <= int(address) - self.start < self.size

    def at(self, offset: int) -> IpAddress:
        number = self.start + offset % self.size
        return IPv4Address(number) if self.network.version == 4 else IPv6Address(number)


class Pool:
    """The addresses of some networks, of one IP version or both.

    Args:
        networks: without host bits, not overlapping.
        reserved: addresses in them that are never given away.
    """

    __slots__ = ("_ranges", "_reserved", "networks")

    def __init__(self, networks: Sequence[IpNetwork], reserved: Iterable[IpAddress] = ()) -> None:
        self.networks = tuple(networks)
        self._ranges = tuple(_Range.of(network) for network in networks)
        self._reserved = frozenset(reserved)

    @property
    def gateways(self) -> tuple[IpAddress, ...]:
        """The gateway's own address in each network that has one."""
        return tuple(r.gateway for r in self._ranges if r.gateway is not None)

    def __contains__(self, address: IpAddress) -> bool:
        """Whether an address could ever be given to a peer."""
        return address not in self._reserved and any(address in r for r in self._ranges)

    def has(self, version: int) -> bool:
        """Whether there are addresses of an IP version."""
        return any(network.version == version for network in self.networks)

    def choose(
        self,
        identity: str,
        version: int,
        taken: Container[IpAddress],
        requested: Iterable[IpAddress] = (),
    ) -> IpAddress:
        """An address that is not taken: the first requested one that can be had, else one's own.

        One's own follows from the identity alone: the same each time unless it is taken, when it
        is the next one free behind it.

        Raises:
            PoolExhausted: none of this version is free.
        """
        for address in requested:
            if address.version == version and address in self and address not in taken:
                return address
        for address in self._walk(identity, version):
            if address not in taken and address not in self._reserved:
                return address
        raise PoolExhausted(f"no IPv{version} address is free in {self}")

    def __str__(self) -> str:
        return ", ".join(str(network) for network in self.networks)

    def _walk(self, identity: str, version: int) -> Iterator[IpAddress]:
        """All addresses of a version: each network in turn, from where the identity points to."""
        point = int.from_bytes(sha256(identity.encode()).digest())
        for addresses in self._ranges:
            if addresses.network.version == version:
                start = point % addresses.size
                offset = 0
                while offset < addresses.size:
                    yield addresses.at(start + offset)
                    offset += 1
