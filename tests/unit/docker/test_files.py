"""The files of docker/: what linters and the compose specification say of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compose_spec import PyCompose

DOCKER = Path(__file__).parents[3] / "docker"
COMPOSE = sorted(DOCKER.rglob("*.yaml"))
TOOLS = Path(sys.executable).parent

Table = dict[str, object]


def services(file: Path) -> dict[str, Table]:
    """Those of a compose file, with what they extend by name."""
    found: dict[str, Table] = PyCompose.from_yaml(file.read_text()).to_dict()["services"]
    return found


@pytest.mark.skipif(
    not (TOOLS / "hadolint").exists(), reason="hadolint has no wheel for this machine"
)
def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run(
        [TOOLS / "hadolint", DOCKER / "Dockerfile"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_entrypoint_is_clean() -> None:
    assert os.access(DOCKER / "entrypoint.sh", os.X_OK)
    done = subprocess.run(
        [TOOLS / "shellcheck", DOCKER / "entrypoint.sh"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: str(file.relative_to(DOCKER)))
def test_a_compose_file_is_of_its_specification(file: Path) -> None:
    tree = PyCompose.from_yaml(file.read_text())
    tree.to_spec()
    named = set(tree.to_dict().get("volumes", {}))
    for service in services(file).values():
        extended = service.get("extends")
        if isinstance(extended, dict):
            base = file.parent / str(extended["file"])
            assert extended["service"] in services(base)
            assert named == {"configuration", "state"}


@pytest.mark.parametrize("name", ["haproxy", "nginx", "traefik"])
def test_the_gateway_believes_the_proxy_in_front_of_it(name: str) -> None:
    both = services(DOCKER / name / "compose.yaml")
    networks = both["proxy"]["networks"]
    assert isinstance(networks, dict)
    environment = both["vpn"]["environment"]
    assert isinstance(environment, dict)
    assert environment["VPN_PROXIES"] == networks["front"]["ipv4_address"]


def test_the_way_of_websockets_ends_where_the_gateway_listens() -> None:
    both = services(DOCKER / "websocket/compose.yaml")
    environment = both["vpn"]["environment"]
    assert isinstance(environment, dict)
    _, _, port = environment["VPN_WEBSOCKET"].rpartition(":")
    assert "ports" not in both["vpn"]
    template = (DOCKER / "websocket/vpn.conf.template").read_text()
    assert f"proxy_pass http://vpn:{port};" in template
    proxy = both["proxy"]["environment"]
    assert isinstance(proxy, dict)
    assert set(proxy) == set(re.findall(r"\$\{(\w+)\}", template))


def test_only_two_rights_are_left() -> None:
    vpn = services(DOCKER / "service.yaml")["vpn"]
    assert vpn["cap_drop"] == ["ALL"]
    assert vpn["cap_add"] == ["NET_ADMIN", "NET_BIND_SERVICE"]
