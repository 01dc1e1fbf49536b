"""Opening carriers, and the ladder of them: staggered attempts, the first that succeeds wins.

What it means to succeed the caller knows (an answered IKE_SA_INIT); here are only sockets and time.
Nothing here outlives a cancellation.
"""

import asyncio
import errno
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Final, Generic, TypeVar

from cryptography import x509

from tunnelwrap.errors import (
    AllCarriersFailed,
    ConnectFailed,
    TlsFailed,
    TransportError,
    TunnelwrapError,
)
from tunnelwrap.path import Carrier, IpAddress, Path, SocketAddress
from tunnelwrap.transport import BatchCallback, ClosedCallback
from tunnelwrap.transport.sockets import completed, family_of, raw, reason_of, writable
from tunnelwrap.transport.udp import UdpTransport

# RFC 9329 §5.1 wants UDP's first message repeated once before TCP begins: after 0.5 s it is.
DELAYS_S: Final = {Carrier.UDP: 0.0, Carrier.TCP: 0.7, Carrier.TLS: 1.0, Carrier.WEBSOCKET: 1.5}
GIVE_UP_S: Final = 10.0  # how long one rung may take
CONNECT_S: Final = 5.0
RESOLVE_S: Final = 5.0

IPV6_AUTOFLOWLABEL: Final = 70  # of linux/in6.h

# Of openssl/x509_vfy.h.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_UNTRUSTED: Final = frozenset((2, 18, 19, 20, 21))
_WRONG_NAME: Final = frozenset((62, 64))

T = TypeVar("T")


async def resolve(host: str, *, timeout_s: float = RESOLVE_S) -> list[IpAddress]:
    """The addresses of a host name, in the system's order of preference.

    Raises:
        ConnectFailed: there are none.
    """
    with suppress(ValueError):
        return [ip_address(host)]
    try:
        async with asyncio.timeout(timeout_s):
            found = await _looked_up(host)
    except TimeoutError:
        raise ConnectFailed(f"{host}: no answer from DNS within {timeout_s:g} s") from None
    except (socket.gaierror, UnicodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ConnectFailed(f"{host}: {words}".lower()) from error
    return list(dict.fromkeys(ip_address(name.partition("%")[0]) for name in found))


async def _looked_up(host: str) -> list[str]:
    """What getaddrinfo finds, in a thread that nobody waits for at the end of the program."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def look_up() -> None:
        try:
            names = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            result: list[str] | Exception = [str(name[0]) for *_, name in names]
        except (OSError, UnicodeError) as error:
            result = error
        with suppress(RuntimeError):  # the loop is closed: nobody is interested
            loop.call_soon_threadsafe(settle, result)

    def settle(result: list[str] | Exception) -> None:
        if found.done():
            return
        if isinstance(result, Exception):
            found.set_exception(result)
        else:
            found.set_result(result)

    threading.Thread(target=look_up, name=f"look up {host}", daemon=True).start()
    return await found


def open_udp(
    peer: SocketAddress,
    on_batch: BatchCallback,
    on_error: ClosedCallback,
    loop: asyncio.AbstractEventLoop,
    *,
    has_marker: bool,
    kernel_esp: bool = False,
) -> UdpTransport:
    """A transport over UDP, of the same port here as there if that can be had.

    Args:
        peer: where to send.
        on_batch: gets what arrives.
        on_error: gets what ICMP says of the peer; nothing is closed by that.
        loop: from which everything is called.
        has_marker: IKE stands behind the non-ESP marker: not on port 500.
        kernel_esp: ESP is the kernel's affair.

    Raises:
        ConnectFailed: there is no route.
        TransportError: the kernel has no ESP.
    """
    sock = _udp_socket(peer, peer.port)
    if SocketAddress.of(sock.getsockname()) == peer:  # nobody but ourselves would hear us
        sock.close()
        sock = _udp_socket(peer, 0)
    path = Path(SocketAddress.of(sock.getsockname()), peer, Carrier.UDP, has_marker)
    return UdpTransport(sock, path, on_batch, on_error, loop, kernel_esp=kernel_esp)


def open_udp_from_any_port(
    peer: SocketAddress,
    on_batch: BatchCallback,
    on_error: ClosedCallback,
    loop: asyncio.AbstractEventLoop,
    *,
    has_marker: bool,
) -> UdpTransport:
    """As ``open_udp``, but the ports of IKE on this host are left to others.

    Raises:
        ConnectFailed: there is no route.
    """
    sock = _udp_socket(peer, 0)
    path = Path(SocketAddress.of(sock.getsockname()), peer, Carrier.UDP, has_marker)
    return UdpTransport(sock, path, on_batch, on_error, loop)


async def open_tcp(peer: SocketAddress, *, timeout_s: float = CONNECT_S) -> socket.socket:
    """A connected TCP socket.

    Raises:
        ConnectFailed: no answer in that time, or a refusal.
    """
    sock = socket.socket(family_of(peer), socket.SOCK_STREAM)
    with _closed_on_failure(sock):
        sock.setblocking(False)
        if sock.family == socket.AF_INET6:
            # RFC 9329 §6.1: the flow label must not change from one connection to the next.
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 0)
        try:
            async with asyncio.timeout(timeout_s):
                await _connect(sock, peer)
        except TimeoutError:
            raise ConnectFailed(f"no answer within {timeout_s:g} s") from None
        except OSError as error:
            raise ConnectFailed(reason_of(error)) from error
    return sock


async def open_tls(
    peer: SocketAddress,
    server_name: str,
    context: ssl.SSLContext,
    *,
    timeout_s: float = CONNECT_S,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    """A TLS connection with the peer's certificate verified.

    Args:
        peer: where to connect.
        server_name: a host name or an IP address that the certificate must bear.
        context: of ``tls_context``.
        timeout_s: for TCP, and once more for TLS.
        session: of an earlier connection with the same context, to be resumed. RFC 9329 §B.3.

    Raises:
        ConnectFailed: there is no TCP connection.
        TlsFailed: the handshake failed, or the certificate is not acceptable.
    """
    try:
        return await _open_tls(peer, server_name, context, timeout_s, session)
    except TlsFailed as error:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _UNTRUSTED:
            issuer = await _issuer_there(peer, server_name, timeout_s)
            raise TlsFailed(f"certificate's issuer is not trusted: {issuer}") from cause
        raise


def tls_context(ca: str | None, keylog: FilePath | None) -> ssl.SSLContext:
    """What TLS connections are made with: version 1.2 or higher, looking like a web client's.

    Args:
        ca: whom to trust, the name of a file or PEM text; None: whom the system trusts.
        keylog: file that gets the secrets, for Wireshark.

    Raises:
        TlsFailed: a file cannot be used.
    """
    is_text = ca is not None and "-----BEGIN" in ca
    try:
        context = ssl.create_default_context(
            cafile=None if is_text else ca, cadata=ca if is_text else None
        )
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        if keylog is not None:
            context.keylog_filename = str(keylog)
    except OSError as error:
        raise TlsFailed(f"TLS cannot be set up: {error}") from error
    return context


@contextmanager
def _closed_on_failure(sock: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise


def _udp_socket(peer: SocketAddress, port: int) -> socket.socket:
    sock = socket.socket(family_of(peer), socket.SOCK_DGRAM)
    with _closed_on_failure(sock):
        with suppress(OSError):  # taken, or not ours to take: then any port
            sock.bind(("", port))
        try:
            sock.connect(raw(peer))
        except OSError as error:
            raise ConnectFailed(reason_of(error)) from error
    return sock


async def _connect(sock: socket.socket, peer: SocketAddress) -> None:
    code = sock.connect_ex(raw(peer))
    if code == errno.EINPROGRESS:
        await writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


async def _open_tls(
    peer: SocketAddress,
    server_name: str,
    context: ssl.SSLContext,
    timeout_s: float,
    session: ssl.SSLSession | None,
) -> ssl.SSLSocket:
    plain = await open_tcp(peer, timeout_s=timeout_s)
    sock = context.wrap_socket(
        plain, server_hostname=server_name, do_handshake_on_connect=False, session=session
    )
    with _closed_on_failure(sock):
        try:
            async with asyncio.timeout(timeout_s):
                await completed(sock, sock.do_handshake)
        except TimeoutError:
            raise TlsFailed(f"TLS handshake not complete within {timeout_s:g} s") from None
        except OSError as error:
            raise TlsFailed(_tls_problem(error, server_name)) from error
    return sock


def _tls_problem(error: OSError, server_name: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _WRONG_NAME:
            return f"certificate is not for {server_name}"
        if error.verify_code == _EXPIRED:
            return "certificate has expired"
        if error.verify_code == _NOT_YET_VALID:
            return "certificate is not valid yet"
        return f"certificate is not acceptable: {error.verify_message}"
    return f"TLS handshake failed: {reason_of(error).removeprefix('TLS: ')}"


async def _issuer_there(peer: SocketAddress, server_name: str, timeout_s: float) -> str:
    """Look a second time, without judging, only to say who it was; nothing else is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with closing(await _open_tls(peer, server_name, context, timeout_s, None)) as sock:
            shown = sock.getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(shown or b"").issuer.rfc4514_string()
    except (TransportError, ValueError):
        return "unknown"


@dataclass(frozen=True, slots=True)
class Rung:
    """One attempt to be made: it begins after its delay, or once all before it have failed."""

    carrier: Carrier
    address: SocketAddress
    delay_s: float  # from the beginning of the climb


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of a rung that was begun and did not win."""

    carrier: Carrier
    result: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Won(Generic[T]):
    """The rung that won, and what its attempt gave."""

    rung: Rung
    value: T


async def climb(
    rungs: Sequence[Rung],
    attempt: Callable[[Rung], Awaitable[T]],
    on_failure: Callable[[Attempt], None],
    *,
    final: tuple[type[TunnelwrapError], ...] = (),
    give_up_s: float = GIVE_UP_S,
) -> Won[T]:
    """Try the rungs, each a little later than the one before, until one succeeds.

    Args:
        rungs: in order of preference.
        attempt: succeeds with a value or fails with a TunnelwrapError; takes back what it did
            when it is cancelled.
        on_failure: told of each failure at once, and in the end of the rungs that were beaten.
        final: errors that no other carrier can mend.
        give_up_s: longest time for one rung.

    Raises:
        AllCarriersFailed: no rung succeeded.
        TunnelwrapError: one of ``final``.
    """
    race = _Race(rungs, attempt, on_failure, final, give_up_s)
    try:
        await race.run()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return race.result()


class _Race(Generic[T]):
    """One climb. Owns: its tasks, and what has become of the rungs so far."""

    def __init__(
        self,
        rungs: Sequence[Rung],
        attempt: Callable[[Rung], Awaitable[T]],
        on_failure: Callable[[Attempt], None],
        final: tuple[type[TunnelwrapError], ...],
        give_up_s: float,
    ) -> None:
        self._rungs = rungs
        self._attempt = attempt
        self._on_failure = on_failure
        self._final = final
        self._give_up_s = give_up_s
        self._loop = asyncio.get_running_loop()
        self._called = [asyncio.Event() for _ in rungs]  # no need to wait for the delay
        self._ends: list[Attempt | None] = [None] * len(rungs)
        self._tasks: list[asyncio.Task[None]] = []
        self._beaten: dict[int, Attempt] = {}
        self._won: Won[T] | None = None

    async def run(self) -> None:
        """Run until there is a winner or nothing is left to try."""
        self._call_next()
        async with asyncio.TaskGroup() as group:
            self._tasks = [group.create_task(self._climb(at)) for at in range(len(self._rungs))]

    def result(self) -> Won[T]:
        """What came of it, told as soon as nothing runs any more."""
        if self._won is not None:
            for at in sorted(self._beaten):
                self._on_failure(self._beaten[at])
            return self._won
        ends = [end for end in self._ends if end is not None]
        raise AllCarriersFailed([(end.carrier.value, end.result) for end in ends])

    async def _climb(self, at: int) -> None:
        rung = self._rungs[at]
        with suppress(TimeoutError):
            async with asyncio.timeout(rung.delay_s):
                await self._called[at].wait()
        begun = self._loop.time()
        try:
            async with asyncio.timeout(self._give_up_s):
                value = await self._attempt(rung)
        except asyncio.CancelledError:
            seconds = self._loop.time() - begun
            self._beaten[at] = Attempt(rung.carrier, f"no answer in {seconds:.1f} s", seconds)
            raise
        except self._final:
            raise
        except (TunnelwrapError, TimeoutError) as error:
            words = str(error) or f"no answer within {self._give_up_s:g} s"
            failed = Attempt(rung.carrier, words, self._loop.time() - begun)
            self._ends[at] = failed
            self._call_next()
            self._on_failure(failed)
        else:
            self._win(rung, value)

    def _win(self, rung: Rung, value: T) -> None:
        self._won = Won(rung, value)
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def _call_next(self) -> None:
        """The first rung that has not failed need not wait."""
        for end, called in zip(self._ends, self._called, strict=True):
            called.set()
            if end is None:
                return
