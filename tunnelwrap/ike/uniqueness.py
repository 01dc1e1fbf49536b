"""One IKE SA for each peer, or more: INITIAL_CONTACT and the policy ``unique``. RFC 7296 §2.4."""

from typing import Final

from tunnelwrap.auth.identity import NOBODY
from tunnelwrap.errors import AuthenticationFailed
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.outputs import Lease
from tunnelwrap.ike.policy import Unique
from tunnelwrap.ike.rules import IkeState
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.ike.timers import Timer
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Notify, Payload

REPLACED_S: Final = 3.0
"""How long the old IKE SA lives beside the one that replaces it: what is under way in it arrives,
and a peer that authenticates itself again may delete it on its own. RFC 7296 §2.8.3."""


SWITCH_S: Final = 0.5
"""How long we still send in the old one: the response that makes the new one is on its way."""


def initial_contact(sa: IkeSa) -> list[Payload]:
    """INITIAL_CONTACT, if we know of no other IKE SA with the peer.

    An identity that several hosts may share must not say so: its policy keeps all, or it is none.
    """
    policy = sa.chosen_policy
    is_known = sa.context.peers.has(policy.local.identity, policy.peer.identity)
    if is_known or policy.unique is Unique.KEEP or policy.local.identity == NOBODY:
        return []
    return [Notify.of(NotifyType.INITIAL_CONTACT)]


def honour(sa: IkeSa, message: Message) -> None:
    """The peer, now known, may say that it has no other IKE SA with us: then nor have we."""
    if message.notify(NotifyType.INITIAL_CONTACT) is None:
        return
    for other in sa.context.peers.others(sa):
        other.close("the peer has begun anew", is_failure=False)
        sa.context.touch(other.id)


def admit(sa: IkeSa, message: Message) -> None:
    """Take or refuse a peer, now known, that has an IKE SA with us already.

    Raises:
        AuthenticationFailed: one is enough.
    """
    honour(sa, message)
    if sa.chosen_policy.unique is Unique.NEVER and rivals(sa):
        raise AuthenticationFailed(f"{sa.peer_identity} has an IKE SA of {_name(sa)} already")


def replace_others(sa: IkeSa, now: float) -> None:
    """The new IKE SA is established: the old ones go soon."""
    if sa.chosen_policy.unique is not Unique.REPLACE:
        return
    for other in rivals(sa):
        other.timers.arm(Timer.REPLACED, now + REPLACED_S)
        sa.context.touch(other.id)


def switch_later(sa: IkeSa, child: ChildSa, now: float) -> None:
    """Send through a Child SA that replaces another's only when the peer is sure to have it."""
    sa.children.timers.arm(Timer.USE_OUTBOUND, now + SWITCH_S, child.spi_in)


def is_replacing(sa: IkeSa) -> bool:
    """True where an IKE SA of the same peer still serves, and is to be replaced by this one."""
    return sa.chosen_policy.unique is Unique.REPLACE and bool(rivals(sa))


def rivals(sa: IkeSa) -> list[IkeSa]:
    """Other IKE SAs of the same two identities and the same connection."""
    return [
        other
        for other in sa.context.peers.others(sa)
        if other.chosen_policy.name == _name(sa) and other.state is IkeState.ESTABLISHED
    ]


def inherited_lease(sa: IkeSa, *, wants_ipv4: bool, wants_ipv6: bool) -> Lease | None:
    """The lease of the IKE SA that this one replaces, if it is what the peer wants.

    A peer that authenticates itself again keeps its addresses, or its connections would break.
    """
    if sa.chosen_policy.unique is not Unique.REPLACE:
        return None
    for other in reversed(rivals(sa)):
        lease = other.lease_peer
        versions = {address.version for address in lease.addresses} if lease else set()
        if versions == {v for v, is_wanted in ((4, wants_ipv4), (6, wants_ipv6)) if is_wanted}:
            return lease
    return None


def _name(sa: IkeSa) -> str:
    return sa.chosen_policy.name
