"""One IKE SA in the place of another: authenticating again, and beginning anew after a crash."""

from dataclasses import replace

import pytest

from tests.interop.lan import PingFlood, ping
from tests.interop.pair import Pair, psk_proofs
from tests.interop.settings import Settings, StrongSwanMore
from tests.kit.strongswan import wait_until

pytestmark = [pytest.mark.root, pytest.mark.interop]

REAUTH_S = 4
FLOOD_S = 13
MINIMUM = 2  # times that the initiator must have authenticated itself again by then
ESP_LOGGED = StrongSwanMore(levels={"esp": "2"})
TAKEN_TOO_LATE = "inbound ESP packet does not belong to an installed SA"
ESTABLISHED = r"IKE_SA peer\[\d+\] established between"


@pytest.mark.parametrize("who_wants_it", ["initiator", "responder"])
def test_authenticating_again_loses_no_packet(pair: Pair, who_wants_it: str) -> None:
    """strongSwan as initiator breaks before it makes, unless told otherwise: it is.

    Two losses are its own. As responder it may use a new Child SA before it has sent the response
    that makes it. As initiator it takes ESP in one thread and the answer to its delete in another:
    what we have sent just before that answer may find its SA gone, which it says.
    """
    initiator, responder = (Settings(proof, strongswan=ESP_LOGGED) for proof in psk_proofs())
    if who_wants_it == "initiator":
        initiator = replace(initiator, reauth_s=REAUTH_S)
    else:
        responder = replace(responder, reauth_s=REAUTH_S)
    assert pair.start(initiator, responder), pair.tunnelwrap.log

    result = PingFlood(pair.lan, pair.directory / "ping", FLOOD_S).finish()

    times = len(pair.strongswan.logged(ESTABLISHED)) - 1
    assert times >= MINIMUM
    taken_too_late = len(pair.strongswan.logged(TAKEN_TOO_LATE))
    its_own = times if pair.tunnelwrap_initiates else min(times, taken_too_late)
    assert result.lost <= its_own, pair.strongswan.log[-8000:]
    assert pair.tunnelwrap.has_tunnel()


def test_after_a_crash_the_old_ike_sa_is_gone_at_once(pair: Pair) -> None:
    settings = [Settings(proof) for proof in psk_proofs()]
    assert pair.start(*settings), pair.tunnelwrap.log
    pair.crash_initiator()

    pair.initiator.start(settings[0])
    assert pair.initiator.connect(), pair.tunnelwrap.log

    assert ping(pair.lan)
    if pair.tunnelwrap_initiates:
        pair.strongswan.wait_log(r"IKE_AUTH request 1 \[.* N\(INIT_CONTACT\)")
        wait_until(lambda: pair.strongswan.sas().count("ESTABLISHED") == 1, 5, "one IKE SA")
    else:
        assert "the peer has begun anew" in pair.tunnelwrap.log


def test_an_ike_sa_begins_without_child_sa(pair: Pair) -> None:
    initiator, responder = (Settings(proof) for proof in psk_proofs())
    assert pair.start(replace(initiator, childless="require"), responder), pair.tunnelwrap.log

    assert ping(pair.lan)
    way = "parsed" if pair.tunnelwrap_initiates else "generating"
    (request,) = pair.strongswan.logged(rf"{way} IKE_AUTH request 1 ")
    assert "TSi" not in request
    assert pair.strongswan.logged(r"CREATE_CHILD_SA request 2 ")
