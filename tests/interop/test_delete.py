"""Deletes from either side, of the Child SA and of the IKE SA."""

import pytest

from tests.interop.lan import ping
from tests.interop.pair import Pair, psk_proofs
from tests.interop.settings import Settings
from tests.kit.strongswan import wait_until

pytestmark = [pytest.mark.root, pytest.mark.interop]


@pytest.fixture
def tunnel(pair: Pair) -> Pair:
    """An established tunnel."""
    initiator, responder = psk_proofs()
    assert pair.start(Settings(initiator), Settings(responder)), pair.tunnelwrap.log
    assert ping(pair.lan)
    return pair


def test_strongswan_deletes_the_ike_sa(tunnel: Pair) -> None:
    tunnel.strongswan.delete_ike("peer")

    assert tunnel.strongswan.logged(r"parsed INFORMATIONAL response \d+ \[ \]")
    wait_until(lambda: not tunnel.tunnelwrap.has_tunnel(), 5, "tunnelwrap dropped the IKE SA")


def test_strongswan_deletes_the_child_sa(tunnel: Pair) -> None:
    tunnel.strongswan.delete_child("net")

    # RFC 7296 section 1.4.1: the answer deletes the other half of the pair.
    assert tunnel.strongswan.logged(r"parsed INFORMATIONAL response \d+ \[ D \]")
    assert tunnel.strongswan.logged(r"received DELETE for ESP CHILD_SA with SPI")


def test_tunnelwrap_deletes_the_ike_sa(tunnel: Pair) -> None:
    tunnel.tunnelwrap.disconnect()

    tunnel.strongswan.wait_log(r"received DELETE for IKE_SA")
    wait_until(lambda: "ESTABLISHED" not in tunnel.strongswan.sas(), 5, "strongSwan dropped it")


def test_tunnelwrap_ends_in_good_order(tunnel: Pair) -> None:
    tunnel.tunnelwrap.stop()

    tunnel.strongswan.wait_log(r"received DELETE for IKE_SA")
