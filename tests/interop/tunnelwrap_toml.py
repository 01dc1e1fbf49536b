"""tunnelwrap's configuration files for a scenario's settings."""

from pathlib import Path

from tests.interop.lan import INNER_NETWORK, POOL, RESPONDER
from tests.interop.settings import GATEWAY, Proof, Settings


def client_toml(settings: Settings, directory: Path) -> str:
    """An initiator that asks for an address and reaches the responder's inner network."""
    lines = [
        "[client]",
        f'gateway = "{RESPONDER}"',
        'carriers = ["udp"]',
        *_places(directory),
        *_connection("connection", settings, directory),
        f'peer_ts = ["{INNER_NETWORK}"]',
    ]
    return "\n".join(lines) + "\n"


def gateway_toml(settings: Settings, directory: Path) -> str:
    """A responder that gives addresses and opens its inner network."""
    lines = [
        "[gateway]",
        f'name = "{GATEWAY}"',
        "tcp_ports = []",
        "tls_ports = []",
        *_line("cookie_threshold", settings.cookie_threshold),
        *_places(directory),
        "[pools.inner]",
        f'networks = ["{POOL}"]',
        *_connection("connections.peer", settings, directory, 'pool = "inner"'),
        f'local_ts = ["{INNER_NETWORK}"]',
    ]
    return "\n".join(lines) + "\n"


def _places(directory: Path) -> list[str]:
    return [
        f'control_socket = "{directory}/control"',
        f'state_directory = "{directory}/state"',
    ]


def _connection(name: str, settings: Settings, directory: Path, *more: str) -> list[str]:
    """A connection's tables; the last one, that of the Child SA, is left open."""
    proof = settings.proof
    return [
        f"[{name}]",
        f"ike = {settings.ike.split(',')}",
        *_line("rekey_s", settings.rekey_ike_s),
        *_line("fragment_size", settings.fragment_size),
        *_more(settings),
        *([] if proof.psk is None else [f'psk = "{proof.psk}"']),
        *settings.tunnelwrap,
        *more,
        *_proof(name, proof, directory),
        f"[{name}.child]",
        f"esp = {settings.esp.split(',')}",
        *_line("rekey_s", settings.rekey_child_s),
    ]


def _line(key: str, value: float | None) -> list[str]:
    return [] if value is None else [f"{key} = {value}"]


def _more(settings: Settings) -> list[str]:
    reauth, childless = settings.reauth_s, settings.childless
    return [
        *([] if reauth is None else [f"reauth_s = {reauth}"]),
        *([] if childless is None else [f'childless = "{childless}"']),
    ]


def _proof(name: str, proof: Proof, directory: Path) -> list[str]:
    local, peer = [f'id = "{proof.local_id}"'], [f'id = "{proof.peer_id}"']
    if proof.certificate is not None:
        own = [proof.certificate, *proof.certificate.intermediates]
        (directory / "own.pem").write_bytes(b"".join(each.pem for each in own))
        (directory / "own.key").write_bytes(proof.certificate.key_pem)
        (directory / "own.key").chmod(0o600)
        local += [f'certificate = "{directory}/own.pem"', f'key = "{directory}/own.key"']
    if proof.authority is not None:
        (directory / "authority.pem").write_bytes(proof.authority.pem)
        peer.append(f'ca = ["{directory}/authority.pem"]')
    return [f"[{name}.local]", *local, f"[{name}.peer]", *peer]
