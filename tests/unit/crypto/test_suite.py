"""Suites: from a chosen proposal, their lengths, and their names."""

import pytest

from tunnelwrap.crypto.cipher import supported_encr, supported_integ
from tunnelwrap.crypto.ke import supported_ke
from tunnelwrap.crypto.prf import supported_prf
from tunnelwrap.crypto.suite import (
    ADDITIONAL_KE,
    ENCR_NAMES,
    INTEG_NAMES,
    KE_NAMES,
    PRF_NAMES,
    AhSuite,
    EspSuite,
    IkeSuite,
    child_suite,
)
from tunnelwrap.errors import NoProposalChosen, UsageError
from tunnelwrap.iana import Encr, Esn, Integ, KeMethod, Prf, ProtocolId, TransformType
from tunnelwrap.wire.proposal import Proposal, Transform

GCM = Transform(TransformType.ENCR, Encr.AES_GCM_16, 256)
CBC = Transform(TransformType.ENCR, Encr.AES_CBC, 128)
SHA256 = Transform(TransformType.INTEG, Integ.HMAC_SHA2_256_128, None)
XCBC = Transform(TransformType.INTEG, Integ.AES_XCBC_96, None)
NO_INTEG = Transform(TransformType.INTEG, Integ.NONE, None)
PRF384 = Transform(TransformType.PRF, Prf.HMAC_SHA2_384, None)
X25519 = Transform(TransformType.KE, KeMethod.CURVE25519, None)
NO_KE = Transform(TransformType.KE, KeMethod.NONE, None)
ESN = Transform(TransformType.ESN, Esn.ESN, None)
NO_ESN = Transform(TransformType.ESN, Esn.NO_ESN, None)
GMAC = Transform(TransformType.ENCR, Encr.NULL_AUTH_AES_GMAC, 128)
NULL = Transform(TransformType.ENCR, Encr.NULL, None)
KE1 = Transform(TransformType.ADDKE1, KeMethod.ML_KEM_768, None)
KE2 = Transform(TransformType.ADDKE2, KeMethod.ML_KEM_1024, None)
NO_KE1 = Transform(TransformType.ADDKE1, KeMethod.NONE, None)


def ike(*transforms: Transform) -> IkeSuite:
    return IkeSuite.from_proposal(Proposal(1, ProtocolId.IKE, b"", transforms))


def esp(*transforms: Transform) -> EspSuite:
    return EspSuite.from_proposal(Proposal(1, ProtocolId.ESP, b"1234", transforms))


@pytest.mark.parametrize(
    ("transforms", "text"),
    [
        ((GCM, PRF384, X25519), "aes256gcm16-prfsha384-x25519"),
        ((GCM, NO_INTEG, PRF384, X25519), "aes256gcm16-prfsha384-x25519"),
        ((CBC, SHA256, PRF384, X25519), "aes128-sha256-prfsha384-x25519"),
        ((X25519, PRF384, GCM), "aes256gcm16-prfsha384-x25519"),
        ((GCM, PRF384, X25519, KE1), "aes256gcm16-prfsha384-x25519-ke1_mlkem768"),
        ((GCM, PRF384, X25519, NO_KE1), "aes256gcm16-prfsha384-x25519"),
    ],
)
def test_ike_suite(transforms: tuple[Transform, ...], text: str) -> None:
    suite = ike(*transforms)
    assert str(suite) == text
    assert suite.prf_function().id == Prf.HMAC_SHA2_384
    assert suite.ke == KeMethod.CURVE25519
    assert suite.cipher().is_aead is (GCM in transforms)


@pytest.mark.parametrize(
    ("transforms", "text"),
    [
        ((GCM, ESN), "aes256gcm16-esn"),
        ((GCM, NO_ESN), "aes256gcm16-noesn"),
        ((GCM, NO_KE, ESN), "aes256gcm16-esn"),
        ((GCM, X25519, ESN), "aes256gcm16-x25519-esn"),
        ((CBC, SHA256, NO_ESN), "aes128-sha256-noesn"),
        ((NULL, SHA256, NO_ESN), "null-sha256-noesn"),
        ((GMAC, ESN), "aes128gmac-esn"),
        ((GCM, X25519, KE1, KE2, ESN), "aes256gcm16-x25519-ke1_mlkem768-ke2_mlkem1024-esn"),
    ],
)
def test_esp_suite(transforms: tuple[Transform, ...], text: str) -> None:
    suite = esp(*transforms)
    assert str(suite) == text
    assert suite.uses_esn is (ESN in transforms)
    assert suite.ke == (KeMethod.CURVE25519 if X25519 in transforms else None)


@pytest.mark.parametrize(
    ("suite", "lengths"),
    [
        (esp(GCM, ESN), (36, 0, 4, 8, 16, 1, True)),
        (esp(CBC, SHA256, ESN), (16, 32, 0, 16, 16, 16, False)),
        (esp(NULL, SHA256, ESN), (0, 32, 0, 0, 16, 1, False)),
        (esp(GMAC, ESN), (20, 0, 4, 8, 16, 1, True)),
    ],
    ids=str,
)
def test_esp_lengths(suite: EspSuite, lengths: tuple[int, ...]) -> None:
    assert lengths == (
        suite.encryption_key_length,
        suite.integrity_key_length,
        suite.salt_length,
        suite.iv_length,
        suite.icv_length,
        suite.block_size,
        suite.is_aead,
    )


@pytest.mark.rfc("7296", "3.3.3")
@pytest.mark.parametrize(
    "transforms",
    [(), (GCM, X25519), (GCM, PRF384), (PRF384, X25519), (GCM, CBC, PRF384, X25519)],
)
def test_ike_proposals_that_leave_a_choice_or_a_gap(transforms: tuple[Transform, ...]) -> None:
    with pytest.raises(NoProposalChosen, match="expected 1"):
        ike(*transforms)


@pytest.mark.parametrize(
    ("transforms", "text", "lengths"),
    [
        ((SHA256, ESN), "sha256-esn", (0, 32, 16)),
        ((XCBC, NO_KE, NO_ESN), "aesxcbc-noesn", (0, 16, 12)),
        ((SHA256, X25519, KE1, ESN), "sha256-x25519-ke1_mlkem768-esn", (0, 32, 16)),
    ],
)
def test_ah_suite(
    transforms: tuple[Transform, ...], text: str, lengths: tuple[int, int, int]
) -> None:
    suite = child_suite(Proposal(1, ProtocolId.AH, b"", transforms))
    assert isinstance(suite, AhSuite)
    assert str(suite) == text
    assert suite.uses_esn is (ESN in transforms)
    keys = suite.encryption_key_length, suite.integrity_key_length
    assert (*keys, suite.icv_length) == lengths


@pytest.mark.rfc("7296", "3.3.3")
@pytest.mark.parametrize(
    "transforms",
    [(), (SHA256,), (ESN,), (NO_INTEG, ESN), (SHA256, XCBC, ESN), (SHA256, ESN, NO_ESN)],
)
def test_ah_proposals_that_leave_a_choice_or_a_gap(transforms: tuple[Transform, ...]) -> None:
    with pytest.raises(NoProposalChosen, match=r"expected 1|NONE does not protect AH"):
        child_suite(Proposal(1, ProtocolId.AH, b"", transforms))


@pytest.mark.rfc("7296", "3.3.3")
@pytest.mark.parametrize("transforms", [(), (GCM,), (ESN,), (GCM, ESN, NO_ESN), (GCM, GCM, ESN)])
def test_esp_proposals_that_leave_a_choice_or_a_gap(transforms: tuple[Transform, ...]) -> None:
    with pytest.raises(NoProposalChosen, match="expected 1"):
        esp(*transforms)


@pytest.mark.rfc("9370", "2.2.1")
def test_additional_key_exchanges_in_their_order() -> None:
    suite = ike(GCM, PRF384, X25519, KE2, KE1)
    assert suite.additional_ke == (
        (TransformType.ADDKE1, KeMethod.ML_KEM_768),
        (TransformType.ADDKE2, KeMethod.ML_KEM_1024),
    )
    assert ike(GCM, PRF384, X25519, NO_KE1).additional_ke == ()
    with pytest.raises(NoProposalChosen, match="2 ADDKE1"):
        ike(GCM, PRF384, X25519, KE1, NO_KE1)
    assert [kind.value for kind in ADDITIONAL_KE] == [6, 7, 8, 9, 10, 11, 12]


@pytest.mark.rfc("8247", "2.1")
@pytest.mark.parametrize("transforms", [(NULL, SHA256, PRF384, X25519), (GMAC, PRF384, X25519)])
def test_no_ike_sa_without_encryption(transforms: tuple[Transform, ...]) -> None:
    with pytest.raises(NoProposalChosen, match="does not protect an IKE SA"):
        ike(*transforms)


def test_algorithms_unknown_to_us_still_print() -> None:
    suite = IkeSuite(Encr.DES3, None, Integ.HMAC_MD5_96, 99, 1024)
    assert str(suite) == "DES3-HMAC_MD5_96-prf99-1024"
    assert str(EspSuite(99, 7, None, 2, uses_esn=False)) == "99_7-MODP_1024-noesn"
    with pytest.raises(UsageError):
        suite.cipher()


def test_what_has_a_name_can_be_computed() -> None:
    assert all(supported_encr(*key) for key in ENCR_NAMES)
    assert all(supported_integ(key) for key in INTEG_NAMES)
    assert all(supported_prf(key) for key in PRF_NAMES)
    assert all(supported_ke(key) for key in KE_NAMES)
