"""``tunnelwrap wrap``: TCP and TLS for an IKEv2 daemon that knows UDP only, before it."""

import asyncio
import signal
from pathlib import Path

import click

from tunnelwrap.config.load import load_wrap
from tunnelwrap.config.wrapper import WrapFile
from tunnelwrap.daemon.log import set_up
from tunnelwrap.daemon.wrap import Wrap


@click.command(short_help="Bring another IKEv2 daemon through TCP or TLS.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--lan",
    multiple=True,
    metavar="DEVICE",
    help="Take what comes in there for the gateway, too; may be repeated.  [default: lan in FILE]",
)
@click.option("--debug", is_flag=True, help="Log what becomes of every attempt.")
@click.option("--quiet", is_flag=True, help="Log only what needs a human.")
@click.option(
    "--tls-keylog",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append the TLS secrets to a file, with which Wireshark can read the stream.",
)
def wrap(
    file: Path, *, lan: tuple[str, ...], debug: bool, quiet: bool, tls_keylog: Path | None
) -> None:
    """Carry the traffic of a daemon that knows UDP only by whatever passes.

    To the daemon this is the gateway: UDP ports of this host, 127.0.0.2 by default. Its first
    message goes on over UDP; if that is not answered within a moment, also over TCP on port 4500
    (RFC 9329) and TLS on port 443, and the first that is answered carries everything. A stream
    that breaks is opened again, which the daemon does not notice. A new IKE SA tries UDP first
    again. At the other end is tunnelwrap relay beside a daemon of any kind, or a gateway that
    can do TCP itself. There are no keys here, and headers only are read.

    \b
    What the daemon's configuration needs:
      the wrapper's address for the gateway's, and its nat_port if that is not 4500
      identities that are names, not addresses
      liveness checks (strongSwan: dpd_delay), so that a dead gateway is noticed

    \b
    strongSwan on the same host has ports 500 and 4500 of all addresses. With ike_port = 10500
    and nat_port = 14500 in FILE, its connection has:
      remote_addrs = 127.0.0.2
      remote_port = 14500
      local_port = 4500
      encap = yes

    On a LAN's router, --lan serves phones and other clients behind DEVICE as they are: what they
    send to the gateway's UDP ports 500 and 4500 is carried from here, and the answers bear the
    gateway's address. Each IKE SA has a way of its own. Nothing is changed on the clients; on the
    router there are rules for that address, which are taken back at the end, and after a crash at
    the next start.

    The line "ready" in the log says that the daemon can connect. No privilege is needed but that
    for ports below 1024 (CAP_NET_BIND_SERVICE), and for --lan CAP_NET_ADMIN.

    \b
    Examples:
      tunnelwrap wrap wrap.toml
      tunnelwrap wrap --lan br-lan wrap.toml
      tunnelwrap status wrap.toml          from another terminal
    """
    set_up(is_debug=debug, is_quiet=quiet)
    asyncio.run(_run(_with_lan(load_wrap(file), lan), file.stem, tls_keylog))


def _with_lan(settings: WrapFile, devices: tuple[str, ...]) -> WrapFile:
    if not devices:
        return settings
    wrap = settings.wrap.model_copy(update={"lan": devices})
    return settings.model_copy(update={"wrap": wrap})


async def _run(settings: WrapFile, name: str, tls_keylog: Path | None) -> None:
    running = Wrap(settings, name, tls_keylog)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.stop)
    await running.run()
