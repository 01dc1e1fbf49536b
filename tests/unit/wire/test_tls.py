"""What a ClientHello says of the server's name and of ALPN."""

import pytest

from tests.unit.wire.samples import load
from tunnelwrap.errors import Malformed, WireError
from tunnelwrap.wire.tls import MAX_HELLO, ClientHello, client_hello

GOLDEN = load("client_hello")
FIRST = GOLDEN[0]["octets"]


def vector(width: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return len(body).to_bytes(width, "big") + body


def extension(kind: int, *body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, *body)


def server_name(*names: tuple[int, bytes]) -> bytes:
    entries = (bytes([kind]) + vector(2, name) for kind, name in names)
    return extension(0, vector(2, *entries))


def alpn(*names: bytes) -> bytes:
    return extension(16, vector(2, *(vector(1, name) for name in names)))


def message(*extensions: bytes, more: bytes = b"") -> bytes:
    """A ClientHello without the record around it."""
    body = b"\3\3" + bytes(32) + vector(1, b"session") + vector(2, b"\x13\1") + vector(1, b"\0")
    body += vector(2, *extensions) if extensions else b""
    return b"\1" + vector(3, body, more)


def records(octets: bytes, size: int = 1 << 14) -> bytes:
    """Octets in TLS records of at most that size."""
    pieces = (octets[at : at + size] for at in range(0, len(octets), size))
    return b"".join(b"\x16\3\1" + vector(2, piece) for piece in pieces)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden(case: dict) -> None:
    expected = ClientHello(case["sni"], tuple(case["alpn"]))
    assert client_hello(case["octets"]) == expected
    assert client_hello(case["octets"] + b"early data") == expected


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_more_is_needed_until_the_last_octet(case: dict) -> None:
    for size in range(len(case["octets"])):
        assert client_hello(case["octets"][:size]) is None


@pytest.mark.rfc("8446", "5.1")
@pytest.mark.parametrize("size", [1, 3, 4, 5, 60])
def test_a_hello_in_several_records(size: int) -> None:
    whole = records(FIRST[5:], size)
    assert client_hello(whole) == ClientHello("server", ())
    assert client_hello(whole[:-1]) is None


def test_no_extensions_at_all() -> None:
    """As TLS 1.2 allows."""
    assert client_hello(records(message())) == ClientHello(None, ())


def test_name_and_protocols() -> None:
    octets = records(message(alpn(b"h2", b"\xca\xfe"), server_name((7, b"\xff"), (0, b"A.b"))))
    assert client_hello(octets) == ClientHello("A.b", ("h2", "\xca\xfe"))
    assert client_hello(records(message(server_name((7, b"x"))))) == ClientHello(None, ())


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"I", "record type 73"),  # IKETCP
        (b"G", "record type 71"),  # GET
        (b"\x15", "record type 21"),
        (b"\x16\2", "major version 2"),
        (b"\x16\3\1\0\0", "record of 0 octets"),
        (b"\x16\3\1\x40\1", "record of 16385 octets"),
        (b"\x16\3\1\0\4\2", "handshake type 2"),
        (b"\x16\3\1\0\4\1\1\0\0", "ClientHello of 65540 octets"),
        (records(FIRST[5:], 10)[:15] + b"\x17", "record type 23"),
    ],
)
def test_what_is_no_client_hello_is_seen_at_once(octets: bytes, text: str) -> None:
    with pytest.raises(Malformed, match=text):
        client_hello(octets)
    assert client_hello(octets[:-1]) is None


def test_the_longest_hello() -> None:
    filling = extension(99, bytes(MAX_HELLO - len(message(extension(99)))))
    assert client_hello(records(message(filling))) == ClientHello(None, ())
    assert len(message(filling)) == MAX_HELLO


@pytest.mark.parametrize(
    "octets",
    [
        message(more=b"\0\1"),  # extensions of one octet that is not there
        message(more=b"\0"),
        message(alpn(b"h2"), more=b"x"),
        message(b"\0\0\0"),  # half an extension
        message(extension(0)),
        message(extension(0, b"\0\5\0")),
        message(extension(0, vector(2), b"x")),
        message(server_name((0, b"a"), (0, b"b"))),
        message(server_name((0, b""))),
        message(server_name((0, b"\xff"))),
        message(server_name((0, b"a")), server_name((0, b"b"))),
        message(extension(16, b"\0\2\5h")),
        message(extension(16, vector(2), b"x")),
        b"\1\0\0\0",
        b"\1\0\0\x22" + bytes(34),
    ],
)
def test_wrong_shapes(octets: bytes) -> None:
    with pytest.raises(WireError):
        client_hello(records(octets))


def test_two_server_names_are_told_apart_from_one() -> None:
    """Whoever stands behind us might take the other one."""
    twice = server_name((0, b"good.example")) + server_name((0, b"evil.example"))
    with pytest.raises(Malformed, match="extension 0 twice"):
        client_hello(records(message(twice)))
