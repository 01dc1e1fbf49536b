"""``tunnelwrap fallback``: a second way for connections of other IKEv2 daemons."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from tunnelwrap.profile.export import DAEMONS, Exported
from tunnelwrap.profile.export import export as write_files

_NEXT: Final = {
    "strongswan": (
        "cp {configuration} /etc/swanctl/conf.d/",
        "swanctl --load-all",
        "swanctl --initiate --child {name}",
    ),
    "libreswan": (
        "cp {configuration} /etc/ipsec.d/",
        "ipsec add {name}",
        "ipsec up {name}",
    ),
    "windows": ("there: powershell -ExecutionPolicy Bypass -File {name}.ps1",),
    "networkmanager": (
        "install -m 600 {configuration} /etc/NetworkManager/system-connections/",
        "nmcli connection reload",
        "nmcli --ask connection up {name}",
    ),
}


@click.group(short_help="Give another IKEv2 daemon's connection a second way.")
def fallback() -> None:
    """Give connections of other IKEv2 daemons a second way, through tunnelwrap wrap."""


@fallback.command(short_help="Write the daemon's configuration, and the wrapper's unit.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--for",
    "daemon",
    type=click.Choice(DAEMONS),
    required=True,
    help="Whose connection it is.",
)
@click.option("--local-id", required=True, metavar="ID", help="Who we are: a name, no address.")
@click.option("--remote-id", required=True, metavar="ID", help="Who the gateway is: a name.")
@click.option(
    "--remote-ts",
    multiple=True,
    required=True,
    metavar="NETWORK",
    help="What is reached through the tunnel; may be repeated.",
)
@click.option(
    "--local-ts",
    multiple=True,
    metavar="NETWORK",
    help="What is on this side of it; may be repeated.  [default: an address that the gateway"
    " gives]",
)
@click.option(
    "--auth",
    type=click.Choice(["psk", "certificate"]),
    default="psk",
    show_default=True,
    help="What both sides prove themselves by.",
)
@click.option("--certificate", metavar="NAME", help="Our certificate, as the daemon names it.")
@click.option("--key", metavar="NAME", help="The private key of that, for NetworkManager.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where to put both files.  [default: here]",
)
def export(
    file: Path, daemon: str, directory: Path, **options: str | tuple[str, ...] | None
) -> None:
    """Write two files that give a connection its second way.

    FILE is the configuration of the wrapper, its name that of the connection. The one file is for
    the daemon, the other a systemd unit that runs the wrapper. No secret is in them: the connection
    has those of the first way. Nothing is overwritten.

    \b
    strongswan      a file for swanctl; FILE needs other ports than 500 and 4500 on the same host
    libreswan       a file for ipsec.conf; FILE needs those ports
    networkmanager  a file for its strongSwan plugin
    windows         a script for PowerShell; the wrapper is on another host, with those ports

    \b
    Examples:
      tunnelwrap fallback export --for strongswan --local-id alice@vpn.example.org
          --remote-id vpn.example.org --remote-ts 10.66.0.0/24 office.toml
      tunnelwrap fallback export --for libreswan --local-id b.example.org --local-ts 10.2.0.0/16
          --remote-id a.example.org --remote-ts 10.1.0.0/16 office.toml
    """
    exported = write_files(daemon, file, directory, options, datetime.now(UTC))
    click.echo("\n".join(_told(daemon, file.stem, exported)))


def _told(daemon: str, name: str, exported: Exported) -> list[str]:
    """What was made, and what to type next."""
    names = {"configuration": exported.configuration, "name": name}
    return [
        f"Made {exported.configuration} and {exported.unit}. As root:",
        f"  cp {exported.unit} /etc/systemd/system/",
        f"  systemctl enable --now {exported.unit.name}",
        *(f"  {line.format(**names)}" for line in _NEXT[daemon]),
    ]
