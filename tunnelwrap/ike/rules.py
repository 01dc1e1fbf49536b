"""The law: states, transitions, which exchange is legal when, which payload may occur where.

1. All transitions of an IKE SA and of a Child SA stand in the tables of this file; handlers
   obey them and never restate them.
2. ``LEGAL`` says which requests of the peer are served in a state, ``is_legal`` also by whom;
   others are dropped.
3. ``OCCURRENCE`` says how often a payload may stand in a message. An error Notify replaces what
   it reports on, so a response that carries one need not have anything else.

RFC 7296 §1.2, §1.3, §1.4, §2.25, appendix C; RFC 9242 §3.2; RFC 9370 §2.2.
"""

from collections import Counter
from enum import Enum
from typing import Final

from tunnelwrap.errors import InvalidSyntax
from tunnelwrap.iana import ExchangeType, PayloadType, name_of
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Notify, payload_type_of


class IkeState(Enum):
    """States of an IKE SA."""

    CONNECTING = "connecting"  # IKE_SA_INIT not yet answered
    AUTHENTICATING = "authenticating"  # keys agreed, peers not yet known
    ESTABLISHED = "established"
    REKEYED = "rekeyed"  # a successor has the Child SAs; waits for its delete
    DELETING = "deleting"  # our delete is on its way
    CLOSED = "closed"


class ChildState(Enum):
    """States of a Child SA."""

    INSTALLED = "installed"
    REKEYING = "rekeying"  # our rekey is on its way, with all its key exchanges
    REKEYED = "rekeyed"  # a successor carries the packets; waits for its delete
    DELETING = "deleting"  # our delete is on its way
    CLOSED = "closed"


TRANSITIONS: Final[dict[IkeState, frozenset[IkeState]]] = {
    IkeState.CONNECTING: frozenset({IkeState.AUTHENTICATING, IkeState.CLOSED}),
    IkeState.AUTHENTICATING: frozenset({IkeState.ESTABLISHED, IkeState.CLOSED}),
    IkeState.ESTABLISHED: frozenset({IkeState.REKEYED, IkeState.DELETING, IkeState.CLOSED}),
    IkeState.REKEYED: frozenset({IkeState.DELETING, IkeState.CLOSED}),
    IkeState.DELETING: frozenset({IkeState.CLOSED}),
    IkeState.CLOSED: frozenset(),
}

CHILD_TRANSITIONS: Final[dict[ChildState, frozenset[ChildState]]] = {
    ChildState.INSTALLED: frozenset(
        {ChildState.REKEYING, ChildState.REKEYED, ChildState.DELETING, ChildState.CLOSED}
    ),
    ChildState.REKEYING: frozenset(
        {ChildState.INSTALLED, ChildState.REKEYED, ChildState.DELETING, ChildState.CLOSED}
    ),
    # back again: the successor of the peer's making is redundant, ours still takes key exchanges
    ChildState.REKEYED: frozenset({ChildState.REKEYING, ChildState.DELETING, ChildState.CLOSED}),
    ChildState.DELETING: frozenset({ChildState.CLOSED}),
    ChildState.CLOSED: frozenset(),
}

_INITIAL: Final = frozenset({ExchangeType.IKE_INTERMEDIATE, ExchangeType.IKE_AUTH})
_LATER: Final = frozenset(
    {ExchangeType.CREATE_CHILD_SA, ExchangeType.IKE_FOLLOWUP_KE, ExchangeType.INFORMATIONAL}
)

LEGAL: Final[dict[IkeState, frozenset[ExchangeType]]] = {
    IkeState.CONNECTING: frozenset(),
    IkeState.AUTHENTICATING: _INITIAL,
    IkeState.ESTABLISHED: _LATER,
    IkeState.REKEYED: _LATER,
    IkeState.DELETING: _LATER,
    IkeState.CLOSED: frozenset(),
}


def is_legal(state: IkeState, exchange: int, *, by_initiator: bool) -> bool:
    """True where a request is served; up to IKE_AUTH it is the original initiator's to begin."""
    return exchange in LEGAL[state] and (by_initiator or exchange not in _INITIAL)


_MANY: Final = 100

# (exchange, is_response) -> payload type -> (least, most)
OCCURRENCE: Final[dict[tuple[int, bool], dict[int, tuple[int, int]]]] = {
    (ExchangeType.IKE_SA_INIT, False): {
        PayloadType.SA: (1, 1),
        PayloadType.KE: (1, 1),
        PayloadType.NONCE: (1, 1),
    },
    (ExchangeType.IKE_SA_INIT, True): {
        PayloadType.SA: (1, 1),
        PayloadType.KE: (1, 1),
        PayloadType.NONCE: (1, 1),
        PayloadType.CERTREQ: (0, _MANY),
    },
    (ExchangeType.IKE_SESSION_RESUME, False): {
        PayloadType.NONCE: (1, 1),
        PayloadType.SA: (0, 0),
        PayloadType.KE: (0, 0),
    },
    (ExchangeType.IKE_SESSION_RESUME, True): {
        PayloadType.NONCE: (1, 1),
        PayloadType.SA: (0, 0),
        PayloadType.KE: (0, 0),
    },
    (ExchangeType.IKE_AUTH, False): {
        PayloadType.ID_I: (1, 1),
        PayloadType.ID_R: (0, 1),
        PayloadType.CERT: (0, _MANY),
        PayloadType.CERTREQ: (0, _MANY),
        PayloadType.AUTH: (0, 1),
        PayloadType.CP: (0, 1),
        PayloadType.SA: (0, 1),
        PayloadType.TS_I: (0, 1),
        PayloadType.TS_R: (0, 1),
    },
    (ExchangeType.IKE_AUTH, True): {
        PayloadType.ID_R: (1, 1),
        PayloadType.CERT: (0, _MANY),
        PayloadType.AUTH: (1, 1),
        PayloadType.CP: (0, 1),
        PayloadType.SA: (0, 1),
        PayloadType.TS_I: (0, 1),
        PayloadType.TS_R: (0, 1),
    },
    **{
        (exchange, is_response): {PayloadType.KE: (1, 1)}
        for exchange in (ExchangeType.IKE_INTERMEDIATE, ExchangeType.IKE_FOLLOWUP_KE)
        for is_response in (False, True)
    },
    (ExchangeType.CREATE_CHILD_SA, False): {
        PayloadType.SA: (1, 1),
        PayloadType.NONCE: (1, 1),
        PayloadType.KE: (0, 1),
        PayloadType.TS_I: (0, 1),
        PayloadType.TS_R: (0, 1),
    },
    (ExchangeType.CREATE_CHILD_SA, True): {
        PayloadType.SA: (1, 1),
        PayloadType.NONCE: (1, 1),
        PayloadType.KE: (0, 1),
        PayloadType.TS_I: (0, 1),
        PayloadType.TS_R: (0, 1),
    },
    (ExchangeType.INFORMATIONAL, False): {
        PayloadType.DELETE: (0, _MANY),
        PayloadType.CP: (0, 1),
    },
    (ExchangeType.INFORMATIONAL, True): {
        PayloadType.DELETE: (0, _MANY),
        PayloadType.CP: (0, 1),
    },
}


def check_occurrence(message: Message) -> None:
    """Hold a message against its row of OCCURRENCE; payloads of unknown type are no matter.

    Raises:
        InvalidSyntax: a payload is missing, or stands too often.
    """
    row = OCCURRENCE.get((message.exchange, message.is_response))
    if row is None:
        return
    counts = Counter(payload_type_of(payload) for payload in message.payloads)
    reports_error = any(notify.is_error for notify in message.all(Notify))
    for payload_type, (least, most) in row.items():
        count = counts[payload_type]
        if count > most or (count < least and not reports_error):
            name = name_of(PayloadType, payload_type)
            raise InvalidSyntax(f"{message}: {count} {name} payloads, expected {least} to {most}")
