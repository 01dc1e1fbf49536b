"""The harness proves itself with strongSwan on both ends: what passes later is then our doing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.interop.lan import Lan, PingFlood, ping
from tests.interop.pair import certificate_proofs, psk_proofs
from tests.interop.settings import Proof, Role, Settings
from tests.interop.sides import StrongSwanSide

pytestmark = [pytest.mark.root, pytest.mark.interop]

Ends = tuple[StrongSwanSide, StrongSwanSide]


@pytest.fixture
def ends(lan: Lan, tmp_path: Path) -> Iterator[Ends]:
    initiator = StrongSwanSide(lan, Role.INITIATOR, tmp_path)
    responder = StrongSwanSide(lan, Role.RESPONDER, tmp_path)
    yield initiator, responder
    initiator.stop()
    responder.stop()


def start(ends: Ends, proofs: tuple[Proof, Proof], rekey_child_s: int | None = None) -> bool:
    initiator, responder = ends
    responder.start(Settings(proofs[1]))
    initiator.start(Settings(proofs[0], rekey_child_s=rekey_child_s))
    return initiator.connect()


@pytest.mark.parametrize("kind", ["psk", "rsa", "p256"])
def test_no_ping_without_a_tunnel_and_none_lost_with_one(
    ends: Ends, lan: Lan, tmp_path: Path, kind: str
) -> None:
    proofs = psk_proofs() if kind == "psk" else certificate_proofs(kind)

    assert not ping(lan, count=1)
    assert start(ends, proofs, rekey_child_s=1), ends[0].log

    assert PingFlood(lan, tmp_path / "ping", seconds=3).finish().lost == 0
    assert len(ends[1].daemon.logged(r"CHILD_SA net\{\d+\} established")) > 1
    ends[0].disconnect()
    assert not ends[1].has_tunnel()


def test_a_wrong_psk_is_seen(ends: Ends) -> None:
    initiator, responder = psk_proofs()

    assert not start(ends, (replace(initiator, psk="wrong"), responder))

    ends[1].daemon.wait_log(r"generating IKE_AUTH response 1 \[ N\(AUTH_FAILED\) \]")
