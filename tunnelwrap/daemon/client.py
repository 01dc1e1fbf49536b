"""The client: climbs the ladder of carriers, keeps the tunnel, takes everything back at the end.

Flow: ``run`` -> ``_establish``: each rung opens its carrier and sends a fresh IKE_SA_INIT; the
first that is answered goes on to IKE_AUTH -> ``_take`` configures the host -> ``_keep``: a stream
that breaks is opened again for the same IKE SA (RFC 9329 §6.1); a gateway that is gone is looked
for from the first rung on. ``_reauthenticate`` makes a new IKE SA by the same rung, when it is
time, and takes it for the old one.
With a Child SA on demand the tunnel is there without one: the host is configured for what is asked
for, the data plane calls for the Child SA, and ``_follow_child`` takes what came of it.
Owns: the driver, the host's changes, the control socket.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Final

from tunnelwrap.config.client import ClientFile
from tunnelwrap.config.compose import connection_policies
from tunnelwrap.daemon.control import Answer, ControlServer, check_free
from tunnelwrap.daemon.driver import Driver, Fact
from tunnelwrap.daemon.events import Attempt, Closed, Established, Event, Lost
from tunnelwrap.daemon.host import Host, Inside, check_rights
from tunnelwrap.daemon.planes import Listeners, choose_plane, suites_of
from tunnelwrap.daemon.reach import Dialler
from tunnelwrap.daemon.recording import Recorder
from tunnelwrap.daemon.status import status_of
from tunnelwrap.daemon.way import Way
from tunnelwrap.dataplane.userspace import tun_mtu_for
from tunnelwrap.dataplane.xfrm_traps import TRAP_SYSCTLS
from tunnelwrap.errors import (
    AllCarriersFailed,
    ConnectFailed,
    DataPlaneError,
    PeerRefused,
    RedirectedTo,
    TransportError,
    TunnelwrapError,
)
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike import outputs
from tunnelwrap.ike.child_sa import ChildSa
from tunnelwrap.ike.child_setup import selectors_of
from tunnelwrap.ike.endpoint import Endpoint
from tunnelwrap.path import Carrier, IpAddress, SocketAddress
from tunnelwrap.transport import Transport
from tunnelwrap.transport.dial import Attempt as Dialled
from tunnelwrap.transport.dial import Rung, climb, open_udp, resolve
from tunnelwrap.transport.udp import UdpTransport

logger = logging.getLogger(__name__)

MAX_TUN_MTU: Final = 1500
AUTHENTICATE_S: Final = 5.0
"""How long IKE_AUTH may stay unanswered on UDP before a stream is tried: its messages are large,
and networks that drop fragments let IKE_SA_INIT pass."""

CLOSE_S: Final = 2.0  # how long the gateway may take to answer our delete
REDIAL_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # pauses before tries; the last again and again
REAUTHENTICATE_S: Final = 10.0  # for a new IKE SA while the old one still serves
MAX_REDIRECTS: Final = 5
REDIRECT_LOOP_S: Final = 300.0  # so many within this time are a loop. RFC 5685 §7
RECONNECT_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)

Tell = Callable[[Event], None]


class Client:
    """One connection to one gateway.

    Args:
        file: the configuration.
        name: of the instance.
        carriers: the rungs of the ladder, from the first to the last.
        tls_keylog: file that gets the TLS secrets, for Wireshark; None: nobody.
        tell: gets what happens.
        recorder: writes down what Wireshark needs.

    Raises:
        TunnelwrapError: another one runs with this configuration, or the TUN device cannot be had.
    """

    def __init__(
        self,
        file: ClientFile,
        name: str,
        carriers: Sequence[Carrier],
        tls_keylog: Path | None,
        tell: Tell,
        recorder: Recorder,
    ) -> None:
        check_rights()
        check_free(file.client.control_socket)
        self._name = name
        self._settings = file.client
        self._policy = connection_policies(file)[0]
        self._carriers = tuple(carriers)
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._dialler = Dialler(
            self._settings, tls_keylog, self._loop, tcp_in_kernel=file.client.tcp_in_kernel
        )
        self._started = self._loop.time()
        self._task: asyncio.Task[object] | None = None
        self._is_stopping = False
        self._ways: dict[int, Way] = {}
        self._attempts: list[Attempt] = []
        self._way: Way | None = None
        self._retired: set[Way] = set()  # replaced; their deletes are under way
        self._addresses: list[IpAddress] = []  # of the gateway
        self._target = self._settings.gateway  # or to which that one has sent us
        self._redirected_from: IpAddress | None = None
        self._redirects: deque[float] = deque(maxlen=MAX_REDIRECTS)  # when we were sent
        self._inside: Inside | None = None  # what the host is configured for
        self._host = Host(name, self._settings.state_directory)
        listeners = Listeners(self._expired, None, self._mapped)
        settings, policies = self._settings, [self._policy]
        self._plane = choose_plane(
            *(settings.data_plane, self._host, MAX_TUN_MTU, listeners, policies, name),
            tcp_in_kernel=settings.tcp_in_kernel,
        )
        endpoint = Endpoint(
            os.urandom,
            lambda: datetime.now(UTC),
            forces_encapsulation=self._plane.forces_encapsulation(bare_esp=settings.bare_esp),
            exports_keys=recorder.takes_keys,
            reserve_spi=self._plane.plane.reserve_spi,
            compresses=self._plane.compresses,
            has_beet=self._plane.has_beet,
        )
        logger.debug("= %s", self._plane)
        self._driver = Driver(
            endpoint, self._plane.plane, self._loop, self._observe, recorder=recorder
        )
        self._control = ControlServer(
            self._settings.control_socket,
            {
                "status": self._status,
                "kernel": self._plane.report,
                "disconnect": self._disconnect,
            },
        )

    def stop(self) -> None:
        """End it in good order: whatever is under way is given up."""
        if not self._is_stopping and self._task is not None:
            self._is_stopping = True
            self._task.cancel()

    async def run(self) -> None:
        """Connect and keep the tunnel until told to stop, or until the gateway ends it.

        Raises:
            TunnelwrapError: there is no tunnel to be had, or the gateway ended it.
        """
        self._task = asyncio.current_task()
        try:
            await self._control.start()
            if self._plane.if_id:
                self._host.make_interface(
                    self._plane.if_id, parts_packets=self._plane.tcp_in_kernel
                )
            await self._connect_and_keep()
        except asyncio.CancelledError:
            if not self._is_stopping or self._task is None:
                raise
            self._task.uncancel()
            await self._say_goodbye("disconnected")
            self._tell(Closed(reason="disconnected"))
            logger.info("disconnected")
        except TunnelwrapError as error:
            self._is_stopping = True  # a signal would end it no sooner
            await self._say_goodbye(str(error))
            self._tell(Closed(reason=str(error)))
            raise
        finally:
            self._host.close()
            self._driver.close()
            self._control.close()

    async def _connect_and_keep(self) -> None:
        """The first connection must succeed; later ones are tried again and again."""
        self._addresses = await resolve(self._settings.gateway)
        way = await self._establish()
        while True:
            end = await self._keep(way)
            if isinstance(end, RedirectedTo):
                way = await self._move(end)
                continue
            if not end.is_failure:
                raise ConnectFailed(f"the gateway ended the tunnel: {end.reason}")
            logger.warning("lost the gateway (%s), looking for it", end.reason)
            self._tell(Lost(reason=end.reason))
            way = await self._reestablish()

    async def _move(self, redirect: RedirectedTo) -> Way:
        """Go where the gateway sends us; if there is nobody, back to where we came from."""
        self._started = self._loop.time()
        try:
            await self._follow(redirect)
            return await self._establish()
        except TransportError as error:
            logger.warning("no way to %s: %s", redirect.gateway, error)
            self._target, self._redirected_from = self._settings.gateway, None
            return await self._reestablish()

    async def _follow(self, redirect: RedirectedTo) -> None:
        """Turn to another gateway, under the same policy. RFC 5685 §3, §7.

        Raises:
            ConnectFailed: they send us round in circles, or it has no address.
        """
        now, past = self._loop.time(), self._redirects
        if len(past) == MAX_REDIRECTS and now - past[0] < REDIRECT_LOOP_S:
            raise ConnectFailed(f"redirected {MAX_REDIRECTS} times in a row, at last from here")
        past.append(now)
        logger.info("the gateway sends us to %s", redirect.gateway)
        came_from = self._addresses[0]
        self._addresses = await resolve(redirect.gateway)
        self._target, self._redirected_from = redirect.gateway, came_from
        self._admit_gateway()

    def _admit_gateway(self) -> None:
        """The gateway has other addresses: they must be reached outside the tunnel."""
        if self._inside is not None:
            self._configure_host(replace(self._inside, gateways=self._gateways))

    async def _reestablish(self) -> Way:
        for number, pause in enumerate(chain(RECONNECT_S, repeat(RECONNECT_S[-1]))):
            await asyncio.sleep(pause)
            self._started = self._loop.time()
            try:
                if number:  # it is not where it was
                    await self._resolve_again()
                return await self._establish()
            except TransportError as error:
                logger.info("no way to the gateway yet: %s", error)
        raise AssertionError("the pauses never end")

    async def _resolve_again(self) -> None:
        """Ask for the gateway's addresses; without an answer, those known may still be good.

        The name servers may be in the tunnel, which is down. The host stays configured for it, so
        that nothing leaves in clear meanwhile; but a new address must be reached outside.
        """
        try:
            self._addresses = await resolve(self._target)
        except TransportError as error:
            logger.debug("= %s", error)
            return
        self._admit_gateway()

    # --- the ladder --------------------------------------------------------------------------

    async def _establish(self) -> Way:
        """Connect, at the gateway or wherever it sends us, each time from the first rung on.

        Raises:
            AllCarriersFailed: no rung was answered.
            PeerRefused: the gateway does not want us.
            ConnectFailed: gateways send us round in circles.
        """
        while True:
            try:
                return await self._climb_ladder()
            except RedirectedTo as redirect:
                await self._follow(redirect)

    async def _climb_ladder(self) -> Way:
        """Climb until a rung has an IKE SA with a Child SA, and configure the host for it.

        Raises:
            AllCarriersFailed: no rung was answered.
            PeerRefused: the gateway does not want us.
            RedirectedTo: it wants us elsewhere.
        """
        self._attempts = []
        rungs = self._rungs()
        while True:
            way = await self._climb(rungs)
            rungs = rungs[rungs.index(way.rung) + 1 :]
            try:
                established = await self._authenticate(way, is_last=not rungs)
            except TransportError as error:
                self._driver.abandon(way.sa, str(error))
                self._forget(way)
                self._note(Dialled(way.rung.carrier, str(error), self._elapsed()))
            else:
                self._take(way, established)
                return way

    async def _climb(self, rungs: Sequence[Rung]) -> Way:
        try:
            won = await climb(rungs, self._knock, self._note, final=(RedirectedTo,))
        except AllCarriersFailed as error:
            raise AllCarriersFailed(self._failures()) from error
        return won.value

    def _failures(self) -> list[tuple[str, str]]:
        """Why no carrier will do, in their order; those with the same reason together."""
        order = [carrier.value for carrier in self._carriers]
        carriers: dict[str, list[str]] = {}
        for each in sorted(self._attempts, key=lambda each: order.index(each.carrier)):
            if each.carrier not in carriers.setdefault(each.result, []):
                carriers[each.result].append(each.carrier)
        return [(", ".join(names), reason) for reason, names in carriers.items()]

    def _rungs(self) -> list[Rung]:
        return self._dialler.rungs(self._carriers, self._addresses)

    async def _knock(self, rung: Rung) -> Way:
        """Open a carrier, send a fresh IKE_SA_INIT and wait for its answer."""
        return await self._begin(await self._open(rung))

    async def _begin(self, way: Way, replaces: int | None = None) -> Way:
        """Send a fresh IKE_SA_INIT and wait for its answer."""
        try:
            way.sa = self._driver.initiate(
                self._policy,
                way.first,
                way.floats_to,
                replaces=replaces,
                redirected_from=self._redirected_from,
            )
            self._ways[way.sa] = way
            await way.answered
        except BaseException:
            self._driver.abandon(way.sa, "another carrier was faster")
            self._forget(way)
            raise
        return way

    async def _open(self, rung: Rung) -> Way:
        if rung.carrier is not Carrier.UDP:
            return Way(rung, await self._open_stream(rung), None)
        settings = self._settings
        nat = SocketAddress(rung.address.ip, settings.udp_nat_port)
        floats_to = self._open_udp(nat, has_marker=True)
        if settings.udp_ike_port == settings.udp_nat_port:
            return Way(rung, floats_to, None)
        try:
            return Way(rung, self._open_udp(rung.address, has_marker=False), floats_to)
        except TransportError:
            floats_to.close()
            raise

    def _open_udp(self, address: SocketAddress, *, has_marker: bool) -> UdpTransport:
        return open_udp(
            *(address, self._driver.datagrams, self._lost, self._loop),
            has_marker=has_marker,
            kernel_esp=self._plane.kernel_esp,
        )

    async def _open_stream(self, rung: Rung) -> Transport:
        name = self._settings.server_name or self._target
        return await self._dialler.open_stream(rung, name, self._driver.datagrams, self._lost)

    @property
    def _gateways(self) -> tuple[IpAddress, ...]:
        """Its addresses, in an order that is always the same: DNS turns them round."""
        return tuple(sorted(self._addresses, key=str))

    async def _authenticate(self, way: Way, *, is_last: bool) -> outputs.Established:
        """Go on with IKE_AUTH; on UDP not for long, as long as there are other carriers.

        Raises:
            TransportError: no answer, or the stream broke.
            PeerRefused: the gateway does not want us; no other carrier would help.
        """
        self._driver.authenticate(way.sa)
        is_hasty = way.rung.carrier is Carrier.UDP and not is_last
        try:
            async with asyncio.timeout(AUTHENTICATE_S if is_hasty else None):
                established = await asyncio.shield(way.established)
                if not self._policy.child.on_demand:
                    await asyncio.shield(way.decided)
        except TimeoutError:
            raise ConnectFailed(f"IKE_AUTH unanswered for {AUTHENTICATE_S:.0f} s") from None
        if way.refusal:
            self._driver.close_sa(way.sa, "no Child SA")
            raise PeerRefused(NotifyType.NO_PROPOSAL_CHOSEN, f"no Child SA: {way.refusal}")
        return established

    # --- the tunnel --------------------------------------------------------------------------

    def _take(self, way: Way, established: outputs.Established) -> None:
        """There is a tunnel: configure the host for it, and say so."""
        self._way = way
        child = self._child(way)
        self._carry(way, child, established.lease)
        self._note(Dialled(way.rung.carrier, "established", self._elapsed()))
        addresses = established.lease.addresses if established.lease else ()
        event = Established(
            carrier=way.rung.carrier.value,
            seconds=self._elapsed(),
            ike_suite=established.ike_suite,
            esp_suite=str(child.suite) if child else None,
            addresses=tuple(map(str, addresses)),
            attempts=tuple(self._attempts),
        )
        self._tell(event)
        failed = [f"{each.carrier}: {each.result}" for each in self._attempts[:-1]]
        logger.info(
            "connected to %s over %s in %.1f s%s",
            *(established.peer_identity, event.carrier, event.seconds),
            f" ({'; '.join(failed)})" if failed else "",
        )

    def _child(self, way: Way) -> ChildSa | None:
        """The Child SA; None where it waits for traffic."""
        live = self._driver.live.get(way.sa)
        if live is None or not (live.children or self._policy.child.on_demand):
            raise DataPlaneError(f"no tunnel: {way.end.reason if way.end else 'no Child SA'}")
        return next(iter(live.children.values()), None)

    def _carry(self, way: Way, child: ChildSa | None, lease: outputs.Lease | None) -> None:
        """From now on the host's packets go this way."""
        if self._policy.child.on_demand:
            self._driver.await_traffic(way.sa, self._policy.child)
        self._configure_host(self._inside_of(way, child, lease))

    def _follow_child(self, way: Way) -> None:
        """The gateway may have agreed to less than was asked for on demand."""
        live = self._driver.live.get(way.sa)
        if live is not None and live.children and self._policy.child.on_demand:
            lease = live.established.lease
            self._configure_host(self._inside_of(way, self._child(way), lease))

    def _inside_of(self, way: Way, child: ChildSa | None, lease: outputs.Lease | None) -> Inside:
        """Child SAs on demand may come with any suite: the MTU is good for all of them."""
        is_fixed = child is not None and not self._policy.child.on_demand
        suites = [child.suite] if child and is_fixed else suites_of([self._policy])
        wanted = self._policy.child.ts_peer or selectors_of((way.last.path.peer.ip,))
        selected = [selector.networks() for selector in (child.ts_peer if child else wanted)]
        mtus = (tun_mtu_for(way.last.max_datagram, suite) for suite in suites)
        return Inside(
            mtu=min(*mtus, MAX_TUN_MTU),
            addresses=lease.addresses if lease else (),
            networks=tuple(chain.from_iterable(selected)),
            gateways=self._gateways,
            dns=lease.dns if lease and self._settings.dns else (),
            domains=lease.domains if lease else (),
        )

    def _configure_host(self, inside: Inside) -> None:
        """Configure it anew, if anything is to be other than it is.

        What was there is taken back before, or the host would take it for its own.
        """
        if inside != self._inside:
            self._host.undo()
            self._inside = None
            self._keep_first_packets()
            self._host.apply(inside.changes(self._host.device))
            self._inside = inside

    def _keep_first_packets(self) -> None:
        """Have the kernel keep what comes before a Child SA on demand is there."""
        if self._policy.child.on_demand and self._plane.kernel is not None:
            for key, value in TRAP_SYSCTLS:
                self._host.set_where_possible(key, value, "first packets on demand are lost")

    async def _keep(self, way: Way) -> outputs.Closed | RedirectedTo:
        """Open a broken stream again as often as it breaks, until the IKE SA ends or we must go."""
        while way.end is None:
            await way.changed.wait()
            way.changed.clear()
            if way.redirect is not None:
                break
            self._follow_child(way)
            if way.is_lost and way.end is None:
                await self._redial(way)
            elif way.is_due and way.end is None:
                way = await self._reauthenticate(way)
        if way.redirect is not None:  # it goes when its delete is answered
            self._retired.add(way)
            self._bury(way)
            return way.redirect
        assert way.end is not None, "the loop has ended"
        self._forget(way)
        return way.end

    async def _reauthenticate(self, old: Way) -> Way:
        """A new IKE SA for the old one, make before break; without one, the old one serves on."""
        old.is_due = False
        try:
            async with asyncio.timeout(REAUTHENTICATE_S):
                new, established = await self._replacement(old)
        except RedirectedTo as redirect:
            self._driver.close_sa(old.sa, str(redirect))
            old.redirect = redirect
            old.changed.set()
            return old
        except (TunnelwrapError, TimeoutError) as error:
            logger.warning("could not authenticate again yet: %s", str(error) or "no answer")
            return old
        self._way = new
        self._carry(new, self._child(new), established.lease)
        logger.info("authenticated again to %s", established.peer_identity)
        self._retired.add(old)
        self._bury(old)
        return new

    async def _replacement(self, old: Way) -> tuple[Way, outputs.Established]:
        is_udp = old.rung.carrier is Carrier.UDP  # keeps its ports, which a stream cannot share
        fresh = Way(old.rung, old.last, None) if is_udp else await self._open(old.rung)
        new = await self._begin(fresh, replaces=old.sa)
        try:
            return new, await self._authenticate(new, is_last=True)
        except BaseException:
            self._driver.abandon(new.sa, "the old IKE SA serves on")
            self._forget(new)
            raise

    def _bury(self, way: Way) -> None:
        """Close what carried an IKE SA that is replaced, as soon as its delete is answered."""
        if way in self._retired and way.end is not None:
            self._retired.remove(way)
            self._forget(way)

    async def _redial(self, way: Way) -> None:
        logger.info("the stream to the gateway broke, opening it again")
        for pause in chain(REDIAL_S, repeat(REDIAL_S[-1])):
            await asyncio.sleep(pause)
            if way.end is not None:
                return
            try:
                transport = await self._open_stream(way.rung)
            except TransportError as error:
                logger.debug("= %s: %s", way.rung.address, error)
                continue
            way.replace(transport)
            self._driver.path_up(way.sa, transport)
            return

    async def _say_goodbye(self, reason: str) -> None:
        """Delete the IKE SA; a gateway that does not answer is left."""
        way = self._way
        if way is None or way.end is not None:
            return
        self._driver.close_sa(way.sa, reason)
        try:
            async with asyncio.timeout(CLOSE_S):
                while way.end is None:
                    await way.changed.wait()
                    way.changed.clear()
        except TimeoutError:
            logger.info("the gateway did not answer our delete")

    # --- what the core and the transports say ------------------------------------------------

    def _observe(self, fact: Fact) -> None:
        way = self._ways.get(fact.sa)
        if isinstance(fact, outputs.ChildRefused) and way is self._way:
            logger.warning("no Child SA: %s", fact.reason)
        if way is not None and not isinstance(fact, outputs.Rekeyed):
            way.take(fact)
            self._bury(way)

    def _lost(self, transport: Transport, error: TransportError) -> None:
        if transport.path.carrier.is_reliable:  # ICMP, which anyone can forge, ends no UDP
            self._driver.detach(transport, error)
        for way in self._ways.values():
            if transport in (way.first, way.last):
                way.lose(error)

    def _expired(self, spi_in: int, is_hard: bool) -> None:  # noqa: FBT001 (ExpireCallback)
        self._driver.expired(spi_in, is_hard)

    def _mapped(self, spi_in: int, peer: SocketAddress) -> None:
        self._driver.mapped(spi_in, peer)

    def _forget(self, way: Way) -> None:
        self._ways.pop(way.sa, None)
        used = {each for other in self._ways.values() for each in (other.first, other.last)}
        for transport in {way.first, way.last} - used:
            self._driver.detach(transport)
            transport.close()

    def _note(self, dialled: Dialled) -> None:
        attempt = Attempt(
            carrier=dialled.carrier.value,
            result=dialled.result,
            seconds=round(dialled.seconds, 3),
        )
        self._attempts.append(attempt)
        self._tell(attempt)

    def _elapsed(self) -> float:
        return round(self._loop.time() - self._started, 3)

    # --- control -----------------------------------------------------------------------------

    async def _status(self) -> Answer:
        return status_of(
            *(self._driver, self._plane.name),
            role="client",
            name=self._name,
            gateway=self._settings.gateway,
        )

    async def _disconnect(self) -> Answer:
        self._loop.call_soon(self.stop)
        return {}
