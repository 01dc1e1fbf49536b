"""The opening handshake of a WebSocket, against the example in RFC 6455."""

import pytest

from tunnelwrap.wire.websocket import NONCE, answer, authority, proof, request

PATH = b"/Ahdai7eiPhai0ahx"
FIELDS = {
    b"host": b"server.example.com",
    b"upgrade": b"websocket",
    b"connection": b"Upgrade",
    b"sec-websocket-key": b"dGhlIHNhbXBsZSBub25jZQ==",
    b"sec-websocket-version": b"13",
}


def test_the_example_of_the_rfc() -> None:
    assert proof(FIELDS[b"sec-websocket-key"]) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert answer(PATH, PATH, FIELDS) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


def test_our_request_is_one_that_is_answered() -> None:
    line, *lines = request("gw.example.org", PATH.decode(), bytes(NONCE)).split(b"\r\n")
    assert line == b"GET " + PATH + b" HTTP/1.1"
    assert lines[-2:] == [b"", b""]
    fields = {name.lower(): value for name, _, value in (each.partition(b": ") for each in lines)}
    assert answer(PATH, PATH, fields) is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"upgrade", b"h2c, WebSocket"),
        (b"connection", b"keep-alive, UPGRADE"),
    ],
)
def test_lists_and_letter_case_as_proxies_and_browsers_send_them(
    field: bytes, value: bytes
) -> None:
    assert answer(PATH, PATH, {**FIELDS, field: value}) is not None


@pytest.mark.parametrize("field", sorted(FIELDS.keys() - {b"host"}))
def test_without_one_of_its_fields_it_is_another_request(field: bytes) -> None:
    without = {name: value for name, value in FIELDS.items() if name != field}
    assert answer(PATH, PATH, without) is None


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("gw.example.org", 443, "gw.example.org"),
        ("gw.example.org", 8443, "gw.example.org:8443"),
        ("2001:db8::1", 443, "[2001:db8::1]"),
        ("2001:db8::1", 8443, "[2001:db8::1]:8443"),
    ],
)
def test_the_server_as_a_request_names_it(host: str, port: int, expected: str) -> None:
    assert authority(host, port) == expected
