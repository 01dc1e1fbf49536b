"""Traffic selectors enforced both ways: which SA takes a packet, and may it come out of one.

RFC 4301 §4.4.1, §5.1, §5.2. Owns: the table of active outbound SAs by prefix, and the flow
caches, which are keyed by the packet's own octets so that a known flow costs one dict lookup.
"""

from collections.abc import Hashable
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Generic, NamedTuple, TypeVar

from tunnelwrap.errors import WireError
from tunnelwrap.wire.ip import flow_of
from tunnelwrap.wire.payloads import TrafficSelector

FLOW_LIMIT: Final = 65536
"""Flows remembered by one cache; when it is full it starts anew."""

_TCP: Final = 6
_UDP: Final = 17
_ICMP: Final = frozenset({1, 58})

Entry = TypeVar("Entry", bound=Hashable)
Network = IPv4Network | IPv6Network


class Flow(NamedTuple):
    """What selectors are compared with; ICMP has type and code in the destination port."""

    version: int
    protocol: int
    source: int
    destination: int
    source_port: int
    destination_port: int


def flow_key(packet: memoryview) -> bytes | None:
    """Addresses, protocol and ports as they stand in the packet; None: look at it in full.

    Only IPv4 without options and fragmentation, and IPv6 without extension headers, have one.
    """
    if len(packet) >= 28 and packet[0] == 0x45:
        if packet[6] & 0x3F or packet[7]:
            return None
        protocol = packet[9]
        if protocol in (_TCP, _UDP):
            return packet[9:10].tobytes() + packet[12:24]
        if protocol == 1:
            return packet[9:10].tobytes() + packet[12:22]
    elif len(packet) >= 48 and packet[0] >> 4 == 6:
        protocol = packet[6]
        if protocol in (_TCP, _UDP):
            return packet[6:7].tobytes() + packet[8:44]
        if protocol == 58:
            return packet[6:7].tobytes() + packet[8:42]
    return None


class _Selector:
    """One traffic selector as plain numbers. RFC 7296 §3.13.1."""

    __slots__ = ("first", "first_port", "last", "last_port", "protocol", "version")

    def __init__(self, selector: TrafficSelector) -> None:
        self.version = selector.start.version
        self.protocol = selector.protocol
        self.first = int(selector.start)
        self.last = int(selector.end)
        self.first_port = selector.start_port
        self.last_port = selector.end_port

    def matches(self, version: int, protocol: int, address: int, port: int) -> bool:
        """Whether one end of a flow lies inside."""
        return (
            self.first <= address <= self.last
            and self.version == version
            and (self.protocol in (0, protocol))
            and self._has_port(port)
        )

    def _has_port(self, port: int) -> bool:
        if self.first_port > self.last_port:  # OPAQUE: RFC 4301 §4.4.1.1, the port is not there
            return port == 0
        return self.first_port <= port <= self.last_port

    @property
    def breadth(self) -> tuple[int, bool, int]:
        """The smaller, the more specific: addresses, any protocol, ports."""
        return (self.last - self.first, self.protocol == 0, self.last_port - self.first_port)


def _narrowest(
    selectors: list[_Selector], flow: Flow, address: int, port: int
) -> tuple[int, bool, int] | None:
    """The breadth of the most specific selector that holds this end of a flow."""
    if flow.protocol in _ICMP:
        port = flow.destination_port  # RFC 7296 §3.13.1: type and code, whatever the direction
    breadths = [
        selector.breadth
        for selector in selectors
        if selector.matches(flow.version, flow.protocol, address, port)
    ]
    return min(breadths, default=None)


class InboundSelectors:
    """What may come out of one SA: source in ``ts_peer``, destination in ``ts_local``.

    RFC 4301 §5.2, step 4.
    """

    __slots__ = ("_known", "_local", "_peer")

    def __init__(
        self, ts_local: tuple[TrafficSelector, ...], ts_peer: tuple[TrafficSelector, ...]
    ) -> None:
        self._local = [_Selector(selector) for selector in ts_local]
        self._peer = [_Selector(selector) for selector in ts_peer]
        self._known: dict[bytes, bool] = {}

    def allow(self, packet: memoryview) -> bool:
        """Whether an inner packet that came out of the SA is inside its selectors."""
        key = flow_key(packet)
        if key is None:
            return self._judge(packet)
        verdict = self._known.get(key)
        if verdict is None:
            if len(self._known) >= FLOW_LIMIT:
                self._known.clear()
            verdict = self._known[key] = self._judge(packet)
        return verdict

    def _judge(self, packet: memoryview) -> bool:
        flow = _flow(packet)
        if flow is None:
            return False
        source = _narrowest(self._peer, flow, flow.source, flow.source_port)
        target = _narrowest(self._local, flow, flow.destination, flow.destination_port)
        return source is not None and target is not None


class _Active(Generic[Entry]):
    """An entry with its selectors and the turn in which it was activated."""

    __slots__ = ("entry", "local", "networks", "peer", "turn")

    def __init__(
        self,
        entry: Entry,
        turn: int,
        ts_local: tuple[TrafficSelector, ...],
        ts_peer: tuple[TrafficSelector, ...],
    ) -> None:
        self.entry = entry
        self.turn = turn
        self.local = [_Selector(selector) for selector in ts_local]
        self.peer = [_Selector(selector) for selector in ts_peer]
        self.networks = {network for selector in ts_peer for network in selector.networks()}


class OutboundPolicies(Generic[Entry]):
    """Finds the entry for an outbound packet: the most specific, then the newest."""

    __slots__ = ("_active", "_known", "_tables", "_turn")

    def __init__(self) -> None:
        self._turn = 0
        self._active: dict[Entry, _Active[Entry]] = {}
        # (version, prefix length) -> network as a number without host bits -> entries
        self._tables: dict[tuple[int, int], dict[int, list[_Active[Entry]]]] = {}
        self._known: dict[bytes, Entry | None] = {}

    def activate(
        self,
        entry: Entry,
        ts_local: tuple[TrafficSelector, ...],
        ts_peer: tuple[TrafficSelector, ...],
    ) -> None:
        """Prefer this entry over all with the same selectors; again moves it to the front."""
        self.deactivate(entry)
        self._turn += 1
        active = self._active[entry] = _Active(entry, self._turn, ts_local, ts_peer)
        for network in active.networks:
            table = self._tables.setdefault((network.version, network.prefixlen), {})
            table.setdefault(_prefix_of(network), []).append(active)

    def deactivate(self, entry: Entry) -> None:
        """Forget an entry; unknown is no error."""
        self._known.clear()
        active = self._active.pop(entry, None)
        if active is not None:
            self._unlist(active)

    def lookup(self, packet: memoryview) -> Entry | None:
        """The entry that takes this packet; None: no policy does."""
        key = flow_key(packet)
        if key is None:
            return self._search(packet)
        try:
            return self._known[key]
        except KeyError:
            if len(self._known) >= FLOW_LIMIT:
                self._known.clear()
            found = self._known[key] = self._search(packet)
            return found

    def _unlist(self, active: _Active[Entry]) -> None:
        for network in active.networks:
            table = self._tables[network.version, network.prefixlen]
            prefix = _prefix_of(network)
            table[prefix].remove(active)
            if not table[prefix]:
                del table[prefix]
            if not table:
                del self._tables[network.version, network.prefixlen]

    def _search(self, packet: memoryview) -> Entry | None:
        flow = _flow(packet)
        if flow is None:
            return None
        best: tuple[tuple[int, bool, int], tuple[int, bool, int], int] | None = None
        found: Entry | None = None
        for active in self._candidates(flow):
            peer = _narrowest(active.peer, flow, flow.destination, flow.destination_port)
            local = _narrowest(active.local, flow, flow.source, flow.source_port)
            if peer is None or local is None:
                continue
            rank = (peer, local, -active.turn)
            if best is None or rank < best:
                best, found = rank, active.entry
        return found

    def _candidates(self, flow: Flow) -> list[_Active[Entry]]:
        """Entries with a network of ``ts_peer`` around the destination."""
        width = 32 if flow.version == 4 else 128
        found: list[_Active[Entry]] = []
        for (version, length), table in self._tables.items():
            if version == flow.version:
                found += table.get(flow.destination >> (width - length), ())
        return found


def _prefix_of(network: Network) -> int:
    return int(network.network_address) >> (network.max_prefixlen - network.prefixlen)


def _flow(packet: memoryview) -> Flow | None:
    try:
        return Flow(*flow_of(packet))
    except WireError:
        return None
