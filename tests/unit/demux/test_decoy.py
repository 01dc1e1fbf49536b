"""The answers of the small web server, without a connection."""

from email.utils import parsedate_to_datetime

import pytest

from tunnelwrap.demux.decoy import BAD_REQUEST, PLAIN_ON_TLS, answer_to

HOST = b"\r\nHost: example.com\r"


def answer(head: bytes, *, is_last: bool = False) -> tuple[int, bool]:
    found = answer_to(head, is_last=is_last)
    return found.status.value, found.is_last


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / HTTP/1.1", 200),
        (b"HEAD / HTTP/1.1", 200),
        (b"GET /?a=/b HTTP/1.1", 200),
        (b"GET https://example.com HTTP/1.1", 200),
        (b"GET HTTPS://example.com/?q HTTP/1.1", 200),
        (b"GET https://example.com/a HTTP/1.1", 404),
        (b"GET /favicon.ico HTTP/1.1", 404),
        (b"GET //// HTTP/1.1", 404),
        (b"HEAD /a HTTP/1.1", 404),
        (b"POST / HTTP/1.1", 405),
        (b"OPTIONS * HTTP/1.1", 405),
        (b"CONNECT example.com:22 HTTP/1.1", 405),
        (b"BREW /pot HTTP/1.1", 405),
        (b"get / HTTP/1.1", 405),
    ],
)
@pytest.mark.parametrize("end", [b"\r", b""], ids=["crlf", "lf"])
def test_requests_that_keep_the_connection(line: bytes, end: bytes, status: int) -> None:
    assert answer(line + end + b"\nHost: example.com" + end + b"\nAccept: */*") == (status, False)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET",
        b"GET /",
        b"GET  / HTTP/1.1" + HOST,
        b"GET / HTTP/1.1 " + HOST,
        b"GET /a b HTTP/1.1" + HOST,
        b"G(T / HTTP/1.1" + HOST,
        b"GET /\xff HTTP/1.1" + HOST,
        b"GET / HTTP/2.0" + HOST,
        b"GET / http/1.1" + HOST,
        b"GET / HTTP/1.1\r",
        b"GET / HTTP/1.1" + HOST + HOST,
        b"GET / HTTP/1.0" + HOST + HOST,
        b"GET / HTTP/1.1" + HOST + b"\n folded",
        b"GET / HTTP/1.1" + HOST + b"\nAccept : a",
        b"GET / HTTP/1.1" + HOST + b"\nAccept",
        b"GET / HTTP/1.1" + HOST + b"\nAccept: a\rb",
        b"GET / HTTP/1.1" + HOST + b"\nAccept: \0",
    ],
)
def test_bad_requests_end_the_connection(head: bytes) -> None:
    assert answer(head) == (400, True)


@pytest.mark.parametrize(
    "field",
    [
        b"Connection: close",
        b"connection:CLOSE",
        b"Connection: te , close",
        b"Connection: te\r\nConnection: close",
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
    ],
)
def test_the_connection_ends_on_request_and_with_a_body(field: bytes) -> None:
    assert answer(b"GET / HTTP/1.1" + HOST + b"\n" + field) == (200, True)


def test_the_connection_ends_with_http_1_0_and_when_we_want() -> None:
    assert answer(b"GET / HTTP/1.0\r") == (200, True)
    assert answer(b"GET / HTTP/1.1" + HOST, is_last=True) == (200, True)


def test_what_an_answer_looks_like() -> None:
    octets = answer_to(b"GET / HTTP/1.1" + HOST, is_last=False).encode()
    head, page = octets.split(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    assert first == "HTTP/1.1 200 OK"
    assert parsedate_to_datetime(fields.pop("Date")).tzinfo is not None
    assert fields == {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Length": str(len(page)),
        "Connection": "keep-alive",
    }
    assert b"<title>Welcome</title>" in page


def test_the_answer_to_head_has_no_page() -> None:
    octets = answer_to(b"HEAD / HTTP/1.1" + HOST, is_last=True).encode()
    get = answer_to(b"GET / HTTP/1.1" + HOST, is_last=True).encode()
    assert octets.endswith(b"Connection: close\r\n\r\n")
    assert octets.split(b"\r\n")[3] == get.split(b"\r\n")[3]  # Content-Length


def test_an_unknown_method_learns_those_that_are_known() -> None:
    assert b"\r\nAllow: GET, HEAD\r\n" in answer_to(b"PUT / HTTP/1.0", is_last=True).encode()


def test_errors_say_no_more_than_what_is_wrong() -> None:
    assert b"<h1>400 Bad Request</h1></body>" in BAD_REQUEST.encode()
    assert b"The plain HTTP request was sent to HTTPS port" in PLAIN_ON_TLS.encode()
    for each in (BAD_REQUEST, PLAIN_ON_TLS):
        assert b"tunnel" not in each.encode().lower()
        assert b"\r\nServer:" not in each.encode()
