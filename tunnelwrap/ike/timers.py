"""Timers: an enum with a sentence each, and a table. No timer objects, no callbacks."""

from enum import IntEnum


class Timer(IntEnum):
    """What may come due; a timer of a Child SA has its inbound SPI as key, others 0."""

    HALF_OPEN = 0  # a peer that has not authenticated itself by now is forgotten
    REKEY_IKE = 1  # the IKE SA gets new keys
    EXPIRE_IKE = 2  # the IKE SA ends
    LIVENESS = 3  # the peer is asked whether it is still there
    SUPERSEDED = 4  # a rekeyed IKE SA that the peer has not deleted is forgotten
    REKEY_CHILD = 5  # a Child SA gets new keys
    EXPIRE_CHILD = 6  # a Child SA ends
    USE_OUTBOUND = 7  # the peer did not delete the old Child SA: use the new one all the same
    LINGER_CHILD = 8  # packets under way in a rekeyed Child SA had time to arrive
    CREATE_CHILD = 9  # a Child SA that the peer could not make at once is asked for again
    REFUSED = 10  # nothing better followed an IKE_SA_INIT error that anyone could have sent
    REASSEMBLY = 11  # the fragments of a message did not all come
    REPLACED = 12  # another IKE SA of the same peer has taken the place of this one
    REAUTHENTICATE = 13  # what was proved is too old
    FOLLOW_UP = 14  # the peer has not gone on with what it began by CREATE_CHILD_SA
    IDLE_CHILD = 15  # the data plane is asked what a Child SA has carried


class Timers:
    """A table of due times, in monotonic seconds."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due: dict[tuple[Timer, int], float] = {}

    def arm(self, timer: Timer, at: float | None, key: int = 0) -> None:
        """Set a timer, or stop it with None."""
        if at is None:
            self._due.pop((timer, key), None)
        else:
            self._due[timer, key] = at

    def stop_all(self, key: int | None = None) -> None:
        """Stop every timer, or every one with a key."""
        for name in [name for name in self._due if key is None or name[1] == key]:
            del self._due[name]

    def take_due(self, now: float) -> list[tuple[Timer, int]]:
        """The timers that are due, earliest first; they are stopped."""
        due = sorted((at, name) for name, at in self._due.items() if at <= now)
        for _, name in due:
            del self._due[name]
        return [name for _, name in due]

    def next(self) -> float | None:
        """The earliest due time, or None."""
        return min(self._due.values(), default=None)
