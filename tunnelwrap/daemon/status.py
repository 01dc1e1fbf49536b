"""What a daemon tells about itself: plain JSON for machines, which the CLI shows to people."""

import asyncio
from collections.abc import Iterable

from tunnelwrap.daemon.driver import Driver, LiveSa
from tunnelwrap.ike.child_sa import ChildSa


def status_of(driver: Driver, data_plane: str, **facts: object) -> dict[str, object]:
    """The status of a daemon.

    Args:
        driver: knows the IKE SAs.
        data_plane: which it has.
        facts: what the daemon adds of its own.
    """
    now = asyncio.get_running_loop().time()
    return {
        **facts,
        "data_plane": data_plane,
        "ike_sas": [_ike_sa(driver, live, now) for live in driver.live.values()],
        "counters": dict(sorted(driver.all_counters().items())),
    }


def _ike_sa(driver: Driver, live: LiveSa, now: float) -> dict[str, object]:
    established = live.established
    lease = established.lease
    return {
        "state": "ESTABLISHED",
        "connection": established.connection,
        "peer_identity": established.peer_identity,
        "local_identity": established.local_identity,
        "carrier": live.path.carrier.value,
        "peer": str(live.path.peer),
        "ike_suite": established.ike_suite,
        "uses_ppk": established.uses_ppk,
        "seconds": round(now - live.since, 1),
        "waits_for_traffic": driver.waits_for_traffic(live.established.sa),
        "addresses": _texts(lease.addresses if lease else ()),
        "child_sas": [_child_sa(driver, child, now) for child in live.children.values()],
    }


def _child_sa(driver: Driver, child: ChildSa, now: float) -> dict[str, object]:
    counters = driver.sa_counters(child.spi_in)
    last_in = counters.last_in
    return {
        "state": "INSTALLED",
        "data_plane": driver.plane_of(child.spi_in),
        "spi_in": f"{child.spi_in:08x}",
        "spi_out": f"{child.spi_out:08x}",
        "protocol": child.protocol.name,
        "is_compressed": child.cpis is not None,
        "esp_suite": str(child.suite),
        "local_ts": _texts(child.ts_local),
        "peer_ts": _texts(child.ts_peer),
        "octets_in": counters.octets_in,
        "octets_out": counters.octets_out,
        "packets_in": counters.packets_in,
        "packets_out": counters.packets_out,
        "idle_seconds": None if last_in is None else round(now - last_in, 1),
    }


def _texts(values: Iterable[object]) -> list[str]:
    return [str(value) for value in values]
