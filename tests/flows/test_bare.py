"""ESP without UDP around it: where both ends say the truth of NATs, and there is none."""

from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator
from tests.kit.pair import Pair, Wire, address
from tests.kit.policies import client, gateway, quiet
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.outputs import InstallChildSa
from tunnelwrap.path import Carrier, Path
from tunnelwrap.wire.payloads import Notify, Payload

NAT = address("203.0.113.9", 40000)


def connected(wire: Wire | None = None, **options: object) -> Pair:
    pair = Pair(quiet(client()), quiet(gateway()), wire, **options)
    pair.connect()
    return pair


def are_bare(pair: Pair) -> set[bool]:
    return {child.is_bare for h in (pair.i, pair.r) for child in h.plane.installed.values()}


@pytest.mark.rfc("7296", "2.23")
@pytest.mark.parametrize("forces", [False, True])
def test_esp_is_bare_where_there_is_no_nat_and_nobody_feigns_one(*, forces: bool) -> None:
    assert are_bare(connected(forces_encapsulation=forces)) == {not forces}


@pytest.mark.rfc("7296", "2.23")
def test_a_nat_has_it_in_udp() -> None:
    assert are_bare(connected(Wire(nat=NAT), forces_encapsulation=False)) == {False}


@pytest.mark.rfc("9329", "3.2")
def test_so_has_a_stream() -> None:
    assert are_bare(connected(forces_encapsulation=False, carrier=Carrier.TCP)) == {False}


@pytest.mark.rfc("7296", "2.23")
def test_so_has_a_peer_that_feigns_a_nat() -> None:
    """It is what tunnelwrap does that has not been told otherwise."""
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()), forces_encapsulation=False)
    peer.connect()

    install = peer.fact(InstallChildSa)
    assert install is not None
    assert not install.child.is_bare


@pytest.mark.rfc("7296", "2.23")
def test_a_peer_that_does_not_know_nats_gets_it_bare() -> None:
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()), forces_encapsulation=False)
    peer.connect(change_init=without_nat_detection)

    install = peer.fact(InstallChildSa)
    assert install is not None
    assert install.child.is_bare


def without_nat_detection(payloads: list[Payload]) -> list[Payload]:
    detection = {NotifyType.NAT_DETECTION_SOURCE_IP, NotifyType.NAT_DETECTION_DESTINATION_IP}
    return [p for p in payloads if not (isinstance(p, Notify) and p.notify in detection)]


@pytest.mark.rfc("7296", "2.23")
@pytest.mark.parametrize("rekeyer", ["i", "r"])
def test_it_stays_so_with_other_keys(rekeyer: str) -> None:
    pair = connected(forces_encapsulation=False)
    host = getattr(pair, rekeyer)
    [spi] = host.plane.installed
    pair.do(host, lambda e, sa, now: e.rekey(sa, now))
    pair.run(10.0)
    pair.do(host, lambda e, sa, now: e.limit_reached(sa, spi, now, is_hard=False))
    pair.run(20.0)

    assert spi not in host.plane.installed
    assert are_bare(pair) == {True}


@pytest.mark.rfc("9329", "6.1")
def test_on_a_stream_it_is_encapsulated_from_then_on() -> None:
    pair = connected(forces_encapsulation=False)
    stream = Path(pair.path.local, pair.path.peer, Carrier.TCP, id=7)
    pair.do(pair.i, lambda e, sa, now: e.path_up(sa, stream, now))
    pair.run(5.0)

    assert are_bare(pair) == {False}
    assert {child.path.carrier for child in pair.r.plane.installed.values()} == {Carrier.TCP}


@pytest.mark.rfc("7296", "2.23")
def test_where_nobody_has_looked_for_nats_there_may_be_one() -> None:
    """IKE_AUTH comes from elsewhere than IKE_SA_INIT did."""
    peer = ScriptedInitiator(quiet(client()), quiet(gateway()), forces_encapsulation=False)
    peer.init(without_nat_detection)
    peer.arrival = replace(peer.arrival, peer=NAT)
    peer.authenticate()

    install = peer.fact(InstallChildSa)
    assert install is not None
    assert install.child.path.peer == NAT
    assert not install.child.is_bare
