"""NAT on UDP: detection, the float to port 4500, mappings that change. RFC 7296 §2.23."""

from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator
from tests.kit.pair import Pair, Wire, address
from tests.kit.policies import client, gateway, quiet, selectors
from tunnelwrap.iana import ExchangeType
from tunnelwrap.ike.child_sa import Mode
from tunnelwrap.ike.outputs import Closed, Established
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.path import Carrier, Path, SocketAddress
from tunnelwrap.wire.message import IkeHeader

FIRST, SECOND = address("203.0.113.9", 1024), address("203.0.113.10", 2048)


def behind_nat() -> Pair:
    client_policy = replace(quiet(client()), liveness_s=30.0)
    pair = Pair(client_policy, quiet(gateway()), Wire(nat=FIRST))
    pair.connect()
    assert pair.agreed()
    return pair


def reached(pair: Pair) -> object:
    assert pair.r.plane.sending is not None
    return pair.r.plane.sending.path.peer


@pytest.mark.rfc("7296", "2.23")
def test_nat_is_seen_and_the_path_floats_to_4500() -> None:
    inner, outer = address("192.0.2.1", 500), address("203.0.113.9", 1024)
    low = Path(inner, address("198.51.100.1", 500), Carrier.UDP, has_marker=False)
    high = Path(address("192.0.2.1", 4500), address("198.51.100.1", 4500), Carrier.UDP)
    pair = Pair(client(), gateway(), Wire(nat=outer))
    pair.initiate(floats_to=high, path=low)
    pair.run(5.0)
    ours, theirs = pair.i.fact(Established), pair.r.fact(Established)
    assert ours is not None
    assert theirs is not None
    assert ours.behind_nat
    assert theirs.peer_behind_nat
    assert ours.path == high
    assert [d.path.local.port for d in pair.i.sent] == [500, 4500]


@pytest.mark.rfc("7296", "2.23")
def test_a_new_mapping_is_followed_with_the_next_message() -> None:
    pair = behind_nat()
    assert reached(pair) == FIRST
    pair.wire.nat = SECOND
    pair.run(40.0)
    assert reached(pair) == SECOND
    pair.do(pair.r, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(5.0)
    assert pair.agreed()


def test_a_request_of_the_responder_reaches_the_new_mapping_once_it_is_known() -> None:
    pair = behind_nat()
    pair.wire.nat = SECOND
    pair.do(pair.r, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(60.0)
    assert pair.r.fact(Closed) is None
    assert reached(pair) == SECOND
    assert pair.agreed()


def test_a_replayed_message_moves_nobody() -> None:
    pair = behind_nat()
    pair.run(40.0)
    replayed = pair.i.sent[-1]
    assert IkeHeader.decode(replayed.octets).exchange == ExchangeType.INFORMATIONAL
    elsewhere = Path(pair.path.peer, address("203.0.113.66"), Carrier.UDP)
    pair.inject(pair.r, replayed.octets, elsewhere)
    assert pair.r.sent[-1].path == elsewhere, "it is answered where it came from"
    assert reached(pair) == FIRST


def test_nor_does_one_that_is_forged() -> None:
    pair = behind_nat()
    pair.wire.filter = lambda sender, header, octets: False
    pair.run(40.0)
    forged = bytearray(pair.i.sent[-1].octets)
    forged[-1] ^= 1
    pair.inject(pair.r, bytes(forged), Path(pair.path.peer, SECOND, Carrier.UDP))
    assert reached(pair) == FIRST


def test_the_initiator_follows_nobody() -> None:
    pair = behind_nat()
    pair.wire.filter = lambda sender, header, octets: False
    pair.do(pair.r, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    elsewhere = Path(pair.path.local, address("203.0.113.66"), Carrier.UDP)
    pair.inject(pair.i, pair.r.sent[-1].octets, elsewhere)
    assert pair.i.plane.sending is not None
    assert pair.i.plane.sending.path == pair.path


def test_a_peer_without_nat_stays_where_it_is() -> None:
    """Its address can only change by its own word (MOBIKE), or somebody plays tricks."""
    peer = ScriptedInitiator(client(), gateway())
    peer.sa.context.forces_encapsulation = False  # its NAT detection tells the truth
    peer.connect()
    established = peer.fact(Established)
    assert established is not None
    assert not established.peer_behind_nat
    peer.arrival = Path(peer.arrival.local, SECOND, Carrier.UDP)
    assert peer.ask(ExchangeType.INFORMATIONAL) is not None
    peer.endpoint.rekey(established.sa, peer.now)
    outputs = peer.endpoint.outputs()
    paths = [o.datagram.path for o in outputs if hasattr(o, "datagram")]
    assert paths == [established.path]


@pytest.mark.parametrize("esp_only", [True, False])
def test_without_forced_encapsulation_only_a_nat_moves_the_path_to_4500(esp_only: bool) -> None:  # noqa: FBT001 (a column)
    low = Path(
        address("192.0.2.1", 500), address("198.51.100.1", 500), Carrier.UDP, has_marker=False
    )
    high = Path(address("192.0.2.1"), address("198.51.100.1"), Carrier.UDP)
    pair = Pair(client(), gateway(), forces_encapsulation=esp_only)
    pair.initiate(floats_to=high, path=low)
    pair.run(2.0)
    established = pair.i.fact(Established)
    assert established is not None
    assert established.path == (high if esp_only else low)


@pytest.mark.rfc("7296", "2.23")
def test_authentic_esp_moves_a_peer_behind_a_nat_as_its_messages_do() -> None:
    pair = behind_nat()
    elsewhere = Path(pair.path.peer, SECOND, Carrier.UDP)
    pair.do(pair.r, lambda endpoint, sa, now: endpoint.esp_from(sa, elsewhere, now))
    assert reached(pair) == SECOND


@pytest.mark.rfc("9329", "5")
def test_a8_esp_by_udp_does_not_move_an_ike_sa_off_its_stream() -> None:
    pair = Pair(client(), gateway(), carrier=Carrier.TCP)
    pair.connect(until=1.0)
    elsewhere = Path(pair.path.peer, SECOND, Carrier.UDP)
    pair.do(pair.r, lambda endpoint, sa, now: endpoint.esp_from(sa, elsewhere, now))
    assert reached(pair) == pair.path.local


@pytest.mark.rfc("9329", "6.1")
def test_c11_esp_alone_can_resume_a_session_on_a_new_stream() -> None:
    pair = Pair(client(), gateway(), carrier=Carrier.TCP)
    pair.connect(until=1.0)
    elsewhere = Path(pair.path.peer, SECOND, Carrier.TCP, id=7)
    pair.do(pair.r, lambda endpoint, sa, now: endpoint.esp_from(sa, elsewhere, now))
    assert reached(pair) == SECOND


# --- transport mode ---------------------------------------------------------------------------


def in_transport(policy: ConnectionPolicy) -> ConnectionPolicy:
    child = replace(policy.child, mode=Mode.TRANSPORT, ts_local=(), ts_peer=())
    return replace(quiet(policy), child=child)


@pytest.mark.rfc("7296", "2.23.1")
@pytest.mark.parametrize("rekeyer", ["none", "i", "r"])
def test_each_side_has_transport_mode_between_the_addresses_that_it_sees(rekeyer: str) -> None:
    pair = Pair(in_transport(client()), in_transport(gateway()), Wire(nat=FIRST))
    pair.connect()
    if rekeyer != "none":
        host, sa = (pair.i, pair.sa_i) if rekeyer == "i" else (pair.r, pair.sa_r)
        [spi] = host.plane.installed
        host.endpoint.limit_reached(sa, spi, pair.now, is_hard=False)
        pair.drain(host)
        pair.run(20.0)
    [ours] = pair.i.plane.installed.values()
    [theirs] = pair.r.plane.installed.values()
    assert ours.mode is theirs.mode is Mode.TRANSPORT
    assert (ours.ts_local, ours.ts_peer) == selectors_between(pair.path.local, pair.path.peer)
    assert (theirs.ts_local, theirs.ts_peer) == selectors_between(pair.path.peer, FIRST)


def selectors_between(local: SocketAddress, peer: SocketAddress) -> tuple[object, object]:
    return selectors(str(local.ip)), selectors(str(peer.ip))
