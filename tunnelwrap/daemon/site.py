"""The web site on the TLS ports of a gateway or relay, as configured; and whether it answers."""

import asyncio
import logging
import re
from dataclasses import replace
from typing import Final

from tunnelwrap.config.fields import WebServer
from tunnelwrap.config.model import StreamPorts
from tunnelwrap.demux.connection import Connection
from tunnelwrap.demux.cover import Cover, OwnSite, SiteBehind
from tunnelwrap.demux.dialling import Dialler
from tunnelwrap.demux.listener import Site
from tunnelwrap.demux.opening import Gate, Secrets
from tunnelwrap.demux.pages import Files, OnePage
from tunnelwrap.demux.routing import Backend
from tunnelwrap.demux.shown import Shown
from tunnelwrap.path import SocketAddress
from tunnelwrap.wire.proxy import Ends

logger = logging.getLogger(__name__)

_ANSWER_S: Final = 10.0
_MAX_HEAD: Final = 1 << 16
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])")
_LOCATION: Final = re.compile(rb"\r?\nlocation: *([!-~]*)", re.IGNORECASE)


def site_of(own: StreamPorts, shown: Shown | None) -> Site:
    """What is to be seen on the TLS ports.

    Raises:
        ConfigError: the directory of its files is gone.
    """
    path = own.websocket.path.path.encode() if own.websocket else None
    return Site(shown, _cover(own, path), Secrets(_gate(own), path))


def site_behind_proxy(own: StreamPorts) -> Site:
    """What there is for a reverse proxy: the WebSocket, and what else it may pass on."""
    path = own.websocket.path.path.encode() if own.websocket else None
    return Site(None, OwnSite(_pages(own), secret_path=path), Secrets(websocket_path=path))


def _cover(own: StreamPorts, path: bytes | None) -> Cover:
    cover = own.cover
    if cover is None or cover.proxy is None:
        return OwnSite(_pages(own), secret_path=path)
    is_tls = cover.proxy.is_tls
    return SiteBehind(_backend(cover.proxy, own), is_tls=is_tls, idle_s=own.route_idle_s)


def _pages(own: StreamPorts) -> Files | OnePage:
    return Files(own.cover.files) if own.cover and own.cover.files else OnePage()


def _gate(own: StreamPorts) -> Gate | None:
    gate = own.gate
    if gate is None:
        return None
    return Gate(
        gate.word.text.encode() if gate.word else None,
        gate.path.path.encode() if gate.path else None,
        gate.client_ca is not None,
    )


def _backend(server: WebServer, own: StreamPorts) -> Backend:
    assert own.cover is not None
    return replace(server.backend, send_proxy=own.cover.send_proxy)


# --- does it answer? -------------------------------------------------------------------------


async def check_site(own: StreamPorts) -> None:
    """Tell once what is wrong with the site; its server may be started later."""
    if own.cover is None or not own.tls_ports:
        return
    if own.cover.files is not None:
        if not Files(own.cover.files).has_index:
            logger.warning(
                "the cover site has no page at its root, visitors get 403: "
                "it needs an index.html in %s",
                own.cover.files,
            )
    elif (problem := await _problem(own)) is not None:
        logger.warning("the cover site does not answer as it should: %s", problem)


async def _problem(own: StreamPorts) -> str | None:
    """What is wrong with the server of the site, and what to do."""
    assert own.cover is not None
    assert own.cover.proxy is not None
    server = own.cover.proxy
    try:
        async with asyncio.timeout(_ANSWER_S):
            head = await _asked(server, own)
    except (OSError, TimeoutError):
        return f"{server} says nothing to HTTP; is it a web server, with the same kind of TLS?"
    if head is None:
        return f"{server} cannot be reached, visitors get 502 until it runs"
    status, location = _STATUS.match(head), _LOCATION.search(head)
    if status is None:
        return f"{server} does not speak HTTP/1.1 there; another port, or https in place of http?"
    if location is not None and _leads_back(location[1], own):
        return (
            f"{server} sends visitors from https://{own.name}/ to the same address, for ever; "
            "it should serve what it has there, not lead from HTTP to HTTPS"
        )
    if int(status[1]) >= 400:
        return f"{server} answers https://{own.name}/ with {status[1].decode()}"
    return None


async def _asked(server: WebServer, own: StreamPorts) -> bytes | None:
    """The head of what it answers to a request for the root; None if it cannot be reached."""
    dialler, backend = Dialler(), _backend(server, own)
    nobody = SocketAddress(own.listen[0], own.tls_ports[0])
    ends = Ends(nobody, nobody)
    dial = (
        dialler.dial_tls(backend, ends, own.name) if server.is_tls else dialler.dial(backend, ends)
    )
    far = await dial
    if far is None:
        return None
    with far.sock:
        request = f"GET / HTTP/1.1\r\nHost: {own.name}\r\nConnection: close\r\n\r\n"
        await far.send(request.encode())
        return await _head(far)


async def _head(far: Connection) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received and len(received) < _MAX_HEAD:
        if not (octets := await far.receive()):
            break
        received += octets
    return received.partition(b"\r\n\r\n")[0]


def _leads_back(location: bytes, own: StreamPorts) -> bool:
    target = location.decode("ascii").lower().rstrip("/").removesuffix(":443")
    return target == f"https://{own.name.lower()}"
