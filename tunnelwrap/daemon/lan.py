"""The gateway's part on a LAN router, for clients that cannot be told to use other ports.

Flow: what they send to the gateway's UDP ports 500 and 4500 is delivered here
(``hostnet.links.lan_changes``) -> a listener on each of its addresses -> the wrapper. The answers
leave from the address and the port that the client has asked.
Owns: the listeners, and what is changed on the host for them.
"""

import asyncio
import logging
from collections.abc import Sequence
from itertools import chain
from typing import Final

from tunnelwrap.daemon.host import Hold
from tunnelwrap.errors import HostNetError, TransportError
from tunnelwrap.hostnet.links import lan_changes
from tunnelwrap.hostnet.sysctl import has_ipv6
from tunnelwrap.path import IpAddress, SocketAddress
from tunnelwrap.transport import BatchCallback
from tunnelwrap.transport.dial import resolve
from tunnelwrap.transport.udp import UdpListener

logger = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 300.0
"""How often the gateway's name is looked up; what it once was stays ours as well."""

MOST_ADDRESSES: Final = 32
"""Of a name that has others each time; the oldest that it has no more are given up."""

_PORTS: Final = {500: False, 4500: True}  # those of all clients, and whether IKE has a marker there


class Lan:
    """Takes what clients on this router's LAN send to a gateway.

    Args:
        hold: on this host's network; ours from now on.
        devices: where the clients are.
        gateway: a host name or an address.
        on_batch: gets what arrives.
        loop: from which everything is called.
    """

    def __init__(
        self,
        hold: Hold,
        devices: Sequence[str],
        gateway: str,
        on_batch: BatchCallback,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._devices = devices
        self._gateway = gateway
        self._on_batch = on_batch
        self._loop = loop
        self._hold = hold
        self._listeners: dict[IpAddress, list[UdpListener]] = {}
        self._taken: list[IpAddress] = []

    async def start(self) -> None:
        """Take the gateway's addresses.

        Raises:
            TunnelwrapError: it has none, a port is taken here, or there is no right to it.
        """
        self._take(await resolve(self._gateway))

    async def run(self) -> None:
        """Take those too that it has later on, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            try:
                self._take(await resolve(self._gateway))
            except (HostNetError, TransportError) as error:
                logger.warning("LAN clients of %s: %s", self._gateway, error)

    def close(self) -> None:
        """Take everything back; calling twice is fine."""
        self._hold.undo()
        for listener in chain.from_iterable(self._listeners.values()):
            listener.close()
        self._listeners = {}

    def _take(self, addresses: Sequence[IpAddress]) -> None:
        versions = (4, 6) if any(map(has_ipv6, self._devices)) else (4,)
        for address in addresses:
            if address.version in versions and address not in self._listeners:
                self._listeners[address] = self._listen(address)
        self._give_up([each for each in self._listeners if each not in addresses])
        if self._taken != [*self._listeners]:
            self._hold.undo()
            self._taken = []
            taken = [*self._listeners]
            self._hold.apply(lan_changes(self._hold.name, self._devices, taken, list(_PORTS)))
            self._taken = taken
            logger.info(
                "to LAN clients behind %s this is %s",
                " and ".join(self._devices),
                " and ".join(map(str, taken)),
            )

    def _give_up(self, old: Sequence[IpAddress]) -> None:
        for address in old[: max(len(self._listeners) - MOST_ADDRESSES, 0)]:
            for listener in self._listeners.pop(address):
                listener.close()

    def _listen(self, address: IpAddress) -> list[UdpListener]:
        made: list[UdpListener] = []
        calls = self._on_batch, self._loop
        try:
            for port, has_marker in _PORTS.items():
                where = SocketAddress(address, port)
                made.append(UdpListener(where, *calls, has_marker=has_marker, is_transparent=True))
        except TransportError:
            for listener in made:
                listener.close()
            raise
        return made
