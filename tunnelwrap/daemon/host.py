"""The host's network as a daemon uses it: a device, and changes that are always taken back.

Owns: the journals. A TUN device belongs to the data plane that is made on it.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.errors import HostNetError, NotPrivileged
from tunnelwrap.hostnet import Change
from tunnelwrap.hostnet.dns import dns_change
from tunnelwrap.hostnet.journal import Journal, recover
from tunnelwrap.hostnet.links import client_changes
from tunnelwrap.hostnet.netlink import Device, InterfaceChange
from tunnelwrap.hostnet.parting import part_packets
from tunnelwrap.hostnet.sysctl import SysctlChange, read
from tunnelwrap.path import IpAddress

logger = logging.getLogger(__name__)

IpNetwork = IPv4Network | IPv6Network

_MAX_DEVICE: Final = 15  # IFNAMSIZ less its final zero
_CAP_NET_ADMIN: Final = 12  # of linux/capability.h


class Hold:
    """One instance's hold on the host's network: what a killed run has left is undone at once.

    Args:
        name: of the instance; names tables.
        state_directory: where the journal is.

    Raises:
        HostNetError: another process runs under this name.
    """

    def __init__(self, name: str, state_directory: Path) -> None:
        self.name = re.sub(r"[^A-Za-z0-9_]", "_", name)
        self._journal = _clean_journal(state_directory / "journal")
        self._refused: set[str] = set()  # parameters that were said to be not as we want them

    def apply(self, changes: Sequence[Change]) -> None:
        """Make these changes.

        Raises:
            HostNetError: the host refuses one; then none of all that was made is left.
        """
        self._journal.apply_all(changes)
        for change in changes:
            logger.debug("= %s", change)

    def set_where_possible(self, key: str, value: str, otherwise: str) -> None:
        """Set a kernel parameter that can be done without.

        Args:
            key: the parameter, with slashes.
            value: what it gets.
            otherwise: what it means where it cannot be set, which is said once.
        """
        try:
            if read(key) != value:
                self._journal.apply(SysctlChange.of(key, value))
        except HostNetError as error:
            if key not in self._refused:
                self._refused.add(key)
                logger.warning("%s: %s", otherwise, error)

    def undo(self) -> None:
        """Take everything back; calling twice is fine."""
        _undo_all(self._journal)


class Host(Hold):
    """The same with a device that leads into the tunnel: a TUN device, or an xfrm interface.

    Args:
        name: of the instance; names device and tables.
        state_directory: where the journals are.

    Raises:
        HostNetError: another process runs under this name.
    """

    def __init__(self, name: str, state_directory: Path) -> None:
        super().__init__(name, state_directory)
        self.device = f"tw-{self.name}"[:_MAX_DEVICE]
        self._devices = _clean_journal(state_directory / "journal-device")

    def open_tun(self) -> Tun:
        """The TUN device; it belongs to the caller.

        Raises:
            NotPrivileged: without CAP_NET_ADMIN.
            DataPlaneError: there is none to be had.
        """
        return Tun.open(self.device)

    def why_no_interface(self, if_id: int) -> str | None:
        """Why there cannot be an xfrm interface; None: there can. It is tried out."""
        change = InterfaceChange(self.device, if_id)
        try:
            change.apply()
            change.undo()
        except HostNetError as error:
            return str(error)
        return None

    def make_interface(self, if_id: int, *, parts_packets: bool = False) -> None:
        """Make the xfrm interface, perhaps as ``hostnet.parting`` has it; it stays until ``close``.

        Raises:
            HostNetError: the kernel refuses it.
        """
        self._devices.apply(InterfaceChange(self.device, if_id))
        if parts_packets:
            part_packets(Device.find(self.device))

    def close(self) -> None:
        """Take everything back, the device last; calling twice is fine."""
        self.undo()
        _undo_all(self._devices)


@dataclass(frozen=True, slots=True)
class Inside:
    """What a client's host is configured for."""

    mtu: int
    addresses: tuple[IpAddress, ...]
    networks: tuple[IpNetwork, ...]
    gateways: tuple[IpAddress, ...]
    dns: tuple[IpAddress, ...]
    domains: tuple[str, ...]

    def changes(self, tun: str) -> list[Change]:
        """The changes that come to this, from what the host is now.

        Raises:
            HostNetError: the host cannot be read.
        """
        changes = client_changes(tun, self.mtu, self.addresses, self.networks, self.gateways)
        if self.dns:
            is_default = any(network.prefixlen == 0 for network in self.networks)
            changes.append(dns_change(tun, self.dns, self.domains, is_default=is_default))
        return changes


def _clean_journal(path: Path) -> Journal:
    """A journal, when what a killed run has left is undone."""
    recovery = recover(path)
    for problem in recovery.problems:
        logger.warning("left by a former run, and not undone: %s", problem)
    if recovery.undone:
        logger.info("undone what a former run left: %s", "; ".join(recovery.undone))
    return Journal(path)


def _undo_all(journal: Journal) -> None:
    for problem in journal.undo_all():
        logger.warning("not undone (the next start tries again): %s", problem)


def check_rights() -> None:
    """See that this process may change the host's network.

    Raises:
        NotPrivileged: it may not.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    rights = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    if not rights >> _CAP_NET_ADMIN & 1:
        raise NotPrivileged("this needs root, or the right CAP_NET_ADMIN")
