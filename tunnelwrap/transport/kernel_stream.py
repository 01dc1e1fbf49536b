"""A bare TCP stream whose ESP is the kernel's, by its ``espintcp``. RFC 9329 §3, §4, §6.1.

At first it is read here, never beyond the frame that is begun: so the kernel can have it at any
boundary of frames, with every octet behind that. ``hand_over`` asks for it. Then the kernel finds
the frames, decrypts ESP by the SAs with the connection's addresses and ports, and puts the packets
that it encrypts by them between what we say; IKE comes and goes as messages on the socket, without
the length. The end of the stream shows on the socket as before.

The hand-over is asked for when the first Child SA is installed or moved there, not with the prefix.
Until then anybody may have opened the stream, and the kernel's parser is none to be shown to
strangers: by CVE-2026-72041 a peer that took no IKE_SA_INIT response damaged the kernel's memory.
Who has a Child SA has proven who he is. It costs nothing: before it there is IKE only, and of the
peer's first ESP, which may follow its last IKE message at once, nothing is read here.

ESP that the stream does not take is dropped in the kernel, which also knows no other answer while
IKE is being written (RFC 9329 §9.1). Its parser drops keepalives and empty frames; we send none.
Owns: the socket, its place in the event loop, IKE that waits, the frame that is begun.
"""

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Self

from tunnelwrap.errors import Malformed, PathClosed, StreamCorrupt, TransportError
from tunnelwrap.path import Carrier, Path, SocketAddress
from tunnelwrap.transport import BatchCallback, ClosedCallback
from tunnelwrap.transport.ending import Ending
from tunnelwrap.transport.sockets import is_this_host, reason_of
from tunnelwrap.transport.stream import MAX_URGENT, NO_GATEWAY, STREAM_DATAGRAM, WEB_SERVER, tune
from tunnelwrap.transport.udp import bypass_policies
from tunnelwrap.wire.framing import MAX_DATAGRAM, PREFIX, Deframer, frame

TCP_ULP: Final = 31  # of linux/tcp.h
ESPINTCP: Final = b"espintcp"
READS_MOST: Final = 64  # of one wake-up
RETRY_S: Final = 0.02  # until IKE that the kernel could not take is offered again

_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS})
_NO_FRAMES: Final = frozenset({errno.EINVAL, errno.EMSGSIZE, errno.EBADMSG})
"""What the kernel's parser leaves on a socket whose stream it cannot follow."""


class KernelStream(Ending):
    """One connected stream.

    Args:
        sock: connected and non-blocking; ours from now on.
        path: where it leads; it has other ends than the socket where a proxy spoke for the peer.
        on_batch: gets what arrives, of ESP only what comes before the hand-over.
        on_closed: told of an end that is not our own, with a PathClosed.
        loop: from which everything is called.
        is_originator: we opened the TCP connection, and so begin with the prefix.
        received: what has been read from the stream already.
    """

    def __init__(  # noqa: PLR0913 -- those of a StreamTransport
        self,
        sock: socket.socket,
        path: Path,
        on_batch: BatchCallback,
        on_closed: ClosedCallback,
        loop: asyncio.AbstractEventLoop,
        *,
        is_originator: bool,
        received: bytes = b"",
    ) -> None:
        super().__init__(on_closed, loop)
        self.path = path
        self.max_datagram = STREAM_DATAGRAM
        self.local = SocketAddress.of(sock.getsockname())
        self.peer = SocketAddress.of(sock.getpeername())
        self._socket = sock
        self._on_batch = on_batch
        self._deframer = Deframer(expect_prefix=not is_originator)
        self._beginning = b"" if is_originator else PREFIX  # of what the peer says
        self._prefix = PREFIX if is_originator else b""
        self._begun = b""  # what is left of a frame
        self._waiting: deque[bytes] = deque()
        self._waiting_octets = 0
        self._retry: asyncio.TimerHandle | None = None
        self._is_wanted = False  # by the kernel
        self._is_kernels = False
        tune(sock)
        loop.call_soon(self._begin, received)

    @property
    def is_congested(self) -> bool:
        """True while IKE waits; of ESP the kernel alone knows."""
        return bool(self._begun or self._waiting)

    def hand_over(self) -> None:
        """Let the kernel have the stream, as soon as no frame is half read or half written.

        Raises:
            TransportError: the kernel will not.
        """
        if self._prefix:
            self._begun, self._prefix = self._prefix, b""
            self._flush()
        self._is_wanted = not self._is_kernels
        self._hand_over_if_due()

    def send(self, datagram: bytes) -> None:
        """Send one IKE datagram before any ESP that is not begun."""
        if not self._can_write:
            return
        was_waiting = self.is_congested
        self._waiting.append(datagram)
        self._waiting_octets += len(datagram)
        if self._waiting_octets > MAX_URGENT:
            self._lose(PathClosed(f"peer takes nothing, {self._waiting_octets} octets of IKE wait"))
        elif not was_waiting:
            self._flush()

    def send_esp(self, frames: memoryview, ends: Sequence[int]) -> int:
        """Drop it: there is none but the kernel's."""
        del frames
        return len(ends)

    def close(self) -> None:
        """Send the IKE that can be sent at once, then FIN. RFC 9329 §B.2."""
        self._is_closed_by_us = True
        if self._is_open:
            self._flush()
            self._shut()

    def _hand_over_if_due(self) -> None:
        is_due = self._is_wanted and self._can_write
        if not is_due or self._begun or not self._deframer.is_at_boundary:
            return
        self._is_wanted = False
        try:
            bypass_policies(self._socket)
            self._socket.setsockopt(socket.IPPROTO_TCP, TCP_ULP, ESPINTCP)
        except OSError as error:
            raise TransportError(f"espintcp: {reason_of(error)}") from error
        self._is_kernels = True
        self._loop.remove_writer(self._socket)

    def _hand_over_late(self) -> None:
        """The same when it was asked for before."""
        try:
            self._hand_over_if_due()
        except TransportError as error:
            self._lose(PathClosed(str(error)))

    # --- inbound -----------------------------------------------------------------------------

    def _begin(self, received: bytes) -> None:
        if received and self._is_open:
            self._deliver(received)
        if self._is_open:
            self._loop.add_reader(self._socket, self._on_readable)

    def _on_readable(self) -> None:
        for _ in range(READS_MOST):
            if not self._is_open:
                return
            try:
                octets = self._socket.recv(
                    MAX_DATAGRAM if self._is_kernels else self._deframer.wanted
                )
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(self._write_error or _end_of(error))
                return
            if not octets:
                self._lose(self._write_error or PathClosed("peer closed the stream"))
            elif self._is_kernels:
                self._on_batch(self, [memoryview(octets)])
            else:
                self._deliver(octets)

    def _deliver(self, octets: bytes) -> None:
        self._beginning += octets[: max(len(WEB_SERVER) - len(self._beginning), 0)]
        if self._beginning == WEB_SERVER:
            self._lose(StreamCorrupt(NO_GATEWAY))
            return
        try:
            batch = self._deframer.feed(octets)
        except Malformed as error:
            self._lose(StreamCorrupt(f"stream is corrupt: {error}"))
            return
        if batch:
            self._on_batch(self, batch)
        self._hand_over_late()

    # --- outbound ----------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what waits, until nothing does or no more is taken."""
        self._retry = None
        while self._can_write and (self._begun or self._waiting):
            try:
                if self._is_kernels:
                    self._socket.send(self._waiting[0])
                    self._take_next()
                    continue
                if not self._begun:
                    self._begun, self._prefix = self._prefix + frame(self._take_next()), b""
                self._begun = self._begun[self._socket.send(self._begun) :]
            except OSError as error:
                if error.errno not in _FULL:
                    self._stop_writing(PathClosed(reason_of(error)))
                else:
                    self._wait_for_room()
                    return
            else:
                self._hand_over_late()
        if self._is_open and not self._is_kernels:
            self._loop.remove_writer(self._socket)

    def _take_next(self) -> bytes:
        datagram = self._waiting.popleft()
        self._waiting_octets -= len(datagram)
        return datagram

    def _wait_for_room(self) -> None:
        """The kernel's socket calls itself writable like one of UDP: always. A clock must do."""
        if self._is_kernels:
            self._retry = self._loop.call_later(RETRY_S, self._flush)
        else:
            self._loop.add_writer(self._socket, self._flush)

    # --- the end -----------------------------------------------------------------------------

    def _told_as(self) -> Self:
        return self

    def _shut(self) -> None:
        self._is_open = False
        self._forget_unsent()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            for _ in range(READS_MOST):  # what is unread would make a RST of the FIN
                if not self._socket.recv(MAX_DATAGRAM):
                    break
        self._socket.close()

    def _forget_unsent(self) -> None:
        self._begun, self._waiting_octets = b"", 0
        self._waiting.clear()
        if self._retry is not None:
            self._retry.cancel()


def suits_kernel(sock: socket.socket, carrier: Carrier) -> bool:
    """Whether a stream can be a KernelStream: bare TCP with another host.

    What it finds in a stream the kernel takes for packets that have just come in by the stream's
    device, and on the loopback device nothing may come in from other addresses than its own: there
    ESP would vanish. By that device comes also who has a proxy on this host speak for him.
    """
    return carrier is Carrier.TCP and not is_this_host(SocketAddress.of(sock.getpeername()))


def _end_of(error: OSError) -> PathClosed:
    if error.errno in _NO_FRAMES:
        return StreamCorrupt(f"stream is corrupt: the kernel finds no frames in it ({error.errno})")
    return PathClosed(reason_of(error))
