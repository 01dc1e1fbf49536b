"""Sockets that listen on a TCP port."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from tunnelwrap.errors import TransportError
from tunnelwrap.path import IpAddress, SocketAddress

_BACKLOG: Final = 1024


def bind_all(addresses: Sequence[IpAddress | socket.socket], port: int) -> list[socket.socket]:
    """A listening socket for each address, all of them or none; those that listen already do.

    Raises:
        TransportError: an address cannot be had.
    """
    with ExitStack() as bound:
        found = [bound.enter_context(_listening(each, port)) for each in addresses]
        bound.pop_all()  # all or none
    return found


def _listening(address: IpAddress | socket.socket, port: int) -> socket.socket:
    if isinstance(address, socket.socket):
        return address
    return _bind(SocketAddress(address, port))


def _bind(address: SocketAddress) -> socket.socket:
    is_ipv6 = address.ip.version == 6
    sock = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((str(address.ip), address.port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise TransportError(f"cannot listen on TCP {address}: {error.strerror}") from error
    return sock
