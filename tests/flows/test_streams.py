"""IKE SAs on stream carriers: what RFC 9329 asks of the core. Names begin with the row's ID.

The rows are those of the requirement list of RFC 9329: A applicability, F framing, R
retransmission, N NAT and liveness, C connections.
"""

from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator
from tests.kit.pair import Host, Pair, Wire, address
from tests.kit.policies import client, gateway, quiet
from tunnelwrap.iana import ExchangeType, NotifyType
from tunnelwrap.ike.outputs import Answered, Closed, Established, Moved
from tunnelwrap.ike.policy import Limits
from tunnelwrap.path import Carrier, Datagram, Path
from tunnelwrap.wire.message import IkeHeader

STREAMS = [Carrier.TCP, Carrier.TLS, Carrier.WEBSOCKET]


def connected(carrier: Carrier = Carrier.TCP, wire: Wire | None = None) -> Pair:
    pair = Pair(quiet(client()), quiet(gateway()), wire, carrier=carrier)
    pair.connect()
    assert pair.agreed()
    return pair


def requests(host: Host, exchange: int) -> list[Datagram]:
    heads = [(d, IkeHeader.decode(d.octets)) for d in host.sent]
    return [d for d, h in heads if h.exchange == exchange and not h.is_response]


def new_stream(pair: Pair, number: int = 2, carrier: Carrier = Carrier.TCP) -> Path:
    local = address("192.0.2.1", 50000 + number)
    return Path(local, pair.path.peer, carrier, id=number)


def reconnect(pair: Pair, number: int = 2) -> Path:
    """The stream breaks, and the originator has another one."""
    pair.wire.broken.add(pair.path.id if number == 2 else number - 1)
    path = new_stream(pair, number)
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.path_up(sa, path, now))
    return path


@pytest.mark.rfc("9329", "2")
def test_a8_what_begins_on_a_stream_is_not_served_by_udp() -> None:
    pair = connected()
    pair.wire.filter = lambda sender, header, octets: False
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    (request,) = requests(pair.i, ExchangeType.CREATE_CHILD_SA)
    before = len(pair.r.sent)
    pair.inject(pair.r, request.octets, Path(pair.path.peer, pair.path.local, Carrier.UDP))
    assert len(pair.r.sent) == before
    assert pair.r.endpoint.counters["dropped_not_by_stream"] == 1


@pytest.mark.rfc("9329", "1.2")
@pytest.mark.parametrize("who", ["i", "r"])
def test_a9_the_originator_stays_the_originator_whoever_rekeys(who: str) -> None:
    pair = connected()
    pair.do(getattr(pair, who), lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(2.0)
    path = reconnect(pair)
    pair.run(2.0)
    assert pair.r.plane.sending is not None
    assert pair.r.plane.sending.path.peer == path.local, "the responder follows the originator"
    assert (moved := pair.r.fact(Moved)) is not None, "the shell is told"
    assert moved.path.peer == path.local
    stray = new_stream(pair, 3)
    pair.do(pair.r, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    (*_, request) = requests(pair.r, ExchangeType.CREATE_CHILD_SA)
    pair.inject(pair.i, request.octets, stray)
    assert pair.i.plane.sending is not None
    assert pair.i.plane.sending.path == path, "the originator follows nobody"


@pytest.mark.rfc("9329", "6.2")
@pytest.mark.parametrize("carrier", STREAMS)
def test_r1_a_request_is_sent_once_on_a_stream_and_its_timeout_ends_the_ike_sa(
    carrier: Carrier,
) -> None:
    pair = connected(carrier)
    pair.wire.loss = 1.0
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(59.0)
    assert pair.i.fact(Closed) is None
    pair.run(2.0)
    closed = pair.i.fact(Closed)
    assert closed is not None
    assert "no answer from" in closed.reason
    assert len(requests(pair.i, ExchangeType.CREATE_CHILD_SA)) == 1


@pytest.mark.rfc("9329", "6.2")
def test_r2_a_pending_request_goes_out_again_on_a_new_connection() -> None:
    pair = connected()
    pair.wire.broken.add(0)
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(50.0)
    reconnect(pair)
    pair.run(40.0)
    first, again = requests(pair.i, ExchangeType.CREATE_CHILD_SA)
    assert first.octets == again.octets
    assert again.path.id == 2
    assert pair.i.fact(Closed) is None, "the new connection has its own time"
    assert pair.agreed()


@pytest.mark.rfc("9329", "6.2")
def test_r2_so_does_a_request_of_the_tcp_responder() -> None:
    pair = connected()
    pair.wire.broken.add(0)
    pair.do(pair.r, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(10.0)
    assert len(requests(pair.r, ExchangeType.CREATE_CHILD_SA)) == 1, "C5: it cannot dial"
    reconnect(pair)
    pair.run(2.0)
    first, again = requests(pair.r, ExchangeType.CREATE_CHILD_SA)
    assert first.octets == again.octets
    assert again.path.id == 2
    assert pair.agreed()


@pytest.mark.rfc("9329", "6.2")
def test_r2_ike_auth_goes_out_again_and_the_responder_follows() -> None:
    """Also where the response was lost with the old connection: the repetition moves nothing."""
    pair = Pair(quiet(client()), quiet(gateway()), carrier=Carrier.TCP)
    pair.wire.filter = lambda sender, header, octets: (
        sender == "i" or header.exchange != ExchangeType.IKE_AUTH
    )
    pair.connect(until=2.0)
    assert pair.r.fact(Established) is not None
    pair.wire.filter = None
    path = reconnect(pair)
    pair.run(2.0)
    assert pair.i.fact(Established) is not None
    assert pair.r.plane.sending is not None
    assert pair.r.plane.sending.path.peer == path.local


@pytest.mark.rfc("9329", "6.2")
def test_r2_ike_sa_init_goes_out_again_and_nothing_else_before_it_is_answered() -> None:
    pair = Pair(quiet(client()), quiet(gateway()), Wire(broken={0}), carrier=Carrier.TCP)
    pair.initiate()
    reconnect(pair)
    pair.run(2.0)
    assert len(requests(pair.i, ExchangeType.IKE_SA_INIT)) == 2
    assert pair.agreed()


def test_r2_between_ike_sa_init_and_ike_auth_a_new_connection_says_nothing() -> None:
    pair = Pair(quiet(client()), quiet(gateway()), carrier=Carrier.TCP)
    pair.i.authenticates = False
    pair.connect(until=1.0)
    assert pair.i.fact(Answered) is not None
    reconnect(pair)
    assert len(pair.i.sent) == 1
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.authenticate(sa, now))
    pair.run(2.0)
    assert pair.agreed()


@pytest.mark.rfc("9329", "6.2")
def test_r3_a_duplicate_request_gets_the_cached_response_on_the_connection_it_came_by() -> None:
    pair = connected()
    (request,) = requests(pair.i, ExchangeType.IKE_AUTH)
    before = pair.r.sent[-1]
    arrival = Path(pair.path.peer, address("192.0.2.1", 50002), Carrier.TCP, id=2)
    pair.inject(pair.r, request.octets, arrival)
    assert pair.r.sent[-1].octets == before.octets
    assert pair.r.sent[-1].path == arrival
    assert pair.r.plane.sending is not None
    assert pair.r.plane.sending.path != arrival, "C17: a repetition moves nothing"


@pytest.mark.rfc("9329", "6.4")
@pytest.mark.parametrize("carrier", [*STREAMS, Carrier.UDP])
def test_r9_an_ike_sa_init_error_ends_at_once_on_streams_and_later_on_udp(
    carrier: Carrier,
) -> None:
    pair = Pair(client("aes256-sha256-modp2048"), gateway(), carrier=carrier)
    pair.connect(until=0.1)
    assert (pair.i.fact(Closed) is not None) is carrier.is_reliable
    pair.run(5.0)
    closed = pair.i.fact(Closed)
    assert closed is not None
    assert closed.notify == NotifyType.NO_PROPOSAL_CHOSEN
    assert not closed.was_established


@pytest.mark.rfc("9329", "6.4")
@pytest.mark.parametrize("carrier", STREAMS)
def test_r10_invalid_ke_payload_is_followed_on_the_same_connection(carrier: Carrier) -> None:
    pair = Pair(
        client("aes128gcm16-prfsha256-x25519-ecp256"),
        gateway("aes128gcm16-prfsha256-ecp256"),
        carrier=carrier,
    )
    pair.connect()
    assert pair.agreed()
    assert len(requests(pair.i, ExchangeType.IKE_SA_INIT)) == 2


@pytest.mark.rfc("9329", "6.5")
@pytest.mark.parametrize("nat", [None, address("203.0.113.9", 40000)])
def test_n1_nat_detection_uses_the_tcp_ports(nat: object) -> None:
    pair = connected(Carrier.TLS, Wire(nat=nat))
    ours, theirs = pair.i.fact(Established), pair.r.fact(Established)
    assert ours is not None
    assert theirs is not None
    assert ours.behind_nat is theirs.peer_behind_nat is (nat is not None)
    assert not ours.peer_behind_nat
    assert not theirs.behind_nat


@pytest.mark.rfc("9329", "6.6")
def test_n4_an_idle_stream_carries_liveness_checks_and_nothing_else() -> None:
    policy = replace(quiet(client()), liveness_s=30.0)
    pair = Pair(policy, quiet(gateway()), carrier=Carrier.TCP)
    pair.connect()
    pair.run(300.0)
    after = pair.i.sent[2:]
    assert len(after) == 10
    kinds = {IkeHeader.decode(d.octets).exchange for d in after}
    assert kinds == {ExchangeType.INFORMATIONAL}


@pytest.mark.rfc("9329", "6.6")
@pytest.mark.parametrize("octets", [b"\xff", b"", bytes(4)])
def test_n5_keepalives_are_dropped_in_silence(octets: bytes) -> None:
    pair = connected()
    before = len(pair.r.sent), len(pair.r.facts)
    pair.inject(pair.r, octets)
    assert (len(pair.r.sent), len(pair.r.facts)) == before


@pytest.mark.rfc("9329", "6.7")
@pytest.mark.parametrize("who", ["i", "r"])
def test_n6_n7_an_open_connection_is_no_proof_of_life(who: str) -> None:
    policies = {"i": quiet(client()), "r": quiet(gateway())}
    policies[who] = replace(policies[who], liveness_s=30.0)
    pair = Pair(policies["i"], policies["r"], carrier=Carrier.TLS)
    pair.connect()
    pair.run(100.0)
    host: Host = getattr(pair, who)
    assert host.fact(Closed) is None
    pair.wire.loss = 1.0  # the stream stands, the peer says nothing
    pair.run(100.0)
    closed = host.fact(Closed)
    assert closed is not None
    assert closed.is_failure
    assert not host.plane.installed


@pytest.mark.rfc("9329", "6.1")
@pytest.mark.parametrize("who", ["i", "r"])
def test_c1_a_session_ends_with_a_delete(who: str) -> None:
    pair = connected()
    pair.do(getattr(pair, who), lambda endpoint, sa, now: endpoint.close(sa, "wanted", now))
    pair.run(1.0)
    for host in (pair.i, pair.r):
        closed = host.fact(Closed)
        assert closed is not None
        assert not closed.is_failure
        assert host.endpoint.next_timeout() is None


@pytest.mark.rfc("9329", "6.1")
def test_c3_a_stream_that_authenticates_nobody_has_no_ike_sa_for_long() -> None:
    limits = Limits(half_open_s=10.0)
    pair = Pair(client(), gateway(), carrier=Carrier.TCP, limits=limits)
    pair.i.authenticates = False
    pair.connect(until=9.0)
    assert pair.r.fact(Closed) is None
    pair.run(2.0)
    closed = pair.r.fact(Closed)
    assert closed is not None
    assert not closed.was_established
    assert "tcp 192.0.2.1:4500" in closed.reason


@pytest.mark.rfc("9329", "6.1")
def test_c4_a_broken_stream_leaves_the_ike_sa_alive() -> None:
    pair = connected()
    pair.wire.broken.add(0)
    pair.run(3600.0)
    assert pair.i.fact(Closed) is None
    assert pair.r.fact(Closed) is None
    reconnect(pair)
    pair.run(2.0)
    assert pair.agreed()


@pytest.mark.rfc("9329", "6.1")
def test_c6_c10_a_new_stream_begins_with_an_empty_informational_and_the_peer_follows() -> None:
    pair = connected()
    before = len(pair.i.sent)
    path = reconnect(pair)
    pair.run(2.0)
    first = pair.i.sent[before]
    assert first.path == path
    assert IkeHeader.decode(first.octets).exchange == ExchangeType.INFORMATIONAL
    assert pair.r.plane.history.count("move") == 1
    assert pair.r.plane.sending is not None
    assert pair.r.plane.sending.path.peer == path.local


@pytest.mark.rfc("9329", "6.1")
def test_c9_a_second_ike_sa_on_a_stream_is_refused() -> None:
    pair = connected()
    before = len(pair.r.sent)
    pair.initiate()
    pair.run(3.0)
    assert len(pair.r.sent) == before
    assert pair.r.endpoint.counters["dropped_initial"] == 1


@pytest.mark.rfc("9329", "6.1")
@pytest.mark.parametrize("how", ["delete", "abandoned", "refused", "forgotten"])
def test_c9_an_ike_sa_that_is_gone_frees_its_stream(how: str) -> None:
    pair = Pair(quiet(client()), quiet(gateway()), carrier=Carrier.TCP)
    if how == "refused":
        wrong = replace(quiet(client()), local=gateway().local)
        pair.policy, right = wrong, pair.policy
        pair.connect()
        pair.policy = right
        assert pair.r.fact(Closed) is not None
    elif how == "forgotten":
        pair.i.authenticates = False
        pair.connect(until=40.0)
        pair.i.authenticates = True
    else:
        pair.connect()
        if how == "delete":
            pair.do(pair.i, lambda endpoint, sa, now: endpoint.close(sa, "wanted", now))
        else:
            for host in (pair.i, pair.r):
                pair.do(host, lambda endpoint, sa, now: endpoint.abandon(sa, "gone"))
        pair.run(1.0)
    pair.initiate()
    pair.run(3.0)
    assert pair.agreed()
    assert "dropped_initial" not in pair.r.endpoint.counters


@pytest.mark.rfc("9329", "6.1")
def test_c9_the_overlap_of_a_rekey_is_allowed_and_a_left_stream_is_free() -> None:
    pair = connected()
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(2.0)
    pair.initiate()
    pair.run(1.0)
    assert pair.r.endpoint.counters["dropped_initial"] == 1, "the rekeyed one has the stream"
    pair.i.endpoint.abandon(pair.sa_i, "it had no answer")
    pair.drain(pair.i)
    pair.sa_i -= 1
    reconnect(pair)
    pair.run(1.0)
    pair.wire.broken.clear()
    pair.initiate()
    pair.run(2.0)
    assert len(pair.r.plane.installed) == 2, "the first stream serves another IKE SA"


@pytest.mark.rfc("9329", "6.1")
def test_c11_a_resumed_session_is_found_by_its_ike_spis() -> None:
    peer = ScriptedInitiator(client(), gateway())
    peer.connect()
    peer.arrival = Path(peer.arrival.local, address("203.0.113.77", 1234), Carrier.TLS, id=5)
    assert peer.ask(ExchangeType.INFORMATIONAL) is not None


@pytest.mark.rfc("9329", "6.1")
def test_c16_the_newest_authentic_request_decides_where_the_responder_sends() -> None:
    pair = connected()
    for number in (2, 3, 4):
        path = reconnect(pair, number)
        pair.run(1.0)
        assert pair.r.plane.sending is not None
        assert pair.r.plane.sending.path.peer == path.local


@pytest.mark.rfc("9329", "10")
def test_c17_a_forged_request_on_another_stream_moves_nothing() -> None:
    pair = connected()
    pair.wire.filter = lambda sender, header, octets: False
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    (request,) = requests(pair.i, ExchangeType.CREATE_CHILD_SA)
    forged = bytearray(request.octets)
    forged[-1] ^= 1
    elsewhere = Path(pair.path.peer, address("203.0.113.66"), Carrier.TCP, id=6)
    pair.inject(pair.r, bytes(forged), elsewhere)
    assert pair.r.endpoint.counters["dropped_integrity"] == 1
    assert pair.r.plane.history.count("move") == 0


def test_a_connection_is_lost_again_and_again_during_rekeys() -> None:
    pair = connected()
    for number in range(2, 12):
        pair.do(pair.i, lambda endpoint, sa, now: endpoint.rekey(sa, now))
        pair.do(pair.r, lambda endpoint, sa, now: endpoint.rekey(sa, now))
        pair.run(0.015)
        reconnect(pair, number)
        pair.run(10.0)
        assert pair.i.fact(Closed) is None
        assert pair.r.fact(Closed) is None
        assert pair.agreed()
