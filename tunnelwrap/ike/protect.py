"""SK and SKF payloads: sealing what we send, opening what came. RFC 7296 §3.14, RFC 5282, RFC 7383.

Owns: the keys of both directions and the counter of explicit IVs.
"""

from collections.abc import Callable

from tunnelwrap.crypto.cipher import BoundCipher
from tunnelwrap.crypto.keymat import IkeKeys
from tunnelwrap.crypto.suite import IkeSuite
from tunnelwrap.errors import (
    CriticalPayloadRefused,
    InvalidSyntax,
    Malformed,
    UnsupportedCritical,
    WireError,
)
from tunnelwrap.wire.message import (
    FRAGMENT_HEADER_LENGTH,
    GENERIC_HEADER_LENGTH,
    HEADER_LENGTH,
    EncryptedPayload,
    Fragment,
    IkeHeader,
    Message,
    decode_chain,
    encode_chain,
    encode_outer,
    find_encrypted,
)
from tunnelwrap.wire.payloads import Payload
from tunnelwrap.wire.reader import Reader


class Protection:
    """Seals and opens the messages of one IKE SA."""

    __slots__ = ("_inbound", "_iv_counter", "_iv_length", "_outbound", "_random", "_suite")

    def __init__(
        self,
        suite: IkeSuite,
        keys: IkeKeys,
        *,
        is_initiator: bool,
        random: Callable[[int], bytes],
    ) -> None:
        cipher = suite.cipher()
        initiator = cipher.bind(keys.sk_ei, keys.sk_ai)
        responder = cipher.bind(keys.sk_er, keys.sk_ar)
        self._outbound: BoundCipher = initiator if is_initiator else responder
        self._inbound: BoundCipher = responder if is_initiator else initiator
        self._suite = cipher
        self._iv_length = cipher.iv_length
        self._iv_counter = 0
        self._random = random

    def seal(self, message: Message) -> bytes:
        """The octets of a message with all its payloads inside SK."""
        return self._sealed(message, *encode_chain(message.payloads))

    def seal_within(self, message: Message, most: int | None) -> tuple[bytes, ...]:
        """A message in one piece if it has at most that many octets, else in SKF fragments.

        RFC 7383 §2.5. With None it is always in one piece.
        """
        first, plaintext = encode_chain(message.payloads)
        outer = HEADER_LENGTH + GENERIC_HEADER_LENGTH
        if most is None or outer + self._suite.sealed_length(len(plaintext)) <= most:
            return (self._sealed(message, first, plaintext),)
        room = self._suite.room_in(most - outer - FRAGMENT_HEADER_LENGTH)
        chunks = [plaintext[at : at + room] for at in range(0, len(plaintext), room)]
        return tuple(
            self._sealed(message, first if number == 1 else 0, chunk, Fragment(number, len(chunks)))
            for number, chunk in enumerate(chunks, 1)
        )

    def open(self, header: IkeHeader, octets: bytes) -> Message:
        """The message inside octets that are all of it; its ICV is judged before anything within.

        Raises:
            WireError: the outer shape is wrong (nobody is authenticated by that).
            IntegrityError: the ICV does not verify.
            InvalidSyntax: an authenticated message breaks the syntax.
            CriticalPayloadRefused: it has a critical payload that we do not know.
        """
        encrypted = encrypted_part(header, octets)
        return message_of(header, encrypted.first, self.unseal(encrypted))

    def unseal(self, encrypted: EncryptedPayload) -> bytes:
        """What is inside SK or SKF.

        Raises:
            IntegrityError: the ICV does not verify.
            Malformed: it does, but the peer's padding is impossible.
        """
        return self._inbound.open(encrypted.aad, encrypted.body)

    def _sealed(
        self, message: Message, first: int, plaintext: bytes, fragment: Fragment | None = None
    ) -> bytes:
        sealed_length = self._suite.sealed_length(len(plaintext))
        aad = encode_outer(message, first, sealed_length, fragment)
        return aad + self._outbound.seal(aad, self._suite.pad(plaintext), self._next_iv())

    def _next_iv(self) -> bytes:
        if self._iv_length == 8:  # an AEAD's IV must only never repeat. RFC 5282 §3.1
            self._iv_counter += 1
            return self._iv_counter.to_bytes(8, "big")
        return self._random(self._iv_length)


def encrypted_part(header: IkeHeader, octets: bytes) -> EncryptedPayload:
    """The SK or SKF payload of a message.

    Raises:
        WireError: there is none, or the message is malformed around it.
    """
    _, encrypted = find_encrypted(header, octets)
    if encrypted is None:
        raise Malformed("message without SK payload", HEADER_LENGTH)
    return encrypted


def message_of(header: IkeHeader, first: int, plaintext: bytes) -> Message:
    """The message with this header and these authentic octets inside.

    Raises:
        InvalidSyntax: they break the syntax.
        CriticalPayloadRefused: there is a critical payload that we do not know.
    """
    return Message(
        header.spi_i,
        header.spi_r,
        header.exchange,
        header.is_response,
        header.is_initiator,
        header.message_id,
        _inner_chain(first, plaintext),
    )


def _inner_chain(first: int, plaintext: bytes) -> tuple[Payload, ...]:
    try:
        return decode_chain(first, Reader(plaintext))
    except UnsupportedCritical as error:
        raise CriticalPayloadRefused(str(error), bytes([error.payload_type])) from error
    except WireError as error:
        raise InvalidSyntax(str(error)) from error
