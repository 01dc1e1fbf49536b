"""The stream ports of who listens on them, gateway or relay."""

import resource
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module

from tunnelwrap.config.compose import routing, stream_limits
from tunnelwrap.config.model import StreamPorts
from tunnelwrap.daemon.site import site_behind_proxy, site_of
from tunnelwrap.demux.given import given_sockets
from tunnelwrap.demux.listener import Listener, OnStream, Site
from tunnelwrap.demux.routing import Routing
from tunnelwrap.demux.shown import Shown
from tunnelwrap.demux.web import DEFAULT_TIMES
from tunnelwrap.path import IpAddress


def stream_listeners(
    own: StreamPorts, descriptors: int, on_stream: OnStream, shown: Shown | None
) -> Iterator[Listener]:
    """A listener for each port, one after the other; on sockets of the service manager's, if any.

    Args:
        own: the configuration.
        descriptors: how many files may be open.
        on_stream: takes over IKE streams.
        shown: the certificate on the TLS ports.

    Raises:
        TransportError: an address cannot be had.
    """
    allowed = stream_limits(own, descriptors)
    with given_sockets() as given:
        for addresses, port, site, to in _ports(own, shown):
            # Who is to be taken for a visitor of a web site has the time of one.
            limits = replace(allowed, deadline_s=DEFAULT_TIMES.head_s) if site else allowed
            yield Listener(given.take(port) or addresses, port, on_stream, site, limits, to)


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


def _ports(
    own: StreamPorts, shown: Shown | None
) -> Iterator[tuple[Sequence[IpAddress], int, Site | None, Routing]]:
    """Where they are, what there is to see, and who is sent on from there."""
    routes = routing(own)
    site = site_of(own, shown)
    for port in own.tcp_ports:
        yield own.listen, port, None, routes
    for port in own.tls_ports:
        yield own.listen, port, site, routes
    if own.websocket is not None:
        import_module("tunnelwrap.transport.websocket")  # it takes long: not when one comes
        nobody = replace(routes, routes=())  # the reverse proxy knows who is for whom
        for port in own.websocket.ports:
            yield own.websocket.listen, port, site_behind_proxy(own), nobody
