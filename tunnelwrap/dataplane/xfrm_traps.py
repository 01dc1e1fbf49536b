"""Traps in the kernel: policies out without an SA, whose first packet calls for a Child SA.

Packets wait at a trap, a hundred for each policy, where TRAP_SYSCTLS are set; elsewhere they are
lost. What waits goes on to the policy that takes the place of its own, and is sent at once if that
can. So the policy of a trap is never deleted before there is another.
Owns: the traps that are set, and their request IDs.
"""

from typing import Final

from tunnelwrap.dataplane import AcquireCallback, Trap
from tunnelwrap.dataplane.flows import kernel_flows
from tunnelwrap.dataplane.xfrm_pairs import Ends, Trapped
from tunnelwrap.dataplane.xfrm_policies import Policies
from tunnelwrap.dataplane.xfrm_tags import RequestIds
from tunnelwrap.dataplane.xfrm_values import Acquire, Direction
from tunnelwrap.errors import DataPlaneError
from tunnelwrap.transport import Transport

TRAP_SYSCTLS: Final = (("net/core/xfrm_larval_drop", "0"),)
"""What makes packets wait, whoever's policy it is in this network namespace."""


class Traps:
    """Traps by the name of the Child SA that they call for.

    Args:
        policies: hold those of the traps behind those of Child SAs.
        request_ids: each trap has one to itself.
    """

    __slots__ = ("_policies", "_request_ids", "_traps")

    def __init__(self, policies: Policies, request_ids: RequestIds) -> None:
        self._policies = policies
        self._request_ids = request_ids
        self._traps: dict[str, Trapped] = {}

    def set(self, trap: Trap, transport: Transport, on_acquire: AcquireCallback) -> None:
        """Set a trap; what waits at a former one of that name waits at this one.

        Raises:
            DataPlaneError: the kernel refuses it; then there is none of that name.
        """
        former = self._traps.pop(trap.name, None)
        try:
            self._set(trap, transport, on_acquire)
        finally:
            if former is not None:
                self._release(former)

    def remove(self, name: str) -> None:
        """Call for nothing any more by the trap of that name; unknown is no error."""
        trap = self._traps.pop(name, None)
        if trap is not None:
            self._release(trap)

    def remove_all(self) -> None:
        """Call for nothing any more."""
        for name in list(self._traps):
            self.remove(name)

    def call_for(self, name: str) -> int:
        """The number of the call that a Child SA of that name answers; 0: there is none."""
        trap = self._traps.get(name)
        return trap.sequence if trap is not None else 0

    def answered(self, name: str) -> None:
        """A Child SA of that name has its policies; the next call is another one.

        A packet between the SA and its policy still met the trap, as may have one before the trap
        came to another path. What the kernel keeps of that would silence the next call for half a
        minute, but under the old request ID only.
        """
        trap = self._traps.get(name)
        if trap is None:
            return
        trap.sequence = 0
        self._request_ids.give_back(trap)
        trap.request_id = self._request_ids.take(trap)
        self._policies.refresh(trap, Direction.OUT)

    def take(self, call: Acquire) -> None:
        """Hand on a call of the kernel's, if it is for one of these."""
        wanted = {template.reqid for template in call.policy.templates}
        for trap in list(self._traps.values()):
            if trap.request_id in wanted:
                trap.sequence = call.sequence
                trap.on_acquire()

    def _set(self, trap: Trap, transport: Transport, on_acquire: AcquireCallback) -> None:
        """Set a trap behind a former one, which keeps its policies until it is released."""
        flows = kernel_flows(trap.ts_local, trap.ts_peer)
        new = Trapped(trap, flows, Ends.of(transport, trap.protocol), on_acquire)
        new.request_id = self._request_ids.take(new)
        self._traps[trap.name] = new
        try:
            self._policies.hold_last(new, Direction.OUT)
        except DataPlaneError:
            self.remove(trap.name)
            raise

    def _release(self, trap: Trapped) -> None:
        self._policies.release(trap, Direction.OUT)
        self._request_ids.give_back(trap)
