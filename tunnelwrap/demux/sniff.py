"""What a byte stream begins with: an RFC 9329 stream, TLS, HTTP or anything else. RFC 9329 §4."""

from enum import Enum
from functools import cache
from typing import Final

from tunnelwrap.wire.framing import PREFIX
from tunnelwrap.wire.proxy import V1_BEGIN, V2_BEGIN


class Verdict(Enum):
    """What the first octets of a stream tell."""

    IKE_STREAM = "ike"
    TLS = "tls"
    HTTP = "http"
    SSH = "ssh"
    OPENVPN = "openvpn"
    PROXY = "proxy"  # a header of the PROXY protocol
    OTHER = "other"
    SILENT = "silent"  # it waits for the server's first octets; a clock tells, not ``sniff``
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

# Looked for on demand only: who does not know them waits for no octet of them.
_ASKED_FOR: Final = {
    b"SSH-": Verdict.SSH,  # RFC 4253 §4.2
    V1_BEGIN: Verdict.PROXY,
    V2_BEGIN[:8]: Verdict.PROXY,  # so much is enough
}

MAX_SNIFF: Final = max(map(len, [*_BEGINNINGS, *_ASKED_FOR]))
"""With that many octets every verdict is final."""

# OpenVPN over TCP: u16 length | opcode, key ID 0. How long a client's first packet may be by its
# opcode: P_CONTROL_HARD_RESET_CLIENT_V2, and V3 with a wrapped key; the same as its port-share.
_OPENVPN_LENGTHS: Final = {7 << 3: range(14, 256), 10 << 3: range(336, 1279)}
_NOTHING_MORE: Final = frozenset[Verdict]()


def sniff(prefix: bytes, asked: frozenset[Verdict] = _NOTHING_MORE) -> Verdict:
    """Judge the first octets of a stream; the first one that differs from all we know decides.

    More octets change nothing but NEED_MORE.

    Args:
        prefix: octets, from the first on.
        asked: what to know beside IKE streams, TLS and HTTP; without it that is OTHER.
    """
    beginnings = _beginnings(asked)
    for beginning, verdict in beginnings.items():
        if prefix.startswith(beginning):
            return verdict
    if Verdict.OPENVPN in asked and (verdict := _openvpn(prefix)) is not Verdict.OTHER:
        return verdict
    is_open = any(beginning.startswith(prefix) for beginning in beginnings)
    return Verdict.NEED_MORE if is_open else Verdict.OTHER


@cache
def _beginnings(asked: frozenset[Verdict]) -> dict[bytes, Verdict]:
    return {**_BEGINNINGS, **{text: kind for text, kind in _ASKED_FOR.items() if kind in asked}}


def _openvpn(prefix: bytes) -> Verdict:
    """OPENVPN, OTHER, or NEED_MORE while it may still be either."""
    known, missing = prefix[:2], 2 - len(prefix[:2])
    least = int.from_bytes(known + bytes(missing), "big")
    most = int.from_bytes(known + b"\xff" * missing, "big")
    opcodes = [
        opcode
        for opcode, lengths in _OPENVPN_LENGTHS.items()
        if least < lengths.stop and most >= lengths.start
    ]
    if len(prefix) > 2:
        return Verdict.OPENVPN if prefix[2] in opcodes else Verdict.OTHER
    return Verdict.NEED_MORE if opcodes else Verdict.OTHER
