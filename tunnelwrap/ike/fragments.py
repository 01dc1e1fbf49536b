"""IKE fragmentation: splitting what we send, joining what comes. RFC 7383.

Pure: sizes and authentic plaintexts in, datagrams and whole messages out. A size is that of an IP
datagram, as RFC 7383 §2.5.1 counts; a stream carries everything whole (RFC 9329 §7.5).
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from tunnelwrap.ike.protect import Protection
from tunnelwrap.path import Path
from tunnelwrap.wire.message import Fragment, IkeHeader, Message

MAX_FRAGMENTS: Final = 256  # of one message
MAX_OCTETS: Final = 65536  # inside one message, whatever it is split into
REASSEMBLY_S: Final = 30.0  # after its first fragment the rest must have come

IP_UDP: Final = {4: 20 + 8, 6: 40 + 8}
MARKER: Final = 4
SMALLER: Final = {4: (1280, 576), 6: (1280,)}  # sizes to try where larger ones are not answered
LEAST: Final = 200  # octets of a message: less is not believed to be what a path carries


class Whole(NamedTuple):
    """What the fragments of one message come to."""

    first: int  # type of the first payload inside
    plaintext: bytes
    largest: int  # octets of its largest fragment, as it came


class Reassembly:
    """The message that is coming in, in one direction. Owns: its authentic fragments."""

    __slots__ = ("_first", "_key", "_largest", "_parts", "_total")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop what has come so far."""
        self._key: tuple[int, int] | None = None
        self._total = self._first = self._largest = 0
        self._parts: dict[int, bytes] = {}

    @property
    def octets(self) -> int:
        """What is kept now."""
        return sum(map(len, self._parts.values()))

    def wants(self, header: IkeHeader, fragment: Fragment) -> bool:
        """Whether a fragment is new: to be asked before its ICV is judged. RFC 7383 §2.6.

        Changes nothing: whoever sent it is not known yet.
        """
        if fragment.total > MAX_FRAGMENTS:
            return False
        if self._key != _key_of(header) or fragment.total > self._total:
            return True
        return fragment.total == self._total and fragment.number not in self._parts

    def add(
        self, header: IkeHeader, fragment: Fragment, first: int, plaintext: bytes
    ) -> Whole | None:
        """Keep an authentic fragment that is wanted; the message, if it was the last one missing.

        Fragments of another message, and those of a split into fewer, make room for it.
        """
        if self._key != _key_of(header) or fragment.total > self._total:
            self.forget()
            self._key, self._total = _key_of(header), fragment.total
        if self.octets + len(plaintext) > MAX_OCTETS:
            self.forget()
            return None
        self._parts[fragment.number] = plaintext
        self._largest = max(self._largest, header.length)
        if fragment.number == 1:
            self._first = first
        return self._whole() if len(self._parts) == self._total else None

    def _whole(self) -> Whole:
        plaintext = b"".join(self._parts[number] for number in range(1, self._total + 1))
        whole = Whole(self._first, plaintext, self._largest)
        self.forget()
        return whole


@dataclass(frozen=True, slots=True)
class Sent:
    """A message of ours, with the keys that seal it: it may have to be split anew."""

    message: Message
    protection: Protection

    def within(self, most: int | None) -> tuple[bytes, ...]:
        """Its datagrams, none longer than that."""
        return self.protection.seal_within(self.message, most)


class Fragmentation:
    """How one IKE SA splits and joins. Owns: both reassemblies, what was last sent, the size."""

    __slots__ = ("_size", "heard", "is_agreed", "request", "requests", "response", "responses")

    def __init__(self, *, is_agreed: bool = False) -> None:
        self.is_agreed = is_agreed  # both peers have said so in IKE_SA_INIT
        self.requests, self.responses = Reassembly(), Reassembly()  # of the peer
        self.heard: int | None = None  # the largest fragment of the request that we answer
        self.request: Sent | None = None
        self.response: Sent | None = None
        self._size: int | None = None  # what has proved too large was larger than this

    def forget(self) -> None:
        """Drop what has come in parts only. RFC 7383 §2.6."""
        self.requests.forget()
        self.responses.forget()

    def most(self, path: Path, size: int) -> int | None:
        """The longest message to send whole; None: any length.

        Args:
            path: that it takes.
            size: of an IP datagram, as the policy wants it.
        """
        if not self.is_agreed or path.carrier.is_reliable:
            return None
        size = size if self._size is None else min(size, self._size)
        return _octets_in(path, size)

    def seal_request(self, sent: Sent, path: Path, size: int) -> tuple[bytes, ...]:
        """The datagrams of a request."""
        self.request = sent
        return sent.within(self.most(path, size))

    def seal_response(self, sent: Sent, path: Path, size: int) -> tuple[bytes, ...]:
        """The datagrams of a response: no larger than those of its request, if that was split."""
        self.response, heard, self.heard = sent, self.heard, None
        most = self.most(path, size)
        if most is not None and heard is not None:
            most = min(most, max(LEAST, heard))
        return sent.within(most)

    def for_path(self, datagrams: tuple[bytes, ...], path: Path, size: int) -> tuple[bytes, ...]:
        """The datagrams of the last request for another path: split only where that needs it."""
        most = self.most(path, size)
        fits = len(datagrams) == 1 if most is None else max(map(len, datagrams)) <= most
        if fits or self.request is None:
            return datagrams
        return self.request.within(most)

    def probe(self, datagrams: tuple[bytes, ...], path: Path, size: int) -> tuple[bytes, ...]:
        """The datagrams of the last request at the next smaller size; none if that is no help.

        From then on all is split by that size. RFC 7383 §2.5.2.
        """
        if self.request is None or self.most(path, size) is None:
            return ()
        size = size if self._size is None else min(size, self._size)
        smaller = next((each for each in SMALLER[path.peer.ip.version] if each < size), None)
        if smaller is None:
            return ()
        split = self.request.within(_octets_in(path, smaller))
        if len(split) <= len(datagrams):
            return ()
        self._size = smaller
        return split

    def response_on(
        self, datagrams: tuple[bytes, ...], path: Path, heard: int | None = None
    ) -> tuple[bytes, ...]:
        """The datagrams of the last response for another path; or for smaller fragments.

        Args:
            datagrams: as they went out last.
            path: that they take now.
            heard: into how long fragments the peer splits its request by now.
        """
        if path.carrier.is_reliable:
            fits, most = len(datagrams) == 1, None
        else:
            most = None if heard is None else max(LEAST, heard)
            fits = most is None or max(map(len, datagrams)) <= most
        return datagrams if fits or self.response is None else self.response.within(most)


def _octets_in(path: Path, size: int) -> int:
    """How long an IKE message may be in an IP datagram of that size."""
    return size - IP_UDP[path.peer.ip.version] - (MARKER if path.has_marker else 0)


def _key_of(header: IkeHeader) -> tuple[int, int]:
    return header.message_id, header.exchange
