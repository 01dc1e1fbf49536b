"""ESP header and trailer, and what is what on a path that IKE and ESP share. RFC 4303, RFC 3948."""

from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from tunnelwrap.errors import Malformed
from tunnelwrap.wire.reader import Reader

NON_ESP_MARKER: Final = b"\0\0\0\0"
NAT_KEEPALIVE: Final = b"\xff"
HEADER_LENGTH: Final = 8


class Kind(Enum):
    """What a datagram of UDP port 4500, or of an RFC 9329 stream, is."""

    IKE = "ike"
    ESP = "esp"
    KEEPALIVE = "keepalive"
    INVALID = "invalid"


def classify(datagram: bytes | memoryview) -> Kind:
    """Tell IKE, ESP and keepalives apart by their first octets. RFC 3948 §2.1-§2.3.

    IKE stands behind the non-ESP marker; whether there is a whole message the IKE header says.
    An ESP packet has a header of eight octets, and its SPI is not zero.
    """
    if datagram[:4] == NON_ESP_MARKER:
        return Kind.IKE
    if len(datagram) >= HEADER_LENGTH:
        return Kind.ESP
    return Kind.KEEPALIVE if datagram == NAT_KEEPALIVE else Kind.INVALID


@dataclass(frozen=True, slots=True)
class EspHeader:
    """What an ESP packet begins with. RFC 4303 §2.1, §2.2.

    Layout: u32 SPI | u32 sequence number
    """

    spi: int
    sequence: int  # the low half, where sequence numbers are extended

    @classmethod
    def decode(cls, body: Reader) -> Self:
        """Read the header; the IV follows."""
        return cls(body.u32(), body.u32())

    def encode(self) -> bytes:
        """The header's eight octets."""
        return self.spi.to_bytes(4, "big") + self.sequence.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class EspTrailer:
    """What decrypted octets end with. RFC 4303 §2.4-§2.6.

    Layout: padding | u8 pad length | u8 next header
    """

    pad_length: int
    next_header: int

    @classmethod
    def decode(cls, plaintext: bytes | memoryview) -> Self:
        """Read the end of decrypted octets, the ICV taken off.

        Raises:
            Malformed: there is less than the padding that it claims.
        """
        room = len(plaintext) - 2
        if room < 0 or plaintext[-2] > room:
            raise Malformed(f"ESP padding does not fit {len(plaintext)} octets", max(room, 0))
        return cls(plaintext[-2], plaintext[-1])

    def encode(self) -> bytes:
        """Padding of the default contents (1, 2, 3 ...) and the two fields. RFC 4303 §2.4."""
        return bytes(range(1, self.pad_length + 1)) + bytes([self.pad_length, self.next_header])
