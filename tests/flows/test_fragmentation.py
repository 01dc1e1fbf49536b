"""IKE fragmentation between two endpoints. RFC 7383.

X rows are those of the requirement list of RFC 9329.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator, clear
from tests.kit.certs import NOW as CERTIFIED
from tests.kit.certs import Entity, authority, entity
from tests.kit.pair import Host, Pair, Wire, address
from tests.kit.policies import CLIENT, GATEWAY, client, gateway, quiet
from tunnelwrap.auth.identity import Identity, IdentityPattern
from tunnelwrap.crypto.x509 import TrustStore
from tunnelwrap.iana import ExchangeType, NotifyType, PayloadType
from tunnelwrap.ike.fragments import REASSEMBLY_S
from tunnelwrap.ike.ike_auth import IkeAuth
from tunnelwrap.ike.outputs import Closed, Established
from tunnelwrap.ike.policy import (
    CertificateCredential,
    ConnectionPolicy,
    LocalAuthentication,
    PeerAuthentication,
)
from tunnelwrap.path import Carrier, Path
from tunnelwrap.wire.message import IkeHeader, Message, find_encrypted
from tunnelwrap.wire.payloads import Notify, Payload, UnknownPayload, VendorId

SIZE = 400
MOST = SIZE - 20 - 8 - 4  # octets of a message in an IPv4 datagram with marker

Filter = Callable[[str, IkeHeader, bytes], bool]


def chain(name: str, number: int) -> Entity:
    """A certificate under three intermediates."""
    issuer = authority()
    for level in range(3):
        issuer = authority(f"Intermediate {level}", number=200 + level, issuer=issuer)
    return entity(f"CN={name}", issuer, number=number, sans=[name])


def certified(policy: ConnectionPolicy, name: str, peer: str, number: int) -> ConnectionPolicy:
    own = chain(name, number)
    credential = CertificateCredential(own.chain, own.key)
    trust = TrustStore([authority().certificate])
    return replace(
        quiet(policy),
        local=LocalAuthentication(Identity.parse(name), credential),
        peer=PeerAuthentication(IdentityPattern.parse(peer), None, trust),
        fragment_size=SIZE,
    )


def pair_of(wire: Wire | None = None, *, carrier: Carrier = Carrier.UDP, size: int = SIZE) -> Pair:
    i, r = certified(client(), CLIENT, GATEWAY, 1), certified(gateway(), GATEWAY, CLIENT, 2)
    i, r = replace(i, fragment_size=size), replace(r, fragment_size=size)
    return Pair(i, r, wire, carrier=carrier, wall_now=CERTIFIED)


def numbers(host: Host, exchange: int = ExchangeType.IKE_AUTH) -> list[tuple[int, int]]:
    """Number and total of each message of an exchange that a host has sent; (0, 0): whole."""
    found = []
    for datagram in host.sent:
        header = IkeHeader.decode(datagram.octets)
        if header.exchange == exchange:
            _, encrypted = find_encrypted(header, datagram.octets)
            place = encrypted.fragment if encrypted else None
            found.append((place.number, place.total) if place else (0, 0))
    return found


def all_of(total: int) -> list[tuple[int, int]]:
    return [(number, total) for number in range(1, total + 1)]


def longest(host: Host) -> int:
    return max(len(d.octets) for d in host.sent if d.octets[16] != PayloadType.SA)


def without_notify(payloads: list[Payload]) -> list[Payload]:
    notify = NotifyType.IKEV2_FRAGMENTATION_SUPPORTED
    return [p for p in payloads if not (isinstance(p, Notify) and p.notify == notify)]


@pytest.mark.rfc("7383", "2.5")
def test_long_messages_go_in_fragments_both_ways() -> None:
    pair = pair_of()
    pair.connect()
    assert pair.agreed()
    for host in (pair.i, pair.r):
        sent = numbers(host)
        assert len(sent) > 3
        assert sent == all_of(len(sent))
        assert longest(host) <= MOST
    assert "fragments" in pair.i.text()


@pytest.mark.rfc("7383", "2.3")
def test_both_say_in_ike_sa_init_that_they_know_fragments() -> None:
    pair = pair_of()
    pair.connect()
    for host in (pair.i, pair.r):
        notify = clear(host.sent[0].octets).notify(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED)
        assert notify == Notify.of(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED)


@pytest.mark.rfc("7383", "2.3")
def test_to_a_peer_that_does_not_say_so_all_is_sent_whole() -> None:
    peer = ScriptedInitiator(client(), replace(gateway(), fragment_size=200))
    peer.connect(change_init=without_notify)
    first = clear(peer.sent[0])
    assert first.notify(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED) is None
    assert max(map(len, peer.sent[1:])) > 200
    assert {octets[16] for octets in peer.sent[1:]} == {PayloadType.SK}
    split = peer.sa.agreed[2].seal_within(long_request(peer), MOST)
    assert [peer.deliver(octets) for octets in split] == [[]] * len(split)
    assert peer.endpoint.counters["dropped_fragment"] == len(split)


@pytest.mark.rfc("7383", "2.4")
def test_short_messages_are_not_split() -> None:
    pair = pair_of()
    pair.connect()
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.close(sa, "done", now))
    pair.run(1.0)
    assert numbers(pair.i, ExchangeType.INFORMATIONAL) == [(0, 0)]


@pytest.mark.rfc("7383", "2.2")
def test_ike_sa_init_is_never_split() -> None:
    pair = pair_of(size=200)
    pair.connect()
    assert pair.agreed()
    assert len(pair.i.sent[0].octets) > 200
    assert pair.i.sent[0].octets[16] == PayloadType.SA


@pytest.mark.rfc("9329", "7.5")
@pytest.mark.parametrize("carrier", [Carrier.TCP, Carrier.TLS])
def test_x4_no_fragment_is_sent_on_a_stream(carrier: Carrier) -> None:
    pair = pair_of(carrier=carrier)
    pair.connect()
    assert pair.agreed()
    assert numbers(pair.i) == numbers(pair.r) == [(0, 0)]


@pytest.mark.rfc("9329", "7.5")
def test_x4_fragments_on_a_stream_are_accepted() -> None:
    peer = ScriptedInitiator(client(), gateway())
    peer.arrival = Path(peer.arrival.local, peer.arrival.peer, Carrier.TCP, id=1)
    peer.connect()
    split = peer.sa.agreed[2].seal_within(long_request(peer), MOST)
    assert len(split) > 2
    answers = [peer.deliver(octets) for octets in split]
    assert [len(answer) for answer in answers] == [0] * (len(split) - 1) + [1]


@pytest.mark.rfc("9329", "7.5")
def test_x5_fragmentation_is_agreed_on_a_stream_for_a_later_move_to_udp() -> None:
    pair = pair_of(carrier=Carrier.TCP)
    pair.connect()
    for host in (pair.i, pair.r):
        message = clear(host.sent[0].octets)
        assert message.notify(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED) is not None


@pytest.mark.rfc("9329", "7.5")
def test_x4_a_request_that_moves_from_udp_to_a_stream_becomes_whole() -> None:
    pair = pair_of(Wire(filter=only(ExchangeType.IKE_SA_INIT)))
    pair.connect(until=0.3)
    assert len(numbers(pair.i)) > 3
    pair.wire.filter = None
    path = Path(address("192.0.2.1", 50001), pair.path.peer, Carrier.TCP, id=1)
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.path_up(sa, path, now))
    pair.run(2.0)
    assert numbers(pair.i)[-1] == (0, 0)
    assert pair.agreed()


@pytest.mark.rfc("9329", "7.5")
def test_x4_a_response_that_was_split_on_udp_comes_whole_by_a_stream() -> None:
    pair = pair_of()
    pair.wire.filter = lambda sender, header, octets: (
        sender == "i" or header.exchange == ExchangeType.IKE_SA_INIT
    )
    pair.connect(until=0.3)
    assert len(numbers(pair.r)) > 3
    pair.wire.filter = None
    path = Path(address("192.0.2.1", 50001), pair.path.peer, Carrier.TCP, id=1)
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.path_up(sa, path, now))
    pair.run(2.0)
    assert numbers(pair.r)[-1] == (0, 0)
    assert pair.agreed()


@pytest.mark.rfc("9329", "7.5")
def test_x4_fragments_that_come_again_on_a_stream_bring_a_whole_response() -> None:
    peer = ScriptedInitiator(client(), gateway())
    peer.arrival = Path(peer.arrival.local, peer.arrival.peer, Carrier.TCP, id=1)
    peer.init()
    message = peer.sa.message(ExchangeType.IKE_AUTH, 1, IkeAuth().request(peer.sa, 0.0) or ())
    split = peer.sa.agreed[2].seal_within(message, 120)
    answers = [peer.deliver(octets) for octets in (*split, split[0])]
    assert answers[-2] == answers[-1]
    assert [octets[16] for octets in answers[-1]] == [PayloadType.SK]


def only(exchange: int) -> Filter:
    return lambda sender, header, octets: header.exchange == exchange


def narrow(senders: str) -> Filter:
    """Loses what is longer than 800 octets."""
    return lambda sender, header, octets: sender not in senders or len(octets) <= 800


@pytest.mark.parametrize("seed", range(6))
def test_a_bad_network_only_slows_it_down(seed: int) -> None:
    """Loss, repetition and disorder among the fragments; every repetition has all of them."""
    pair = pair_of(Wire(delay=0.05, jitter=0.3, loss=0.15, duplication=0.3, seed=seed))
    pair.connect(until=120.0)
    assert pair.i.fact(Established) is not None
    assert pair.agreed()
    assert len(pair.i.plane.installed) == 1


@pytest.mark.rfc("7383", "2.6")
@pytest.mark.parametrize("sender", ["i", "r"])
def test_a_lost_fragment_is_made_good_by_the_next_repetition(sender: str) -> None:
    lost: list[bytes] = []

    def lose_second(who: str, header: IkeHeader, octets: bytes) -> bool:
        is_second = octets[16] == PayloadType.SKF and octets[33] == 2
        if who == sender and is_second and not lost:
            lost.append(octets)
            return False
        return True

    pair = pair_of(Wire(filter=lose_second))
    pair.connect()
    assert pair.agreed()
    sent = numbers(pair.i if sender == "i" else pair.r)
    total = sent[0][1]
    assert sent == all_of(total) * 2
    octets = [d.octets for d in (pair.i if sender == "i" else pair.r).sent[1 : 1 + 2 * total]]
    assert octets[:total] == octets[total:], "octet for octet"


@pytest.mark.rfc("7383", "2.6.1")
def test_only_the_first_fragment_of_a_repeated_request_brings_the_response_again() -> None:
    pair = pair_of()
    pair.connect()
    request = [d.octets for d in pair.i.sent if d.octets[16] == PayloadType.SKF]
    response = [d.octets for d in pair.r.sent if d.octets[16] == PayloadType.SKF]
    for number, octets in enumerate(request, 1):
        before = len(pair.r.sent)
        pair.inject(pair.r, octets)
        again = [datagram.octets for datagram in pair.r.sent[before:]]
        assert again == (response if number == 1 else [])


@pytest.mark.rfc("7383", "2.6.1")
def test_a_forged_first_fragment_brings_nothing() -> None:
    pair = pair_of()
    pair.connect()
    first = next(d.octets for d in pair.i.sent if d.octets[16] == PayloadType.SKF)
    before = len(pair.r.sent)
    pair.inject(pair.r, first[:-1] + bytes([first[-1] ^ 1]))
    assert len(pair.r.sent) == before
    assert pair.r.endpoint.counters["dropped_integrity"] == 1


@pytest.mark.rfc("7383", "2.5.2")
def test_where_large_fragments_are_lost_smaller_ones_are_tried() -> None:
    pair = pair_of(Wire(filter=narrow("ir")), size=1280)
    pair.connect(until=30.0)
    assert pair.agreed()
    totals = [total for _, total in numbers(pair.i)]
    assert totals == sorted(totals), "the total only grows"
    assert len(set(totals)) == 2
    assert max(len(d.octets) for d in pair.r.sent[1:]) <= 800, "the response is no larger"
    assert pair.i.endpoint.counters["retransmitted"] == 3


@pytest.mark.rfc("7383", "2.5.2")
def test_where_only_the_response_is_lost_it_is_split_anew_too() -> None:
    pair = pair_of(Wire(filter=narrow("r")), size=1280)
    pair.connect(until=30.0)
    assert pair.agreed()
    assert len({total for _, total in numbers(pair.r)}) == 2
    assert len(pair.r.plane.installed) == 1


@pytest.mark.rfc("7383", "4")
@pytest.mark.rfc("7383", "2.5.2")
def test_smaller_fragments_have_all_their_chances_and_then_it_is_over() -> None:
    pair = pair_of(Wire(filter=only(ExchangeType.IKE_SA_INIT)), size=1280)
    pair.connect(until=300.0)
    closed = pair.i.fact(Closed)
    assert closed is not None
    assert "no answer" in closed.reason
    large, small = (
        [number for number, total in numbers(pair.i) if total == each]
        for each in sorted({total for _, total in numbers(pair.i)})
    )
    tries = pair.policy.retransmission.tries
    assert large.count(1) == 3
    assert small.count(1) == 1 + tries


@pytest.mark.rfc("7383", "2.6")
def test_an_incomplete_request_is_forgotten_after_a_while() -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    peer.connect()
    request = long_request(peer)
    (first, *rest) = peer.sa.agreed[2].seal_within(request, MOST)
    assert peer.deliver(first) == []
    peer.wait(REASSEMBLY_S + 1)
    assert [peer.deliver(octets) for octets in rest] == [[]] * len(rest)
    assert len(peer.deliver(first)) == 1, "it completes those that have come since"


@pytest.mark.rfc("7383", "2.6")
def test_fragments_outside_of_the_window_are_dropped() -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    peer.connect()
    peer.next_id += 3
    split = peer.sa.agreed[2].seal_within(long_request(peer), MOST)
    assert [peer.deliver(octets) for octets in split] == [[]] * len(split)
    assert peer.endpoint.counters["dropped_fragment"] == len(split)


@pytest.mark.rfc("7296", "3.10.1")
def test_a_request_that_breaks_the_syntax_is_answered_once_it_is_complete() -> None:
    """Authentic in each fragment, and nonsense as a whole: INVALID_SYNTAX ends the IKE SA."""
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    peer.connect()
    request = replace(
        long_request(peer),
        payloads=(
            VendorId(bytes(600)),
            UnknownPayload(PayloadType.DELETE, bytes.fromhex("03040009")),
        ),
    )
    answers = [peer.deliver(octets) for octets in peer.sa.agreed[2].seal_within(request, MOST)]
    (answer,) = answers[-1]
    assert peer.open(answer).notify(NotifyType.INVALID_SYNTAX) is not None
    assert peer.fact(Closed) is not None


def test_a_rekeyed_ike_sa_still_knows_fragments() -> None:
    pair = pair_of()
    pair.connect()
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(2.0)
    many = replace(pair.policy.child, ts_local=pair.policy.child.ts_local * 20)
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.create_child(sa, many, now))
    pair.run(2.0)
    assert (1, 2) in numbers(pair.i, ExchangeType.CREATE_CHILD_SA)
    assert pair.agreed()


def long_request(peer: ScriptedInitiator) -> Message:
    payloads = [VendorId(bytes(500)), VendorId(bytes(500))]
    return peer.sa.message(ExchangeType.INFORMATIONAL, peer.next_id, payloads)
