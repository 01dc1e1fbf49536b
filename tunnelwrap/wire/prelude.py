"""What a client says in TLS before its stream, to a gateway that keeps quiet about it otherwise.

A web server waits for the rest of either: of a method in capitals, or of a request. So a gateway
can wait as well until the secret is complete, and compare it as a whole.
"""

import re
from typing import Final

MAX_PATH: Final = 256

_METHOD: Final = re.compile(rb"[A-Z]*")
_WORD: Final = re.compile(r"[A-Z]{16,64}")


def is_word(text: str) -> bool:
    """Whether it can be a secret word: 16 to 64 capitals."""
    return _WORD.fullmatch(text) is not None


def may_be_word(octets: bytes) -> bool:
    """Whether a word can begin so, whichever it is."""
    return _METHOD.fullmatch(octets) is not None


def request_of(path: str, authority: str) -> bytes:
    """The request that knows a secret path; nothing answers it, the stream follows at once."""
    return f"GET {path} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()


def _begun(text: str) -> str:
    """A pattern for any beginning of a text."""
    pattern = ""
    for each in reversed(text):
        pattern = f"(?:{re.escape(each)}{pattern})?"
    return pattern


_PATH: Final = r"/[A-Za-z0-9._~/-]*"
_LINE: Final = re.compile(rf"GET ({_PATH}) HTTP/1\.1\r?\n".encode())
_LINE_BEGUN: Final = re.compile(
    rf"{_begun('GET ')}|GET {_PATH}{_begun(' HTTP/1.1')}|GET {_PATH} HTTP/1\.1\r".encode()
)


def target_of(octets: bytes) -> bytes | None:
    """The path that octets ask for which begin with a whole request line; None: they do not."""
    line = _LINE.match(octets)
    return line[1] if line else None


def may_be_request(octets: bytes) -> bool:
    """Whether a request can begin so that knows a path, whichever it is; no line is complete."""
    return len(octets) <= MAX_PATH and _LINE_BEGUN.fullmatch(octets) is not None
