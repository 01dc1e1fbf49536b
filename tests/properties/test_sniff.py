"""A verdict on a stream, once there, stays whatever follows, and is the same in any pieces."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.wire.samples import load
from tests.unit.wire.test_proxy import HEADERS
from tests.unit.wire.test_tls import records
from tunnelwrap.demux.sniff import MAX_SNIFF, Verdict, sniff
from tunnelwrap.wire.framing import PREFIX, frame
from tunnelwrap.wire.tls import HelloReader, client_hello

HELLOS = [case["octets"] for case in load("client_hello")]
CUT_HELLOS = [records(hello[5:], size) for hello in HELLOS for size in (1, 7, 100)]

CORPUS = [
    *HELLOS,
    PREFIX + frame(bytes(32)),
    *HEADERS,
    b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PROPFIND /dav HTTP/1.1\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    bytes.fromhex("000e3801020304050607080000000000"),  # OpenVPN over TCP
    bytes.fromhex("050100"),  # SOCKS5
    bytes.fromhex("04010050c00002010000"),  # SOCKS4
    bytes.fromhex("0300002c27e00000000000436f6f6b69653a206d737473686173683d"),  # RDP
    bytes.fromhex("802e0100020015000000100100800200"),  # SSL 2
]

near_misses = st.builds(
    lambda whole, size, tail: whole[:size] + tail,
    st.sampled_from(CORPUS),
    st.integers(0, MAX_SNIFF),
    st.binary(max_size=4),
)
streams = st.binary(max_size=16) | st.sampled_from(CORPUS) | near_misses
asked_for = st.frozensets(st.sampled_from(Verdict))


def octet_by_octet(stream: bytes, asked: frozenset[Verdict]) -> Verdict:
    """The first verdict that a reader of single octets comes to."""
    verdicts = (sniff(stream[:size], asked) for size in range(len(stream) + 1))
    return next((each for each in verdicts if each is not Verdict.NEED_MORE), Verdict.NEED_MORE)


@given(streams, st.binary(max_size=16), asked_for)
def test_a_verdict_is_final(stream: bytes, more: bytes, asked: frozenset[Verdict]) -> None:
    if sniff(stream, asked) is not Verdict.NEED_MORE:
        assert sniff(stream + more, asked) is sniff(stream, asked)


@given(streams, asked_for)
def test_octet_by_octet_is_the_same_as_at_once(stream: bytes, asked: frozenset[Verdict]) -> None:
    assert octet_by_octet(stream, asked) is sniff(stream, asked)


@given(streams, asked_for)
def test_it_waits_only_for_what_can_still_become_something(
    stream: bytes, asked: frozenset[Verdict]
) -> None:
    """NEED_MORE means that some next octet leads on to a verdict other than OTHER."""
    if sniff(stream, asked) is Verdict.NEED_MORE:
        assert len(stream) < MAX_SNIFF
        nexts = (sniff(stream + bytes([octet]), asked) for octet in range(256))
        assert any(verdict is not Verdict.OTHER for verdict in nexts)


@given(streams, asked_for)
def test_what_is_asked_for_changes_nothing_else(stream: bytes, asked: frozenset[Verdict]) -> None:
    verdict = sniff(stream, asked)
    if verdict is not Verdict.NEED_MORE:
        assert verdict in (sniff(stream), *asked)


@given(st.sampled_from([*HELLOS, *CUT_HELLOS]), st.sets(st.integers(1, 600)))
def test_a_hello_in_any_pieces_is_the_same(stream: bytes, cuts: set[int]) -> None:
    reader = HelloReader()
    seen = [reader.read(stream[:size]) for size in sorted({*cuts, len(stream)}) if size]
    assert next((hello for hello in seen if hello), None) == client_hello(stream)


@given(st.sampled_from(CORPUS), st.binary(max_size=8))
def test_only_the_prefix_makes_an_ike_stream(stream: bytes, head: bytes) -> None:
    for octets in (stream, head + stream):
        assert (sniff(octets) is Verdict.IKE_STREAM) == octets.startswith(PREFIX)


def test_the_corpus() -> None:
    tls = len(load("client_hello"))
    verdicts = [sniff(each).value for each in CORPUS]
    assert (
        verdicts
        == ["tls"] * tls + ["ike"] + ["other"] * len(HEADERS) + ["http"] * 3 + ["other"] * 7
    )
