"""Traffic selectors in the kernel's form take exactly what was negotiated."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelwrap.dataplane.flows import (
    ANY_PORT,
    KernelFlow,
    PortMask,
    kernel_flows,
    port_masks,
)
from tunnelwrap.errors import Unsupported
from tunnelwrap.wire.payloads import TrafficSelector

PORTS = st.integers(0, 0xFFFF)
CLIENT = TrafficSelector.from_network(ip_network("10.20.0.2/32"))
ALL = TrafficSelector.from_network(ip_network("0.0.0.0/0"))
ALL_6 = TrafficSelector.from_network(ip_network("::/0"))


@given(PORTS, PORTS, PORTS)
def test_masked_ports_are_exactly_the_range(one: int, other: int, port: int) -> None:
    first, last = sorted((one, other))
    masks = list(port_masks(first, last))

    assert sum(port & each.mask == each.port for each in masks) == (first <= port <= last)
    assert len(masks) <= 30


def test_all_ports_are_one_mask_of_nothing() -> None:
    assert list(port_masks(0, 0xFFFF)) == [ANY_PORT]


def test_selectors_without_ports_are_networks() -> None:
    flows = kernel_flows([CLIENT], [ALL, ALL_6])

    expected = KernelFlow(
        *(ip_network("10.20.0.2/32"), ip_network("0.0.0.0/0"), 0, ANY_PORT, ANY_PORT)
    )
    assert flows == [expected]


def test_a_range_becomes_networks() -> None:
    ends = ip_address("192.0.2.1"), ip_address("192.0.2.6")
    flows = kernel_flows([CLIENT], [TrafficSelector(0, 0, 0xFFFF, *ends)])

    assert [str(flow.peer) for flow in flows] == [
        *("192.0.2.1/32", "192.0.2.2/31", "192.0.2.4/31", "192.0.2.6/32")
    ]


def test_the_protocol_may_stand_on_either_side() -> None:
    web = TrafficSelector.from_network(ip_network("192.0.2.0/24"), 6, 443, 443)

    [flow] = kernel_flows([CLIENT], [web])

    assert (flow.protocol, flow.local_port, flow.peer_port) == (6, ANY_PORT, PortMask(443, 0xFFFF))


def test_no_packet_has_two_protocols() -> None:
    tcp, udp = (
        TrafficSelector.from_network(ip_network("192.0.2.0/24"), number) for number in (6, 17)
    )

    assert kernel_flows([tcp], [udp]) == []


def test_icmp_has_type_and_code_in_place_of_ports() -> None:
    echo = TrafficSelector.from_network(ip_network("192.0.2.0/24"), 1, 8 << 8, 8 << 8 | 0xFF)
    exact = TrafficSelector.from_network(ip_network("192.0.2.0/24"), 1, 3 << 8 | 4, 3 << 8 | 4)

    [one], [other] = kernel_flows([CLIENT], [echo]), kernel_flows([CLIENT], [exact])

    assert (one.local_port, one.peer_port) == (PortMask(8, 0xFFFF), ANY_PORT)
    assert (other.local_port, other.peer_port) == (PortMask(3, 0xFFFF), PortMask(4, 0xFFFF))


@pytest.mark.parametrize(
    "selector",
    [
        TrafficSelector(6, 0xFFFF, 0, ip_address("192.0.2.1"), ip_address("192.0.2.1")),
        TrafficSelector(1, 0, 0x1FFF, ip_address("192.0.2.1"), ip_address("192.0.2.1")),
    ],
    ids=["opaque ports", "several ICMP types"],
)
def test_what_has_no_exact_form_is_refused(selector: TrafficSelector) -> None:
    with pytest.raises(Unsupported, match="the kernel has no selectors"):
        kernel_flows([CLIENT], [selector])


def test_too_many_pieces_are_refused() -> None:
    odd = TrafficSelector(17, 1, 0xFFFE, ip_address("10.0.0.1"), ip_address("10.255.255.254"))

    with pytest.raises(Unsupported, match="more than 512 policies"):
        kernel_flows([odd], [odd])


def test_the_longer_match_is_the_narrower() -> None:
    wide, narrow, port = (
        kernel_flows([CLIENT], [TrafficSelector.from_network(ip_network(text), *rest)])[0].breadth
        for text, rest in (
            ("10.0.0.0/8", ()),
            ("10.66.0.0/24", ()),
            ("10.66.0.0/24", (6, 443, 443)),
        )
    )
    assert wide > narrow > port
