"""The mode of a Child SA: tunnel mode, or another one that both sides want. RFC 7296 §1.3.1.

BEET mode (draft-nikander-esp-beet-mode) is a tunnel between one inner address on each side, whose
inner headers are not sent: the SA knows them. IKEv2 has no number for it. strongSwan has a private
one, which it believes of those alone whose vendor ID is its own; so that is shown where BEET mode
may be wanted, and says that we mean the same by that number. RFC 7296 §3.10.1, §3.12.
"""

from collections.abc import Sequence
from typing import Final

from tunnelwrap.errors import TsUnacceptable
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.child_sa import Mode
from tunnelwrap.ike.policy import ChildPolicy
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Notify, Payload, TrafficSelector, VendorId

STRONGSWAN: Final = VendorId(bytes.fromhex("882fe56d6fd20dbc2251613b2ebe5beb"))
"""MD5 of "strongSwan"."""

_NOTIFIES: Final = {
    Mode.TRANSPORT: NotifyType.USE_TRANSPORT_MODE,
    Mode.BEET: NotifyType.USE_BEET_MODE,
}


def wanted(sa: IkeSa, policy: ChildPolicy) -> Mode:
    """The mode that we want; BEET mode is the kernel's, and no stream leads there."""
    has_beet = sa.context.has_beet and not sa.path.carrier.is_reliable
    return Mode.TUNNEL if policy.mode is Mode.BEET and not has_beet else policy.mode


def agreed(message: Message, ours: Mode) -> Mode:
    """What both want, by the peer's message; else tunnel mode."""
    notify = _NOTIFIES.get(ours)
    is_theirs = notify is not None and message.notify(notify) is not None
    return ours if is_theirs else Mode.TUNNEL


def notifies(mode: Mode) -> list[Payload]:
    """What asks for a mode, and agrees to it."""
    return [Notify.of(_NOTIFIES[mode])] if mode in _NOTIFIES else []


def vendor_ids(sa: IkeSa) -> list[Payload]:
    """What makes strongSwan believe USE_BEET_MODE."""
    return [STRONGSWAN] if any(wanted(sa, c.child) is Mode.BEET for c in sa.connections) else []


def check_selectors(
    mode: Mode, ts_local: Sequence[TrafficSelector], ts_peer: Sequence[TrafficSelector]
) -> None:
    """See that a mode can have these traffic selectors.

    Raises:
        TsUnacceptable: it is BEET mode, and there is more than one address on a side.
    """
    are_hosts = is_one_host(ts_local) and is_one_host(ts_peer)
    if mode is Mode.BEET and not (are_hosts and _are_one_version((*ts_local, *ts_peer))):
        ours, theirs = (", ".join(map(str, each)) for each in (ts_local, ts_peer))
        raise TsUnacceptable(f"BEET mode has one address on each side, not {ours} === {theirs}")


def is_one_host(selectors: Sequence[TrafficSelector]) -> bool:
    """Whether all of them are of the same single address."""
    return len({end for each in selectors for end in (each.start, each.end)}) == 1


def _are_one_version(selectors: Sequence[TrafficSelector]) -> bool:
    """Whether all of them are of the same IP version."""
    return len({each.start.version for each in selectors}) == 1
