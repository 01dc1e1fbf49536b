"""nginx and our listener with the same site side by side, and what a prober notes of each."""

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.kit.probes import Noted, Probe, ask
from tests.unit.demux.gateway import LOCALHOST, write_identity
from tunnelwrap.demux.cover import Cover, OwnSite, SiteBehind
from tunnelwrap.demux.listener import Limits, Listener, Site
from tunnelwrap.demux.opening import Gate, Secrets
from tunnelwrap.demux.pages import Files
from tunnelwrap.demux.routing import Backend
from tunnelwrap.demux.shown import Shown, server_context
from tunnelwrap.demux.web import Times
from tunnelwrap.errors import TransportError

TIME_S = 2.0
SECRETS = Secrets(Gate(word=b"OHBAEPHEIWAHCHAI"), b"/Ahdai7eiPhai0ahx")
_AT_ONCE = 12
_TRIES = 5
_NEW_YEAR = 1767225600  # 2026
_CONFIGURATION = """\
user root;
daemon off;
pid {home}/nginx.pid;
error_log {home}/error.log notice;
worker_processes 1;
events {{ }}
http {{
    access_log off;
    server_tokens off;
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    client_header_timeout {time_s:g}s;
    keepalive_timeout {time_s:g}s;
    root {root};
    server {{
        listen 127.0.0.1:{tls_port} ssl;
        server_name localhost;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_ciphers ECDHE+AESGCM:ECDHE+CHACHA20;
        ssl_session_tickets off;
        ssl_session_cache shared:site:1m;
    }}
    server {{
        listen 127.0.0.1:{plain_port};
        server_name localhost;
    }}
}}
"""


def make_site(root: Path) -> None:
    """Some files, all of the same age."""
    files = {
        "index.html": b"<h1>A site behind which nobody expects a tunnel</h1>\n",
        "a.txt": b"a text of 20 octets\n",
        "a.JS": b"'use strict';\n",
        "plain": b"nothing known\n",
        "large.bin": bytes(range(256)) * 600,
        "sub/index.html": b"below\n",
    }
    (root / "empty").mkdir(parents=True)
    for name, octets in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(octets)
        os.utime(root / name, (_NEW_YEAR, _NEW_YEAR))


def free_ports(number: int) -> list[int]:
    """Ports that nobody has."""
    with ExitStack() as bound:
        sockets = [bound.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def nginx(home: Path, root: Path, identity: tuple[Path, Path]) -> Iterator[tuple[int, int]]:
    """A real one; gives its ports for TLS and for plain HTTP."""
    home.mkdir()
    tls_port, plain_port = free_ports(2)
    certificate, key = identity
    (home / "nginx.conf").write_text(_CONFIGURATION.format(**{**locals(), "time_s": TIME_S}))
    command = ["/usr/sbin/nginx", "-p", str(home), "-c", str(home / "nginx.conf")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield tls_port, plain_port
    finally:
        process.terminate()
        process.wait(10)


@dataclass
class Stand:
    """Servers' ports by their names; the first is nginx itself."""

    ports: dict[str, int]

    async def differences(
        self, probes: list[Probe], servers: Sequence[str]
    ) -> dict[str, dict[str, tuple[Noted, Noted]]]:
        """What is noted of nginx and of others, by the names of server and probe, where it differs.

        How an answer ends depends on what came first where both sides end at once. So those that
        differ are asked again, and count only if no answer is ever like one of the other server's.
        """
        theirs = await _notes(self.ports["nginx"], probes)
        found = {}
        for server in servers:
            ours = await _notes(self.ports[server], probes)
            differing = [each for each in probes if theirs[each.name] != ours[each.name]]
            async with asyncio.TaskGroup() as tasks:
                agreeing = {
                    each.name: tasks.create_task(self._agrees_in_the_end(server, each))
                    for each in differing
                }
            found[server] = {
                name: (theirs[name], ours[name])
                for name, task in agreeing.items()
                if not task.result()
            }
        return found

    async def _agrees_in_the_end(self, server: str, probe: Probe) -> bool:
        notes: dict[str, list[Noted]] = {"nginx": [], server: []}
        for _ in range(_TRIES):
            for name, noted in notes.items():
                noted.append(await ask(self.ports[name], probe))
            if any(each in notes["nginx"] for each in notes[server]):
                return True
        return False


async def _notes(port: int, probes: list[Probe]) -> dict[str, Noted]:
    turn = asyncio.Semaphore(_AT_ONCE)

    async def note(probe: Probe) -> Noted:
        async with turn:
            return await ask(port, probe)

    async with asyncio.TaskGroup() as tasks:
        asked = {probe.name: tasks.create_task(note(probe)) for probe in probes}
    return {name: task.result() for name, task in asked.items()}


@asynccontextmanager
async def stand(folder: Path) -> AsyncIterator[Stand]:
    """All of them with one site."""
    root, identity = folder / "www", write_identity(folder)
    make_site(root)
    times = Times(head_s=TIME_S, idle_s=TIME_S)
    with nginx(folder / "nginx", root, identity) as (tls_port, plain_port):
        await _answers(tls_port)
        behind, plain = Backend("127.0.0.1", tls_port), Backend("127.0.0.1", plain_port)
        covers: dict[str, Cover] = {
            "files": OwnSite(Files(root), times),
            "https": SiteBehind(behind, is_tls=True, times=times, idle_s=60),
            "http": SiteBehind(plain, is_tls=False, times=times, idle_s=60),
        }
        ports = {"nginx": tls_port}
        async with asyncio.TaskGroup() as tasks:
            listeners = []
            for name, cover in covers.items():
                site = Site(Shown(server_context(*identity)), cover, SECRETS, patience_s=1)
                limits = Limits(deadline_s=TIME_S)
                listener = Listener([LOCALHOST], 0, _refuse, site, limits)
                tasks.create_task(listener.run())
                ports[name] = listener.ports[0]
                listeners.append(listener)
            try:
                yield Stand(ports)
            finally:
                for listener in listeners:
                    assert listener.counters["failed"] == 0
                    listener.close()


def _refuse(*_: object) -> None:
    raise TransportError("no stream is expected here")


async def _answers(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)
