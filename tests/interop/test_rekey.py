"""Rekeys during a ping flood, started by either side: no packet may be lost."""

from dataclasses import replace

import pytest

from tests.interop.lan import PingFlood
from tests.interop.pair import Pair, psk_proofs
from tests.interop.settings import Settings

pytestmark = [pytest.mark.root, pytest.mark.interop]

REKEY_S = 2
FLOOD_S = 11
MINIMUM = 3  # rekeys that must have happened by then
CHILD_REKEYED = r"CHILD_SA net\{\d+\} established with SPIs"
IKE_REKEYED = r"IKE_SA peer\[\d+\] rekeyed between"


@pytest.mark.parametrize("rekeyer", ["tunnelwrap", "strongswan"])
@pytest.mark.parametrize("what", ["child", "ike"])
def test_rekey_during_a_flood(pair: Pair, rekeyer: str, what: str) -> None:
    initiator, responder = (Settings(proof) for proof in psk_proofs())
    if (rekeyer == "tunnelwrap") == pair.tunnelwrap_initiates:
        initiator = rekeying(initiator, what)
    else:
        responder = rekeying(responder, what)
    assert pair.start(initiator, responder), pair.tunnelwrap.log

    result = PingFlood(pair.lan, pair.directory / "ping", FLOOD_S).finish()

    assert result.lost == 0, result
    pattern, before = (CHILD_REKEYED, 1) if what == "child" else (IKE_REKEYED, 0)
    assert len(pair.strongswan.logged(pattern)) - before >= MINIMUM


def rekeying(settings: Settings, what: str) -> Settings:
    """The settings of the side that starts the rekeys."""
    if what == "child":
        return replace(settings, rekey_child_s=REKEY_S)
    return replace(settings, rekey_ike_s=REKEY_S)
