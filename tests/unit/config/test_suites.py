"""Suite strings: what strongSwan's users paste, and what a mistake is answered with."""

import pytest

from tunnelwrap.config.suites import DEFAULT_ESP, DEFAULT_IKE, parse_ah, parse_esp, parse_ike
from tunnelwrap.crypto.suite import AhSuite, EspSuite, IkeSuite
from tunnelwrap.errors import ConfigError
from tunnelwrap.iana import Encr, Esn, Integ, KeMethod, Prf, ProtocolId, TransformType
from tunnelwrap.wire.proposal import Proposal

ENCR, PRF, INTEG, KE, ESN = (
    TransformType.ENCR,
    TransformType.PRF,
    TransformType.INTEG,
    TransformType.KE,
    TransformType.ESN,
)


CCM_64_AND_128 = [(ENCR, 14, 128), (ENCR, 16, 192), (PRF, 2), (KE, 19)]


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
        ("aes256ccm16-prfsha256-x25519", [(ENCR, 16, 256), (PRF, 5), (KE, 31)]),
        ("aes128ccm64-aes192ccm128-prfsha1-ecp256", CCM_64_AND_128),
        ("aes128ctr-sha256-modp2048", [(ENCR, 13, 128), (PRF, 5), (INTEG, 12), (KE, 14)]),
        ("aes128-sha-modp2048", [(ENCR, 12, 128), (PRF, 2), (INTEG, 2), (KE, 14)]),
        ("aes128-aesxcbc-modp2048", [(ENCR, 12, 128), (PRF, 4), (INTEG, 5), (KE, 14)]),
        ("aes128-sha1-prfaesxcbc-mlkem768", [(ENCR, 12, 128), (PRF, 4), (INTEG, 2), (KE, 36)]),
        (
            "aes256gcm16-prfsha384-ecp384-ke1_mlkem768-ke1_none-ke7_curve25519-ke2_mlkem1024",
            [(ENCR, 20, 256), (PRF, 6), (KE, 20), (6, 36), (6, 0), (7, 37), (12, 31)],
        ),
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
        ("aes128ccm8-noesn", [(ENCR, 14, 128), (ESN, 0)]),
        ("aes256ctr-sha512-noesn", [(ENCR, 13, 256), (INTEG, 14), (ESN, 0)]),
        ("null-sha256-noesn", [(ENCR, 11), (INTEG, 12), (ESN, 0)]),
        ("null-aesxcbc-noesn", [(ENCR, 11), (INTEG, 5), (ESN, 0)]),
        ("aes256gmac-noesn", [(ENCR, 21, 256), (ESN, 0)]),
        ("aes128-sha1-noesn", [(ENCR, 12, 128), (INTEG, 2), (ESN, 0)]),
        ("aes128gcm16-x25519-ke1_mlkem768-noesn", [(ENCR, 20, 128), (KE, 31), (ESN, 0), (6, 36)]),
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
        ("aes256-md5-modp1024", "'md5'"),
        ("aes256-sha1-modp1536", "'modp1536'"),
        ("null-sha256-modp2048", "'null'"),
        ("aes128gmac-prfsha256-modp2048", "'aes128gmac'"),
        ("aes128ctr-modp2048-prfsha256", "no integrity"),
        ("aes256gcm16-prfsha256-ke1_mlkem768", "no key exchange"),
        ("aes256gcm16-prfsha256-x25519-ke1_mlkem769", "did you mean ke1_mlkem768"),
        ("aes256gcm16-prfsha256-x25519-ke8_mlkem768", "unknown algorithm 'ke8_mlkem768'"),
        ("aes256gcm16-prfsha256-mlkem512", "unknown algorithm 'mlkem512'"),
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
        ("null", "no integrity"),
        ("aes128ctr", "no integrity"),
        ("3des-sha1", "'3des'"),
        ("null-sha256-aes128gmac", "two proposals"),
    ],
)
def test_esp_mistakes(text: str, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        parse_esp(text)


@pytest.mark.rfc("7296", "3.3.3")
@pytest.mark.parametrize(
    ("text", "transforms"),
    [
        ("sha256", [(INTEG, 12), (ESN, 1), (ESN, 0)]),
        ("sha256-sha1-x25519-none-noesn", [(INTEG, 12), (INTEG, 2), (KE, 31), (KE, 0), (ESN, 0)]),
        ("x25519-aesxcbc-ke1_mlkem768-esn", [(INTEG, 5), (KE, 31), (ESN, 1), (6, 36)]),
    ],
)
def test_ah(text: str, transforms: list[tuple[int, ...]]) -> None:
    proposal = parse_ah(text)
    assert flat(proposal) == transforms
    assert (proposal.number, proposal.protocol, proposal.spi) == (1, ProtocolId.AH, b"")


@pytest.mark.parametrize(
    ("text", "cause"), [("x25519", "no integrity"), ("aes256-sha256", "'aes256'"), ("", "''")]
)
def test_ah_mistakes(text: str, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        parse_ah(text)


@pytest.mark.parametrize("text", ["sha512-noesn", "aesxcbc-ecp256-ke1_mlkem768-esn"])
def test_an_ah_suite_reads_what_it_prints(text: str) -> None:
    assert str(AhSuite.from_proposal(parse_ah(text))) == text


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
        "aes256ccm8-prfsha1-mlkem768",
        "aes128ctr-aesxcbc-prfaesxcbc-modp2048",
        "aes256gcm16-prfsha384-ecp384-ke1_mlkem768",
        "aes128-sha1-prfsha1-x25519-ke2_ecp256-ke7_mlkem1024",
    ],
)
def test_an_ike_suite_reads_what_it_prints(text: str) -> None:
    assert str(IkeSuite.from_proposal(parse_ike(text))) == text


@pytest.mark.parametrize(
    "text",
    [
        *("aes256gcm16-ecp384-esn", "aes192-sha512-noesn", "null-sha1-noesn", "aes192gmac-esn"),
        *("aes256ccm16-x25519-ke1_mlkem768-esn", "aes256ctr-sha256-noesn"),
    ],
)
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
    hybrid, *classical = esp
    assert (TransformType.ADDKE1, KeMethod.ML_KEM_768) in flat(hybrid)
    assert all((KE, KeMethod.NONE) in flat(proposal) for proposal in classical)


@pytest.mark.rfc("8247", "2")
@pytest.mark.rfc("8221", "5")
def test_defaults_are_strong() -> None:
    """Only AES-CBC and AEADs of 128 bits and more, SHA-2, and no exchange that is SHOULD NOT."""
    strong = {
        ENCR: {Encr.AES_CBC, Encr.AES_GCM_16, Encr.CHACHA20_POLY1305},
        PRF: {Prf.HMAC_SHA2_256, Prf.HMAC_SHA2_384, Prf.HMAC_SHA2_512},
        INTEG: {Integ.HMAC_SHA2_256_128, Integ.HMAC_SHA2_384_192, Integ.HMAC_SHA2_512_256},
        KE: {KeMethod.NONE, *(method for method in KeMethod if method >= KeMethod.MODP_2048)},
        ESN: set(Esn),
        TransformType.ADDKE1: {KeMethod.ML_KEM_768},
    }
    for text in (*map(parse_ike, DEFAULT_IKE), *map(parse_esp, DEFAULT_ESP)):
        assert all(each.id in strong[each.type] for each in text.transforms)
