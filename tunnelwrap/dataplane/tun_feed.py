"""A feed by a TUN device of its own: the kernel gets bare ESP packets, and sends such.

    stream ---- TunPort ---- TUN device ---- XFRM
    (packets from and to 0.64.x.y, the alias)     (those to and from 0.64.0.1, the entrance)

Nothing of it concerns others. The device is judged by policies as every one is, save the loopback
device, so that no parameter of the host is changed; it vanishes with this process, and with it the
two routes that lead there (``hostnet.links.feed_changes``). The price is a system call for each
packet, both ways.

Addresses are of 0.0.0.0/8, RFC 1122 §3.2.1.3 (a): no host has them, no router forwards them, and
Linux (5.3 and later) treats all but 0.0.0.0 as it does any other. 127.0.0.0/8 is a martian on every
device but lo, documentation's networks are too small, and all else is in use somewhere: 240.0.0.0/4
by clouds for their pods, 198.18.0.0/15 by proxies on routers, 100.64.0.0/10 by providers. IPv6
would have room enough, but where no parameter can be set, as in containers, it is often off.
- The routes are in the table "local", which is asked before any rule of a tunnel of ours or of
  others', and no device gets an address: nobody hears of a new one, nor takes it for a source.
- The way back to an alias leads by the device, as rp_filter asks. What is decrypted the kernel does
  not ask about its way; it comes in by this device, too, and is forwarded if that of any may be.
- A second instance finds the first block taken.

What a firewall of the host says of ESP from a device that it does not know, nobody can tell but by
trying: ``create`` does, and refuses where packets do not pass.

All clients' packets come out of one device, so it is always read: one client that is congested must
not stop the others. Its port holds what comes meanwhile, up to HELD_OCTETS. Only IPv4 packets from
the entrance that hold ESP with an SPI are for a client; nobody outside can send from the entrance,
an address of this host, and what else comes (a greeting to IPv6 neighbours, somebody's ping to an
alias) is forgotten.
Owns: the device, the aliases, what is held.
"""

import asyncio
import logging
import os
import select
import socket
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import accumulate
from pathlib import Path
from struct import Struct
from typing import Final, Self

from tunnelwrap.dataplane.feed import Aliases, Patience, require_policies
from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.dataplane.xfrm_statistics import read_statistics, since
from tunnelwrap.errors import DataPlaneError
from tunnelwrap.path import SocketAddress
from tunnelwrap.transport import Transport
from tunnelwrap.transport.sockets import reason_of
from tunnelwrap.transport.udp import bypass_policies
from tunnelwrap.wire.esp import HEADER_LENGTH
from tunnelwrap.wire.framing import LENGTH_OCTETS
from tunnelwrap.wire.ip import checksum

_log = logging.getLogger(__name__)

BLOCKS: Final = range(64, 80)  # 0.n.0.0/16, one for each instance on a host
MTU: Final = 65535  # of the device: the kernel never cuts ESP into fragments
IP_HEADER: Final = 20
LARGEST: Final = MTU - IP_HEADER  # ESP packet

READ_MOST: Final = 128  # packets of one read, then others have their turn
READ_OCTETS: Final = 262144
HELD_OCTETS: Final = 1 << 20  # for one client
TRIAL_S: Final = 0.5

_DONT_FRAGMENT: Final = 0x4000
_FRAGMENT: Final = 0x3FFF  # more of them follow, or its offset
_HEADER = Struct("!BBHHHBBHII")
_SUM_AT: Final = 10
_LENGTH = Struct("!H")
_seen = Struct("!B5xHxB2xII").unpack  # version and IHL, fragment, protocol, addresses
_spi = Struct("!I").unpack_from
_TRIAL: Final = bytes.fromhex("000000ff000000010000000000000000")  # an SPI that no SA has
_TX_DROPS: Final = 11  # place of a device's counter in /proc/net/dev

Train = tuple[memoryview, Sequence[int]]
"""RFC 9329 frames and the offsets behind them."""


def network_of(block: int) -> IPv4Network:
    """The addresses of one of BLOCKS."""
    return IPv4Network(f"0.{block}.0.0/16")


class TunFeed:
    """The way of all stream clients into the kernel and out of it.

    Args:
        loop: from which everything is called.
        tun: a device without virtio-net headers, to which the addresses lead; ours from now on.
        network: the addresses; its first is the entrance.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, tun: Tun, network: IPv4Network) -> None:
        self.entrance = SocketAddress(network[1], 0)
        self._tun = tun
        self._aliases = Aliases(network[1])
        self._ports: dict[int, TunPort] = {}  # by alias
        self._inbox = _Inbox(int(network[1]))
        self._shared = _Shared(loop, tun, self.entrance, Counter(), self._forget)
        self._queue = _Queue(tun.name)
        loop.add_reader(tun.fileno(), self._on_readable)

    @classmethod
    def create(cls, loop: asyncio.AbstractEventLoop, tun: Tun, network: IPv4Network) -> Self:
        """The feed by this device, if policies guard it and packets pass both ways.

        Raises:
            DataPlaneError: they do not; the device is the caller's still.
        """
        require_policies(tun.name)
        try_inward(tun, network)
        try_outward(tun, network)
        return cls(loop, tun, network)

    @property
    def drops(self) -> dict[str, int]:
        """Packets dropped, by cause.

        "congestion": the transport did not take them; "tun-held": it was congested for so long
        that the port could hold no more; "tun-out": they came faster than this process reads;
        "tun-in": the device did not take them.
        """
        return dict(+(self._shared.drops + Counter({"tun-out": self._queue.drops})))

    def open(self, transport: Transport) -> "TunPort":
        """Give a client its alias.

        Raises:
            DataPlaneError: no alias is free.
        """
        alias = self._aliases.take(self._shared.loop.time())
        port = TunPort(alias, transport, self._shared)
        self._ports[int(alias)] = port
        return port

    def close(self) -> None:
        """Close every port, and the device."""
        for port in list(self._ports.values()):
            port.close()
        if self._tun.fileno() >= 0:
            self._shared.loop.remove_reader(self._tun.fileno())
        self._tun.close()
        self._queue.close()

    def _forget(self, alias: IPv4Address) -> None:
        del self._ports[int(alias)]
        self._aliases.give_back(alias, self._shared.loop.time())

    def _on_readable(self) -> None:
        try:
            trains = self._inbox.read(self._tun.fileno())
        except OSError as error:
            self._shared.loop.remove_reader(self._tun.fileno())
            _log.error("%s: %s; nothing goes to streams any more", self._tun.name, error.strerror)
            return
        for alias, (frames, ends) in trains.items():
            port = self._ports.get(alias)
            if port is not None:
                port.take(frames, ends)


class TunPort:
    """One client's place at the device; made by ``TunFeed.open``."""

    is_encapsulated: Final = False

    def __init__(self, alias: IPv4Address, transport: Transport, shared: "_Shared") -> None:
        self.alias = SocketAddress(alias, 0)
        self.entrance = shared.entrance
        self._ip = alias
        self._transport = transport
        self._shared = shared
        self._ends = int(alias), int(shared.entrance.ip)
        self._size, self._header = 0, b""
        self._held: deque[Train] = deque()
        self._held_octets = 0
        self._patience = Patience(shared.loop, self._is_congested, self._resume)
        self._is_open = True

    def feed(self, batch: Sequence[memoryview]) -> None:
        """Have the kernel take ESP packets (and nothing else: no IKE, no keepalive)."""
        write, drops = self._shared.tun.write, self._shared.drops
        for packet in batch:
            size = len(packet)
            if size != self._size and size <= LARGEST:
                self._size, self._header = size, esp_header(*self._ends, size)
            if size > LARGEST or not write((self._header, packet)):
                drops["tun-in"] += 1

    def take(self, frames: memoryview, ends: Sequence[int]) -> None:
        """Send what the kernel encrypted, or hold it; the buffer is the caller's again."""
        if self._held or self._transport.is_congested:
            self._hold(frames, ends)
        else:
            self._send(frames, ends)

    def move(self, transport: Transport) -> None:
        """Send by another transport: the client has reconnected."""
        self._transport = transport
        self._patience.ask()

    def close(self) -> None:
        """Give the alias back; packets still under way are lost. Calling twice is fine."""
        if self._is_open:
            self._is_open = False
            self._patience.end()
            self._held.clear()
            self._shared.on_close(self._ip)

    def _is_congested(self) -> bool:
        return self._transport.is_congested

    def _send(self, frames: memoryview, ends: Sequence[int]) -> None:
        lost = self._transport.send_esp(frames, ends)
        if lost:
            self._shared.drops["congestion"] += lost

    def _hold(self, frames: memoryview, ends: Sequence[int]) -> None:
        count = bisect_right(ends, HELD_OCTETS - self._held_octets)
        if count < len(ends):
            self._shared.drops["tun-held"] += len(ends) - count
        if count:
            octets = bytes(frames[: ends[count - 1]])
            self._held_octets += len(octets)
            self._held.append((memoryview(octets), ends[:count]))
            self._patience.begin()

    def _resume(self) -> None:
        """Send what is held, as far as the transport takes it."""
        while self._held and not self._transport.is_congested:
            frames, ends = self._held.popleft()
            self._held_octets -= len(frames)
            self._send(frames, ends)
        if self._held:
            self._patience.begin()


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the ports have in common."""

    loop: asyncio.AbstractEventLoop
    tun: Tun
    entrance: SocketAddress
    drops: Counter[str]
    on_close: Callable[[IPv4Address], None]


def esp_header(source: int, destination: int, size: int) -> bytes:
    """The IPv4 header before an ESP packet of that size. RFC 791 §3.1, RFC 6864 §4.1."""
    fields = (IP_HEADER + size, 0, _DONT_FRAGMENT, 64, socket.IPPROTO_ESP, 0, source, destination)
    header = bytearray(_HEADER.pack(0x45, 0, *fields))
    _LENGTH.pack_into(header, _SUM_AT, checksum(header))
    return bytes(header)


class _Inbox:
    """Reads the kernel's ESP packets into RFC 9329 frames, back to back, for each client.

    Args:
        entrance: where they have to come from.
    """

    def __init__(self, entrance: int) -> None:
        self._expected = (0x45, 0, socket.IPPROTO_ESP, entrance)
        self._header = bytearray(IP_HEADER)
        self._arena = memoryview(bytearray(READ_OCTETS))

    def read(self, descriptor: int) -> dict[int, Train]:
        """Read what there is.

        Returns:
            A train for each alias, valid until the next read.

        Raises:
            OSError: the device is gone.
        """
        header, arena, expected = self._header, self._arena, self._expected
        spans: dict[int, list[tuple[int, int]]] = {}
        start, body = 0, LENGTH_OCTETS
        for _ in range(READ_MOST):
            if body + LARGEST > READ_OCTETS:
                break
            try:
                length = os.readv(descriptor, (header, arena[body:])) - IP_HEADER
            except BlockingIOError:
                break
            kind, fragment, protocol, source, alias = _seen(header)
            if (kind, fragment & _FRAGMENT, protocol, source) != expected:
                continue
            if length < HEADER_LENGTH or _spi(arena, body)[0] == 0:
                continue
            stop = body + length
            _LENGTH.pack_into(arena, start, stop - start)
            spans.setdefault(alias, []).append((start, stop))
            start, body = stop, stop + LENGTH_OCTETS
        return {alias: self._train(found) for alias, found in spans.items()}

    def _train(self, spans: Sequence[tuple[int, int]]) -> Train:
        arena, first, last = self._arena, spans[0][0], spans[-1][1]
        ends = list(accumulate(stop - start for start, stop in spans))
        if ends[-1] == last - first:  # no other client's are between them
            return arena[first:last], ends
        return memoryview(b"".join(arena[start:stop] for start, stop in spans)), ends


class _Queue:
    """Counts what the device's queue did not hold.

    The file is of the network namespace in which it was opened.
    """

    def __init__(self, device: str) -> None:
        self._line = f"{device}:"
        self._file = Path("/proc/thread-self/net/dev").open()  # noqa: SIM115 -- until ``close``
        self._drops = 0

    @property
    def drops(self) -> int:
        """Packets, by now."""
        if not self._file.closed:
            self._file.seek(0)
            found = (line.split() for line in self._file)
            mine = (int(words[1 + _TX_DROPS]) for words in found if words[0] == self._line)
            self._drops = next(mine, self._drops)
        return self._drops

    def close(self) -> None:
        """Look once more, and never again."""
        self._drops = self.drops
        self._file.close()


# --- trying it out ---------------------------------------------------------------------------


def try_inward(tun: Tun, network: IPv4Network) -> None:
    """See that the kernel's IPsec gets ESP that is written into the device, where it counts such.

    Raises:
        DataPlaneError: it does not.
    """
    before = read_statistics()
    if not before:
        return
    tun.write((esp_header(int(network[-1]), int(network[1]), len(_TRIAL)), _TRIAL))
    deadline = time.monotonic() + TRIAL_S
    while "XfrmInNoStates" not in since(before):
        if time.monotonic() > deadline:
            raise DataPlaneError(
                f"ESP that comes from {tun.name} does not reach the kernel's IPsec: a firewall of"
                " this host?"
            )
        time.sleep(0.001)


def try_outward(tun: Tun, network: IPv4Network) -> None:
    """See that what goes from the entrance to an alias comes out of the device as it is.

    Raises:
        DataPlaneError: it does not.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            bypass_policies(sock)
            sock.bind((str(network[1]), 0))
            sock.sendto(_TRIAL, (str(network[-1]), 4500))
        while select.select([tun], [], [], TRIAL_S)[0]:
            packet = os.read(tun.fileno(), MTU)
            if packet.endswith(_TRIAL) and packet[12:16] == network[1].packed:
                return
    except OSError as error:
        raise DataPlaneError(f"{tun.name}: {reason_of(error)}") from error
    raise DataPlaneError(
        f"what goes from {network[1]} to {network[-1]} does not come out of {tun.name}: a firewall"
        " of this host?"
    )
