"""What a stream begins with, judged at the first octet that tells."""

import pytest

from tunnelwrap.demux.sniff import MAX_SNIFF, Verdict, sniff

METHODS = b"GET HEAD POST PUT DELETE OPTIONS CONNECT TRACE PATCH PRI".split()


@pytest.mark.rfc("9329", "4")
def test_ike_stream() -> None:
    assert sniff(b"IKETCP") is Verdict.IKE_STREAM
    assert sniff(b"IKETCP\0\x20\0\0") is Verdict.IKE_STREAM
    assert {sniff(b"IKETCP"[:size]) for size in range(6)} == {Verdict.NEED_MORE}


@pytest.mark.parametrize("method", METHODS)
def test_http_is_known_by_its_method_and_the_space(method: bytes) -> None:
    assert sniff(method + b" ") is Verdict.HTTP
    assert sniff(method + b" / HTTP/1.1\r\n") is Verdict.HTTP
    assert sniff(method) is Verdict.NEED_MORE
    assert sniff(method + b"/") is Verdict.OTHER
    assert sniff(method.lower() + b" ") is Verdict.OTHER


def test_tls_is_known_by_a_handshake_record_of_version_3() -> None:
    assert sniff(b"\x16") is Verdict.NEED_MORE
    assert sniff(b"\x16\x03") is Verdict.TLS
    assert sniff(b"\x16\x03\x01\x02") is Verdict.TLS
    assert sniff(b"\x16\x02") is Verdict.OTHER
    assert sniff(b"\x15\x03") is Verdict.OTHER


@pytest.mark.rfc("9329", "10")
@pytest.mark.parametrize(
    ("octets", "enough"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", 1),
        (bytes.fromhex("000e38"), 1),  # OpenVPN over TCP: length, P_CONTROL_HARD_RESET_CLIENT_V2
        (b"\x05\x01\x00", 1),  # SOCKS5
        (b"\x04\x01\x00\x50", 1),  # SOCKS4
        (bytes.fromhex("0300002c27e00000000000"), 1),  # RDP: TPKT
        (b"IKEUDP", 4),
        (b"IKETCq", 6),
        (b"ike", 1),
        (b"PROXY TCP4 192.0.2.1", 3),
        (b"GETT / HTTP/1.1", 4),
        (b"\r\n", 1),
    ],
)
def test_the_first_octet_that_differs_decides(octets: bytes, enough: int) -> None:
    assert sniff(octets) is Verdict.OTHER
    assert sniff(octets[:enough]) is Verdict.OTHER
    assert sniff(octets[: enough - 1]) is Verdict.NEED_MORE


def test_no_more_octets_are_needed_than_the_longest_method_has() -> None:
    assert len(b"OPTIONS ") == MAX_SNIFF


# --- what is looked for on demand only

ALL = frozenset(Verdict)
SSH = frozenset({Verdict.SSH})
OPENVPN = frozenset({Verdict.OPENVPN})


@pytest.mark.parametrize(
    ("octets", "asked", "verdict"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", SSH, Verdict.SSH),
        (b"SSH-1.99-x", SSH, Verdict.SSH),
        (b"SSH", SSH, Verdict.NEED_MORE),
        (b"SSL-", SSH, Verdict.OTHER),
        (b"SSH-2.0", OPENVPN, Verdict.OTHER),
        (bytes.fromhex("000e38"), OPENVPN, Verdict.OPENVPN),
        (bytes.fromhex("00ff38"), OPENVPN, Verdict.OPENVPN),
        (bytes.fromhex("015050"), OPENVPN, Verdict.OPENVPN),  # with a wrapped key
        (bytes.fromhex("04fe50"), OPENVPN, Verdict.OPENVPN),
        (bytes.fromhex("000e50"), OPENVPN, Verdict.OTHER),
        (bytes.fromhex("015038"), OPENVPN, Verdict.OTHER),
        (bytes.fromhex("000e"), OPENVPN, Verdict.NEED_MORE),
        (bytes.fromhex("000d"), OPENVPN, Verdict.OTHER),
        (bytes.fromhex("014f"), OPENVPN, Verdict.OTHER),
        (bytes.fromhex("04ff"), OPENVPN, Verdict.OTHER),
        (bytes.fromhex("00"), OPENVPN, Verdict.NEED_MORE),
        (bytes.fromhex("04"), OPENVPN, Verdict.NEED_MORE),
        (bytes.fromhex("05"), OPENVPN, Verdict.OTHER),
        (bytes.fromhex("000e38"), SSH, Verdict.OTHER),
        (b"IKETCP", ALL, Verdict.IKE_STREAM),
        (b"\x16\x03", ALL, Verdict.TLS),
        (b"GET ", ALL, Verdict.HTTP),
    ],
)
def test_what_is_asked_for(octets: bytes, asked: frozenset[Verdict], verdict: Verdict) -> None:
    assert sniff(octets, asked) is verdict
