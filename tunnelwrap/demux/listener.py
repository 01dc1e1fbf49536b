"""The gateway's stream port: it accepts, finds out what comes, and hands IKE streams over.

In order, for each connection:
1. ``_accept``   take what waits, in batches; without descriptors shed it and pause
2. ``_admit``    limits, in all and for each origin
3. ``_meet``     believe a proxy whom it speaks for
4. ``_forward``  who is for a server behind us is sent on unread; only where there are routes
5. ``_judge``    peek; if it is TLS do the handshake; all before the deadline
6. ``_welcome``  an IKE stream goes to its owner, with every octet; strangers to the web site
7. ``_open``     in TLS, find out which of both it is, if that can be known soon
8. ``_leave``    whatever happened: close what was not handed over, give back the place

Owns: the listening sockets, and every connection until it is handed over.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tunnelwrap.demux.binding import bind_all
from tunnelwrap.demux.cover import Cover, OwnSite
from tunnelwrap.demux.forward import Forwarder
from tunnelwrap.demux.opening import Kind, Opening, Secrets
from tunnelwrap.demux.pages import OnePage
from tunnelwrap.demux.places import Places
from tunnelwrap.demux.routing import Backend, Routing
from tunnelwrap.demux.shown import Shown
from tunnelwrap.demux.sniff import Verdict, sniff
from tunnelwrap.demux.stranger import Stranger, cause_of
from tunnelwrap.demux.web import End, Upgrade
from tunnelwrap.errors import Malformed, TransportError
from tunnelwrap.path import Carrier, IpAddress, Path, SocketAddress
from tunnelwrap.wire.proxy import Ends

logger = logging.getLogger(__name__)

OnStream = Callable[[socket.socket, Path, bytes | None, bytes], None]
"""Takes over the socket of an IKE stream, non-blocking, an ``ssl.SSLSocket`` on Carrier.TLS.

The path has other ends than the socket where a proxy spoke for the peer. Then comes the origin that
it counts for, as in ``places``; None: it came through a proxy that spoke for nobody. The octets are
those already read; the stream begins with them, and its prefix is never stripped. On
Carrier.WEBSOCKET, in TLS or not, it begins behind the opening handshake.
If it raises, the socket is still ours, and is closed; OSError says that the peer left meanwhile,
TransportError that there is no room for it.
"""

_BATCH: Final = 64
_FORWARDED: Final = 100  # octets of what a proxy says, in the log
_MIN_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What connections may cost us that are not known to be IKE streams."""

    strangers: int = 1000
    strangers_per_origin: int = 64  # an IPv4 address, or an IPv6 network of 64 bits
    deadline_s: float = 10.0  # from accept to verdict; in TLS, to the end of the handshake
    forwarded: int = 4096  # to servers behind us, or visitors of the web site
    forwarded_per_origin: int = 256


@dataclass(frozen=True, slots=True)
class Site:
    """The web server that strangers see on a port.

    Args:
        shown: what is shown in TLS. Without it HTTP is spoken without TLS, with a reverse proxy,
            whose business TLS is then.
        cover: what there is to see.
        secrets: what can be had by who knows.
        patience_s: how long nothing may come in TLS until the visitor is the site's.
    """

    shown: Shown | None = None
    cover: Cover = field(default_factory=lambda: OwnSite(OnePage()))
    secrets: Secrets = field(default_factory=Secrets)
    patience_s: float = 3.0


_DEFAULT_LIMITS: Final = Limits()
_NO_ROUTES: Final = Routing()


class Listener:
    """A TCP port for IKE streams, bare and, beside a web site, in it; it turns away all the rest.

    ``counters`` tell what became of connections: accepted or shed; tls where one begins with
    it; then ike_tcp, ike_tls, http or other; ike_ws where http became a WebSocket; acme where a
    proof was shown; without a verdict timed_out, closed_early, tls_failed.
    Of those for servers behind us: tls_passed, ssh, openvpn, http, other or silent, and then "to"
    with the server, unreachable or shed. Those for whom a proxy spoke are proxied; proxy_refused
    is one that should have and did not, or did and should not have. exhausted counts pauses for
    want of descriptors, failed what is our own fault.

    Args:
        addresses: where to listen; IPv6 addresses serve IPv6 only. Or sockets that do so already,
            which are ours from now on.
        port: the same on all of them; 0 lets the host choose one for each.
        on_stream: takes over IKE streams.
        site: what else there is to see; without one all but bare IKE streams is closed.
        limits: what strangers may cost.
        routing: who is for servers behind us.

    Raises:
        TransportError: an address cannot be had.
    """

    def __init__(
        self,
        addresses: Sequence[IpAddress | socket.socket],
        port: int,
        on_stream: OnStream,
        site: Site | None = None,
        limits: Limits = _DEFAULT_LIMITS,
        routing: Routing = _NO_ROUTES,
    ) -> None:
        self._on_stream, self._site, self._limits = on_stream, site, limits
        self._shown = site.shown if site else None
        self._is_behind_proxy = site is not None and site.shown is None
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        self._pause: asyncio.TimerHandle | None = None
        self._pause_s = _MIN_PAUSE_S
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers = Places(limits.strangers, limits.strangers_per_origin)
        self._forwarded = Places(limits.forwarded, limits.forwarded_per_origin)
        self._routing = routing
        self._forwarder = Forwarder(routing)
        self._reserve: socket.socket | None = None
        self._sockets = bind_all(addresses, port)
        self._ports = tuple(int(each.getsockname()[1]) for each in self._sockets)
        self.counters: Counter[str] = Counter()

    @property
    def ports(self) -> tuple[int, ...]:
        """The port on each address, in their order."""
        return self._ports

    async def run(self) -> None:
        """Serve until ``close`` is called or the task is cancelled; call it once."""
        async with asyncio.TaskGroup() as tasks:
            try:
                self._start_accepting(tasks)
                await self._closing.wait()
            finally:
                self.close()

    def close(self) -> None:
        """Close the port and all that is not handed over; calling twice is fine."""
        self._closing.set()
        self._stop_accepting()
        self._close_reserve()
        for listening in self._sockets:
            listening.close()
        self._sockets = []
        for task in self._tasks:
            task.cancel()

    def _start_accepting(self, tasks: asyncio.TaskGroup) -> None:
        self._pause = None
        if self._sockets:
            self._open_reserve()
        for listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening, tasks)

    def _stop_accepting(self) -> None:
        for listening in self._sockets:
            self._loop.remove_reader(listening)
        if self._pause is not None:
            self._pause.cancel()

    def _open_reserve(self) -> None:
        """Keep a descriptor by, for telling those who wait when there are no more."""
        with suppress(OSError):
            self._reserve = self._reserve or socket.socket()

    def _close_reserve(self) -> None:
        if self._reserve is not None:
            self._reserve.close()
        self._reserve = None

    def _accept(self, listening: socket.socket, tasks: asyncio.TaskGroup) -> None:
        for _ in range(_BATCH):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return  # who waits behind an aborted one makes the socket readable again
            except OSError as error:
                self._pause_accepting(listening, tasks, error)
                return
            self._pause_s = _MIN_PAUSE_S
            ends = Ends(SocketAddress.of(address), SocketAddress.of(sock.getsockname()))
            self._admit(sock, ends, tasks)

    def _pause_accepting(
        self, listening: socket.socket, tasks: asyncio.TaskGroup, error: OSError
    ) -> None:
        """Out of descriptors: without a pause the loop would spin, and starve those we serve."""
        logger.warning("no connections for %.1f s: %s", self._pause_s, error)
        self.counters["exhausted"] += 1
        self._shed_waiting(listening)
        self._stop_accepting()
        self._pause = self._loop.call_later(self._pause_s, self._start_accepting, tasks)
        self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)

    def _shed_waiting(self, listening: socket.socket) -> None:
        """Close who waits; an end that is seen is better than silence."""
        self._close_reserve()
        with suppress(OSError):
            for _ in range(_BATCH):
                listening.accept()[0].close()
                self.counters["shed"] += 1
        self._open_reserve()

    def _admit(self, sock: socket.socket, ends: Ends, tasks: asyncio.TaskGroup) -> None:
        ip = ends.source.ip
        # A proxy speaks for many; each of them is counted when it is known, if ever.
        is_proxy = self._is_behind_proxy or self._routing.trusts(ip)
        place = self._strangers.take(None if is_proxy else ip)
        if place is None:
            self.counters["shed"] += 1
            sock.close()
            return
        self.counters["accepted"] += 1
        stranger = Stranger(sock, ends, place)
        task = tasks.create_task(self._serve(stranger))
        self._tasks.add(task)
        # Not in the task itself: one that is cancelled before its first step runs nothing.
        task.add_done_callback(partial(self._leave, stranger))

    def _leave(self, stranger: Stranger, task: asyncio.Task[None]) -> None:
        stranger.close()
        self._tasks.discard(task)

    async def _serve(self, stranger: Stranger) -> None:
        deadline = self._loop.time() + self._limits.deadline_s
        tell = partial(self._count, stranger)
        try:
            async with asyncio.timeout_at(deadline):
                if not await self._meet(stranger):
                    return
                backend = await self._forwarder.backend_for(stranger.sock, tell)
            if backend is not None:
                await self._forward(stranger, backend)
                return
            async with asyncio.timeout_at(deadline):
                verdict = await self._judge(stranger)
            if verdict is None:
                await stranger.finish()
            else:
                await self._welcome(stranger, verdict)
        except Malformed:
            self._count(stranger, "proxy_refused")
        except TransportError:
            self._count(stranger, "shed")
        except (OSError, EOFError) as error:
            stranger.drain()
            self._count(stranger, cause_of(error))
        except Exception:  # one connection's failure must not end the others
            self.counters["failed"] += 1
            logger.exception("%s: failed", stranger)

    async def _meet(self, stranger: Stranger) -> bool:
        """Learn who it is, and whether that one can be taken in, if it was a proxy that came."""
        ends = await self._forwarder.introduced(stranger.sock, stranger.ends)
        if ends is stranger.ends:
            return True
        stranger.ends = ends
        self._count(stranger, "proxied")
        has_place = stranger.place.belongs_to(ends.source.ip)
        if not has_place:
            self._count(stranger, "shed")
        return has_place

    async def _forward(self, stranger: Stranger, backend: Backend) -> None:
        """Go between it and its server; it is no stranger any more, and has another place."""
        if not self._settle(stranger):
            return
        tell = partial(self._count, stranger)
        if await self._forwarder.forward(stranger.sock, stranger.ends, backend, tell):
            await stranger.finish()

    def _settle(self, stranger: Stranger) -> bool:
        """Give it a place among those who stay longer; whether there is one."""
        if self._is_behind_proxy or stranger.place.origin is None:
            return True  # it came by a proxy, which keeps its own count: it has one already
        place = self._forwarded.take(stranger.ends.source.ip)
        if place is None:
            self._count(stranger, "shed")
            return False
        stranger.place.leave()
        stranger.place = place
        return True

    async def _judge(self, stranger: Stranger) -> Verdict | None:
        """What it begins with, in TLS if it is that; None: it has seen a proof, and is done."""
        verdict = await stranger.peek()
        if self._shown is None or not stranger.means_tls():
            return verdict
        self._count(stranger, "tls")
        await stranger.read_hello()
        proof = self._shown.proof_for(stranger.hello)
        await stranger.begin_tls(proof or self._shown.context_for(stranger.hello))
        if proof is not None:
            self._count(stranger, "acme")
            return None
        return Verdict.TLS

    async def _welcome(self, stranger: Stranger, verdict: Verdict) -> None:
        site = self._site
        if stranger.is_tls and site is not None:
            await self._open(stranger, site)
        elif verdict is Verdict.IKE_STREAM and (site is None or site.secrets.gate is None):
            self._hand_over(stranger, b"")
        else:
            self._count(stranger, verdict.value)
            if site is None:
                await stranger.finish()
            elif self._settle(stranger):
                await self._part(stranger, self._without_tls(stranger, site))

    async def _open(self, stranger: Stranger, site: Site) -> None:
        """In TLS: who opens nothing that is ours is the site's, which is ready from the start."""
        async with site.cover.beside(stranger) as host:
            opening = await self._opening(stranger, site)
            if opening.kind is Kind.STREAM:
                self._hand_over(stranger, opening.received)
                return
            is_web = opening.answer or sniff(opening.received) is Verdict.HTTP
            self._count(stranger, Verdict.HTTP.value if is_web else Verdict.OTHER.value)
            if opening.kind is Kind.WEBSOCKET:
                await stranger.send(opening.answer)
                stranger.carrier = Carrier.WEBSOCKET
                self._hand_over(stranger, opening.received)
                return
            if self._settle(stranger):
                await self._part(stranger, host(opening.received))

    async def _opening(self, stranger: Stranger, site: Site) -> Opening:
        """What it opens; nobody is kept from the site for long, lest its clock be noticed."""
        received, secrets = b"", site.secrets
        has_certificate = stranger.has_certificate
        with suppress(TimeoutError):
            async with asyncio.timeout(site.patience_s):
                while octets := await stranger.receive():
                    received += octets
                    opening = secrets.judge(received, has_certificate=has_certificate)
                    if opening is not None:
                        return opening
                if not received:
                    raise EOFError
        return Opening(Kind.SITE, received)

    async def _without_tls(self, stranger: Stranger, site: Site) -> Upgrade | End:
        """Behind a proxy that has TLS, it is served; else it is told that TLS is expected."""
        if not self._is_behind_proxy:
            return await site.cover.correct(stranger)
        async with site.cover.beside(stranger) as host:
            return await host(b"")

    async def _part(self, stranger: Stranger, served: Awaitable[Upgrade | End]) -> None:
        """Serve it, and end as the site wants it, if nothing else comes of it."""
        with suppress(OSError):
            end = await served
            if isinstance(end, Upgrade):
                self._hand_over_websocket(stranger, end)
            elif end is End.LINGER:
                await stranger.finish()
            elif end is End.CLOSE and not stranger.has_ended():
                stranger.close_as_kernels_do()
            else:
                stranger.drain()  # no close_notify after the visitor's, and none in a huff

    def _hand_over(self, stranger: Stranger, received: bytes) -> None:
        self._on_stream(stranger.sock, stranger.path, stranger.place.origin, received)
        stranger.is_handed_over = True
        self._count(stranger, f"ike_{stranger.carrier.value}")

    def _hand_over_websocket(self, stranger: Stranger, upgrade: Upgrade) -> None:
        stranger.carrier = Carrier.WEBSOCKET
        if self._is_behind_proxy:
            client = upgrade.request.fields.get(b"x-forwarded-for", b"unknown")[:_FORWARDED]
            logger.info("%s: forwarded for %s", stranger, ascii(client.decode("latin-1")))
        self._hand_over(stranger, upgrade.received)

    def _count(self, stranger: Stranger, what: str) -> None:
        self.counters[what] += 1
        logger.debug("%s: %s", stranger, what)
