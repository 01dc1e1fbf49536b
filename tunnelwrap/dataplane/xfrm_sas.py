"""The SAs of Child SAs in the kernel: added or filled in, moved, deleted.

Owns: every SA with our tag, and the SPIs that are reserved.
"""

import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from tunnelwrap.dataplane.netlink import XfrmSocket
from tunnelwrap.dataplane.xfrm_audit import is_whole
from tunnelwrap.dataplane.xfrm_pairs import (
    Ends,
    Pair,
    compression_sa,
    inbound_sa,
    last_sequence,
    migrations,
    outbound_sa,
)
from tunnelwrap.dataplane.xfrm_values import (
    EncapKind,
    KernelPolicy,
    KernelSa,
    Replay,
    SaId,
    Usage,
    XfrmMode,
)
from tunnelwrap.errors import KernelRefused
from tunnelwrap.ike.child_sa import Mode
from tunnelwrap.path import IpAddress, Path

SKIPPED: Final = 1024
"""Sequence numbers left out when an outbound SA is replaced, for packets sent meanwhile."""

_TAKEN: Final = frozenset({errno.ENOENT, errno.EEXIST})  # what the kernel says of an SPI

_log = logging.getLogger(__name__)


class KernelSas:
    """Puts SAs into the kernel and takes them out.

    Args:
        xfrm: by which the kernel is asked.
        no_request: the request ID of what has no policy.
    """

    __slots__ = ("_no_request", "_not_offloaded", "_owners", "_reserved", "_xfrm")

    def __init__(self, xfrm: XfrmSocket, no_request: int) -> None:
        self._xfrm = xfrm
        self._no_request = no_request
        self._reserved: dict[int, SaId] = {}
        self._owners: dict[SaId, Pair] = {}
        self._not_offloaded: set[IpAddress] = set()  # whose device has refused

    @property
    def owners(self) -> Mapping[SaId, Pair]:
        """Whose each SA is."""
        return self._owners

    def reserve_spi(self, spi: int, path: Path) -> bool:
        """Keep an inbound SPI for a Child SA on a path; False: somebody else has it.

        The kernel forgets it if no Child SA comes of it in time (net.core.xfrm_acq_expires).
        """
        larval = KernelSa(
            id=SaId(path.local.ip, 0),
            source=path.peer.ip,
            mode=XfrmMode.TUNNEL,
            reqid=self._no_request,
        )
        try:
            self._xfrm.allocate_spi(larval, spi, spi)
        except KernelRefused as error:
            if error.number in _TAKEN:
                return False
            _log.warning("SPI %08x is not reserved: %s", spi, error)
            return True
        self._reserved[spi] = SaId(path.local.ip, spi)
        return True

    def release_spi(self, spi: int) -> None:
        """A Child SA will not come of an SPI that was reserved; unknown is no error."""
        reserved = self._reserved.pop(spi, None)
        if reserved is not None:
            self._delete(reserved)

    def release_all(self) -> None:
        """No Child SA will come of any of them."""
        for spi in list(self._reserved):
            self.release_spi(spi)

    def add_inbound(self, pair: Pair) -> None:
        """Add what packets come by; it may come from another plane.

        Raises:
            DataPlaneError: the kernel refuses it.
        """
        self._add_compression(pair, is_outbound=False)
        sa, progress = inbound_sa(pair), pair.progress
        if progress is None:
            self._fill_in(pair, sa)
            return
        carried = progress.counters
        replay = replace(sa.replay, inbound=progress.inbound, seen=progress.seen)
        self._go_on(pair, sa, replay, Usage(carried.octets_in, carried.packets_in))

    def add_outbound(self, pair: Pair, sequence: int) -> None:
        """Add what packets go by; ``sequence`` is of the call that it answers, or 0.

        Raises:
            DataPlaneError: the kernel refuses it.
        """
        self._add_compression(pair, is_outbound=True)
        sa, progress = replace(outbound_sa(pair), sequence=sequence), pair.progress
        if progress is None:
            self._add(pair, sa)
            return
        carried = progress.counters
        replay = replace(sa.replay, outbound=progress.outbound)
        self._go_on(pair, sa, replay, Usage(carried.octets_out, carried.packets_out))

    def migrate(
        self, pair: Pair, new: Pair, policy: KernelPolicy, others: Sequence[KernelPolicy]
    ) -> bool:
        """Have the kernel move both SAs and what sends by them in one call; whether it did.

        It knows the SAs by their addresses and their request ID, which must be of no other Child
        SA. The new ones are copies. What another processor sends by the old one while it is copied
        has numbers that the new one does not know of: it leaves some out.
        """
        former = self.find(pair.inbound), self.find(pair.outbound)
        if not _can_migrate(pair, new.ends) or former[0] is None or former[1] is None:
            return False
        if former[0].offload or former[1].offload:
            return False  # the copies would not be; the new device is asked anew
        moves, encapsulation = migrations(pair, new), outbound_sa(new).encapsulation
        sent = min(former[1].replay.outbound + SKIPPED, last_sequence(former[1]))
        state = new.outbound, replace(former[1].replay, outbound=sent)
        try:
            self._xfrm.migrate(policy, moves, encapsulation, state, others)
        except KernelRefused as error:
            there = self.find(new.outbound)
            if there is None or there.source != new.ends.local.ip:
                _log.debug("its SAs are replaced one by one: %s", error)
                return False
            _log.warning("Child SA %08x has moved, but not all of it: %s", pair.child.spi_in, error)
        self._moved(pair, new.ends)
        return True

    def replace_inbound(self, pair: Pair, old: Pair) -> None:
        """Put an SA with the addresses of one Child SA in the place of that of another."""
        self._replace_compression(pair, old, is_outbound=False)
        self._replace(pair, old.inbound, inbound_sa(pair))

    def replace_outbound(self, pair: Pair, old: Pair) -> None:
        """The same for what goes out."""
        self._replace_compression(pair, old, is_outbound=True)
        self._replace(pair, old.outbound, outbound_sa(pair), skipped=SKIPPED)

    def find(self, sa_id: SaId) -> KernelSa | None:
        """An SA as it is now.

        Where it is gone, a packet may have made the kernel ask for it; what stands there then has
        no keys, and knows nothing of sequence numbers.
        """
        sa = self._xfrm.find_sa(sa_id)
        return sa if sa is not None and is_whole(sa) else None

    def lost(self, sa: SaId) -> None:
        """An SA has reached a hard limit: the kernel has deleted it."""
        pair = self._owners.get(sa)
        if pair is not None:
            self._disown(pair, sa)

    def remove(self, pair: Pair) -> None:
        """Delete the SAs of a Child SA."""
        for sa in list(pair.added):
            self._drop(pair, sa)

    def _moved(self, pair: Pair, ends: Ends) -> None:
        """The SAs of a Child SA have other addresses; one of them may have ports of the other."""
        for sa in (pair.inbound, pair.outbound):
            self._disown(pair, sa)
        pair.ends = ends
        for sa in (pair.inbound, pair.outbound):
            self._own(pair, sa)
        if inbound_sa(pair).encapsulation != outbound_sa(pair).encapsulation:
            self._xfrm.update_sa(inbound_sa(pair))

    def _fill_in(self, pair: Pair, sa: KernelSa) -> None:
        """Add an SA, in the place of what holds its SPI, if that is still there."""
        reserved = self._reserved.pop(sa.id.spi, None)
        try:
            if reserved == sa.id:
                self._put(self._xfrm.update_sa, sa)
                self._own(pair, sa.id)
                return
        except KernelRefused as error:
            if error.number != errno.ESRCH:
                self._delete(sa.id)
                raise
        if reserved is not None:  # for another address: the peer is reached otherwise now
            self._delete(reserved)
        self._add(pair, sa)

    def _add(self, pair: Pair, sa: KernelSa) -> None:
        self._put(self._xfrm.add_sa, sa)
        self._own(pair, sa.id)

    def _put(self, put: Callable[[KernelSa], None], sa: KernelSa) -> None:
        """Add or fill in an SA; a device does its cryptography that can and will.

        A device that cannot is no refusal, but one that will not, or not for these algorithms.
        """
        try:
            put(sa)
        except KernelRefused as refusal:
            if sa.offload is None:
                raise
            put(replace(sa, offload=None))
            self._tell_not_offloaded(sa, refusal)

    def _tell_not_offloaded(self, sa: KernelSa, refusal: KernelRefused) -> None:
        """Once for each device, which our address there stands for."""
        is_inbound = sa.offload is not None and sa.offload.is_inbound
        local = sa.id.destination if is_inbound else sa.source
        if local not in self._not_offloaded:
            self._not_offloaded.add(local)
            _log.info("no device does the ESP of %s: %s", local, refusal)

    def _own(self, pair: Pair, sa: SaId) -> None:
        pair.added.add(sa)
        self._owners[sa] = pair

    def _disown(self, pair: Pair, sa: SaId) -> None:
        pair.added.discard(sa)
        self._owners.pop(sa, None)

    def _go_on(self, pair: Pair, sa: KernelSa, replay: Replay, usage: Usage) -> None:
        """Add an SA that has carried something before.

        Where one with its SPI has just been deleted, a packet may have made the kernel ask for it;
        what the kernel keeps of that, under its request ID, is filled in.
        """
        try:
            self._add(pair, replace(sa, replay=replay))
        except KernelRefused as error:
            there = self._xfrm.find_sa(sa.id) if error.number == errno.EEXIST else None
            if there is None or there.reqid != sa.reqid:
                raise
            self._put(self._xfrm.update_sa, replace(sa, replay=replay))
            self._own(pair, sa.id)
        self._xfrm.set_state(sa.id, replay, usage)

    def _replace(self, pair: Pair, old: SaId, new: KernelSa, *, skipped: int = 0) -> None:
        """Put an SA with other addresses or ports in the place of one.

        Both are there for a moment, unless the kernel would take them for the same; then a packet
        that comes in between is lost.
        """
        former = self.find(old)
        if former is None:  # it has reached a limit or was deleted, which is told
            return
        if new.id == old and new.source == former.source and _kind(new) == _kind(former):
            self._xfrm.update_sa(new)
            return
        sent = min(former.replay.outbound + skipped, last_sequence(new))
        replay = replace(former.replay, outbound=sent)
        if new.id == old:
            self._drop(pair, old)
        self._go_on(pair, new, replay, former.usage)
        if new.id != old:
            self._drop(pair, old)

    def _add_compression(self, pair: Pair, *, is_outbound: bool) -> None:
        """Add the SA for it, if there is one.

        Two peers behind one address may have the same CPI, which is short; one of them then gets
        nothing compressed, as any packet may come. RFC 3173 §2.2.
        """
        sa = compression_sa(pair, is_outbound=is_outbound)
        if sa is None:
            return
        try:
            self._add(pair, sa)
        except KernelRefused as error:
            if error.number != errno.EEXIST or not is_outbound:
                raise
            _log.info("nothing is compressed to %s: %s", pair.ends.peer, error)
            pair.sends_plain = True

    def _replace_compression(self, pair: Pair, old: Pair, *, is_outbound: bool) -> None:
        """Follow a Child SA to other addresses; of ports IPComp knows nothing."""
        former = compression_sa(old, is_outbound=is_outbound)
        new = compression_sa(pair, is_outbound=is_outbound)
        if former is not None and new is not None and former != new:
            self._replace(pair, former.id, new)

    def _drop(self, pair: Pair, sa: SaId) -> None:
        self._disown(pair, sa)
        self._delete(sa)

    def _delete(self, sa: SaId) -> None:
        """Delete an SA; one that reached a hard limit is gone already."""
        try:
            self._xfrm.delete_sa(sa)
        except KernelRefused as error:
            _log.warning("left in the kernel: %s", error)


def _can_migrate(pair: Pair, ends: Ends) -> bool:
    """Whether the kernel can make of the SAs what we want; it takes no encapsulation away."""
    if (pair.ends.local.ip, pair.ends.peer.ip) == (ends.local.ip, ends.peer.ip):
        return False  # ports are changed in place
    is_simple = pair.mode is not Mode.TRANSPORT and pair.child.cpis is None
    is_alike = ends.kind is pair.ends.kind and ends.is_encapsulated >= pair.ends.is_encapsulated
    return is_simple and is_alike


def _kind(sa: KernelSa) -> EncapKind | None:
    """What stands around its packets; the kernel changes ports in place, but not that."""
    return sa.encapsulation.kind if sa.encapsulation is not None else None
