"""The demo's tunnel: the real commands, ``init``, ``serve``, ``connect`` and ``status``.

Whoever wants the tunnel between the demo's hosts without the demo around it (a benchmark) can have
it from here.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tunnelwrap.daemon.demo_network import GATEWAY_ADDRESS, SITE_NETWORK, DemoNetwork, Program
from tunnelwrap.daemon.demo_words import Word, Words
from tunnelwrap.daemon.events import Attempt, Closed, Established
from tunnelwrap.errors import TunnelwrapError

_TUNNELWRAP: Final = (sys.executable, "-m", "tunnelwrap")
_GATEWAY_READY_S: Final = 20.0
_CONNECT_S: Final = 60.0


class DemoTunnel:
    """A gateway and a client in a demo's network; the network stops both at the latest."""

    def __init__(self, network: DemoNetwork) -> None:
        self._network = network
        self._gateway: Program | None = None
        self._client: Words | None = None

    async def make_configuration(self) -> None:
        """Let ``tunnelwrap init`` make what gateway and client need."""
        await self._network.run(
            "gateway",
            *(*_TUNNELWRAP, "init", "--directory", str(self._directory)),
            *("--address", GATEWAY_ADDRESS, "--network", SITE_NETWORK, "--client", "client"),
        )

    async def serve(self) -> None:
        """Start the gateway and wait until it is ready."""
        self._gateway = self._network.start(
            *("gateway", "gateway", *_TUNNELWRAP, "serve", str(self._gateway_file)),
            environment=self._places,
        )
        await self._gateway.wait_for("ready", _GATEWAY_READY_S)

    async def connect(
        self,
        carrier: str = "auto",
        tls_keylog: Path | None = None,
        see: Callable[[Attempt], None] | None = None,
    ) -> Established:
        """Start the client and wait until its tunnel is established.

        Raises:
            TunnelwrapError: it gave up, or was not established in time.
        """
        keylog = () if tls_keylog is None else ("--tls-keylog", str(tls_keylog))
        program = self._network.start(
            *("client", "client", *_TUNNELWRAP, "connect", str(self._client_file)),
            *("--carrier", carrier, "--json", *keylog),
            environment=self._places,
        )
        self._client = Words(program)

        def see_word(word: Word) -> None:
            if isinstance(word, Attempt) and see is not None:
                see(word)
            elif isinstance(word, Closed):
                raise TunnelwrapError(f"no tunnel: {word.reason}")

        return await self._client.next(Established, _CONNECT_S, see_word)

    async def data_plane(self) -> str:
        """What carries the client's packets, as ``tunnelwrap status`` says."""
        output = await self._network.run(
            *("client", *_TUNNELWRAP, "status", "--json", str(self._client_file)),
            environment=self._places,
        )
        return str(json.loads(output)["data_plane"])

    async def close(self) -> None:
        """End client and gateway in good order.

        Raises:
            TunnelwrapError: one of them ended with an error.
        """
        programs = [self._client.program if self._client else None, self._gateway]
        for program in programs:
            if program is not None:
                status = await self._network.stop(program)
                if status != 0:
                    raise TunnelwrapError(f"{program.name}: ended with status {status}")

    @property
    def _directory(self) -> Path:
        return self._network.directory

    @property
    def _places(self) -> dict[str, str]:
        """Sockets and state beside everything else, so that demos do not meet."""
        return {
            "RUNTIME_DIRECTORY": str(self._directory / "run"),
            "STATE_DIRECTORY": str(self._directory / "state"),
        }

    @property
    def _gateway_file(self) -> Path:
        return self._directory / "gateway.toml"

    @property
    def _client_file(self) -> Path:
        return self._directory / "client" / "client.toml"
