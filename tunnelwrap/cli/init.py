"""``tunnelwrap init``: a gateway ready to run, and a file for each client."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from tunnelwrap.config.initial import DEFAULT_POOL, Made, make
from tunnelwrap.config.issue import AUTHORITY_LIFE, LIFE

_WHAT: Final = {
    "gateway.toml": "configuration of the gateway",
    "gateway.pem": f"its certificate for IKE and TLS, valid for {LIFE.days} days",
    "gateway.key": "the private key of that",
    "ca.pem": f"the authority of gateway and clients, valid for {AUTHORITY_LIFE.days // 365} years",
    "ca.key": "the private key of that: who has it can make clients",
    "client.toml": "all that {client} needs, with its private key",
}

_HELP: Final = """\
Make a gateway that is ready to run, and the file for its first client.

The directory gets gateway.toml, a certification authority (ca.pem, ca.key), the gateway's
certificate with its private key (gateway.pem, gateway.key), and NAME/client.toml. That one
file is all a client needs: it holds certificates and private key, so carry it by a way that
nobody reads.

Where there is a gateway.toml already, --client alone makes one more client of that gateway,
for the ports and networks that are in gateway.toml now.

Nothing that exists is overwritten. Everything is made, or nothing.

\b
Examples:
  A gateway that takes all traffic of its clients:
    tunnelwrap init --address vpn.example.org --dns 9.9.9.9 --client alice
  A gateway known by its address, into one network only:
    tunnelwrap init --address 203.0.113.2 --network 10.66.0.0/24
  A gateway behind a web server that has port 443:
    tunnelwrap init --address vpn.example.org --websocket 127.0.0.1:8080
  One more client:
    tunnelwrap init --client bob
"""


@click.command(
    help=_HELP,
    short_help="Make a gateway, or another client of it.",
    epilog="Exit status: 0 if all is made; 1 if not, and then nothing is.",
)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/etc/tunnelwrap"),
    show_default=True,
    help="Where to put everything; made if it does not exist.",
)
@click.option(
    "--address",
    metavar="HOST",
    help="Host name or IP address that clients connect to. Needed for a new gateway. For another"
    " client the default is the IP address in the gateway's certificate, else the gateway's name.",
)
@click.option(
    "--name",
    metavar="HOST",
    help="What the gateway is called: its identity in IKE, and the server name in TLS.  [default:"
    " the address]",
)
@click.option(
    "--network",
    multiple=True,
    metavar="NETWORK",
    help="What clients reach through the tunnel; may be repeated.  [default: everything]",
)
@click.option(
    "--pool",
    multiple=True,
    metavar="NETWORK",
    help=f"Addresses for clients; may be repeated.  [default: {DEFAULT_POOL} where IPv4 is reached,"
    " a random fdxx:xxxx:xxxx::/64 where IPv6 is]",
)
@click.option(
    "--dns",
    multiple=True,
    metavar="ADDRESS",
    help="Name server that clients use while they are connected; may be repeated.  [default: their"
    " own]",
)
@click.option(
    "--proxy",
    multiple=True,
    metavar="NETWORK",
    help="Address or network of a proxy in front of the gateway, which says by a PROXY header whom"
    " it speaks for; may be repeated.  [default: none]",
)
@click.option(
    "--websocket",
    metavar="ADDRESS:PORT",
    help="Where a reverse proxy brings WebSockets, without TLS. The proxy has the TLS port then,"
    " and a certificate of the gateway's name that clients trust; the gateway has the others.",
)
@click.option(
    "--websocket-path",
    metavar="PATH",
    help="The path of WebSockets, a secret.  [default: a random one]",
)
@click.option(
    "--client",
    default="client",
    show_default=True,
    metavar="NAME",
    help="Name of the client; its identity is NAME@GATEWAY.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the paths.")
def init(directory: Path, *, as_json: bool, **options: str | tuple[str, ...] | None) -> None:
    """Parse, make, and tell."""
    made = make(directory, options, datetime.now(UTC))
    if as_json:
        click.echo(json.dumps(_to_json(made)))
    else:
        click.echo(_told(made, directory))


def _to_json(made: Made) -> dict[str, object]:
    return {
        "gateway": str(made.gateway),
        "client": str(made.client),
        "client_id": made.client_id,
        "new_gateway": made.is_new_gateway,
        "files": [str(path) for path in made.files],
    }


def _told(made: Made, directory: Path) -> str:
    """What was made, and what to type next."""
    names = [str(path.relative_to(directory)) for path in made.files]
    width = max(len(name) for name in names)
    lines = [f"Made in {directory}:"]
    for name, path in zip(names, made.files, strict=True):
        lines.append(f"  {name:{width}}  {_WHAT[path.name].format(client=made.client_id)}")
    start = f"tunnelwrap serve {made.gateway}"
    return "\n".join(
        [
            *lines,
            *(["On the gateway:", f"  {start}"] if made.is_new_gateway else []),
            f"Copy {made.client} to the client, and there:",
            f"  tunnelwrap connect {made.client.name}",
        ]
    )
