"""The negotiated transforms of an SA as one value: lengths, factories, and names for people.

The names are those of strongSwan's proposal strings; ``config.suites`` reads what is printed here.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

from tunnelwrap.crypto.cipher import Cipher, integrity_lengths, is_esp_only, supported_integ
from tunnelwrap.crypto.prf import Prf
from tunnelwrap.errors import NoProposalChosen
from tunnelwrap.iana import Encr, Esn, Integ, KeMethod, ProtocolId, TransformType, name_of
from tunnelwrap.iana import Prf as PrfId
from tunnelwrap.wire.proposal import Proposal, Transform

ENCR_NAMES: Final[dict[tuple[int, int | None], str]] = {
    (Encr.AES_CBC, 128): "aes128",
    (Encr.AES_CBC, 192): "aes192",
    (Encr.AES_CBC, 256): "aes256",
    (Encr.AES_CTR, 128): "aes128ctr",
    (Encr.AES_CTR, 192): "aes192ctr",
    (Encr.AES_CTR, 256): "aes256ctr",
    (Encr.AES_CCM_8, 128): "aes128ccm8",
    (Encr.AES_CCM_8, 192): "aes192ccm8",
    (Encr.AES_CCM_8, 256): "aes256ccm8",
    (Encr.AES_CCM_16, 128): "aes128ccm16",
    (Encr.AES_CCM_16, 192): "aes192ccm16",
    (Encr.AES_CCM_16, 256): "aes256ccm16",
    (Encr.AES_GCM_16, 128): "aes128gcm16",
    (Encr.AES_GCM_16, 192): "aes192gcm16",
    (Encr.AES_GCM_16, 256): "aes256gcm16",
    (Encr.CHACHA20_POLY1305, None): "chacha20poly1305",
    (Encr.NULL, None): "null",
    (Encr.NULL_AUTH_AES_GMAC, 128): "aes128gmac",
    (Encr.NULL_AUTH_AES_GMAC, 192): "aes192gmac",
    (Encr.NULL_AUTH_AES_GMAC, 256): "aes256gmac",
}

INTEG_NAMES: Final[dict[int, str]] = {
    Integ.HMAC_SHA1_96: "sha1",
    Integ.AES_XCBC_96: "aesxcbc",
    Integ.HMAC_SHA2_256_128: "sha256",
    Integ.HMAC_SHA2_384_192: "sha384",
    Integ.HMAC_SHA2_512_256: "sha512",
}

PRF_NAMES: Final[dict[int, str]] = {
    PrfId.HMAC_SHA1: "prfsha1",
    PrfId.AES128_XCBC: "prfaesxcbc",
    PrfId.HMAC_SHA2_256: "prfsha256",
    PrfId.HMAC_SHA2_384: "prfsha384",
    PrfId.HMAC_SHA2_512: "prfsha512",
}

KE_NAMES: Final[dict[int, str]] = {
    KeMethod.MODP_2048: "modp2048",
    KeMethod.MODP_3072: "modp3072",
    KeMethod.MODP_4096: "modp4096",
    KeMethod.ECP_256: "ecp256",
    KeMethod.ECP_384: "ecp384",
    KeMethod.ECP_521: "ecp521",
    KeMethod.CURVE25519: "x25519",
    KeMethod.CURVE448: "x448",
    KeMethod.ML_KEM_768: "mlkem768",
    KeMethod.ML_KEM_1024: "mlkem1024",
}

ADDITIONAL_KE: Final = tuple(kind for kind in TransformType if kind >= TransformType.ADDKE1)
"""The transform types of additional key exchanges, in the order they are done. RFC 9370 §2.2.2."""


def additional_ke_name(kind: int, method: int) -> str:
    """The keyword for an additional key exchange: ``ke1_mlkem768``."""
    return f"ke{kind - TransformType.ADDKE1 + 1}_{_ke_name(method)}"


@dataclass(frozen=True, slots=True)
class IkeSuite:
    """The transforms that protect an IKE SA. RFC 7296 §3.3.2."""

    encr: int
    key_bits: int | None
    integ: int | None  # None with an AEAD
    prf: int
    ke: int
    additional_ke: tuple[tuple[int, int], ...] = ()  # transform type and method, in their order

    @classmethod
    def from_proposal(cls, proposal: Proposal) -> "IkeSuite":
        """The suite of a chosen proposal: one transform of each type.

        Raises:
            NoProposalChosen: a type is missing, there is a choice left, or the encryption is
                one for ESP only.
        """
        encr = _need(proposal, TransformType.ENCR)
        if is_esp_only(encr.id):
            raise NoProposalChosen(f"{name_of(Encr, encr.id)} does not protect an IKE SA")
        integ = _id_or_none(proposal, TransformType.INTEG)
        prf = _need(proposal, TransformType.PRF).id
        ke = _need(proposal, TransformType.KE).id
        return cls(encr.id, encr.key_bits, integ, prf, ke, _additional_ke(proposal))

    def cipher(self) -> Cipher:
        """Encryption and integrity of the SK payload."""
        return Cipher(self.encr, self.key_bits, self.integ)

    def prf_function(self) -> Prf:
        """The pseudorandom function."""
        return Prf(self.prf)

    def __str__(self) -> str:
        names = [
            _encr_name(self.encr, self.key_bits),
            *_integ_name(self.integ),
            PRF_NAMES.get(self.prf) or f"prf{name_of(PrfId, self.prf)}",
            _ke_name(self.ke),
            *(additional_ke_name(*each) for each in self.additional_ke),
        ]
        return "-".join(names)


@dataclass(frozen=True, slots=True)
class EspSuite:
    """The transforms that protect a pair of ESP SAs; lengths in octets. RFC 7296 §3.3.2."""

    PROTOCOL: ClassVar = ProtocolId.ESP

    encr: int
    key_bits: int | None
    integ: int | None  # None with an AEAD
    ke: int | None  # None: keys come from SK_d alone
    uses_esn: bool
    additional_ke: tuple[tuple[int, int], ...] = ()  # transform type and method, in their order

    @classmethod
    def from_proposal(cls, proposal: Proposal) -> "EspSuite":
        """The suite of a chosen proposal: at most one transform of each type.

        Raises:
            NoProposalChosen: ENCR or ESN is missing, or there is a choice left.
        """
        encr = _need(proposal, TransformType.ENCR)
        integ = _id_or_none(proposal, TransformType.INTEG)
        ke = _id_or_none(proposal, TransformType.KE)
        uses_esn = _need(proposal, TransformType.ESN).id == Esn.ESN
        return cls(encr.id, encr.key_bits, integ, ke, uses_esn, _additional_ke(proposal))

    def cipher(self) -> Cipher:
        """Encryption and integrity of the packets, for their lengths."""
        return Cipher(self.encr, self.key_bits, self.integ)

    @property
    def encryption_key_length(self) -> int:
        """Length of the encryption key, with the salt of an AEAD."""
        return self.cipher().encryption_key_length

    @property
    def integrity_key_length(self) -> int:
        """Length of the INTEG key; 0 with an AEAD."""
        return self.cipher().integrity_key_length

    @property
    def salt_length(self) -> int:
        """How much of the end of the encryption key is salt of the nonce."""
        return self.cipher().salt_length

    @property
    def iv_length(self) -> int:
        """Length of the explicit IV."""
        return self.cipher().iv_length

    @property
    def icv_length(self) -> int:
        """Length of the integrity check value."""
        return self.cipher().icv_length

    @property
    def block_size(self) -> int:
        """What the encrypted octets are a multiple of, beside ESP's own 4."""
        return self.cipher().block_size

    @property
    def is_aead(self) -> bool:
        """Whether encryption and integrity are one algorithm."""
        return self.cipher().is_aead

    def __str__(self) -> str:
        names = [_encr_name(self.encr, self.key_bits), *_integ_name(self.integ)]
        return "-".join([*names, *_names_behind(self)])


@dataclass(frozen=True, slots=True)
class AhSuite:
    """The transforms that protect a pair of AH SAs; lengths in octets. RFC 4302."""

    PROTOCOL: ClassVar = ProtocolId.AH

    integ: int
    ke: int | None  # None: keys come from SK_d alone
    uses_esn: bool
    additional_ke: tuple[tuple[int, int], ...] = ()  # transform type and method, in their order

    @classmethod
    def from_proposal(cls, proposal: Proposal) -> "AhSuite":
        """The suite of a chosen proposal: at most one transform of each type.

        Raises:
            NoProposalChosen: INTEG or ESN is missing, or there is a choice left.
        """
        integ = _need(proposal, TransformType.INTEG).id
        if not supported_integ(integ):
            raise NoProposalChosen(f"{name_of(Integ, integ)} does not protect AH")
        ke = _id_or_none(proposal, TransformType.KE)
        uses_esn = _need(proposal, TransformType.ESN).id == Esn.ESN
        return cls(integ, ke, uses_esn, _additional_ke(proposal))

    @property
    def encryption_key_length(self) -> int:
        """There is no encryption, and no key for it."""
        return 0

    @property
    def integrity_key_length(self) -> int:
        """Length of the INTEG key."""
        return integrity_lengths(self.integ)[0]

    @property
    def icv_length(self) -> int:
        """Length of the integrity check value."""
        return integrity_lengths(self.integ)[1]

    def __str__(self) -> str:
        return "-".join([*_integ_name(self.integ), *_names_behind(self)])


ChildSuite = EspSuite | AhSuite
"""What protects a pair of SAs."""


def child_suite(proposal: Proposal) -> ChildSuite:
    """The suite of a chosen proposal for a Child SA.

    Raises:
        NoProposalChosen: something is missing, or there is a choice left.
    """
    kind = AhSuite if proposal.protocol == ProtocolId.AH else EspSuite
    return kind.from_proposal(proposal)


def _names_behind(suite: ChildSuite) -> list[str]:
    """Key exchanges and ESN, which ESP and AH have in common."""
    first = [] if suite.ke is None else [_ke_name(suite.ke)]
    more = [additional_ke_name(*each) for each in suite.additional_ke]
    return [*first, *more, "esn" if suite.uses_esn else "noesn"]


def _need(proposal: Proposal, kind: TransformType) -> Transform:
    found = [transform for transform in proposal.transforms if transform.type == kind]
    if len(found) != 1:
        raise NoProposalChosen(f"{len(found)} {kind.name} transforms in {proposal}, expected 1")
    return found[0]


def _id_or_none(proposal: Proposal, kind: TransformType) -> int | None:
    """Transform ID of an optional type; NONE (0) counts as absent. RFC 7296 §3.3.3."""
    if all(transform.type != kind for transform in proposal.transforms):
        return None
    return _need(proposal, kind).id or None


def _additional_ke(proposal: Proposal) -> tuple[tuple[int, int], ...]:
    """The additional key exchanges; NONE counts as absent. RFC 9370 §2.2.1."""
    found = [(kind, _id_or_none(proposal, kind)) for kind in ADDITIONAL_KE]
    return tuple((int(kind), method) for kind, method in found if method is not None)


def _ke_name(method: int) -> str:
    return KE_NAMES.get(method) or name_of(KeMethod, method)


def _encr_name(encr: int, key_bits: int | None) -> str:
    plain = name_of(Encr, encr) if key_bits is None else f"{name_of(Encr, encr)}_{key_bits}"
    return ENCR_NAMES.get((encr, key_bits), plain)


def _integ_name(integ: int | None) -> list[str]:
    return [] if integ is None else [INTEG_NAMES.get(integ) or name_of(Integ, integ)]
