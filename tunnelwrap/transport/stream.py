"""Framed datagrams over a byte stream: TCP, TLS, a WebSocket in TLS. RFC 9329 §3, §4, §6.1.

Inbound: 1. ``_on_readable`` fills the inbox; 2. the Deframer finds the datagrams; 3. one batch of
views goes to the owner.
Outbound: ``send`` and ``send_esp`` write at once. What the socket does not take waits in three
places, written in this order: the frame that is begun (``_begun``), IKE (``_urgent``), the rest
of the train (``_train``). Further trains are dropped meanwhile: a stream that queued them would
make delay out of congestion, as the inner TCPs then both wait and repeat (RFC 9329 §9.1).
On a WebSocket, what is written is messages with the frames in them: a train is one or a few.
Owns: the socket, its place in the event loop, the inbox, and what waits.
"""

import asyncio
import socket
import ssl
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from tunnelwrap.errors import Malformed, PathClosed, StreamCorrupt
from tunnelwrap.path import Carrier, Path
from tunnelwrap.transport import BatchCallback, ClosedCallback
from tunnelwrap.transport.ending import Ending
from tunnelwrap.transport.sockets import reason_of
from tunnelwrap.wire.framing import PREFIX, Deframer, frame

if TYPE_CHECKING:
    from tunnelwrap.transport.websocket import Messages

STREAM_DATAGRAM: Final = 1472
"""What UDP encapsulation carries where the MTU is 1500; RFC 9329 §3 wants no more."""

RECORD: Final = 16384  # plaintext of the largest TLS record. RFC 8446 §5.1
INBOX: Final = 262144  # of one wake-up: two milliseconds at 1 Gbit/s, then others have their turn
DRAIN_MOST: Final = 16  # inboxes thrown away when a stream is closed
MAX_URGENT: Final = 1 << 20  # IKE that waits; a peer that lets so much pile up takes nothing
UNSENT: Final = 131072  # unsent octets in the kernel above which the socket takes no more
USER_TIMEOUT_MS: Final = 30_000  # until unacknowledged octets mean that the path is dead
KEEPALIVE_IDLE_S: Final = 60  # keeps a NAT's mapping; proves nothing (RFC 9329 §6.7)
KEEPALIVE_INTERVAL_S: Final = 10

_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
)
_NOTHING: Final = memoryview(b"")
WEB_SERVER: Final = b"HTTP/"  # as a frame, longer than any that a stream can begin with
NO_GATEWAY: Final = "a web server answers there, and no gateway"


def tune(sock: socket.socket) -> None:
    """Make a connection what a stream needs."""
    for level, option, value in _OPTIONS:
        sock.setsockopt(level, option, value)


class StreamTransport(Ending):
    """One connected stream.

    Args:
        sock: connected and non-blocking, its handshakes complete; ours from now on.
        path: where it leads; its carrier tells whether the stream is a WebSocket.
        on_batch: gets what arrives.
        on_closed: told of an end that is not our own, with a PathClosed.
        loop: from which everything is called.
        is_originator: we opened the TCP connection, and so begin with the prefix.
        received: what has been read from the stream already.
        max_datagram: largest datagram to be sent, in octets.
    """

    def __init__(  # noqa: PLR0913 -- each is a fact of its own, most of them the loop's
        self,
        sock: socket.socket,
        path: Path,
        on_batch: BatchCallback,
        on_closed: ClosedCallback,
        loop: asyncio.AbstractEventLoop,
        *,
        is_originator: bool,
        received: bytes = b"",
        max_datagram: int = STREAM_DATAGRAM,
    ) -> None:
        super().__init__(on_closed, loop)
        self.path = path
        self.max_datagram = max_datagram
        self._socket = sock
        self._on_batch = on_batch
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self._session: ssl.SSLSession | None = None

        self._inbox = memoryview(bytearray(INBOX))
        self._messages = (
            _messages(loop, is_originator=is_originator)
            if path.carrier is Carrier.WEBSOCKET
            else None
        )
        self._deframer = self._messages or Deframer(expect_prefix=not is_originator)
        self._may_be_web_server = is_originator and self._messages is None
        self._has_reader = False
        self._read_awaits_write = False  # TLS wants to write before it can read on

        self._prefix = PREFIX if is_originator else b""
        self._most = RECORD if self._tls else 1 << 30  # octets in one call
        self._begun = _NOTHING
        self._urgent: deque[bytes] = deque()
        self._urgent_octets = 0
        self._train = _NOTHING
        self._train_ends: Sequence[int] = ()
        self._has_writer = False
        self._write_awaits_read = False  # TLS wants to read before it can write on

        tune(sock)
        loop.call_soon(self._begin, received)

    @property
    def is_congested(self) -> bool:
        """True while ESP handed over now would be dropped."""
        return bool(self._begun or self._urgent or self._train or not self._can_write)

    @property
    def tls_session(self) -> ssl.SSLSession | None:
        """What the next connection can resume, also after the end of this. RFC 9329 §B.3."""
        return self._tls.session if self._tls and self._is_open else self._session

    def send(self, datagram: bytes) -> None:
        """Send one IKE datagram behind the frame that is begun, before everything else.

        Raises:
            UsageError: no frame can be so long.
        """
        if not self._can_write:
            return
        framed = frame(datagram)
        framed = self._take_prefix() + framed
        if self._messages:
            framed = bytes(self._messages.enclose(memoryview(framed), [len(framed)])[0])
        self._hurry(framed)

    def _hurry(self, octets: bytes) -> None:
        """Write these next, as soon as the socket takes something."""
        was_waiting = self.is_congested
        self._urgent.append(octets)
        self._urgent_octets += len(octets)
        if self._urgent_octets > MAX_URGENT:
            self._lose(PathClosed(f"peer takes nothing, {self._urgent_octets} octets of IKE wait"))
        elif not was_waiting:
            self._flush()

    def send_esp(self, frames: memoryview, ends: Sequence[int]) -> int:
        """Send a train, or drop all of it if something waits already."""
        if self.is_congested:
            return len(ends)
        if self._prefix:
            prefix = self._take_prefix()
            frames = memoryview(prefix + frames)
            ends = [end + len(prefix) for end in ends]
        if self._messages:
            frames, ends = self._messages.enclose(frames, ends)
        self._write_train(frames, ends)
        return 0

    def close(self) -> None:
        """Send the IKE that can be sent at once, then close_notify, then FIN. RFC 9329 §B.2."""
        self._is_closed_by_us = True
        if self._is_open:
            self._train = _NOTHING
            self._flush()
            self._shut()

    # --- inbound -----------------------------------------------------------------------------

    def _begin(self, received: bytes) -> None:
        if received and self._is_open:
            self._deliver(memoryview(received))
        if self._is_open:
            self._set_reader(wanted=True)
            self._on_readable()  # TLS may hold octets that no selector will announce

    def _on_readable(self) -> None:
        if not self._is_open:
            return
        have, end = self._fill()
        if have:
            self._deliver(self._inbox[:have])
        if end is not None:
            self._lose(self._write_error or end)
        elif self._is_open:
            if have == INBOX and self._tls and self._tls.pending():
                self._loop.call_soon(self._on_readable)
            if self._write_awaits_read:
                self._write_awaits_read = False
                self._flush()

    def _fill(self) -> tuple[int, PathClosed | None]:
        """Read until the inbox is full or nothing more is there; how much, and how it ended."""
        have, inbox, receive_into = 0, self._inbox, self._socket.recv_into
        is_tls = self._tls is not None
        try:
            while have < INBOX:
                count = receive_into(inbox[have:])
                have += count
                if not count:
                    return have, PathClosed("peer closed the stream")
                if not is_tls and have < INBOX:
                    break  # a short read has emptied the socket
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except ssl.SSLWantWriteError:
            self._read_awaits_write = True
            self._set_reader(wanted=False)  # it would call us for nothing, again and again
            self._set_writer(wanted=True)
        except OSError as error:
            return have, PathClosed(reason_of(error))
        return have, None

    def _deliver(self, octets: memoryview) -> None:
        if self._may_be_web_server:
            self._may_be_web_server = False
            if bytes(octets[: len(WEB_SERVER)]) == WEB_SERVER:
                self._lose(StreamCorrupt(NO_GATEWAY))
                return
        try:
            batch = self._deframer.feed(octets)
        except Malformed as error:
            self._lose(StreamCorrupt(f"stream is corrupt: {error}"))
            return
        if batch:
            self._on_batch(self, batch)
        if self._messages:
            self._answer(self._messages)

    def _answer(self, messages: "Messages") -> None:
        """What a WebSocket says of itself: pongs, and the end."""
        answers, messages.answers = messages.answers, b""
        if answers and self._can_write:
            self._hurry(answers)
        if messages.has_ended:
            self._lose(PathClosed("peer closed the WebSocket"))

    # --- outbound ----------------------------------------------------------------------------

    def _take_prefix(self) -> bytes:
        """The prefix, once: it leaves in one piece with the first frame. RFC 9329 §4."""
        prefix, self._prefix = self._prefix, b""
        return prefix

    def _on_writable(self) -> None:
        if self._read_awaits_write:
            self._read_awaits_write = False
            self._set_reader(wanted=True)
            self._on_readable()
        self._flush()

    def _flush(self) -> None:
        """Write what waits, until nothing does or the socket takes no more."""
        while self._can_write:
            if self._begun:
                self._begun = self._begun[self._push(self._begun) :]
                if self._begun:
                    return
            elif self._urgent:
                self._begun = memoryview(b"".join(self._urgent))
                self._urgent.clear()
                self._urgent_octets = 0
            elif self._train:
                train, self._train = self._train, _NOTHING
                self._write_train(train, self._train_ends)
                if self._train or self._begun:
                    return
            else:
                self._set_writer(wanted=self._read_awaits_write)
                return

    def _write_train(self, frames: memoryview, ends: Sequence[int]) -> None:
        """Write a train; keep a copy of what does not go, cut where IKE may come between.

        What TLS did not take it has sealed already, most likely: the same octets must come first
        next time, so the frame that is begun is the one in which they end.
        """
        written = self._push(frames)
        if written == len(frames) or not self._can_write:
            return
        begun = min(written + self._most, len(frames)) if self._tls else written
        cut_at = bisect_left(ends, begun)
        cut = ends[cut_at] if begun else 0
        self._begun = memoryview(bytes(frames[written:cut]))
        self._train = memoryview(bytes(frames[cut:]))
        self._train_ends = [end - cut for end in ends[cut_at + bool(begun) :]]

    def _push(self, octets: memoryview) -> int:
        """Write as much as the socket takes; how much that was."""
        at, end, most, send = 0, len(octets), self._most, self._socket.send
        try:
            while at < end:
                at += send(octets[at : at + most])
        except (BlockingIOError, ssl.SSLWantWriteError):
            self._set_writer(wanted=True)
        except ssl.SSLWantReadError:
            self._write_awaits_read = True
            self._set_writer(wanted=False)
        except OSError as error:
            self._stop_writing(PathClosed(reason_of(error)))
        return at

    # --- the end -----------------------------------------------------------------------------

    def _told_as(self) -> Self:
        return self

    def _shut(self) -> None:
        if self._messages and self._can_write and not self._begun:
            self._push(memoryview(self._messages.farewell()))
        self._set_reader(wanted=False)
        self._forget_unsent()
        if self._tls:
            self._session = self._tls.session
            # Sends close_notify. On a dead stream too: only a session that was shut is resumable.
            with suppress(OSError, ValueError):
                self._tls.unwrap()
        self._is_open = False
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._drain()
        self._socket.close()

    def _drain(self) -> None:
        """Take what is unread off the socket: with it, ``close`` would send RST instead of FIN.

        A reset overtakes what is still on its way, our last IKE message for one.
        """
        for _ in range(DRAIN_MOST):
            if not socket.socket.recv(self._socket, INBOX):  # below TLS
                return

    def _forget_unsent(self) -> None:
        self._set_writer(wanted=False)
        self._begun = self._train = _NOTHING
        self._urgent.clear()
        self._urgent_octets = 0

    def _set_reader(self, *, wanted: bool) -> None:
        if wanted and not self._has_reader:
            self._loop.add_reader(self._socket, self._on_readable)
        elif self._has_reader and not wanted:
            self._loop.remove_reader(self._socket)
        self._has_reader = wanted

    def _set_writer(self, *, wanted: bool) -> None:
        if wanted and not self._has_writer:
            self._loop.add_writer(self._socket, self._on_writable)
        elif self._has_writer and not wanted:
            self._loop.remove_writer(self._socket)
        self._has_writer = wanted


def _messages(loop: asyncio.AbstractEventLoop, *, is_originator: bool) -> "Messages":
    # Not above: what it needs takes long to load, and most never need it.
    from tunnelwrap.transport.websocket import Messages  # noqa: PLC0415

    return Messages(loop, is_originator=is_originator)
