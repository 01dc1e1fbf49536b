"""The gateway: listens on UDP, TCP, TLS and HTTP, gives addresses, forwards for its clients.

Flow: UDP listeners and stream listeners (``demux``) -> transports -> ``Driver.datagrams``.
Owns: the listeners, the driver, the leases, the host's changes, the control socket.
"""

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from tunnelwrap.config.compose import connection_policies, limits
from tunnelwrap.config.model import GatewayFile
from tunnelwrap.config.model import Pool as PoolSettings
from tunnelwrap.config.selectors import parse_selector
from tunnelwrap.daemon.certificates import keeper_of
from tunnelwrap.daemon.control import Answer, ControlServer, check_free
from tunnelwrap.daemon.driver import Driver, Fact
from tunnelwrap.daemon.feeds import open_feed
from tunnelwrap.daemon.host import Host, check_rights
from tunnelwrap.daemon.planes import Listeners, choose_plane
from tunnelwrap.daemon.ports import names_of_ports, stream_listeners, take_all_descriptors
from tunnelwrap.daemon.recording import Recorder
from tunnelwrap.daemon.site import check_site
from tunnelwrap.daemon.status import status_of
from tunnelwrap.demux.listener import Listener
from tunnelwrap.errors import (
    ControlError,
    InternalAddressFailure,
    Refusal,
    StoreError,
    TransportError,
)
from tunnelwrap.hostnet import Change
from tunnelwrap.hostnet.firewall import ForwardChange, NatChange
from tunnelwrap.hostnet.links import gateway_changes
from tunnelwrap.ike.endpoint import Endpoint
from tunnelwrap.ike.outputs import AskLease, ChildRefused, Closed, Established, Lease
from tunnelwrap.ike.redirect import decoded, encoded
from tunnelwrap.path import Path, SocketAddress
from tunnelwrap.store.leases import Leases
from tunnelwrap.store.pool import Pool
from tunnelwrap.store.secret_file import lasting_secret
from tunnelwrap.transport import Transport
from tunnelwrap.transport.kernel_stream import KernelStream, suits_kernel
from tunnelwrap.transport.stream import StreamTransport
from tunnelwrap.transport.udp import UdpListener

logger = logging.getLogger(__name__)

TUN_MTU: Final = 1400
"""Fits every suite over UDP on an Ethernet path; clients behind less are told by ICMP."""

INTERFACE_MTU: Final = 1500
"""Of an xfrm interface: the kernel knows what each SA adds, and tells who sends more."""

CLOSE_S: Final = 2.0  # how long clients may take to answer our deletes
IDLE_STREAM_S: Final = 10.0  # a stream without an established IKE SA. RFC 9329 §6.1, §6.3

IpNetwork = IPv4Network | IPv6Network


class Server:
    """One gateway.

    Args:
        file: the configuration.
        name: of the instance.
        recorder: writes down what Wireshark needs.

    Raises:
        TunnelwrapError: another one runs with this configuration, or the TUN device or the leases
            cannot be had.
    """

    def __init__(self, file: GatewayFile, name: str, recorder: Recorder) -> None:
        check_rights()
        check_free(file.gateway.control_socket)
        self._file = file
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._emptied = asyncio.Event()  # no IKE SA is left, and we are to end
        self._stream_ids = 0
        self._origins: dict[Path, bytes | None] = {}  # of streams that have proven nothing yet
        self._peers: dict[int, str] = {}  # who an established IKE SA is with
        self._pools = {key: Pool(pool.networks) for key, pool in file.pools.items()}
        self._policies = connection_policies(file)
        state = file.gateway.state_directory
        self._host = Host(name, state)
        self._leases = Leases(state / "leases.sqlite", self._pools)
        listeners = Listeners(self._expired, self._elsewhere, self._mapped)
        self._plane = choose_plane(
            *(file.gateway.data_plane, self._host, TUN_MTU, listeners, self._policies, name),
            bridges_streams=True,
            tcp_in_kernel=file.gateway.tcp_in_kernel,
        )
        endpoint = Endpoint(
            os.urandom,
            _wall_clock,
            connections=self._policies,
            limits=limits(file.gateway),
            forces_encapsulation=self._plane.forces_encapsulation(bare_esp=file.gateway.bare_esp),
            token_secret=lasting_secret(state / "crash-tokens"),
            exports_keys=recorder.takes_keys,
            reserve_spi=self._plane.plane.reserve_spi,
            compresses=self._plane.compresses,
            has_beet=self._plane.has_beet,
        )
        endpoint.redirect_newcomers(file.gateway.redirect_to)
        self._driver = Driver(
            endpoint, self._plane.plane, self._loop, self._observe, self._lease, recorder
        )
        self._driver.find_udp_by(self._udp_transport)
        self._udp: list[UdpListener] = []
        self._streams: list[Listener] = []
        self._keeper = keeper_of(file.gateway)
        self._control = ControlServer(
            file.gateway.control_socket,
            {
                "status": self._status,
                "kernel": self._plane.report,
                "disconnect": self._disconnect,
            },
            {"redirect": self._redirect},
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
            TunnelwrapError: a port cannot be had, or the host refuses a change.
        """
        descriptors = take_all_descriptors()
        try:
            await self._control.start()
            self._open_plane()
            self._host.apply(self._changes())
            self._listen_udp()
            self._listen_streams(descriptors)
            async with asyncio.TaskGroup() as tasks:
                for listener in self._streams:
                    tasks.create_task(listener.run())
                lasting = [tasks.create_task(self._reap())]
                lasting.append(tasks.create_task(check_site(self._file.gateway)))
                if self._keeper is not None:
                    lasting.append(tasks.create_task(self._keeper.run()))
                logger.info("%s", self._plane)
                logger.info("ready: %s", self._description())
                await self._stopped.wait()
                for task in lasting:
                    task.cancel()
                await self._say_goodbye()
                for listener in self._streams:
                    listener.close()
        finally:
            self._close()

    def _close(self) -> None:
        self._host.close()
        for stream in self._streams:
            stream.close()
        for udp in self._udp:
            udp.close()
        self._driver.close()
        self._leases.close()
        self._control.close()

    async def _say_goodbye(self) -> None:
        """Delete every IKE SA; clients that do not answer are forgotten."""
        for sa in list(self._driver.live):
            self._driver.close_sa(sa, "the gateway ends")
        self._leave_if_empty()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._emptied.wait()

    # --- the host ----------------------------------------------------------------------------

    def _open_plane(self) -> None:
        """Make the device; let the kernel have what comes by streams, too, if it can.

        Raises:
            TunnelwrapError: it cannot, and was demanded.
        """
        if self._plane.if_id:
            self._host.make_interface(self._plane.if_id, parts_packets=self._plane.tcp_in_kernel)
        self._plane = open_feed(self._plane, self._host)

    def _changes(self) -> list[Change]:
        """Routes and forwarding for all pools and peers' networks; NAT where a pool wants it."""
        device, name, by_policies = self._host.device, self._host.name, self._plane.has_policies
        pools = [network for pool in self._pools.values() for network in pool.networks]
        own = [address for pool in self._pools.values() for address in pool.gateways]
        networks = [*pools, *self._networks_of_peers()]
        masqueraded = tuple(
            network
            for settings in self._file.pools.values()
            if settings.masquerade
            for network in settings.networks
        )
        mtu = INTERFACE_MTU if self._plane.if_id else TUN_MTU
        changes = list(gateway_changes(device, mtu, own, networks))
        if masqueraded:
            changes.append(NatChange(name, device, masqueraded, by_policies))
        if pools:
            changes.append(ForwardChange(name, device, tuple(pools), by_policies))
        return changes

    def _networks_of_peers(self) -> Iterator[IpNetwork]:
        """What stands behind peers that bring their own addresses.

        In transport mode nothing does: it is for the peer itself, whose ESP goes there, too.
        """
        children = (connection.child for connection in self._file.connections.values())
        for child in children:
            for text in child.peer_ts if child.mode != "transport" else ():
                selected = parse_selector(text).networks()
                yield from (network for network in selected if network.prefixlen)

    # --- carriers ----------------------------------------------------------------------------

    def _listen_udp(self) -> None:
        settings = self._file.gateway
        for address in settings.listen:
            for port, has_marker in ((settings.udp_ike_port, False), (settings.udp_nat_port, True)):
                where = SocketAddress(address, port)
                self._udp.append(
                    UdpListener(
                        *(where, self._driver.datagrams, self._loop),
                        has_marker=has_marker,
                        kernel_esp=self._plane.kernel_esp,
                    )
                )

    def _udp_transport(self, path: Path) -> Transport | None:
        for listener in self._udp:
            transport = listener.transport_for(path)
            if transport is not None:
                return transport
        return None

    def _listen_streams(self, descriptors: int) -> None:
        shown = self._keeper.shown if self._keeper else None
        own = self._file.gateway
        for listener in stream_listeners(own, descriptors, self._on_stream, shown):
            self._streams.append(listener)

    def _on_stream(
        self, sock: socket.socket, path: Path, origin: bytes | None, received: bytes
    ) -> None:
        """A stream that begins as RFC 9329 wants it.

        Raises:
            TransportError: there are too many that prove nothing.
        """
        if self._is_crowded(origin):
            raise TransportError("too many streams without an IKE SA")
        self._stream_ids += 1
        path = replace(path, id=self._stream_ids)
        is_kernels = self._plane.tcp_in_kernel and suits_kernel(sock, path.carrier)
        transport = (KernelStream if is_kernels else StreamTransport)(
            sock,
            path,
            self._driver.datagrams,
            self._stream_closed,
            self._loop,
            is_originator=False,
            received=received,
        )
        self._driver.attach(transport)
        self._origins[path] = origin

    def _is_crowded(self, origin: bytes | None) -> bool:
        """Whether strangers have as many streams as they may, in all or of that origin."""
        own = self._file.gateway
        self._origins = {path: self._origins.get(path) for path in self._driver.unproven_streams()}
        origins = list(self._origins.values())
        is_many = origin is not None and origins.count(origin) >= own.strangers_per_address
        return is_many or len(origins) >= own.strangers

    def _stream_closed(self, transport: Transport, error: TransportError) -> None:
        self._driver.detach(transport, error)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(IDLE_STREAM_S / 2)
            self._driver.close_idle_streams(IDLE_STREAM_S)

    # --- what the core says ------------------------------------------------------------------

    def _expired(self, spi_in: int, is_hard: bool) -> None:  # noqa: FBT001 (ExpireCallback)
        self._driver.expired(spi_in, is_hard)

    def _elsewhere(self, spi_in: int, transport: Transport) -> None:
        self._driver.esp_from(spi_in, transport)

    def _mapped(self, spi_in: int, peer: SocketAddress) -> None:
        self._driver.mapped(spi_in, peer)

    def _observe(self, fact: Fact) -> None:
        match fact:
            case Established():
                self._peers[fact.sa] = fact.peer_identity
                lease = fact.lease
                addresses = ", ".join(map(str, lease.addresses)) if lease else "no address"
                logger.info(
                    "%s from %s (%s) established: %s, %s",
                    fact.peer_identity,
                    fact.path,
                    fact.connection,
                    addresses,
                    fact.ike_suite,
                )
            case ChildRefused():
                logger.warning("%s: no Child SA: %s", fact.connection, fact.reason)
            case Closed():
                self._closed(fact)
            case _:
                pass

    def _leave_if_empty(self) -> None:
        if self._stopped.is_set() and not self._driver.live:
            self._emptied.set()

    def _closed(self, fact: Closed) -> None:
        self._leave_if_empty()
        level = logging.WARNING if fact.is_failure else logging.INFO
        who = self._peers.pop(fact.sa, None)  # a stranger's name is in the reason
        logger.log(level, "%s%s%s", f"{who} closed: " if who else "", fact.reason, fact.hint)
        if fact.lease is not None:
            for pool in self._pools:
                self._leases.release(pool, fact.lease.addresses, _now())

    def _lease(self, ask: AskLease) -> Lease | Refusal:
        try:
            addresses = self._leases.lease(ask, _now())
        except StoreError as error:
            logger.warning("no address for %s: %s", ask.peer_identity, error)
            return InternalAddressFailure(str(error))
        settings: PoolSettings = self._file.pools[ask.pool]
        return Lease(addresses, settings.dns, settings.domains)

    # --- control -----------------------------------------------------------------------------

    async def _status(self) -> Answer:
        streams = sum((each.counters for each in self._streams), Counter[str]())
        return status_of(
            *(self._driver, self._plane.name),
            role="gateway",
            name=self._name,
            data_plane_of_streams=self._plane.streams,
            streams=dict(streams),
            certificate=self._keeper.status() if self._keeper else None,
        )

    async def _disconnect(self) -> Answer:
        self.stop()
        return {}

    async def _redirect(self, gateway: str) -> Answer:
        try:
            decoded(encoded(gateway))
        except (Refusal, ValueError):
            raise ControlError(f"{gateway!r} is no host name or address") from None
        return {"redirected": self._driver.redirect_all(gateway)}

    def _description(self) -> str:
        settings = self._file.gateway
        ports = [
            f"UDP {settings.udp_ike_port} and {settings.udp_nat_port}",
            *names_of_ports(settings),
        ]
        return f"{settings.name} on {', '.join(ports)}"


def _wall_clock() -> datetime:
    return datetime.now(UTC)


def _now() -> float:
    """Seconds of the wall clock, which go on over restarts."""
    return _wall_clock().timestamp()
