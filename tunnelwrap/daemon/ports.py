"""The stream ports of who listens on them, gateway or relay."""

import resource
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module

from tunnelwrap.config.compose import routing, stream_limits
from tunnelwrap.config.model import StreamPorts, Tls
from tunnelwrap.demux.listener import Listener, OnStream, Site, server_context
from tunnelwrap.demux.routing import Routing
from tunnelwrap.path import IpAddress


def stream_listeners(own: StreamPorts, descriptors: int, on_stream: OnStream) -> Iterator[Listener]:
    """A listener for each port, one after the other.

    Args:
        own: the configuration.
        descriptors: how many files may be open.
        on_stream: takes over IKE streams.

    Raises:
        TransportError: an address cannot be had.
        ConfigError: the certificate does not serve.
    """
    allowed = stream_limits(own, descriptors)
    for addresses, port, site, to in _ports(own):
        yield Listener(addresses, port, on_stream, site, allowed, to)


def names_of_ports(own: StreamPorts) -> list[str]:
    """The ports, for people."""
    return [
        *(f"TCP {port}" for port in own.tcp_ports),
        *(f"TLS {port}" for port in own.tls_ports),
        *(f"HTTP {port}" for port in (own.websocket.ports if own.websocket else ())),
    ]


def take_all_descriptors() -> int:
    """Raise the limit of open files as far as we may: strangers must not use up all of them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def _ports(own: StreamPorts) -> Iterator[tuple[Sequence[IpAddress], int, Site | None, Routing]]:
    """Where they are, what there is to see, and who is sent on from there."""
    routes = routing(own)
    secret_path = own.websocket.path.path.encode() if own.websocket else None
    for port in own.tcp_ports:
        yield own.listen, port, None, routes
    for port in own.tls_ports:
        yield own.listen, port, Site(_context(own.tls), secret_path), routes
    if own.websocket is not None:
        import_module("tunnelwrap.transport.websocket")  # it takes long: not when one comes
        nobody = replace(routes, routes=())  # the reverse proxy knows who is for whom
        for port in own.websocket.ports:
            yield own.websocket.listen, port, Site(None, secret_path), nobody


def _context(tls: Tls | None) -> ssl.SSLContext:
    assert tls is not None  # the model checked it
    assert tls.certificate.file is not None
    assert tls.key.file is not None
    return server_context(tls.certificate.file, tls.key.file)
