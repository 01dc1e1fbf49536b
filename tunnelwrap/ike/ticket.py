"""Tickets: what a gateway gives a peer to remember for it, and what the peer keeps with it.

A ticket holds the whole state by value, sealed; it is good for one resumption. RFC 5723 §5, §6.
"""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from tunnelwrap.auth.identity import Identity
from tunnelwrap.crypto.rotating import RotatingKey
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.errors import IntegrityError
from tunnelwrap.wire.proposal import Proposal, SaPayload
from tunnelwrap.wire.reader import Reader

KEY_PERIOD_S: Final = 86400.0  # as long as the longest lifetime of a ticket. RFC 5723 §6.2
NAME_LENGTH: Final = 16
_HEAD = Struct("!dQ")


@dataclass(frozen=True, slots=True)
class Session:
    """The state of an IKE SA that outlives it. RFC 5723 §5."""

    connection: str
    sa: int  # the name of the IKE SA here, if it still lives
    chosen: Proposal
    sk_d: Secret
    id_i: Identity
    id_r: Identity


@dataclass(frozen=True, slots=True)
class HeldTicket:
    """What a peer has of it: the octets, when they are worth nothing any more, and the state."""

    octets: bytes
    expires_at: float
    session: Session


class TicketOffice:
    """Makes tickets and takes them back. Owns: the key, and which tickets are used."""

    __slots__ = ("_key", "_random", "_used")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._key = RotatingKey(random, KEY_PERIOD_S)
        self._used: dict[bytes, float] = {}  # name of a ticket -> when it would have expired

    def issue(self, session: Session, expires_at: float, now: float) -> bytes:
        """A new ticket."""
        name = self._random(NAME_LENGTH)
        return self._key.seal(name + _encoded(session, expires_at), now)

    def read(self, octets: bytes, now: float) -> tuple[bytes, Session]:
        """The name of a ticket and what is in it.

        Raises:
            IntegrityError: it is not ours, expired, or used.
        """
        plaintext = self._key.open(octets, now)
        name, (expires_at, session) = plaintext[:NAME_LENGTH], _decoded(plaintext[NAME_LENGTH:])
        if now >= expires_at:
            raise IntegrityError("the ticket has expired")
        if name in self._used:
            raise IntegrityError("the ticket was used before")
        return name, session

    def spend(self, name: bytes, now: float) -> bool:
        """Use a ticket; False where it is used already. RFC 5723 §4.3.1."""
        self._used = {each: until for each, until in self._used.items() if until > now}
        if name in self._used:
            return False
        self._used[name] = now + KEY_PERIOD_S * 2
        return True


def _encoded(session: Session, expires_at: float) -> bytes:
    parts = (
        session.connection.encode(),
        SaPayload((session.chosen,)).encode(),
        session.sk_d.reveal(),
        *(bytes([each.type]) + each.data for each in (session.id_i, session.id_r)),
    )
    body = b"".join(len(part).to_bytes(2, "big") + part for part in parts)
    return _HEAD.pack(expires_at, session.sa) + body


def _decoded(octets: bytes) -> tuple[float, Session]:
    """What ``_encoded`` has made: it is authentic, so nothing can be wrong with it."""
    expires_at, sa = _HEAD.unpack_from(octets)
    body = Reader(octets, _HEAD.size)
    connection, proposal, sk_d, id_i, id_r = (body.take(body.u16()) for _ in range(5))
    (chosen,) = SaPayload.decode(Reader(proposal)).proposals
    identities = (Identity(each[0], each[1:]) for each in (id_i, id_r))
    return expires_at, Session(connection.decode(), sa, chosen, Secret(sk_d), *identities)
