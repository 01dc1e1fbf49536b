"""The opening handshake of a WebSocket, whose path is a secret. RFC 6455 §4."""

from base64 import b64encode
from binascii import Error, a2b_base64
from collections.abc import Mapping
from hashlib import sha1
from hmac import compare_digest
from typing import Final

NONCE: Final = 16  # octets of randomness in a request. RFC 6455 §4.1

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_VERSION: Final = b"13"
_HTTPS: Final = 443


def authority(host: str, port: int) -> str:
    """A server's name or IP address and its port, as they stand in a request. RFC 9110 §7.2."""
    name = f"[{host}]" if ":" in host else host
    return name if port == _HTTPS else f"{name}:{port}"


def request(host: str, path: str, nonce: bytes) -> bytes:
    """The client's request.

    Args:
        host: as ``authority`` makes it.
        path: the secret.
        nonce: NONCE random octets.
    """
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {b64encode(nonce).decode()}",
        f"Sec-WebSocket-Version: {_VERSION.decode()}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def proof(key: bytes) -> bytes:
    """What shows that a server understood a request with this key. RFC 6455 §4.2.2."""
    return b64encode(sha1(key + _GUID).digest())  # noqa: S324 -- the RFC's, and no secret


def answer(path: bytes, target: bytes, fields: Mapping[bytes, bytes]) -> bytes | None:
    """The server's answer to a GET request of HTTP/1.1 that is meant for it.

    Args:
        path: the secret.
        target: what the request asks for.
        fields: the request's, by their names in lower case.

    Returns:
        None if it is any other request: the web site's to answer.
    """
    is_meant = compare_digest(path, target) and _asks_for_websocket(fields)
    key = fields.get(b"sec-websocket-key", b"")
    if not is_meant or not _is_key(key):
        return None
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + proof(key),
    ]
    return b"\r\n".join([*lines, b"", b""])


def _asks_for_websocket(fields: Mapping[bytes, bytes]) -> bool:
    return (
        b"websocket" in _tokens(fields.get(b"upgrade", b""))
        and b"upgrade" in _tokens(fields.get(b"connection", b""))
        and fields.get(b"sec-websocket-version") == _VERSION
    )


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip() for token in value.lower().split(b",")]


def _is_key(text: bytes) -> bool:
    try:
        return len(a2b_base64(text, strict_mode=True)) == NONCE
    except Error:
        return False
