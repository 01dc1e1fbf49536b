"""What a visitor opens with inside TLS, and who is kept waiting for how long."""

import pytest

from tunnelwrap.demux.opening import MAX_HEAD, Gate, Kind, Secrets
from tunnelwrap.wire.framing import PREFIX
from tunnelwrap.wire.prelude import is_word, request_of
from tunnelwrap.wire.websocket import NONCE, request

WORD = b"QWERTZUIOPASDFGH"
PATH = "/Ahdai7eiPhai0ahx"
STREAM = PREFIX + b"\0\1\2"
OPEN = Secrets(None, PATH.encode())
BY_WORD = Secrets(Gate(word=WORD))
BY_PATH = Secrets(Gate(path=PATH.encode()), b"/another-secret")
BY_CERTIFICATE = Secrets(Gate(wants_certificate=True))
ASKED = request_of(PATH, "vpn.example")
WEBSOCKET = request("vpn.example", PATH, bytes(NONCE))


def kind(secrets: Secrets, received: bytes) -> Kind | None:
    found = secrets.judge(received)
    return found.kind if found else None


def test_without_a_gate_a_stream_is_one() -> None:
    assert OPEN.judge(STREAM) == (Kind.STREAM, STREAM, b"")
    assert [kind(OPEN, STREAM[:length]) for length in range(6)] == [None] * 6


@pytest.mark.parametrize("secrets", [BY_WORD, BY_PATH, BY_CERTIFICATE])
def test_with_a_gate_it_is_nothing(secrets: Secrets) -> None:
    assert kind(secrets, STREAM) is Kind.SITE


def test_a_certificate_opens() -> None:
    assert BY_CERTIFICATE.judge(STREAM, has_certificate=True) == (Kind.STREAM, STREAM, b"")
    assert kind(BY_CERTIFICATE, b"I") is Kind.SITE


@pytest.mark.parametrize(("secrets", "shown"), [(BY_WORD, WORD), (BY_PATH, ASKED)])
def test_the_secret_opens_and_is_not_part_of_the_stream(secrets: Secrets, shown: bytes) -> None:
    whole = shown + STREAM
    for length in range(len(shown) + len(PREFIX)):
        assert secrets.judge(whole[:length]) is None, length
    assert secrets.judge(whole) == (Kind.STREAM, STREAM, b"")
    assert secrets.judge(shown + b"GET") == (Kind.SITE, shown + b"GET", b"")


@pytest.mark.parametrize("at", [0, 8, 15])
def test_how_much_of_a_guess_is_right_makes_no_difference(at: int) -> None:
    """A word is waited for to its end, whichever it is; then it is all for the web site."""
    guess = WORD[:at] + b"X" + WORD[at + 1 :]
    assert all(BY_WORD.judge(guess[:length]) is None for length in range(len(guess)))
    assert kind(BY_WORD, guess) is Kind.SITE


@pytest.mark.parametrize("at", [1, 9, 16])
def test_the_same_for_a_path(at: int) -> None:
    guess = request_of(PATH[:at] + "_" + PATH[at + 1 :], "vpn.example")
    line = guess.index(b"\n") + 1
    assert all(BY_PATH.judge(guess[:length]) is None for length in range(line))
    assert kind(BY_PATH, guess[:line]) is Kind.SITE


@pytest.mark.parametrize(
    "octets",
    [
        *(b"\0", b"get", b"\x16\x03", b"GET /\0", b"GET /a b", b"GET /?", b"GET  ", b"POST "),
        *(
            b"GET / HTTP/1.0",
            b"GET /\r",
            b"GET / HTTP/1.1\r\r",
            b"GET /" + bytes(300).hex().encode(),
        ),
    ],
)
def test_who_can_know_nothing_is_not_kept_waiting(octets: bytes) -> None:
    assert OPEN.judge(octets) == (Kind.SITE, octets, b"")


def test_a_websocket_and_what_follows_it() -> None:
    found = OPEN.judge(WEBSOCKET + b"frames")
    assert found is not None
    assert (found.kind, found.received) == (Kind.WEBSOCKET, b"frames")
    assert found.answer.startswith(b"HTTP/1.1 101 ")


def test_who_asks_for_a_page_at_a_secret_path_is_the_sites() -> None:
    plain = ASKED
    assert OPEN.judge(plain) == (Kind.SITE, plain, b"")
    endless = ASKED[:-2] + b"A: " + b"a" * MAX_HEAD
    assert OPEN.judge(endless[: MAX_HEAD - 1]) is None
    assert kind(OPEN, endless) is Kind.SITE


def test_what_a_word_is() -> None:
    assert is_word(WORD.decode())
    assert not any(map(is_word, ["SHORT", "A" * 65, "qwertzuiopasdfgh", "QWERTZUIOPASDFG1"]))
