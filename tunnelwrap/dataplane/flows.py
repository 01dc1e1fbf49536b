"""Traffic selectors as the kernel can compare them: networks, and ports under a mask.

A range becomes the fewest pieces that cover it exactly; what has no exact form is refused, for a
policy that takes more than was negotiated would let packets through that nobody agreed to.
RFC 7296 §3.13.1, RFC 4301 §4.4.1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from itertools import product
from typing import Final

from tunnelwrap.dataplane.xfrm_values import PortMask, Selector
from tunnelwrap.errors import Unsupported
from tunnelwrap.wire.payloads import TrafficSelector

ANY_PORT: Final = PortMask()
MAX_FLOWS: Final = 512
"""Policies that one Child SA may need in a direction."""

_ALL_PORTS: Final = 0xFFFF
_ICMP: Final = frozenset({1, 58})
_TYPE_SHIFT: Final = 8


@dataclass(frozen=True, slots=True)
class KernelFlow:
    """What one policy takes, seen from this host; for ICMP the ports are type and code."""

    local: IPv4Network | IPv6Network
    peer: IPv4Network | IPv6Network
    protocol: int  # 0: any
    local_port: PortMask
    peer_port: PortMask
    is_own: bool = False  # of this host to itself

    @property
    def covers_own(self) -> bool:
        """Whether packets of this host to itself look as if they were the peer's."""
        peer, local = self.peer, self.local
        if isinstance(peer, IPv4Network) and isinstance(local, IPv4Network):
            return local.subnet_of(peer)
        return (
            isinstance(peer, IPv6Network)
            and isinstance(local, IPv6Network)
            and local.subnet_of(peer)
        )

    @property
    def is_of_one_host(self) -> bool:
        """Whether an end is a single address, so that it is nowhere else."""
        return any(each.prefixlen == each.max_prefixlen for each in (self.local, self.peer))

    @property
    def own(self) -> "KernelFlow":
        """Those packets."""
        return KernelFlow(self.local, self.local, 0, ANY_PORT, ANY_PORT, is_own=True)

    def selector(self, *, is_outbound: bool) -> Selector:
        """What packets of this flow look like that go out, or that come in."""
        if is_outbound or self.protocol in _ICMP:
            ports = self.local_port, self.peer_port
        else:
            ports = self.peer_port, self.local_port
        ends = (self.local, self.peer) if is_outbound else (self.peer, self.local)
        return Selector(*ends, self.protocol, *ports)

    @property
    def breadth(self) -> int:
        """The smaller, the more specific: addresses count first, then protocol and ports.

        This host's own packets come before all.
        """
        if self.is_own:
            return -1
        free = sum(each.max_prefixlen - each.prefixlen for each in (self.local, self.peer))
        ports = sum(port.mask == 0 for port in (self.local_port, self.peer_port))
        return free * 4 + (self.protocol == 0) + ports


def kernel_flows(
    ts_local: Sequence[TrafficSelector], ts_peer: Sequence[TrafficSelector]
) -> list[KernelFlow]:
    """The flows between two sets of traffic selectors.

    Raises:
        Unsupported: a selector has no form in the kernel, or there are too many pieces.
    """
    flows: dict[KernelFlow, None] = {}
    for local, peer in product(ts_local, ts_peer):
        for flow in _between(local, peer):
            flows[flow] = None
            if len(flows) > MAX_FLOWS:
                raise Unsupported(f"the traffic selectors need more than {MAX_FLOWS} policies")
    return list(flows)


def _between(local: TrafficSelector, peer: TrafficSelector) -> Iterator[KernelFlow]:
    protocols = {each.protocol for each in (local, peer)} - {0}
    if len(protocols) > 1 or local.start.version != peer.start.version:
        return  # no packet has both
    protocol = protocols.pop() if protocols else 0
    for ports in _ports(protocol, local, peer):
        for networks in product(local.networks(), peer.networks()):
            yield KernelFlow(*networks, protocol, *ports)


def _ports(
    protocol: int, local: TrafficSelector, peer: TrafficSelector
) -> Iterator[tuple[PortMask, PortMask]]:
    ranges = [(each.start_port, each.end_port) for each in (local, peer)]
    if any(start > end for start, end in ranges):
        raise Unsupported("the kernel has no selectors for opaque ports")
    if protocol in _ICMP:
        yield _type_and_code(ranges)
    else:
        yield from product(*(list(port_masks(*each)) for each in ranges))


def port_masks(first: int, last: int) -> Iterator[PortMask]:
    """The fewest masked ports that cover a range exactly."""
    while first <= last:
        size = first & -first or _ALL_PORTS + 1
        while size > last - first + 1:
            size >>= 1
        yield PortMask(first, _ALL_PORTS & ~(size - 1))
        first += size


def _type_and_code(ranges: Sequence[tuple[int, int]]) -> tuple[PortMask, PortMask]:
    """One type with one code or all codes, or all of ICMP; both ends must say the same."""
    wanted = {each for each in ranges if each != (0, _ALL_PORTS)}
    if not wanted:
        return ANY_PORT, ANY_PORT
    first, last = wanted.pop()
    kind, code = first >> _TYPE_SHIFT, first & 0xFF
    is_one_code, is_one_type = first == last, last - first == 0xFF and code == 0
    if wanted or not (is_one_code or is_one_type):
        raise Unsupported("the kernel has no selectors for ranges of ICMP types")
    masked = PortMask(kind, _ALL_PORTS)
    return masked, PortMask(code, _ALL_PORTS) if is_one_code else ANY_PORT
