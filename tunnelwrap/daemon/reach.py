"""The ways to a gateway, as a configuration has them: rungs of the ladder, and streams."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tunnelwrap.config.client import Reach
from tunnelwrap.errors import ConnectFailed
from tunnelwrap.path import Carrier, IpAddress, SocketAddress
from tunnelwrap.path import Path as NetworkPath
from tunnelwrap.store.secret_file import write_private
from tunnelwrap.transport import BatchCallback, ClosedCallback
from tunnelwrap.transport.dial import (
    DELAYS_S,
    Rung,
    open_tcp,
    open_tls,
    tls_context,
)
from tunnelwrap.transport.kernel_stream import KernelStream, suits_kernel
from tunnelwrap.transport.sockets import completed, reason_of
from tunnelwrap.transport.stream import StreamTransport
from tunnelwrap.wire.prelude import request_of
from tunnelwrap.wire.websocket import authority

SECOND_ADDRESS_S: Final = 0.25  # head start of a gateway's first address before its second


class Dialler:
    """Knows ports and certificates.

    Args:
        settings: the configuration.
        tls_keylog: file that gets the TLS secrets, for Wireshark; None: nobody.
        loop: from which the transports are called.
        tcp_in_kernel: leave ESP on bare TCP to the kernel.
    """

    def __init__(
        self,
        settings: Reach,
        tls_keylog: Path | None,
        loop: asyncio.AbstractEventLoop,
        *,
        tcp_in_kernel: bool = False,
    ) -> None:
        self._settings = settings
        self._tcp_in_kernel = tcp_in_kernel
        self._tls = tls_context(settings.tls_ca.pem if settings.tls_ca else None, tls_keylog)
        if settings.gate and settings.gate.certificate and settings.gate.key:
            own = settings.gate.certificate.pem.encode() + settings.gate.key.pem.reveal()
            _show_certificate(self._tls, own)
        self._loop = loop
        self._stream_ids = 0

    def rungs(self, carriers: Sequence[Carrier], addresses: Sequence[IpAddress]) -> list[Rung]:
        """Every carrier in turn, each to the gateway's first two addresses."""
        delays = sorted(DELAYS_S[carrier] for carrier in carriers)
        return [
            Rung(
                carrier,
                SocketAddress(address, self._port(carrier)),
                (delay - delays[0]) + SECOND_ADDRESS_S * number,
            )
            for carrier, delay in zip(carriers, delays, strict=True)
            for number, address in enumerate(addresses[:2])
        ]

    async def open_stream(
        self,
        rung: Rung,
        server_name: str,
        on_batch: BatchCallback,
        on_closed: ClosedCallback,
        session: ssl.SSLSession | None = None,
    ) -> StreamTransport | KernelStream:
        """A stream by a rung that is one.

        Raises:
            TransportError: it cannot be had.
        """
        sock, received = await self._open_socket(rung, server_name, session)
        self._stream_ids += 1
        local = SocketAddress.of(sock.getsockname())
        path = NetworkPath(local, rung.address, rung.carrier, id=self._stream_ids)
        try:
            is_kernels = self._tcp_in_kernel and suits_kernel(sock, rung.carrier)
            return (KernelStream if is_kernels else StreamTransport)(
                *(sock, path, on_batch, on_closed, self._loop),
                is_originator=True,
                received=received,
            )
        except OSError as error:
            sock.close()
            raise ConnectFailed(reason_of(error)) from error

    async def _open_socket(
        self, rung: Rung, server_name: str, session: ssl.SSLSession | None
    ) -> tuple[socket.socket, bytes]:
        """A connection as far as the stream's first octet, and what was read behind that."""
        if rung.carrier is Carrier.TCP:
            return await open_tcp(rung.address), b""
        tls = await open_tls(rung.address, server_name, self._tls, session=session)
        if rung.carrier is Carrier.TLS:
            with ExitStack() as on_failure:
                on_failure.enter_context(tls)
                await self._pass_gate(tls, server_name, rung.address.port)
                on_failure.pop_all()
            return tls, b""
        # Not above: it takes long to load, and most never need it.
        from tunnelwrap.transport.websocket import open_websocket  # noqa: PLC0415

        path, port = self._settings.websocket_path, rung.address.port
        assert path is not None, "the ladder has no such rung then"
        return tls, await open_websocket(tls, server_name, port, path.path)

    def _port(self, carrier: Carrier) -> int:
        settings = self._settings
        ports = {Carrier.UDP: settings.udp_ike_port, Carrier.TCP: settings.tcp_port}
        return ports.get(carrier, settings.tls_port)

    async def _pass_gate(self, tls: ssl.SSLSocket, server_name: str, port: int) -> None:
        """Say what the gateway wants to hear before the stream; it answers nothing.

        Raises:
            ConnectFailed: the connection broke.
        """
        gate = self._settings.gate
        shown = b""
        if gate is not None and gate.word is not None:
            shown = gate.word.text.encode()
        elif gate is not None and gate.path is not None:
            shown = request_of(gate.path.path, authority(server_name, port))
        try:
            if shown:  # a new connection has room for that
                await completed(tls, partial(tls.send, shown))
        except OSError as error:
            raise ConnectFailed(reason_of(error)) from error


def _show_certificate(context: ssl.SSLContext, pem: bytes) -> None:
    with TemporaryDirectory() as folder:  # OpenSSL takes no other than files
        file = Path(folder) / "own.pem"
        write_private(file, pem)
        context.load_cert_chain(file)
