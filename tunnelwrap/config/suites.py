"""Suite strings as strongSwan writes them, into proposals: ``aes256gcm16-prfsha384-ecp384``.

Algorithms are joined by hyphens in any order; several of one kind are offered together, in the
order written. ``sha256`` is integrity beside AES-CBC, and names the PRF where none is written.
``ke1_mlkem768`` is an additional key exchange (RFC 9370), ``ke1_none`` makes it optional.

What RFC 8247 and RFC 8221 call weak, or good for old or small peers only, is in no default; what
they forbid has no name.
"""

from difflib import get_close_matches
from operator import attrgetter
from typing import Final

from tunnelwrap.crypto.cipher import is_aead, is_esp_only
from tunnelwrap.crypto.suite import (
    ADDITIONAL_KE,
    ENCR_NAMES,
    INTEG_NAMES,
    KE_NAMES,
    PRF_NAMES,
    additional_ke_name,
)
from tunnelwrap.errors import ConfigError
from tunnelwrap.iana import Esn, Integ, KeMethod, Prf, ProtocolId, TransformType
from tunnelwrap.wire.proposal import Proposal, Transform

DEFAULT_IKE: Final = (
    "aes256gcm16-aes128gcm16-chacha20poly1305-prfsha512-prfsha256-x25519-ke1_mlkem768",
    "aes256gcm16-aes128gcm16-chacha20poly1305-prfsha512-prfsha256-x25519-ecp256-ecp384-modp2048",
    "aes256-sha256-modp2048",
)
"""What is offered for the IKE SA where a configuration says nothing. RFC 8247.

First a hybrid with ML-KEM. What a peer does not know of it is a transform type, for which it
passes over the whole proposal (RFC 7296 §3.3.6): those that it may know stand by themselves.
"""

DEFAULT_ESP: Final = (
    "aes256gcm16-aes128gcm16-chacha20poly1305-x25519-ke1_mlkem768",
    "aes256gcm16-aes128gcm16-chacha20poly1305-x25519-ecp256-ecp384-modp2048-none",
    "aes256-sha256-x25519-ecp256-ecp384-modp2048-none",
)
"""What is offered for Child SAs; fresh keys by key exchange if the peer agrees. RFC 8221."""

_ALIASES: Final = {
    "aes": "aes128",
    **{
        f"{prefix}curve{bits}": f"{prefix}x{bits}"
        for prefix in ("", *(f"ke{number}_" for number in range(1, 8)))
        for bits in (25519, 448)
    },
    "chacha20poly1305compat": "chacha20poly1305",
    "sha": "sha1",
    **{f"aes{bits}gcm{end}": f"aes{bits}gcm16" for bits in (128, 192, 256) for end in ("", "128")},
    **{
        f"aes{bits}ccm{8 * icv}": f"aes{bits}ccm{icv}"
        for bits in (128, 192, 256)
        for icv in (8, 16)
    },
    **{f"sha2_{bits}": f"sha{bits}" for bits in (256, 384, 512)},
}

_PRF_OF_INTEG: Final[dict[int, int]] = {
    Integ.HMAC_SHA1_96: Prf.HMAC_SHA1,
    Integ.AES_XCBC_96: Prf.AES128_XCBC,
    Integ.HMAC_SHA2_256_128: Prf.HMAC_SHA2_256,
    Integ.HMAC_SHA2_384_192: Prf.HMAC_SHA2_384,
    Integ.HMAC_SHA2_512_256: Prf.HMAC_SHA2_512,
}

_ENCR: Final = {name: Transform(TransformType.ENCR, *key) for key, name in ENCR_NAMES.items()}

_COMMON: Final = {
    **{name: Transform(TransformType.INTEG, key, None) for key, name in INTEG_NAMES.items()},
    **{name: Transform(TransformType.KE, key, None) for key, name in KE_NAMES.items()},
    **{
        additional_ke_name(kind, method).lower(): Transform(kind, method, None)
        for kind in ADDITIONAL_KE
        for method in (*KE_NAMES, KeMethod.NONE)
    },
}

_IKE_KEYWORDS: Final = {
    **{name: encr for name, encr in _ENCR.items() if not is_esp_only(encr.id)},
    **_COMMON,
    **{name: Transform(TransformType.PRF, key, None) for key, name in PRF_NAMES.items()},
}

_AH_KEYWORDS: Final = {
    **_COMMON,
    "none": Transform(TransformType.KE, KeMethod.NONE, None),
    "esn": Transform(TransformType.ESN, Esn.ESN, None),
    "noesn": Transform(TransformType.ESN, Esn.NO_ESN, None),
}

_ESP_KEYWORDS: Final = {**_ENCR, **_AH_KEYWORDS}


def parse_ike(text: str) -> Proposal:
    """A proposal for an IKE SA; its number is 1 until it is sent.

    Raises:
        ConfigError: a keyword is unknown, a kind is missing, or kinds do not go together.
    """
    transforms = _transforms(text, _IKE_KEYWORDS)
    prfs = _of_type(transforms, TransformType.PRF) or _prfs_named_by_integrity(transforms)
    if not prfs:
        raise ConfigError([f"{text!r} has no PRF, add for example prfsha256"])
    if not _of_type(transforms, TransformType.KE):
        raise ConfigError([f"{text!r} has no key exchange, add for example x25519"])
    rest = [transform for transform in transforms if transform.type != TransformType.PRF]
    return _proposal(text, ProtocolId.IKE, [*rest, *prfs])


def parse_esp(text: str) -> Proposal:
    """A proposal for ESP SAs; its number is 1 and its SPI empty until it is sent.

    Without ``esn`` or ``noesn`` both are offered. Without a key exchange, or with ``none`` among
    them, keys may come from the IKE SA alone.

    Raises:
        ConfigError: a keyword is unknown, a kind is missing, or kinds do not go together.
    """
    transforms = _transforms(text, _ESP_KEYWORDS)
    if not _of_type(transforms, TransformType.ESN):
        transforms += [_ESP_KEYWORDS["esn"], _ESP_KEYWORDS["noesn"]]
    return _proposal(text, ProtocolId.ESP, transforms)


def parse_ah(text: str) -> Proposal:
    """A proposal for AH SAs: integrity, and what ``parse_esp`` takes besides. RFC 7296 §3.3.3.

    Raises:
        ConfigError: a keyword is unknown, or integrity is missing.
    """
    transforms = _transforms(text, _AH_KEYWORDS)
    if not _of_type(transforms, TransformType.ESN):
        transforms += [_AH_KEYWORDS["esn"], _AH_KEYWORDS["noesn"]]
    if not _of_type(transforms, TransformType.INTEG):
        raise ConfigError([f"{text!r} has no integrity, add for example sha256"])
    return _ordered(ProtocolId.AH, transforms)


def _transforms(text: str, keywords: dict[str, Transform]) -> list[Transform]:
    """What the words of a suite string stand for, in order, without repetition."""
    words = [word.strip() for word in text.lower().split("-")]
    unknown = [word for word in words if _ALIASES.get(word, word) not in keywords]
    if unknown:
        raise ConfigError([_unknown(word, text, list(keywords)) for word in unknown])
    return list(dict.fromkeys(keywords[_ALIASES.get(word, word)] for word in words))


def _unknown(word: str, text: str, known: list[str]) -> str:
    near = get_close_matches(word, known, 1)
    listed = [name for name in known if not name.startswith("ke")]
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(listed)}"
    return f"unknown algorithm {word!r} in {text!r}, {hint}"


def _prfs_named_by_integrity(transforms: list[Transform]) -> list[Transform]:
    integrities = _of_type(transforms, TransformType.INTEG)
    return [Transform(TransformType.PRF, _PRF_OF_INTEG[each.id], None) for each in integrities]


def _proposal(text: str, protocol: ProtocolId, transforms: list[Transform]) -> Proposal:
    """The transforms by type; integrity beside an AEAD is left out. RFC 7296 §3.3, RFC 5282 §8."""
    aead = [is_aead(each.id) for each in _of_type(transforms, TransformType.ENCR)]
    if not aead:
        raise ConfigError([f"{text!r} has no encryption, add for example aes256gcm16"])
    if any(aead) and not all(aead):
        raise ConfigError(
            [f"{text!r} mixes AEAD and other encryption, write them as two proposals"]
        )
    if all(aead):
        transforms = [each for each in transforms if each.type != TransformType.INTEG]
    elif not _of_type(transforms, TransformType.INTEG):
        raise ConfigError([f"{text!r} has no integrity, add for example sha256"])
    return _ordered(protocol, transforms)


def _ordered(protocol: ProtocolId, transforms: list[Transform]) -> Proposal:
    return Proposal(1, protocol, b"", tuple(sorted(transforms, key=attrgetter("type"))))


def _of_type(transforms: list[Transform], kind: TransformType) -> list[Transform]:
    return [transform for transform in transforms if transform.type == kind]
