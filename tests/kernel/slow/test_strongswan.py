"""strongSwan with its kernel-netlink plane as the peer, in the same kernel, in both roles.

    near                                              far
    10.1.0.1 on lo                         10.2.0.1 on lo
    192.0.2.1 -------------------------------- 192.0.2.2

near is the initiator. Both daemons only tell their kernels what to do, so that what the one has
told can be held against what the other has. ESP is in UDP unless tunnelwrap is told otherwise.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from operator import eq
from pathlib import Path

import pytest

from tests.interop.settings import IKE, Role
from tests.kernel.iproute import packets_by_spi, policies, states, statistics, watch
from tests.kit.daemons import Daemon, Toml, Transfer, toml, wait_until
from tests.kit.netns import Namespace, wire
from tests.kit.strongswan import PLUGINS, StrongSwan, Tree, psk_sides

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(300)]

OUTER = ("192.0.2.1", "192.0.2.2")
INNER = ("10.1.0.1", "10.2.0.1")
NETWORKS = ("10.1.0.0/24", "10.2.0.0/24")
SELECTORS = {
    "tunnel": NETWORKS,
    "transport": tuple(f"{each}/32" for each in OUTER),
    "beet": tuple(f"{each}/32" for each in INNER),
}
IDS = ("near.example.org", "far.example.org")
PSK = "correct horse battery staple"
KERNEL_PLUGINS = PLUGINS.replace("kernel-libipsec ", "")
NAT_PORTS = (4500, 4500)

SECONDS = 7
REKEY_S = {"child": 2, "ike": 3}
CHILD_REKEYED = r"CHILD_SA net\{\d+\} established with SPIs"
MINIMUM = 2  # rekeys of each that must have happened by then
IKE_REKEYED = r"IKE_SA peer\[\d+\] rekeyed between"


class Ends:
    """Both hosts, and a daemon on each; ``role`` is tunnelwrap's."""

    def __init__(self, near: Namespace, far: Namespace, role: Role, directory: Path) -> None:
        self.hosts = (near, far)
        self.ours = 0 if role is Role.INITIATOR else 1
        theirs = self.hosts[1 - self.ours]
        self.strongswan = StrongSwan(theirs.name, directory / "strongswan")
        self.strongswan.settings = {"load": KERNEL_PLUGINS}
        self._file = directory / ("connect.toml" if self.ours == 0 else "serve.toml")
        self._daemon: Daemon | None = None
        self.is_bare = self.has_mobike = False

    @property
    def tunnelwrap(self) -> Daemon:
        assert self._daemon is not None, "it is not started"
        return self._daemon

    def connect(
        self, esp: str = "aes256gcm16-x25519", mode: str = "tunnel", *, rekeys: bool = False
    ) -> None:
        """Start both daemons, the responder first, and wait for the tunnel."""
        selectors = SELECTORS[mode]
        self._file.write_text(toml(self._our_file(esp, mode, selectors, rekeys=rekeys)))
        if self.ours == 1:
            self._run("serve").says("ready")
        self.strongswan.start()
        self.strongswan.load(self._their_file(esp, mode, selectors))
        if self.ours == 0:
            self._run("connect", "--json").tells("established")
        else:
            done = self.strongswan.initiate("net", 50)
            assert done.returncode == 0, done.stdout + self.strongswan.log

    def child(self) -> Toml:
        """The one Child SA as tunnelwrap has it."""
        (sa,) = self.tunnelwrap.sas
        children = sa["child_sas"]
        assert isinstance(children, list)
        (child,) = children
        return child

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()
        self.strongswan.stop()

    def _run(self, command: str, *options: str) -> Daemon:
        self._daemon = Daemon(self.hosts[self.ours], self._file, command, *options)
        return self._daemon

    def _our_file(self, esp: str, mode: str, selectors: tuple[str, str], *, rekeys: bool) -> Toml:
        own, other = self.ours, 1 - self.ours
        connection: Toml = {
            "ike": [IKE],
            "psk": PSK,
            **({"rekey_s": REKEY_S["ike"]} if rekeys else {}),
            "local": {"id": IDS[own]},
            "peer": {"id": IDS[other]},
            "child": {
                "esp": [esp],
                "mode": mode,
                "local_ts": [selectors[own]],
                "peer_ts": [selectors[other]],
                **({"rekey_s": REKEY_S["child"]} if rekeys else {}),
            },
        }
        plane = {"data_plane": "kernel", "bare_esp": self.is_bare}
        if self.ours == 0:
            client = {"gateway": OUTER[1], "carriers": ["udp"], **plane}
            requests = {"requests_ipv4": False, "requests_ipv6": False}
            return {"client": client, "connection": {**requests, **connection}}
        gateway = {"name": IDS[1], "tcp_ports": [], "tls_ports": [], **plane}
        return {"gateway": gateway, "connections": {"peer": connection}}

    def _their_file(self, esp: str, mode: str, selectors: tuple[str, str]) -> Tree:
        own, other = 1 - self.ours, self.ours
        local, remote, secrets = psk_sides(IDS[own], IDS[other], PSK)
        child = {
            "esp_proposals": esp,
            "mode": mode,
            "local_ts": selectors[own],
            "remote_ts": selectors[other],
        }
        connection: Tree = {
            "version": "2",
            "local_addrs": OUTER[own],
            "remote_addrs": OUTER[other],
            "mobike": "yes" if self.has_mobike else "no",
            "proposals": IKE,
            "local": local,
            "remote": remote,
            "children": {"net": child},
        }
        return {"connections": {"peer": connection}, "secrets": secrets}


@pytest.fixture(params=list(Role), ids=["tunnelwrap-initiates", "tunnelwrap-responds"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    with Namespace("near") as near, Namespace("far") as far:
        wire(near, "eth0", [f"{OUTER[0]}/24"], far, "eth0", [f"{OUTER[1]}/24"])
        for side, host in enumerate((near, far)):
            host.address("lo", f"{INNER[side]}/32")
            host.route("default", via=OUTER[1 - side])
        made = Ends(near, far, request.param, tmp_path)
        yield made
        made.stop()


def ping(host: Namespace, source: str, target: str, *options: str) -> str:
    return host.run("ping", "-n", "-q", "-W", "5", *options, "-I", source, target)


ALGORITHMS = {
    "aes256gcm16": [r"aead rfc4106\(gcm\(aes\)\) 0x\w{72} 128"],
    "aes128-sha256": [r"auth-trunc hmac\(sha256\) 0x\w{64} 128", r"enc cbc\(aes\) 0x\w{32}"],
}


def agreed(ends: Ends, suite: str, mode: str) -> set[tuple[str, str]]:
    """Hold both kernels against each other and against what the daemons say.

    Gives back whose packets take the SAs.
    """
    there = states(ends.hosts[0])
    assert there == states(ends.hosts[1])
    for state in there:
        assert (state.mode, state.ports) == (mode, None if ends.is_bare else NAT_PORTS)
        wanted = ALGORITHMS[suite]
        assert len(wanted) == len(state.algorithms)
        assert all(map(re.fullmatch, wanted, state.algorithms)), state
    child, ours, theirs = ends.child(), OUTER[ends.ours], OUTER[1 - ends.ours]
    spis = {int(str(child["spi_in"]), 16): ours, int(str(child["spi_out"]), 16): theirs}
    assert {state.spi: state.destination for state in there} == spis
    listed = ends.strongswan.sas()
    assert f"{mode.upper()}{'' if ends.is_bare else '-in-UDP'}," in listed
    assert all(f"{spi:08x}" in listed for spi in spis)
    return selected(ends, mode)


def selected(ends: Ends, mode: str) -> set[tuple[str, str]]:
    """The traffic selectors of the policies: one host's out is the other's in."""
    near, far = (
        {
            direction: {each.selector for each in policies(host) if each.direction == direction}
            for direction in ("out", "in", "fwd")
        }
        for host in ends.hosts
    )
    assert near["out"] == far["in"]
    assert near["in"] == far["out"]
    forwarded = (near["in"], far["in"]) if mode != "transport" else (set(), set())
    assert (near["fwd"], far["fwd"]) == forwarded
    for side, host in enumerate(ends.hosts):
        assert {each.mode for each in policies(host)} == {mode}
        out = {each.ends for each in policies(host) if each.direction == "out"}
        assert mode == "transport" or out == {(OUTER[side], OUTER[1 - side])}
    return near["out"] | near["in"]


@pytest.mark.parametrize("suite", list(ALGORITHMS))
def test_both_kernels_have_what_was_agreed(ends: Ends, suite: str) -> None:
    ends.connect(f"{suite}-x25519")
    near, far = ends.hosts

    assert " 0% packet loss" in ping(near, INNER[0], INNER[1], "-i", "0.05", "-c", "10")
    Transfer((far, INNER[1]), near, 2 << 20).finish()
    Transfer((near, INNER[0]), far, 2 << 20).finish()

    assert agreed(ends, suite, "tunnel") == {NETWORKS, NETWORKS[::-1]}
    assert [statistics(host) for host in ends.hosts] == [{}, {}]


def test_transport_mode_between_the_hosts_themselves(ends: Ends) -> None:
    ends.connect(mode="transport")
    near, far = ends.hosts

    assert " 0% packet loss" in ping(near, OUTER[0], OUTER[1], "-i", "0.05", "-c", "10")
    Transfer((far, OUTER[1]), near, 2 << 20).finish()

    here, there = (f"{each}/32" for each in OUTER)
    assert agreed(ends, "aes256gcm16", "transport") == {(here, there), (there, here)}
    assert [statistics(host) for host in ends.hosts] == [{}, {}]


def carry_and_rekey(ends: Ends) -> None:
    """Packets pass before and after strongSwan's rekey, and none is dropped."""
    near, far = ends.hosts
    assert " 0% packet loss" in ping(near, INNER[0], INNER[1], "-i", "0.05", "-c", "10")
    Transfer((far, INNER[1]), near, 2 << 20).finish()

    spis = {state.spi for state in states(near)}
    ends.strongswan.rekey_child("net")
    wait_until("other keys", lambda: not spis & {state.spi for state in states(near)})
    wait_until("no others", lambda: len(states(far)) == 2)
    assert " 0% packet loss" in ping(near, INNER[0], INNER[1], "-i", "0.05", "-c", "10")
    assert [statistics(host) for host in ends.hosts] == [{}, {}]


@pytest.mark.parametrize("has_mobike", [False, True], ids=["port-500", "mobike"])
def test_without_udp_as_strongswan_has_it_by_default(ends: Ends, *, has_mobike: bool) -> None:
    """Who knows MOBIKE goes on by port 4500, NAT or not."""
    ends.is_bare, ends.has_mobike = True, has_mobike
    ends.connect()
    assert agreed(ends, "aes256gcm16", "tunnel") == {NETWORKS, NETWORKS[::-1]}
    carry_and_rekey(ends)
    assert agreed(ends, "aes256gcm16", "tunnel") == {NETWORKS, NETWORKS[::-1]}


def test_beet_mode_by_a_private_number(ends: Ends) -> None:
    """strongSwan shows its vendor ID only where it is told to; ours it wants to see."""
    ends.connect(mode="beet")
    here, there = SELECTORS["beet"]
    assert agreed(ends, "aes256gcm16", "beet") == {(here, there), (there, here)}
    assert ends.strongswan.logged("received strongSwan vendor ID")
    carry_and_rekey(ends)
    assert agreed(ends, "aes256gcm16", "beet") == {(here, there), (there, here)}


def test_we_rekey_beet_mode(ends: Ends) -> None:
    ends.connect(mode="beet", rekeys=True)

    ends.strongswan.wait_log(CHILD_REKEYED, 30.0, MINIMUM)

    assert " 0% packet loss" in ping(ends.hosts[0], *INNER, "-i", "0.05", "-c", "10")
    assert {state.mode for host in ends.hosts for state in states(host)} == {"beet"}


@pytest.mark.parametrize("rekeyer", ["tunnelwrap", "strongswan"])
def test_rekeys_of_both_sas_lose_nothing(ends: Ends, tmp_path: Path, rekeyer: str) -> None:
    ends.connect(rekeys=rekeyer == "tunnelwrap")
    logs = [tmp_path / "gone-near", tmp_path / "gone-far"]
    for host, log in zip(ends.hosts, logs, strict=True):
        watch(host, log)

    with ThreadPoolExecutor(1) as pool:
        every_10_ms = ("-i", "0.01", "-c", str(SECONDS * 100))
        pings = pool.submit(ping, ends.hosts[0], INNER[0], INNER[1], *every_10_ms)
        while rekeyer == "strongswan" and not pings.done():
            ends.strongswan.rekey_child("net")
            ends.strongswan.rekey_ike("peer")
            wait([pings], 1.0)

    assert f" {SECONDS * 100} received" in pings.result()
    assert len(ends.strongswan.logged(CHILD_REKEYED)) > MINIMUM
    assert len(ends.strongswan.logged(IKE_REKEYED)) >= MINIMUM
    wait_until("both have counted the same", lambda: eq(*map(packets_by_spi, ends.hosts, logs)))
    here = packets_by_spi(ends.hosts[0], logs[0])
    assert sum(here.values()) == 2 * SECONDS * 100
