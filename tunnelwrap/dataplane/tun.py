"""/dev/net/tun with the virtio-net header: super-packets of up to 64 KiB both ways.

The header before each packet (virtio 1.2 §5.1.6, ``struct virtio_net_hdr``, in the host's byte
order) says where a checksum is to be filled in and how a TCP super-packet is to be cut.
Owns: the file descriptor; the device vanishes with it.
"""

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Sequence
from struct import Struct
from typing import Final, Self

from tunnelwrap.errors import DataPlaneError, NotPrivileged, Unsupported

TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNSETVNETHDRSZ: Final = 0x400454D8
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04

VNET_HEADER: Final = 10
VNET_LAYOUT: Final = Struct("=BBHHHH")
"""flags | gso_type | hdr_len | gso_size | csum_start | csum_offset."""

NEEDS_CSUM: Final = 1
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_ECN: Final = 0x80

MAX_READ: Final = VNET_HEADER + 65535 + 40
"""Longest packet with its header: an IPv6 payload length does not count its header."""

_REQUEST = Struct("=16sH22x")


class Tun:
    """A TUN device, non-blocking."""

    __slots__ = ("_fd", "name")

    def __init__(self, fd: int, name: str) -> None:
        """Take over an open descriptor; ``read_batch`` wants the virtio-net header on packets."""
        os.set_blocking(fd, False)
        self._fd = fd
        self.name = name

    @classmethod
    def open(cls, name: str, *, has_header: bool = True) -> Self:
        """Create the device; ``name`` may hold one ``%d``.

        Without ``has_header`` its packets are bare, and no longer than its MTU.

        Raises:
            NotPrivileged: without CAP_NET_ADMIN.
            Unsupported: the kernel lacks TUN or its offloads.
            DataPlaneError: the name is taken or impossible.
        """
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _cause(error, name) from error
        try:
            return cls(fd, _configure(fd, name, has_header=has_header))
        except OSError as error:
            os.close(fd)
            raise _cause(error, name) from error

    def fileno(self) -> int:
        """The descriptor, for the event loop."""
        return self._fd

    def read_batch(self, arena: memoryview, most: int) -> list[tuple[int, int]]:
        """Read what is there, packet behind packet, each with its header, at even offsets.

        Args:
            arena: writable, at least ``MAX_READ`` octets.
            most: packets.

        Returns:
            Start and end of each.

        Raises:
            DataPlaneError: the device is gone.
        """
        fd, readv, limit = self._fd, os.readv, len(arena) - MAX_READ
        found: list[tuple[int, int]] = []
        start = 0
        try:
            while start <= limit and len(found) < most:
                end = start + readv(fd, (arena[start : start + MAX_READ],))
                if end == start:
                    break
                found.append((start, end))
                start = (end + 15) & ~15
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: the device is down, which is no reason to give up
                raise DataPlaneError(f"{self.name}: {error.strerror}") from error
        return found

    def write(self, pieces: Sequence[bytes | memoryview]) -> bool:
        """Write one packet given in pieces, the first with the header; False: not taken."""
        try:
            os.writev(self._fd, pieces)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let the device go; calling twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def _configure(fd: int, name: str, *, has_header: bool) -> str:
    flags = IFF_TUN | IFF_NO_PI | (IFF_VNET_HDR if has_header else 0)
    answer = fcntl.ioctl(fd, TUNSETIFF, _REQUEST.pack(name.encode(), flags))
    if has_header:
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, VNET_HEADER.to_bytes(4, sys.byteorder))
        fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    raw: bytes = _REQUEST.unpack(answer)[0]
    return raw.rstrip(b"\0").decode()


def _cause(error: OSError, name: str) -> DataPlaneError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return NotPrivileged(f"TUN device {name} needs CAP_NET_ADMIN")
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTTY):
        return Unsupported("no TUN in this kernel (/dev/net/tun)")
    return DataPlaneError(f"TUN device {name}: {error.strerror}")
