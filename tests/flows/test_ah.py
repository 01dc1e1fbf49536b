"""AH: authentic packets that everybody may read, bare on the wire. RFC 4302, RFC 7296 §3.3."""

from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator
from tests.kit.pair import Pair, Wire, address
from tests.kit.policies import client, gateway, quiet
from tunnelwrap.config.suites import parse_ah
from tunnelwrap.crypto.suite import AhSuite
from tunnelwrap.iana import ExchangeType, Integ, KeMethod, NotifyType, ProtocolId
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.outputs import ChildRefused, Closed, Established, InstallChildSa, RemoveChildSa
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.path import Carrier, Path
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Delete, Nonce, Notify, Payload

LOW = Path(address("192.0.2.1", 500), address("198.51.100.1", 500), Carrier.UDP, has_marker=False)
HIGH = Path(address("192.0.2.1"), address("198.51.100.1"), Carrier.UDP)


def with_ah(policy: ConnectionPolicy, suite: str = "sha256") -> ConnectionPolicy:
    child = replace(policy.child, proposals=(parse_ah(suite),))
    return quiet(replace(policy, child=child))


def connected(suite: str = "sha256") -> Pair:
    pair = Pair(with_ah(client(), suite), with_ah(gateway(), suite))
    pair.connect()
    assert pair.agreed()
    return pair


def both(pair: Pair) -> tuple[ChildSa, ChildSa]:
    ours, theirs = pair.i.plane.sending, pair.r.plane.sending
    assert ours is not None
    assert theirs is not None
    return ours, theirs


@pytest.mark.rfc("7296", "3.3.3")
@pytest.mark.rfc("7296", "2.17")
@pytest.mark.parametrize(
    ("suite", "integ", "length"),
    [
        ("sha1", Integ.HMAC_SHA1_96, 20),
        ("aesxcbc", Integ.AES_XCBC_96, 16),
        ("sha256", Integ.HMAC_SHA2_256_128, 32),
        ("sha512", Integ.HMAC_SHA2_512_256, 64),
    ],
)
def test_the_first_child_sa_has_keys_for_integrity_alone(
    suite: str, integ: int, length: int
) -> None:
    ours, theirs = both(connected(suite))

    assert ours.suite == theirs.suite == AhSuite(integ, None, uses_esn=True)
    assert ours.protocol == ProtocolId.AH
    assert (ours.keys_out, ours.keys_in) == (theirs.keys_in, theirs.keys_out)
    assert ours.keys_in != ours.keys_out
    for keys in (ours.keys_in, ours.keys_out):
        assert (len(keys.encryption), len(keys.integrity)) == (0, length)


@pytest.mark.parametrize("who", ["i", "r"])
def test_a_further_one_with_a_key_exchange_of_its_own(who: str) -> None:
    pair = connected("sha256-x25519")
    asker = getattr(pair, who)
    policy = (pair.policy if who == "i" else pair.responder).child

    pair.do(asker, lambda e, sa, now: e.create_child(sa, policy, now))
    pair.run(2.0)

    assert pair.agreed()
    assert both(pair)[0].suite == AhSuite(Integ.HMAC_SHA2_256_128, KeMethod.CURVE25519, True)
    assert len(pair.i.plane.installed) == 2


@pytest.mark.rfc("7296", "1.3.3")
@pytest.mark.parametrize("who", ["i", "r"])
def test_it_is_rekeyed(who: str) -> None:
    pair = connected()
    host = getattr(pair, who)
    [spi] = host.plane.installed

    pair.do(host, lambda e, sa, now: e.limit_reached(sa, spi, now, is_hard=False))
    pair.run(20.0)

    assert pair.agreed()
    assert spi not in host.plane.installed
    assert len(host.plane.installed) == 1
    assert both(pair)[0].protocol == ProtocolId.AH


@pytest.mark.parametrize("who", ["i", "r"])
def test_it_is_deleted(who: str) -> None:
    pair = connected()
    host = getattr(pair, who)
    [spi] = host.plane.installed

    pair.do(host, lambda e, sa, now: e.limit_reached(sa, spi, now, is_hard=True))
    pair.run(5.0)

    assert not pair.i.plane.installed
    assert not pair.r.plane.installed


def test_esp_and_ah_do_not_go_together() -> None:
    pair = Pair(with_ah(client()), quiet(gateway()), forces_encapsulation=False)
    pair.connect()

    refused = pair.r.fact(ChildRefused)
    assert refused is not None
    assert "AH:" in refused.reason
    assert "NO_PROPOSAL_CHOSEN" in refused.reason
    assert pair.i.fact(Established) is not None


# --- message by message -----------------------------------------------------------------------


def scripted() -> tuple[ScriptedInitiator, ChildSa]:
    peer = ScriptedInitiator(with_ah(client()), with_ah(gateway()))
    peer.connect()
    install = peer.fact(InstallChildSa)
    assert install is not None
    return peer, install.child


def request_at_limit(peer: ScriptedInitiator, child: ChildSa, *, is_hard: bool) -> Message:
    established = peer.fact(Established)
    assert established is not None
    peer.endpoint.limit_reached(established.sa, child.spi_in, peer.now, is_hard=is_hard)
    (request,) = peer.drain()
    return peer.open(request)


@pytest.mark.rfc("7296", "3.11")
def test_a_delete_says_ah() -> None:
    peer, child = scripted()

    delete = request_at_limit(peer, child, is_hard=True).find(Delete)

    assert delete == Delete(ProtocolId.AH, (child.spi_in.to_bytes(4, "big"),))


@pytest.mark.rfc("7296", "3.10")
def test_a_rekey_says_ah() -> None:
    peer, child = scripted()

    notify = request_at_limit(peer, child, is_hard=False).notify(NotifyType.REKEY_SA)

    assert notify is not None
    assert (notify.protocol, notify.spi) == (ProtocolId.AH, child.spi_in.to_bytes(4, "big"))


@pytest.mark.rfc("4302", "2.4")
@pytest.mark.rfc("7296", "3.11")
def test_an_spi_of_esp_is_another_one() -> None:
    peer, child = scripted()
    spi = child.spi_out.to_bytes(4, "big")

    nothing = peer.ask(ExchangeType.INFORMATIONAL, Delete(ProtocolId.ESP, (spi,)))
    assert nothing is not None
    assert nothing.payloads == ()
    assert peer.fact(RemoveChildSa) is None

    answer = peer.ask(ExchangeType.INFORMATIONAL, Delete(ProtocolId.AH, (spi,)))
    assert answer is not None
    assert answer.find(Delete) == Delete(ProtocolId.AH, (child.spi_in.to_bytes(4, "big"),))
    assert peer.fact(RemoveChildSa) is not None


@pytest.mark.rfc("7296", "2.25")
def test_what_is_not_there_to_be_rekeyed_is_named_with_its_protocol() -> None:
    peer, child = scripted()
    spi = child.spi_out.to_bytes(4, "big")
    rekey = Notify.of(NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=spi)

    offer = [Nonce(bytes(32)), *peer.ike_auth_payloads()[-3:]]
    response = peer.ask(ExchangeType.CREATE_CHILD_SA, rekey, *offer)

    assert response is not None
    refusal = response.notify(NotifyType.CHILD_SA_NOT_FOUND)
    assert refusal is not None
    assert (refusal.protocol, refusal.spi) == (ProtocolId.ESP, spi)


# --- where it cannot go -----------------------------------------------------------------------


@pytest.mark.rfc("7296", "2.23")
def test_no_nat_is_feigned_and_nothing_floats_to_4500() -> None:
    pair = Pair(with_ah(client()), [gateway(), with_ah(gateway())], forces_encapsulation=True)
    pair.initiate(floats_to=HIGH, path=LOW)
    pair.run(5.0)

    established, theirs = pair.i.fact(Established), pair.r.fact(Established)
    assert established is not None
    assert theirs is not None
    assert established.path == LOW
    assert not any((established.behind_nat, established.peer_behind_nat))
    assert not any((theirs.behind_nat, theirs.peer_behind_nat))


@pytest.mark.rfc("7296", "2.23")
def test_behind_a_nat_we_do_not_ask_for_it() -> None:
    nat = Wire(nat=address("203.0.113.9", 1024))
    pair = Pair(with_ah(client()), with_ah(gateway()), nat)
    pair.connect()

    closed = pair.i.fact(Closed)
    assert closed is not None
    assert closed.reason == "AH does not pass a NAT, and we are behind one"
    assert closed.notify == NotifyType.NO_PROPOSAL_CHOSEN
    assert pair.r.fact(Established) is None


def seems_to_be_elsewhere(payloads: list[Payload]) -> list[Payload]:
    feigned = Notify.of(NotifyType.NAT_DETECTION_SOURCE_IP, bytes(20))
    return [
        feigned if isinstance(p, Notify) and p.notify == feigned.notify else p for p in payloads
    ]


@pytest.mark.rfc("7296", "2.23")
def test_who_is_behind_a_nat_does_not_get_it() -> None:
    peer = ScriptedInitiator(with_ah(client()), with_ah(gateway()))
    response = peer.connect(change_init=seems_to_be_elsewhere)

    assert response is not None
    assert response.notify(NotifyType.NO_PROPOSAL_CHOSEN) is not None
    refused = peer.fact(ChildRefused)
    assert refused is not None
    assert "AH does not pass a NAT, and the peer is behind one" in refused.reason


@pytest.mark.rfc("9329", "3")
def test_a10_nobody_gets_it_by_a_stream() -> None:
    peer = ScriptedInitiator(with_ah(client()), with_ah(gateway()))
    peer.arrival = replace(peer.arrival, carrier=Carrier.TCP)
    response = peer.connect()

    assert response is not None
    assert response.notify(NotifyType.NO_PROPOSAL_CHOSEN) is not None
    refused = peer.fact(ChildRefused)
    assert refused is not None
    assert "AH cannot be carried by tcp" in refused.reason


@pytest.mark.rfc("9329", "3")
def test_a10_nor_do_we_ask_for_it_there() -> None:
    pair = Pair(with_ah(client()), with_ah(gateway()), carrier=Carrier.TCP)
    pair.connect(until=1.0)

    closed = pair.i.fact(Closed)
    assert closed is not None
    assert closed.reason == "AH cannot be carried by tcp"
    assert pair.r.fact(Established) is None
