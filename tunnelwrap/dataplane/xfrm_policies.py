"""The policies of Child SAs and traps in the kernel: which of them has each flow.

Owns: every policy with our tag.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from tunnelwrap.dataplane.flows import KernelFlow
from tunnelwrap.dataplane.netlink import XfrmSocket
from tunnelwrap.dataplane.xfrm_pairs import MODES, Holder, Pair, Trapped, anywhere, cpi_of
from tunnelwrap.dataplane.xfrm_values import (
    Action,
    Direction,
    KernelPolicy,
    PolicyFlag,
    Proto,
    Selector,
    Template,
    XfrmMode,
)
from tunnelwrap.errors import KernelRefused

FIRST_PRIORITY: Final = 10_000
"""Of policies; behind it the narrower come first."""

PolicyKey = tuple[Selector, Direction, int]

_log = logging.getLogger(__name__)


class Policies:
    """Who has each flow: the newest Child SA that asked for it; others wait behind it.

    A trap has what no Child SA has.
    """

    __slots__ = ("_holders", "_there", "_xfrm")

    def __init__(self, xfrm: XfrmSocket) -> None:
        self._xfrm = xfrm
        self._holders: dict[tuple[KernelFlow, Direction], list[Holder]] = {}
        self._there: dict[PolicyKey, KernelPolicy] = {}

    @property
    def there(self) -> Mapping[PolicyKey, KernelPolicy]:
        """The policies that the kernel was told, by what it tells them apart by."""
        return self._there

    def put_back(self, policy: KernelPolicy) -> str | None:
        """Put back one of them, which somebody deleted or changed; why it cannot be.

        Where another program has one in its place, that stays.
        """
        found = self._xfrm.find_policy(policy)
        if found is not None and _reqids(found).isdisjoint(_reqids(policy)):
            return "another program has one in its place"
        try:
            self._xfrm.update_policy(policy)
        except KernelRefused as error:
            return str(error)
        return None

    def hold(self, pair: Pair, direction: Direction) -> None:
        """Give the flows of a Child SA to it.

        Raises:
            DataPlaneError: somebody else has a policy for one.
        """
        for flow in pair.flows_of(direction):
            holders = self._holders.get((flow, direction), [])
            self._show(flow, direction, pair, is_new=not holders)
            others = [each for each in holders if each is not pair]
            self._holders[flow, direction] = [*others, pair]

    def hold_last(self, trap: Trapped, direction: Direction) -> None:
        """Give the flows of a trap to it where no Child SA has them, or when none has any more.

        Raises:
            DataPlaneError: somebody else has a policy for one.
        """
        for flow in trap.flows:
            holders = self._holders.get((flow, direction), [])
            if not holders:
                self._show(flow, direction, trap, is_new=True)
            self._holders[flow, direction] = [trap, *holders]

    def refresh(self, holder: Holder, direction: Direction) -> None:
        """Follow a Child SA to other addresses, or a trap to another request ID."""
        for flow in holder.flows_of(direction):
            holders = self._holders.get((flow, direction), [])
            if holders and holders[-1] is holder:
                self._show(flow, direction, holder, is_new=False)

    def shown(self, holder: Holder, direction: Direction, new: Holder) -> list[KernelPolicy]:
        """The policies that a Child SA or a trap has, as they were if it were that new one."""
        return [
            _policy(flow, direction, new)
            for flow in holder.flows_of(direction)
            if self._holders.get((flow, direction), [None])[-1] is holder
        ]

    def release(self, holder: Holder, direction: Direction) -> None:
        """Take its flows from a Child SA or a trap."""
        for flow in holder.flows_of(direction):
            holders = self._holders.get((flow, direction), [])
            if holder not in holders:
                continue
            had_it = holders[-1] is holder
            holders.remove(holder)
            if not holders:
                del self._holders[flow, direction]
                self._delete(_policy(flow, direction, holder))
                self._delete_guard(flow, direction, holder)
            elif had_it:
                self._show(flow, direction, holders[-1], is_new=False)

    def _show(
        self, flow: KernelFlow, direction: Direction, holder: Holder, *, is_new: bool
    ) -> None:
        guard = _guard(flow, direction, holder)
        if guard is not None:
            self._tell(guard, is_new=is_new)
        try:
            self._tell(_policy(flow, direction, holder), is_new=is_new)
        except KernelRefused:
            if is_new:
                self._delete_guard(flow, direction, holder)
            raise

    def _tell(self, policy: KernelPolicy, *, is_new: bool) -> None:
        if is_new:
            self._xfrm.add_policy(policy)
        else:
            self._xfrm.update_policy(policy)
        self._there[policy.key] = policy

    def _delete_guard(self, flow: KernelFlow, direction: Direction, holder: Holder) -> None:
        guard = _guard(flow, direction, holder)
        if guard is not None:
            self._delete(guard)

    def _delete(self, policy: KernelPolicy) -> None:
        self._there.pop(policy.key, None)
        try:
            self._xfrm.delete_policy(policy)
        except KernelRefused as error:
            _log.warning("left in the kernel: %s", error)


def _policy(flow: KernelFlow, direction: Direction, holder: Holder) -> KernelPolicy:
    return KernelPolicy(
        selector=flow.selector(is_outbound=direction is Direction.OUT),
        direction=direction,
        templates=(_free_template(flow, holder),) if flow.is_own else _templates(holder, direction),
        priority=FIRST_PRIORITY + flow.breadth,
        flags=PolicyFlag.ICMP,
        if_id=0 if flow.is_own else holder.if_id,
    )


def _guard(flow: KernelFlow, direction: Direction, holder: Holder) -> KernelPolicy | None:
    """Nobody speaks for the peer by another device than the holder's interface.

    Between networks the routes say what may come by which; without an interface, the policy itself
    does this. The template only bears our tag.
    """
    is_guarded = holder.if_id and direction is not Direction.OUT and not flow.is_own
    if not is_guarded or not flow.is_of_one_host:
        return None
    return KernelPolicy(
        selector=flow.selector(is_outbound=False),
        direction=direction,
        templates=(_free_template(flow, holder),),
        priority=FIRST_PRIORITY + flow.breadth,
        action=Action.BLOCK,
    )


def _reqids(policy: KernelPolicy) -> set[int]:
    return {template.reqid for template in policy.templates}


def _templates(holder: Holder, direction: Direction) -> tuple[Template, ...]:
    """What goes out takes one SA, which a trap lacks; what comes in must have come by one.

    Where packets are compressed, those that would not get smaller come without. RFC 3173 §2.2.
    """
    ends, reqid, mode = holder.ends, holder.request_id, MODES[holder.mode]
    ways = any_ways = anywhere(ends.peer.ip), anywhere(ends.local.ip)
    spi, is_outbound = 0, direction is Direction.OUT
    if is_outbound:
        ways = ends.local.ip, ends.peer.ip
        spi = holder.child.spi_out if isinstance(holder, Pair) else 0
    cpi = cpi_of(holder, is_outbound=is_outbound)
    if cpi is None:
        return (Template(*ways, mode, reqid, holder.proto, spi),)
    compression = Template(*ways, mode, reqid, Proto.COMP, cpi)
    if not is_outbound:
        compression = replace(compression, spi=0, is_optional=True)
    return compression, Template(*any_ways, XfrmMode.TRANSPORT, reqid, holder.proto, spi)


def _free_template(flow: KernelFlow, holder: Holder) -> Template:
    """Asks for nothing; but what came out of a tunnel does not pass, and the policy has our tag.

    Its mode wants addresses of the flow's IP version.
    """
    address = anywhere(flow.local.network_address)
    mode = XfrmMode.TRANSPORT
    return Template(address, address, mode, holder.request_id, is_optional=True)
