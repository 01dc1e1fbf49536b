"""What RFC 7296 has a peer refuse of Child SAs, by a table: who says it when, and what follows."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator, ScriptedResponder
from tests.kit.pair import Pair
from tests.kit.policies import client, gateway, quiet, selectors
from tunnelwrap.iana import ExchangeType, NotifyType, ProtocolId
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.new_child import CreateChild
from tunnelwrap.ike.outputs import (
    ChildRefused,
    Closed,
    Established,
    InstallChildSa,
    ReauthenticationDue,
    RemoveChildSa,
)
from tunnelwrap.ike.policy import Childless, ConnectionPolicy, Limits
from tunnelwrap.ike.rekey_ike import RekeyIke
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Delete, Notify, Payload, TrafficSelector

# --- what we answer ---------------------------------------------------------------------------


def connected(limits: Limits | None = None) -> ScriptedInitiator:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()), limits)
    peer.connect()
    return peer


def new_child(peer: ScriptedInitiator) -> list[Payload]:
    payloads = CreateChild(peer.policy.child).request(peer.sa, peer.now)
    assert payloads is not None
    return list(payloads)


def rekey_of(spi: bytes) -> Callable[[ScriptedInitiator], list[Payload]]:
    notify = Notify.of(NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=spi)
    return lambda peer: [notify, *new_child(peer)]


def rekey_of_its_own(peer: ScriptedInitiator) -> list[Payload]:
    """The SPI by which it is named is that of the one who asks. RFC 7296 §1.3.3."""
    return rekey_of(first_child(peer).spi_out.to_bytes(4, "big"))(peer)


def rekey_ike(peer: ScriptedInitiator) -> list[Payload]:
    payloads = RekeyIke(peer.sa).request(peer.sa, peer.now)
    assert payloads is not None
    return list(payloads)


def first_child(peer: ScriptedInitiator) -> ChildSa:
    install = peer.fact(InstallChildSa)
    assert install is not None
    return install.child


def nothing(peer: ScriptedInitiator) -> None:
    del peer


def rekeys_its_ike_sa(peer: ScriptedInitiator) -> None:
    peer.endpoint.rekey(name_of(peer), peer.now)


def rekeys_its_child_sa(peer: ScriptedInitiator) -> None:
    spi = first_child(peer).spi_in
    peer.endpoint.limit_reached(name_of(peer), spi, peer.now, is_hard=False)


def deletes_its_child_sa(peer: ScriptedInitiator) -> None:
    spi = first_child(peer).spi_in
    peer.endpoint.limit_reached(name_of(peer), spi, peer.now, is_hard=True)


def deletes_its_ike_sa(peer: ScriptedInitiator) -> None:
    peer.endpoint.close(name_of(peer), "done", peer.now)


def makes_a_child_sa(peer: ScriptedInitiator) -> None:
    peer.endpoint.create_child(name_of(peer), gateway().child, peer.now)


def name_of(peer: ScriptedInitiator) -> int:
    established = peer.fact(Established)
    assert established is not None
    return established.sa


Situation = Callable[[ScriptedInitiator], None]
Request = Callable[[ScriptedInitiator], list[Payload]]
TEMPORARY, UNKNOWN = NotifyType.TEMPORARY_FAILURE, NotifyType.CHILD_SA_NOT_FOUND

CROSSINGS: list[tuple[Situation, Request, NotifyType | None]] = [
    (nothing, new_child, None),
    (nothing, rekey_of_its_own, None),
    (nothing, rekey_ike, None),
    (nothing, rekey_of(b"\1\2\3\4"), UNKNOWN),
    # RFC 7296 §2.25.1
    (deletes_its_child_sa, rekey_of_its_own, TEMPORARY),
    (rekeys_its_child_sa, rekey_of_its_own, None),
    # RFC 7296 §2.25.2
    (rekeys_its_ike_sa, new_child, TEMPORARY),
    (rekeys_its_ike_sa, rekey_of_its_own, TEMPORARY),
    (makes_a_child_sa, rekey_ike, TEMPORARY),
    (rekeys_its_child_sa, rekey_ike, TEMPORARY),
    (deletes_its_child_sa, rekey_ike, TEMPORARY),
    (rekeys_its_ike_sa, rekey_ike, None),
    (deletes_its_ike_sa, rekey_ike, TEMPORARY),
    (deletes_its_ike_sa, new_child, TEMPORARY),
]


def errors_of(message: Message | None) -> list[int]:
    assert message is not None
    return [notify.notify for notify in message.all(Notify) if notify.is_error]


@pytest.mark.rfc("7296", "2.25.1")
@pytest.mark.rfc("7296", "2.25.2")
@pytest.mark.parametrize(("situation", "request_of", "answer"), CROSSINGS)
def test_a_request_that_comes_while_we_do_something(
    situation: Situation, request_of: Request, answer: NotifyType | None
) -> None:
    peer = connected()
    situation(peer)
    peer.drain()
    response = peer.ask(ExchangeType.CREATE_CHILD_SA, *request_of(peer))
    assert errors_of(response) == ([] if answer is None else [answer])
    assert peer.fact(Closed) is None


@pytest.mark.rfc("7296", "1.3")
def test_the_limit_of_child_sas_holds_for_new_ones_only() -> None:
    peer = connected(Limits(child_sas=2))
    assert errors_of(peer.ask(ExchangeType.CREATE_CHILD_SA, *new_child(peer))) == []
    full = peer.ask(ExchangeType.CREATE_CHILD_SA, *new_child(peer))
    assert errors_of(full) == [NotifyType.NO_ADDITIONAL_SAS]
    assert errors_of(peer.ask(ExchangeType.CREATE_CHILD_SA, *rekey_of_its_own(peer))) == []
    assert errors_of(peer.ask(ExchangeType.CREATE_CHILD_SA, *rekey_ike(peer))) == []


# --- how we take it ---------------------------------------------------------------------------


def refusing() -> tuple[ScriptedResponder, int]:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()))
    peer.connect()
    install = peer.fact(InstallChildSa)
    assert install is not None
    return peer, install.child.spi_in


REFUSALS = [
    NotifyType.NO_ADDITIONAL_SAS,
    NotifyType.TEMPORARY_FAILURE,
    NotifyType.NO_PROPOSAL_CHOSEN,
    NotifyType.TS_UNACCEPTABLE,
    NotifyType.SINGLE_PAIR_REQUIRED,
]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_new_child_sa_is_refused(refusal: NotifyType) -> None:
    peer, _ = refusing()
    peer.endpoint.create_child(peer.name, client().child, peer.now)
    (request,) = peer.drain()
    assert peer.respond(request, Notify.of(refusal)) == []
    assert peer.fact(Closed) is None
    again = peer.wait(6.0)
    if refusal == NotifyType.TEMPORARY_FAILURE:
        assert len(again) >= 1, "it is asked for again"
        assert peer.fact(ChildRefused) is None
    else:
        fact = peer.fact(ChildRefused)
        assert fact is not None
        assert refusal.name in fact.reason
        assert again == []


@pytest.mark.rfc("7296", "2.25.1")
@pytest.mark.parametrize("refusal", [*REFUSALS, NotifyType.CHILD_SA_NOT_FOUND])
def test_a_rekey_of_a_child_sa_is_refused(refusal: NotifyType) -> None:
    peer, spi = refusing()
    peer.endpoint.limit_reached(peer.name, spi, peer.now, is_hard=False)
    (request,) = peer.drain()
    answer = Notify.of(refusal, protocol=ProtocolId.ESP, spi=bytes(4))
    (*follows,) = peer.respond(request, answer)
    is_lost = refusal == NotifyType.CHILD_SA_NOT_FOUND
    assert (peer.fact(RemoveChildSa) is not None) is is_lost
    assert len(follows) == is_lost, "a new one is asked for"
    peer.wait(0.0)
    is_alone = refusal == NotifyType.NO_ADDITIONAL_SAS
    assert (peer.fact(ReauthenticationDue) is not None) is is_alone, "RFC 7296 section 4"
    assert peer.fact(Closed) is None


@pytest.mark.rfc("7296", "4")
def test_a_peer_that_never_rekeys_its_ike_sa_gets_a_new_one() -> None:
    peer, _ = refusing()
    peer.endpoint.rekey(peer.name, peer.now)
    (request,) = peer.drain()
    peer.respond(request, Notify.of(NotifyType.NO_ADDITIONAL_SAS))
    peer.wait(0.0)
    assert peer.fact(ReauthenticationDue) == ReauthenticationDue(peer.name)


# --- one pair of addresses for each Child SA --------------------------------------------------


def pairs_only(policy: ConnectionPolicy) -> ConnectionPolicy:
    return replace(policy, child=replace(policy.child, single_pair=True))


def with_selectors(
    policy: ConnectionPolicy, local: tuple[str, ...], peer: tuple[str, ...]
) -> ConnectionPolicy:
    child = replace(policy.child, ts_local=selectors(*local), ts_peer=selectors(*peer))
    return replace(policy, child=child)


def covered(selector: TrafficSelector) -> str:
    return f"{selector.start}-{selector.end}"


@pytest.mark.rfc("7296", "2.9")
def test_who_wants_pairs_and_is_not_told_which_asks_for_one() -> None:
    pair = Pair(quiet(client()), pairs_only(quiet(gateway())))
    pair.connect()
    refused = pair.i.fact(ChildRefused)
    assert refused is not None
    assert "SINGLE_PAIR_REQUIRED" in refused.reason
    assert pair.i.fact(Closed) is None
    assert pair.i.fact(Established) is not None


@pytest.mark.rfc("7296", "2.9")
def test_who_knows_the_pair_asks_for_it() -> None:
    """One address here, and of the peer's only one is wanted."""
    ours = with_selectors(quiet(client()), ("192.0.2.0/24",), ("10.2.0.7/32",))
    theirs = with_selectors(quiet(gateway()), ("10.2.0.0/24",), ("192.0.2.0/24",))
    pair = Pair(ours, pairs_only(theirs))
    pair.connect()
    assert pair.agreed()
    (child,) = pair.i.plane.installed.values()
    assert [covered(ts) for ts in child.ts_local] == ["192.0.2.1-192.0.2.1"]
    assert [covered(ts) for ts in child.ts_peer] == ["10.2.0.7-10.2.0.7"]


@pytest.mark.rfc("7296", "2.9")
def test_the_pair_of_the_packet_is_taken_and_more_is_possible_and_asked_for() -> None:
    ours = with_selectors(
        quiet(client()), ("10.1.0.5/32",), ("10.2.0.7/32", "10.2.0.8/32", "10.2.0.9/32")
    )
    pair = Pair(ours, pairs_only(quiet(gateway())))
    pair.connect()
    assert pair.agreed()
    found = sorted(covered(c.ts_peer[0]) for c in pair.i.plane.installed.values())
    assert found == [f"10.2.0.{n}-10.2.0.{n}" for n in (7, 8, 9)]
    assert pair.i.fact(ChildRefused) is None


@pytest.mark.rfc("7296", "2.9")
def test_the_same_on_our_side() -> None:
    ours = with_selectors(quiet(client()), ("10.1.0.5/32", "10.1.0.6/32"), ("10.2.0.7/32",))
    pair = Pair(ours, pairs_only(quiet(gateway())))
    pair.connect()
    assert pair.agreed()
    assert len(pair.i.plane.installed) == 2


def test_a_pair_is_a_pair_already() -> None:
    ours = with_selectors(quiet(client()), ("10.1.0.5/32",), ("10.2.0.7/32",))
    peer = ScriptedInitiator(ours, pairs_only(quiet(gateway())))
    response = peer.connect()
    assert response is not None
    assert response.notify(NotifyType.ADDITIONAL_TS_POSSIBLE) is None


# --- childless --------------------------------------------------------------------------------


def childless(policy: ConnectionPolicy, value: Childless) -> ConnectionPolicy:
    return replace(quiet(policy), childless=value)


@pytest.mark.rfc("6023", "5")
@pytest.mark.rfc("6023", "3")
@pytest.mark.parametrize("theirs", [Childless.ACCEPT, Childless.REQUIRE])
def test_an_ike_sa_begins_without_child_sa_and_gets_one_at_once(theirs: Childless) -> None:
    pair = Pair(childless(client(), Childless.REQUIRE), childless(gateway(), theirs))
    pair.connect()
    assert [f for f in pair.i.facts if isinstance(f, ChildRefused)] == []
    assert len(pair.i.plane.installed) == 1
    assert pair.agreed()


@pytest.mark.rfc("6023", "3")
def test_who_requires_it_stops_where_it_is_not_supported() -> None:
    pair = Pair(childless(client(), Childless.REQUIRE), childless(gateway(), Childless.NEVER))
    pair.connect()
    closed = pair.i.fact(Closed)
    assert closed is not None
    assert "makes no IKE SA without a Child SA" in closed.reason
    assert pair.r.fact(Established) is None


@pytest.mark.rfc("6023", "4")
def test_who_requires_it_makes_no_child_sa_in_ike_auth() -> None:
    pair = Pair(childless(client(), Childless.NEVER), childless(gateway(), Childless.REQUIRE))
    pair.connect()
    refused = pair.i.fact(ChildRefused)
    assert refused is not None
    assert "NO_ADDITIONAL_SAS" in refused.reason
    pair.do(pair.i, lambda endpoint, sa, now: endpoint.create_child(sa, pair.policy.child, now))
    pair.run(1.0)
    assert pair.agreed()
    assert len(pair.i.plane.installed) == 1


@pytest.mark.rfc("6023", "4")
def test_who_does_not_support_it_refuses_an_ike_auth_without_child_sa() -> None:
    peer = ScriptedInitiator(quiet(client()), childless(gateway(), Childless.NEVER))
    peer.init()
    peer.sa.policy = childless(client(), Childless.REQUIRE)
    payloads = peer.ike_auth_payloads()
    answer = peer.ask(ExchangeType.IKE_AUTH, *payloads)
    assert errors_of(answer) == [NotifyType.INVALID_SYNTAX]
    closed = peer.fact(Closed)
    assert closed is not None
    assert not closed.was_established


def test_a_childless_ike_sa_is_authenticated_again() -> None:
    ours = replace(childless(client(), Childless.REQUIRE), reauth_s=60.0)
    pair = Pair(ours, quiet(gateway()))
    pair.connect()
    pair.run(60.0)
    assert len([f for f in pair.r.facts if isinstance(f, Established)]) == 2
    assert len(pair.i.plane.installed) == 1
    assert pair.i.plane.history == ["install", "install", "remove"]
    assert pair.agreed()


def test_deleting_its_only_child_sa_leaves_the_ike_sa() -> None:
    peer = connected()
    spi = first_child(peer).spi_out.to_bytes(4, "big")
    answer = peer.ask(ExchangeType.INFORMATIONAL, Delete(ProtocolId.ESP, (spi,)))
    assert answer is not None
    assert peer.fact(Closed) is None
    assert errors_of(peer.ask(ExchangeType.CREATE_CHILD_SA, *new_child(peer))) == []
