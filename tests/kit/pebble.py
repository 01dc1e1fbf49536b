"""Pebble, a real ACME server, with a DNS server that leads every name to one address."""

import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import randbelow

from tests.kit.certs import authority, entity

LOCALHOST = "127.0.0.1"
REFUSED = "refused.example"
EAB_KEY_ID, EAB_KEY = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
QUIET = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0", "PEBBLE_WFE_NONCEREJECT": "0"}
"""It looks at once, each time anew, and takes every good nonce."""

_START_S = 20.0


@dataclass
class Pebble:
    """A running one."""

    directory: str
    ca_file: Path
    log_file: Path

    def orders(self) -> int:
        """How many were placed."""
        return self.log_file.read_text().count("Added order")

    def log(self) -> str:
        """What it says."""
        return self.log_file.read_text()


PORTS = range(20_000, 30_000)  # below the ephemeral ones


def free_port() -> int:
    """A TCP port that nobody has, and that the system gives to nobody who asks for any."""
    while True:
        port = PORTS[randbelow(len(PORTS))]
        with suppress(OSError), socket.create_server((LOCALHOST, port)):
            return port


@contextmanager
def pebble(
    folder: Path,
    *,
    tls_port: int = 443,
    http_port: int = 80,
    lifetime_s: int = 90 * 86400,
    needs_binding: bool = False,
) -> Iterator[Pebble]:
    """Run it on loopback, where it sees the proofs of names on these ports."""
    settings = {
        "httpPort": http_port,
        "tlsPort": tls_port,
        "externalAccountBindingRequired": needs_binding,
        "certificateValidityPeriod": lifetime_s,
    }
    with ExitStack() as running:

        def start(*command: str, log: Path, environment: Mapping[str, str]) -> None:
            with log.open("wb") as file:
                process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
            running.enter_context(process)
            running.callback(process.terminate)

        yield start_pebble(folder, start, LOCALHOST, LOCALHOST, settings)


def start_pebble(
    folder: Path,
    start: Callable[..., object],
    address: str,
    target: str,
    settings: Mapping[str, object],
) -> Pebble:
    """Start it on a host; whoever gives ``start`` ends it.

    Args:
        folder: for its files.
        start: starts a program, as ``Namespace.popen`` does.
        address: where it listens.
        target: where every name leads.
        settings: of its own, over ours.
    """
    port, dns = free_port(), f"{LOCALHOST}:{free_port()}"
    made = Pebble(f"https://{address}:{port}/dir", folder / "web-ca.pem", folder / "pebble.log")
    _certify(made, address, folder)
    all_settings = {**_settings(folder, f"{address}:{port}"), **settings}
    file = folder / "pebble.json"
    file.write_text(json.dumps({"pebble": all_settings}))
    environment = {**os.environ, **QUIET}
    start(
        *("pebble-challtestsrv", "-dns01", dns, "-management", ""),
        *("-http01", "", "-https01", "", "-tlsalpn01", ""),
        *("-defaultIPv4", target, "-defaultIPv6", ""),
        log=folder / "names.log",
        environment=environment,
    )
    command = ("pebble", "-config", str(file), "-dnsserver", dns)
    start(*command, log=made.log_file, environment=environment)
    _wait(made, "ACME directory available")
    return made


def _certify(made: Pebble, address: str, folder: Path) -> None:
    """Its own certificate, which has nothing to do with those that it gives."""
    web_ca = authority("CN=Pebble Web CA")
    own = entity("CN=pebble", web_ca, number=4, sans=(address,))
    made.ca_file.write_bytes(web_ca.pem)
    (folder / "pebble.pem").write_bytes(own.pem)
    (folder / "pebble.key").write_bytes(own.key_pem)


def _settings(folder: Path, where: str) -> dict[str, object]:
    return {
        "listenAddress": where,
        "managementListenAddress": "",
        "certificate": str(folder / "pebble.pem"),
        "privateKey": str(folder / "pebble.key"),
        "httpPort": 80,
        "tlsPort": 443,
        "externalAccountMACKeys": {EAB_KEY_ID: EAB_KEY},
        "domainBlocklist": [REFUSED],
    }


def _wait(made: Pebble, text: str) -> None:
    deadline = time.monotonic() + _START_S
    while text not in made.log():
        assert time.monotonic() < deadline, made.log()
        time.sleep(0.02)


def client_context() -> ssl.SSLContext:
    """A client that trusts everybody: Pebble's root is another one at each start."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
