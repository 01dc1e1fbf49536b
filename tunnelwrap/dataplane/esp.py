"""Sealing and opening of ESP packets, train by train, in buffers of the caller. RFC 4303.

Flow out: the caller puts the inner packets of a train into the slots of an arena; ``seal_batch``
writes frame length, ESP header, IV, trailer and ICV around them and encrypts in place.
Flow in: ``open_batch`` takes packets of one SA as they came and leaves authentic plaintext in
slots of an arena, described by runs of equal length.
Owns: keys, sequence numbers and replay windows. No inner packet is looked at here; what the
algorithms do to a train is in ``transform``.
"""

from collections.abc import Iterable, MutableMapping, Sequence
from itertools import repeat
from struct import Struct
from typing import Final, NamedTuple

from tunnelwrap.crypto.suite import EspSuite
from tunnelwrap.dataplane.transform import (
    BLOCK,
    BY_COLUMN,
    ESP_HEADER,
    FRAME_LENGTH,
    Slots,
    lead_of,
    opener,
    sealer,
)
from tunnelwrap.errors import UsageError
from tunnelwrap.ike.child_sa import SaKeys

TRAILER: Final = 2  # pad length and next header

IPV4: Final = 4  # next header of a tunnelled IPv4 packet
IPV6: Final = 41
DUMMY: Final = 59  # RFC 4303 §2.6: to be dropped silently

PADDING: Final = bytes(range(1, 256))  # RFC 4303 §2.4: 1, 2, 3, ..
"""The self-describing padding; its first octets are what a trailer carries."""

STRETCH: Final = 64  # packets that are looked at together when opening

_LOW: Final = 0xFFFF_FFFF
_spi_and_low = Struct(">II").unpack_from


class Run(NamedTuple):
    """Opened packets of one length, one after the other in an arena."""

    offset: int  # of the first plaintext: inner packet, padding, pad length, next header
    packets: int
    length: int  # of each plaintext
    stride: int  # even


def inner_limit(max_datagram: int, suite: EspSuite) -> int:
    """Longest inner packet whose ESP packet fits a datagram of that size. RFC 4303 §2.4."""
    align = _alignment(suite)
    room = max_datagram - ESP_HEADER - suite.iv_length - suite.icv_length
    return room // align * align - TRAILER


class OutboundSa:
    """Seals packets; owns the keys of one outbound SA and its next sequence number."""

    __slots__ = ("_align", "_head", "_last", "_overhead", "_seal", "_sequence")

    def __init__(self, spi: int, suite: EspSuite, keys: SaKeys, *, uses_esn: bool) -> None:
        """Bind the keys.

        Raises:
            Unsupported: an algorithm is unknown here.
        """
        self._sequence = 0
        self._last = (1 << 64) - 1 if uses_esn else _LOW
        self._align = _alignment(suite)
        self._head = FRAME_LENGTH + ESP_HEADER + suite.iv_length
        self._overhead = self._head + TRAILER + suite.icv_length
        self._seal = sealer(suite, keys, spi, uses_esn=uses_esn)

    @property
    def head(self) -> int:
        """Where in its slot the inner packet stands."""
        return self._head

    @property
    def sequence(self) -> int:
        """Sequence number of the newest packet; 0 before the first."""
        return self._sequence

    @property
    def is_exhausted(self) -> bool:
        """No sequence number is left: RFC 4303 §3.3.3 forbids to go on."""
        return self._sequence >= self._last

    def skip_to(self, sequence: int) -> None:
        """Go on behind a sequence number that another plane has used.

        Raises:
            UsageError: it would be used a second time.
        """
        if sequence < self._sequence:
            raise UsageError(f"sequence number {sequence} is behind {self._sequence}")
        self._sequence = min(sequence, self._last)

    def slot(self, length: int) -> int:
        """Octets of the frame for an inner packet of this length."""
        return self._overhead + length + (-(length + TRAILER)) % self._align

    def seal_batch(
        self,
        arena: memoryview,
        offset: int,
        shape: tuple[int, int, int],
        ends: list[int],
    ) -> int:
        """Seal inner packets of one length that stand in consecutive slots from ``offset`` on.

        Args:
            arena: writable; the slots become RFC 9329 frames.
            offset: start of the first slot.
            shape: count, length in octets, and next header of the inner packets.
            ends: gets the offset behind each frame.

        Returns:
            How many were sealed: fewer when the sequence numbers ran out.
        """
        count, length, next_header = shape
        count = min(count, self._last - self._sequence)
        pad = (-(length + TRAILER)) % self._align
        slot = self._overhead + length + pad
        trailer = PADDING[:pad] + bytes((pad, next_header))
        first = self._sequence + 1
        self._sequence += count  # spent, whatever happens to the packets
        self._seal(arena, offset, (count, length, slot), trailer, first)
        ends.extend(range(offset + slot, offset + slot * count + 1, slot))
        return count


class ReplayWindow:
    """Which sequence numbers were seen; owns the right edge and the bitmap behind it.

    RFC 4303 §3.4.3; the high half of an extended sequence number is inferred by Appendix A2.
    """

    __slots__ = ("_bitmap", "_mask", "_size", "_uses_esn", "top")

    def __init__(self, size: int, *, uses_esn: bool) -> None:
        self._size = max(size, 1)
        self._mask = (1 << self._size) - 1
        self._bitmap = 0  # bit n: top - n was seen
        self._uses_esn = uses_esn
        self.top = 0

    @property
    def state(self) -> tuple[int, int]:
        """The right edge, and the bitmap: bit n is set where ``top - n`` was seen."""
        return self.top, self._bitmap

    def resume(self, top: int, seen: int) -> None:
        """Go on where another plane's window was."""
        self.top, self._bitmap = top, seen & self._mask

    def locate(self, low: int) -> int:
        """The whole sequence number for its low half, or 0: seen, too old or impossible."""
        sequence = self._infer(low) if self._uses_esn else low
        age = self.top - sequence
        if sequence <= 0 or age >= self._size or (age >= 0 and self._bitmap >> age & 1):
            return 0
        return sequence

    def accept(self, sequence: int) -> None:
        """Mark a located number as seen; only after its packet was authenticated."""
        ahead = sequence - self.top
        if ahead <= 0:
            self._bitmap |= 1 << -ahead
        elif ahead >= self._size:
            self._bitmap, self.top = 1, sequence
        else:
            self._bitmap, self.top = (self._bitmap << ahead | 1) & self._mask, sequence

    def advance(self, count: int) -> None:
        """Mark the next ``count`` numbers beyond the right edge as seen."""
        fresh = min(count, self._size)
        self._bitmap = (self._bitmap << fresh | (1 << fresh) - 1) & self._mask
        self.top += count

    def _infer(self, low: int) -> int:
        """RFC 4303 Appendix A2.2: the high half that puts the number nearest to the window."""
        top_low, high = self.top & _LOW, self.top >> 32
        bottom = (top_low - self._size + 1) & _LOW
        if top_low >= self._size - 1:  # case A: the window lies in one subspace
            high += low < bottom
        else:  # case B: it spans two
            high -= low >= bottom
        return high << 32 | low if high >= 0 else 0


class InboundSa:
    """Opens packets; owns the keys of one inbound SA and its replay window."""

    __slots__ = ("_drops", "_lead", "_open", "_overhead", "_spi", "_step", "_window", "_wrap")

    def __init__(
        self,
        spi: int,
        suite: EspSuite,
        keys: SaKeys,
        window: ReplayWindow,
        *,
        uses_esn: bool,
        drops: MutableMapping[str, int],
    ) -> None:
        """Bind the keys; packets dropped are counted by cause in ``drops``.

        Raises:
            Unsupported: an algorithm is unknown here.
        """
        self._spi = spi
        self._window = window
        self._drops = drops
        self._wrap = _LOW if uses_esn else -1
        self._lead = lead_of(suite)
        self._step = max(_alignment(suite), 4)
        self._overhead = ESP_HEADER + suite.iv_length + suite.icv_length
        self._open = opener(suite, keys, spi, uses_esn=uses_esn)

    @property
    def sequence(self) -> int:
        """The highest authentic sequence number."""
        return self._window.top

    def open_batch(
        self, batch: Sequence[memoryview], index: int, arena: memoryview, runs: list[Run]
    ) -> int:
        """Open the packets from ``batch[index]`` on, as long as they belong to this SA.

        Ends before a packet of another SA and before one for which the arena has no room.

        Args:
            batch: datagrams in order of arrival; they are not changed.
            index: of the first, which must be ours.
            arena: writable, at least 65600 octets; its former contents are lost.
            runs: gets what was opened, in order.

        Returns:
            Index of the first datagram not consumed.
        """
        spi, overhead, lead, step = self._spi, self._overhead, self._lead, self._step
        limit = len(arena) - 2 * BLOCK  # a stride is at most that much longer than its plaintext
        offset, position, last = lead, index, len(batch)
        while position < last:
            view = batch[position]
            if len(view) < ESP_HEADER or _spi_and_low(view)[0] != spi:
                break
            size = len(view) - overhead
            if size < step or size % step:
                self._drops["malformed"] += 1
                position += 1
                continue
            stride = (size + lead + 15) & ~15
            room = (limit - offset - size) // stride + 1
            if room < 1:
                break
            views = self._in_order(batch[position : position + min(room, STRETCH)])
            place = (offset, size, stride)
            if views:
                count = self._open(views, self._window.top + 1, arena, place)
                self._window.advance(count)
            else:
                count = 0
            if count == 0:  # alone, or the first of the train is forged: judge it by itself
                count = self._open_single(view, arena, place)
            position += count or 1
            if count:
                _note(runs, Run(offset, count, size, stride))
                offset += count * stride
        return position

    def _in_order(self, views: Sequence[memoryview]) -> Sequence[memoryview]:
        """The packets of equal length that bring the next sequence numbers; none if too few."""
        expected, probe = self._window.top + 1, BY_COLUMN - 1
        low = expected & self._wrap
        if low + STRETCH > _LOW or len(views) <= probe or len(views[probe]) != len(views[0]):
            return ()
        if _spi_and_low(views[probe]) != (self._spi, low + probe):
            return ()
        lengths = list(map(len, views))
        if lengths.count(lengths[0]) != len(views):
            views = views[: _first_difference(lengths, repeat(lengths[0]))]
        heads = list(map(_spi_and_low, views))
        wanted = list(zip(repeat(self._spi), range(low, low + len(views)), strict=False))
        if heads == wanted:
            return views
        count = _first_difference(heads, wanted)
        return views[:count] if count >= BY_COLUMN else ()

    def _open_single(self, view: memoryview, arena: memoryview, place: Slots) -> int:
        """Open one packet wherever it stands in the window; 1 if it is authentic and new."""
        sequence = self._window.locate(_spi_and_low(view)[1])
        if not sequence:
            self._drops["replay"] += 1
            return 0
        if not self._open((view,), sequence, arena, place):
            self._drops["integrity"] += 1
            return 0
        self._window.accept(sequence)
        return 1


def _first_difference(found: Iterable[object], wanted: Iterable[object]) -> int:
    pairs = zip(found, wanted, strict=False)
    return next(number for number, (one, other) in enumerate(pairs) if one != other)


def _note(runs: list[Run], run: Run) -> None:
    """Add to the runs, or to the last one if this goes on where it ends."""
    if runs:
        offset, count, length, stride = runs[-1]
        if length == run.length and offset + count * stride == run.offset:
            runs[-1] = Run(offset, count + run.packets, length, stride)
            return
    runs.append(run)


def _alignment(suite: EspSuite) -> int:
    """What inner packet, padding and trailer together are a multiple of. RFC 4303 §2.4."""
    return max(4, suite.block_size)
