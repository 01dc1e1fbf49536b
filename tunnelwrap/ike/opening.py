"""From octets to message: SK at once, SKF with the last fragment. RFC 7296 §3.14, RFC 7383 §2.6."""

from tunnelwrap.errors import IntegrityError
from tunnelwrap.ike.fragments import REASSEMBLY_S
from tunnelwrap.ike.protect import encrypted_part, message_of
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.ike.timers import Timer
from tunnelwrap.ike.window import Verdict
from tunnelwrap.path import Datagram, Path
from tunnelwrap.wire.message import (
    EncryptedPayload,
    Fragment,
    IkeHeader,
    Message,
    aad_of_whole,
    unencrypted,
)


def open_message(sa: IkeSa, header: IkeHeader, datagram: Datagram, now: float) -> Message | None:
    """The authentic message that a datagram is, or completes; None while fragments are missing.

    Raises:
        WireError: the outer shape is wrong (nobody is authenticated by that).
        IntegrityError: the ICV does not verify.
        InvalidSyntax: an authenticated message breaks the syntax.
        CriticalPayloadRefused: it has a critical payload that we do not know.
    """
    encrypted = encrypted_part(header, datagram.octets)
    fragment = encrypted.fragment
    if fragment is None:
        plaintext = _unseal(sa, header, encrypted)
        _hear(sa, header, encrypted)
        _note(sa, encrypted.aad, plaintext)
        return message_of(header, encrypted.first, plaintext)
    if sa.fragmentation.is_agreed and _is_awaited(sa, header):
        return _collect(sa, header, encrypted, fragment, now)
    if sa.fragmentation.is_agreed and _is_answered(sa, header) and fragment.number == 1:
        return _first_again(sa, header, encrypted, datagram.path)
    sa.context.counters["dropped_fragment"] += 1
    return None


def _is_awaited(sa: IkeSa, header: IkeHeader) -> bool:
    if not header.is_response:
        return sa.responses.judge(header.message_id) is Verdict.NEW
    exchange = sa.exchange
    is_expected = exchange is not None and header.exchange == exchange.TYPE
    return is_expected and header.message_id == sa.requests.next_id


def _is_answered(sa: IkeSa, header: IkeHeader) -> bool:
    verdict = sa.responses.judge(header.message_id)
    return not header.is_response and verdict is Verdict.DUPLICATE


def _collect(
    sa: IkeSa, header: IkeHeader, encrypted: EncryptedPayload, fragment: Fragment, now: float
) -> Message | None:
    fragmentation = sa.fragmentation
    reassembly = fragmentation.responses if header.is_response else fragmentation.requests
    if not reassembly.wants(header, fragment):
        sa.context.counters["dropped_fragment"] += 1
        return None
    plaintext = _unseal(sa, header, encrypted)
    _hear(sa, header, encrypted)
    if not reassembly.octets:
        sa.timers.arm(Timer.REASSEMBLY, now + REASSEMBLY_S)
    whole = reassembly.add(header, fragment, encrypted.first, plaintext)
    if whole is None:
        return None
    if not header.is_response:
        fragmentation.heard = whole.largest
    _note(sa, aad_of_whole(encrypted.aad, whole.first), whole.plaintext)
    return message_of(header, whole.first, whole.plaintext)


def _unseal(sa: IkeSa, header: IkeHeader, encrypted: EncryptedPayload) -> bytes:
    """What is inside; a repeated request may be older than the keys. RFC 9242 §3.3.1."""
    _, _, protection = sa.agreed
    try:
        return protection.unseal(encrypted)
    except IntegrityError:
        previous = sa.intermediate.previous if sa.intermediate is not None else None
        if previous is None or not _is_answered(sa, header):
            raise
        return previous.unseal(encrypted)


def _hear(sa: IkeSa, header: IkeHeader, encrypted: EncryptedPayload) -> None:
    """Keep what a request is known by when it comes again. RFC 7383 §2.6.1."""
    is_first = encrypted.fragment is None or encrypted.fragment.number == 1
    if is_first and not header.is_response:
        sa.responses.heard(header.message_id, encrypted.aad + encrypted.body)


def _note(sa: IkeSa, aad: bytes, plaintext: bytes) -> None:
    """Keep what AUTH proves of the message, if it is an IKE_INTERMEDIATE. RFC 9242 §3.3.2."""
    if sa.intermediate is not None:
        sa.intermediate.opened = unencrypted(aad, plaintext)


def _first_again(sa: IkeSa, header: IkeHeader, encrypted: EncryptedPayload, path: Path) -> Message:
    """A request that is answered comes again: its first fragment alone brings the response."""
    _unseal(sa, header, encrypted)
    response = sa.fragmentation.response_on(sa.responses.response, path, header.length)
    sa.responses.split_anew(*response)
    return message_of(header, 0, b"")
