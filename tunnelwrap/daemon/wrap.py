"""The wrapper: a gateway's UDP ports for a daemon here, and a way to the gateway behind them.

On a LAN router it has the gateway's own address, too, for the clients behind it (``daemon.lan``).
Flow: two UDP listeners -> the passage of the datagram's IKE SA -> UDP, TCP or TLS, and back. Which
passage the SPIs of ESP and of a rekeyed IKE SA belong to shows in no header. New ones go by the
passage that has had an exchange which makes some, and has shown none since; or by the one whose
exchange was last. That is right unless two IKE SAs of one daemon are rekeyed at once; and even then
the gateway knows its SPIs by any stream, and answers by that one.
Owns: the listeners, the passages, the control socket.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tunnelwrap.config.wrapper import Wrap as WrapSettings
from tunnelwrap.config.wrapper import WrapFile
from tunnelwrap.daemon.control import Answer, ControlServer, check_free
from tunnelwrap.daemon.headers import Esp, Ike, SpiTable, read, with_marker
from tunnelwrap.daemon.host import Hold
from tunnelwrap.daemon.lan import Lan
from tunnelwrap.daemon.passage import Passage
from tunnelwrap.daemon.ports import take_all_descriptors
from tunnelwrap.daemon.reach import Dialler
from tunnelwrap.errors import TransportError
from tunnelwrap.path import Carrier, IpAddress, SocketAddress
from tunnelwrap.transport import BatchCallback, ClosedCallback, Transport
from tunnelwrap.transport.dial import Rung, open_udp_from_any_port, resolve
from tunnelwrap.transport.stream import StreamTransport
from tunnelwrap.transport.udp import UdpListener
from tunnelwrap.wire.esp import Kind, classify

logger = logging.getLogger(__name__)

IDLE_S: Final = 1800.0
"""A passage by which nothing goes is given up; one IKE message of the daemon opens another."""

REAP_S: Final = 10.0
MAX_PASSAGES: Final = 256


class Ways:
    """Opens carriers to a gateway, as its configuration says (``passage.Opener``)."""

    def __init__(
        self, settings: WrapSettings, tls_keylog: Path | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._dialler = Dialler(settings, tls_keylog, loop)
        self._carriers = list(settings.carriers)

    async def rungs(self) -> list[Rung]:
        """UDP as the configuration has it; of the streams first the one that was good last."""
        return self._dialler.rungs(self._carriers, await resolve(self._settings.gateway))

    async def open(
        self, rung: Rung, on_batch: BatchCallback, on_closed: ClosedCallback, old: Transport | None
    ) -> tuple[Transport, Transport | None]:
        """By UDP from ports of any number: those of IKE are the daemon's, and NAT shall be seen."""
        settings = self._settings
        if rung.carrier is not Carrier.UDP:
            name = settings.server_name or settings.gateway
            session = old.tls_session if isinstance(old, StreamTransport) else None
            opened = await self._dialler.open_stream(rung, name, on_batch, on_closed, session)
            return opened, None
        calls = (on_batch, on_closed, self._loop)
        nat = SocketAddress(rung.address.ip, settings.udp_nat_port)
        main = open_udp_from_any_port(nat, *calls, has_marker=True)
        if settings.udp_ike_port == settings.udp_nat_port:
            return main, None
        try:
            bare = open_udp_from_any_port(rung.address, *calls, has_marker=False)
        except TransportError:
            main.close()
            raise
        return main, bare

    def won(self, carrier: Carrier) -> None:
        """Have it first among the streams next time; UDP keeps its place."""
        if carrier.is_reliable:
            streams = [each for each in self._carriers if each.is_reliable and each is not carrier]
            streams.insert(0, carrier)
            order = iter(streams)
            self._carriers = [next(order) if each.is_reliable else each for each in self._carriers]


class Wrap:
    """One wrapper.

    ``counters``: keepalives, invalid, unknown (datagrams of the daemon that went nowhere).

    Args:
        file: the configuration.
        name: of the instance.
        tls_keylog: file that gets the TLS secrets, for Wireshark; None: nobody.

    Raises:
        TunnelwrapError: another one runs with this configuration, or TLS cannot be set up.
    """

    def __init__(self, file: WrapFile, name: str, tls_keylog: Path | None) -> None:
        settings = self._settings = file.wrap
        check_free(settings.control_socket)
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._ways = Ways(settings, tls_keylog, self._loop)
        self._listeners: list[UdpListener] = []
        self._spis: SpiTable[Passage] = SpiTable()
        self._passages: dict[Passage, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._counters: Counter[str] = Counter()
        hold = Hold(
            name, settings.state_directory
        )  # with or without a LAN: there may have been one
        self._lan = self._lan_of(settings, hold) if settings.lan else None
        self._control = ControlServer(
            settings.control_socket, {"status": self._status, "disconnect": self._disconnect}
        )

    def stop(self) -> None:
        """End it in good order."""
        self._stopped.set()

    async def run(self) -> None:
        """Serve until told to stop.

        Raises:
            TunnelwrapError: a port cannot be had.
        """
        take_all_descriptors()
        try:
            await self._control.start()
            if self._lan is not None:
                await self._lan.start()
            self._listen()
            async with asyncio.TaskGroup() as self._tasks:
                lasting = [self._tasks.create_task(self._reap())]
                if self._lan is not None:
                    lasting.append(self._tasks.create_task(self._lan.run()))
                logger.info("ready: %s", self._description())
                await self._stopped.wait()
                for task in (*lasting, *self._passages.values()):
                    task.cancel()
        finally:
            if self._lan is not None:
                self._lan.close()
            for listener in self._listeners:
                listener.close()
            self._control.close()

    def _lan_of(self, settings: WrapSettings, hold: Hold) -> Lan:
        return Lan(hold, settings.lan, settings.gateway, self._from_daemon, self._loop)

    def _listen(self) -> None:
        address, *ports = self._settings.listens_at
        for port, has_marker in zip(ports, (False, True), strict=True):
            where = SocketAddress(address, port)
            self._listeners.append(
                UdpListener(where, self._from_daemon, self._loop, has_marker=has_marker)
            )

    # --- from the daemon ---------------------------------------------------------------------

    def _from_daemon(self, home: Transport, batch: Sequence[memoryview]) -> None:
        trains: dict[Passage, list[memoryview]] = {}
        for octets in batch:
            if classify(octets) is Kind.KEEPALIVE:
                self._keep_alive(home.path.peer.ip)
                continue
            datagram = octets if home.path.has_marker else memoryview(with_marker(octets))
            seen = read(datagram)
            passage = None if seen is None else self._passage_of(home, seen)
            if seen is None or passage is None:
                self._counters["invalid" if seen is None else "unknown"] += 1
            elif isinstance(seen, Ike):
                passage.carry(home, seen, bytes(datagram))
            else:
                trains.setdefault(passage, []).append(datagram)
        for passage, packets in trains.items():
            passage.carry_esp(home, packets)

    def _keep_alive(self, daemon: IpAddress) -> None:
        """The daemon has an IKE SA, most likely the last one, even if nothing goes by it."""
        self._counters["keepalives"] += 1
        own = [passage for passage in self._passages if passage.daemon == daemon]
        last = max(own, key=lambda passage: passage.answered_at, default=None)
        if last is not None:
            last.used = self._loop.time()
        for passage in own:
            passage.keep_alive()

    def _passage_of(self, home: Transport, seen: Ike | Esp) -> Passage | None:
        daemon = home.path.peer.ip
        known = self._spis.find(seen)
        if known is not None:  # its SPIs in others' mouths are no reason to send them its answers
            return known if known.daemon == daemon else None
        is_request = isinstance(seen, Ike) and not seen.is_response
        is_first = isinstance(seen, Ike) and seen.is_first
        found = None if is_first else self._likeliest(home, seen)
        if found is None and is_request:
            found = self._new_passage(daemon)
        if found is not None:
            self._learn(found, seen)
        return found

    def _likeliest(self, home: Transport, seen: Ike | Esp) -> Passage | None:
        """Whose SPIs they are that nobody has."""
        daemon = home.path.peer.ip
        own = (passage for passage in self._passages if passage.daemon == daemon)
        return max(own, key=lambda passage: passage.claim(seen, home), default=None)

    def _learn(self, passage: Passage, seen: Ike | Esp) -> None:
        if self._spis.find(seen) is None:
            passage.show()
        self._spis.learn(passage, seen)

    def _new_passage(self, daemon: IpAddress) -> Passage:
        assert self._tasks is not None  # nothing is read from the listeners before
        if len(self._passages) >= MAX_PASSAGES:
            self._end(self._dispensable())
        passage = Passage(daemon, self._ways, self._learn, self._loop)
        self._passages[passage] = self._tasks.create_task(passage.run())
        return passage

    def _dispensable(self) -> Passage:
        """Of those that proved nothing first, as sources can be forged, one of who has most."""
        of = Counter(passage.daemon for passage in self._passages)
        return min(self._passages, key=lambda each: (each.is_settled, -of[each.daemon], each.used))

    def _end(self, passage: Passage) -> None:
        self._passages.pop(passage).cancel()
        self._spis.forget(passage)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(REAP_S)
            idle = self._loop.time() - IDLE_S
            for passage in [each for each in self._passages if each.used < idle]:
                self._end(passage)

    # --- control -----------------------------------------------------------------------------

    async def _status(self) -> Answer:
        return {
            "role": "wrap",
            "name": self._name,
            "to": self._settings.gateway,
            "ways": [self._way(passage) for passage in self._passages],
            "counters": dict(sorted(self._counters.items())),
        }

    def _way(self, passage: Passage) -> dict[str, object]:
        now, rung, home = self._loop.time(), passage.rung, passage.home
        return {
            "is_connected": rung is not None,
            "carrier": None if rung is None else rung.carrier.value,
            "peer": None if rung is None else str(rung.address),
            "local": None if home is None else str(home.path.peer),
            "seconds": round(now - passage.since, 1),
            "idle_seconds": round(now - passage.used, 1),
            "octets_in": passage.octets_in,
            "octets_out": passage.octets_out,
            "undelivered": passage.undelivered,
        }

    async def _disconnect(self) -> Answer:
        self.stop()
        return {}

    def _description(self) -> str:
        ports = " and ".join(f"{listener.address}" for listener in self._listeners)
        return f"UDP {ports} for {self._settings.gateway}"
