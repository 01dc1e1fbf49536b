"""Simultaneous rekeys against a peer whose nonces the test chooses: who deletes what.

RFC 7296 §2.8.1: the SA made with the lowest of the four nonces is closed by the side that made
it; the side that made the other one deletes the SA that was rekeyed.
"""

from dataclasses import replace

import pytest

from tests.flows.scripted import Change, ScriptedInitiator
from tests.kit.policies import client, gateway, quiet
from tunnelwrap.iana import ExchangeType, NotifyType, ProtocolId
from tunnelwrap.ike import create_child
from tunnelwrap.ike.new_child import CreateChild
from tunnelwrap.ike.outputs import Closed, Established, InstallChildSa, Rekeyed
from tunnelwrap.ike.rekey_ike import RekeyIke
from tunnelwrap.wire.message import IkeHeader
from tunnelwrap.wire.payloads import Delete, Nonce, Notify, Payload

LOWEST = bytes(32)


def lowest(payloads: list[Payload]) -> list[Payload]:
    return [replace(p, data=LOWEST) if isinstance(p, Nonce) else p for p in payloads]


def unchanged(payloads: list[Payload]) -> list[Payload]:
    return payloads


IN_THEIRS, IN_OURS = (lowest, unchanged), (unchanged, lowest)


def connected() -> tuple[ScriptedInitiator, int]:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()))
    peer.connect()
    established = peer.fact(Established)
    assert established is not None
    return peer, established.sa


def payloads_of(peer: ScriptedInitiator, exchange: RekeyIke | CreateChild) -> list[Payload]:
    payloads = exchange.request(peer.sa, peer.now)
    assert payloads is not None
    return list(payloads)


@pytest.mark.rfc("7296", "2.8.2")
@pytest.mark.parametrize(("in_request", "in_response"), [IN_THEIRS, IN_OURS])
def test_of_two_new_ike_sas_the_one_with_the_lowest_nonce_goes(
    in_request: Change, in_response: Change
) -> None:
    peer, name = connected()
    peer.endpoint.rekey(name, peer.now)
    (request,) = peer.drain()
    theirs = payloads_of(peer, RekeyIke(peer.sa))
    assert peer.ask(ExchangeType.CREATE_CHILD_SA, *in_request(theirs)) is not None
    answers = create_child.answer(peer.sa, peer.open(request), peer.now)
    (delete,) = peer.respond(request, *in_response(answers))
    where = IkeHeader.decode(delete)
    ours, old = peer.made[-1], peer.sa
    goes = old if in_request is lowest else ours
    assert (where.spi_i, where.spi_r) == (goes.spi_i, goes.spi_r)
    assert len([fact for fact in peer.facts if isinstance(fact, Rekeyed)]) == 1
    assert peer.fact(Closed) is None


@pytest.mark.rfc("7296", "2.8.1")
@pytest.mark.parametrize(("in_request", "in_response"), [IN_THEIRS, IN_OURS])
def test_of_two_new_child_sas_the_one_with_the_lowest_nonce_goes(
    in_request: Change, in_response: Change
) -> None:
    peer, name = connected()
    old = peer.fact(InstallChildSa)
    assert old is not None
    peer.endpoint.limit_reached(name, old.child.spi_in, peer.now, is_hard=False)
    (request,) = peer.drain()
    spi = old.child.spi_out.to_bytes(4, "big")
    rekey = Notify.of(NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=spi)
    theirs = payloads_of(peer, CreateChild(peer.policy.child))
    peer.ask(ExchangeType.CREATE_CHILD_SA, rekey, *in_request(theirs))
    without_rekey = replace(
        peer.open(request),
        payloads=tuple(p for p in peer.open(request).payloads if not isinstance(p, Notify)),
    )
    answers = create_child.answer(peer.sa, without_rekey, peer.now)
    (delete,) = peer.respond(request, *in_response(answers))
    (named,) = peer.open(delete).all(Delete)
    ours = peer.fact(InstallChildSa)
    assert ours is not None
    goes = old if in_request is lowest else ours
    assert named.spis == (goes.child.spi_in.to_bytes(4, "big"),)
    assert ours.use_outbound is (in_request is lowest)


@pytest.mark.rfc("7296", "2.8.2")
def test_the_ike_sa_that_the_peer_uses_is_the_one_it_has_chosen() -> None:
    """It has seen all four nonces; our response is still on its way."""
    peer, name = connected()
    old = peer.sa
    peer.endpoint.rekey(name, peer.now)
    (request,) = peer.drain()
    exchange = RekeyIke(old)
    response = peer.ask(ExchangeType.CREATE_CHILD_SA, *payloads_of(peer, exchange))
    assert response is not None
    old.exchange = exchange
    answers = create_child.answer(old, peer.open(request), peer.now)
    assert peer.fact(Rekeyed) is None
    exchange.on_response(old, response, peer.now)
    peer.sa, peer.next_id = peer.made[-1], 0
    assert peer.ask(ExchangeType.INFORMATIONAL) is not None
    rekeyed = peer.fact(Rekeyed)
    assert rekeyed is not None
    assert rekeyed.spi_i == int.from_bytes(peer.sa.spi_i, "big")
    peer.sa, ours = old, peer.made[0]
    (delete,) = peer.respond(request, *answers)
    assert IkeHeader.decode(delete).spi_i == ours.spi_i, "ours is redundant, whatever the nonces"
    assert peer.fact(Closed) is None
