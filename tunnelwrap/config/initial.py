"""A gateway made from nothing, ready to run, and what its clients need.

All of a gateway is in one directory:

    gateway.toml               its configuration
    gateway.pem, gateway.key   its certificate, for IKE and for TLS, and the private key
    ca.pem, ca.key             the authority that certifies the gateway and its clients
    NAME/client.toml           all that one client needs, in one file to be copied

Flow: everything is written aside, loaded as the commands will load it, and only then put in place,
all of it or nothing. What exists is never overwritten.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from secrets import token_bytes, token_urlsafe
from typing import Annotated, Final, Self

from cryptography import x509
from pydantic import PlainValidator, TypeAdapter, ValidationError, model_validator

from tunnelwrap.auth.identity import Identity, IdentityPattern
from tunnelwrap.config.credentials import WebPath
from tunnelwrap.config.effective import toml_text
from tunnelwrap.config.fields import (
    DYNAMIC,
    Address,
    BackendAddress,
    Context,
    Host,
    Many,
    Network,
    Section,
    is_address,
    wrong,
)
from tunnelwrap.config.issue import CLIENT, SERVER, Issued, issue, make_authority
from tunnelwrap.config.load import in_words, load_client, load_gateway
from tunnelwrap.config.model import (
    ALL_ADDRESSES,
    Gateway,
    GatewayConnection,
    GatewayFile,
    Tls,
    check_networks,
)
from tunnelwrap.config.placement import (
    PRIVATE,
    PRIVATE_DIRECTORY,
    PUBLIC,
    all_or_nothing,
    check_absent,
    write,
)
from tunnelwrap.crypto.x509 import load_certificates, load_private_key, names_of
from tunnelwrap.demux.routing import Backend
from tunnelwrap.errors import ConfigError
from tunnelwrap.iana import IdType

DEFAULT_POOL: Final = IPv4Network("10.20.0.0/24")

_GATEWAY: Final = "gateway.toml"
_GATEWAY_PEM, _GATEWAY_KEY = "gateway.pem", "gateway.key"
_CA_PEM, _CA_KEY = "ca.pem", "ca.key"
_CLIENT: Final = "client.toml"
_OF_CLIENTS: Final = ("client", "address")  # options that are for another client, too
_CLIENT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")

IpNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Made:
    """What there is now; ``files`` are the new ones, in the order to tell of them."""

    files: tuple[Path, ...]
    gateway: Path
    client: Path
    client_id: str
    is_new_gateway: bool


def make(directory: Path, options: Mapping[str, object], wall_now: datetime) -> Made:
    """Make a gateway and its first client in a directory, or another client of the gateway there.

    Args:
        directory: made if it does not exist.
        options: values by the names of the fields of ``Wish``, as people write them.
        wall_now: the time at which the certificates are issued, with its time zone.

    Raises:
        ConfigError: an option is wrong, something exists already, or nothing can be written.
    """
    wish = _checked(options, Context(directory, wall_now))
    gateway = directory / _GATEWAY
    is_new = not os.path.lexists(gateway)
    names = (_GATEWAY, _GATEWAY_PEM, _GATEWAY_KEY, _CA_PEM, _CA_KEY) if is_new else ()
    _check_fit(wish, gateway, is_new=is_new)
    check_absent([directory / name for name in (*names, wish.client)])
    with all_or_nothing(directory) as aside:
        if is_new:
            _write_gateway(aside, wish, wall_now)
        home = aside if is_new else directory
        file, authority = load_gateway(home / _GATEWAY, wall_now), _authority_in(home)
        client_id = _write_client(aside, wish, file, authority, wall_now)
    client = directory / wish.client / _CLIENT
    files = (*(directory / name for name in names), client)
    return Made(files, gateway, client, client_id, is_new)


# --- what is wished --------------------------------------------------------------------------


def _client_name(value: object) -> str:
    if not isinstance(value, str) or not _CLIENT_NAME.fullmatch(value):
        raise wrong("at most 32 letters, digits, hyphens and underscores, such as alice")
    return value


class Wish(Section):
    """What people may say of a new gateway, or of a new client."""

    client: Annotated[str, PlainValidator(_client_name)]
    address: Host | None = None
    name: Host | None = None
    network: Many[Network] = ()
    pool: Many[Network] = ()
    dns: Many[Address] = ()
    proxy: Many[Network] = ()
    websocket: BackendAddress | None = None
    websocket_path: WebPath | None = None

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        check_networks(self.pool)
        for network in self.network:
            if self.pool and not _of_version(self.pool, network.version):
                raise wrong(f"a --pool of IPv{network.version} for --network {network}")
        if self.websocket and not is_address(self.websocket.host):
            raise wrong(
                "an address of this host and a port for --websocket, such as 127.0.0.1:8080"
            )
        return self

    @property
    def pools(self) -> tuple[IpNetwork, ...]:
        """Networks for clients; by default one of each IP version that is to be reached."""
        if self.pool:
            return self.pool
        usual = (DEFAULT_POOL, _unique_local_network())
        versions = {network.version for network in self.network}
        return tuple(each for each in usual if not versions or each.version in versions)


def _unique_local_network() -> IPv6Network:
    """A network that is most likely nobody else's. RFC 4193 §3.2."""
    return IPv6Network((b"\xfd" + token_bytes(5) + bytes(10), 64))


def _of_version(networks: tuple[IpNetwork, ...], version: int) -> bool:
    return any(network.version == version for network in networks)


def _checked(options: Mapping[str, object], context: Context) -> Wish:
    given = {name: value for name, value in options.items() if value not in (None, ())}
    try:
        return TypeAdapter(Wish).validate_python(given, context=context)
    except ValidationError as error:
        raise ConfigError(list(in_words(error, Wish, "--"))) from None


def _check_fit(wish: Wish, gateway: Path, *, is_new: bool) -> None:
    """Check that a gateway is not asked for where there is one, and that it has an address."""
    if is_new and wish.address is None:
        expected = "expected a host name or an IP address"
        raise ConfigError([f"--address: found nothing, {expected} (there is no {gateway} yet)"])
    if not is_new:
        only_new = {key: getattr(wish, key) for key in Wish.model_fields if key not in _OF_CLIENTS}
        given = [f"--{key.replace('_', '-')}" for key, value in only_new.items() if value]
        hint = f"{gateway} exists; for another client of it give --client alone"
        if given:
            raise ConfigError([f"{option}: {hint}" for option in given])


# --- gateway ---------------------------------------------------------------------------------


def _write_gateway(aside: Path, wish: Wish, wall_now: datetime) -> None:
    assert wish.address is not None
    address = wish.address.removesuffix(".")
    name = (wish.name or address).removesuffix(".")
    # Its own name tells this authority from others: issuers are looked up by name.
    authority = make_authority(f"tunnelwrap {token_bytes(4).hex()} of {name}", wall_now)
    own = issue(authority, list(dict.fromkeys((name, address))), SERVER, wall_now)
    write(aside / _CA_PEM, authority.certificate_pem, PUBLIC)
    write(aside / _CA_KEY, authority.key_pem, PRIVATE)
    write(aside / _GATEWAY_PEM, own.certificate_pem, PUBLIC)
    write(aside / _GATEWAY_KEY, own.key_pem, PRIVATE)
    write(aside / _GATEWAY, _gateway_text(wish, name), PRIVATE)


def _gateway_text(wish: Wish, name: str) -> str:
    pools = wish.pools
    everything = [_ for _ in ALL_ADDRESSES if _of_version(pools, 6 if ":" in _ else 4)]
    reachable = [str(network) for network in wish.network] or everything
    dns = f"dns = {_list(wish.dns)}\n" if wish.dns else ""
    proxies = f"proxies = {_list(wish.proxy)}  # their PROXY headers count\n" if wish.proxy else ""
    path = wish.websocket_path.path if wish.websocket_path else f"/{token_urlsafe(18)}"
    return f"""\
# The gateway {name}. Names of files are relative to the directory of this one.
#
#     tunnelwrap check {_GATEWAY}      prints all keys with their values
#     tunnelwrap serve {_GATEWAY}

[gateway]
name = {toml_text(name)}
{proxies}{_own_tls(wish)}
# Who knows this path has the tunnel in a WebSocket, also through a CDN or a reverse proxy.
[gateway.websocket]
path = {toml_text(path)}
{_websocket_port(wish.websocket)}
# Addresses for clients.
[pools.clients]
networks = {_list(pools)}
{dns}
# Whoever has a certificate of our authority for a name at this gateway may connect.
[connections.clients]
pool = "clients"

[connections.clients.local]
id = {toml_text(name)}
certificate = "{_GATEWAY_PEM}"
key = "{_GATEWAY_KEY}"

[connections.clients.peer]
id = {toml_text(_client_id("*", name))}
ca = ["{_CA_PEM}"]

# What clients reach through the tunnel.
[connections.clients.child]
local_ts = {_list(reachable)}
"""


def _own_tls(wish: Wish) -> str:
    """Its TLS; or none, where a reverse proxy has that."""
    if wish.websocket is not None:
        return "tls_ports = []  # a reverse proxy has TLS, see [gateway.websocket]\n"
    return f"""
[gateway.tls]
certificate = "{_GATEWAY_PEM}"
key = "{_GATEWAY_KEY}"
"""


def _websocket_port(where: Backend | None) -> str:
    return "" if where is None else f'ports = [{where.port}]\nlisten = ["{where.host}"]\n'


def _client_id(client: str, name: str) -> str:
    """A client's identity, in the form of a mail address; a colon has no place in one."""
    return f"{client}@{name.replace(':', '-')}"


# --- client ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Client:
    """What a client's file is written from."""

    id: str
    address: str  # of the gateway
    own: Issued
    authority: Issued
    gateway: Gateway
    connection: GatewayConnection
    networks: tuple[IpNetwork, ...]  # of its pool


def _authority_in(directory: Path) -> Issued:
    certificate_file, key_file = directory / _CA_PEM, directory / _CA_KEY
    certificate, key = certificate_file.read_bytes(), key_file.read_bytes()
    try:
        return Issued(load_certificates(certificate)[0], load_private_key(key, None))
    except ConfigError as error:
        where = f"{certificate_file}, {_CA_KEY}"
        raise ConfigError([f"{where}: {problem}" for problem in error.problems]) from None


def _write_client(
    aside: Path, wish: Wish, file: GatewayFile, authority: Issued, wall_now: datetime
) -> str:
    """Write a client's file, check that it can be loaded, and return the client's identity."""
    client_id = _client_id(wish.client, file.gateway.name)
    connection = _connection_for(client_id, file, authority)
    client = _Client(
        id=client_id,
        address=(wish.address or _address_in(connection) or file.gateway.name).removesuffix("."),
        own=issue(authority, [client_id], CLIENT, wall_now),
        authority=authority,
        gateway=file.gateway,
        connection=connection,
        networks=file.pools[connection.pool].networks if connection.pool else (),
    )
    path = aside / wish.client / _CLIENT
    path.parent.mkdir(PRIVATE_DIRECTORY)
    write(path, _client_text(client), PRIVATE)
    load_client(path, wall_now)
    return client_id


def _connection_for(client_id: str, file: GatewayFile, authority: Issued) -> GatewayConnection:
    """The gateway's connection for a client with a certificate of the authority."""
    identity = Identity.parse(client_id)
    for connection in file.connections.values():
        trusted = [each for ca in connection.peer.ca for each in ca.certificates]
        is_expected = IdentityPattern.parse(connection.peer.id).matches(identity)
        if is_expected and authority.certificate in trusted:
            return connection
    raise ConfigError([f"{_GATEWAY}: no connection expects {client_id} certified by {_CA_PEM}"])


def _address_in(connection: GatewayConnection) -> str | None:
    """The IP address that the gateway's certificate names, if it does."""
    if connection.local.certificate is None:
        return None
    names = names_of(connection.local.certificate.certificates[0])
    addresses = [name for name in names if name[0] in (IdType.IPV4_ADDR, IdType.IPV6_ADDR)]
    return str(Identity(*addresses[0])) if addresses else None


def _client_text(client: _Client) -> str:
    reachable = client.connection.child.local_ts
    return f"""\
# {client.id}, a client of the gateway {client.gateway.name}.
# Its private key is in this file: who has the file has the access. Keep it to yourself.
#
#     tunnelwrap connect {_CLIENT}

[client]
{_reach(client)}{_gate(client.gateway)}
[connection]
requests_ipv4 = {str(_of_version(client.networks, 4)).lower()}
requests_ipv6 = {str(_of_version(client.networks, 6)).lower()}

[connection.local]
id = {toml_text(client.id)}
certificate = {_inline(client.own.certificate_pem)}
key = {_inline(client.own.key_pem)}

[connection.peer]
id = {toml_text(client.connection.local.id)}
ca = [{_inline(client.authority.certificate_pem)}]

# What is reached through the tunnel.
[connection.child]
peer_ts = {_list(reachable) if reachable else toml_text(DYNAMIC)}
"""


def _reach(client: _Client) -> str:
    """The entries of the table that says where the gateway is, and how it is reached."""
    gateway, address = client.gateway, client.address
    streams = {"tcp": gateway.tcp_ports, "tls": gateway.tls_ports}
    web = gateway.websocket if _has_web_server(gateway) else None
    entries: dict[str, object] = {"gateway": toml_text(address)}
    if address != gateway.name:
        entries["server_name"] = toml_text(gateway.name)
    carriers = ["udp", *(carrier for carrier, ports in streams.items() if ports)]
    entries["carriers"] = _list(carriers + ["ws"] * (web is not None))
    entries |= {"udp_ike_port": gateway.udp_ike_port, "udp_nat_port": gateway.udp_nat_port}
    entries |= {f"{carrier}_port": ports[0] for carrier, ports in streams.items() if ports}
    if web is not None:
        entries["websocket_path"] = toml_text(web.path.path)
    if gateway.tls and _issuer(gateway.tls) == client.authority.certificate.subject:
        entries["tls_ca"] = _inline(client.authority.certificate_pem)
    return "".join(f"{key} = {value}\n" for key, value in entries.items())


def _gate(gateway: Gateway) -> str:
    """The table with what is to be shown in TLS; a certificate for it is made by its authority."""
    gate = gateway.gate
    if gate is None or gate.client_ca is not None:
        return ""
    shown = {"word": gate.word and gate.word.text, "path": gate.path and gate.path.path}
    lines = [f"{key} = {toml_text(text)}\n" for key, text in shown.items() if text]
    return f"\n[client.gate]\n{''.join(lines)}"


def _has_web_server(gateway: Gateway) -> bool:
    """Whether there is one that WebSockets can be had from: ours, or a proxy's."""
    return bool(gateway.tls_ports or (gateway.websocket and gateway.websocket.ports))


def _issuer(tls: Tls) -> x509.Name:
    return tls.certificate.certificates[0].issuer


# --- text ------------------------------------------------------------------------------------


def _list(values: tuple[object, ...] | list[str]) -> str:
    return f"[{', '.join(toml_text(str(value)) for value in values)}]"


def _inline(pem: str) -> str:
    return f"'''\n{pem}'''"
