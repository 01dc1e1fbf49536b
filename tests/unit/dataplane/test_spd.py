"""Traffic selectors: which SA takes a packet, and what may come out of one."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet, Raw

from tests.unit.dataplane.samples import octets, selectors
from tunnelwrap.dataplane import spd
from tunnelwrap.dataplane.spd import InboundSelectors, OutboundPolicies, flow_key

HERE = "10.1.0.1"
ALL = ("0.0.0.0/0", "::/0")


def to(destination: str, source: str = HERE, port: int = 80, kind: type = TCP) -> memoryview:
    layer = IPv6 if ":" in destination else IP
    return octets(layer(src=source, dst=destination) / kind(sport=1234, dport=port) / Raw(bytes(8)))


def policies(**entries: tuple) -> OutboundPolicies[str]:
    """Entries in order of activation: name to (ts_local, ts_peer)."""
    table: OutboundPolicies[str] = OutboundPolicies()
    for name, (local, peer) in entries.items():
        table.activate(name, local, peer)
    return table


def test_longest_prefix_wins_whatever_the_order() -> None:
    rows = {
        "all": (selectors(*ALL), selectors(*ALL)),
        "net": (selectors(*ALL), selectors("10.2.0.0/16")),
        "host": (selectors(*ALL), selectors("10.2.3.4/32")),
    }
    for order in (rows, dict(reversed(rows.items()))):
        table = policies(**order)
        assert table.lookup(to("10.2.3.4")) == "host"
        assert table.lookup(to("10.2.3.5")) == "net"
        assert table.lookup(to("10.3.0.1")) == "all"
        assert table.lookup(to("fd00::1", "fd01::1")) == "all"


def test_nothing_matches() -> None:
    table = policies(net=(selectors("10.1.0.0/16"), selectors("10.2.0.0/16")))
    assert table.lookup(to("10.3.0.1")) is None
    assert table.lookup(to("10.2.0.1", source="10.9.0.1")) is None
    assert table.lookup(to("fd02::1", "fd01::1")) is None
    assert table.lookup(memoryview(b"")) is None
    assert table.lookup(memoryview(b"\x45\0\0")) is None


def test_newest_of_equals_wins_until_it_goes() -> None:
    """A rekeyed SA takes over, and gives back when it is removed."""
    both = (selectors(*ALL), selectors("10.2.0.0/16"))
    table = policies(old=both, new=both)
    assert table.lookup(to("10.2.0.1")) == "new"
    table.activate("old", *both)
    assert table.lookup(to("10.2.0.1")) == "old"
    table.deactivate("old")
    assert table.lookup(to("10.2.0.1")) == "new"
    table.deactivate("new")
    table.deactivate("never there")
    assert table.lookup(to("10.2.0.1")) is None


def test_a_new_entry_is_seen_by_known_flows() -> None:
    table = policies(all=(selectors(*ALL), selectors(*ALL)))
    assert table.lookup(to("10.2.0.1")) == "all"
    table.activate("host", selectors(*ALL), selectors("10.2.0.1/32"))
    assert table.lookup(to("10.2.0.1")) == "host"


def test_protocol_and_port_make_more_specific() -> None:
    peer = "10.2.0.0/16"
    table = policies(
        web=(selectors(*ALL), selectors(peer, protocol=6, ports=(80, 80))),
        tcp=(selectors(*ALL), selectors(peer, protocol=6)),
        any=(selectors(*ALL), selectors(peer)),
    )
    assert table.lookup(to("10.2.0.1", port=80)) == "web"
    assert table.lookup(to("10.2.0.1", port=81)) == "tcp"
    assert table.lookup(to("10.2.0.1", port=80, kind=UDP)) == "any"


def test_the_source_decides_between_equal_destinations() -> None:
    table = policies(
        one=(selectors("10.1.1.0/24"), selectors(*ALL)),
        two=(selectors("10.1.2.0/24"), selectors(*ALL)),
    )
    assert table.lookup(to("10.9.0.1", source="10.1.1.1")) == "one"
    assert table.lookup(to("10.9.0.1", source="10.1.2.1")) == "two"


def test_a_range_that_is_no_prefix() -> None:
    selector = selectors("10.2.0.0/30")[0]
    odd = type(selector)(0, 0, 65535, selector.start + 1, selector.end + 3)  # .1 to .6
    table = policies(odd=(selectors(*ALL), (odd,)))
    takes = [n for n in range(10) if table.lookup(to(f"10.2.0.{n}"))]
    assert takes == [1, 2, 3, 4, 5, 6]


def test_a_thousand_hosts() -> None:
    rows = {
        f"c{n}": (selectors(*ALL), selectors(f"10.2.{n >> 8}.{n & 255}/32")) for n in range(999)
    }
    table = policies(**rows)
    for name in list(rows)[::7]:
        table.deactivate(name)
    for n in range(999):
        expected = f"c{n}" if n % 7 else None
        assert table.lookup(to(f"10.2.{n >> 8}.{n & 255}")) == expected


def test_inbound_packets_must_be_inside() -> None:
    inside = InboundSelectors(selectors("10.1.0.0/16"), selectors("10.2.0.0/16", "fd02::/16"))
    assert inside.allow(to(HERE, source="10.2.0.9"))
    assert inside.allow(to(HERE, source="10.2.0.9"))  # known by now
    assert not inside.allow(to(HERE, source="10.3.0.9"))
    assert not inside.allow(to(HERE, source="10.3.0.9"))
    assert not inside.allow(to("10.9.0.1", source="10.2.0.9"))
    assert not inside.allow(to("fd01::1", source="fd02::9"))
    assert not inside.allow(memoryview(b"\x45\0"))


def test_inbound_ports_are_seen_from_the_peer() -> None:
    inside = InboundSelectors(
        selectors(*ALL, protocol=6, ports=(22, 22)), selectors(*ALL, protocol=6)
    )
    assert inside.allow(to(HERE, source="10.2.0.1", port=22))
    assert not inside.allow(to(HERE, source="10.2.0.1", port=23))
    assert not inside.allow(to(HERE, source="10.2.0.1", port=22, kind=UDP))


def test_icmp_type_and_code_stand_for_both_ports() -> None:
    """RFC 7296 §3.13.1: type in the high octet, code in the low one."""
    echo = selectors(*ALL, protocol=1, ports=(8 << 8, 8 << 8 | 255))
    inside = InboundSelectors(echo, echo)
    request = IP(src="10.2.0.1", dst=HERE) / ICMP(type=8) / Raw(bytes(8))
    answer = IP(src="10.2.0.1", dst=HERE) / ICMP(type=0) / Raw(bytes(8))
    assert inside.allow(octets(request))
    assert not inside.allow(octets(answer))


def test_opaque_ports_match_what_has_none() -> None:
    """RFC 4301 §4.4.1.1: later fragments go by OPAQUE, and not by a port."""
    later = octets(IP(src="10.2.0.1", dst=HERE, proto=17, frag=100) / Raw(bytes(40)))
    first = selectors("10.2.0.0/16")[0]
    opaque = type(first)(17, 65535, 0, first.start, first.end)
    some = selectors("10.2.0.0/16", protocol=17, ports=(5, 70))
    assert InboundSelectors(selectors(*ALL), (opaque,)).allow(later)
    assert not InboundSelectors(selectors(*ALL), some).allow(later)


@pytest.mark.parametrize(
    "packet",
    [
        IP(src=HERE, dst="10.2.0.1") / TCP(sport=1, dport=2),
        IP(src=HERE, dst="10.2.0.1") / UDP(sport=1, dport=2),
        IP(src=HERE, dst="10.2.0.1") / ICMP(type=8) / Raw(bytes(8)),
        IPv6(src="fd01::1", dst="fd02::1") / TCP(sport=1, dport=2),
        IPv6(src="fd01::1", dst="fd02::1") / UDP(sport=1, dport=2),
        IPv6(src="fd01::1", dst="fd02::1") / ICMPv6EchoRequest(),
    ],
    ids=["tcp4", "udp4", "icmp4", "tcp6", "udp6", "icmp6"],
)
def test_flow_keys_tell_flows_apart_and_packets_of_one_flow_not(packet: Packet) -> None:
    def key(change: object = None) -> bytes | None:
        other = packet.copy()
        if change is not None:
            change(other)
        return flow_key(octets(type(other)(bytes(other))))

    def more(other: Packet) -> None:
        other.add_payload(Raw(bytes(20)))

    def address(other: Packet) -> None:
        other.dst = "10.2.0.2" if isinstance(other, IP) else "fd02::2"

    def last(other: Packet) -> None:
        layer = other.payload
        layer.fields["dport" if "dport" in layer.fields else "code"] = 9

    assert key() is not None
    assert key(more) == key()
    assert key(address) != key()
    assert key(last) != key()


@pytest.mark.parametrize(
    "packet",
    [
        IP(src=HERE, dst="10.2.0.1", frag=5) / Raw(bytes(40)),
        IP(src=HERE, dst="10.2.0.1", flags="MF") / UDP() / Raw(bytes(40)),
        IP(src=HERE, dst="10.2.0.1", options=b"\x01\x01\x01\x01") / UDP() / Raw(bytes(40)),
        IPv6(src="fd01::1", dst="fd02::1") / IPv6ExtHdrDestOpt() / UDP() / Raw(bytes(40)),
    ],
    ids=["later", "first", "options", "extension"],
)
def test_packets_of_unusual_shape_have_no_flow_key_but_are_judged(packet: Packet) -> None:
    raw = octets(packet)
    assert flow_key(raw) is None
    assert policies(all=(selectors(*ALL), selectors(*ALL))).lookup(raw) == "all"
    assert InboundSelectors(selectors(*ALL), selectors(*ALL)).allow(raw)


def test_flow_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spd, "FLOW_LIMIT", 4)
    table = policies(all=(selectors(*ALL), selectors("10.2.0.0/16")))
    inside = InboundSelectors(selectors(*ALL), selectors(*ALL))
    for port in range(50):
        assert table.lookup(to("10.2.0.1", port=port)) == "all"
        assert table.lookup(to("10.3.0.1", port=port)) is None
        assert inside.allow(to("10.2.0.1", port=port))
