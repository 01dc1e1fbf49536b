"""Traffic selectors as people write them: a network, an address or a range, and what it carries.

10.20.0.0/24              all of a network
192.0.2.1                 one address
10.0.0.10-10.0.0.19       a range
10.20.0.0/24[tcp/443]     one port; [udp/5000-5999] some; [icmp] or [6] a whole protocol
"""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from tunnelwrap.errors import ConfigError
from tunnelwrap.wire.payloads import TrafficSelector

_PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
_ALL_PORTS: Final = (0, 65535)
_FORM: Final = re.compile(r"(?P<where>[^\[\]]+)(\[(?P<what>\w+)(/(?P<ports>\d+(-\d+)?))?\])?")


def parse_selector(text: str) -> TrafficSelector:
    """The traffic selector that a human wrote. RFC 7296 §3.13.1.

    Raises:
        ConfigError: the text is none.
    """
    form = _FORM.fullmatch(text.strip())
    if form is None:
        raise ConfigError([f"{text!r} is not NETWORK or NETWORK[PROTOCOL/PORT]"])
    try:
        start, end = _addresses(form["where"].strip())
        ports = _ports(form["ports"])
    except ValueError as error:
        raise ConfigError([f"{text!r}: {error}"]) from None
    return TrafficSelector(_protocol(form["what"], text), *ports, start, end)


def _addresses(text: str) -> tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address]:
    """First and last address; ValueError where there are none."""
    if "-" not in text:
        network = ip_network(text)
        return network[0], network[-1]
    start, end = (ip_address(part.strip()) for part in text.split("-", 1))
    if start.version != end.version or int(start) > int(end):
        raise ValueError(f"no range leads from {start} to {end}")
    return start, end


def _protocol(word: str | None, text: str) -> int:
    if word is None:
        return 0
    protocol = int(word) if word.isdecimal() else _PROTOCOLS.get(word.lower(), 256)
    if protocol > 255:
        known = ", ".join(_PROTOCOLS)
        raise ConfigError([f"{text!r}: unknown protocol {word}, known are {known} and 0 to 255"])
    return protocol


def _ports(text: str | None) -> tuple[int, int]:
    """First and last port; ValueError where there are none."""
    if text is None:
        return _ALL_PORTS
    start, _, end = text.partition("-")
    ports = int(start), int(end or start)
    if not ports[0] <= ports[1] <= _ALL_PORTS[1]:
        raise ValueError(f"no ports {text}")
    return ports
