"""Addresses, links, routes and rules of this network namespace, changed through rtnetlink.

All that we make carries our protocol number where the kernel keeps one, and deleting asks for it:
a route or rule of somebody else is never hit. A device is known by its name and its index, so that
what was done to a device that is gone is not undone on a younger one of the same name.
"""

import errno
import os
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, collapse_addresses
from typing import Final, Self, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tunnelwrap.errors import HostNetError
from tunnelwrap.hostnet.values import to_json
from tunnelwrap.path import IpAddress

IpNetwork = IPv4Network | IPv6Network
IpInterface = IPv4Interface | IPv6Interface

IFA_F_NODAD: Final = 0x02  # of linux/if_addr.h
MAIN_TABLE: Final = 254
LOCAL_TABLE: Final = 255  # that of the first rule
PROTOCOL: Final = 116
"""Marks our routes and rules; free in iproute2's rt_protos."""

_NOTHING_THERE: Final = frozenset(
    {errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENETDOWN}
)
_IFF_UP: Final = 1
_SCOPE_HOST: Final = 254  # RT_SCOPE_HOST of linux/rtnetlink.h; no wider one will do

T = TypeVar("T")


def collapsed(networks: Iterable[IpNetwork], version: int) -> list[IpNetwork]:
    """The networks of one IP version, without those that others contain."""
    if version == 4:
        return [*collapse_addresses(n for n in networks if isinstance(n, IPv4Network))]
    return [*collapse_addresses(n for n in networks if isinstance(n, IPv6Network))]


@dataclass(frozen=True, slots=True)
class Device:
    """A network device of this namespace."""

    name: str
    index: int

    @classmethod
    def find(cls, name: str) -> Self:
        """The device that has this name now.

        Raises:
            HostNetError: there is none.
        """
        try:
            return cls(name, socket.if_nametoindex(name))
        except OSError as error:
            raise HostNetError(f"device {name}: {os.strerror(errno.ENODEV)}") from error

    def is_there(self) -> bool:
        """Whether this very device still exists."""
        try:
            return socket.if_indextoname(self.index) == self.name
        except OSError:
            return False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class InterfaceChange:
    """There is an xfrm interface: the kernel's IPsec as a device, since Linux 4.19.

    What is sent there is wrapped by the policies with its number, or dropped; what SAs with its
    number unwrapped comes out of it.
    """

    name: str
    if_id: int

    def apply(self) -> None:
        """Make the device."""
        words = {"ifname": self.name, "kind": "xfrm", "xfrm_if_id": self.if_id}
        make(str(self), lambda route: route.link("add", **words))

    def undo(self) -> None:
        """Delete it, if it is still there."""
        _take_back(str(self), self._delete)

    def to_json(self) -> dict[str, object]:
        """The change as plain JSON."""
        return to_json(self)

    def __str__(self) -> str:
        return f"xfrm interface {self.name} with if_id {self.if_id:#x}"

    def _delete(self, route: IPRoute) -> None:
        for link in route.get_links(ifname=self.name):
            info = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
            if info is not None and info.get_attr("IFLA_XFRM_IF_ID") == self.if_id:
                route.link("del", index=link["index"])


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A device is up and has an MTU."""

    device: Device
    mtu: int
    former_mtu: int
    was_up: bool

    @classmethod
    def of(cls, device: Device, mtu: int) -> Self:
        """The change from what the device is now.

        Raises:
            HostNetError: the device is gone.
        """
        link = make(f"device {device}", lambda route: route.get_links(device.index)[0])
        return cls(device, mtu, link.get_attr("IFLA_MTU"), bool(link["flags"] & _IFF_UP))

    def apply(self) -> None:
        """Set the MTU and bring the device up."""
        index, mtu = self.device.index, self.mtu
        make(str(self), lambda route: route.link("set", index=index, mtu=mtu, state="up"))

    def undo(self) -> None:
        """Set what it was before, if the device still exists."""
        if self.device.is_there():
            state, index, mtu = "up" if self.was_up else "down", self.device.index, self.former_mtu
            _take_back(
                str(self), lambda route: route.link("set", index=index, mtu=mtu, state=state)
            )

    def to_json(self) -> dict[str, object]:
        """The change as plain JSON."""
        return to_json(self)

    def __str__(self) -> str:
        return f"device {self.device} up, MTU {self.mtu}"


@dataclass(frozen=True, slots=True)
class AddressChange:
    """A device has an address."""

    device: Device
    address: IpInterface

    def apply(self) -> None:
        """Add the address."""
        self._ask("add", make)

    def undo(self) -> None:
        """Delete the address, if it is still there."""
        if self.device.is_there():
            self._ask("del", _take_back)

    def to_json(self) -> dict[str, object]:
        """The change as plain JSON."""
        return to_json(self)

    def __str__(self) -> str:
        return f"address {self.address} on {self.device}"

    def _ask(self, command: str, how: "_Asker") -> None:
        words = {
            "index": self.device.index,
            "address": str(self.address.ip),
            "prefixlen": self.address.network.prefixlen,
        }
        if command == "add" and self.address.version == 6:
            words["flags"] = IFA_F_NODAD  # a tentative address can be no route's source yet
        how(str(self), lambda route: route.addr(command, **words))


@dataclass(frozen=True, slots=True)
class RouteChange:
    """A network is reached by a device; with ``is_local``, all of its addresses are this host's."""

    destination: IpNetwork
    device: Device
    table: int
    source: IpAddress | None
    is_local: bool = False

    def apply(self) -> None:
        """Add the route; one for the same network that is there already is a refusal."""
        self._ask("add", make)

    def undo(self) -> None:
        """Delete the route; the kernel has done so if the device is gone."""
        if self.device.is_there():
            self._ask("del", _take_back)

    def to_json(self) -> dict[str, object]:
        """The change as plain JSON."""
        return to_json(self)

    def __str__(self) -> str:
        table = "" if self.table == MAIN_TABLE else f" in table {self.table}"
        kind = "local route" if self.is_local else "route"
        return f"{kind} {self.destination} by {self.device}{table}"

    def _ask(self, command: str, how: "_Asker") -> None:
        words: dict[str, str | int] = {
            "dst": str(self.destination),
            "family": _family(self.destination.version),
            "oif": self.device.index,
            "table": self.table,
            "proto": PROTOCOL,
        }
        if self.is_local:
            words |= {"type": "local", "scope": _SCOPE_HOST}
        if self.source is not None:
            words["prefsrc"] = str(self.source)
        how(str(self), lambda route: route.route(command, **words))


@dataclass(frozen=True, slots=True)
class RuleChange:
    """Packets look up a routing table: all of a family, or those to one network.

    With ``passes_default`` the table's default route does not count. ``device`` and ``udp_port``
    leave only those that come in there, and go to that port.
    """

    version: int  # of IP
    priority: int
    table: int
    to: IpNetwork | None = None
    passes_default: bool = False
    device: str | None = None
    udp_port: int | None = None

    def apply(self) -> None:
        """Add the rule."""
        self._ask("add", make)

    def undo(self) -> None:
        """Delete the rule, if it is still there."""
        self._ask("del", _take_back)

    def to_json(self) -> dict[str, object]:
        """The change as plain JSON."""
        return to_json(self)

    def __str__(self) -> str:
        to = "all" if self.to is None else str(self.to)
        port = "" if self.udp_port is None else f" UDP port {self.udp_port}"
        coming = "" if self.device is None else f" from {self.device}"
        passing = " save its default" if self.passes_default else ""
        what = f"IPv{self.version}{coming} to {to}{port}"
        return f"rule {self.priority}: {what} by table {self.table}{passing}"

    def _ask(self, command: str, how: "_Asker") -> None:
        words: dict[str, str | int] = {
            "family": _family(self.version),
            "priority": self.priority,
            "table": self.table,
            "protocol": PROTOCOL,
        }
        if self.to is not None:
            words["dst"] = str(self.to.network_address)
            words["dst_len"] = self.to.prefixlen
        if self.passes_default:
            words["FRA_SUPPRESS_PREFIXLEN"] = 0
        if self.device is not None:
            words["FRA_IIFNAME"] = self.device
        if self.udp_port is not None:
            words["FRA_IP_PROTO"] = socket.IPPROTO_UDP
            words["FRA_DPORT_RANGE"] = f"{self.udp_port}:{self.udp_port}"
        how(str(self), lambda route: route.rule(command, **words))


_Asker = Callable[[str, Callable[[IPRoute], object]], object]


def make(what: str, work: Callable[[IPRoute], T]) -> T:
    """Ask the kernel for a change, and give back what it answers.

    Raises:
        HostNetError: it refuses.
    """
    try:
        return _ask(work)
    except (NetlinkError, OSError) as error:
        raise HostNetError(f"{what}: {_cause(error)}") from error


def _take_back(what: str, work: Callable[[IPRoute], object]) -> None:
    try:
        _ask(work)
    except (NetlinkError, OSError) as error:
        if _number(error) not in _NOTHING_THERE:
            raise HostNetError(f"{what}: {_cause(error)}") from error


def _ask(work: Callable[[IPRoute], T]) -> T:
    """Talk to the kernel from a thread: IPRoute runs a loop of its own, which ours forbids."""

    def talk() -> T:
        with IPRoute() as route:
            return work(route)

    with ThreadPoolExecutor(1) as pool:  # its thread is in our thread's network namespace
        return pool.submit(talk).result()


def _cause(error: NetlinkError | OSError) -> str:
    number = _number(error)
    if number in (errno.EPERM, errno.EACCES):
        return f"{os.strerror(number)} (the right CAP_NET_ADMIN is needed)"
    if number == errno.EOPNOTSUPP:
        return "this kernel cannot do that"
    if number == errno.EEXIST:
        return "this host has the same already, which would be in the way of the tunnel's"
    return os.strerror(number) if number else str(error)


def _number(error: NetlinkError | OSError) -> int:
    number: int | None = error.code if isinstance(error, NetlinkError) else error.errno
    return abs(number or 0)


def _family(version: int) -> socket.AddressFamily:
    return socket.AF_INET6 if version == 6 else socket.AF_INET
