"""Additional key exchanges and post-quantum preshared keys, with the strongSwan of Debian 13.

Its packages compute no ML-KEM: classical methods take the places of additional key exchanges.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.interop.lan import Lan, PingFlood, ping
from tests.interop.pair import Pair, psk_proofs
from tests.interop.settings import Role, Settings, StrongSwanMore
from tests.interop.test_rekey import CHILD_REKEYED, FLOOD_S, IKE_REKEYED, MINIMUM, rekeying
from tests.kit.strongswan import Tree
from tests.kit.trixie import Trixie
from tunnelwrap.config.suites import DEFAULT_ESP, DEFAULT_IKE

pytestmark = [pytest.mark.root, pytest.mark.interop]

ONE = ("aes256gcm16-prfsha256-x25519-ke1_modp3072", "aes256gcm16-x25519-ke1_modp3072")
TWO = (f"{ONE[0]}-ke3_ecp384", f"{ONE[1]}-ke3_ecp384")
SECRET, OTHER_SECRET = "5a" * 32, "c3" * 32


@pytest.fixture(params=list(Role), ids=["tunnelwrap-initiates", "tunnelwrap-responds"])
def newer(request: pytest.FixtureRequest, lan: Lan, tmp_path: Path, root: Trixie) -> Iterator[Pair]:
    """A tunnelwrap and the newer strongSwan, not started; in both roles, one after the other."""
    ends = Pair(lan, tmp_path, request.param, root)
    yield ends
    ends.stop()


def both(suites: tuple[str, str]) -> tuple[Settings, Settings]:
    initiator, responder = (Settings(proof, *suites) for proof in psk_proofs())
    return initiator, responder


@pytest.mark.rfc("9370", "2.2.2")
@pytest.mark.parametrize(("suites", "count"), [(ONE, 1), (TWO, 2)])
def test_additional_key_exchanges(newer: Pair, suites: tuple[str, str], count: int) -> None:
    assert newer.start(*both(suites)), newer.tunnelwrap.log

    assert ping(newer.lan)
    assert "KE1_MODP_3072" in newer.strongswan.sas()
    assert len(newer.strongswan.logged(r"parsed IKE_INTERMEDIATE")) == count


@pytest.mark.rfc("9370", "2.2.4")
@pytest.mark.parametrize("rekeyer", ["tunnelwrap", "strongswan"])
@pytest.mark.parametrize(("what", "suites"), [("child", ONE), ("child", TWO), ("ike", TWO)])
def test_rekeys_with_follow_ups(
    newer: Pair, rekeyer: str, what: str, suites: tuple[str, str]
) -> None:
    initiator, responder = both(suites)
    if (rekeyer == "tunnelwrap") == newer.tunnelwrap_initiates:
        initiator = rekeying(initiator, what)
    else:
        responder = rekeying(responder, what)
    assert newer.start(initiator, responder), newer.tunnelwrap.log

    result = PingFlood(newer.lan, newer.directory / "ping", FLOOD_S).finish()

    assert result.lost == 0, result
    pattern, before = (CHILD_REKEYED, 1) if what == "child" else (IKE_REKEYED, 0)
    assert len(newer.strongswan.logged(pattern)) - before >= MINIMUM
    assert newer.strongswan.logged(r"parsed IKE_FOLLOWUP_KE")


def test_our_defaults_and_a_peer_that_knows_neither(pair: Pair) -> None:
    """The strongSwan of this machine passes over proposals with transform types of RFC 9370."""
    initiator, responder = psk_proofs()
    ours, theirs = (",".join(DEFAULT_IKE), ",".join(DEFAULT_ESP)), ("default", "default")
    suites = (ours, theirs) if pair.tunnelwrap_initiates else (theirs, ours)

    settings = [Settings(initiator, *suites[0]), Settings(responder, *suites[1])]
    assert pair.start(*settings), pair.tunnelwrap.log + pair.strongswan.log

    assert ping(pair.lan)


def ours_with_ppk(settings: Settings, *, required: bool) -> Settings:
    lines = ('ppk_id = "shared"', f'ppk = "{SECRET}"', f"ppk_required = {required}".lower())
    return replace(settings, tunnelwrap=lines)


def theirs_with_ppk(
    settings: Settings, name: str, secret: str, *, required: bool, initiates: bool
) -> Settings:
    """As responder, a strongSwan whose connection names a PPK accepts no other and no none."""
    connection: Tree = {"ppk_id": name} if required or initiates else {}
    connection["ppk_required"] = "yes" if required else "no"
    secrets: Tree = {"ppk-1": {"id-1": name, "secret": f'"{secret}"'}}
    return replace(settings, strongswan=StrongSwanMore(connection=connection, secrets=secrets))


@pytest.mark.rfc("8784", "3")
@pytest.mark.parametrize(
    ("theirs", "required", "is_up", "is_used"),
    [
        (("shared", SECRET), (False, False), True, True),
        (("shared", SECRET), (True, True), True, True),
        (("shared", OTHER_SECRET), (False, False), False, False),
        (("another", SECRET), (False, False), True, False),
        (("another", SECRET), (True, False), False, False),
        (("another", SECRET), (False, True), False, False),
        (None, (False, False), True, False),
        (None, (True, False), False, False),
    ],
    ids=[
        *("optional", "required", "other-secret", "other-name"),
        *("other-name-ours-required", "other-name-theirs-required"),
        *("only-ours", "only-ours-required"),
    ],
)
def test_ppk(
    newer: Pair,
    theirs: tuple[str, str] | None,
    required: tuple[bool, bool],
    is_up: bool,  # noqa: FBT001 (a row of the table)
    is_used: bool,  # noqa: FBT001 (a row of the table)
) -> None:
    initiator, responder = both((ONE[0], "aes256gcm16"))
    for_ours, for_theirs = required
    settings = [initiator, responder]
    ours = 0 if newer.tunnelwrap_initiates else 1
    settings[ours] = ours_with_ppk(settings[ours], required=for_ours)
    if theirs is not None:
        settings[1 - ours] = theirs_with_ppk(
            settings[1 - ours], *theirs, required=for_theirs, initiates=ours == 1
        )

    assert newer.start(*settings) is is_up, newer.tunnelwrap.log + newer.strongswan.log

    assert ping(newer.lan) is is_up
    assert bool(newer.strongswan.logged(r"using PPK for PPK_ID")) >= is_used
