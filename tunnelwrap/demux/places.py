"""How many connections there may be: in all, and from one origin."""

from collections import Counter

from tunnelwrap.path import IpAddress


def origin_of(ip: IpAddress) -> bytes:
    """What is counted as one: an IPv4 address, or an IPv6 network of 64 bits."""
    return ip.packed[:8]


class Places:
    """A number of places, of which one origin can have a part only.

    Args:
        in_all: how many there are.
        per_origin: how many of them one origin can have.
    """

    def __init__(self, in_all: int, per_origin: int) -> None:
        self._left, self._per_origin = in_all, per_origin
        self._origins: Counter[bytes] = Counter()

    def take(self, ip: IpAddress | None) -> "Place | None":
        """A place, if one is left for that address; None: it is not known yet whose it is."""
        place = Place(self)
        if self._left <= 0 or (ip is not None and not place.belongs_to(ip)):
            return None
        self._left -= 1
        return place

    def has_room(self, origin: bytes) -> bool:
        """Whether another one of that origin can be taken in; then it is."""
        if self._origins[origin] >= self._per_origin:
            return False
        self._origins[origin] += 1
        return True

    def give_back(self, origin: bytes | None) -> None:
        """One place is free again."""
        self._left += 1
        if origin is not None:
            self._origins[origin] -= 1
            if not self._origins[origin]:
                del self._origins[origin]


class Place:
    """One of the places, until it is left."""

    __slots__ = ("_places", "origin")

    def __init__(self, places: Places) -> None:
        self._places: Places | None = places
        self.origin: bytes | None = None  # not known yet, or never

    def belongs_to(self, ip: IpAddress) -> bool:
        """It is known now whose it is; whether that one can have it."""
        origin = origin_of(ip)
        if self._places is None or not self._places.has_room(origin):
            return False
        self.origin = origin
        return True

    def leave(self) -> None:
        """Give it back; calling twice is fine."""
        if self._places is not None:
            self._places.give_back(self.origin)
        self._places = None
