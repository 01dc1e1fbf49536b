"""OpenVPN over TCP 443 between the demo's client and gateway: the yardstick.

Debian's openvpn with AES-256-GCM and TCP_NODELAY, all else at its defaults. Both ends know each
other's self-signed certificate by its fingerprint.
"""

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tunnelwrap.daemon.demo_network import GATEWAY_ADDRESS, SITE_NETWORK, DemoNetwork

READY_TIMEOUT_S = 20.0

_COMMON = """
dev tun
cipher AES-256-GCM
data-ciphers AES-256-GCM
socket-flags TCP_NODELAY
keepalive 10 60
verb 3
"""
_SERVER = """
port 443
proto tcp-server
mode server
tls-server
dh none
topology subnet
server 10.99.0.0 255.255.255.0
push "route {network} {mask}"
push "socket-flags TCP_NODELAY"
"""
_CLIENT = """
client
proto tcp-client
remote {gateway} 443
nobind
"""


async def start(network: DemoNetwork) -> None:
    """Start server and client and wait until the tunnel is up; the network stops them."""
    directory = network.directory
    fingerprints = {name: _make_identity(directory, name) for name in ("server", "client")}
    address, mask = SITE_NETWORK.partition("/")[0], "255.255.255.0"
    texts = {
        "server": _SERVER.format(network=address, mask=mask),
        "client": _CLIENT.format(gateway=GATEWAY_ADDRESS),
    }
    for name, host, peer in (("server", "gateway", "client"), ("client", "client", "server")):
        file = directory / f"{name}.conf"
        file.write_text(
            f"{texts[name]}{_COMMON}"
            f"cert {directory}/{name}.crt\nkey {directory}/{name}.key\n"
            f"peer-fingerprint {fingerprints[peer]}\n"
        )
        program = network.start(host, f"openvpn-{name}", "openvpn", "--config", str(file))
        await program.wait_for("Initialization Sequence Completed", READY_TIMEOUT_S)


def _make_identity(directory: Path, name: str) -> str:
    """Write a key and its self-signed certificate; give back the certificate's fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (directory / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate.fingerprint(hashes.SHA256()).hex(":")
