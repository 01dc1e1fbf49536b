"""Notices that somebody else has deleted what is ours in the kernel, and mends it.

A policy is put back. An SA is not: how far its sequence numbers were is lost with it, and no number
may be used twice (RFC 4303 §3.3.3). So its Child SA is to be replaced by one with other keys.
Owns: the netlink socket that hears of it.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from tunnelwrap.dataplane.netlink import Group, XfrmMonitor, XfrmSocket
from tunnelwrap.dataplane.xfrm_audit import Audit, compare
from tunnelwrap.dataplane.xfrm_messages import Msg
from tunnelwrap.dataplane.xfrm_pairs import Pair
from tunnelwrap.dataplane.xfrm_policies import Policies
from tunnelwrap.dataplane.xfrm_sas import KernelSas
from tunnelwrap.dataplane.xfrm_tags import TAG_SHIFT, is_tagged
from tunnelwrap.dataplane.xfrm_values import Event, EventsLost, PolicyDeleted, SaDeleted

PAUSE_S: Final = 0.05
"""Who deletes one thing often deletes more: it is looked at together."""

LOST_PAUSE_S: Final = 10.0
"""Where so much happens that the kernel could not tell it all, looking would only add to it."""

_DELETIONS: Final = (Msg.DELSA, Msg.DELPOLICY, Msg.FLUSHSA, Msg.FLUSHPOLICY)

_NAMED: Final = 3

_log = logging.getLogger(__name__)


class Watch:
    """Compares what the kernel has with what it was told.

    Args:
        xfrm: by which the kernel is asked.
        tag: of this instance.
        sas: what SAs it was told.
        policies: what policies.
        on_incomplete: called from the loop, once for a Child SA that has lost an SA.

    Raises:
        KernelRefused: we have no right to hear of it.
    """

    def __init__(
        self,
        xfrm: XfrmSocket,
        tag: int,
        sas: KernelSas,
        policies: Policies,
        on_incomplete: Callable[[Pair], None],
    ) -> None:
        self._xfrm = xfrm
        self._tag = tag
        self._sas = sas
        self._policies = policies
        self._on_incomplete = on_incomplete
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.TimerHandle | None = None
        self._monitor = XfrmMonitor([Group.SA, Group.POLICY], _DELETIONS)
        self._loop.add_reader(self._monitor.fileno(), self._on_events)

    def audit(self) -> Audit:
        """What the kernel has with our tag, and how that differs from what it was told.

        What can be mended will be, shortly.
        """
        audit = self._look()
        if audit.missing_policies or self._newly_incomplete(audit):
            self._look_in(PAUSE_S)
        return audit

    def close(self) -> None:
        """Watch no more."""
        if self._due is not None:
            self._due.cancel()
        if self._monitor.fileno() >= 0:
            self._loop.remove_reader(self._monitor.fileno())
        self._monitor.close()

    def _on_events(self) -> None:
        for event in self._monitor.read():
            if isinstance(event, EventsLost):
                self._look_in(LOST_PAUSE_S)
            elif self._is_strange(event):
                self._look_in(PAUSE_S)

    def _is_strange(self, event: Event) -> bool:
        """Whether it is no deletion of our own."""
        if isinstance(event, SaDeleted):
            return event.id in self._sas.owners and self._sas.find(event.id) is None
        if isinstance(event, PolicyDeleted):
            policy = self._policies.there.get(event.policy.key)
            return policy is not None and self._xfrm.find_policy(policy) is None
        return True  # we never flush

    def _look_in(self, seconds: float) -> None:
        if self._due is None:
            self._due = self._loop.call_later(seconds, self._mend)

    def _look(self) -> Audit:
        return compare(
            (sa for sa in self._xfrm.sas() if sa.reqid >> TAG_SHIFT == self._tag),
            (policy for policy in self._xfrm.policies() if is_tagged(policy, self._tag)),
            self._sas.owners,
            self._policies.there.values(),
        )

    def _newly_incomplete(self, audit: Audit) -> list[Pair]:
        owners = {self._sas.owners[sa] for sa in audit.missing_sas}
        return [pair for pair in owners if not pair.is_incomplete]

    def _mend(self) -> None:
        self._due = None
        audit = self._look()
        pairs = self._newly_incomplete(audit)
        if not pairs and not audit.missing_policies:
            return
        refusals = [self._policies.put_back(policy) for policy in audit.missing_policies]
        _log.warning("%s", _report(audit, len(pairs), [each for each in refusals if each]))
        for pair in pairs:
            pair.is_incomplete = True
            self._on_incomplete(pair)


def _report(audit: Audit, child_sas: int, refusals: list[str]) -> str:
    """What was found and done, in a line."""
    done = []
    if child_sas:
        done.append(f"{child_sas} Child SA{'s' if child_sas > 1 else ''} to be replaced")
    if put_back := len(audit.missing_policies) - len(refusals):
        done.append(f"{put_back} polic{'ies' if put_back > 1 else 'y'} put back")
    done += [f"a policy cannot be put back: {each}" for each in dict.fromkeys(refusals)]
    found = audit.missing
    some = ", ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" * (len(found) > _NAMED))
    return f"somebody has deleted what is ours in the kernel ({some}): {'; '.join(done)}"
