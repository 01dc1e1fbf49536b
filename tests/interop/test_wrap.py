"""strongSwan at both ends, as it is; between them a wrapper, a relay, and a firewall."""

from pathlib import Path

import pytest

from tests.bench.relay import measure
from tests.interop.lan import Lan, PingFlood, ping
from tests.interop.settings import GATEWAY, Proof, Role, Settings
from tests.interop.sides import TunnelwrapSide
from tests.interop.wrapping import SECRET, wrapped
from tests.kit.strongswan import wait_until

pytestmark = [pytest.mark.root, pytest.mark.interop]

CHILD_REKEYED = r"inbound CHILD_SA net\{\d+\} established"
IKE_REKEYED = r"IKE_SA peer\[\d+\] rekeyed between"


@pytest.mark.parametrize("mobike", ["no", "yes"])
def test_through_tls_on_443_where_udp_is_dropped(lan: Lan, tmp_path: Path, mobike: str) -> None:
    """Connect, rekey both SAs, and lose the connection below; the pings go on."""
    with wrapped(lan, tmp_path, carriers=["udp", "tls"], connection={"mobike": mobike}) as ends:
        ends.drop_udp()
        ends.connect()
        assert ping(lan, tries=10), ends.wrap.log
        assert [way["carrier"] for way in ends.wrap.ways] == ["tls"]

        pings = PingFlood(lan, tmp_path / "ping", seconds=6, interval_s=0.02)
        ends.client.rekey_child("net")
        ends.gateway.wait_log(CHILD_REKEYED)
        ends.gateway.rekey_ike("peer")
        ends.client.wait_log(IKE_REKEYED)
        ends.client.rekey_ike("peer")
        ends.client.wait_log(IKE_REKEYED, count=2)
        ends.gateway.rekey_child("net")
        ends.client.wait_log(CHILD_REKEYED, count=2)
        assert pings.finish().lost == 0

        [before] = ends.relay.ways
        pings = PingFlood(lan, tmp_path / "ping", seconds=3, interval_s=0.02)
        ends.reset_streams()
        came = pings.finish()
        assert came.lost < came.sent / 3, ends.wrap.log
        assert ping(lan)
        [after] = ends.relay.ways
        assert after["local"] == before["local"]
        assert ends.relay.status["counters"]["back"] == 1
        ends.client.rekey_ike("peer")
        ends.client.rekey_child("net")
        assert ping(lan)
        ends.client.delete_ike("peer")
        wait_until(lambda: "ESTABLISHED" not in ends.gateway.sas(), 5, "deleted at both ends")


def test_through_a_websocket(lan: Lan, tmp_path: Path) -> None:
    with wrapped(lan, tmp_path, carriers=["ws"]) as ends:
        ends.connect()
        assert ping(lan, tries=10), ends.wrap.log
        ends.reset_streams()
        assert ping(lan, tries=10), ends.wrap.log
        assert [way["carrier"] for way in ends.relay.ways] == ["ws"]


def test_where_udp_passes_it_goes_directly(lan: Lan, tmp_path: Path) -> None:
    with wrapped(lan, tmp_path) as ends:
        ends.connect()

        assert ping(lan, tries=10), ends.wrap.log
        assert [way["carrier"] for way in ends.wrap.ways] == ["udp"]
        assert ends.relay.ways == []
        ends.client.rekey_ike("peer")
        ends.client.rekey_child("net")
        assert ping(lan)


def test_an_ike_sa_outlives_the_end_of_udp(lan: Lan, tmp_path: Path) -> None:
    """A liveness check that stays unanswered finds another way."""
    with wrapped(lan, tmp_path, connection={"dpd_delay": "2s"}) as ends:
        ends.connect()
        assert ping(lan, tries=10)
        ends.drop_udp()

        wait_until(
            lambda: [way["carrier"] for way in ends.wrap.ways] == ["tcp"],
            25,
            "goes by TCP",
            lambda: ends.wrap.log,
        )
        assert ping(lan, tries=10), ends.wrap.log
        assert len(ends.client.logged("IKE_SA peer.* established between")) == 1


def test_several_clients_through_one_relay(lan: Lan, tmp_path: Path) -> None:
    """The short form of ``python -m tests.bench.relay``."""
    figures = measure(lan, tmp_path, clients=5, seconds=10, rekey_s=4)

    assert figures.has_stood, figures
    assert figures.most_lost < 10, figures
    assert figures.ike_rekeys >= 5, figures
    assert figures.came_back + figures.handed_over == 5, figures


def test_tunnelwrap_itself_through_a_relay(lan: Lan, tmp_path: Path) -> None:
    """Its stream is reset, and it comes back to the same place."""
    with wrapped(lan, tmp_path) as ends:
        proof = Proof("client7.example.org", GATEWAY, psk=SECRET)
        side = TunnelwrapSide(lan, Role.INITIATOR, tmp_path, carrier="tcp")
        side.start(Settings(proof))
        try:
            assert side.connect(), side.log
            assert ping(lan, tries=10)
            [before] = ends.relay.ways
            ends.reset_streams()

            wait_until(lambda: ends.relay.status["counters"]["back"] == 1, 10, "back")
            assert ping(lan, tries=10), side.log
            assert [way["local"] for way in ends.relay.ways] == [before["local"]]
        finally:
            side.stop()
