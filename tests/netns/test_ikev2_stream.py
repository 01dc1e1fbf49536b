"""Our Lua dissector for RFC 9329 against a stream made by hand, in bare TCP and inside TLS.

The stream is cut at awkward places: inside the prefix, inside a length, inside a packet.
"""

import secrets
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.captures import Capture, tshark
from tests.kit.certs import entity

pytestmark = pytest.mark.root

IKE_SA_INIT = 34
ESP_OUT, ESP_BACK = 29, 9
PORTS = {"tcp": 4500, "tls": 443}
FIELDS = ["ikev2_stream.prefix", "ikev2_stream.kind", "ikev2_stream.esp_sequence"]


def frame(datagram: bytes) -> bytes:
    return struct.pack("!H", len(datagram) + 2) + datagram


def ike_message() -> bytes:
    """A message that is nothing but its header, behind its marker."""
    spi_i = bytes.fromhex("0102030405060708")
    return bytes(4) + spi_i + struct.pack("!8xBBBBII", 0, 0x20, IKE_SA_INIT, 8, 0, 28)


def esp_packets(count: int) -> bytes:
    return b"".join(
        frame(struct.pack("!II", 0xDEADBEEF, number) + bytes(1400))
        for number in range(1, count + 1)
    )


OUT = b"IKETCP" + frame(ike_message()) + frame(b"\xff") + esp_packets(ESP_OUT)
BACK = frame(ike_message()) + esp_packets(ESP_BACK)


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"tw-{secrets.token_hex(2)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.parametrize("carrier", PORTS)
def test_every_frame_is_found(carrier: str, namespace: str, tmp_path: Path) -> None:
    identity = entity("CN=gateway.example.org", None)
    (tmp_path / "identity.pem").write_bytes(identity.pem + identity.key_pem)

    with Capture(namespace, "lo", tmp_path / "stream.pcap") as capture:
        speaker = [sys.executable, "-m", "tests.netns.test_ikev2_stream", carrier, str(tmp_path)]
        subprocess.run(["ip", "netns", "exec", namespace, *speaker], check=True, timeout=30)

    keylog = tmp_path / "keys" if carrier == "tls" else None
    rows = tshark(capture.file, display="ikev2_stream", fields=FIELDS, keylog=keylog)
    kinds = [kind for row in rows for kind in row[1].split(",") if kind]
    sequence = [int(n) for row in rows for n in row[2].split(",") if n]
    assert [row[0] for row in rows if row[0]] == ["IKETCP"]
    assert (kinds.count("ike"), kinds.count("keepalive")) == (2, 1)
    assert sequence == [*range(1, ESP_OUT + 1), *range(1, ESP_BACK + 1)]
    exchanges = tshark(
        capture.file, display="isakmp", fields=["isakmp.exchangetype"], keylog=keylog
    )
    assert exchanges == [[str(IKE_SA_INIT)]] * 2
    assert not tshark(capture.file, display="_ws.malformed || ikev2_stream.malformed")


def speak(carrier: str, directory: Path) -> None:
    """Both ends of the conversation; runs in the namespace."""
    with socket.create_server(("127.0.0.1", PORTS[carrier])) as listener:
        answerer = threading.Thread(target=_answer, args=(listener, carrier, directory))
        answerer.start()
        connection = socket.create_connection(("127.0.0.1", PORTS[carrier]))
        if carrier == "tls":
            context = ssl.create_default_context(cafile=directory / "identity.pem")
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.keylog_filename = str(directory / "keys")
            connection = context.wrap_socket(connection)
        with connection:
            _send_in_pieces(connection, OUT, 999)
            _receive(connection, len(BACK))
        answerer.join()


def _answer(listener: socket.socket, carrier: str, directory: Path) -> None:
    connection, _ = listener.accept()
    if carrier == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "identity.pem")
        connection = context.wrap_socket(connection, server_side=True)
    with connection:
        _receive(connection, len(OUT))
        _send_in_pieces(connection, BACK, 777)
        connection.recv(1)


def _send_in_pieces(connection: socket.socket, data: bytes, size: int) -> None:
    connection.sendall(data[:3])
    for start in range(3, len(data), size):
        connection.sendall(data[start : start + size])


def _receive(connection: socket.socket, octets: int) -> None:
    while octets > 0:
        octets -= len(connection.recv(65536))


if __name__ == "__main__":
    speak(sys.argv[1], Path(sys.argv[2]))
