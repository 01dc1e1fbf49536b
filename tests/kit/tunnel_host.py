"""A host on a wire, the changes that tunnelwrap makes on it by role, and a dump to compare.

host ---------------- router
192.0.2.1/24          192.0.2.2, 192.0.2.3 (the default routes)
2001:db8::1/64        2001:db8::2
TUN device tw0        198.51.100.7 and 2001:db8:7::7 (the VPN gateway's addresses)
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

from tests.kit.netns import Namespace, wire
from tunnelwrap.hostnet import Change
from tunnelwrap.hostnet.dns import dns_change
from tunnelwrap.hostnet.firewall import ForwardChange, NatChange
from tunnelwrap.hostnet.links import client_changes, gateway_changes, lan_changes

TUN = "tw0"
MTU = 1380
GATEWAYS = (ip_address("198.51.100.7"), ip_address("2001:db8:7::7"))
ADDRESSES = (ip_address("10.20.0.5"), ip_address("fd20::5"))
EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))
POOLS = (ip_network("10.20.0.0/24"), ip_network("fd20::/64"))
RESOLV_CONF = "# theirs\nsearch lan\nnameserver 192.0.2.2\noptions rotate\n"
NO_LINK_LOCAL = 1
"""Such addresses come when they like, some time after a device is up."""


@contextmanager
def tunnel_host() -> Iterator[Namespace]:
    """The host, with the calling thread in it."""
    with Namespace("host") as host, Namespace("router") as router:
        router.address("lo", *(f"{gateway}/{gateway.max_prefixlen}" for gateway in GATEWAYS))
        host.sysctl("net.ipv6.conf.default.addr_gen_mode", NO_LINK_LOCAL)
        wire(
            *(host, "eth0", ["192.0.2.1/24", "2001:db8::1/64"]),
            *(router, "eth0", ["192.0.2.2/24", "192.0.2.3/24", "2001:db8::2/64"]),
        )
        host.route("default", via="192.0.2.2")
        host.route("default", via="2001:db8::2")
        with host.entered():
            yield host


@dataclass(frozen=True)
class Dump:
    """All that we could change on a host."""

    links: object
    routes: list[str]
    rules: list[str]
    firewall: str
    sysctls: list[str]

    @classmethod
    def of(cls, host: Namespace) -> "Dump":
        links = json.loads(host.ip("-j", "address"))
        for link in links:
            link.pop("qdisc")  # the kernel sets up a queue at the first use, and keeps it
        tables = [host.ip(family, "route", "show", "table", "all") for family in ("-4", "-6")]
        return cls(
            links,
            sorted("\n".join(tables).splitlines()),
            [host.ip(family, "rule") for family in ("-4", "-6")],
            host.run("nft", "list", "ruleset"),
            host.run("sysctl", "-a", "-r", r"^net\.ipv[46]\.").splitlines(),
        )


def full_client(resolv_conf: Path) -> list[Change]:
    """A client with everything in the tunnel, and one network besides."""
    networks = (*EVERYTHING, ip_network("10.99.0.0/16"))
    return [
        *client_changes(TUN, MTU, ADDRESSES, networks, GATEWAYS),
        dns_change(
            TUN, [ip_address("10.20.0.1")], ["corp.example"], is_default=True, path=resolv_conf
        ),
    ]


def split_client(resolv_conf: Path) -> list[Change]:
    """A client with two networks in the tunnel."""
    networks = (ip_network("10.66.0.0/24"), ip_network("fd66::/48"))
    return client_changes(TUN, MTU, ADDRESSES, networks, GATEWAYS)


def gateway(resolv_conf: Path) -> list[Change]:
    """A gateway for two pools."""
    own = (ip_address("10.20.0.1"), ip_address("fd20::1"))
    return [
        *gateway_changes(TUN, MTU, own, POOLS),
        NatChange("main", TUN, POOLS),
        ForwardChange("main", TUN, POOLS),
    ]


def lan_router(resolv_conf: Path) -> list[Change]:
    """A router with clients behind a device, for which it is the gateway."""
    return lan_changes("main", ["eth0"], GATEWAYS, [500])


ALL_ROLES = (full_client, split_client, gateway, lan_router)
Role = Callable[[Path], list[Change]]


def way(host: Namespace, destination: object) -> str:
    """Device and next hop that a packet would take."""
    (route,) = json.loads(host.ip("-j", "route", "get", str(destination)))
    return f"{route['dev']} {route.get('gateway', '-')} {route['prefsrc']}"
