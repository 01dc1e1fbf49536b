"""Choosing proposals and narrowing selectors, as tables."""

from ipaddress import ip_address

import pytest

from tests.kit.policies import selectors
from tunnelwrap.config.suites import parse_esp, parse_ike
from tunnelwrap.errors import NoProposalChosen, TsUnacceptable
from tunnelwrap.iana import Encr, Esn, Integ, KeMethod, ProtocolId, TransformType
from tunnelwrap.ike.negotiate import (
    choose_proposal,
    is_allowed,
    is_choice_of,
    ke_methods,
    narrow,
    numbered,
    transform_id,
    with_single_ke,
    without_ke,
)
from tunnelwrap.wire.payloads import TrafficSelector
from tunnelwrap.wire.proposal import Proposal, Transform

GCM = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
GCM_256 = Transform(TransformType.ENCR, Encr.AES_GCM_16, 256)
CBC = Transform(TransformType.ENCR, Encr.AES_CBC, 128)
SHA2 = Transform(TransformType.INTEG, Integ.HMAC_SHA2_256_128, None)
NO_INTEG = Transform(TransformType.INTEG, 0, None)
NO_KE = Transform(TransformType.KE, KeMethod.NONE, None)
X25519 = Transform(TransformType.KE, KeMethod.CURVE25519, None)
ML_KEM = Transform(TransformType.ADDKE1, KeMethod.ML_KEM_768, None)
NO_KE1 = Transform(TransformType.ADDKE1, KeMethod.NONE, None)
ECP = Transform(TransformType.KE, KeMethod.ECP_256, None)
NO_ESN = Transform(TransformType.ESN, Esn.NO_ESN, None)
ESN = Transform(TransformType.ESN, Esn.ESN, None)


def esp(*transforms: Transform, number: int = 1) -> Proposal:
    return Proposal(number, ProtocolId.ESP, b"SPI1", transforms)


@pytest.mark.rfc("7296", "2.7")
@pytest.mark.parametrize(
    ("offered", "ours", "chosen"),
    [
        ([esp(GCM, NO_ESN)], [esp(GCM, NO_ESN)], esp(GCM, NO_ESN)),
        ([esp(GCM_256, GCM, NO_ESN)], [esp(GCM, NO_ESN)], esp(GCM, NO_ESN)),
        # our order decides, within a proposal and between proposals
        ([esp(GCM, GCM_256, NO_ESN)], [esp(GCM_256, GCM, NO_ESN)], esp(GCM_256, NO_ESN)),
        (
            [esp(CBC, SHA2, NO_ESN), esp(GCM, NO_ESN, number=2)],
            [esp(GCM, NO_ESN), esp(CBC, SHA2, NO_ESN)],
            esp(GCM, NO_ESN, number=2),
        ),
        ([esp(GCM, ESN, NO_ESN)], [esp(GCM, NO_ESN)], esp(GCM, NO_ESN)),
        # absent and NONE are the same. RFC 7296 §3.3.3
        ([esp(GCM, NO_INTEG, NO_ESN)], [esp(GCM, NO_ESN)], esp(GCM, NO_INTEG, NO_ESN)),
        ([esp(GCM)], [esp(GCM, NO_ESN)], esp(GCM)),
        ([esp(GCM, NO_KE, X25519)], [esp(GCM)], esp(GCM, NO_KE)),
        ([esp(GCM, NO_ESN)], [esp(GCM, X25519, NO_KE, NO_ESN)], esp(GCM, NO_ESN)),
        # and so with additional key exchanges. RFC 9370 §2.2.1
        ([esp(GCM, NO_ESN)], [esp(GCM, NO_ESN, ML_KEM, NO_KE1)], esp(GCM, NO_ESN)),
        ([esp(GCM, NO_ESN, ML_KEM, NO_KE1)], [esp(GCM, NO_ESN)], esp(GCM, NO_ESN, NO_KE1)),
        (
            [esp(GCM, NO_ESN, NO_KE1, ML_KEM)],
            [esp(GCM, NO_ESN, ML_KEM, NO_KE1)],
            esp(GCM, NO_ESN, ML_KEM),
        ),
    ],
)
def test_choice(offered: list[Proposal], ours: list[Proposal], chosen: Proposal) -> None:
    found = choose_proposal(offered, ours)
    assert (found.number, found.spi) == (chosen.number, chosen.spi)
    assert set(found.transforms) == set(chosen.transforms)
    assert is_choice_of(found, offered)
    assert is_allowed(found, ours)


@pytest.mark.parametrize(
    ("offered", "ours", "words"),
    [
        ([esp(GCM_256, NO_ESN)], [esp(GCM, NO_ESN)], ["AES_GCM_16-256", "AES_GCM_16-128", "ENCR"]),
        ([esp(GCM, X25519)], [esp(GCM)], ["differ in KE"]),
        ([esp(GCM)], [esp(GCM, X25519)], ["differ in KE"]),
        ([esp(CBC, SHA2)], [esp(CBC)], ["differ in INTEG"]),
        ([], [esp(GCM)], ["peer offered nothing"]),
        ([esp(GCM)], [], ["configured nothing"]),
        ([parse_ike("aes128gcm16-prfsha256-x25519")], [esp(GCM)], ["IKE:", "ESP:"]),
        (
            [esp(CBC, SHA2, X25519), esp(GCM_256, X25519, number=2)],
            [esp(GCM)],
            ["nearest: ESP:AES_GCM_16-256"],
        ),
        (
            [esp(GCM, Transform(99, 1, None))],
            [esp(GCM)],
            ["99"],
        ),
        ([esp(GCM)], [esp(GCM, ML_KEM)], ["ADDKE1"]),
    ],
)
def test_no_choice_names_both_sides_and_the_nearest_pair(
    offered: list[Proposal], ours: list[Proposal], words: list[str]
) -> None:
    with pytest.raises(NoProposalChosen) as caught:
        choose_proposal(offered, ours)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.rfc("7296", "3.3.6")
@pytest.mark.parametrize(
    "chosen",
    [
        esp(GCM, NO_ESN, number=2),
        esp(CBC, NO_ESN),
        esp(GCM, GCM_256, NO_ESN),
        esp(GCM, NO_ESN, SHA2),
        Proposal(1, ProtocolId.IKE, b"SPI1", (GCM, NO_ESN)),
    ],
)
def test_what_is_no_choice_of_the_offer(chosen: Proposal) -> None:
    assert not is_choice_of(chosen, [esp(GCM, GCM_256, NO_ESN)])


def test_key_exchange_methods() -> None:
    proposals = [parse_esp("aes128gcm16-ecp256-x25519"), parse_esp("aes256-sha256-x25519-modp2048")]
    assert ke_methods(proposals) == [
        KeMethod.ECP_256,
        KeMethod.CURVE25519,
        KeMethod.MODP_2048,
    ]
    assert ke_methods(without_ke(proposals)) == []
    assert ke_methods([esp(GCM, NO_KE)]) == []
    assert transform_id(proposals[0], TransformType.KE) == KeMethod.ECP_256
    assert transform_id(without_ke(proposals)[0], TransformType.KE) is None


@pytest.mark.rfc("7296", "1.2")
def test_without_key_exchange_proposals_that_differ_in_nothing_else_are_one() -> None:
    assert without_ke([esp(GCM, ML_KEM), esp(GCM, NO_KE), esp(CBC, SHA2)]) == [
        esp(GCM),
        esp(CBC, SHA2),
    ]


@pytest.mark.rfc("9370", "2.2.1")
def test_what_is_left_without_additional_key_exchanges() -> None:
    optional = esp(GCM, ECP, ML_KEM, NO_KE1)
    assert with_single_ke([esp(GCM, ECP, ML_KEM), optional, esp(CBC)]) == [
        esp(GCM, ECP),
        esp(CBC),
    ]


@pytest.mark.rfc("9370", "2.2.2")
def test_a_key_exchange_method_serves_once() -> None:
    again = Transform(TransformType.ADDKE1, KeMethod.ECP_256, None)
    with pytest.raises(NoProposalChosen):
        choose_proposal([esp(GCM, ECP, again)], [esp(GCM, ECP, again)])
    both = esp(GCM, ECP, again, ML_KEM)
    assert choose_proposal([both], [both]) == esp(GCM, ECP, ML_KEM)
    assert not is_choice_of(esp(GCM, ECP, again), [both])
    second = Transform(TransformType.KE, KeMethod.ECP_384, None)
    only = esp(GCM, ECP, second, again)
    assert choose_proposal([only], [only]) == esp(GCM, second, again)


def test_our_proposals_are_numbered_from_one() -> None:
    made = numbered([esp(GCM), esp(CBC, SHA2)], b"ours")
    assert [(p.number, p.spi) for p in made] == [(1, b"ours"), (2, b"ours")]


def ts(protocol: int, first: int, last: int, network: str = "10.0.0.0/8") -> TrafficSelector:
    (whole,) = selectors(network)
    return TrafficSelector(protocol, first, last, whole.start, whole.end)


OPAQUE = ts(6, 65535, 0)
ANY = ts(0, 0, 65535)


@pytest.mark.rfc("7296", "2.9")
@pytest.mark.parametrize(
    ("offered", "allowed", "kept"),
    [
        (ANY, ANY, ANY),
        (ANY, ts(0, 0, 65535, "10.1.0.0/16"), ts(0, 0, 65535, "10.1.0.0/16")),
        (ts(6, 0, 65535), ANY, ts(6, 0, 65535)),
        (ANY, ts(17, 53, 53), ts(17, 53, 53)),
        (ts(6, 80, 443), ts(6, 443, 8080), ts(6, 443, 443)),
        (ts(6, 80, 90), ts(6, 91, 99), None),
        (ts(6, 80, 80), ts(17, 80, 80), None),
        (OPAQUE, ANY, OPAQUE),
        (ANY, OPAQUE, OPAQUE),
        (OPAQUE, OPAQUE, OPAQUE),
        (OPAQUE, ts(6, 80, 80), None),
        (ts(0, 0, 65535, "10.1.0.0/16"), ts(0, 0, 65535, "10.2.0.0/16"), None),
        (ts(0, 0, 65535, "fd00::/8"), ANY, None),
    ],
)
def test_narrowing(
    offered: TrafficSelector, allowed: TrafficSelector, kept: TrafficSelector | None
) -> None:
    if kept is None:
        with pytest.raises(TsUnacceptable, match="nothing in common"):
            narrow([offered], [allowed])
    else:
        assert narrow([offered], [allowed]) == (kept,)


def test_ranges_overlap_at_their_edges() -> None:
    a = TrafficSelector(0, 0, 65535, ip_address("10.0.0.0"), ip_address("10.0.0.9"))
    b = TrafficSelector(0, 0, 65535, ip_address("10.0.0.9"), ip_address("10.0.0.20"))
    (common,) = narrow([a], [b])
    assert common.start == common.end == ip_address("10.0.0.9")


def test_equal_results_are_kept_once() -> None:
    assert narrow(selectors("10.1.0.0/16", "10.1.2.0/24"), selectors("10.1.2.0/24")) == selectors(
        "10.1.2.0/24"
    )


def test_nothing_offered_is_nothing_in_common() -> None:
    with pytest.raises(TsUnacceptable, match="offered nothing"):
        narrow([], [ANY])
