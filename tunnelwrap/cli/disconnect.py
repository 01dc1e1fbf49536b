"""``tunnelwrap disconnect``: end a running client or gateway in good order."""

from pathlib import Path
from typing import Final

import click

from tunnelwrap.config.load import control_socket
from tunnelwrap.daemon.control import ask, wait_for_end

_TIMEOUT_S: Final = 15.0


@click.command(short_help="End a running tunnel.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def disconnect(file: Path) -> None:
    """End the tunnelwrap that runs with FILE: its peers are told, the host is as it was before.

    \b
    Exit status: 0 it ended, 1 none was running or it did not answer.
    """
    path = control_socket(file)
    ask(path, "disconnect", _TIMEOUT_S)
    wait_for_end(path, _TIMEOUT_S)
    click.echo("disconnected")
