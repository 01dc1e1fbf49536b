"""``tunnelwrap check``: is a configuration right, and what does it come to?"""

import json
import sys
import tomllib
from pathlib import Path
from typing import Final

import click

from tunnelwrap.config.effective import effective
from tunnelwrap.config.load import load
from tunnelwrap.errors import ConfigError

_HELP: Final = """\
Check a configuration, and print it with all defaults filled in and all secrets hidden.

FILE is that of a gateway or of a client. The certificates and keys that it names are read and
checked too. Everything that is wrong is printed at once, a line for each: the file, the key,
what was found and what is expected. Nothing is started, and nothing changed.

The JSON object has the keys "file", "is_valid", "problems" (a list of lines) and, of a valid
file, "configuration".

\b
Examples:
  tunnelwrap check /etc/tunnelwrap/gateway.toml
  tunnelwrap check --json client.toml
"""


@click.command(
    help=_HELP,
    short_help="Check a configuration.",
    epilog="Exit status: 0 if the file is right, else 1.",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(file: Path, *, as_json: bool) -> None:
    """Load, and print what it comes to."""
    try:
        text = effective(load(file))
    except ConfigError as error:
        if not as_json:
            raise
        _print_json(file, is_valid=False, problems=error.problems)
        sys.exit(1)
    if as_json:
        _print_json(file, is_valid=True, problems=[], configuration=tomllib.loads(text))
    else:
        click.echo(text, nl=False)


def _print_json(file: Path, **facts: object) -> None:
    click.echo(json.dumps({"file": str(file), **facts}))
