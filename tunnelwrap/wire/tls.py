"""A look at a TLS ClientHello, for its server name and its ALPN. RFC 8446 §4.1.2, RFC 6066 §3."""

from dataclasses import dataclass
from typing import Final

from tunnelwrap.errors import Malformed
from tunnelwrap.wire.reader import Reader

MAX_HELLO: Final = 16384
"""Longest ClientHello that is waited for: our choice, many times what clients send today."""

_RECORD_HEADER: Final = 5
_MESSAGE_HEADER: Final = 4
_HANDSHAKE: Final = 22
_MAJOR_VERSION: Final = 3
_MAX_RECORD: Final = 1 << 14
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
_ALPN: Final = 16


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a ClientHello says about whom it is for."""

    sni: str | None  # as the client spells it
    alpn: tuple[str, ...]  # in the client's order; octets beyond ASCII as Latin-1


def client_hello(data: bytes) -> ClientHello | None:
    """Read the ClientHello that a TLS connection begins with; None: more octets are needed.

    Octets that no ClientHello can begin with are refused as soon as they are there.

    Raises:
        Malformed: this is no ClientHello, or longer than MAX_HELLO.
        WireError: its shape is wrong.
    """
    return HelloReader().read(data)


class HelloReader:
    """Reads the ClientHello of a connection of which more and more is seen, each record once."""

    __slots__ = ("_at", "_message")

    def __init__(self) -> None:
        self._at = 0  # where the first record begins that was not complete yet
        self._message = bytearray()

    def read(self, data: bytes) -> ClientHello | None:
        """As ``client_hello`` does; what was seen before must be in front of what is new.

        Raises:
            WireError: this is no ClientHello.
        """
        message = self._first_message(data)
        return None if message is None else _decode(Reader(message, _MESSAGE_HEADER))

    def _first_message(self, data: bytes) -> bytes | None:
        """The first handshake message, put together from its records. RFC 8446 §5.1."""
        while True:
            start = self._at + _RECORD_HEADER
            _check_record(data[self._at : start], self._at)
            end = start + int.from_bytes(data[self._at + 3 : start], "big")
            piece = data[start:end]
            length = _message_length(self._message[:_MESSAGE_HEADER] + piece[:_MESSAGE_HEADER])
            if length is not None and len(self._message) + len(piece) >= length:
                return bytes(self._message + piece)[:length]
            if len(data) < start or len(data) < end:
                return None
            self._message += piece
            self._at = end


def _check_record(header: bytes, at: int) -> None:
    if header[:1] not in (b"", bytes([_HANDSHAKE])):
        raise Malformed(f"TLS record type {header[0]}, expected {_HANDSHAKE}", at)
    if header[1:2] not in (b"", bytes([_MAJOR_VERSION])):
        raise Malformed(f"TLS major version {header[1]}, expected {_MAJOR_VERSION}", at + 1)
    if len(header) == _RECORD_HEADER:
        length = int.from_bytes(header[3:], "big")
        if not 0 < length <= _MAX_RECORD:
            raise Malformed(f"TLS record of {length} octets", at + 3)


def _message_length(message: bytearray) -> int | None:
    if message[:1] not in (b"", bytes([_CLIENT_HELLO])):
        raise Malformed(f"TLS handshake type {message[0]}, expected {_CLIENT_HELLO}")
    if len(message) < _MESSAGE_HEADER:
        return None
    length = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big")
    if length > MAX_HELLO:
        raise Malformed(f"ClientHello of {length} octets, at most {MAX_HELLO}")
    return length


def _decode(body: Reader) -> ClientHello:
    """Layout: u16 version | random | session ID | cipher suites | compressions | extensions."""
    body.take(2 + 32)
    body.take(body.u8())
    body.take(body.u16())
    body.take(body.u8())
    extensions = _extensions(body.sub(body.u16())) if body.remaining else {}
    body.expect_end("the ClientHello")
    name, protocols = extensions.get(_SERVER_NAME), extensions.get(_ALPN)
    return ClientHello(
        None if name is None else _server_name(name),
        () if protocols is None else _protocols(protocols),
    )


def _extensions(body: Reader) -> dict[int, Reader]:
    found: dict[int, Reader] = {}
    while body.remaining:
        kind = body.u16()
        if kind in found:  # RFC 8446 §4.2; whoever comes behind us might take the other one
            raise Malformed(f"TLS extension {kind} twice", body.offset)
        found[kind] = body.sub(body.u16())
    return found


def _server_name(body: Reader) -> str | None:
    names = body.sub(body.u16())
    body.expect_end("the server names")
    host: bytes | None = None
    while names.remaining:
        kind, name = names.u8(), names.take(names.u16())
        if kind == _HOST_NAME and host is not None:
            raise Malformed("two host names in a ClientHello", names.offset)
        host = name if kind == _HOST_NAME else host
    if host is not None and not (host and host.isascii()):
        raise Malformed("host name in a ClientHello is empty or not ASCII", names.offset)
    return None if host is None else host.decode("ascii")


def _protocols(body: Reader) -> tuple[str, ...]:
    """Names of protocols. RFC 7301 §3.1."""
    names = body.sub(body.u16())
    body.expect_end("the protocol names")
    found = []
    while names.remaining:
        found.append(names.take(names.u8()).decode("latin-1"))
    return tuple(found)
