"""``tunnelwrap redirect``: send the clients of a running gateway to another one."""

from pathlib import Path
from typing import Final

import click

from tunnelwrap.config.load import control_socket
from tunnelwrap.daemon.control import ask

_TIMEOUT_S: Final = 15.0


@click.command(short_help="Send a gateway's clients to another one.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("gateway")
def redirect(file: Path, gateway: str) -> None:
    """Send the clients of the gateway that runs with FILE to GATEWAY, and who comes from now on.

    Clients that do not follow redirects (RFC 5685) stay, and are served.

    \b
    Exit status: 0 they were told, 1 no gateway was running or it did not answer.
    """
    result = ask(control_socket(file), "redirect", _TIMEOUT_S, gateway)
    click.echo(f"told {result['redirected']} clients to go to {gateway}")
