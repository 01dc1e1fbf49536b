"""A client of a relay whose network went away without a word, and that comes back (needs root)."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.io.wrapped import NONE, SPI_I, esp, marked
from tests.kit.daemons import Daemon
from tests.kit.netns import Namespace, wire
from tunnelwrap.daemon.lanes import DOUBT_S
from tunnelwrap.wire.framing import PREFIX, frame

pytestmark = pytest.mark.root

CLIENT, GATEWAY = "192.0.2.1", "192.0.2.2"
PORT, DAEMON_PORT = 4500, 14500
PATIENCE_S = 10.0

SILENCE = """
table inet silence {{
  chain out {{ type filter hook output priority 0; tcp sport {port} drop; }}
  chain in {{ type filter hook input priority 0; tcp dport {port} drop; }}
}}
"""


@pytest.fixture
def hosts() -> Iterator[tuple[Namespace, Namespace]]:
    with Namespace("client") as client, Namespace("gateway") as gateway:
        wire(client, "eth0", [f"{CLIENT}/24"], gateway, "eth0", [f"{GATEWAY}/24"])
        yield client, gateway


@pytest.mark.rfc("9329", "6.1")
def test_who_comes_back_with_esp_alone_has_the_way_when_tcp_gives_the_old_stream_up(
    hosts: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    client, gateway = hosts
    with ExitStack() as stack:
        relay = stack.enter_context(running_relay(gateway, tmp_path))
        daemon = stack.enter_context(udp_in(gateway))
        old = stack.enter_context(stream_in(client, marked(0, (SPI_I, NONE))))
        _, at = daemon.recvfrom(65536)
        daemon.sendto(marked(0, response=True), at)
        daemon.sendto(marked(1, response=True), at)
        daemon.sendto(esp(0x1111), at)
        assert read_some(old)
        old.sendall(frame(esp(0x2222)))
        assert daemon.recvfrom(65536) == (esp(0x2222), at)

        client.nft(SILENCE.format(port=old.getsockname()[1]))
        back = stack.enter_context(stream_in(client, esp(0x2222, 2)))
        assert daemon.recvfrom(65536) == (esp(0x2222, 2), at)
        begun = time.monotonic()
        received = b""
        back.settimeout(0.2)
        while not received and time.monotonic() < begun + DOUBT_S + PATIENCE_S:
            daemon.sendto(esp(0x1111, 3), at)
            received = read_some(back)

        assert frame(esp(0x1111, 3)) in received, relay.log
        assert time.monotonic() - begun < DOUBT_S + 4


@contextmanager
def running_relay(host: Namespace, directory: Path) -> Iterator[Daemon]:
    """A relay that is ready; it ends in good order."""
    file = directory / "relay.toml"
    file.write_text(
        f'[relay]\nname = "localhost"\ndaemon_port = {DAEMON_PORT}\ntls_ports = []\n'
        f'control_socket = "{directory}/control"\n'
    )
    daemon = Daemon(host, file, "relay")
    daemon.says("ready")
    yield daemon
    assert daemon.stop() == 0


def udp_in(host: Namespace) -> socket.socket:
    """The daemon."""
    with host.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", DAEMON_PORT))
    sock.settimeout(PATIENCE_S)
    return sock


def stream_in(host: Namespace, datagram: bytes) -> socket.socket:
    """A stream of the client's that begins with a datagram."""
    with host.entered():
        sock = socket.socket()
    sock.settimeout(PATIENCE_S)
    sock.connect((GATEWAY, PORT))
    sock.sendall(PREFIX + frame(datagram))
    return sock


def read_some(sock: socket.socket) -> bytes:
    """What is there soon."""
    try:
        return sock.recv(65536)
    except TimeoutError:
        return b""
