"""``tunnelwrap connect``: a tunnel to a gateway, by whatever way there is."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from tunnelwrap.cli.recording import key_log_option, pcap_option
from tunnelwrap.config.load import load_client
from tunnelwrap.daemon.client import Client
from tunnelwrap.daemon.events import Event
from tunnelwrap.daemon.log import set_up
from tunnelwrap.daemon.recording import Recorder
from tunnelwrap.errors import ConfigError
from tunnelwrap.path import Carrier

_LADDER: Final = {carrier.value: carrier for carrier in Carrier}


@click.command(short_help="Connect to a gateway.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--carrier",
    type=click.Choice(["auto", *_LADDER]),
    default="auto",
    show_default=True,
    help="Try one carrier only, or those of the configuration one after the other.",
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
@click.option("--debug", is_flag=True, help="Log one line for each IKE message.")
@click.option("--quiet", is_flag=True, help="Log only what needs a human.")
@click.option(
    "--tls-keylog",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append the TLS secrets to a file, with which Wireshark can read the stream.",
)
@key_log_option
@pcap_option
def connect(  # noqa: PLR0913 (one for each option)
    file: Path,
    carrier: str,
    *,
    as_json: bool,
    debug: bool,
    quiet: bool,
    tls_keylog: Path | None,
    key_log: Path | None,
    pcap: Path | None,
) -> None:
    """Connect to the gateway of FILE, and keep the tunnel until Ctrl-C.

    UDP is tried first; if it is not answered within a moment, TCP on port 4500 (RFC 9329), TLS
    on port 443 and, where the configuration knows its path, a WebSocket there (ws) follow, and
    the first that is answered carries everything. Addresses, routes and name servers are set
    while the tunnel is up, and taken back at its end; also after a crash, at the next start.
    Needs root (CAP_NET_ADMIN).

    \b
    Events with --json, one object a line:
      {"event": "attempt", "carrier": "udp", "result": "...", "seconds": 1.2}
      {"event": "established", "carrier": "tls", "seconds": ..., "ike_suite": ...,
       "esp_suite": ..., "addresses": [...], "attempts": [...]}
                                              (esp_suite is null while it waits for traffic)
      {"event": "lost", "reason": ...}        the gateway is looked for again
      {"event": "closed", "reason": ...}      the end

    \b
    Exit status: 0 told to end, 1 no tunnel, or the gateway ended it.

    \b
    Examples:
      tunnelwrap connect client.toml
      tunnelwrap connect client.toml --carrier tls --debug
    """
    set_up(is_debug=debug, is_quiet=quiet)
    settings = load_client(file)
    carriers = settings.client.carriers if carrier == "auto" else (_LADDER[carrier],)
    if Carrier.WEBSOCKET in carriers and settings.client.websocket_path is None:
        raise ConfigError([f"{file}: found no client.websocket_path, expected one for ws"])
    tell = _print_json if as_json else _ignore
    recorder = Recorder(key_log, pcap)
    asyncio.run(_run(lambda: Client(settings, file.stem, carriers, tls_keylog, tell, recorder)))


async def _run(make: Callable[[], Client]) -> None:
    client = make()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, client.stop)
    await client.run()


def _print_json(event: Event) -> None:
    click.echo(event.model_dump_json())


def _ignore(event: Event) -> None:  # the log tells people the same
    del event
