"""Changes as values: which ones are planned, what they say, and the way through JSON."""

import json
import os
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from tunnelwrap.errors import HostNetError, UsageError
from tunnelwrap.hostnet import Change
from tunnelwrap.hostnet.dns import ResolvConfChange, ResolvedChange
from tunnelwrap.hostnet.firewall import ForwardChange, NatChange, UntrackedChange
from tunnelwrap.hostnet.journal import KINDS
from tunnelwrap.hostnet.links import client_changes, gateway_changes, table_of
from tunnelwrap.hostnet.netlink import (
    MAIN_TABLE,
    AddressChange,
    Device,
    InterfaceChange,
    LinkChange,
    RouteChange,
    RuleChange,
    collapsed,
)
from tunnelwrap.hostnet.sysctl import SysctlChange, has_ipv6
from tunnelwrap.hostnet.values import from_json

POOLS = (ip_network("10.20.0.0/24"), ip_network("fd20::/64"))
TW0 = Device("tw0", 7)
LO = Device("lo", 1)
GATEWAY = ip_address("198.51.100.7")

EXAMPLES: tuple[tuple[Change, str], ...] = (
    (InterfaceChange("tw0", 0x9), "xfrm interface tw0 with if_id 0x9"),
    (LinkChange(TW0, 1380, 1500, was_up=False), "device tw0 up, MTU 1380"),
    (AddressChange(TW0, ip_interface("10.20.0.5/32")), "address 10.20.0.5/32 on tw0"),
    (AddressChange(TW0, ip_interface("fd20::5/128")), "address fd20::5/128 on tw0"),
    (RouteChange(POOLS[0], TW0, MAIN_TABLE, None), "route 10.20.0.0/24 by tw0"),
    (
        RouteChange(POOLS[1], TW0, 7000, ip_address("fd20::5")),
        "route fd20::/64 by tw0 in table 7000",
    ),
    (
        RuleChange(4, 10, MAIN_TABLE, to=ip_network(GATEWAY)),
        "rule 10: IPv4 to 198.51.100.7/32 by table 254",
    ),
    (
        RuleChange(6, 11, MAIN_TABLE, passes_default=True),
        "rule 11: IPv6 to all by table 254 save its default",
    ),
    (
        RouteChange(ip_network(GATEWAY), LO, 7001, None, is_local=True),
        "local route 198.51.100.7/32 by lo in table 7001",
    ),
    (
        RuleChange(4, 9, 7001, to=ip_network(GATEWAY), device="br-lan", udp_port=500),
        "rule 9: IPv4 from br-lan to 198.51.100.7/32 UDP port 500 by table 7001",
    ),
    (
        SysctlChange("net/ipv4/ip_forward", "1", (("net/ipv4/ip_forward", "0"),)),
        "sysctl net/ipv4/ip_forward = 1",
    ),
    (
        ResolvedChange(TW0, ("10.20.0.1",), ("corp.example",), is_default=False),
        "name servers 10.20.0.1 of tw0 in systemd-resolved",
    ),
    (ResolvConfChange("/etc/resolv.conf", "ours", None), "name servers in /etc/resolv.conf"),
    (
        ResolvConfChange("/etc/resolv.conf", "ours", "theirs \udcff"),
        "name servers in /etc/resolv.conf",
    ),
    (
        NatChange("main", "tw0", POOLS),
        "NAT for 10.20.0.0/24, fd20::/64 (table inet tunnelwrap_main_nat)",
    ),
    (
        ForwardChange("main", "tw0", POOLS[:1]),
        "forwarding for 10.20.0.0/24 (table inet tunnelwrap_main_forward)",
    ),
    (
        UntrackedChange("main", ("br-lan",), (ip_network(GATEWAY),), (500, 4500)),
        "no tracking of 198.51.100.7/32 (table inet tunnelwrap_main_lan)",
    ),
)


@pytest.mark.parametrize(("change", "text"), EXAMPLES)
def test_a_change_says_what_it_is_and_survives_json(change: Change, text: str) -> None:
    fields = json.loads(json.dumps(change.to_json()))
    kind = KINDS[fields.pop("kind")]

    assert from_json(kind, fields) == change
    assert str(change) == text


def test_every_kind_has_an_example() -> None:
    assert {type(change) for change, _ in EXAMPLES} == set(KINDS.values())


def test_plain_routes_for_networks_without_the_gateway() -> None:
    networks = [ip_network(n) for n in ("10.66.0.0/24", "10.66.0.0/25", "10.70.0.0/16")]
    address = ip_address("10.20.0.5")

    changes = client_changes("lo", 1380, [address], networks, [GATEWAY])

    device = Device.find("lo")
    assert isinstance(changes[0], LinkChange)
    assert changes[1:] == [
        AddressChange(device, ip_interface("10.20.0.5/32")),
        RouteChange(ip_network("10.66.0.0/24"), device, MAIN_TABLE, address),
        RouteChange(ip_network("10.70.0.0/16"), device, MAIN_TABLE, address),
    ]


@pytest.mark.parametrize("halves", [["0.0.0.0/0"], ["0.0.0.0/1", "128.0.0.0/1"]])
def test_for_everything_the_gateways_way_round_stands_before_the_tunnel(halves: list[str]) -> None:
    networks = [ip_network(half) for half in halves]
    gateways = [GATEWAY, ip_address("2001:db8:7::7"), GATEWAY]

    changes = client_changes("lo", 1380, [], networks, gateways)[1:]

    *rules, keep, route, last = changes
    assert [rule.to for rule in rules if isinstance(rule, RuleChange)] == [ip_network(GATEWAY)]
    assert isinstance(keep, RuleChange)
    assert keep.passes_default
    assert route == RouteChange(ip_network("0.0.0.0/0"), Device.find("lo"), table_of("lo"), None)
    assert last == RuleChange(4, keep.priority + 1, table_of("lo"))


def test_a_default_route_is_kept_apart_though_the_gateway_is_of_the_other_family() -> None:
    changes = client_changes(
        "lo", 1380, [], [ip_network("0.0.0.0/0")], [ip_address("2001:db8:7::7")]
    )

    assert not [c for c in changes if isinstance(c, RouteChange) and c.table == MAIN_TABLE]
    assert not [c for c in changes if isinstance(c, RuleChange) and c.to is not None]


def test_tunnels_have_tables_of_their_own() -> None:
    assert len({table_of(f"tw{n}") for n in range(20)}) == 20


def test_a_device_that_is_not_there() -> None:
    for plan in (
        lambda: client_changes("tw-none", 1380, [], [], []),
        lambda: gateway_changes("tw-none", 1380, [], []),
    ):
        with pytest.raises(HostNetError, match="device tw-none: No such device"):
            plan()
    assert not has_ipv6("tw-none")
    assert not Device("lo", 999_999).is_there()
    assert not Device("tw-none", 1).is_there()


def test_networks_inside_others_are_left_out() -> None:
    networks = [ip_network(n) for n in ("10.0.0.0/25", "fd00::/8", "10.0.0.128/25", "fd01::/16")]

    assert collapsed(networks, 4) == [ip_network("10.0.0.0/24")]
    assert collapsed(networks, 6) == [ip_network("fd00::/8")]


def test_a_parameter_that_the_kernel_lacks() -> None:
    with pytest.raises(HostNetError, match="sysctl net/ipv4/nothing: No such file or directory"):
        SysctlChange.of("net/ipv4/nothing", "1")


# --- nftables -------------------------------------------------------------------------------


@pytest.fixture
def nft_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a stand-in for nft into the way that says something and fails."""

    def install(complaint: str) -> None:
        program = tmp_path / "nft"
        program.write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_a_missing_nft_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(HostNetError, match="nft is missing: install the package nftables"):
        NatChange("main", "tw0", POOLS).apply()


@pytest.mark.parametrize(
    ("complaint", "cure"),
    [
        ("Error: Could not process rule: Operation not supported", "load nf_tables"),
        ("Error: Could not process rule: No such file or directory", "load nf_tables"),
        ("netlink: Error: cache initialization failed: Operation not permitted", "CAP_NET_ADMIN"),
    ],
)
def test_what_nft_says_is_passed_on_with_a_cure(
    nft_that: Callable[[str], None], complaint: str, cure: str
) -> None:
    nft_that(complaint)

    with pytest.raises(HostNetError) as caught:
        ForwardChange("main", "tw0", POOLS).apply()

    assert str(caught.value).startswith(f"nft: {complaint} (")
    assert cure in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", 'x"; flush ruleset; #', "a" * 65])
def test_a_name_that_could_be_more_than_a_name_is_a_bug(name: str) -> None:
    with pytest.raises(UsageError):
        NatChange(name, "tw0", POOLS).apply()
