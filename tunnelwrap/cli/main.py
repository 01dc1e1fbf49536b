"""The command line: finds the command, and turns errors into plain lines and an exit status."""

import gc
import importlib
import sys
from types import ModuleType
from typing import Final

import click

from tunnelwrap import __version__
from tunnelwrap.errors import TunnelwrapError

_COMMANDS: Final = (
    *("init", "serve", "connect", "relay", "wrap", "fallback"),
    *("status", "disconnect", "redirect", "check", "demo"),
)
"""In the order in which people meet them; each is a module of this package."""


class _Commands(click.Group):
    """Loads the module of a command only when it is needed: ``connect`` shall start at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's contract)
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(_loaded(cmd_name), cmd_name)
        assert isinstance(command, click.Command)
        return command


def _loaded(name: str) -> ModuleType:
    """The module of a command, without garbage collection: a tenth of the time to load it."""
    gc.disable()
    try:
        return importlib.import_module(f"tunnelwrap.cli.{name}")
    finally:
        gc.freeze()  # what is loaded stays, and need not be looked at again
        gc.enable()


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tunnelwrap")
def tunnelwrap() -> None:
    """IKEv2/IPsec VPN that also gets through TCP and TLS on 443.

    \b
    On a gateway:      tunnelwrap init --address vpn.example.org --client alice
                       tunnelwrap serve gateway.toml
    On a client:       tunnelwrap connect client.toml
    On one machine:    tunnelwrap demo
    For other daemons: tunnelwrap relay relay.toml
                       tunnelwrap wrap wrap.toml

    Each command has its own --help.
    """


def main() -> None:
    """Run the command that the command line names."""
    try:
        tunnelwrap()
    except TunnelwrapError as error:
        for line in str(error).splitlines() or [type(error).__name__]:
            click.echo(f"tunnelwrap: {line}", err=True)
        sys.exit(1)
