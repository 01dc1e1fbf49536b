"""The image's entrypoint, in the root that its Dockerfile comes to, as an engine would run it.

client 203.0.113.1 ---------- 203.0.113.2 gateway (the container)
"""

import os
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.certs import authority, entity
from tests.kit.container import Container, Process
from tests.kit.daemons import Daemon, wait_until
from tests.kit.image import RIGHTS, SOURCE, image
from tests.kit.netns import Namespace, wire

# The first time debootstrap runs, and pip.
pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]

NAME = "vpn.example.org"
FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")  # as in docker/service.yaml
NEW = {"VPN_NAME": NAME, "VPN_ADDRESS": "203.0.113.2", "VPN_CLIENT": "alice"}
NET_ADMIN, NET_BIND_SERVICE = 12, 10


@dataclass
class Net:
    """Both hosts."""

    client: Namespace
    container: Container


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    made = image()
    with Namespace("client") as client, Namespace("gateway") as gateway:
        wire(client, "eth0", ["203.0.113.1/24"], gateway, "eth0", ["203.0.113.2/24"])
        client.route("default", via="203.0.113.2")
        for key in FORWARDING:
            gateway.sysctl(key, 1)
        with Container(made, gateway, tmp_path) as container:
            container.environment = {**NEW}
            yield Net(client, container)


def rights_of(process: Process) -> tuple[str, int]:
    """Who a process runs as, and its effective capabilities."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    values = dict(line.split(":\t", 1) for line in lines)
    return values["Uid"].split()[1], int(values["CapEff"], 16)


def connects(net: Net, profile: Path) -> Daemon:
    """A client with its tunnel up, through which the gateway's inner address answers."""
    client = Daemon(net.client, profile, "connect", "--json")
    client.tells("established")
    wait_until("a ping", lambda: net.client.succeeds("ping", "-c1", "-W1", "10.20.0.1"))
    return client


def test_an_empty_volume_becomes_a_gateway_that_stays(net: Net, tmp_path: Path) -> None:
    container = net.container
    process = container.start()
    profile = tmp_path / "alice.toml"
    profile.write_bytes(container.out.read_bytes())  # standard output is the profile and no more

    assert rights_of(process) == (str(container.image.user), 1 << NET_ADMIN | 1 << NET_BIND_SERVICE)
    client = connects(net, profile)
    health = container.image.words("HEALTHCHECK")
    assert "alice@vpn.example.org" in container.says(process, *health)
    assert container.files()["alice/client.toml"] == profile.read_bytes()

    client.forget_log()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert time.monotonic() - began < 5
    client.tells("closed")
    client.stop()
    kept = container.files()

    process = container.start()
    assert container.out.read_text() == ""
    assert container.files() == kept
    connects(net, profile).stop()
    process.terminate()
    assert process.wait(10) == 0
    assert (container.state / "gateway" / "leases.sqlite").exists()


def test_another_client_of_a_running_gateway(net: Net, tmp_path: Path) -> None:
    process = net.container.start()
    said = net.container.says(process, "tunnelwrap", "init", "--client", "bob")
    assert "Copy /etc/tunnelwrap/bob/client.toml to the client" in said
    profile = tmp_path / "bob.toml"
    profile.write_bytes(net.container.files()["bob/client.toml"])
    connects(net, profile).stop()
    process.terminate()
    assert process.wait(10) == 0


def test_what_a_gateway_is_made_of_comes_from_the_environment(net: Net) -> None:
    container = net.container
    container.environment |= {
        "VPN_NETWORKS": "10.66.0.0/24 10.67.0.0/24",
        "VPN_POOLS": "10.21.0.0/24",
        "VPN_DNS": "10.66.0.53",
        "VPN_PROXIES": "172.30.44.2",
    }
    container.start()
    made = tomllib.loads(container.files()["gateway.toml"].decode())
    assert made["gateway"]["name"] == NAME
    assert made["gateway"]["proxies"] == ["172.30.44.2/32"]
    assert made["pools"]["clients"] == {"networks": ["10.21.0.0/24"], "dns": ["10.66.0.53"]}
    assert made["connections"]["clients"]["child"]["local_ts"] == ["10.66.0.0/24", "10.67.0.0/24"]


# --- what is missing is told ------------------------------------------------------------------


def test_without_a_name_nothing_is_made(net: Net) -> None:
    del net.container.environment["VPN_NAME"]
    assert net.container.refuses().splitlines() == [
        "tunnelwrap: VPN_NAME: found nothing, expected the name or address that clients connect to",
        "tunnelwrap: (there is no /etc/tunnelwrap/gateway.toml yet)",
    ]
    assert net.container.files() == {}


def test_a_wrong_value_is_told_and_nothing_is_made(net: Net) -> None:
    net.container.environment["VPN_NETWORKS"] = "10.66.0.0/24 *"
    assert "tunnelwrap: --network[1]: found '*', expected" in net.container.refuses()
    assert net.container.files() == {}


def test_a_volume_of_another_user(net: Net) -> None:
    os.chown(net.container.configuration, 0, 0)
    net.container.configuration.chmod(0o755)
    assert net.container.refuses() == (
        "tunnelwrap: /etc/tunnelwrap: cannot be written to; user 905 needs to\n"
    )


def test_without_the_device(net: Net) -> None:
    net.container.devices = {}
    assert net.container.refuses() == (
        "tunnelwrap: no /dev/net/tun here: it takes --device /dev/net/tun\n"
    )


@pytest.mark.parametrize("right", RIGHTS)
def test_without_a_right(net: Net, right: str) -> None:
    net.container.rights = [each for each in RIGHTS if each != right]
    assert net.container.refuses() == (
        f"tunnelwrap: this container lacks the right {right}: it takes --cap-add {right}\n"
    )
    assert net.container.files() == {}


def test_where_no_rights_may_be_gained(net: Net) -> None:
    net.container.options += ("--no-new-privs",)
    assert "no-new-privileges keeps it from getting any" in net.container.refuses()
    assert net.container.files() == {}


def test_an_engine_that_gives_the_rights_itself_needs_no_help(net: Net) -> None:
    # As Podman does; then no-new-privileges is no hindrance.
    both = ",".join(f"+{right}" for right in RIGHTS)
    net.container.options = (f"--inh-caps={both}", f"--ambient-caps={both}", "--no-new-privs")
    process = net.container.start()
    process.terminate()
    assert process.wait(10) == 0


def test_other_commands_are_tunnelwraps(net: Net) -> None:
    container = net.container
    container.rights, container.devices = [], {}
    entrypoint = container.image.words("ENTRYPOINT")
    done = subprocess.run(
        container.command(*entrypoint, "--version"), check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("tunnelwrap, version ")


def test_a_relay_has_one_right_and_no_device(net: Net) -> None:
    container = net.container
    certificate = entity("vpn.example.org", authority("CA"), number=2, sans=("vpn.example.org",))
    container.add("certificates/gateway.pem", certificate.pem)
    container.add("certificates/gateway.key", certificate.key_pem)
    container.add("relay.toml", (SOURCE / "docker/relay/relay.toml").read_bytes())
    container.rights, container.devices = ["net_bind_service"], {}

    process = container.start("relay", "/etc/tunnelwrap/relay.toml")

    assert rights_of(process) == (str(container.image.user), 1 << NET_BIND_SERVICE)
    said = container.says(process, "tunnelwrap", "status", "/etc/tunnelwrap/relay.toml")
    assert said == "relay relay to 127.0.0.1:4500: 0 ways\n"
    process.terminate()
    assert process.wait(10) == 0


@pytest.mark.parametrize("lan", [(), ("--lan", "eth0")], ids=["daemon", "lan"])
def test_a_wrapper_has_what_it_is_given(net: Net, lan: tuple[str, ...]) -> None:
    container = net.container
    container.add("wrap.toml", b'[wrap]\ngateway = "203.0.113.1"\n')
    container.rights, container.devices = [*RIGHTS] if lan else ["net_bind_service"], {}

    process = container.start("wrap", *lan, "/etc/tunnelwrap/wrap.toml")

    expected = 1 << NET_BIND_SERVICE | (1 << NET_ADMIN if lan else 0)
    assert rights_of(process) == (str(container.image.user), expected)
    assert bool(lan) == ("to 203.0.113.1 iif eth0" in container.host.ip("rule"))
    process.terminate()
    assert process.wait(10) == 0


def test_the_image_has_no_build_tools(net: Net) -> None:
    root = net.container.image.root
    for name in ("pip", "pip3", "gcc", "cc", "make", "setcap"):
        assert not [found for found in root.glob(f"*/{name}") if found.exists()]
        assert not list(root.glob(f"usr/*bin/{name}"))
    assert not list(root.glob("opt/tunnelwrap/bin/pip*"))
