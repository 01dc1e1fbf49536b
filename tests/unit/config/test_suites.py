"""Suite strings: what strongSwan's users paste, and what a mistake is answered with."""

import pytest

from tunnelwrap.config.suites import DEFAULT_ESP, DEFAULT_IKE, parse_esp, parse_ike
from tunnelwrap.crypto.suite import EspSuite, IkeSuite
from tunnelwrap.errors import ConfigError
from tunnelwrap.iana import Esn, KeMethod, ProtocolId, TransformType
from tunnelwrap.wire.proposal import Proposal

ENCR, PRF, INTEG, KE, ESN = (
    TransformType.ENCR,
    TransformType.PRF,
    TransformType.INTEG,
    TransformType.KE,
    TransformType.ESN,
)


def flat(proposal: Proposal) -> list[tuple[int, ...]]:
    return [
        (each.type, each.id) if each.key_bits is None else (each.type, each.id, each.key_bits)
        for each in proposal.transforms
    ]


@pytest.mark.parametrize(
    ("text", "transforms"),
    [
        ("aes256gcm16-prfsha384-ecp384", [(ENCR, 20, 256), (PRF, 6), (KE, 20)]),
        ("aes128gcm16-prfsha256-x25519", [(ENCR, 20, 128), (PRF, 5), (KE, 31)]),
        ("aes128gcm128-prfsha256-curve25519", [(ENCR, 20, 128), (PRF, 5), (KE, 31)]),
        ("chacha20poly1305-prfsha512-x448", [(ENCR, 28), (PRF, 7), (KE, 32)]),
        ("aes256-sha256-modp2048", [(ENCR, 12, 256), (PRF, 5), (INTEG, 12), (KE, 14)]),
        ("aes-sha2_512-ecp521", [(ENCR, 12, 128), (PRF, 7), (INTEG, 14), (KE, 21)]),
        ("aes192-sha384-prfsha256-modp3072", [(ENCR, 12, 192), (PRF, 5), (INTEG, 13), (KE, 15)]),
        ("aes256gcm16-sha384-ecp384", [(ENCR, 20, 256), (PRF, 6), (KE, 20)]),
        (
            "aes256-aes128-sha512-sha256-x25519-modp4096",
            [
                *[(ENCR, 12, 256), (ENCR, 12, 128), (PRF, 7), (PRF, 5)],
                *[(INTEG, 14), (INTEG, 12), (KE, 31), (KE, 16)],
            ],
        ),
        ("ecp256-prfsha256-aes256gcm16-aes256gcm16", [(ENCR, 20, 256), (PRF, 5), (KE, 19)]),
        (" AES256GCM16 - PRFSHA256 - X25519 ", [(ENCR, 20, 256), (PRF, 5), (KE, 31)]),
    ],
)
def test_ike(text: str, transforms: list[tuple[int, ...]]) -> None:
    proposal = parse_ike(text)
    assert flat(proposal) == transforms
    assert (proposal.number, proposal.protocol, proposal.spi) == (1, ProtocolId.IKE, b"")


@pytest.mark.parametrize(
    ("text", "transforms"),
    [
        ("aes256gcm16", [(ENCR, 20, 256), (ESN, 1), (ESN, 0)]),
        ("aes256gcm16-noesn", [(ENCR, 20, 256), (ESN, 0)]),
        ("aes256gcm16-esn", [(ENCR, 20, 256), (ESN, 1)]),
        ("aes256gcm16-noesn-esn", [(ENCR, 20, 256), (ESN, 0), (ESN, 1)]),
        ("aes128-sha256-modp2048-esn", [(ENCR, 12, 128), (INTEG, 12), (KE, 14), (ESN, 1)]),
        ("aes128gcm16-sha256-x25519-esn", [(ENCR, 20, 128), (KE, 31), (ESN, 1)]),
        ("chacha20poly1305-x25519-none-esn", [(ENCR, 28), (KE, 31), (KE, 0), (ESN, 1)]),
    ],
)
def test_esp(text: str, transforms: list[tuple[int, ...]]) -> None:
    proposal = parse_esp(text)
    assert flat(proposal) == transforms
    assert (proposal.number, proposal.protocol, proposal.spi) == (1, ProtocolId.ESP, b"")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "unknown algorithm ''"),
        ("aes256gcm16-prfsha384-ecp385", "did you mean ecp384"),
        ("aes256gcm16-prfsha384-banana", "known are"),
        ("3des-sha256-modp2048", "'3des'"),
        ("aes256-sha1-modp1024", "'sha1'"),
        ("aes256gcm16-x25519", "no PRF, add for example prfsha256"),
        ("aes256gcm16-prfsha256", "no key exchange, add for example x25519"),
        ("prfsha256-x25519", "no encryption"),
        ("aes256-prfsha256-x25519", "no integrity, add for example sha256"),
        ("aes256gcm16-aes256-sha256-x25519", "write them as two proposals"),
        ("aes256gcm16-prfsha256-x25519-esn", "'esn'"),
        ("aes256gcm16-prfsha256-none", "'none'"),
    ],
)
def test_ike_mistakes(text: str, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        parse_ike(text)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("aes256", "no integrity"),
        ("sha256", "no encryption"),
        ("aes256gcm16-prfsha256", "'prfsha256'"),
        ("aes256gcm16-aes128-sha256", "two proposals"),
        ("null-sha256", "'null'"),
    ],
)
def test_esp_mistakes(text: str, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        parse_esp(text)


def test_all_unknown_words_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_ike("aes512-sha257-modp1")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "text",
    [
        "aes256gcm16-prfsha384-ecp384",
        "aes128-sha256-prfsha512-modp2048",
        "chacha20poly1305-prfsha256-x448",
    ],
)
def test_an_ike_suite_reads_what_it_prints(text: str) -> None:
    assert str(IkeSuite.from_proposal(parse_ike(text))) == text


@pytest.mark.parametrize("text", ["aes256gcm16-ecp384-esn", "aes192-sha512-noesn"])
def test_an_esp_suite_reads_what_it_prints(text: str) -> None:
    assert str(EspSuite.from_proposal(parse_esp(text))) == text


@pytest.mark.rfc("8221", "5")
@pytest.mark.rfc("8221", "6")
@pytest.mark.rfc("8247", "2.1")
@pytest.mark.rfc("8247", "2.3")
@pytest.mark.rfc("8247", "2")
def test_defaults() -> None:
    ike = [parse_ike(text) for text in DEFAULT_IKE]
    esp = [parse_esp(text) for text in DEFAULT_ESP]
    every = [each for proposal in [*ike, *esp] for each in flat(proposal)]
    for mandatory in [(ENCR, 12, 256), (ENCR, 20, 256), (INTEG, 12), (PRF, 5), (KE, 14)]:
        assert mandatory in every
    assert (ESN, Esn.ESN) in every
    assert all((KE, KeMethod.NONE) in flat(proposal) for proposal in esp)
