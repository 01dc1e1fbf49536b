"""BEET mode: a private notify, and one address on each side. draft-nikander-esp-beet-mode."""

from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator, ScriptedResponder, clear
from tests.kit.pair import Pair, Wire, address
from tests.kit.policies import client, gateway, quiet, road_warrior, selectors
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.child_sa import Mode
from tunnelwrap.ike.outputs import ChildRefused, Closed, InstallChildSa, Lease
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.path import Carrier
from tunnelwrap.wire.payloads import Notify, Payload, VendorId

OURS, THEIRS = "10.1.0.7/32", "10.2.0.9/32"
BEET = Notify.of(NotifyType.USE_BEET_MODE)
STRONGSWAN = VendorId(bytes.fromhex("882fe56d6fd20dbc2251613b2ebe5beb"))  # as it sends it


def in_beet(
    policy: ConnectionPolicy, local: tuple[str, ...], peer: tuple[str, ...]
) -> ConnectionPolicy:
    child = replace(
        policy.child, mode=Mode.BEET, ts_local=selectors(*local), ts_peer=selectors(*peer)
    )
    return quiet(replace(policy, child=child))


def inside(*peer: str) -> ConnectionPolicy:
    """A client that wants it, with what it asks for."""
    return in_beet(client(), (OURS,), peer or (THEIRS,))


def outside(*local: str) -> ConnectionPolicy:
    """A gateway that allows it."""
    return in_beet(gateway(), local or ("0.0.0.0/0",), ("10.1.0.0/16",))


def modes_of(pair: Pair) -> tuple[Mode, Mode]:
    ours, theirs = pair.i.plane.sending, pair.r.plane.sending
    assert ours is not None
    assert theirs is not None
    return ours.mode, theirs.mode


@pytest.mark.parametrize("rekeyer", ["none", "i", "r"])
def test_both_have_it_between_one_address_each(rekeyer: str) -> None:
    pair = Pair(inside(), outside(), has_beet=True)
    pair.connect()
    if rekeyer != "none":
        host = pair.i if rekeyer == "i" else pair.r
        [spi] = host.plane.installed
        pair.do(host, lambda e, sa, now: e.limit_reached(sa, spi, now, is_hard=False))
        pair.run(20.0)

    assert pair.agreed()
    assert modes_of(pair) == (Mode.BEET, Mode.BEET)
    [ours] = pair.i.plane.installed.values()
    assert (ours.ts_local, ours.ts_peer) == (selectors(OURS), selectors(THEIRS))


def test_the_inner_address_may_be_a_lease() -> None:
    policies = road_warrior()
    warrior = in_beet(policies[0], (), (THEIRS,))
    office = in_beet(policies[1], ("0.0.0.0/0",), ())
    lease = Lease(addresses=(address("10.9.0.5").ip,))
    pair = Pair(warrior, office, lease=lease, has_beet=True)
    pair.connect()

    assert modes_of(pair) == (Mode.BEET, Mode.BEET)
    assert pair.r.plane.sending is not None
    assert pair.r.plane.sending.ts_peer == selectors("10.9.0.5/32")


def test_a_nat_is_no_matter_of_the_inner_addresses() -> None:
    pair = Pair(inside(), outside(), Wire(nat=address("203.0.113.1", 40000)), has_beet=True)
    pair.connect()

    assert pair.agreed()
    assert modes_of(pair) == (Mode.BEET, Mode.BEET)


@pytest.mark.parametrize("mode", [Mode.TUNNEL, Mode.TRANSPORT])
@pytest.mark.parametrize("who", ["i", "r"])
def test_it_needs_both(mode: Mode, who: str) -> None:
    policies = {"i": inside(), "r": outside()}
    policies[who] = replace(policies[who], child=replace(policies[who].child, mode=mode))
    pair = Pair(policies["i"], policies["r"], has_beet=True)
    pair.connect()

    assert modes_of(pair) == (Mode.TUNNEL, Mode.TUNNEL)


def test_no_stream_leads_there() -> None:
    pair = Pair(inside(), outside(), carrier=Carrier.TCP, has_beet=True)
    pair.connect()

    assert modes_of(pair) == (Mode.TUNNEL, Mode.TUNNEL)


def test_more_than_one_address_is_refused() -> None:
    pair = Pair(inside("10.2.0.0/30"), outside(), has_beet=True)
    pair.connect()

    assert pair.r.plane.installed == {}
    told = pair.i.fact(ChildRefused)
    assert told is not None
    assert "TS_UNACCEPTABLE" in told.reason
    refused = pair.r.fact(ChildRefused)
    assert refused is not None
    assert "one address on each side, not 10.2.0.0/30 === 10.1.0.7/32" in refused.reason


def test_what_is_left_of_more_may_be_one() -> None:
    pair = Pair(inside("10.2.0.0/30"), outside("10.2.0.2/32"), has_beet=True)
    pair.connect()

    assert modes_of(pair) == (Mode.BEET, Mode.BEET)


def test_both_ip_versions_are_too_many() -> None:
    wide = in_beet(gateway(), ("0.0.0.0/0", "::/0"), ("10.1.0.0/16", "fd01::/16"))
    pair = Pair(in_beet(client(), (OURS,), ("fd02::9/128",)), wide, has_beet=True)
    pair.connect()

    assert pair.i.fact(ChildRefused) is not None
    assert pair.i.plane.installed == pair.r.plane.installed == {}


# --- message by message -----------------------------------------------------------------------


@pytest.mark.rfc("7296", "3.10.1")
@pytest.mark.rfc("7296", "3.12")
@pytest.mark.parametrize("is_shown", [True, False])
def test_the_peer_need_not_be_strongswan_but_is_told_so(*, is_shown: bool) -> None:
    """strongSwan shows its vendor ID only where it is told to, and wants to see it always."""
    peer = ScriptedInitiator(quiet(inside()), outside(), has_beet=True)

    def change_init(payloads: list[Payload]) -> list[Payload]:
        return [*payloads, STRONGSWAN] if is_shown else payloads

    response = peer.connect(lambda payloads: [BEET, *payloads], change_init)

    (init, *_) = peer.sent
    assert clear(init).find(VendorId) == STRONGSWAN
    assert response is not None
    assert response.notify(NotifyType.USE_BEET_MODE) is not None
    install = peer.fact(InstallChildSa)
    assert install is not None
    assert install.child.mode is Mode.BEET


@pytest.mark.parametrize("has_beet", [True, False])
def test_who_does_not_want_it_or_cannot_have_it_says_nothing_of_it(*, has_beet: bool) -> None:
    gateways = replace(outside(), child=replace(outside().child, mode=Mode.TUNNEL))
    peer = ScriptedInitiator(inside(), gateways if has_beet else outside(), has_beet=has_beet)
    response = peer.connect(lambda payloads: [BEET, *payloads])

    (init, *_) = peer.sent
    assert clear(init).find(VendorId) is None
    assert response is not None
    assert response.notify(NotifyType.USE_BEET_MODE) is None
    install = peer.fact(InstallChildSa)
    assert install is not None
    assert install.child.mode is Mode.TUNNEL


@pytest.mark.parametrize("has_beet", [True, False])
def test_it_is_asked_for_where_the_data_plane_has_it(*, has_beet: bool) -> None:
    peer = ScriptedResponder(inside(), quiet(gateway()), has_beet=has_beet)
    request = peer.open(peer.answer_init())

    assert (clear(peer.first).find(VendorId) == STRONGSWAN) is has_beet
    assert (request.notify(NotifyType.USE_BEET_MODE) is not None) is has_beet


def test_what_was_not_asked_for_is_not_agreed() -> None:
    peer = ScriptedResponder(quiet(client()), quiet(gateway()), has_beet=True)
    peer.connect(lambda payloads: [BEET, *payloads])

    install = peer.fact(InstallChildSa)
    assert install is not None
    assert install.child.mode is Mode.TUNNEL


def test_a_responder_that_agrees_to_more_than_an_address_has_made_nothing() -> None:
    """A client that waits for a lease asks for any address of its own."""
    warrior = in_beet(road_warrior()[0], (), (THEIRS,))
    peer = ScriptedResponder(warrior, quiet(replace(outside(), requests_ipv4=True)), has_beet=True)
    peer.connect(lambda payloads: [BEET, *payloads])

    assert peer.fact(InstallChildSa) is None
    assert peer.fact(Closed) is not None or peer.fact(ChildRefused) is not None
