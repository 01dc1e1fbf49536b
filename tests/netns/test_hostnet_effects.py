"""What the changes of a host's network bring about: ways, forwarding, name servers."""

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests.kit.netns import Namespace, wire
from tests.kit.tunnel_host import (
    ADDRESSES,
    EVERYTHING,
    GATEWAYS,
    MTU,
    POOLS,
    RESOLV_CONF,
    TUN,
    Dump,
    full_client,
    gateway,
    tunnel_host,
    way,
)
from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.hostnet.firewall import ForwardChange, NatChange
from tunnelwrap.hostnet.journal import Journal
from tunnelwrap.hostnet.links import client_changes

pytestmark = pytest.mark.root


@pytest.fixture
def host() -> Iterator[Namespace]:
    with tunnel_host() as host:
        yield host


@pytest.fixture
def tun(host: Namespace) -> Iterator[Tun]:
    with closing(Tun.open(TUN)) as tun:
        yield tun


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal"


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(RESOLV_CONF)
    return path


# --- where packets go -----------------------------------------------------------------------


def test_all_but_the_gateway_and_the_lan_goes_into_the_tunnel(
    host: Namespace, tun: Tun, resolv_conf: Path
) -> None:
    for change in full_client(resolv_conf):
        change.apply()

    assert way(host, "203.0.113.9") == f"{TUN} - 10.20.0.5"
    assert way(host, "2001:db8:9::9") == f"{TUN} - fd20::5"
    assert way(host, "10.99.1.1") == f"{TUN} - 10.20.0.5"
    assert way(host, "192.0.2.9") == "eth0 - 192.0.2.1"
    assert way(host, "2001:db8::9") == "eth0 - 2001:db8::1"
    assert way(host, GATEWAYS[0]) == "eth0 192.0.2.2 192.0.2.1"
    assert way(host, GATEWAYS[1]) == "eth0 2001:db8::2 2001:db8::1"
    assert f"mtu {MTU}" in host.ip("link", "show", TUN)


def test_the_bypass_follows_the_network(host: Namespace, tun: Tun, resolv_conf: Path) -> None:
    for change in full_client(resolv_conf):
        change.apply()

    host.ip("route", "replace", "default", "via", "192.0.2.3")

    assert way(host, GATEWAYS[0]) == "eth0 192.0.2.3 192.0.2.1"
    assert way(host, "203.0.113.9") == f"{TUN} - 10.20.0.5"


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_the_gateway_is_heard_whatever_the_reverse_path_filter(
    host: Namespace, tun: Tun, resolv_conf: Path, rp_filter: int
) -> None:
    for device in ("all", "eth0"):
        host.sysctl(f"net.ipv4.conf.{device}.rp_filter", rp_filter)
    for change in full_client(resolv_conf):
        change.apply()

    for address in GATEWAYS:
        assert host.succeeds("ping", "-c1", "-W2", str(address))


def test_a_negotiated_network_around_the_gateway_keeps_the_gateway_out(
    host: Namespace, tun: Tun
) -> None:
    networks = [ip_network("198.51.100.0/24"), ip_network("10.66.0.0/24")]
    for change in client_changes(TUN, MTU, ADDRESSES, networks, GATEWAYS):
        change.apply()

    assert way(host, GATEWAYS[0]) == "eth0 192.0.2.2 192.0.2.1"
    assert way(host, "198.51.100.8") == f"{TUN} - 10.20.0.5"
    assert way(host, "10.66.0.9") == f"{TUN} - 10.20.0.5"
    assert way(host, "203.0.113.9") == "eth0 192.0.2.2 192.0.2.1"


def test_two_tunnels_at_once_end_in_any_order(host: Namespace, tun: Tun, tmp_path: Path) -> None:
    before = Dump.of(host)
    with closing(Tun.open("tw1")):
        one, other = Journal(tmp_path / "one"), Journal(tmp_path / "other")
        one.apply_all(client_changes(TUN, MTU, ADDRESSES[:1], EVERYTHING[:1], GATEWAYS))
        with_one = Dump.of(host)
        networks = [ip_network("10.0.0.0/8"), ip_network("198.51.100.0/24")]
        addresses = [ip_address("10.30.0.5")]
        other.apply_all(client_changes("tw1", MTU, addresses, networks, GATEWAYS))
        assert way(host, "10.1.2.3") == "tw1 - 10.30.0.5"

        assert one.undo_all() == []
        assert way(host, "10.1.2.3") == "tw1 - 10.30.0.5"
        assert way(host, "203.0.113.9") == "eth0 192.0.2.2 192.0.2.1"
        assert other.undo_all() == []

    assert with_one != before
    assert Dump.of(host) == before


def test_ipv6_is_left_out_where_the_device_cannot_have_it(
    host: Namespace, tun: Tun, journal: Path, resolv_conf: Path
) -> None:
    small = client_changes(TUN, 1200, ADDRESSES, EVERYTHING, GATEWAYS)
    host.sysctl(f"net.ipv6.conf.{TUN}.disable_ipv6", 1)
    made = Journal(journal)

    made.apply_all(full_client(resolv_conf))

    assert way(host, "203.0.113.9") == f"{TUN} - 10.20.0.5"
    assert not any(":" in str(change).replace(": ", " ") for change in small)
    assert made.undo_all() == []


# --- a gateway ------------------------------------------------------------------------------


def test_a_gateway_forwards_for_its_clients(
    host: Namespace, tun: Tun, journal: Path, resolv_conf: Path
) -> None:
    made = Journal(journal)
    made.apply_all(gateway(resolv_conf))

    assert host.sysctl("net.ipv4.ip_forward") == "1"
    assert host.sysctl("net.ipv6.conf.all.forwarding") == "1"
    assert way(host, "10.20.0.99") == f"{TUN} - 10.20.0.1"
    assert way(host, "fd20::99") == f"{TUN} - fd20::1"
    rules = host.run("nft", "list", "ruleset")
    assert f'oifname != "{TUN}" ip saddr 10.20.0.0/24 masquerade' in rules
    assert f'oifname != "{TUN}" ip6 saddr fd20::/64 masquerade' in rules
    assert made.undo_all() == []


def test_forwarding_leaves_router_advertisements_heard_and_redirects_as_they_were(
    host: Namespace, tun: Tun, journal: Path, resolv_conf: Path
) -> None:
    host.sysctl("net.ipv6.conf.eth0.accept_ra", 1)
    host.sysctl("net.ipv4.conf.all.accept_redirects", 0)
    host.sysctl("net.ipv4.conf.eth0.forwarding", 1)
    before = Dump.of(host)
    made = Journal(journal)

    made.apply_all(gateway(resolv_conf))
    assert host.sysctl("net.ipv6.conf.eth0.accept_ra") == "2"
    assert made.undo_all() == []

    assert Dump.of(host) == before


def test_a_host_that_forwards_already_goes_on_doing_so(
    host: Namespace, tun: Tun, journal: Path, resolv_conf: Path
) -> None:
    host.sysctl("net.ipv4.ip_forward", 1)
    host.sysctl("net.ipv6.conf.all.forwarding", 1)
    before = Dump.of(host)
    made = Journal(journal)

    made.apply_all(gateway(resolv_conf))
    assert made.undo_all() == []

    assert Dump.of(host) == before


def test_other_tables_of_the_firewall_are_not_touched(
    host: Namespace, tun: Tun, resolv_conf: Path
) -> None:
    host.nft("table inet mine { chain c { type filter hook forward priority 0; counter\n}\n}")
    host.nft("table inet tunnelwrap_other_nat { }")
    before = host.run("nft", "list", "ruleset")
    changes = [NatChange("main", TUN, POOLS), ForwardChange("main", TUN, POOLS)]

    for change in (*changes, *changes):  # twice: what a former run left is replaced
        change.apply()
    assert host.run("nft", "list", "tables").count("tunnelwrap_main_") == 2
    for change in changes:
        change.undo()

    assert host.run("nft", "list", "ruleset") == before


CLIENT_IN_TUNNEL = "10.20.0.99"


@pytest.mark.parametrize("is_protected", [False, True])
def test_a_forged_pool_address_is_not_forwarded(
    host: Namespace, tun: Tun, resolv_conf: Path, *, is_protected: bool
) -> None:
    with Namespace("lan") as lan:
        wire(host, "lan0", ["172.16.0.1/24"], lan, "eth0", ["172.16.0.2/24"])
        host.sysctl("net.ipv4.conf.all.rp_filter", 0)
        host.sysctl("net.ipv4.conf.lan0.rp_filter", 0)
        lan.address("lo", f"{CLIENT_IN_TUNNEL}/32")
        lan.route("default", via="172.16.0.1")
        host.nft(
            "table inet seen { chain c { type filter hook postrouting priority -200; "
            f"ip saddr {CLIENT_IN_TUNNEL} counter\n}}\n}}"
        )
        for change in gateway(resolv_conf):
            if is_protected or not isinstance(change, ForwardChange):
                change.apply()

        lan.succeeds("ping", "-c1", "-W1", "-I", CLIENT_IN_TUNNEL, "192.0.2.2")

        passed = "counter packets 0 " not in host.run("nft", "list", "table", "inet", "seen")
        assert passed is not is_protected


# --- name servers ---------------------------------------------------------------------------

IN_NAMESPACE = """
import os, signal, sys
from ipaddress import ip_address
from pathlib import Path
from tunnelwrap.hostnet.dns import dns_change
from tunnelwrap.hostnet.journal import Journal, recover

path = Path("/etc/resolv.conf")
journal = Path(sys.argv[1])
print(recover(journal).undone)
print(path.read_text())
change = dns_change("lo", [ip_address("10.20.0.1")], [], is_default=True)
made = Journal(journal)
made.apply(change)
print(path.read_text())
if sys.argv[2] == "die":
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
made.undo_all()
print(path.read_text())
"""


def test_a_resolv_conf_that_is_a_mount_is_written_in_place(host: Namespace, journal: Path) -> None:
    path = host.resolv_conf(RESOLV_CONF)
    inode = path.stat().st_ino
    command = host.command(sys.executable, "-c", IN_NAMESPACE, str(journal))

    killed = run(host, *command, "die")
    assert "nameserver 10.20.0.1" in killed
    assert "nameserver 10.20.0.1" in path.read_text()
    after = run(host, *command, "live")

    assert "name servers in /etc/resolv.conf" in after
    assert after.count("nameserver 10.20.0.1") == 1
    assert after.rstrip("\n").endswith(RESOLV_CONF.rstrip("\n"))
    assert path.read_text() == RESOLV_CONF
    assert path.stat().st_ino == inode


def run(host: Namespace, *command: str) -> str:
    """What a program of this host printed, whatever it came to."""
    log = host.etc / "log"
    log.unlink(missing_ok=True)
    process = host.popen(*command[len(host.command()) :], log=log)
    process.wait(20)
    return log.read_text()


RESOLVECTL = """#!/bin/sh
echo "$@" >> "$LOG"
[ "$1" != "$FAILING" ] || { echo "Failed to set: no such luck" >&2; exit 1; }
"""

WITH_RESOLVED = """
import sys
from ipaddress import ip_address
from pathlib import Path
from tunnelwrap.errors import HostNetError
from tunnelwrap.hostnet.dns import dns_change

servers = [ip_address("10.20.0.1"), ip_address("fd20::1")]
domains = sys.argv[2].split()
path = Path("/run/systemd/resolve/stub-resolv.conf")
change = dns_change("lo", servers, domains, is_default=sys.argv[1] == "all", path=path)
try:
    change.apply()
    change.undo()
except HostNetError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("what", "domains", "told"),
    [
        ("all", "corp.example", ["corp.example ~.", "yes"]),
        ("some", "corp.example lab.example", ["corp.example lab.example", "no"]),
        ("some", "", ["~.", "yes"]),
    ],
)
def test_systemd_resolved_is_told_of_the_links_servers(
    host: Namespace, tmp_path: Path, what: str, domains: str, told: list[str]
) -> None:
    said, calls = with_resolved(host, tmp_path, what, domains)

    assert said == ""
    assert calls == [
        "dns lo 10.20.0.1 fd20::1",
        f"domain lo {told[0]}",
        f"default-route lo {told[1]}",
        "revert lo",
    ]


def test_what_resolved_took_is_taken_back_when_it_refuses_the_rest(
    host: Namespace, tmp_path: Path
) -> None:
    said, calls = with_resolved(host, tmp_path, "all", "corp.example", failing="domain")

    assert said == "resolvectl domain lo corp.example ~.: Failed to set: no such luck\n"
    assert calls == ["dns lo 10.20.0.1 fd20::1", "domain lo corp.example ~.", "revert lo"]


def with_resolved(
    host: Namespace, folder: Path, *arguments: str, failing: str = ""
) -> tuple[str, list[str]]:
    """Run a program where a stand-in for systemd-resolved is in charge of names.

    Returns:
        What the program printed, and the stand-in's calls.
    """
    program = folder / "bin" / "resolvectl"
    program.parent.mkdir()
    program.write_text(RESOLVECTL)
    program.chmod(0o755)
    said = host.run(
        *("env", f"PATH={program.parent}:{os.environ['PATH']}"),
        *(f"LOG={folder}/calls", f"FAILING={failing}", "sh", "-ec"),
        # The namespace's programs have mounts of their own: this /run is theirs alone.
        'mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/resolve; exec "$@"',
        *("sh", sys.executable, "-c", WITH_RESOLVED, *arguments),
    )
    return said, (folder / "calls").read_text().splitlines()
