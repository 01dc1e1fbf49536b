"""What a datagram tells without keys: its IKE or ESP header, and whose SPIs stand in it.

Datagrams have the form of UDP port 4500: IKE behind the non-ESP marker, ESP as it is. RFC 3948.
"""

from contextlib import suppress
from typing import Final, Generic, NamedTuple, TypeVar

from tunnelwrap.errors import WireError
from tunnelwrap.iana import ExchangeType, PayloadType
from tunnelwrap.wire.esp import NON_ESP_MARKER, Kind, classify
from tunnelwrap.wire.message import IkeHeader

MAX_SPIS: Final = 64
"""How many keys an owner may have in a table; a few rekeys' worth, the oldest go first."""

_MARKER: Final = len(NON_ESP_MARKER)
_NO_SPI: Final = bytes(8)
_MAKES_SPIS: Final = frozenset((ExchangeType.IKE_AUTH, ExchangeType.CREATE_CHILD_SA))
_PROTECTED: Final = frozenset((PayloadType.SK, PayloadType.SKF))

T = TypeVar("T")


class Ike(NamedTuple):
    """What the header of an IKE message says. RFC 7296 §3.1."""

    spi_i: bytes
    spi_r: bytes
    is_response: bool
    is_protected: bool  # nothing of it stands outside SK or SKF payloads
    message_id: int
    exchange: int  # its type

    @property
    def key(self) -> bytes:
        """What tells its IKE SA from others: both SPIs."""
        return self.spi_i + self.spi_r

    @property
    def makes_spis(self) -> bool:
        """Whether its exchange gives SPIs to a Child SA, or CREATE_CHILD_SA to another IKE SA."""
        return self.exchange in _MAKES_SPIS

    @property
    def is_first(self) -> bool:
        """Whether it is about an IKE SA that is yet to be made: only one SPI is known."""
        return self.spi_r == _NO_SPI


class Esp(NamedTuple):
    """What the header of an ESP packet says. RFC 4303 §2."""

    key: bytes
    """Its SPI, which tells its SA from others to the same receiver."""


def read(datagram: memoryview) -> Ike | Esp | None:
    """What a datagram is; None for a keepalive, and for what is neither IKEv2 nor ESP."""
    kind = classify(datagram)
    if kind is Kind.ESP:
        return Esp(bytes(datagram[:4]))
    if kind is Kind.IKE:
        with suppress(WireError):
            header = IkeHeader.decode(datagram[_MARKER:])
            return Ike(
                header.spi_i,
                header.spi_r,
                header.is_response,
                header.next_payload in _PROTECTED,
                header.message_id,
                header.exchange,
            )
    return None


def with_marker(message: bytes | memoryview) -> bytes:
    """A bare IKE message of UDP port 500 in the form of port 4500."""
    return NON_ESP_MARKER + bytes(message)


def without_marker(datagram: bytes) -> bytes:
    """The bare IKE message, as it travels on UDP port 500."""
    return datagram[_MARKER:]


class SpiTable(Generic[T]):
    """Whose SPIs are whose.

    Owns: the keys, of each owner the last MAX_SPIS.
    """

    __slots__ = ("_keys", "_owners")

    def __init__(self) -> None:
        self._owners: dict[bytes, T] = {}
        self._keys: dict[T, dict[bytes, None]] = {}

    def find(self, seen: Ike | Esp) -> T | None:
        """Who has the SPIs of a datagram."""
        return self._owners.get(seen.key)

    def learn(self, owner: T, seen: Ike | Esp) -> None:
        """The SPIs of a datagram are that owner's, whoever had them before."""
        key = seen.key
        before = self._owners.get(key)
        if before is owner:
            return
        if before is not None:
            self._keys[before].pop(key)
        self._owners[key] = owner
        keys = self._keys.setdefault(owner, {})
        keys[key] = None
        if len(keys) > MAX_SPIS:
            oldest = next(iter(keys))
            del keys[oldest], self._owners[oldest]

    def forget(self, owner: T) -> None:
        """An owner is gone."""
        for key in self._keys.pop(owner, ()):
            del self._owners[key]
