"""Sending a peer to another gateway, and being sent. RFC 5685.

A gateway redirects in IKE_SA_INIT (whoever comes), in IKE_AUTH (by who it is), or at any time in
INFORMATIONAL. An initiator says so (``Redirected``) and ends this IKE SA; the shell goes there.
"""

from ipaddress import ip_address

from tunnelwrap.errors import InvalidSyntax, Redirected, WireError
from tunnelwrap.iana import GatewayIdType, NotifyType
from tunnelwrap.ike import outputs
from tunnelwrap.ike.crash import Tell
from tunnelwrap.ike.informational import CloseIke
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.ike.timers import Timer
from tunnelwrap.path import IpAddress
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Nonce, Notify, Payload
from tunnelwrap.wire.proposal import SaPayload
from tunnelwrap.wire.reader import Reader

LEAVE_S = 30.0  # how long a peer that we redirect may take to leave

# --- initiator --------------------------------------------------------------------------------


def support(sa: IkeSa) -> list[Payload]:
    """What we say of it in IKE_SA_INIT: that we follow, or from where we were sent."""
    if not sa.chosen_policy.follows_redirects:
        return []
    if sa.redirected_from is not None:
        return [Notify.of(NotifyType.REDIRECTED_FROM, encoded(str(sa.redirected_from)))]
    return [Notify.of(NotifyType.REDIRECT_SUPPORTED)]


def is_init_redirect(sa: IkeSa, message: Message, n_i: bytes) -> bool:
    """Follow a redirect in IKE_SA_INIT; our nonce shows that it answers our request.

    Raises:
        InvalidSyntax: it is one that we cannot believe.
    """
    notify = message.notify(NotifyType.REDIRECT)
    if notify is None or message.find(SaPayload) is not None:
        return False
    gateway, nonce = decoded(notify.data)
    if not sa.chosen_policy.follows_redirects or nonce != n_i:
        raise InvalidSyntax("a redirect that was not asked for")
    sa.context.emit(outputs.Redirected(sa.id, gateway))
    sa.close(f"redirected to {gateway}", is_failure=False)
    return True


def is_auth_redirect(sa: IkeSa, message: Message) -> bool:
    """Follow a redirect in IKE_AUTH, whose AUTH is verified; the IKE SA is established."""
    notify = message.notify(NotifyType.REDIRECT)
    if notify is None or message.find(SaPayload) is not None:
        return False
    return _leave(sa, notify)


def take(sa: IkeSa, message: Message) -> None:
    """Follow a redirect in INFORMATIONAL, which only the original responder may send."""
    notify = message.notify(NotifyType.REDIRECT)
    if notify is not None and sa.is_originator:
        _leave(sa, notify)


def _leave(sa: IkeSa, notify: Notify) -> bool:
    try:
        gateway, nonce = decoded(notify.data)
    except InvalidSyntax:
        return False
    if not sa.chosen_policy.follows_redirects or nonce:
        return False
    sa.context.emit(outputs.Redirected(sa.id, gateway))
    sa.queue.clear()
    sa.enqueue(CloseIke(f"redirected to {gateway}"))
    return True


# --- responder --------------------------------------------------------------------------------


def check_init(sa: IkeSa, message: Message) -> None:
    """Send whoever comes, and can follow, to the gateway that we are told.

    Raises:
        Redirected: away.
    """
    gateway, nonce = sa.context.redirect_to, message.find(Nonce)
    if gateway is None or nonce is None or not is_followed(message):
        return
    raise Redirected(f"sent to {gateway}", encoded(gateway, nonce.data))


def is_followed(message: Message) -> bool:
    """True where an IKE_SA_INIT request says that its sender follows redirects. RFC 5685 §9."""
    kinds = (NotifyType.REDIRECT_SUPPORTED, NotifyType.REDIRECTED_FROM)
    return any(message.notify(kind) is not None for kind in kinds)


def away(sa: IkeSa, now: float) -> list[Payload]:
    """In IKE_AUTH, when the peer is known: REDIRECT in place of a Child SA."""
    gateway = sa.chosen_policy.redirect_to
    if gateway is None or not sa.peer_follows_redirects:
        return []
    sa.timers.arm(Timer.SUPERSEDED, now + LEAVE_S)
    return [Notify.of(NotifyType.REDIRECT, encoded(gateway))]


def send_away(sa: IkeSa, gateway: str) -> bool:
    """Redirect an established peer, if it is one that can follow."""
    if sa.is_originator or not sa.peer_follows_redirects:
        return False
    sa.enqueue(Tell([Notify.of(NotifyType.REDIRECT, encoded(gateway))]))
    return True


# --- octets -----------------------------------------------------------------------------------


def encoded(gateway: str, nonce: bytes = b"") -> bytes:
    """Data of REDIRECT and REDIRECTED_FROM: u8 type | u8 length | identity | nonce."""
    address = _address(gateway)
    if address is None:
        kind, identity = GatewayIdType.FQDN, gateway.encode("idna")
    else:
        kind = GatewayIdType.IPV4 if address.version == 4 else GatewayIdType.IPV6
        identity = address.packed
    return bytes([kind, len(identity)]) + identity + nonce


def decoded(data: bytes) -> tuple[str, bytes]:
    """Gateway and nonce.

    Raises:
        InvalidSyntax: the data is no gateway.
    """
    try:
        body = Reader(data)
        kind, length = body.u8(), body.u8()
        identity, nonce = body.take(length), body.rest()
    except WireError as error:
        raise InvalidSyntax(f"REDIRECT: {error}") from error
    if (kind, length) in {(GatewayIdType.IPV4, 4), (GatewayIdType.IPV6, 16)}:
        return str(ip_address(identity)), nonce
    name = identity.decode("ascii", "replace")
    is_name = bool(name) and all(c.isalnum() or c in "-._" for c in name)
    if kind != GatewayIdType.FQDN or not is_name:
        raise InvalidSyntax(f"REDIRECT to {identity.hex()} of type {kind}")
    return name, nonce


def _address(text: str) -> IpAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
