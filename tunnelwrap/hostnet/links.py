"""Which changes of links, addresses, routes and rules make a tunnel device useful, or a LAN ours.

A client sends the negotiated networks into its TUN device. What has to be kept out of it is the
gateway's own address, or ESP would be wrapped in ESP. For a network without that address a plain
route does; the longest prefix wins, as everywhere. A network that contains it (a default route
above all) goes into a routing table of our own, found by three rules:

    N    to the gateway's address: the main table, as if there were no tunnel
    N+1  all: the main table save its default route (the LAN stays near)
    N+2  all: our table, whose routes lead into the TUN device

So the physical default route is neither copied nor touched, and a bypass has no next hop that could
grow old: when DHCP, a router advertisement or the move to another Wi-Fi changes the main table, the
gateway is reached by what is there now, at once and without our doing. A mark on our sockets would
do the same, but the answers bear no mark: under strict rp_filter the kernel, asked for the way back
to their sender, would point into the tunnel and drop them. By address both directions agree. The
price: what other programs send to the gateway's own address goes beside the tunnel.

After kill -9 the TUN device takes its routes along, the rules find an empty table, and the host is
where it was; the journal removes the rules at the next start.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, ip_interface, ip_network
from typing import Final
from zlib import crc32

from tunnelwrap.hostnet import Change
from tunnelwrap.hostnet.firewall import UntrackedChange
from tunnelwrap.hostnet.netlink import (
    LOCAL_TABLE,
    MAIN_TABLE,
    AddressChange,
    Device,
    IpNetwork,
    LinkChange,
    RouteChange,
    RuleChange,
    collapsed,
)
from tunnelwrap.hostnet.sysctl import forwarding_changes, has_ipv6
from tunnelwrap.path import IpAddress

IPV6_MIN_MTU: Final = 1280
"""RFC 8200 §5; the kernel takes IPv6 off a device that has less."""

FIRST_TABLE: Final = 0x7477_0000
FIRST_PRIORITY: Final = 10_000
LAN_PRIORITY: Final = FIRST_PRIORITY - 1
"""Before the rules of a tunnel that this router may have itself."""

_TABLES: Final = 5_000
_PRIORITIES_EACH: Final = 4


def client_changes(
    tun: str,
    mtu: int,
    addresses: Sequence[IpAddress],
    networks: Sequence[IpNetwork],
    gateways: Sequence[IpAddress],
) -> list[Change]:
    """What brings a client's traffic into its tunnel, in the order in which to apply it.

    IPv6 is left out where the device cannot have it.

    Args:
        tun: the TUN device, which exists.
        mtu: octets of an inner packet.
        addresses: those assigned to us; each family's first is its packets' source.
        networks: the peer's traffic selectors.
        gateways: addresses of the gateway, which stay outside the tunnel.

    Raises:
        HostNetError: there is no such device.
    """
    device = Device.find(tun)
    changes = _device_changes(device, mtu, addresses)
    for version in _versions(device, mtu):
        wanted = collapsed(networks, version)
        source = next((a for a in addresses if a.version == version), None)
        near = [n for n in wanted if n.prefixlen == 0 or any(g in n for g in gateways)]
        plain = [n for n in wanted if n not in near]
        changes += [RouteChange(network, device, MAIN_TABLE, source) for network in plain]
        if near:
            changes += _policy(device, version, near, source, gateways)
    return changes


def gateway_changes(
    tun: str, mtu: int, addresses: Sequence[IpAddress], networks: Sequence[IpNetwork]
) -> list[Change]:
    """What makes a gateway forward between its TUN device and the rest of the world.

    IPv6 is left out where the device cannot have it.

    Args:
        tun: the TUN device, which exists.
        mtu: octets of an inner packet.
        addresses: our own in the pools (``Pool.gateways``).
        networks: the pools' networks, and those behind peers.

    Raises:
        HostNetError: there is no such device.
    """
    device = Device.find(tun)
    changes = _device_changes(device, mtu, addresses)
    for version in _versions(device, mtu):
        wanted = collapsed(networks, version)
        for network in wanted:
            inside = (a for a in addresses if a in network)
            changes.append(RouteChange(network, device, MAIN_TABLE, next(inside, None)))
        if wanted:
            changes += forwarding_changes(version)
    return changes


def lan_changes(
    name: str, devices: Sequence[str], gateways: Sequence[IpAddress], ports: Sequence[int]
) -> list[Change]:
    """What brings to this host, a router, what LAN clients send to a gateway's UDP ports.

    It is what TPROXY does, without a mark that others may use: policy routing delivers it here, to
    sockets that are bound to the gateway's address (IP_TRANSPARENT), and answer from it. A rule
    without device would hit our own packets, and by the check of sources the gateway's.

    Args:
        name: of the instance: letters, digits and _.
        devices: where the clients are; others' packets are left alone.
        gateways: the gateway's addresses.
        ports: its UDP ports.

    Raises:
        HostNetError: there is no such device.
    """
    loopback, table = Device.find("lo"), FIRST_TABLE + _TABLES + _slot(name)
    for device in devices:
        Device.find(device)
    here = tuple(ip_network(gateway) for gateway in dict.fromkeys(gateways))
    return [
        UntrackedChange(name, tuple(devices), here, tuple(ports)),
        *(RouteChange(gateway, loopback, table, None, is_local=True) for gateway in here),
        *(
            RuleChange(
                gateway.version, LAN_PRIORITY, table, to=gateway, device=device, udp_port=port
            )
            for gateway in here
            for device in devices
            for port in ports
        ),
    ]


def feed_changes(tun: str, mtu: int, network: IPv4Network) -> list[Change]:
    """What leads a network's addresses to a TUN device, whatever rules there are.

    Its first address is this host's; no device has it.

    Args:
        tun: the TUN device, which exists.
        mtu: octets of a packet.
        network: the addresses.

    Raises:
        HostNetError: there is no such device.
    """
    device = Device.find(tun)
    entrance = ip_network(network[1])
    return [
        LinkChange.of(device, mtu),
        RouteChange(entrance, device, LOCAL_TABLE, None, is_local=True),
        RouteChange(network, device, LOCAL_TABLE, None),
    ]


def table_of(tun: str) -> int:
    """The number of the routing table that a TUN device has to itself."""
    return FIRST_TABLE + _slot(tun)


def _device_changes(device: Device, mtu: int, addresses: Iterable[IpAddress]) -> list[Change]:
    versions = _versions(device, mtu)
    own = [ip_interface(address) for address in addresses if address.version in versions]
    return [LinkChange.of(device, mtu), *(AddressChange(device, address) for address in own)]


def _versions(device: Device, mtu: int) -> tuple[int, ...]:
    return (4, 6) if mtu >= IPV6_MIN_MTU and has_ipv6(device.name) else (4,)


def _policy(
    device: Device,
    version: int,
    networks: Sequence[IpNetwork],
    source: IpAddress | None,
    gateways: Iterable[IpAddress],
) -> list[Change]:
    """The rule into our table comes last: before it the gateway has its way round."""
    table, priority = table_of(device.name), FIRST_PRIORITY + _PRIORITIES_EACH * _slot(device.name)
    beside = [ip_network(g) for g in dict.fromkeys(gateways) if g.version == version]
    return [
        *(RuleChange(version, priority, MAIN_TABLE, to=gateway) for gateway in beside),
        RuleChange(version, priority + 1, MAIN_TABLE, passes_default=True),
        *(RouteChange(network, device, table, source) for network in networks),
        RuleChange(version, priority + 2, table),
    ]


def _slot(tun: str) -> int:
    """Tells tunnels on one host apart, and is the same for each start of one."""
    return crc32(tun.encode()) % _TABLES
