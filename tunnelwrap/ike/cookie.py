"""Cookies of a responder that keeps no state: who returns one is reached by its address.

RFC 7296 §2.6: a cookie is the version of a secret and an HMAC by it over SPIi, the initiator's IP
address and Ni. No port enters it: on a stream the repeated request may come by another connection
(RFC 9329 §6.3), and a NAT may choose another port.
"""

import hmac
from typing import Final, NamedTuple

from tunnelwrap.errors import WireError
from tunnelwrap.iana import NotifyType, PayloadType
from tunnelwrap.ike.context import Random
from tunnelwrap.path import IpAddress
from tunnelwrap.wire.message import IkeHeader, clear_bodies
from tunnelwrap.wire.payloads import Notify
from tunnelwrap.wire.reader import Reader

SECRET_LENGTH: Final = 32
SECRET_S: Final = 60.0  # a secret makes cookies for so long, and is accepted as long again


class Asker(NamedTuple):
    """What a cookie is bound to."""

    spi_i: bytes
    ip: IpAddress
    n_i: bytes


class Cookies:
    """Makes cookies and knows them again. Owns: the secret and the one before it."""

    __slots__ = ("_previous", "_random", "_secret", "_until", "_version")

    def __init__(self, random: Random) -> None:
        self._random = random
        self._version = 0
        self._secret = self._previous = b""
        self._until = 0.0

    def make(self, asker: Asker, now: float) -> bytes:
        """A cookie for this initiator."""
        self._rotate(now)
        return _cookie(self._version, self._secret, asker)

    def accepts(self, cookie: bytes, asker: Asker, now: float) -> bool:
        """Whether this initiator got this cookie from us, not long ago."""
        self._rotate(now)
        secrets = {self._version: self._secret, (self._version - 1) % 256: self._previous}
        secret = secrets.get(cookie[0], b"") if cookie else b""
        return secret != b"" and hmac.compare_digest(cookie, _cookie(cookie[0], secret, asker))

    def _rotate(self, now: float) -> None:
        if now < self._until:
            return
        is_recent = now < self._until + SECRET_S
        self._previous = self._secret if is_recent else b""
        self._secret = self._random(SECRET_LENGTH)
        self._version = (self._version + 1) % 256
        self._until = now + SECRET_S


def look(header: IkeHeader, octets: bytes, ip: IpAddress) -> tuple[Asker, bytes | None]:
    """Who asks by an IKE_SA_INIT request, and the cookie that it has as its first payload.

    Nothing else of the request is read: this is what a flood costs.

    Raises:
        WireError: it is malformed, or has no nonce.
    """
    cookie: bytes | None = None
    for position, (payload_type, body) in enumerate(clear_bodies(header, octets)):
        if payload_type == PayloadType.NONCE:
            return Asker(header.spi_i, ip, body), cookie
        if position == 0 and payload_type == PayloadType.NOTIFY:
            notify = Notify.decode(Reader(body))
            cookie = notify.data if notify.notify == NotifyType.COOKIE else None
    raise WireError("IKE_SA_INIT request without nonce", header.length)


def _cookie(version: int, secret: bytes, asker: Asker) -> bytes:
    address = asker.ip.packed
    bound = asker.spi_i + bytes([len(address)]) + address + asker.n_i
    return bytes([version]) + hmac.digest(secret, bound, "sha256")
