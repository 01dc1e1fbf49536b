"""Finding out soon that a peer has lost its state: hints, and tokens that prove it.

A token maker gives its peer a token with the IKE SA, and can make it again from the SPIs and a
secret that survives it: so whoever shows the token has forgotten the IKE SA. RFC 6290. Without a
token a message outside an IKE SA is a hint at most, and leads to a liveness check. RFC 7296 §1.5,
§2.21.4.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import ClassVar, Final

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.iana import ExchangeType, NotifyType, PayloadType, ProtocolId
from tunnelwrap.ike.context import Context
from tunnelwrap.ike.informational import Liveness
from tunnelwrap.ike.rules import IkeState
from tunnelwrap.ike.sa import IkeSa, Next
from tunnelwrap.wire.message import HEADER_LENGTH, IkeHeader, Message, decode_chain
from tunnelwrap.wire.payloads import Notify, Payload
from tunnelwrap.wire.reader import Reader

MIN_TOKEN: Final = 16
MAX_TOKEN: Final = 128
MAX_TOKENS: Final = 4  # in one message. RFC 6290 §4.5
HINT_PAUSE_S: Final = 10.0  # between liveness checks of one IKE SA that strangers can cause
DEPARTED: Final = 4096  # IKE SAs that are remembered after their end
NO_SPI: Final = bytes(8)


class Tell:
    """An INFORMATIONAL exchange that says something and expects nothing."""

    TYPE: ClassVar = ExchangeType.INFORMATIONAL

    __slots__ = ("_payloads",)

    def __init__(self, payloads: Sequence[Payload]) -> None:
        self._payloads = payloads

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """What is to be said."""
        return self._payloads

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:  # noqa: ARG002 (contract)
        """It was heard."""
        return Next.DONE


class Allowance:
    """How often something may be done: so many times a second, and a few more at once."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at = burst, 0.0

    def take(self, now: float) -> bool:
        """True where it may be done now; it counts as done then."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Departed:
    """The SPIs of IKE SAs that have ended in good order: what is late there wants no answer."""

    __slots__ = ("_spis",)

    def __init__(self) -> None:
        self._spis: dict[bytes, None] = {}

    def add(self, spi: bytes) -> None:
        """Remember one, and forget the oldest of too many."""
        self._spis[spi] = None
        if len(self._spis) > DEPARTED:
            del self._spis[next(iter(self._spis))]

    def __contains__(self, spi: bytes) -> bool:
        return spi in self._spis


# --- tokens -----------------------------------------------------------------------------------


def offer(sa: IkeSa) -> list[Payload]:
    """QCD_TOKEN for an IKE SA, if we make tokens. RFC 6290 §4.2."""
    return _tokens(sa.context, sa.spi_i, sa.spi_r)


def take(sa: IkeSa, message: Message) -> None:
    """Keep the token in an authentic message of the peer."""
    notify = message.notify(NotifyType.QUICK_CRASH_DETECTION)
    if notify is not None and MIN_TOKEN <= len(notify.data) <= MAX_TOKEN:
        sa.peer_token = Secret(notify.data)


def renew(sa: IkeSa) -> None:
    """A rekey of ours has changed the SPIs, and the token with them. RFC 6290 §4.3."""
    token = offer(sa)
    if token:
        sa.enqueue(Tell(token))


def _tokens(context: Context, spi_i: bytes, spi_r: bytes) -> list[Payload]:
    if context.token_secret is None:
        return []
    token = sha256(context.token_secret.reveal() + spi_i + spi_r).digest()  # RFC 6290 §5.1
    return [Notify.of(NotifyType.QUICK_CRASH_DETECTION, token, ProtocolId.IKE)]


# --- messages outside an IKE SA ---------------------------------------------------------------


def answer_unknown(context: Context, header: IkeHeader) -> Message | None:
    """The answer to a protected request of an IKE SA that we do not know (any more).

    None where there is to be none: responses and clear messages are never answered.
    """
    is_protected = header.next_payload in {PayloadType.SK, PayloadType.SKF}
    if header.is_response or not is_protected or NO_SPI in {header.spi_i, header.spi_r}:
        return None
    return Message(
        header.spi_i,
        header.spi_r,
        header.exchange,
        is_response=True,
        is_initiator=not header.is_initiator,
        message_id=header.message_id,
        payloads=(
            Notify.of(NotifyType.INVALID_IKE_SPI),
            *_tokens(context, header.spi_i, header.spi_r),
        ),
    )


def invalid_spi(spi: bytes, ike_spi: bytes) -> Message:
    """What a peer is told whose ESP we do not know, and with whom we have no IKE SA."""
    return Message(
        ike_spi,
        NO_SPI,
        ExchangeType.INFORMATIONAL,
        is_response=False,
        is_initiator=True,
        message_id=0,
        payloads=(Notify.of(NotifyType.INVALID_SPI, spi),),
    )


def is_hint(header: IkeHeader) -> bool:
    """True for a clear message outside an IKE SA that may say INVALID_SPI. RFC 7296 §1.5."""
    return (
        header.exchange == ExchangeType.INFORMATIONAL
        and header.next_payload == PayloadType.NOTIFY
        and header.is_initiator
        and not header.is_response
        and header.message_id == 0
    )


def receive_clear(sa: IkeSa, header: IkeHeader, octets: bytes, now: float) -> None:
    """A clear message with the SPIs of an IKE SA: a token ends it, all else is a hint.

    Raises:
        WireError: it cannot be read.
    """
    payloads = decode_chain(header.next_payload, Reader(octets, HEADER_LENGTH))
    notifies = [payload for payload in payloads if isinstance(payload, Notify)]
    kinds = {notify.notify for notify in notifies}
    if not header.is_response or NotifyType.INVALID_IKE_SPI not in kinds:
        sa.context.counters["dropped_clear"] += 1
        return
    tokens = [n.data for n in notifies if n.notify == NotifyType.QUICK_CRASH_DETECTION]
    if any(Secret(token) == sa.peer_token for token in tokens[:MAX_TOKENS]):
        sa.close("the peer has lost its state", is_failure=True)
        return
    suspect(sa, now)


def suspect(sa: IkeSa, now: float) -> None:
    """Something may be wrong with this IKE SA: ask the peer, but not at every whim."""
    is_busy = sa.exchange is not None or bool(sa.queue)
    if sa.state is not IkeState.ESTABLISHED or is_busy or now < sa.suspect_again_at:
        return
    sa.suspect_again_at = now + HINT_PAUSE_S
    sa.enqueue(Liveness())


def report(sa: IkeSa, message: Message) -> None:
    """The peer tells of our ESP that it does not know; that changes nothing. RFC 7296 §2.21.4."""
    notify = message.notify(NotifyType.INVALID_SPI)
    if notify is not None:
        text = f"{sa.peer} knows no ESP with SPI {notify.data.hex()}"
        sa.context.trace(sa.id, "info", text)
