"""The demo: a gateway, a firewall, a client and a web site on one machine, run and measured.

Flow: hosts and firewall (``demo_network``), a configuration made by ``tunnelwrap init``, the site
(``demo_site``), ``tunnelwrap serve`` on the gateway, ``tunnelwrap connect`` on the client, then a
visitor (``demo_visitor``) who waits for the first answer, downloads and uploads. All of them are
processes of their own; this module starts them, reads what they say and adds it up.
"""

import asyncio
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from tunnelwrap.daemon.demo_network import SITE_ADDRESS, Block, DemoNetwork
from tunnelwrap.daemon.demo_tunnel import DemoTunnel
from tunnelwrap.daemon.demo_words import (
    Answered,
    Done,
    Progress,
    Ready,
    Received,
    Word,
    Words,
)
from tunnelwrap.daemon.events import Attempt, Established
from tunnelwrap.errors import TunnelwrapError

FILE_OCTETS: Final = 64 << 20
SITE_PORT: Final = 80
_READY_S: Final = 20.0
_FIRST_S: Final = 20.0  # from the established tunnel to the first answer through it
_TRANSFER_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What to show."""

    block: Block = Block.NONE
    carrier: str = "auto"
    keep: bool = False
    octets: int = FILE_OCTETS
    tls_keylog: Path | None = None


@dataclass(slots=True)
class Outcome:
    """What came of it; None where it did not come so far."""

    carrier: str | None = None
    attempts: list[Attempt] = field(default_factory=list)
    connect_seconds: float | None = None
    first_packet_seconds: float | None = None
    bytes: int = 0
    sha256_match: bool = False
    download_mbps: float | None = None
    upload_mbps: float | None = None
    ike_suite: str | None = None
    esp_suite: str | None = None
    data_plane: str | None = None
    error: str | None = None

    @property
    def is_success(self) -> bool:
        """Whether all of it worked."""
        return self.error is None and self.sha256_match and self.upload_mbps is not None

    def to_json(self) -> dict[str, object]:
        """The outcome as one JSON object; ``error`` only if there is one."""
        values = asdict(self)
        values["attempts"] = [attempt.to_json() for attempt in self.attempts]
        return (
            values if self.error is not None else {k: v for k, v in values.items() if k != "error"}
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """The demo turns to something else."""

    text: str


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    """The site answered through the tunnel for the first time."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer got so far."""

    direction: str  # "download" or "upload"
    octets: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Built:
    """The hosts are up: their namespaces by host, and the directory with all files."""

    namespaces: dict[str, str]
    directory: Path


News = Stage | Built | Attempt | Established | FirstAnswer | Transfer
Tell = Callable[[News], None]


async def run_demo(wish: Wish, tell: Tell) -> Outcome:
    """Show it, tell about it on the way, and clean up (unless told to keep it)."""
    name = f"tw-{secrets.token_hex(2)}"
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    network = DemoNetwork(name, wish.block, directory)
    demo = _Demo(wish, network, tell)
    try:
        await demo.show()
    except (TunnelwrapError, TimeoutError) as error:
        demo.outcome.error = str(error) or "timed out"
    finally:
        if not wish.keep:
            await network.down()
            shutil.rmtree(directory, ignore_errors=True)
    return demo.outcome


class _Demo:
    """One run; owns the outcome while it grows."""

    def __init__(self, wish: Wish, network: DemoNetwork, tell: Tell) -> None:
        self.outcome = Outcome()
        self._wish = wish
        self._network = network
        self._tell = tell
        self._tunnel = DemoTunnel(network)

    async def show(self) -> None:
        self._tell(Stage("building four hosts and a firewall"))
        await self._network.up()
        self._tell(Built(self._network.namespaces, self._network.directory))
        self._tell(Stage("making keys, certificates and configurations"))
        await self._tunnel.make_configuration()
        self._tell(Stage("starting the web site and the gateway"))
        async with asyncio.TaskGroup() as group:
            site = group.create_task(self._start_site())
            group.create_task(self._tunnel.serve())
        await self._connect()
        await self._download(site.result())
        await self._upload()
        self.outcome.data_plane = await self._tunnel.data_plane()
        if not self._wish.keep:
            self._tell(Stage("closing the tunnel"))
            await self._tunnel.close()

    async def _start_site(self) -> str:
        """Start the web site; give back its file's SHA-256."""
        file = self._network.directory / "file"
        program = self._network.start(
            *("site", "site", sys.executable, "-m", "tunnelwrap.daemon.demo_site"),
            *(SITE_ADDRESS, str(SITE_PORT), str(file), str(self._wish.octets)),
        )
        return (await Words(program).next(Ready, _READY_S)).sha256

    async def _connect(self) -> None:
        visitor = self._visit("first")
        await visitor.next(Ready, _READY_S)
        self._tell(Stage("connecting"))
        start = time.monotonic()
        established = await self._tunnel.connect(
            self._wish.carrier, self._wish.tls_keylog, self._see_attempt
        )
        self.outcome.connect_seconds = round(time.monotonic() - start, 3)
        self.outcome.carrier = established.carrier
        self.outcome.attempts = list(established.attempts)
        self.outcome.ike_suite = established.ike_suite
        self.outcome.esp_suite = established.esp_suite
        self._tell(established)
        answered = await visitor.next(Answered, _FIRST_S)
        self.outcome.first_packet_seconds = round(answered.at - start, 3)
        self._tell(FirstAnswer(self.outcome.first_packet_seconds))

    def _see_attempt(self, attempt: Attempt) -> None:
        self.outcome.attempts.append(attempt)
        self._tell(attempt)

    async def _download(self, sha256: str) -> None:
        self._tell(Stage("downloading through ESP"))
        done = await self._transfer("download", self._visit("download"))
        self.outcome.bytes = done.octets
        self.outcome.sha256_match = done.sha256 == sha256
        self.outcome.download_mbps = _mbps(done)
        if not self.outcome.sha256_match:
            raise TunnelwrapError("the file that arrived is not the file that the site sent")

    async def _upload(self) -> None:
        self._tell(Stage("uploading through ESP"))
        visitor = self._visit("upload", str(self._wish.octets))
        done = await self._transfer("upload", visitor)
        received = await visitor.next(Received, _READY_S)
        if (received.octets, received.sha256) != (done.octets, done.sha256):
            raise TunnelwrapError("what the site received is not what was uploaded")
        self.outcome.upload_mbps = _mbps(done)

    async def _transfer(self, direction: str, visitor: Words) -> Done:
        start = time.monotonic()

        def see(word: Word) -> None:
            if isinstance(word, Progress):
                seconds = time.monotonic() - start
                self._tell(Transfer(direction, word.octets, self._wish.octets, seconds))

        done = await visitor.next(Done, _TRANSFER_S, see)
        self._tell(Transfer(direction, done.octets, self._wish.octets, done.seconds))
        return done

    def _visit(self, action: str, *arguments: str) -> Words:
        program = self._network.start(
            *(
                "client",
                f"visitor-{action}",
                sys.executable,
                "-m",
                "tunnelwrap.daemon.demo_visitor",
            ),
            *(action, SITE_ADDRESS, str(SITE_PORT), *arguments),
        )
        return Words(program)


def _mbps(done: Done) -> float:
    return round(done.octets * 8 / done.seconds / 1e6, 1)
