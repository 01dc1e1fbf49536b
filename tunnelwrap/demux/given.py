"""Listening sockets that the service manager has opened for us: socket activation.

systemd names them in the environment (sd_listen_fds(3)): LISTEN_FDS descriptors from 3 on, for the
process LISTEN_PID. So port 443 can be open before we run, while we are restarted, and without a
right of ours to open it.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tunnelwrap.errors import TransportError
from tunnelwrap.path import SocketAddress

logger = logging.getLogger(__name__)

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class Given:
    """The sockets, by port.

    Owns: them, until they are taken.
    """

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets

    def take(self, port: int) -> list[socket.socket]:
        """Those on a port; they belong to the caller from now on."""
        taken = [each for each in self._sockets if each.getsockname()[1] == port]
        self._sockets = [each for each in self._sockets if each not in taken]
        return taken

    def close(self) -> None:
        """Close those that nobody took, and tell: most likely one of two files is wrong."""
        for each in self._sockets:
            where = SocketAddress.of(each.getsockname())
            logger.warning("given a socket for TCP %s, where nothing is configured", where)
            each.close()
        self._sockets = []


@contextmanager
def given_sockets() -> Iterator[Given]:
    """What there is of them, once; those that are not taken are closed at the end.

    Raises:
        TransportError: there is one that is of no use to us.
    """
    given = Given(_claimed())
    try:
        yield given
    finally:
        given.close()


def _claimed() -> list[socket.socket]:
    values = {name: os.environ.pop(name, "") for name in _VARIABLES}  # not for our children
    if values["LISTEN_PID"] != str(os.getpid()) or not values["LISTEN_FDS"].isdecimal():
        return []
    numbers = range(_FIRST, _FIRST + int(values["LISTEN_FDS"]))
    sockets = [_socket(number) for number in numbers]
    for each in sockets:
        _check(each)
        each.setblocking(False)
    return sockets


def _socket(number: int) -> socket.socket:
    try:
        os.set_inheritable(number, False)
        return socket.socket(fileno=number)
    except OSError as error:
        raise TransportError(f"given descriptor {number} is no socket: {error.strerror}") from error


def _check(given: socket.socket) -> None:
    number, is_ip = given.fileno(), given.family in (socket.AF_INET, socket.AF_INET6)
    is_listening = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not is_ip or given.type != socket.SOCK_STREAM or not is_listening:
        raise TransportError(f"given descriptor {number} is no TCP socket that listens")
    if given.family == socket.AF_INET6 and not given.getsockopt(
        socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
    ):
        # All of IPv4 would come from one IPv6 network of 64 bits, and limits count those.
        where = SocketAddress.of(given.getsockname())
        wanted = "expected one for each (BindIPv6Only=ipv6-only)"
        raise TransportError(f"given a socket for TCP {where} that takes IPv4 too, {wanted}")
