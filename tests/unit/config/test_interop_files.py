"""The files that the interoperability tests write for tunnelwrap are right ones."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.interop.lan import RESPONDER
from tests.interop.pair import PSK, certificate_proofs, psk_proofs
from tests.interop.settings import CLIENT, GATEWAY, Settings
from tests.interop.test_refusals import CASES, KIND, OURS, THEIRS
from tests.interop.test_tunnel import SUITES, esp_of
from tests.interop.tunnelwrap_toml import client_toml, gateway_toml
from tests.unit.config.writing import WHEN, written
from tunnelwrap.config.compose import connection_policies
from tunnelwrap.config.load import load_client, load_gateway
from tunnelwrap.config.selectors import parse_selector
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.errors import ConfigError
from tunnelwrap.path import Carrier

EXPIRED = "expired-certificate"


def scenarios() -> Iterator[tuple[str, tuple[Settings, Settings]]]:
    """The initiator's and the responder's settings of every scenario, by a name."""
    psk = [Settings(proof) for proof in psk_proofs()]
    yield "psk", (psk[0], psk[1])
    for kind in ("rsa", "p256", "p384"):
        initiator, responder = certificate_proofs(kind)
        yield kind, (Settings(initiator), Settings(responder))
    for name, (suite, *_) in SUITES.items():
        halves = [replace(half, ike=suite, esp=esp_of(suite)) for half in psk]
        yield name, (halves[0], halves[1])
    child = [replace(half, rekey_child_s=number) for number, half in enumerate(psk, 1)]
    yield "rekey_child_s", (child[0], child[1])
    ike = [replace(half, rekey_ike_s=number) for number, half in enumerate(psk, 1)]
    yield "rekey_ike_s", (ike[0], ike[1])
    for cipher in (OURS, THEIRS):
        halves = [replace(half, ike=f"{cipher}-prfsha256-x25519", esp=cipher) for half in psk]
        yield cipher, (halves[0], halves[1])
    for name, (fault, _) in CASES.items():
        proofs = certificate_proofs(KIND) if "certificate" in name else psk_proofs()
        yield name, (Settings(fault(proofs[0])), Settings(fault(proofs[1])))


SCENARIOS = dict(scenarios())
RIGHT = [name for name in SCENARIOS if name != EXPIRED]


@pytest.mark.parametrize("name", RIGHT)
def test_tunnelwrap_initiates(tmp_path: Path, name: str) -> None:
    settings, _ = SCENARIOS[name]

    file = load_client(written(tmp_path, client_toml(settings, tmp_path)), WHEN)
    (policy,) = connection_policies(file)

    assert (file.client.gateway, file.client.carriers) == (RESPONDER, (Carrier.UDP,))
    assert str(policy.local.identity) == settings.proof.local_id
    assert policy.peer.identity.text == GATEWAY
    assert (policy.peer.trust is None) == (settings.proof.authority is None)
    assert policy.child.ts_peer == (parse_selector("10.72.0.0/24"),)
    assert policy.requests_ipv4


@pytest.mark.parametrize("name", RIGHT)
def test_tunnelwrap_responds(tmp_path: Path, name: str) -> None:
    _, settings = SCENARIOS[name]

    file = load_gateway(written(tmp_path, gateway_toml(settings, tmp_path)), WHEN)
    (policy,) = connection_policies(file)

    assert (file.gateway.tcp_ports, file.gateway.tls_ports) == ((), ())
    assert str(policy.local.identity) == settings.proof.local_id
    assert policy.peer.identity.text == CLIENT
    assert policy.pool is not None
    assert str(file.pools[policy.pool].networks[0]) == "10.71.0.0/24"
    assert policy.child.ts_local == (parse_selector("10.72.0.0/24"),)


def test_a_psk_is_for_both(tmp_path: Path) -> None:
    settings, _ = SCENARIOS["psk"]

    (policy,) = connection_policies(load_client(written(tmp_path, client_toml(settings, tmp_path))))

    assert policy.local.credential == policy.peer.psk == Secret(PSK.encode())


def test_a_short_life_ends_a_minute_after_its_rekey(tmp_path: Path) -> None:
    for name in ("rekey_child_s", "rekey_ike_s"):
        initiator, responder = SCENARIOS[name]
        client = load_client(written(tmp_path, client_toml(initiator, tmp_path)))
        gateway = load_gateway(written(tmp_path, gateway_toml(responder, tmp_path)))
        for file, rekey_s in ((client, 1.0), (gateway, 2.0)):
            (policy,) = connection_policies(file)
            life = policy.child.lifetime if name == "rekey_child_s" else policy
            assert (life.rekey_s, life.hard_s) == (rekey_s, rekey_s + 60)


@pytest.mark.parametrize("make", [client_toml, gateway_toml], ids=["initiates", "responds"])
def test_our_own_expired_certificate_is_refused_before_any_peer_sees_it(
    tmp_path: Path, make: type
) -> None:
    settings = SCENARIOS[EXPIRED][0 if make is client_toml else 1]
    load = load_client if make is client_toml else load_gateway

    with pytest.raises(ConfigError, match="expired on"):
        load(written(tmp_path, make(settings, tmp_path)))


@pytest.mark.parametrize("name", ["initiator", "responder"])
def test_the_control_socket_has_a_name_that_a_socket_can_have(name: str) -> None:
    # As pytest names it: after 30 characters of the test's name at the most. Never made.
    top = "/tmp/pytest-of-somebody/pytest-1000"  # noqa: S108 - a text, no file
    directory = Path(top, "t" * 30 + "0", f"tunnelwrap-{name}")
    lines = client_toml(SCENARIOS["psk"][0], directory).splitlines()
    (line,) = (line for line in lines if line.startswith("control_socket"))

    assert len(line.partition('"')[2].rstrip('"')) < 108
