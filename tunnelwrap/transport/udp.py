"""Datagrams over UDP: a connected socket of our own, or a listener for many peers. RFC 3948.

Inbound: a wake-up reads a burst of datagrams, which the kernel may have joined (UDP_GRO), and hands
over one batch for each run from the same peer. Outbound: a train leaves in runs of packets of one
size, each run one call (UDP_SEGMENT). What a full socket does not take is lost if it is ESP, and
waits if it is IKE.

IP may fragment what we send, here and in every router (no DF bit): IKE messages with certificates
exceed every MTU, and a path whose ICMP is filtered would swallow large ESP packets unseen. What
the plane sends fits the MTU of our route; fragments are the exception, behind narrower links.
"""

import asyncio
import errno
import logging
import socket
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from struct import Struct
from typing import Final

from tunnelwrap.errors import ConnectFailed, TransportError
from tunnelwrap.path import Carrier, Path, SocketAddress
from tunnelwrap.transport import BatchCallback, ClosedCallback, Transport
from tunnelwrap.transport.sockets import family_of, raw, reason_of
from tunnelwrap.wire.framing import LENGTH_OCTETS

# Of linux/in.h, in6.h, udp.h and socket.h; the socket module does not know them all.
IP_PKTINFO: Final = 8
IP_MTU_DISCOVER: Final = 10
IP_RECVERR: Final = 11
IP_MTU: Final = 14
IP_TRANSPARENT: Final = 19
IPV6_MTU_DISCOVER: Final = 23
IPV6_MTU: Final = 24
IPV6_RECVERR: Final = 25
IPV6_TRANSPARENT: Final = 75
PMTUDISC_DONT: Final = 0
UDP_ENCAP: Final = 100
UDP_ENCAP_ESPINUDP: Final = 2
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
IP_XFRM_POLICY: Final = 17
IPV6_XFRM_POLICY: Final = 35
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
MAX_SEGMENTS: Final = 64  # UDP_MAX_SEGMENTS of the kernels that have fewest

LARGEST: Final = 65507  # payload of an IPv4 packet of 65535 octets
HEADERS_V4: Final = 28  # of IP and UDP
HEADERS_V6: Final = 48

RUN_OCTETS: Final = 65000  # with its headers a run must be one IP packet to the kernel
INBOX: Final = 262144
BURST_MOST: Final = 128  # calls before others have their turn
RECEIVE_BUFFER: Final = 4 << 20  # 30 ms at 1 Gbit/s
SEND_BUFFER: Final = 1 << 20  # more would only be delay
MAX_WAITING: Final = 256  # IKE datagrams that a full socket makes wait
MAX_PEERS: Final = 4096  # remembered by a listener; strangers push out the longest silent
MTU_FRESH_S: Final = 30.0
NARROW_MTU: Final = 1280  # where there is no route to ask: the least that IPv6 allows

_INT = Struct("=i")
_POLICY = Struct("=40xH14x64x32x8xBB6x")
"""``struct xfrm_userpolicy_info`` of linux/xfrm.h: family | direction | action, no limits."""
_POLICY_IN: Final = 0
_POLICY_OUT: Final = 1
_POLICY_ALLOW: Final = 0
_SEGMENT = Struct("=H")
_PKTINFO = Struct("=I4s4s")
_PKTINFO_6 = Struct("=16sI")
_ANCILLARY: Final = 4 * socket.CMSG_SPACE(_PKTINFO_6.size)
_FULL: Final = frozenset((errno.EAGAIN, errno.ENOBUFS))  # of the socket, of the interface
_NO_OFFLOAD: Final = frozenset((errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP))

_Control = tuple[int, int, bytes]
_Raw = tuple[str, int] | tuple[str, int, int, int]
_Call = tuple[Sequence[bytes | memoryview], Sequence[_Control], _Raw | None]
_Source = tuple[_Raw, bytes]  # address of the peer, and our own IP address, packed
_log = logging.getLogger(__name__)


class _Outlet:
    """A Transport to one peer through a socket that may be others' too.

    Args:
        sock: to send through.
        path: where it leads.
        control: goes with each datagram.
        to: the peer; None if the socket is connected.
        on_close: called once.
    """

    def __init__(
        self,
        sock: "_Socket",
        path: Path,
        control: Sequence[_Control],
        to: _Raw | None,
        on_close: Callable[[], None],
    ) -> None:
        self.path = path
        self._sock = sock
        self._control = tuple(control)
        self._to = to
        self._on_close = on_close
        self._is_closed = False
        self._segments = MAX_SEGMENTS
        self._max_datagram = 0
        self._mtu_until = 0.0

    @property
    def is_congested(self) -> bool:
        """False: UDP has no word for it."""
        return self._is_closed or not self._sock.is_open

    @property
    def max_datagram(self) -> int:
        """What the MTU of the route carries in one packet; asked for again every MTU_FRESH_S."""
        now = self._sock.time()
        if now >= self._mtu_until:
            self._mtu_until = now + MTU_FRESH_S
            self._max_datagram = _largest_datagram(self.path)
        return self._max_datagram

    def send(self, datagram: bytes) -> None:
        """Send one IKE datagram, as soon as the socket takes it."""
        if not self.is_congested:
            self._sock.send(([datagram], self._control, self._to))

    def send_esp(self, frames: memoryview, ends: Sequence[int]) -> int:
        """Send a train without its frame lengths; the rest is lost where the socket is full."""
        if self.is_congested:
            return len(ends)
        sent = 0
        for views, size in _runs(frames, ends, self._segments):
            count = self._send_run(views, size)
            sent += count
            if count < len(views):
                break
        return len(ends) - sent

    def close(self) -> None:
        """Send nothing any more."""
        if not self._is_closed:
            self._is_closed = True
            self._on_close()

    def _send_run(self, views: list[memoryview], size: int) -> int:
        call = self._sock.call
        if len(views) > 1 and self._segments > 1:
            segment = (socket.IPPROTO_UDP, UDP_SEGMENT, _SEGMENT.pack(size))
            code = call((views, (*self._control, segment), self._to))
            if code not in _NO_OFFLOAD:
                return 0 if code else len(views)
            self._segments = 1  # this kernel, interface or route cannot, or the MTU has shrunk
        for count, view in enumerate(views):
            if call(([view], self._control, self._to)):
                return count
        return len(views)


class UdpTransport(_Outlet):
    """A connected UDP socket.

    Args:
        sock: bound and connected; ours from now on.
        path: where it leads.
        on_batch: gets what arrives.
        on_error: gets, as ConnectFailed, what ICMP or the system says of the peer. The socket
            stays open: ICMP is easily forged, and a live IKE SA must survive it.
        loop: from which everything is called.
        kernel_esp: ESP is the kernel's affair.

    Raises:
        TransportError: the kernel has no ESP.
    """

    def __init__(
        self,
        sock: socket.socket,
        path: Path,
        on_batch: BatchCallback,
        on_error: ClosedCallback,
        loop: asyncio.AbstractEventLoop,
        *,
        kernel_esp: bool = False,
    ) -> None:
        self._on_batch = on_batch
        self._on_error = on_error
        self._loop = loop
        _set_by_family(sock, (IP_RECVERR, 1), (IPV6_RECVERR, 1))  # also of routers
        _tune(sock, kernel_esp=kernel_esp, has_marker=path.has_marker)
        inner = _Socket(sock, loop, self._take, self._fail)
        super().__init__(inner, path, (), None, inner.close)

    def _take(self, _source: _Source, views: list[memoryview]) -> None:
        self._on_batch(self, views)

    def _fail(self, error: OSError) -> None:
        self._loop.call_soon(self._tell, ConnectFailed(reason_of(error)))

    def _tell(self, error: ConnectFailed) -> None:
        if not self._is_closed:
            self._on_error(self, error)


class UdpListener:
    """A UDP socket that any peer may send to; each path through it is a Transport of its own.

    Owns: the socket, and the transports of the MAX_PEERS paths last heard of. A transport that
    has been forgotten still works, and an equal one can be had at any time.

    Args:
        address: to bind; all addresses of the host if it is 0.0.0.0 or ``::``.
        on_batch: gets what arrives.
        loop: from which everything is called.
        has_marker: IKE stands behind the non-ESP marker: not on port 500.
        kernel_esp: ESP is the kernel's affair.
        is_transparent: the address is another host's, whose part we play.

    Raises:
        TransportError: the address cannot be had, or the kernel has no ESP.
    """

    def __init__(
        self,
        address: SocketAddress,
        on_batch: BatchCallback,
        loop: asyncio.AbstractEventLoop,
        *,
        has_marker: bool,
        kernel_esp: bool = False,
        is_transparent: bool = False,
    ) -> None:
        self._on_batch = on_batch
        self._has_marker = has_marker
        self._peers: OrderedDict[_Source, _Outlet] = OrderedDict()
        sock = _bound(address, is_transparent=is_transparent)
        self.address = SocketAddress.of(sock.getsockname())
        _tune(sock, kernel_esp=kernel_esp, has_marker=has_marker)
        self._sock = _Socket(sock, loop, self._take, self._fail)

    def transport_for(self, path: Path) -> Transport | None:
        """The transport of a path through this socket; None if it cannot lead through it."""
        ours, local = self.address, path.local
        is_ours = (
            path.carrier is Carrier.UDP
            and path.has_marker is self._has_marker
            and local.port == ours.port
            and local.ip.version == ours.ip.version == path.peer.ip.version
            and (ours.ip.is_unspecified or local.ip == ours.ip)
        )
        if not is_ours or not self._sock.is_open:
            return None
        host, port = raw(path.peer)
        to: _Raw = (host, port) if local.ip.version == 4 else (host, port, 0, 0)
        return self._outlet((to, local.ip.packed))

    def close(self) -> None:
        """Close the socket, and with it every transport."""
        self._sock.close()
        self._peers.clear()

    def _take(self, source: _Source, views: list[memoryview]) -> None:
        self._on_batch(self._outlet(source), views)

    def _fail(self, error: OSError) -> None:
        """What a datagram met is its own affair: the peer repeats, or is gone."""
        _log.debug("UDP %s: %s", self.address, reason_of(error))

    def _outlet(self, source: _Source) -> _Outlet:
        known = self._peers.get(source)
        if known is not None:
            self._peers.move_to_end(source)
            return known
        outlet = self._peers[source] = self._new_outlet(source)
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        return outlet

    def _new_outlet(self, source: _Source) -> _Outlet:
        to, packed = source
        local = SocketAddress(ip_address(packed), self.address.port)
        path = Path(local, SocketAddress.of(to), Carrier.UDP, self._has_marker)
        return _Outlet(self._sock, path, [_from_there(packed)], to, lambda: self._forget(source))

    def _forget(self, source: _Source) -> None:
        self._peers.pop(source, None)


class _Socket:
    """A bound socket in the event loop: bursts in, calls out.

    Owns: the socket, the inbox, and the IKE datagrams that a full socket made wait.

    Args:
        sock: bound; ours from now on.
        loop: from which everything is called.
        on_run: gets the datagrams of a burst that came in a row from one source.
        on_error: gets what an ICMP message or the system said; called from anywhere.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_run: Callable[[_Source, list[memoryview]], None],
        on_error: Callable[[OSError], None],
    ) -> None:
        self._socket = sock
        self._loop = loop
        self._on_run = on_run
        self._on_error = on_error
        self._inbox = memoryview(bytearray(INBOX))
        self._waiting: deque[_Call] = deque()
        self.is_open = True
        self.time = loop.time
        loop.add_reader(sock, self._on_readable)

    def send(self, call: _Call) -> None:
        """Send one IKE datagram, as soon as the socket takes it."""
        if self._waiting or self.call(call) == errno.EAGAIN:
            if not self._waiting:
                self._loop.add_writer(self._socket, self._on_writable)
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(call)

    def call(self, call: _Call) -> int:
        """Send one datagram or one run; 0, or the number of the error.

        An error that an earlier datagram met is told to whoever sends next: hence a second try.
        """
        pieces, control, to = call
        code = 0
        for is_first in (True, False):
            try:
                self._socket.sendmsg(pieces, control, 0, to)
            except OSError as error:
                code = error.errno or errno.EIO
                if code in _FULL or code in _NO_OFFLOAD:
                    break
                if is_first:
                    self._on_error(error)
            else:
                return 0
        return code

    def close(self) -> None:
        """Close it; what waits is lost."""
        if self.is_open:
            self.is_open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._waiting.clear()
            self._socket.close()

    def _on_writable(self) -> None:
        while self._waiting and self.call(self._waiting[0]) != errno.EAGAIN:
            self._waiting.popleft()
        if not self._waiting:
            self._loop.remove_writer(self._socket)

    def _on_readable(self) -> None:
        for source, views in self._burst():
            if views and self.is_open:
                self._on_run(source, views)

    def _burst(self) -> list[tuple[_Source, list[memoryview]]]:
        """What there is to read, in runs from one source each; datagrams of no octets left out."""
        runs: list[tuple[_Source, list[memoryview]]] = []
        receive, inbox, have = self._socket.recvmsg_into, self._inbox, 0
        last: _Source | None = None
        views: list[memoryview] = []
        for _ in range(BURST_MOST):
            if have + LARGEST > INBOX:
                break
            try:
                count, ancillary, _flags, address = receive((inbox[have:],), _ANCILLARY)
            except BlockingIOError:
                break
            except OSError as error:
                self._on_error(error)
                continue
            size, local = _read_ancillary(ancillary, count)
            source = (address, local)
            if source != last:
                last, views = source, []
                runs.append((source, views))
            end = have + count
            views.extend(inbox[at : min(at + size, end)] for at in range(have, end, size))
            have = end
        if not runs:
            _drain_errors(self._socket)
        return runs


def _read_ancillary(ancillary: Sequence[_Control], count: int) -> tuple[int, bytes]:
    """The size of the datagrams that were joined, or of the one; our address, packed."""
    size, local = count, b""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_UDP and kind == UDP_GRO:
            size = _INT.unpack_from(data)[0]
        elif level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            local = data[4:8]
        elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            local = data[:16]
    return size or 1, local


def _drain_errors(sock: socket.socket) -> None:
    """Empty the error queue: what is in it has been raised, but keeps the socket readable."""
    with suppress(OSError):
        while True:
            sock.recvmsg(0, 0, socket.MSG_ERRQUEUE)


def _runs(
    frames: memoryview, ends: Sequence[int], most: int
) -> Iterator[tuple[list[memoryview], int]]:
    """Cut a train into what one call can send: packets of one size, the last may be shorter."""
    views: list[memoryview] = []
    size, octets, start, is_full = 0, 0, 0, False
    for end in ends:
        length = end - start - LENGTH_OCTETS
        if views and (is_full or length > size or octets + length > RUN_OCTETS):
            yield views, size
            views = []
        if not views:
            size, octets = length, 0
        views.append(frames[start + LENGTH_OCTETS : end])
        octets += length
        is_full = length < size or len(views) == most
        start = end
    if views:
        yield views, size


def _bound(address: SocketAddress, *, is_transparent: bool) -> socket.socket:
    sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
    try:
        # Before it is bound, so that the first datagram has it too.
        _set_by_family(sock, (IP_PKTINFO, 1), (socket.IPV6_RECVPKTINFO, 1))
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if is_transparent:
            _set_by_family(sock, (IP_TRANSPARENT, 1), (IPV6_TRANSPARENT, 1))
        sock.bind(raw(address))
    except OSError as error:
        sock.close()
        raise TransportError(f"UDP {address}: {reason_of(error)}") from error
    return sock


def _from_there(packed: bytes) -> _Control:
    """Makes a datagram leave from that address of ours."""
    if len(packed) == 4:
        return socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO.pack(0, packed, bytes(4))
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO_6.pack(packed, 0)


def _tune(sock: socket.socket, *, kernel_esp: bool, has_marker: bool) -> None:
    sock.setblocking(False)
    _set_by_family(sock, (IP_MTU_DISCOVER, PMTUDISC_DONT), (IPV6_MTU_DISCOVER, PMTUDISC_DONT))
    if kernel_esp:
        _leave_esp_to_kernel(sock, has_marker=has_marker)
    else:
        with suppress(OSError):  # a kernel without it hands over one datagram at a time
            sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    _set_buffer(sock, SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER)
    _set_buffer(sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER)


def _leave_esp_to_kernel(sock: socket.socket, *, has_marker: bool) -> None:
    """Take only IKE, and keep it clear of the policies that will be there. RFC 3948 §3.

    Joined datagrams (UDP_GRO) would reach some kernels' ESP in one piece.
    """
    try:
        bypass_policies(sock)
        if has_marker:
            sock.setsockopt(socket.IPPROTO_UDP, UDP_ENCAP, UDP_ENCAP_ESPINUDP)
    except OSError as error:
        sock.close()
        raise TransportError(f"this kernel has no ESP over UDP: {reason_of(error)}") from error


def bypass_policies(sock: socket.socket) -> None:
    """Keep the datagrams of a socket clear of the kernel's IPsec policies, however wide they are.

    Raises:
        OSError: the kernel has none, or we have no right to it.
    """
    family = sock.family
    is_v6 = family == socket.AF_INET6
    place = (
        (socket.IPPROTO_IPV6, IPV6_XFRM_POLICY) if is_v6 else (socket.IPPROTO_IP, IP_XFRM_POLICY)
    )
    for direction in (_POLICY_IN, _POLICY_OUT):
        sock.setsockopt(*place, _POLICY.pack(family, direction, _POLICY_ALLOW))


def _set_by_family(
    sock: socket.socket, option_4: tuple[int, int], option_6: tuple[int, int]
) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, *option_6)
    else:
        sock.setsockopt(socket.IPPROTO_IP, *option_4)


def _set_buffer(sock: socket.socket, forced: int, plain: int, octets: int) -> None:
    """Beyond what the system allows to all, if we may."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, octets)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, plain, octets)


def _largest_datagram(path: Path) -> int:
    """What one IP packet carries to the peer, by the route there and what is known of it."""
    is_v6 = path.peer.ip.version == 6
    option = (socket.IPPROTO_IPV6, IPV6_MTU) if is_v6 else (socket.IPPROTO_IP, IP_MTU)
    mtu = NARROW_MTU
    with suppress(OSError), socket.socket(family_of(path.peer), socket.SOCK_DGRAM) as probe:
        probe.bind((str(path.local.ip), 0))
        probe.connect(raw(path.peer))
        mtu = probe.getsockopt(*option)
    return min(mtu - (HEADERS_V6 if is_v6 else HEADERS_V4), LARGEST)
