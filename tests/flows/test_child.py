"""Child SAs: proposals, selectors, PFS, further ones by CREATE_CHILD_SA, lifetimes and limits."""

from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator
from tests.kit.pair import Pair, Wire
from tests.kit.policies import client, gateway, quiet, selectors
from tunnelwrap.config.suites import parse_esp
from tunnelwrap.errors import UsageError
from tunnelwrap.iana import ExchangeType, NotifyType
from tunnelwrap.ike.child_sa import Mode
from tunnelwrap.ike.outputs import (
    ChildRefused,
    Closed,
    Established,
    InstallChildSa,
    RemoveChildSa,
    Trace,
)
from tunnelwrap.ike.policy import ChildLifetime, ChildPolicy, ConnectionPolicy
from tunnelwrap.path import Carrier
from tunnelwrap.wire.message import IkeHeader
from tunnelwrap.wire.payloads import KeyExchange, Notify

FURTHER = replace(
    client().child,
    name="further",
    ts_local=selectors("10.1.0.128/25"),
    ts_peer=selectors("10.2.0.128/25"),
)


def connected(esp: str = "aes128gcm16", wire: Wire | None = None) -> Pair:
    pair = Pair(quiet(client(esp=esp)), quiet(gateway(esp=esp)), wire)
    pair.connect()
    assert pair.agreed()
    return pair


def with_child(policy: ConnectionPolicy, **changes: object) -> ConnectionPolicy:
    return replace(policy, child=replace(policy.child, **changes))


def create(pair: Pair, policy: ChildPolicy = FURTHER, who: str = "i") -> None:
    pair.do(getattr(pair, who), lambda e, sa, now: e.create_child(sa, policy, now))


# --- the first one ----------------------------------------------------------------------------


def test_without_common_esp_proposal_there_is_an_ike_sa_without_child_sa() -> None:
    pair = Pair(client(esp="aes128gcm16"), gateway(esp="aes256-sha256"))
    pair.connect()
    ours, theirs = pair.i.fact(ChildRefused), pair.r.fact(ChildRefused)
    assert ours is not None
    assert theirs is not None
    assert "NO_PROPOSAL_CHOSEN" in ours.reason
    assert "AES_GCM_16" in ours.reason, "what we offered"
    assert "client@example.org at udp 192.0.2.1:4500" in theirs.reason
    for word in ("AES_GCM_16", "AES_CBC", "nearest"):
        assert word in theirs.reason
    assert not pair.i.plane.installed
    assert pair.i.fact(Established) is not None


@pytest.mark.rfc("7296", "2.9")
@pytest.mark.parametrize(
    ("offered", "allowed", "agreed"),
    [
        (["10.0.0.0/8"], ["10.2.0.0/24"], ["10.2.0.0/24"]),
        (["10.2.0.0/25"], ["10.2.0.0/24"], ["10.2.0.0/25"]),
        (["10.2.0.0/24", "10.9.0.0/24"], ["10.2.0.0/16"], ["10.2.0.0/24"]),
        (["10.0.0.0/8"], ["10.2.0.0/24", "10.3.0.0/24"], ["10.2.0.0/24", "10.3.0.0/24"]),
        (["0.0.0.0/0", "::/0"], ["fd02::/64", "10.2.0.0/24"], ["10.2.0.0/24", "fd02::/64"]),
    ],
)
def test_selectors_are_narrowed_to_what_both_allow(
    offered: list[str], allowed: list[str], agreed: list[str]
) -> None:
    pair = Pair(
        with_child(client(), ts_peer=selectors(*offered)),
        with_child(gateway(), ts_local=selectors(*allowed)),
    )
    pair.connect()
    assert pair.i.plane.sending is not None
    assert pair.i.plane.sending.ts_peer == selectors(*agreed)
    assert pair.r.plane.sending is not None
    assert pair.r.plane.sending.ts_local == selectors(*agreed)
    assert pair.agreed()


@pytest.mark.rfc("7296", "2.9")
def test_disjoint_selectors_are_unacceptable_and_named_on_both_sides() -> None:
    pair = Pair(with_child(client(), ts_peer=selectors("172.16.0.0/16")), gateway())
    pair.connect()
    ours, theirs = pair.i.fact(ChildRefused), pair.r.fact(ChildRefused)
    assert ours is not None
    assert theirs is not None
    assert "TS_UNACCEPTABLE" in ours.reason
    assert "172.16.0.0/16" in ours.reason
    assert "offered 172.16.0.0/16, allowed 10.2.0.0/24" in theirs.reason


@pytest.mark.rfc("7296", "1.1.2")
@pytest.mark.rfc("7296", "1.3.1")
@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        (Mode.TRANSPORT, Mode.TRANSPORT, Mode.TRANSPORT),
        (Mode.TRANSPORT, Mode.TUNNEL, Mode.TUNNEL),
        (Mode.TUNNEL, Mode.TRANSPORT, Mode.TUNNEL),
    ],
)
def test_transport_mode_needs_both(ours: Mode, theirs: Mode, agreed: Mode) -> None:
    pair = Pair(with_child(client(), mode=ours), with_child(gateway(), mode=theirs))
    pair.connect()
    assert pair.i.plane.sending is not None
    assert pair.r.plane.sending is not None
    assert pair.i.plane.sending.mode is pair.r.plane.sending.mode is agreed


def test_dynamic_selectors_without_lease_are_the_addresses_of_the_path() -> None:
    pair = Pair(
        with_child(client(), ts_local=(), ts_peer=()),
        with_child(gateway(), ts_local=(), ts_peer=()),
    )
    pair.connect()
    assert pair.i.plane.sending is not None
    assert pair.i.plane.sending.ts_local == selectors("192.0.2.1/32")
    assert pair.i.plane.sending.ts_peer == selectors("198.51.100.1/32")
    assert pair.agreed()


# --- further ones -----------------------------------------------------------------------------


@pytest.mark.rfc("7296", "1.3.1")
@pytest.mark.parametrize("esp", ["aes128gcm16", "aes128gcm16-x25519"])
def test_a_further_child_sa_is_made_by_create_child_sa(esp: str) -> None:
    pair = connected(esp)
    create(pair, replace(FURTHER, proposals=(parse_esp(esp),)))
    pair.run(1.0)
    assert len(pair.i.plane.installed) == 2
    assert pair.agreed()
    new = pair.i.plane.sending
    assert new is not None
    assert new.name == "further"
    assert new.ts_peer == selectors("10.2.0.128/25")
    theirs = pair.r.plane.installed[new.spi_out]
    assert (theirs.keys_in, theirs.keys_out) == (new.keys_out, new.keys_in)


def test_the_responder_makes_one_too() -> None:
    pair = connected()
    policy = replace(FURTHER, ts_local=selectors("10.2.0.0/26"), ts_peer=selectors("10.1.0.0/26"))
    create(pair, policy, who="r")
    pair.run(1.0)
    assert len(pair.r.plane.installed) == 2
    assert pair.agreed()


@pytest.mark.rfc("7296", "1.3")
def test_another_key_exchange_method_is_asked_for_and_given() -> None:
    pair = Pair(
        quiet(client(esp="aes128gcm16-x25519-ecp256")), quiet(gateway(esp="aes128gcm16-ecp256"))
    )
    pair.connect()
    create(pair, pair.policy.child)
    pair.run(1.0)
    assert len(pair.i.plane.installed) == 2
    assert pair.agreed()
    heads = [IkeHeader.decode(d.octets) for d in pair.i.sent]
    assert [h.message_id for h in heads if h.exchange == ExchangeType.CREATE_CHILD_SA] == [2, 3]


def test_a_method_that_we_do_not_have_is_a_refusal() -> None:
    pair = Pair(quiet(client()), quiet(gateway(esp="aes128gcm16-ecp256")))
    pair.connect()
    create(pair)
    pair.run(1.0)
    refused = pair.i.fact(ChildRefused)
    assert refused is not None
    assert "NO_PROPOSAL_CHOSEN" in refused.reason


def test_a_refusal_leaves_the_ike_sa_and_both_logs_name_it() -> None:
    pair = connected()
    create(pair, replace(FURTHER, ts_peer=selectors("172.16.0.0/16")))
    pair.run(1.0)
    refused = pair.i.fact(ChildRefused)
    assert refused is not None
    assert "TS_UNACCEPTABLE" in refused.reason
    (line,) = [t for t in pair.r.traces if t.level == "warning"]
    assert "client@example.org at udp 192.0.2.1:4500: refused CREATE_CHILD_SA" in line.text
    assert "172.16.0.0/16" in line.text
    assert pair.i.fact(Closed) is None


@pytest.mark.rfc("7296", "2.25")
def test_a_temporary_failure_is_tried_again_later() -> None:
    """Here the responder rekeys the IKE SA at the same moment."""
    pair = connected()
    create(pair)
    pair.do(pair.r, lambda endpoint, sa, now: endpoint.rekey(sa, now))
    pair.run(1.0)
    assert len(pair.i.plane.installed) == 1
    pair.run(20.0)
    assert len(pair.i.plane.installed) == 2
    assert pair.agreed()
    assert pair.i.fact(ChildRefused) is None


@pytest.mark.parametrize("seed", range(6))
def test_both_make_one_at_once(seed: int) -> None:
    pair = connected(wire=Wire(jitter=0.05, loss=0.2, duplication=0.2, seed=seed))
    create(pair, pair.policy.child)
    create(pair, quiet(gateway()).child, who="r")
    pair.run(60.0)
    assert len(pair.i.plane.installed) == 3
    assert pair.agreed()


def test_only_an_established_ike_sa_takes_a_wish() -> None:
    pair = connected()
    with pytest.raises(UsageError, match="no established IKE SA 99"):
        pair.i.endpoint.create_child(99, FURTHER, pair.now)
    with pytest.raises(UsageError):
        pair.i.endpoint.rekey(99, pair.now)


def test_what_comes_too_late_is_no_error() -> None:
    """The shell speaks of an IKE SA whose end it has not yet heard of."""
    pair = connected()
    for wish in (
        lambda e, sa, now: e.abandon(sa, "gone"),
        lambda e, sa, now: e.abandon(sa, "gone"),
        lambda e, sa, now: e.authenticate(sa, now),
        lambda e, sa, now: e.close(sa, "gone", now),
        lambda e, sa, now: e.limit_reached(sa, 1, now, is_hard=True),
        lambda e, sa, now: e.path_up(sa, pair.path, now),
    ):
        pair.do(pair.i, wish)
    assert pair.i.endpoint.next_timeout() is None


# --- lifetimes and limits ---------------------------------------------------------------------


def limited(lifetime: ChildLifetime, carrier: Carrier = Carrier.UDP) -> Pair:
    pair = Pair(quiet(client(), lifetime), quiet(gateway()), carrier=carrier)
    pair.connect()
    return pair


def spi(pair: Pair) -> int:
    assert pair.i.plane.sending is not None
    return pair.i.plane.sending.spi_in


@pytest.mark.rfc("7296", "2.8")
@pytest.mark.parametrize("carrier", [Carrier.UDP, Carrier.TCP])
def test_a_child_sa_is_rekeyed_in_time(carrier: Carrier) -> None:
    pair = limited(ChildLifetime(rekey_s=100.0, hard_s=150.0), carrier)
    seen = {spi(pair)}
    for _ in range(10):
        pair.run(100.0)
        seen.add(spi(pair))
    assert len(seen) >= 10
    assert pair.i.fact(Closed) is None
    assert "use" not in pair.i.plane.history, "its own successor is used at once"


def test_a_child_sa_that_cannot_be_rekeyed_ends_with_its_lifetime() -> None:
    pair = limited(ChildLifetime(rekey_s=100.0, hard_s=150.0))
    pair.wire.filter = lambda sender, header, octets: (
        header.exchange != ExchangeType.CREATE_CHILD_SA or sender == "r"
    )
    pair.run(140.0)
    assert pair.i.plane.installed
    pair.run(400.0)
    assert not pair.i.plane.installed


def test_limits_of_octets_and_packets_go_to_the_data_plane() -> None:
    lifetime = ChildLifetime(None, None, 1000, 2000, 10, 20)
    pair = limited(lifetime)
    child = pair.i.plane.sending
    assert child is not None
    assert child.limits.soft_octets == 1000
    assert child.limits.hard_octets == 2000
    assert child.limits.soft_packets == 10
    assert child.limits.hard_packets == 20


def test_a_soft_limit_rekeys_once_however_often_it_is_told() -> None:
    pair = connected()
    old = spi(pair)
    for _ in range(3):
        pair.do(pair.i, lambda e, sa, now: e.limit_reached(sa, old, now, is_hard=False))
    pair.run(20.0)
    assert spi(pair) != old
    assert len(pair.i.plane.installed) == 1
    heads = [IkeHeader.decode(d.octets) for d in pair.i.sent]
    assert len([h for h in heads if h.exchange == ExchangeType.CREATE_CHILD_SA]) == 1


@pytest.mark.parametrize("who", ["i", "r"])
def test_a_hard_limit_ends_the_child_sa_on_both_sides(who: str) -> None:
    pair = connected()
    host = getattr(pair, who)
    old = host.plane.sending.spi_in
    pair.do(host, lambda e, sa, now: e.limit_reached(sa, old, now, is_hard=True))
    pair.run(1.0)
    assert not pair.i.plane.installed
    assert not pair.r.plane.installed
    assert pair.i.fact(Closed) is None
    create(pair)
    pair.run(1.0)
    assert pair.agreed()
    assert pair.i.plane.installed


@pytest.mark.parametrize("is_hard", [True, False])
def test_the_ike_sa_has_a_lifetime_too(is_hard: bool) -> None:  # noqa: FBT001 (a column)
    policy = replace(quiet(client()), rekey_s=None if is_hard else 300.0, hard_s=400.0)
    pair = Pair(policy, quiet(gateway()))
    pair.connect()
    pair.run(1000.0)
    closed = pair.i.fact(Closed)
    if is_hard:
        assert closed is not None
        assert closed.reason == "its lifetime is over"
        assert not closed.is_failure
    else:
        assert closed is None
        assert pair.agreed()


def test_a_peer_that_never_deletes_leaves_nothing_behind_for_ever() -> None:
    """The peer rekeys, and its delete of the old Child SA never comes."""
    lifetime = ChildLifetime(rekey_s=None, hard_s=300.0)
    pair = Pair(quiet(client()), quiet(gateway(), lifetime))
    pair.connect()
    pair.wire.filter = lambda sender, header, octets: (
        header.exchange != ExchangeType.INFORMATIONAL or sender == "r"
    )
    pair.do(pair.i, lambda e, sa, now: e.limit_reached(sa, spi(pair), now, is_hard=False))
    pair.run(60.0)
    assert len(pair.r.plane.installed) == 2
    pair.wire.filter = None
    pair.run(400.0)
    assert not pair.r.plane.installed


# --- rekeys that the peer refuses -------------------------------------------------------------


def asked_to_rekey(peer: ScriptedInitiator, *, ike: bool = False) -> bytes:
    """The Endpoint's request to rekey its Child SA or its IKE SA."""
    established, install = peer.fact(Established), peer.fact(InstallChildSa)
    assert established is not None
    assert install is not None
    if ike:
        peer.endpoint.rekey(established.sa, peer.now)
    else:
        spi_in = install.child.spi_in
        peer.endpoint.limit_reached(established.sa, spi_in, peer.now, is_hard=False)
    (request,) = peer.drain()
    return request


def scripted() -> ScriptedInitiator:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    peer.connect()
    return peer


@pytest.mark.rfc("7296", "2.25")
def test_a_child_sa_that_the_peer_has_lost_is_made_anew() -> None:
    peer = scripted()
    request = asked_to_rekey(peer)
    (again,) = peer.respond(request, Notify.of(NotifyType.CHILD_SA_NOT_FOUND))
    assert peer.fact(RemoveChildSa) is not None
    message = peer.open(again)
    assert message.exchange == ExchangeType.CREATE_CHILD_SA
    assert message.notify(NotifyType.REKEY_SA) is None


@pytest.mark.rfc("7296", "2.25")
@pytest.mark.parametrize("ike", [True, False])
@pytest.mark.parametrize(
    ("notify", "least_s", "most_s", "level"),
    [
        (NotifyType.TEMPORARY_FAILURE, 2.0, 5.0, "debug"),
        (NotifyType.NO_ADDITIONAL_SAS, 60.0, 60.0, "warning"),
        (NotifyType.NO_PROPOSAL_CHOSEN, 60.0, 60.0, "warning"),
    ],
)
def test_a_refused_rekey_is_tried_again(
    notify: NotifyType, least_s: float, most_s: float, level: str, *, ike: bool
) -> None:
    peer = scripted()
    request = asked_to_rekey(peer, ike=ike)
    assert peer.respond(request, Notify.of(notify)) == []
    assert peer.wait(least_s - 0.1) == []
    assert len({*peer.wait(most_s - least_s + 0.2)}) == 1
    traces = [t for t in peer.facts if isinstance(t, Trace) and "trying again" in t.text]
    assert [t.level for t in traces] == [level]
    assert notify.name in traces[0].text


@pytest.mark.parametrize("ike", [True, False])
def test_a_key_exchange_that_we_do_not_have_is_not_tried(*, ike: bool) -> None:
    peer = scripted()
    request = asked_to_rekey(peer, ike=ike)
    wanted = Notify.of(NotifyType.INVALID_KE_PAYLOAD, (14).to_bytes(2, "big"))
    assert peer.respond(request, wanted) == []
    assert len(peer.wait(60.1)) == 1


@pytest.mark.parametrize("ike", [True, False])
def test_another_key_exchange_is_tried_once(*, ike: bool) -> None:
    esp, suite = "aes128gcm16-x25519-ecp256", "aes128gcm16-prfsha256-x25519-ecp256"
    peer = ScriptedInitiator(quiet(client(suite, esp)), quiet(gateway(suite, esp)))
    peer.connect()
    wanted = Notify.of(NotifyType.INVALID_KE_PAYLOAD, (19).to_bytes(2, "big"))
    (second,) = peer.respond(asked_to_rekey(peer, ike=ike), wanted)
    ke = peer.open(second).find(KeyExchange)
    assert ke is not None
    assert ke.method == 19
    assert peer.respond(second, wanted) == []
