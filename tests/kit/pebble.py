"""Pebble, a real ACME server, with a DNS server that leads every name to one address."""

import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.kit.certs import authority, entity

PopenLike = Callable[[list[str], Mapping[str, str], IO[bytes]], "subprocess.Popen[bytes]"]
REFUSED = "refused.example"
EAB_KEY_ID, EAB_KEY = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
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


def free_port() -> int:
    """A TCP port that nobody has at this time."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def popen(
    command: list[str], environment: Mapping[str, str], log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Start a program on this host."""
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


@contextmanager
def pebble(
    folder: Path,
    *,
    tls_port: int = 443,
    http_port: int = 80,
    lifetime_s: int = 90 * 86400,
    needs_binding: bool = False,
    listen: str = "127.0.0.1",
    target: str = "127.0.0.1",
    start: PopenLike = popen,
    port: int = 0,
) -> Iterator[Pebble]:
    """Run it: names are proven on these ports of one address."""
    port = port or free_port()
    dns, made = (
        free_port(),
        Pebble(f"https://{listen}:{port}/dir", folder / "web-ca.pem", folder / "log"),
    )
    web_ca = authority("CN=Pebble Web CA")
    own = entity("CN=pebble", web_ca, number=4, sans=(listen, "localhost"))
    made.ca_file.write_bytes(web_ca.pem)
    (folder / "web.pem").write_bytes(own.pem)
    (folder / "web.key").write_bytes(own.key_pem)
    settings = {
        "listenAddress": f"{listen}:{port}",
        "managementListenAddress": "",
        "certificate": str(folder / "web.pem"),
        "privateKey": str(folder / "web.key"),
        "httpPort": http_port,
        "tlsPort": tls_port,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": needs_binding,
        "externalAccountMACKeys": {EAB_KEY_ID: EAB_KEY},
        "domainBlocklist": [REFUSED],
        "certificateValidityPeriod": lifetime_s,
    }
    (folder / "pebble.json").write_text(json.dumps({"pebble": settings}))
    environment = {**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0"}
    environment["PEBBLE_WFE_NONCEREJECT"] = "0"
    names = [
        *("pebble-challtestsrv", "-dns01", f"127.0.0.1:{dns}", "-management", ""),
        *("-http01", "", "-https01", "", "-tlsalpn01", ""),
        *("-defaultIPv4", target, "-defaultIPv6", ""),
    ]
    server = ["pebble", "-config", str(folder / "pebble.json"), "-dnsserver", f"127.0.0.1:{dns}"]
    with ExitStack() as running, made.log_file.open("wb") as log:
        for command in (names, server):
            process = running.enter_context(start(command, environment, log))
            running.callback(process.terminate)
        _wait(made, listen, port)
        yield made


def _wait(made: Pebble, host: str, port: int) -> None:
    deadline = time.monotonic() + _START_S
    while f"Listening on: {host}:{port}" not in made.log():
        assert time.monotonic() < deadline, made.log()
        time.sleep(0.02)


def client_context() -> ssl.SSLContext:
    """A client that trusts everybody: Pebble's root is another one at each start."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
