"""The Child SAs of one peer, from their installation to the end of their linger.

Owns: the table of Child SAs and their timers. The table moves as a whole from an IKE SA to the
one that rekeys it. RFC 7296 §2.8.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from tunnelwrap.errors import UsageError
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.context import Context
from tunnelwrap.ike.outputs import InstallChildSa, MoveChildSa, RemoveChildSa, UseOutbound
from tunnelwrap.ike.policy import ChildPolicy
from tunnelwrap.ike.rules import CHILD_TRANSITIONS, ChildState
from tunnelwrap.ike.timers import Timer, Timers
from tunnelwrap.path import Path

LINGER_S: Final = 5.0  # how long packets of a rekeyed Child SA are still taken
USE_OUTBOUND_S: Final = 3.0  # how long the peer may take to delete the Child SA it rekeyed
IDLE_SHARE: Final = 0.25  # how much later than asked for an idle Child SA may end


class Child:
    """One Child SA with its state."""

    __slots__ = (
        "carried",
        "policy",
        "quiet_since",
        "sa",
        "state",
        "successor",
        "uses_outbound",
    )

    def __init__(
        self, sa: ChildSa, policy: ChildPolicy, now: float, *, uses_outbound: bool
    ) -> None:
        self.sa = sa
        self.policy = policy
        self.state = ChildState.INSTALLED
        self.uses_outbound = uses_outbound
        self.successor: int | None = None  # spi_in of the Child SA that rekeys it
        self.carried = 0  # packets, when the data plane was last asked
        self.quiet_since = now  # when there were no more than the time before

    def become(self, state: ChildState) -> None:
        """The only writer of ``state``."""
        if state is self.state:
            return
        if state not in CHILD_TRANSITIONS[self.state]:
            raise UsageError(f"Child SA {self.sa.spi_in:08x}: {self.state} to {state}")
        self.state = state


class Children:
    """The table of Child SAs, by inbound SPI."""

    __slots__ = ("_context", "_sa_id", "_table", "_wanted", "timers")

    def __init__(self, context: Context, sa_id: int) -> None:
        self._context = context
        self._sa_id = sa_id
        self._table: dict[int, Child] = {}
        self._wanted: list[ChildPolicy] = []
        self.timers = Timers()

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._table.values()))

    def __len__(self) -> int:
        return len(self._table)

    def find(self, spi_in: int) -> Child | None:
        """The Child SA with this inbound SPI."""
        return self._table.get(spi_in)

    def find_outbound(self, protocol: int, spi_out: int) -> Child | None:
        """The Child SA with this outbound SPI: how the peer names it. RFC 7296 §1.3.3."""
        named = (protocol, spi_out)
        return next(
            (c for c in self._table.values() if (c.sa.protocol, c.sa.spi_out) == named), None
        )

    def install(
        self,
        sa: ChildSa,
        policy: ChildPolicy,
        now: float,
        *,
        use_outbound: bool,
        replaces: int | None,
    ) -> Child:
        """Take a new Child SA into use and set its lifetime."""
        child = Child(sa, policy, now, uses_outbound=use_outbound)
        self._table[sa.spi_in] = child
        self._context.emit(InstallChildSa(self._sa_id, sa, use_outbound, replaces))
        self._set_lifetime(child, now)
        self._watch(child, replaces, now)
        if not use_outbound:
            self.timers.arm(Timer.USE_OUTBOUND, now + USE_OUTBOUND_S, sa.spi_in)
        return child

    def use_outbound(self, spi_in: int) -> None:
        """Send through this Child SA from now on."""
        self.timers.arm(Timer.USE_OUTBOUND, None, spi_in)
        child = self._table.get(spi_in)
        if child is not None and not child.uses_outbound:
            child.uses_outbound = True
            self._context.emit(UseOutbound(self._sa_id, spi_in))

    def use_all(self) -> None:
        """Nothing else carries packets any more."""
        for spi_in, child in list(self._table.items()):
            if child.state in {ChildState.INSTALLED, ChildState.REKEYING}:
                self.use_outbound(spi_in)

    def supersede(self, spi_in: int, successor: int | None) -> None:
        """Another Child SA carries the packets; this one waits for its delete or its hard limit.

        Without successor it was redundant from the start, and has carried nothing.
        """
        child = self._table.get(spi_in)
        if child is None:
            return
        child.successor = successor
        self.timers.arm(Timer.REKEY_CHILD, None, spi_in)
        self.timers.arm(Timer.USE_OUTBOUND, None, spi_in)
        if child.state in {ChildState.INSTALLED, ChildState.REKEYING}:
            child.become(ChildState.REKEYED)

    def is_idle(self, spi_in: int, carried: int, now: float) -> bool:
        """Whether a Child SA that has carried so many packets by now has been idle for too long.

        If not, the data plane is asked again.
        """
        child = self._table.get(spi_in)
        if child is None or child.policy.idle_s is None:
            return False
        if carried != child.carried:
            child.carried = carried
            self._note_traffic(child, now)
        if child.state not in {ChildState.INSTALLED, ChildState.REKEYING}:
            return False
        ends_at, again_at = child.quiet_since + child.policy.idle_s, now + _step(child)
        if now >= ends_at and child.state is ChildState.INSTALLED:
            return True
        at = ends_at if now < ends_at < again_at else again_at
        self.timers.arm(Timer.IDLE_CHILD, at, spi_in)
        return False

    def want(self, policy: ChildPolicy, at: float) -> None:
        """Ask for a Child SA again at that time."""
        self._wanted.append(policy)
        self.timers.arm(Timer.CREATE_CHILD, at)

    def take_wanted(self) -> list[ChildPolicy]:
        """The Child SAs to ask for now."""
        wanted, self._wanted = self._wanted, []
        return wanted

    def end(self, child: Child, now: float) -> None:
        """The Child SA was deleted: it goes at once, or lingers when another has replaced it."""
        spi_in = child.sa.spi_in
        self.timers.stop_all(spi_in)
        if child.successor is None:
            self.remove(spi_in)
            return
        self.use_outbound(child.successor)
        if child.state is not ChildState.DELETING:
            child.become(ChildState.DELETING)
        self.timers.arm(Timer.LINGER_CHILD, now + LINGER_S, spi_in)

    def remove(self, spi_in: int) -> None:
        """Forget a Child SA."""
        child = self._table.pop(spi_in, None)
        if child is None:
            return
        child.become(ChildState.CLOSED)
        self.timers.stop_all(spi_in)
        self._context.release_spi(spi_in)
        self._context.emit(RemoveChildSa(self._sa_id, spi_in))

    def remove_all(self) -> None:
        """Forget all of them."""
        for spi_in in list(self._table):
            self.remove(spi_in)

    def move(self, path: Path, *, is_bare: bool) -> None:
        """The peer is reached by another path now, perhaps one on which ESP is bare."""
        for child in self._table.values():
            child.sa = replace(child.sa, path=path, is_bare=is_bare)
            self._context.emit(MoveChildSa(self._sa_id, child.sa.spi_in, path, is_bare))

    def _watch(self, child: Child, replaces: int | None, now: float) -> None:
        """See whether it carries anything; a rekey does not make it busy."""
        if child.policy.idle_s is None:
            return
        old = self._table.get(replaces) if replaces is not None else None
        if old is not None:
            child.quiet_since = old.quiet_since
            self.timers.arm(Timer.IDLE_CHILD, now, old.sa.spi_in)  # what it has carried at last
        self.timers.arm(Timer.IDLE_CHILD, now + _step(child), child.sa.spi_in)

    def _note_traffic(self, child: Child, now: float) -> None:
        """What a Child SA carries counts for the one that has replaced it."""
        child.quiet_since = now
        successor = self._table.get(child.successor) if child.successor is not None else None
        if successor is not None:
            successor.quiet_since = now

    def _set_lifetime(self, child: Child, now: float) -> None:
        lifetime, spi_in = child.policy.lifetime, child.sa.spi_in
        if lifetime.rekey_s is not None:
            rekey_at = now + self._context.jitter(lifetime.rekey_s)
            self.timers.arm(Timer.REKEY_CHILD, rekey_at, spi_in)
        if lifetime.hard_s is not None:
            self.timers.arm(Timer.EXPIRE_CHILD, now + lifetime.hard_s, spi_in)


def _step(child: Child) -> float:
    """How long the data plane is not asked again."""
    return (child.policy.idle_s or 0.0) * IDLE_SHARE
