"""Inner packets: flows, checksums, MSS and "too big"; scapy builds and judges the packets."""

from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPerror6,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from tests.unit.wire.samples import load
from tunnelwrap.errors import Malformed, Truncated, WireError
from tunnelwrap.wire.ip import checksum, clamp_mss, flow_of, too_big

HERE, THERE = "10.1.0.1", "10.2.0.1"
HERE_6, THERE_6 = "fd01::1", "fd02::1"
V4 = (4, int(ip_address(HERE)), int(ip_address(THERE)))
V6 = (6, int(ip_address(HERE_6)), int(ip_address(THERE_6)))


def v4(**fields: object) -> IP:
    return IP(src=HERE, dst=THERE, **fields)


def v6(**fields: object) -> IPv6:
    return IPv6(src=HERE_6, dst=THERE_6, **fields)


def view(packet: Packet | bytes) -> memoryview:
    return memoryview(bytearray(bytes(packet)))


def flow(packet: Packet | bytes) -> tuple[tuple[int, int, int], int, int, int]:
    """((version, source, destination), protocol, source port, destination port)."""
    version, protocol, source, destination, source_port, port = flow_of(view(packet))
    return (version, source, destination), protocol, source_port, port


@pytest.mark.rfc("4301", "4.4.1.1")
@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (v4() / TCP(sport=1234, dport=80), (V4, 6, 1234, 80)),
        (v4() / UDP(sport=1234, dport=53), (V4, 17, 1234, 53)),
        (v4() / SCTP(sport=1234, dport=99), (V4, 132, 1234, 99)),
        (v4() / ICMP(type=8, code=0), (V4, 1, 0, 0x0800)),
        (v4() / ICMP(type=3, code=4), (V4, 1, 0, 0x0304)),
        (v4(proto=47) / Raw(b""), (V4, 47, 0, 0)),
        (v4(proto=58) / Raw(b"\x80\0\0\0"), (V4, 58, 0, 0)),
        (v4(options=b"\1\1\1\1") / UDP(sport=5, dport=6), (V4, 17, 5, 6)),
        (v4(flags="MF") / UDP(sport=5, dport=6) / Raw(bytes(16)), (V4, 17, 5, 6)),
        (v4(proto=17, frag=1) / Raw(bytes(16)), (V4, 17, 0, 0)),
        (v4(proto=6, frag=8000, flags="MF") / Raw(b""), (V4, 6, 0, 0)),
        (v4() / ESP(spi=1) / Raw(bytes(9)), (V4, 50, 0, 0)),
        (v6() / TCP(sport=1234, dport=80), (V6, 6, 1234, 80)),
        (v6() / ICMPv6EchoRequest(), (V6, 58, 0, 0x8000)),
        (v6(nh=1) / Raw(b"\x08\0\0\0"), (V6, 1, 0, 0)),
        (v6(nh=59), (V6, 59, 0, 0)),
        (v6() / IPv6ExtHdrHopByHop() / UDP(sport=5, dport=6), (V6, 17, 5, 6)),
        (
            v6() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(addresses=["::5"]) / TCP(dport=6),
            (V6, 6, 20, 6),
        ),
        (v6() / IPv6ExtHdrFragment(m=1) / UDP(sport=5, dport=6) / Raw(bytes(8)), (V6, 17, 5, 6)),
        (v6() / IPv6ExtHdrFragment(offset=1, nh=17) / Raw(bytes(8)), (V6, 17, 0, 0)),
        (v6() / IPv6ExtHdrFragment(offset=1, nh=60) / Raw(b"\xff" * 8), (V6, 60, 0, 0)),
        (v6() / AH(spi=1) / UDP(), (V6, 51, 0, 0)),
        (v6() / ESP(spi=1), (V6, 50, 0, 0)),
    ],
)
def test_flows(packet: Packet, expected: tuple) -> None:
    assert flow(packet) == expected


@pytest.mark.parametrize(
    ("octets", "error"),
    [
        (b"", Truncated),
        (b"\x45", Truncated),
        (b"\x60" + bytes(38), Truncated),
        (b"\x05" + bytes(40), Malformed),
        (b"\x75" + bytes(40), Malformed),
        (b"\x44" + bytes(40), Malformed),
        (b"\x4f" + bytes(40), Malformed),
        (bytes(v4() / UDP())[:23], Truncated),
        (bytes(v4() / ICMP())[:22], Truncated),
        (bytes(v6() / TCP())[:43], Truncated),
        (bytes(v6() / IPv6ExtHdrHopByHop() / UDP())[:47], Truncated),
        (bytes(v6() / IPv6ExtHdrHopByHop(len=9) / UDP()), Truncated),
        (bytes(v6() / IPv6ExtHdrFragment(nh=17)), Truncated),
    ],
)
def test_no_packets(octets: bytes, error: type[WireError]) -> None:
    with pytest.raises(error):
        flow_of(memoryview(octets))
    buffer = bytearray(octets)
    assert not clamp_mss(buffer, 100, 100)
    assert buffer == octets
    for source in (HERE, HERE_6):
        assert too_big(memoryview(octets), 1000, ip_address(source)) is None


@pytest.mark.rfc("1071", "3")
@pytest.mark.parametrize("case", load("checksum"), ids=lambda case: case["name"])
def test_checksum(case: dict) -> None:
    octets = case["octets"]
    assert checksum(octets) == case["checksum"]
    assert checksum(octets + case["checksum"].to_bytes(2, "big")) == 0


def test_checksum_of_odd_and_empty_octets() -> None:
    assert checksum(b"") == 0xFFFF
    assert checksum(bytes(7)) == 0xFFFF
    assert checksum(b"\xff\xff") == 0
    assert checksum(bytearray(b"\1")) == 0xFFFF - 0x0100
    header = bytes(v4() / UDP())[:20]
    assert checksum(memoryview(header)) == 0


def mss(value: int) -> tuple[str, int]:
    return ("MSS", value)


NOP, SACK, SCALE = ("NOP", None), ("SAckOK", b""), ("WScale", 7)


@pytest.mark.rfc("9293", "3.7.1")
@pytest.mark.parametrize(
    "network", [v4(), v6(), v4(options=b"\1\1\1\1"), v6() / IPv6ExtHdrDestOpt()]
)
@pytest.mark.parametrize("flags", ["S", "SA", "SEC"])
@pytest.mark.parametrize(
    "options",
    [
        [mss(8960)],
        [SACK, mss(8960), SCALE],
        [NOP, mss(8960)],
        [SCALE, mss(8960), NOP],
        [mss(65535)],
    ],
    ids=["first", "even", "odd", "odd-again", "largest"],
)
def test_an_mss_is_lowered_with_its_checksum(network: Packet, flags: str, options: list) -> None:
    packet = view(network / TCP(sport=1, dport=2, flags=flags, options=options) / Raw(b"x"))
    limits = {4: 1360, 6: 1340}
    version = packet[0] >> 4
    assert clamp_mss(packet, limits[4], limits[6])
    lowered = [("MSS", limits[version]) if option[0] == "MSS" else option for option in options]
    # scapy computes its checksum from nothing
    assert packet == bytes(
        network / TCP(sport=1, dport=2, flags=flags, options=lowered) / Raw(b"x")
    )


@pytest.mark.parametrize("value", range(1300, 1800, 7))
def test_checksums_at_every_carry(value: int) -> None:
    def syn(announced: int) -> bytes:
        return bytes(v4() / TCP(seq=value * 7919, flags="S", options=[NOP, mss(announced)]))

    packet = bytearray(syn(value + 1))
    assert clamp_mss(packet, value, value)
    assert packet == syn(value)


@pytest.mark.parametrize(
    "packet",
    [
        v4() / TCP(flags="S", options=[mss(1360)]),
        v4() / TCP(flags="S", options=[mss(500)]),
        v4() / TCP(flags="S"),
        v4() / TCP(flags="A", options=[mss(1460)]),
        v4() / UDP() / Raw(b"\xff" * 40),
        v4(proto=6, frag=3) / Raw(b"\xff" * 40),
        bytes(v4() / TCP(flags="S", options=[mss(1460)]))[:-1],
        bytes(v4() / TCP(flags="S", options=[mss(1460)]))[:36],
        v4() / TCP(flags="S", dataofs=15, options=[mss(1460)]),
        v4() / TCP(flags="S", dataofs=4, options=[mss(1460)]),
        bytes(v4() / TCP(flags="S", dataofs=6)) + b"\0\2\4\xff",  # behind the end of options
        bytes(v4() / TCP(flags="S", dataofs=6)) + b"\2\3\xff\xff",  # an MSS of wrong length
        bytes(v4() / TCP(flags="S", dataofs=6)) + b"\1\2\4\xff",  # cut off by the header's end
        bytes(v4() / TCP(flags="S", dataofs=6)) + b"\x08\0\0\0",  # a length of 0
    ],
)
def test_other_packets_stay_as_they_are(packet: Packet | bytes) -> None:
    buffer = bytearray(bytes(packet))
    assert not clamp_mss(buffer, 1360, 1340)
    assert buffer == bytes(packet)


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_that_is_none_changes_nothing(limit: int) -> None:
    buffer = bytearray(bytes(v4() / TCP(flags="S", options=[mss(1460)])))
    assert not clamp_mss(buffer, limit, 1340)


@pytest.mark.rfc("1191", "4")
@pytest.mark.parametrize("size", [8, 500, 1400, 9000])
def test_fragmentation_needed(size: int) -> None:
    packet = v4(flags="DF") / UDP(sport=7, dport=9) / Raw(bytes(size))
    octets = too_big(view(packet), 1280, ip_address("192.0.2.7"))
    answer = IP(octets)
    assert (answer.src, answer.dst, answer.len) == ("192.0.2.7", HERE, len(octets))
    assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, 1280)
    assert (answer[IPerror].src, answer[IPerror].dst) == (HERE, THERE)
    assert octets[28:] == bytes(packet)[: 576 - 28]
    assert (checksum(octets[:20]), checksum(octets[20:])) == (0, 0)


@pytest.mark.rfc("4443", "3.2")
@pytest.mark.parametrize("size", [8, 1300, 9001])
def test_packet_too_big(size: int) -> None:
    packet = v6() / UDP(sport=7, dport=9) / Raw(bytes(size))
    octets = too_big(view(packet), 1400, ip_address("fd99::7"))
    answer = IPv6(octets)
    assert (answer.src, answer.dst, answer.plen) == ("fd99::7", HERE_6, len(octets) - 40)
    assert answer[ICMPv6PacketTooBig].mtu == 1400
    assert answer[IPerror6].dst == THERE_6
    assert octets[48:] == bytes(packet)[: 1280 - 48]
    carried = answer[ICMPv6PacketTooBig].cksum
    del answer[ICMPv6PacketTooBig].cksum
    assert IPv6(bytes(answer))[ICMPv6PacketTooBig].cksum == carried


def test_an_mtu_beyond_16_bits() -> None:
    octets = too_big(view(v4() / UDP() / Raw(bytes(99))), 70000, ip_address(THERE))
    assert IP(octets)[ICMP].nexthopmtu == 65535
    octets = too_big(view(v6() / UDP() / Raw(bytes(99))), 70000, ip_address(THERE_6))
    assert IPv6(octets)[ICMPv6PacketTooBig].mtu == 70000


@pytest.mark.rfc("1812", "4.3.2.7")
@pytest.mark.rfc("4443", "2.4")
@pytest.mark.parametrize(
    "packet",
    [
        v4(proto=17, frag=3) / Raw(bytes(99)),
        v4() / ICMP(type=3, code=1) / Raw(bytes(99)),
        v4() / ICMP(type=11) / Raw(bytes(99)),
        v4() / ICMP(type=5) / Raw(bytes(99)),
        IP(src=HERE, dst="224.0.0.1") / UDP(),
        IP(src=HERE, dst="255.255.255.255") / UDP(),
        IP(src="0.0.0.0", dst=THERE) / UDP(),  # noqa: S104 -- a source that is refused
        IP(src="127.0.0.1", dst=THERE) / UDP(),
        IP(src="224.0.0.1", dst=THERE) / UDP(),
        v6() / IPv6ExtHdrFragment(offset=1, nh=17) / Raw(bytes(99)),
        v6() / ICMPv6TimeExceeded() / Raw(bytes(99)),
        v6(nh=58) / Raw(b"\x89" + bytes(99)),
        IPv6(src="::", dst=THERE_6) / UDP(),
        IPv6(src="::1", dst=THERE_6) / UDP(),
        IPv6(src="ff02::1", dst=THERE_6) / UDP(),
    ],
)
def test_who_must_not_be_told(packet: Packet) -> None:
    source = ip_address(THERE if packet.version == 4 else THERE_6)
    assert too_big(view(packet), 1000, source) is None


@pytest.mark.parametrize(
    "packet",
    [
        v4() / ICMP(type=8) / Raw(bytes(99)),
        v4() / ICMP(type=0) / Raw(bytes(99)),
        v4(flags="MF") / UDP() / Raw(bytes(99)),
        v6() / ICMPv6EchoRequest() / Raw(bytes(99)),
        IPv6(src=HERE_6, dst="ff02::1") / UDP(),  # RFC 4443 §2.4 (e.3): path MTU for multicast
    ],
)
def test_who_may_be_told_all_the_same(packet: Packet) -> None:
    source = ip_address(THERE if packet.version == 4 else THERE_6)
    assert too_big(view(packet), 1000, source) is not None


def test_the_answer_has_the_packets_version() -> None:
    assert too_big(view(v4() / UDP()), 1000, ip_address(THERE_6)) is None
    assert too_big(view(v6() / UDP()), 1000, ip_address(THERE)) is None
