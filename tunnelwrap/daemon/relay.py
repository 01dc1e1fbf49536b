"""The relay: brings RFC 9329 streams to an IKEv2 daemon that knows UDP only; it holds no keys.

Flow: stream listeners (``demux``) -> ``daemon.lanes`` -> the daemon's UDP port, and back.
Owns: the listeners, the lanes, the control socket.
"""

import asyncio
import logging
from collections import Counter
from typing import Final

from tunnelwrap.config.wrapper import RelayFile
from tunnelwrap.daemon.certificates import keeper_of
from tunnelwrap.daemon.control import Answer, ControlServer, check_free
from tunnelwrap.daemon.lanes import Lane, Lanes, Limits
from tunnelwrap.daemon.ports import names_of_ports, stream_listeners, take_all_descriptors
from tunnelwrap.daemon.site import check_site
from tunnelwrap.demux.listener import Listener
from tunnelwrap.path import SocketAddress

logger = logging.getLogger(__name__)

REAP_S: Final = 1.0


class Relay:
    """One relay.

    Args:
        file: the configuration.
        name: of the instance.

    Raises:
        ControlError: another one runs with this configuration.
    """

    def __init__(self, file: RelayFile, name: str) -> None:
        settings = self._settings = file.relay
        check_free(settings.control_socket)
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._listeners: list[Listener] = []
        limits = Limits(settings.clients, settings.clients_per_address, settings.keep_s)
        self._daemon = SocketAddress(settings.daemon, settings.daemon_port)
        self._lanes = Lanes(self._daemon, settings.sources, limits, self._loop)
        self._keeper = keeper_of(settings)
        self._control = ControlServer(
            settings.control_socket, {"status": self._status, "disconnect": self._disconnect}
        )

    def stop(self) -> None:
        """End it in good order."""
        self._stopped.set()

    def reload(self) -> None:
        """See at once whether there is a new certificate for TLS."""
        if self._keeper is not None:
            self._keeper.reload()

    async def run(self) -> None:
        """Serve until told to stop.

        Raises:
            TunnelwrapError: a port cannot be had.
        """
        descriptors = take_all_descriptors()
        try:
            await self._control.start()
            shown = self._keeper.shown if self._keeper else None
            admit = self._lanes.admit
            for listener in stream_listeners(self._settings, descriptors, admit, shown):
                self._listeners.append(listener)
            async with asyncio.TaskGroup() as tasks:
                for listener in self._listeners:
                    tasks.create_task(listener.run())
                lasting = [tasks.create_task(self._reap())]
                lasting.append(tasks.create_task(check_site(self._settings)))
                if self._keeper is not None:
                    lasting.append(tasks.create_task(self._keeper.run()))
                logger.info("ready: %s", self._description())
                await self._stopped.wait()
                for task in lasting:
                    task.cancel()
                for listener in self._listeners:
                    listener.close()
        finally:
            for listener in self._listeners:
                listener.close()
            self._lanes.close()
            self._control.close()

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(REAP_S)
            self._lanes.reap()

    async def _status(self) -> Answer:
        streams = sum((each.counters for each in self._listeners), Counter[str]())
        return {
            "role": "relay",
            "name": self._name,
            "to": str(self._daemon),
            "ways": [self._way(lane) for lane in self._lanes.lanes],
            "streams": dict(sorted(streams.items())),
            "counters": dict(sorted(self._lanes.counters.items())),
        }

    def _way(self, lane: Lane) -> dict[str, object]:
        now, holder = self._loop.time(), lane.tenure.holder
        return {
            "is_connected": holder is not None,
            "carrier": None if holder is None else holder.transport.path.carrier.value,
            "peer": None if holder is None else str(holder.transport.path.peer),
            "local": str(lane.udp.path.local),
            "challengers": len(lane.tenure.challengers),
            "seconds": round(now - lane.since, 1),
            "idle_seconds": None if lane.heard is None else round(now - lane.heard, 1),
            "octets_in": lane.octets_in,
            "octets_out": lane.octets_out,
        }

    async def _disconnect(self) -> Answer:
        self.stop()
        return {}

    def _description(self) -> str:
        return f"{', '.join(names_of_ports(self._settings))} for the daemon at {self._daemon}"
