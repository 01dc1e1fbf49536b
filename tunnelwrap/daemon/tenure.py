"""Which of several streams has a client's way: a rule for who has no keys to judge by.

The client of a stream that broke comes back on another one, and shows no more than the SPIs of its
SAs. Whoever has seen a packet of it knows them too. Hence:

1. What a newcomer sends under known SPIs goes on to the daemon: that one has the keys, and judges.
2. While nobody has the way, the first newcomer gets it, so that ESP alone brings a client back.
3. Who has the way keeps it for as long as its stream lives. A newcomer meanwhile is a challenger:
   it gets nothing but the daemon's responses to what it asked itself.
4. A challenger gets the way at once when the daemon answers, for the first time, a request that
   only the challenger has sent. Nobody without the keys can make such a request, and one that was
   recorded and is sent again has been answered before.
5. A challenger also gets the way when the holder's stream ends. Whoever owns the streams hastens
   that for one whose other end is gone, and for no other: TCP must acknowledge a probe.
6. A challenger that has not got the way within a certain time is turned away.

So a stranger who knows the SPIs cannot take the way from a client that is there; it can have it
while the client is away, until the client's next request.
"""

from typing import Final, Generic, TypeVar

from tunnelwrap.daemon.headers import Esp, Ike

MAX_CHALLENGERS: Final = 4
MAX_IKE_SAS: Final = 16
"""Of how many IKE SAs the last message IDs are remembered; the oldest go first."""

T = TypeVar("T")


class Tenure(Generic[T]):
    """Who has one client's way, and who would like to; ``now`` is in monotonic seconds.

    Owns: the streams' claims, not the streams.
    """

    __slots__ = ("_answered", "_asked", "challengers", "holder")

    def __init__(self) -> None:
        self.holder: T | None = None
        self.challengers: dict[T, float] = {}
        """Since when they are; who was heard last stands last."""

        self._asked: dict[T, dict[bytes, int]] = {}  # the last message ID of each, by SPIi
        self._answered: dict[bytes, int] = {}  # the highest message ID, by both SPIs

    def hear(self, caller: T, seen: Ike | Esp, now: float) -> bool:
        """A datagram of this client's SAs came by a stream; whether it is a new challenger."""
        if isinstance(seen, Ike) and not seen.is_response:
            _note(self._asked.setdefault(caller, {}), seen.spi_i, seen.message_id)
        if self.holder is None or self.holder is caller:
            self.holder = caller
            return False
        since = self.challengers.pop(caller, None)
        self.challengers[caller] = now if since is None else since
        return since is None

    def answer(self, seen: Ike, now: float) -> list[T]:
        """The daemon sends an IKE message: who gets it. The way may change hands by it."""
        askers: list[T] = []
        if seen.is_response:
            askers = [
                caller
                for caller, asked in self._asked.items()
                if asked.get(seen.spi_i) == seen.message_id
            ]
            before = self._answered.get(seen.key, -1)
            _note(self._answered, seen.key, max(seen.message_id, before))
            # What is not protected, anybody can have answered.
            if seen.is_protected and seen.message_id > before and len(askers) == 1:
                self._hand_over(askers[0], now)
        holders = [] if self.holder is None else [self.holder]
        return list(dict.fromkeys(holders + askers))

    def leave(self, caller: T) -> None:
        """A stream has ended; if it had the way, the challenger heard last gets it."""
        self.challengers.pop(caller, None)
        self._asked.pop(caller, None)
        if self.holder is caller:
            self.holder = self.challengers.popitem()[0] if self.challengers else None

    def turned_away(self, begun_before: float) -> list[T]:
        """The challengers that began so long ago, and those that are too many, oldest first."""
        oldest = sorted(self.challengers, key=self.challengers.__getitem__)
        surplus = max(len(oldest) - MAX_CHALLENGERS, 0)
        late = [each for each in oldest[surplus:] if self.challengers[each] < begun_before]
        return oldest[:surplus] + late

    def _hand_over(self, caller: T, now: float) -> None:
        """The old holder may still have something under way to us. RFC 9329 §6.1."""
        if self.holder is caller:
            return
        self.challengers.pop(caller, None)
        if self.holder is not None:
            self.challengers[self.holder] = now
        self.holder = caller


def _note(ids: dict[bytes, int], spis: bytes, message_id: int) -> None:
    ids[spis] = message_id
    if len(ids) > MAX_IKE_SAS:
        del ids[next(iter(ids))]
