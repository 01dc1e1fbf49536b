"""``tunnelwrap relay``: TCP and TLS for an IKEv2 daemon that knows UDP only, beside it."""

import asyncio
import signal
from pathlib import Path

import click

from tunnelwrap.config.load import load_relay
from tunnelwrap.config.wrapper import RelayFile
from tunnelwrap.daemon.log import set_up
from tunnelwrap.daemon.relay import Relay


@click.command(short_help="Bring streams to another IKEv2 daemon.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--debug", is_flag=True, help="Log what becomes of every connection.")
@click.option("--quiet", is_flag=True, help="Log only what needs a human.")
def relay(file: Path, *, debug: bool, quiet: bool) -> None:
    """Accept IKEv2 over TCP and TLS for a daemon that knows UDP only.

    The daemon, strongSwan for one, runs on this host or is reached from it; nothing of it is
    changed. Clients come by RFC 9329: tunnelwrap connect, tunnelwrap wrap beside any other
    daemon, or one that can do TCP itself. Listens on TCP 4500 and TLS 443, or where FILE says. On
    a TLS port it tells tunnels from web browsers by the first octets, and answers the latter.

    The relay has no keys and reads headers only. Every client gets an address and port of this
    host, by which the daemon knows it; a client whose stream broke gets them again, found by the
    SPIs of its SAs. For a daemon on this host the addresses are of 127.128.0.0/10, the same for the
    same address of clients, so that limits of the daemon count clients and not the relay.

    \b
    What the daemon's configuration needs:
      identities that are names, and a certificate for the public name, not addresses
      connections for any address of the client, or 127.128.0.0/10
      liveness checks (strongSwan: dpd_delay), so that broken streams are noticed
      no MOBIKE, or it may stay: the relay's addresses never change

    The line "ready" in the log says that clients can connect. SIGHUP has it look at once for a new
    certificate on the TLS ports, which it does each minute anyway. No privilege is needed but that
    for ports below 1024 (CAP_NET_BIND_SERVICE).

    \b
    Examples:
      tunnelwrap relay relay.toml
      tunnelwrap status relay.toml          from another terminal
    """
    set_up(is_debug=debug, is_quiet=quiet)
    asyncio.run(_run(load_relay(file), file.stem))


async def _run(settings: RelayFile, name: str) -> None:
    running = Relay(settings, name)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, running.reload)
    await running.run()
