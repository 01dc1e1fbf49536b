"""Gives the kernel's ESP what came by a stream, and the stream what the kernel sends. RFC 9329.

The kernel takes ESP in UDP (RFC 3948), and a stream is none. So each stream client gets an address
of its own on the loopback device, its alias, and the kernel's SAs lead there:

    stream ---- BridgePort 127.64.x.y:4510 ---- lo ---- entrance 127.64.0.1:4510 ---- XFRM
                (the alias)                             (a socket with UDP_ENCAP)

    inbound SA   src ALIAS dst ENTRANCE, outbound SA   src ENTRANCE dst ALIAS, both with
    encap espinudp and these very ports: from others the kernel would tell a change of mapping.

The entrance is no socket of IKE's: the bridge depends on no listener, and runs beside one on 4500.

Inbound: ``BridgePort.feed`` hands over packets of one size as one train, which the kernel cuts
(UDP_SEGMENT) and decrypts before the call returns. Outbound: ``_on_readable`` reads what the kernel
encrypted, up to READ_MOST packets in one call, straight into RFC 9329 frames. While the transport
is congested nothing is read: packets wait in the socket's buffer, and the kernel drops and counts
what that does not hold.

What is decrypted here has come by the loopback device, whose routes the kernel exempts from
policies: in and fwd policies would not be asked, and a peer could send from any inner address.
SAs that are tied to an xfrm interface are safe: what they unwrap comes out of that device. Without
one LOOPBACK_SYSCTLS ends the exemption, and ``Bridge.create`` refuses to work otherwise. What that
asks of the data plane:
- A host's packets to itself are judged then, too. Where an in policy covers an address of this
  host (a client's inner address, from everywhere), a policy that goes before it and has no template
  must allow that address to itself.
- The device is exempt from encryption as well: routes to inner addresses lead through another one
  (a dummy does), with the MTU that ESP in ``max_datagram`` leaves, for that of lo is 65536.
Owns: the entrance, the aliases and their sockets, the buffers of reading.
"""

import asyncio
import ctypes
import errno
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from struct import Struct
from typing import Final, Self

import numpy as np

from tunnelwrap.dataplane.feed import Aliases, Patience, require_policies
from tunnelwrap.errors import DataPlaneError, NotPrivileged, Unsupported
from tunnelwrap.path import SocketAddress
from tunnelwrap.transport import Transport
from tunnelwrap.transport.sockets import raw, reason_of
from tunnelwrap.transport.udp import (
    LARGEST,
    MAX_SEGMENTS,
    RUN_OCTETS,
    SO_RCVBUFFORCE,
    UDP_ENCAP,
    UDP_ENCAP_ESPINUDP,
    UDP_SEGMENT,
    bypass_policies,
)
from tunnelwrap.wire.framing import LENGTH_OCTETS

LOOPBACK_SYSCTLS: Final = (("net/ipv4/conf/lo/disable_policy", "0"),)
"""Keys (with slashes) and values without which no policy guards what the bridge brings."""

BLOCKS: Final = range(64, 128)  # 127.n.0.0/16; a second daemon finds the first taken
PORT: Final = 4510  # of the entrance and of every alias; below the ephemeral ports

READ_MOST: Final = 128  # packets of one read, then others have their turn
READ_OCTETS: Final = 262144  # the same for large packets
FIRST_GUESS: Final = 1472
LEARN_FROM: Final = 8  # packets that a read must have to be a hint at what comes next
RECEIVE_BUFFER: Final = 1 << 20  # 10 ms at 1 Gbit/s, as the kernel counts memory
SEND_BUFFER: Final = 1 << 20

SO_MEMINFO: Final = 55  # of asm/socket.h

_MEMINFO = Struct("=9I")
_MEMINFO_OPTION: Final = (socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
_DROPS: Final = 8  # SK_MEMINFO_DROPS of linux/sock_diag.h
_SEGMENT = Struct("=H")
_LENGTH = Struct("!H")
_NO_OFFLOAD: Final = frozenset((errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP))


class Bridge:
    """The way of all stream clients into the kernel and out of it.

    Args:
        loop: from which everything is called.
        entrance: a UDP socket on a loopback address, whose datagrams the kernel takes as ESP;
            ours from now on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, entrance: socket.socket) -> None:
        self._entrance = entrance
        host, port = entrance.getsockname()
        self.entrance = SocketAddress(IPv4Address(host), port)
        self._is_kernels = entrance.getsockopt(socket.IPPROTO_UDP, UDP_ENCAP) != 0
        self._aliases = Aliases(IPv4Address(host))
        self._ports: set[BridgePort] = set()
        self._shared = _Shared(loop, self.entrance, Counter(), _Inbox(), self._forget)

    @classmethod
    def create(cls, loop: asyncio.AbstractEventLoop, *, is_guarded: bool = False) -> Self:
        """The bridge of this network namespace, if policies guard it.

        Args:
            loop: from which everything is called.
            is_guarded: its SAs are tied to an xfrm interface, so that they do.

        Raises:
            DataPlaneError: they do not, or the kernel takes no ESP on the loopback device.
        """
        if not is_guarded:
            require_policies("lo")
        return cls(loop, open_entrance())

    @property
    def drops(self) -> dict[str, int]:
        """Packets dropped, by cause.

        "congestion": the transport did not take them; "bridge-out": the transport was congested
        for so long that the socket's buffer was full; "bridge-in": the kernel did not take them.
        """
        drops = Counter(self._shared.drops)
        for port in self._ports:
            drops["bridge-out"] += port.overflow
        return dict(+drops)

    def open(self, transport: Transport) -> "BridgePort":
        """Give a client its alias.

        Raises:
            DataPlaneError: no alias is free, or it cannot be bound.
        """
        now = self._shared.loop.time()
        address = self._aliases.take(now)
        alias = SocketAddress(address, self.entrance.port)
        try:
            sock = _socket_at(alias, bypass=self._is_kernels)
        except OSError as error:
            self._aliases.give_back(address, now)
            raise DataPlaneError(f"UDP {alias}: {reason_of(error)}") from error
        sock.connect(raw(self.entrance))  # from now on it hears nobody else
        port = BridgePort(sock, alias, transport, self._shared)
        self._ports.add(port)
        return port

    def close(self) -> None:
        """Close every port, and the entrance."""
        for port in list(self._ports):
            port.close()
        self._entrance.close()

    def _forget(self, port: "BridgePort") -> None:
        self._ports.discard(port)
        self._shared.drops["bridge-out"] += port.overflow
        assert isinstance(port.alias.ip, IPv4Address)
        self._aliases.give_back(port.alias.ip, self._shared.loop.time())


class BridgePort:
    """One client's place on the loopback device; made by ``Bridge.open``.

    ``alias`` and ``entrance`` are the addresses and ports of its SAs.
    """

    is_encapsulated: Final = True

    def __init__(
        self, sock: socket.socket, alias: SocketAddress, transport: Transport, shared: "_Shared"
    ) -> None:
        self.alias = alias
        self.entrance = shared.entrance
        self._socket = sock
        self._transport = transport
        self._shared = shared
        self._guess = FIRST_GUESS
        self._segments = MAX_SEGMENTS
        self._patience = Patience(shared.loop, self._is_congested, self._resume)
        self._is_open = True
        shared.loop.add_reader(sock, self._on_readable)

    @property
    def overflow(self) -> int:
        """Packets that the socket's buffer did not hold."""
        return int(_MEMINFO.unpack(self._socket.getsockopt(*_MEMINFO_OPTION))[_DROPS])

    def feed(self, batch: Sequence[memoryview]) -> None:
        """Have the kernel take ESP packets (and nothing else: no IKE, no keepalive)."""
        lengths = list(map(len, batch))
        at, count = 0, len(lengths)
        while at < count:
            size = lengths[at]
            most = min(at + max(min(self._segments, RUN_OCTETS // size), 1), count)
            end = at + _equal(lengths[at:most])
            if end < most and lengths[end] < size:
                end += 1  # a shorter packet may end a train
            self._send(batch[at:end], size)
            at = end

    def move(self, transport: Transport) -> None:
        """Send by another transport: the client has reconnected."""
        self._transport = transport
        self._patience.ask()

    def close(self) -> None:
        """Give the alias back; packets still under way are lost. Calling twice is fine."""
        if self._is_open:
            self._is_open = False
            self._patience.end()
            self._shared.loop.remove_reader(self._socket)
            self._shared.on_close(self)
            self._socket.close()

    def _send(self, views: Sequence[memoryview], size: int) -> None:
        control = []
        if len(views) > 1:
            control.append((socket.IPPROTO_UDP, UDP_SEGMENT, _SEGMENT.pack(size)))
        try:
            self._socket.sendmsg(views, control)
        except OSError as error:
            if control and error.errno in _NO_OFFLOAD:
                self._segments = 1  # lo has an MTU that is smaller than the packets, perhaps
                self.feed(views)
            else:
                self._shared.drops["bridge-in"] += len(views)

    def _on_readable(self) -> None:
        transport = self._transport
        if transport.is_congested:
            self._pause()
            return
        frames, ends, self._guess = self._shared.inbox.read(self._socket.fileno(), self._guess)
        if ends:
            lost = transport.send_esp(frames, ends)
            if lost:
                self._shared.drops["congestion"] += lost

    def _is_congested(self) -> bool:
        return self._transport.is_congested

    def _pause(self) -> None:
        """Leave packets in the socket."""
        self._shared.loop.remove_reader(self._socket)
        self._patience.begin()

    def _resume(self) -> None:
        self._shared.loop.add_reader(self._socket, self._on_readable)
        self._on_readable()


def open_entrance() -> socket.socket:
    """A socket of the first free block whose datagrams the kernel takes as ESP.

    It is never read: what the kernel does not take as ESP is not for us.

    Raises:
        NotPrivileged: we may not.
        Unsupported: the kernel cannot.
        DataPlaneError: the loopback device is down, or every block is taken.
    """
    try:
        socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_XFRM
        ).close()  # loads the module
    except OSError as error:
        raise Unsupported(f"kernel has no XFRM: {reason_of(error)}") from error
    for block in BLOCKS:
        address = SocketAddress(IPv4Address(f"127.{block}.0.1"), PORT)
        try:
            sock = _socket_at(address, bypass=True)
        except PermissionError as error:
            raise NotPrivileged("ESP by the loopback device needs CAP_NET_ADMIN") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            hint = " (is lo up?)" if error.errno == errno.EADDRNOTAVAIL else ""
            raise DataPlaneError(f"UDP {address}: {reason_of(error)}{hint}") from error
        return _encapsulating(sock)
    raise DataPlaneError(f"UDP port {PORT} is taken on every loopback address we may use")


def _encapsulating(sock: socket.socket) -> socket.socket:
    try:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_ENCAP, UDP_ENCAP_ESPINUDP)
    except OSError as error:
        sock.close()
        raise Unsupported(f"kernel takes no ESP in UDP: {reason_of(error)}") from error
    return sock


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the ports have in common."""

    loop: asyncio.AbstractEventLoop
    entrance: SocketAddress
    drops: Counter[str]
    inbox: "_Inbox"
    on_close: Callable[[BridgePort], None]


def _socket_at(address: SocketAddress, *, bypass: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if bypass:
            bypass_policies(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        with suppress(PermissionError):  # beyond what the system allows to all
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        sock.bind(raw(address))
    except OSError:
        sock.close()
        raise
    return sock


def _equal(lengths: list[int]) -> int:
    """How many lengths at the beginning are the same."""
    first, count = lengths[0], len(lengths)
    if lengths.count(first) == count:
        return count
    return next(at for at, length in enumerate(lengths) if length != first)


# --- reading ---------------------------------------------------------------------------------


_MSGHDR = np.dtype(
    [
        ("name", np.uintp),
        ("name_length", np.uint32),
        ("vectors", np.uintp),
        ("vector_count", np.uintp),
        ("control", np.uintp),
        ("control_length", np.uintp),
        ("flags", np.int32),
    ],
    align=True,
)
_MMSGHDR = np.dtype([("header", _MSGHDR), ("length", np.uint32)], align=True)
_recvmmsg = ctypes.CDLL(None).recvmmsg


class _Inbox:
    """Reads datagrams into RFC 9329 frames.

    Each datagram of a read gets a slot for one of the guessed size, behind the room for its frame
    length, and a place for what is longer. Where the guess is right for all, as in bulk traffic,
    the slots are the train; no octet is copied and no packet looked at.
    """

    def __init__(self) -> None:
        # Of these only what is used becomes memory.
        self._octets = np.zeros(READ_MOST * (LENGTH_OCTETS + LARGEST), np.uint8)
        self._longer_octets = np.zeros(READ_MOST * LARGEST, np.uint8)
        self._frames, self._longer = self._octets.data, self._longer_octets.data
        numbers = np.arange(READ_MOST, dtype=np.uintp)
        self._vectors = np.zeros((READ_MOST, 2, 2), np.uintp)  # address and length, two each
        self._vectors[:, 1, 0] = self._longer_octets.ctypes.data + numbers * LARGEST
        self._vectors[:, 1, 1] = LARGEST
        self._messages = np.zeros(READ_MOST, _MMSGHDR)
        header = self._messages["header"]
        header["vectors"] = self._vectors.ctypes.data + numbers * self._vectors.strides[0]
        header["vector_count"] = 2
        self._lengths = self._messages["length"]
        self._pointer = self._messages.ctypes.data_as(ctypes.c_void_p)
        self._size = self._slot = self._most = 0

    def read(self, descriptor: int, guess: int) -> tuple[memoryview, Sequence[int], int]:
        """Read what there is.

        Args:
            descriptor: of the socket.
            guess: the size that the datagrams have, most likely.

        Returns:
            Frames and the offsets behind them, valid until the next read; the next guess.
        """
        if guess != self._size:
            self._lay_out(guess)
        count = _recvmmsg(descriptor, self._pointer, self._most, socket.MSG_DONTWAIT, None)
        if count <= 0:  # nothing there, or an ICMP message
            return self._frames[:0], (), guess
        lengths, slot = self._lengths[:count], self._slot
        if (lengths == guess).all():
            return self._frames[: count * slot], range(slot, count * slot + 1, slot), guess
        frames = self._gathered(lengths)
        ends: list[int] = np.cumsum(lengths + LENGTH_OCTETS).tolist()
        return frames, ends, int(lengths.max()) if count >= LEARN_FROM else guess

    def _lay_out(self, size: int) -> None:
        slot = self._slot = LENGTH_OCTETS + size
        self._size = size
        self._most = max(min(READ_MOST, READ_OCTETS // slot), 1)
        places = np.arange(READ_MOST, dtype=np.uintp) * slot + LENGTH_OCTETS
        self._vectors[:, 0, 0] = self._octets.ctypes.data + places
        self._vectors[:, 0, 1] = size
        lengths = self._octets[: READ_MOST * slot].reshape(READ_MOST, slot)[:, :LENGTH_OCTETS]
        lengths[:] = tuple(_LENGTH.pack(slot))

    def _gathered(self, lengths: "np.ndarray[tuple[int], np.dtype[np.uint32]]") -> memoryview:
        """The frames back to back: stretches of the guessed size between the others."""
        slots, longer, size, slot = self._frames, self._longer, self._size, self._slot
        pieces: list[bytes | memoryview] = []
        done = 0
        for number in np.flatnonzero(lengths != size).tolist():
            length, start = int(lengths[number]), number * slot
            pieces.append(slots[done * slot : start])
            pieces.append(_LENGTH.pack(LENGTH_OCTETS + length))
            start += LENGTH_OCTETS
            pieces.append(slots[start : start + min(length, size)])
            if length > size:
                start = number * LARGEST
                pieces.append(longer[start : start + length - size])
            done = number + 1
        pieces.append(slots[done * slot : len(lengths) * slot])
        return memoryview(b"".join(pieces))
