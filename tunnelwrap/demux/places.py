"""How many connections there may be: in all, and from one origin."""

from collections import Counter

from tunnelwrap.path import IpAddress


class Places:
    """A number of places, of which one origin can have a part only.

    An origin is an IPv4 address, or an IPv6 network of 64 bits.

    Args:
        in_all: how many there are.
        per_origin: how many of them one origin can have.
    """

    def __init__(self, in_all: int, per_origin: int) -> None:
        self._left, self._per_origin = in_all, per_origin
        self._origins: Counter[bytes] = Counter()

    def take(self, ip: IpAddress) -> "Place | None":
        """A place, if one is left for that address."""
        origin = ip.packed[:8]
        if self._left <= 0 or self._origins[origin] >= self._per_origin:
            return None
        self._left -= 1
        self._origins[origin] += 1
        return Place(self, origin)

    def give_back(self, origin: bytes) -> None:
        """One place is free again."""
        self._left += 1
        self._origins[origin] -= 1
        if not self._origins[origin]:
            del self._origins[origin]


class Place:
    """One of the places, until it is left."""

    __slots__ = ("_origin", "_places")

    def __init__(self, places: Places, origin: bytes) -> None:
        self._places: Places | None = places
        self._origin = origin

    def leave(self) -> None:
        """Give it back; calling twice is fine."""
        if self._places is not None:
            self._places.give_back(self._origin)
        self._places = None
