"""What a visitor opens with inside TLS: a stream, behind a gate or not, a WebSocket, or nothing.

Nobody is kept waiting who would get an answer from a web server, and no secret is compared before
all of it is there: neither what is answered nor when tells how much of a guess was right.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from hmac import compare_digest
from typing import Final, NamedTuple

from tunnelwrap.demux.http_head import HeadReader
from tunnelwrap.wire import websocket
from tunnelwrap.wire.framing import PREFIX
from tunnelwrap.wire.prelude import may_be_request, may_be_word, target_of

MAX_HEAD: Final = 8192
"""How long the request may be that knows a secret path."""

_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")  # RFC 9112 §2.2 allows the bare LF


@dataclass(frozen=True, slots=True)
class Gate:
    """What has to be shown for a stream in TLS; one of these.

    Args:
        word: the octets before the stream.
        path: what a request before the stream asks for.
        wants_certificate: the TLS client has one of those that are asked for.
    """

    word: bytes | None = field(default=None, repr=False)
    path: bytes | None = field(default=None, repr=False)
    wants_certificate: bool = False


class Kind(Enum):
    """What is opened."""

    STREAM = "stream"
    WEBSOCKET = "websocket"
    SITE = "site"  # nothing that is ours


class Opening(NamedTuple):
    """What is opened, the octets that belong to it, and the answer to be given before."""

    kind: Kind
    received: bytes
    answer: bytes = b""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a visitor may know.

    Args:
        gate: what is shown before a stream; none: nothing need be.
        websocket_path: where a WebSocket can be had; none: nowhere.
    """

    gate: Gate | None = None
    websocket_path: bytes | None = field(default=None, repr=False)

    def judge(self, received: bytes, *, has_certificate: bool = False) -> Opening | None:
        """What these octets open, the first of a connection; None: it depends on what follows."""
        is_open = False
        for judgement in (self._stream(received, has_certificate), self._request(received)):
            if isinstance(judgement, Opening):
                return judgement
            is_open = is_open or judgement
        return None if is_open else Opening(Kind.SITE, received)

    def _stream(self, received: bytes, has_certificate: bool) -> Opening | bool:  # noqa: FBT001 -- what it is about
        """The stream; or whether it may still come to one."""
        gate = self.gate
        if gate is None or (gate.wants_certificate and has_certificate):
            return _bare(received)
        if gate.word is None:
            return False
        shown, rest = received[: len(gate.word)], received[len(gate.word) :]
        if len(shown) < len(gate.word):
            return may_be_word(shown)
        return compare_digest(shown, gate.word) and _bare(rest)

    def _request(self, received: bytes) -> Opening | bool:
        """What is behind a secret path; or whether it may still come to that."""
        path = self.gate.path if self.gate else None
        if path is None and self.websocket_path is None:
            return False
        target = target_of(received)
        if target is None:
            return may_be_request(received)
        knows_gate = compare_digest(target, path or b"")
        if not knows_gate | compare_digest(target, self.websocket_path or b""):
            return False
        end = _END_OF_HEAD.search(received, 0, MAX_HEAD)
        if end is None:
            return len(received) < MAX_HEAD
        rest = received[end.end() :]
        return _bare(rest) if knows_gate else _websocket(target, received[: end.end()], rest)


def _bare(received: bytes) -> Opening | bool:
    if received.startswith(PREFIX):
        return Opening(Kind.STREAM, received)
    return PREFIX.startswith(received)


def _websocket(path: bytes, head: bytes, rest: bytes) -> Opening | bool:
    reader = HeadReader()
    if reader.feed(head) is not True:
        return False
    answer = websocket.answer(path, path, reader.request.fields)
    return answer is not None and Opening(Kind.WEBSOCKET, rest, answer)
