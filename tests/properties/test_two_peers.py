"""Two peers that do anything at any time on any network: they always come to agree again.

A reference model would repeat the code; these invariants do not: every SPI has one owner, the
message IDs of each direction only grow, a repetition has the same octets, nothing is sent after
the end, and once it is quiet both sides hold the same Child SAs.

``python -m tests.properties.two_peers --steps 10000`` makes that many steps, in longer scripts.
"""

from collections.abc import Callable
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.pair import Host, Pair, Wire, address
from tests.kit.policies import ESP, IKE, client, gateway, quiet
from tunnelwrap.config.suites import parse_esp
from tunnelwrap.iana import PayloadType
from tunnelwrap.ike.endpoint import Endpoint
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.path import Carrier, Datagram, Path
from tunnelwrap.wire.message import IkeHeader

peers = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

Wish = Callable[[Pair, Host, int], None]


def rekey_child(pair: Pair, host: Host, sa: int) -> None:
    for spi in host.plane.installed:
        host.endpoint.limit_reached(sa, spi, pair.now, is_hard=False)


def delete_child(pair: Pair, host: Host, sa: int) -> None:
    for spi in list(host.plane.installed)[:1]:
        host.endpoint.limit_reached(sa, spi, pair.now, is_hard=True)


def create_child(pair: Pair, host: Host, sa: int) -> None:
    policy = quiet(pair.policy if host is pair.i else pair.responder).child
    host.endpoint.create_child(sa, policy, pair.now)


def rekey_ike(pair: Pair, host: Host, sa: int) -> None:
    host.endpoint.rekey(sa, pair.now)


WISHES: list[Wish] = [rekey_child, delete_child, create_child, rekey_ike]

Script = list[tuple[Wish, str, float]]

step = st.tuples(
    st.sampled_from(WISHES),
    st.sampled_from(["i", "r"]),
    st.sampled_from([0.0, 0.0, 0.01, 0.03, 0.1, 1.0, 6.0]),
)
steps = st.lists(step, max_size=12)
networks = st.builds(
    Wire,
    delay=st.just(0.02),
    jitter=st.sampled_from([0.0, 0.01, 0.1]),
    loss=st.sampled_from([0.0, 0.1, 0.25]),
    duplication=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 1 << 16),
)


sizes = st.sampled_from([1280, 200])
"""Of fragments: none is needed, or almost every message is split."""


def split(policy: ConnectionPolicy, size: int) -> ConnectionPolicy:
    return replace(quiet(policy), fragment_size=size)


def message_ids_only_grow(host: Host) -> None:
    """Of requests and of first responses; a repetition has the same octets."""
    newest: dict[tuple[bytes, bytes, bool], int] = {}
    seen: dict[tuple[bytes, bytes, bool, int, bytes], bytes] = {}
    for datagram in host.sent:
        head = IkeHeader.decode(datagram.octets)
        key = (head.spi_i, head.spi_r, head.is_response)
        is_fragment = head.next_payload == PayloadType.SKF
        place = datagram.octets[32:36] if is_fragment else b""
        if seen.setdefault((*key, head.message_id, place), datagram.octets) == datagram.octets:
            newest[key] = max(newest.get(key, 0), head.message_id)
        else:
            raise AssertionError(f"message {head.message_id} is sent with two contents")
        assert head.message_id >= newest[key] - 1


def perform(pair: Pair, script: Script) -> None:
    for wish, who, pause in script:
        host: Host = getattr(pair, who)
        sa = pair.sa_i if who == "i" else pair.sa_r
        wish(pair, host, sa)
        pair.drain(host)
        pair.run(pause)


HYBRID_IKE = f"{IKE}-ke1_ecp256"
CLASSICAL_ESP, HYBRID_ESP = f"{ESP}-x25519", f"{ESP}-x25519-ke1_ecp256"

CLASSICAL = client(), gateway()
HYBRID = client(HYBRID_IKE, HYBRID_ESP), gateway(HYBRID_IKE, HYBRID_ESP)


def preferring(policy: ConnectionPolicy, *suites: str) -> ConnectionPolicy:
    return replace(policy, child=replace(policy.child, proposals=tuple(map(parse_esp, suites))))


# who begins decides how many key exchanges there are: each side likes another number best
MIXED = (
    preferring(HYBRID[0], HYBRID_ESP, CLASSICAL_ESP),
    preferring(HYBRID[1], CLASSICAL_ESP, HYBRID_ESP),
)


Policies = tuple[ConnectionPolicy, ConnectionPolicy]
choices = st.sampled_from([CLASSICAL, HYBRID, MIXED])


@peers
@given(script=steps, wire=networks, size=sizes, policies=choices)
def test_on_datagrams(script: Script, wire: Wire, size: int, policies: Policies) -> None:
    on_datagrams(script, wire, size, policies)


def on_datagrams(script: Script, wire: Wire, size: int, policies: Policies) -> Pair:
    loss, wire.loss = wire.loss, 0.0
    pair = Pair(*(split(policy, size) for policy in policies), wire)
    pair.connect()
    wire.loss = loss
    perform(pair, script)
    wire.loss = 0.0
    pair.run(200.0)
    assert pair.agreed()
    assert not pair.i.closed | pair.r.closed
    for host in (pair.i, pair.r):
        message_ids_only_grow(host)
    return pair


@peers
@given(script=steps, breaks=st.sets(st.integers(0, 11), max_size=4))
def test_on_streams_that_break(script: Script, breaks: set[int]) -> None:
    on_streams_that_break(script, breaks)


def on_streams_that_break(script: Script, breaks: set[int]) -> Pair:
    pair = Pair(quiet(client()), quiet(gateway()), carrier=Carrier.TLS)
    pair.connect()
    number = 0
    for position, step in enumerate(script):
        perform(pair, [step])
        if position in breaks:
            pair.wire.broken.add(number)
            number += 1
            path = replace(pair.path, local=address("192.0.2.1", 50000 + number), id=number)
            pair.do(pair.i, lambda e, sa, now, path=path: e.path_up(sa, path, now))
    pair.run(100.0)
    assert pair.agreed()
    assert not pair.i.closed | pair.r.closed
    for host in (pair.i, pair.r):
        message_ids_only_grow(host)
        sending = host.plane.sending
        assert sending is None or sending.path.id == number
    return pair


@peers
@given(
    octets=st.binary(max_size=300),
    flips=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 255)), max_size=4),
    cut=st.integers(0, 400),
    which=st.integers(0, 100),
    size=sizes,
)
def test_whatever_arrives_an_endpoint_never_raises(
    octets: bytes, flips: list[tuple[int, int]], cut: int, which: int, size: int
) -> None:
    """Random octets; and true messages with octets changed and cut off, at both ends."""
    pair = Pair(split(client(), size), split(gateway(), size))
    pair.connect(until=0.05)
    sent = [datagram.octets for datagram in (*pair.i.sent, *pair.r.sent)]
    spoiled = bytearray(sent[which % len(sent)])
    for position, change in flips:
        spoiled[position % len(spoiled)] ^= change
    elsewhere = Path(address("192.0.2.1"), address("203.0.113.5"), Carrier.UDP)
    endpoint: Endpoint
    for endpoint in (pair.i.endpoint, pair.r.endpoint):
        for junk in (octets, bytes(spoiled), bytes(spoiled[:cut]), sent[0][:20] + octets):
            endpoint.receive(Datagram(elsewhere, junk), pair.now)
    pair.run(5.0)
