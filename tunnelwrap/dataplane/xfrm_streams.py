"""Which Child SAs come by streams, and by which port of a feed the kernel has them.

All Child SAs that came by one stream have one port; it goes with the peer from stream to stream, so
that the kernel does not hear of a reconnect.
Owns: the feed, and its ports.
"""

from collections.abc import Sequence
from itertools import groupby
from struct import Struct

from tunnelwrap.dataplane.feed import Feed, FeedPort
from tunnelwrap.transport import Transport
from tunnelwrap.wire.esp import HEADER_LENGTH

_spi = Struct(">I").unpack_from


class StreamPorts:
    """Gives packets of streams to the kernel."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._ports: dict[int, FeedPort] = {}  # by spi_in
        self._transports: dict[FeedPort, Transport] = {}

    @property
    def drops(self) -> dict[str, int]:
        """Packets dropped, by cause."""
        return self._feed.drops

    def enter(self, spi_in: int, transport: Transport) -> FeedPort:
        """The port of a Child SA that comes by a stream from now on.

        Raises:
            DataPlaneError: there are no more.
        """
        port = self._ports.get(spi_in) or self._port_at(transport)
        self._ports[spi_in] = port
        if self._transports[port] is not transport:
            self._transports[port] = transport
            port.move(transport)
        return port

    def leave(self, spi_in: int) -> None:
        """A Child SA is gone, or comes by UDP; unknown is no error."""
        port = self._ports.pop(spi_in, None)
        if port is not None and port not in self._ports.values():
            del self._transports[port]
            port.close()

    def feed(self, batch: Sequence[memoryview]) -> list[memoryview]:
        """Give ESP packets to the kernel; give back what is not ours."""
        rest: list[memoryview] = []
        for port, views in groupby(batch, self._port_of):
            if port is None:
                rest.extend(views)
            else:
                port.feed(list(views))
        return rest

    def close(self) -> None:
        """Close every port."""
        self._ports.clear()
        self._transports.clear()
        self._feed.close()

    def _port_at(self, transport: Transport) -> FeedPort:
        for port, other in self._transports.items():
            if other is transport:
                return port
        port = self._feed.open(transport)
        self._transports[port] = transport
        return port

    def _port_of(self, packet: memoryview) -> FeedPort | None:
        return self._ports.get(_spi(packet)[0]) if len(packet) >= HEADER_LENGTH else None
