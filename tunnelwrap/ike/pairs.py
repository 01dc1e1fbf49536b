"""Traffic selectors where a policy wants one pair of addresses for each Child SA. RFC 7296 §2.9.

``narrow_to_pair`` is for who answers; ``as_pair`` and ``left_over`` are for who asked.
"""

from collections.abc import Sequence
from dataclasses import replace

from tunnelwrap.errors import SinglePairRequired, TsUnacceptable
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.negotiate import narrow
from tunnelwrap.ike.policy import ChildPolicy
from tunnelwrap.wire.payloads import TrafficSelector

Selectors = tuple[TrafficSelector, ...]


def narrow_to_pair(
    offered: tuple[Selectors, Selectors], allowed: tuple[Selectors, Selectors]
) -> tuple[Selectors, Selectors, bool]:
    """One pair of addresses out of what both sides allow: that of the packet behind the request.

    Args:
        offered: TSi and TSr of the request; their first ones may name the packet.
        allowed: what narrowing has left of them.

    Returns:
        TSi, TSr, and whether other pairs were acceptable too (ADDITIONAL_TS_POSSIBLE).

    Raises:
        SinglePairRequired: the request does not say which pair.
        TsUnacceptable: the packet's pair is not allowed.
    """
    if all(map(_is_one_address, allowed)):
        return *allowed, False
    firsts = (offered[0][:1], offered[1][:1])
    if not all(map(_is_one_address, firsts)):
        raise SinglePairRequired("a Child SA is for one pair of addresses, and there are more")
    return narrow(firsts[0], allowed[0]), narrow(firsts[1], allowed[1]), True


def as_pair(policy: ChildPolicy, local: Selectors, peer: Selectors) -> ChildPolicy | None:
    """The policy for one pair of addresses, if we know which: ours, and the peer's only one.

    Args:
        policy: what was asked for and refused with SINGLE_PAIR_REQUIRED.
        local: our own addresses.
        peer: the peer's addresses.
    """
    ts_peer = policy.ts_peer or peer[:1]
    if not _is_one_address(ts_peer):
        return None
    ours = [one for one in local if one.start.version == ts_peer[0].start.version]
    try:
        ts_local = narrow(ours, policy.ts_local or ours)[:1]
    except TsUnacceptable:
        return None
    pair = replace(policy, ts_local=ts_local, ts_peer=ts_peer)
    return None if pair == policy else pair


def left_over(policy: ChildPolicy, child: ChildSa) -> ChildPolicy | None:
    """What a Child SA of this policy, which was narrowed, has nothing of; None: nothing is left."""
    ts_peer = _untouched(policy.ts_peer, child.ts_peer)
    if ts_peer:
        return replace(policy, ts_peer=ts_peer)
    ts_local = _untouched(policy.ts_local, child.ts_local)
    return replace(policy, ts_local=ts_local) if ts_local else None


def _untouched(wanted: Selectors, taken: Selectors) -> Selectors:
    return tuple(selector for selector in wanted if not _have_common((selector,), taken))


def _have_common(some: Sequence[TrafficSelector], others: Sequence[TrafficSelector]) -> bool:
    try:
        narrow(some, others)
    except TsUnacceptable:
        return False
    return True


def _is_one_address(selectors: Sequence[TrafficSelector]) -> bool:
    addresses = {address for one in selectors for address in (one.start, one.end)}
    return len(addresses) == 1
