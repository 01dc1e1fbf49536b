"""What a byte stream begins with: an RFC 9329 stream, TLS, HTTP or anything else. RFC 9329 §4."""

from enum import Enum
from typing import Final

from tunnelwrap.wire.framing import PREFIX


class Verdict(Enum):
    """What the first octets of a stream tell."""

    IKE_STREAM = "ike"
    TLS = "tls"
    HTTP = "http"
    OTHER = "other"
    NEED_MORE = "undecided"


_TLS_HANDSHAKE: Final = b"\x16\x03"  # a record's type and major version, RFC 8446 §5.1

# RFC 9110 §9, RFC 5789, and the preface of HTTP/2 (RFC 9113 §3.4).
_METHODS: Final = (
    *("GET", "HEAD", "POST", "PUT", "DELETE"),
    *("OPTIONS", "CONNECT", "TRACE", "PATCH", "PRI"),
)

# None of these begins another one: the first that matches is the only one.
_BEGINNINGS: Final = {
    PREFIX: Verdict.IKE_STREAM,
    _TLS_HANDSHAKE: Verdict.TLS,
    **{f"{method} ".encode(): Verdict.HTTP for method in _METHODS},
}

MAX_SNIFF: Final = max(map(len, _BEGINNINGS))
"""With that many octets every verdict is final."""


def sniff(prefix: bytes) -> Verdict:
    """Judge the first octets of a stream; the first one that differs from all we know decides.

    More octets change nothing but NEED_MORE.
    """
    for beginning, verdict in _BEGINNINGS.items():
        if prefix.startswith(beginning):
            return verdict
    is_open = any(beginning.startswith(prefix) for beginning in _BEGINNINGS)
    return Verdict.NEED_MORE if is_open else Verdict.OTHER
