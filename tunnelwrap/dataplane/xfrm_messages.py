"""The messages of NETLINK_XFRM: the structures of linux/xfrm.h on pyroute2's classes.

A structure inside a message is one field, its format that of the whole structure with the
compiler's padding, so that its value is one tuple. Ports and SPIs, alone in network byte order, are
octets. So are attributes with a tail of their own length; a Struct has the format of their heads.
"""

from enum import IntEnum
from struct import Struct
from typing import Final

from pyroute2.netlink import nla, nlmsg


class Msg(IntEnum):
    """Types of messages."""

    NEWSA = 0x10
    DELSA = 0x11
    GETSA = 0x12
    NEWPOLICY = 0x13
    DELPOLICY = 0x14
    GETPOLICY = 0x15
    ALLOCSPI = 0x16
    ACQUIRE = 0x17
    EXPIRE = 0x18
    UPDPOLICY = 0x19
    UPDSA = 0x1A
    POLEXPIRE = 0x1B
    FLUSHSA = 0x1C
    FLUSHPOLICY = 0x1D
    NEWAE = 0x1E
    GETAE = 0x1F
    MIGRATE = 0x21
    MAPPING = 0x26


_PAD1: Final = (("pad", "1x"),)
_PAD3: Final = (("pad", "3x"),)
_PAD4: Final = (("pad", "4x"),)
_PAD7: Final = (("pad", "7x"),)
_SELECTOR: Final = "16s16s2s2s2s2sHBBB3xiI"
_LIFETIME: Final = (("lft", "8Q"), ("curlft", "4Q"))
_ID: Final = (("id", "16s4sB"), *_PAD3)
_USERSA_ID: Final = (("id", "16s4sHB"), *_PAD1)
_USERSA: Final = (
    *(("sel", _SELECTOR), *_ID, ("saddr", "16s"), *_LIFETIME, ("stats", "3I")),
    *(("seq", "I"), ("reqid", "I"), ("family", "H"), ("mode", "B")),
    *(("replay_window", "B"), ("flags", "B"), *_PAD7),
)
_POLICY: Final = (
    *(("sel", _SELECTOR), *_LIFETIME, ("priority", "I"), ("index", "I")),
    *(("dir", "B"), ("action", "B"), ("flags", "B"), ("share", "B"), *_PAD4),
)

ALGO: Final = Struct("64sI")  # name, bits of the key; then the key
ALGO_WITH_ICV: Final = Struct("64sII")  # name, bits of the key and of the ICV; then the key
REPLAY_ESN: Final = Struct("6I")  # words, oseq, seq, oseq_hi, seq_hi, window; then the bitmap
TEMPLATE: Final = Struct("16s4sB3xH2x16sIBBB1xIII")
MIGRATE: Final = Struct("16s16s16s16sBBHIHH")
NEVER: Final = (1 << 64) - 1
"""XFRM_INF: no limit of octets or packets."""

OFFLOAD_INBOUND: Final = 2
OFFLOAD_PACKET: Final = 4
AE_REPLAY: Final = 2
AE_LIFETIME: Final = 4


class XfrmMessage(nlmsg):
    """What all have in common: the attributes."""

    nla_map = (
        ("XFRMA_UNSPEC", "none"),
        ("XFRMA_ALG_AUTH", "cdata"),
        ("XFRMA_ALG_CRYPT", "cdata"),
        ("XFRMA_ALG_COMP", "cdata"),
        ("XFRMA_ENCAP", "encap_tmpl"),
        ("XFRMA_TMPL", "cdata"),
        ("XFRMA_SA", "usersa_info"),
        ("XFRMA_POLICY", "userpolicy_info"),
        ("XFRMA_SEC_CTX", "cdata"),
        ("XFRMA_LTIME_VAL", "lifetime_cur"),
        ("XFRMA_REPLAY_VAL", "replay_state"),
        ("XFRMA_REPLAY_THRESH", "uint32"),
        ("XFRMA_ETIMER_THRESH", "uint32"),
        ("XFRMA_SRCADDR", "cdata"),
        ("XFRMA_COADDR", "cdata"),
        ("XFRMA_LASTUSED", "uint64"),
        ("XFRMA_POLICY_TYPE", "cdata"),
        ("XFRMA_MIGRATE", "cdata"),
        ("XFRMA_ALG_AEAD", "cdata"),
        ("XFRMA_KMADDRESS", "cdata"),
        ("XFRMA_ALG_AUTH_TRUNC", "cdata"),
        ("XFRMA_MARK", "mark"),
        ("XFRMA_TFCPAD", "uint32"),
        ("XFRMA_REPLAY_ESN_VAL", "cdata"),
        ("XFRMA_SA_EXTRA_FLAGS", "uint32"),
        ("XFRMA_PROTO", "uint8"),
        ("XFRMA_ADDRESS_FILTER", "cdata"),
        ("XFRMA_PAD", "cdata"),
        ("XFRMA_OFFLOAD_DEV", "user_offload"),
        ("XFRMA_SET_MARK", "uint32"),
        ("XFRMA_SET_MARK_MASK", "uint32"),
        ("XFRMA_IF_ID", "uint32"),
        ("XFRMA_MTIMER_THRESH", "uint32"),
    )

    class encap_tmpl(nla):  # noqa: N801  # pyroute2 finds the class by the UAPI's name
        """struct xfrm_encap_tmpl."""

        fields = (("value", "H2s2s2x16s"),)

    class usersa_info(nla):  # noqa: N801
        """struct xfrm_usersa_info."""

        fields = _USERSA

    class userpolicy_info(nla):  # noqa: N801
        """struct xfrm_userpolicy_info."""

        fields = _POLICY

    class lifetime_cur(nla):  # noqa: N801
        """struct xfrm_lifetime_cur."""

        fields = (("value", "4Q"),)

    class replay_state(nla):  # noqa: N801
        """struct xfrm_replay_state."""

        fields = (("value", "3I"),)

    class mark(nla):  # noqa: N801
        """struct xfrm_mark."""

        fields = (("value", "2I"),)

    class user_offload(nla):  # noqa: N801
        """struct xfrm_user_offload."""

        fields = (("value", "iB3s"),)


class UserSa(XfrmMessage):
    """struct xfrm_usersa_info: NEWSA, UPDSA."""

    fields = _USERSA


class UserSaId(XfrmMessage):
    """struct xfrm_usersa_id: DELSA, GETSA."""

    fields = _USERSA_ID


class AeventId(XfrmMessage):
    """struct xfrm_aevent_id: NEWAE, GETAE."""

    fields = (*_USERSA_ID, ("saddr", "16s"), ("flags", "I"), ("reqid", "I"))


class UserSpi(XfrmMessage):
    """struct xfrm_userspi_info: ALLOCSPI."""

    fields = (*_USERSA, ("min", "I"), ("max", "I"))


class UserPolicy(XfrmMessage):
    """struct xfrm_userpolicy_info: NEWPOLICY, UPDPOLICY."""

    fields = _POLICY


class UserPolicyId(XfrmMessage):
    """struct xfrm_userpolicy_id: DELPOLICY, GETPOLICY, MIGRATE."""

    fields = (("sel", _SELECTOR), ("index", "I"), ("dir", "B"), *_PAD3)


class UserAcquire(XfrmMessage):
    """struct xfrm_user_acquire."""

    fields = (
        *(*_ID, ("saddr", "16s"), ("packet", _SELECTOR), *_POLICY),
        *(("aalgos", "I"), ("ealgos", "I"), ("calgos", "I"), ("seq", "I")),
    )


class UserExpire(XfrmMessage):
    """struct xfrm_user_expire."""

    fields = (*_USERSA, ("hard", "B"), *_PAD7)


class UserPolicyExpire(XfrmMessage):
    """struct xfrm_user_polexpire."""

    fields = (*_POLICY, ("hard", "B"), *_PAD7)


class UserMapping(XfrmMessage):
    """struct xfrm_user_mapping."""

    fields = (
        *(*_USERSA_ID, ("reqid", "I"), ("old_saddr", "16s"), ("new_saddr", "16s")),
        *(("old_sport", "2s"), ("new_sport", "2s")),
    )


class UserFlush(XfrmMessage):
    """struct xfrm_usersa_flush: FLUSHSA."""

    fields = (("proto", "B"),)


class Bare(XfrmMessage):
    """Attributes alone: FLUSHPOLICY, and requests for all there is."""


class ErrorMessage(nlmsg):
    """struct nlmsgerr with an extended acknowledgement, the request's own octets left out."""

    fields = (("error", "i"), ("request", "IHHII"))
    nla_map = (
        ("NLMSGERR_ATTR_UNUSED", "none"),
        ("NLMSGERR_ATTR_MSG", "asciiz"),
        ("NLMSGERR_ATTR_OFFS", "uint32"),
        ("NLMSGERR_ATTR_COOKIE", "cdata"),
    )


def encoded(message: XfrmMessage, kind: Msg, flags: int, sequence: int) -> bytes:
    """The octets of a message."""
    message["header"] = {"type": kind, "flags": flags, "sequence_number": sequence}
    message.encode()
    return bytes(message.data)
