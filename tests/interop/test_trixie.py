"""Tunnels with the newer daemons of Debian 13, in both roles: strongSwan 6.0 and libreswan 5.2."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.interop.lan import Lan, ping
from tests.interop.libreswan_side import LibreswanSide
from tests.interop.pair import Pair, PairWith, certificate_proofs, psk_proofs
from tests.interop.settings import Proof, Role, Settings, StrongSwanMore
from tests.interop.sides import StrongSwanSide
from tests.kit.strongswan import wait_until
from tests.kit.trixie import Trixie

pytestmark = [pytest.mark.root, pytest.mark.interop]

ROLES = pytest.mark.parametrize(
    "role", list(Role), ids=["tunnelwrap-initiates", "tunnelwrap-responds"]
)


@pytest.fixture
def newer(lan: Lan, tmp_path: Path, root: Trixie, role: Role) -> Iterator[Pair]:
    """A tunnelwrap and the newer strongSwan, not started."""
    ends = Pair(lan, tmp_path, role, root)
    yield ends
    ends.stop()


@pytest.fixture
def libreswan(
    lan: Lan, tmp_path: Path, root: Trixie, role: Role
) -> Iterator[PairWith[LibreswanSide]]:
    """A tunnelwrap and a libreswan, not started."""
    ends = PairWith(lan, tmp_path, role, partial(LibreswanSide, root=root))
    yield ends
    ends.stop()


def proofs_of(kind: str) -> tuple[Proof, Proof]:
    return psk_proofs() if kind == "psk" else certificate_proofs(kind)


@ROLES
@pytest.mark.parametrize("kind", ["psk", "rsa"])
def test_strongswan(newer: Pair, kind: str) -> None:
    initiator, responder = proofs_of(kind)

    assert newer.start(Settings(initiator), Settings(responder)), newer.tunnelwrap.log

    assert ping(newer.lan)
    assert newer.strongswan.logged(r"strongSwan 6\.")
    newer.initiator.disconnect()
    wait_until(lambda: not newer.responder.has_tunnel(), 5, "the responder dropped it")


@ROLES
@pytest.mark.parametrize("kind", ["psk", "rsa", "p256"])
def test_libreswan(libreswan: PairWith[LibreswanSide], kind: str) -> None:
    initiator, responder = proofs_of(kind)

    assert libreswan.start(Settings(initiator), Settings(responder)), (
        libreswan.tunnelwrap.log + libreswan.peer.log[-3000:]
    )

    assert ping(libreswan.lan) if libreswan.tunnelwrap_initiates else libreswan.peer.ping()
    assert libreswan.tunnelwrap.has_tunnel()
    assert libreswan.peer.has_tunnel()
    libreswan.initiator.disconnect()
    wait_until(lambda: not libreswan.responder.has_tunnel(), 5, "the responder dropped it")


def test_the_harness_speaks_of_what_is_new(lan: Lan, tmp_path: Path, root: Trixie) -> None:
    """Between two of the newer strongSwan, so that what fails later is our doing."""
    more = StrongSwanMore(
        connection={"ppk_id": "shared", "ppk_required": "yes", "childless": "force"},
        secrets={"ppk-1": {"id-1": "shared", "secret": f"0x{'5a' * 32}"}},
        charon={"fragment_size": "300"},
    )
    suite = "aes256gcm16-prfsha256-x25519-ke1_modp3072"
    ends = [StrongSwanSide(lan, role, tmp_path, root) for role in (Role.RESPONDER, Role.INITIATOR)]
    try:
        for end, proof in zip(ends, reversed(psk_proofs()), strict=True):
            end.start(Settings(proof, suite, strongswan=more))
        assert ends[1].connect(), ends[1].log

        assert ping(lan)
        said = ends[1].daemon.logged
        assert said(r"generating IKE_INTERMEDIATE request 1 \[ KE \]")
        assert said(r"generating IKE_INTERMEDIATE request 1 \[ EF\(1/2\) \]")
        assert said(r"using PPK for PPK_ID 'shared'")
        assert said(r"generating CREATE_CHILD_SA request 3 \[ SA No KE TSi TSr \]")
    finally:
        for end in ends:
            end.stop()
