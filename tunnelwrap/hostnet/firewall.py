"""NAT and forwarding for clients, in tables of nftables that are ours alone.

Each change is one table named after the instance, made in one transaction; undoing it deletes that
table and nothing else. A table of others that drops forwarded packets still drops them: in
nftables every table has its say.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from tunnelwrap.errors import HostNetError, UsageError
from tunnelwrap.hostnet.netlink import IpNetwork, collapsed
from tunnelwrap.hostnet.values import to_json

_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
_TIMEOUT_S: Final = 30.0
_FAMILIES: Final = ((4, "ip"), (6, "ip6"))


@dataclass(frozen=True, slots=True)
class _TableChange:
    """What all changes here have in common: one table, named after instance and purpose."""

    PURPOSE: ClassVar[str]

    name: str

    def undo(self) -> None:
        """Delete the table."""
        _drop_table(self._table)

    def to_json(self) -> dict[str, object]:
        """The change as plain JSON."""
        return to_json(self)

    @property
    def _table(self) -> str:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"name of an instance {self.name!r}, expected letters, digits and _")
        return f"tunnelwrap_{self.name}_{self.PURPOSE}"


@dataclass(frozen=True, slots=True)
class NatChange(_TableChange):
    """What clients send out by another device than the tunnel's leaves under our address.

    Args:
        name: of the instance: letters, digits and _.
        tun: the name of the TUN device, or of the xfrm interface.
        networks: the pools' networks.
        by_policies: the kernel's IPsec is a tunnel's device too.
    """

    PURPOSE: ClassVar = "nat"

    tun: str
    networks: tuple[IpNetwork, ...]
    by_policies: bool = False

    def apply(self) -> None:
        """Make the table."""
        in_clear = " rt ipsec missing" if self.by_policies else ""
        rule = f'oifname != "{self.tun}" {{family}} saddr {{set}}{in_clear} masquerade'
        _make_table(
            self._table,
            "chain postrouting {\n  type nat hook postrouting priority srcnat; policy accept;\n"
            + _each_family(rule, self.networks)
            + "}",
        )

    def __str__(self) -> str:
        return f"NAT for {_words(self.networks)} (table inet {self._table})"


@dataclass(frozen=True, slots=True)
class ForwardChange(_TableChange):
    """Clients' packets pass between the tunnel's device and all others, and by no other way.

    What bears a pool's address and neither comes from the tunnel nor goes into it is forged, or
    about to leave in clear.

    Args:
        name: of the instance: letters, digits and _.
        tun: the name of the TUN device, or of the xfrm interface.
        networks: the pools' networks.
        by_policies: the kernel's IPsec is a tunnel's device too.
    """

    PURPOSE: ClassVar = "forward"

    tun: str
    networks: tuple[IpNetwork, ...]
    by_policies: bool = False

    def apply(self) -> None:
        """Make the table."""
        by_kernel = (
            "meta ipsec exists {family} saddr {set} counter accept",
            "rt ipsec exists {family} daddr {set} counter accept",
        )
        rules = (
            f'iifname "{self.tun}" {{family}} saddr {{set}} counter accept',
            f'oifname "{self.tun}" {{family}} daddr {{set}} counter accept',
            *(by_kernel if self.by_policies else ()),
            "{family} saddr {set} counter drop",
            "{family} daddr {set} counter drop",
        )
        _make_table(
            self._table,
            "chain forward {\n  type filter hook forward priority filter; policy accept;\n"
            + "".join(_each_family(rule, self.networks) for rule in rules)
            + "}",
        )

    def __str__(self) -> str:
        return f"forwarding for {_words(self.networks)} (table inet {self._table})"


@dataclass(frozen=True, slots=True)
class UntrackedChange(_TableChange):
    """What LAN clients say to a gateway's UDP ports here, and its answers, meet no NAT of ours.

    The kernel would go on with the NAT of a client that has spoken to the gateway before, and a
    source that we answer from is none of this host's addresses. Such answers leave by the clients'
    devices only.

    Args:
        name: of the instance: letters, digits and _.
        devices: where the clients are.
        gateways: the addresses that they send to.
        ports: and the ports.
    """

    PURPOSE: ClassVar = "lan"

    devices: tuple[str, ...]
    gateways: tuple[IpNetwork, ...]
    ports: tuple[int, ...]

    def apply(self) -> None:
        """Make the table."""
        ports = ", ".join(map(str, self.ports)).join(("{{ ", " }}"))
        devices = ", ".join(f'"{name}"' for name in self.devices).join(("{{ ", " }}"))
        to = f"iifname {devices} {{family}} daddr {{set}} udp dport {ports}"
        answers = f"{{family}} saddr {{set}} udp sport {ports}"
        _make_table(
            self._table,
            "chain prerouting {\n  type filter hook prerouting priority raw; policy accept;\n"
            + _each_family(f"{to} notrack", self.gateways)
            # Only a rule about tracking has the kernel put fragments together before it asks for
            # ports, which the later ones lack.
            + "}\nchain taken {\n  type filter hook prerouting priority mangle; policy accept;\n"
            + _each_family(f"{to} ct state untracked counter", self.gateways)
            + "}\nchain output {\n  type filter hook output priority raw; policy accept;\n"
            # Who has forged its source must not have others told by us in the gateway's name.
            + _each_family(f"{answers} oifname != {devices} counter drop", self.gateways)
            + _each_family(f"{answers} notrack", self.gateways)
            + "}",
        )

    def __str__(self) -> str:
        return f"no tracking of {_words(self.gateways)} (table inet {self._table})"


def _each_family(rule: str, networks: Sequence[IpNetwork]) -> str:
    """A rule for each IP version that there are networks of."""
    lines = ""
    for version, family in _FAMILIES:
        members = ", ".join(str(network) for network in collapsed(networks, version))
        if members:
            lines += f"  {rule.format(family=family, set=f'{{ {members} }}')}\n"
    return lines


def _words(networks: Sequence[IpNetwork]) -> str:
    return ", ".join(str(network) for network in networks)


def _make_table(table: str, body: str) -> None:
    """One transaction: adding before deleting makes the deletion succeed in any case."""
    _nft(f"add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{body}\n}}\n")


def _drop_table(table: str) -> None:
    _nft(f"add table inet {table}\ndelete table inet {table}\n")


def _nft(script: str) -> None:
    try:
        done = subprocess.run(
            ["nft", "-f", "-"],  # noqa: S607 - where nft is depends on the distribution
            input=script,
            check=False,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise HostNetError("nft is missing: install the package nftables") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostNetError(f"nft: {error}") from error
    if done.returncode != 0:
        raise HostNetError(_cause(done.stderr))


_CURES: Final = (
    ("not permitted", "the right CAP_NET_ADMIN is needed"),
    ("not supported", "the kernel lacks nftables: load nf_tables, nft_chain_nat and nft_masq"),
    ("No such file", "the kernel lacks nftables: load nf_tables, nft_chain_nat and nft_masq"),
)


def _cause(text: str) -> str:
    lines = text.strip().splitlines() or ["failed without a word"]
    cure = next((f" ({cure})" for symptom, cure in _CURES if symptom in text), "")
    return f"nft: {lines[0]}{cure}"
