"""What must be refused is: with the right notify, and with a log line that names the cause.

Each fault is put into strongSwan's half, for tunnelwrap to refuse, and into tunnelwrap's half, for
strongSwan to refuse and tunnelwrap to report.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.interop.pair import Pair, certificate_proofs, psk_proofs
from tests.interop.settings import Proof, Settings
from tests.kit.certs import authority, entity
from tests.kit.strongswan import wait_until

pytestmark = [pytest.mark.root, pytest.mark.interop]

KIND = "p256"
LOG_S = 5.0
STRANGER = "stranger.example.org"

AUTH_FAILED = (
    r"(generating|parsed) (IKE_AUTH response 1|INFORMATIONAL request 2) \[ N\(AUTH_FAILED\) \]"
)
NO_PROPOSAL_IKE = r"(generating|parsed) IKE_SA_INIT response 0 \[ N\(NO_PROP\) \]"
NO_PROPOSAL_ESP = r"(generating|parsed) IKE_AUTH response 1 \[ .*N\(NO_PROP\).* \]"

Fault = Callable[[Proof], Proof]


def wrong_psk(proof: Proof) -> Proof:
    return replace(proof, psk="not the right one")


def wrong_identity(proof: Proof) -> Proof:
    return replace(proof, local_id=STRANGER)


def certificate_of_a_stranger(proof: Proof) -> Proof:
    assert proof.authority is not None
    stranger = entity(f"CN={STRANGER}", proof.authority, kind=KIND, number=5, sans=[STRANGER])
    return replace(proof, local_id=STRANGER, certificate=stranger)


def expired(proof: Proof) -> Proof:
    assert proof.authority is not None
    now = datetime.now(UTC)
    valid = (now - timedelta(days=20), now - timedelta(days=2))
    name = proof.local_id
    old = entity(f"CN={name}", proof.authority, kind=KIND, number=6, sans=[name], valid=valid)
    return replace(proof, certificate=old)


def untrusted(proof: Proof) -> Proof:
    foreign = authority("C=CH, O=Foreign, CN=Foreign Root", KIND, number=101)
    name = proof.local_id
    forged = entity(f"CN={name}", foreign, kind=KIND, number=7, sans=[name])
    return replace(proof, certificate=forged)


# By case: the fault, and what in tunnelwrap's log names it.
CASES: dict[str, tuple[Fault, str]] = {
    "wrong-psk": (wrong_psk, r"pre-shared key|PSK"),
    "wrong-identity": (wrong_identity, STRANGER),
    "strangers-certificate": (certificate_of_a_stranger, STRANGER),
    "expired-certificate": (expired, r"expired"),
    "untrusted-certificate": (untrusted, r"Foreign Root"),
}
# A refusal by the peer is known by its notify alone.
REPORTED = r"AUTHENTICATION_FAILED"
# The responder sees these first, whoever is at fault: it checks first, and is told whom to be.
SEEN_BY_THE_RESPONDER = {"wrong-psk", "wrong-identity", "strangers-certificate"}


# tunnelwrap does not even start with an expired certificate of its own: tests/unit/config has that.
FAULTS = [
    (at_fault, case)
    for at_fault in ("strongswan", "tunnelwrap")
    for case in CASES
    if (at_fault, case) != ("tunnelwrap", "expired-certificate")
]


@pytest.mark.parametrize(("at_fault", "case"), FAULTS)
def test_authentication_is_refused(pair: Pair, at_fault: str, case: str) -> None:
    fault, cause = CASES[case]
    proofs = certificate_proofs(KIND) if "certificate" in case else psk_proofs()
    index = 0 if (at_fault == "tunnelwrap") == pair.tunnelwrap_initiates else 1
    halves = [fault(proof) if i == index else proof for i, proof in enumerate(proofs)]

    assert not pair.start(Settings(halves[0]), Settings(halves[1]))

    pair.strongswan.wait_log(AUTH_FAILED)
    tunnelwrap_refuses = at_fault == "strongswan"
    if case in SEEN_BY_THE_RESPONDER:
        tunnelwrap_refuses = not pair.tunnelwrap_initiates
    expected = cause if tunnelwrap_refuses else REPORTED
    wait_until(
        lambda: re.search(expected, pair.tunnelwrap.log) is not None,
        LOG_S,
        f"tunnelwrap's log has {expected}",
        lambda: pair.tunnelwrap.log,
    )
    assert not pair.tunnelwrap.has_tunnel()


OURS, THEIRS = "aes256gcm16", "aes128gcm16"


def test_no_common_ike_proposal(pair: Pair) -> None:
    def offer(settings: Settings, cipher: str) -> Settings:
        return replace(settings, ike=f"{cipher}-prfsha256-x25519")

    assert not _start_with(pair, offer)

    pair.strongswan.wait_log(NO_PROPOSAL_IKE)
    _assert_mismatch_is_explained(pair)


def test_no_common_esp_proposal(pair: Pair) -> None:
    def offer(settings: Settings, cipher: str) -> Settings:
        return replace(settings, esp=cipher)

    _start_with(pair, offer)

    pair.strongswan.wait_log(NO_PROPOSAL_ESP)
    _assert_mismatch_is_explained(pair)
    assert not pair.tunnelwrap.has_tunnel()


def _start_with(pair: Pair, offer: Callable[[Settings, str], Settings]) -> bool:
    """Start with different ciphers on both sides."""
    ciphers = (OURS, THEIRS) if pair.tunnelwrap_initiates else (THEIRS, OURS)
    halves = zip(psk_proofs(), ciphers, strict=True)
    return pair.start(*(offer(Settings(proof), cipher) for proof, cipher in halves))


def _assert_mismatch_is_explained(pair: Pair) -> None:
    """Our offer is always known; the peer's only to a responder (an initiator gets a notify)."""
    log = pair.tunnelwrap.log
    assert "NO_PROPOSAL_CHOSEN" in log, log
    assert re.search(r"AES_GCM_16-256|aes256gcm16", log), log
    if not pair.tunnelwrap_initiates:
        assert re.search(r"AES_GCM_16-128|aes128gcm16", log), log
