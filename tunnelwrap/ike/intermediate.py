"""IKE_INTERMEDIATE in both roles: further key exchanges before IKE_AUTH. RFC 9242, RFC 9370 §2.2.2.

Every exchange is sealed with the keys of those before it, and gives new ones. Both peers know
from IKE_SA_INIT how many there will be.
"""

from collections.abc import Sequence
from typing import ClassVar

from tunnelwrap.crypto.ke import LocalKey, initiate
from tunnelwrap.errors import InvalidSyntax
from tunnelwrap.iana import ExchangeType, KeMethod, name_of
from tunnelwrap.ike.additional_ke import respond_with, shared_secret
from tunnelwrap.ike.rules import check_occurrence
from tunnelwrap.ike.sa import IkeSa, Next
from tunnelwrap.ike.sa_init import refuse_errors
from tunnelwrap.wire.message import Message, encode_unencrypted
from tunnelwrap.wire.payloads import KeyExchange, Payload


class IkeIntermediate:
    """IKE_INTERMEDIATE as initiator, as often as there are additional key exchanges."""

    TYPE: ClassVar = ExchangeType.IKE_INTERMEDIATE

    __slots__ = ("_content", "_key")

    def __init__(self) -> None:
        self._key: LocalKey | None = None
        self._content = b""

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """KEi(n); None where nothing is to be exchanged."""
        if sa.intermediate is None or not sa.intermediate.methods:
            return None
        self._key = initiate(sa.intermediate.methods[0], sa.context.random)
        payloads = [KeyExchange(self._key.method, self._key.public)]
        self._content = encode_unencrypted(sa.message(self.TYPE, sa.requests.next_id, payloads))
        return payloads

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:  # noqa: ARG002 (contract)
        """Take the keys that follow; and on to the next key exchange.

        Raises:
            PeerRefused: the responder says no.
            InvalidSyntax: what it says makes no sense.
        """
        assert self._key is not None, "the request comes first"
        assert sa.intermediate is not None, "the request comes first"
        refuse_errors(message)
        check_occurrence(message)
        shared = shared_secret(self._key, message)
        _, keys, _ = sa.agreed
        sa.intermediate.completed(keys, self._content, sa.intermediate.opened, shared)
        use_next_keys(sa)
        return Next.AGAIN if sa.intermediate.methods else Next.DONE


def answer(sa: IkeSa, message: Message, now: float) -> list[Payload]:  # noqa: ARG001 (contract)
    """Answer an IKE_INTERMEDIATE request; ``use_next_keys`` when the response is sealed.

    Raises:
        InvalidSyntax: no key exchange is due, or it is another one; the IKE SA ends.
    """
    check_occurrence(message)
    if sa.intermediate is None or not sa.intermediate.methods:
        raise InvalidSyntax("no additional key exchange is due")
    ke, shared = respond_with(sa.intermediate.methods[0], message, sa.context.random)
    response = encode_unencrypted(sa.reply(message.exchange, message.message_id, [ke]))
    _, keys, _ = sa.agreed
    sa.intermediate.completed(keys, sa.intermediate.opened, response, shared)
    return [ke]


def use_next_keys(sa: IkeSa) -> None:
    """The keys of the key exchange that is complete protect what follows. RFC 9242 §3.3.1."""
    if sa.intermediate is None or sa.intermediate.next_keys is None:
        return
    suite, _, sa.intermediate.previous = sa.agreed
    keys, sa.intermediate.next_keys = sa.intermediate.next_keys, None
    sa.take_keys(suite, keys)


def check_complete(sa: IkeSa) -> None:
    """All additional key exchanges must be done before IKE_AUTH. RFC 9242 §3.2.

    Raises:
        InvalidSyntax: one is still due.
    """
    if sa.intermediate is not None and sa.intermediate.methods:
        due = name_of(KeMethod, sa.intermediate.methods[0])
        raise InvalidSyntax(f"IKE_AUTH before the key exchange {due}")
