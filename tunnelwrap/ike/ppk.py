"""Post-quantum preshared keys in IKE_AUTH, in both roles. RFC 8784 §3.

With one, SK_d, SK_pi and SK_pr are others from here on; ``IkeSa.ppk`` says so. SK_e and SK_a are
what they were.
"""

from typing import Final

from tunnelwrap.crypto.keymat import IkeKeys, mix_ppk
from tunnelwrap.errors import AuthenticationFailed
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.policy import ConnectionPolicy, Ppk
from tunnelwrap.ike.proof import prove
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Auth, IdPayload, Notify, Payload

_FIXED: Final = b"\x02"  # PPK_ID_FIXED: octets that both sides have configured. RFC 8784 §5.1


class PpkOffer:
    """The initiator's PPK; owns the keys without it, in case the responder does not have it."""

    __slots__ = ("_plain",)

    def __init__(self) -> None:
        self._plain: IkeKeys | None = None

    def prove(self, sa: IkeSa, identity: IdPayload) -> tuple[list[Payload], Auth, list[Payload]]:
        """Our CERT and AUTH payloads; PPK_IDENTITY and NO_PPK_AUTH where both sides use a PPK."""
        policy, ppk = sa.chosen_policy, sa.chosen_policy.ppk
        if ppk is None or sa.handshake is None or not sa.handshake.uses_ppk:
            return *prove(sa, policy.local, identity), []
        notifies: list[Payload] = [Notify.of(NotifyType.PPK_IDENTITY, _FIXED + ppk.identity)]
        if not ppk.is_required:
            _, without = prove(sa, policy.local, identity)
            notifies.append(Notify.of(NotifyType.NO_PPK_AUTH, without.data))
        _, self._plain, _ = sa.agreed
        use(sa, ppk)
        return *prove(sa, policy.local, identity), notifies

    def settle(self, sa: IkeSa, message: Message) -> None:
        """Whether the responder uses it is known now; judge its AUTH payload after this.

        Raises:
            AuthenticationFailed: it does not, and our policy requires it.
        """
        if self._plain is None or message.notify(NotifyType.PPK_IDENTITY) is not None:
            return
        if sa.ppk is not None and sa.ppk.is_required:
            raise AuthenticationFailed("the peer does not use the PPK that our policy requires")
        sa.keys, sa.ppk = self._plain, None


def choose(sa: IkeSa, policy: ConnectionPolicy, message: Message, auth: Auth) -> Auth:
    """As responder: take the PPK into use, if any; gives what the initiator is to be judged by.

    RFC 8784 §3, table 1.

    Raises:
        AuthenticationFailed: a PPK is required, by one side or the other, and there is none.
    """
    assert sa.handshake is not None, "IKE_SA_INIT comes first"
    ppk, is_required = policy.ppk, policy.ppk is not None and policy.ppk.is_required
    if not sa.handshake.uses_ppk:
        if is_required:
            raise AuthenticationFailed(f"the peer uses no PPK, and {policy.name} requires one")
        return auth
    named, without = message.notify(NotifyType.PPK_IDENTITY), message.notify(NotifyType.NO_PPK_AUTH)
    if named is None:
        raise AuthenticationFailed("the peer names no PPK")
    if ppk is not None and named.data == _FIXED + ppk.identity:
        use(sa, ppk)
        return auth
    if is_required or without is None:
        whose = f"{policy.name} requires another one" if is_required else "the peer requires it"
        raise AuthenticationFailed(f"the peer's PPK {named.data[1:]!r} is not known, and {whose}")
    return Auth(auth.method, without.data)


def confirmation(sa: IkeSa) -> list[Payload]:
    """What tells the initiator that its PPK is in use."""
    return [] if sa.ppk is None else [Notify.of(NotifyType.PPK_IDENTITY)]


def use(sa: IkeSa, ppk: Ppk) -> None:
    """Mix a PPK into the keys of an IKE SA whose key exchanges are done."""
    suite, keys, _ = sa.agreed
    sa.keys, sa.ppk = mix_ppk(suite.prf_function(), keys, ppk.secret), ppk
