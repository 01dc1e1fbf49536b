"""``tunnelwrap serve``: the gateway."""

import asyncio
import signal
from pathlib import Path

import click

from tunnelwrap.cli.recording import key_log_option, pcap_option
from tunnelwrap.config.load import load_gateway
from tunnelwrap.config.model import GatewayFile
from tunnelwrap.daemon.log import set_up
from tunnelwrap.daemon.recording import Recorder
from tunnelwrap.daemon.server import Server


@click.command(short_help="Run a gateway.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--debug", is_flag=True, help="Log one line for each IKE message.")
@click.option("--quiet", is_flag=True, help="Log only what needs a human.")
@key_log_option
@pcap_option
def serve(file: Path, *, debug: bool, quiet: bool, key_log: Path | None, pcap: Path | None) -> None:
    """Run the gateway of FILE until it is told to end (SIGTERM, Ctrl-C).

    Listens on UDP 500 and 4500, TCP 4500 (RFC 9329) and TLS 443, or where FILE says. On a TLS
    port it tells tunnels from web browsers by the first octets, and answers the latter. Forwarding
    and NAT for clients are set while it runs, and taken back at its end; also after a crash, at the
    next start. Needs root (CAP_NET_ADMIN, CAP_NET_BIND_SERVICE).

    The line "ready" in the log says that clients can connect. SIGHUP has it look at once for a new
    certificate on the TLS ports, which it does each minute anyway.

    \b
    Examples:
      tunnelwrap serve gateway.toml
      tunnelwrap status gateway.toml          from another terminal
    """
    set_up(is_debug=debug, is_quiet=quiet)
    asyncio.run(_run(load_gateway(file), file.stem, Recorder(key_log, pcap)))


async def _run(settings: GatewayFile, name: str, recorder: Recorder) -> None:
    server = Server(settings, name, recorder)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.reload)
    await server.run()
