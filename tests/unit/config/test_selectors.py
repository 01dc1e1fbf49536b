"""Traffic selectors as people write them."""

from ipaddress import ip_address

import pytest

from tunnelwrap.config.selectors import parse_selector
from tunnelwrap.errors import ConfigError
from tunnelwrap.wire.payloads import TrafficSelector


def selector(
    start: str, end: str, protocol: int = 0, ports: tuple[int, int] = (0, 65535)
) -> TrafficSelector:
    return TrafficSelector(protocol, *ports, ip_address(start), ip_address(end))


@pytest.mark.rfc("7296", "3.13.1")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.20.0.0/24", selector("10.20.0.0", "10.20.0.255")),
        ("0.0.0.0/0", selector("0.0.0.0", "255.255.255.255")),  # noqa: S104 - a range, nothing is bound
        ("::/0", selector("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")),
        ("192.0.2.1", selector("192.0.2.1", "192.0.2.1")),
        ("2001:db8::1", selector("2001:db8::1", "2001:db8::1")),
        ("10.0.0.10-10.0.0.19", selector("10.0.0.10", "10.0.0.19")),
        (" 10.0.0.10 - 10.0.0.19 ", selector("10.0.0.10", "10.0.0.19")),
        ("10.0.0.10-10.0.0.10", selector("10.0.0.10", "10.0.0.10")),
        ("fd00::1-fd00::ff", selector("fd00::1", "fd00::ff")),
        ("10.20.0.0/24[tcp/443]", selector("10.20.0.0", "10.20.0.255", 6, (443, 443))),
        ("10.20.0.0/24[UDP/5000-5999]", selector("10.20.0.0", "10.20.0.255", 17, (5000, 5999))),
        ("10.20.0.0/24[icmp]", selector("10.20.0.0", "10.20.0.255", 1)),
        ("fd00::/64[icmpv6]", selector("fd00::", "fd00::ffff:ffff:ffff:ffff", 58)),
        ("192.0.2.1[6]", selector("192.0.2.1", "192.0.2.1", 6)),
        ("192.0.2.1[255]", selector("192.0.2.1", "192.0.2.1", 255)),
        ("192.0.2.1[132/0-65535]", selector("192.0.2.1", "192.0.2.1", 132)),
    ],
)
def test_selectors(text: str, expected: TrafficSelector) -> None:
    assert parse_selector(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is not NETWORK or NETWORK[PROTOCOL/PORT]"),
        ("10.0.0.0/8[", "'10.0.0.0/8[' is not NETWORK or NETWORK[PROTOCOL/PORT]"),
        ("10.0.0.0/8[]", "'10.0.0.0/8[]' is not NETWORK or NETWORK[PROTOCOL/PORT]"),
        ("10.0.0.0/8[tcp/http]", "'10.0.0.0/8[tcp/http]' is not NETWORK or NETWORK[PROTOCOL/PORT]"),
        ("ten", "'ten': 'ten' does not appear to be an IPv4 or IPv6 network"),
        ("10.0.0.1/8", "'10.0.0.1/8': 10.0.0.1/8 has host bits set"),
        ("10.0.0.9-10.0.0.1", "'10.0.0.9-10.0.0.1': no range leads from 10.0.0.9 to 10.0.0.1"),
        ("10.0.0.9-fd00::1", "'10.0.0.9-fd00::1': no range leads from 10.0.0.9 to fd00::1"),
        ("10.0.0.9-", "'10.0.0.9-': '' does not appear to be an IPv4 or IPv6 address"),
        (
            "10.0.0.0/8[tpc]",
            (
                "'10.0.0.0/8[tpc]': unknown protocol tpc, known are icmp, tcp, udp, icmpv6, sctp"
                " and 0 to 255"
            ),
        ),
        (
            "10.0.0.0/8[256]",
            (
                "'10.0.0.0/8[256]': unknown protocol 256, known are icmp, tcp, udp, icmpv6, sctp"
                " and 0 to 255"
            ),
        ),
        ("10.0.0.0/8[tcp/65536]", "'10.0.0.0/8[tcp/65536]': no ports 65536"),
        ("10.0.0.0/8[tcp/9-1]", "'10.0.0.0/8[tcp/9-1]': no ports 9-1"),
    ],
)
def test_what_is_none(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_selector(text)

    assert caught.value.problems == [problem]
