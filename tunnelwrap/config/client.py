"""What a client's file may say, beside what it shares with a gateway's (``model``)."""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from tunnelwrap.config.credentials import AuthorityCertificates, WebPath
from tunnelwrap.config.fields import CarrierName, FileName, Host, Port, Section, Some, wrong
from tunnelwrap.config.model import ClientChild, Connection, DataPlaneName, check_bare
from tunnelwrap.config.selectors import parse_selector
from tunnelwrap.config.site import ShownAtGate
from tunnelwrap.ike.modes import is_one_host
from tunnelwrap.path import Carrier


def carriers_with(values: Mapping[str, object]) -> tuple[Carrier, ...]:
    """The whole ladder; a WebSocket can be tried only by who knows its path."""
    last = (Carrier.WEBSOCKET,) if values["websocket_path"] else ()
    return (Carrier.UDP, Carrier.TCP, Carrier.TLS, *last)


class Reach(Section):
    """Which gateway, and the ways to reach it."""

    gateway: Host = Field(description="host name or address of the gateway")
    server_name: Host | None = None
    websocket_path: WebPath | None = None
    gate: ShownAtGate | None = None
    carriers: Some[CarrierName] = Field(default_factory=carriers_with)
    udp_ike_port: Port = 500
    udp_nat_port: Port = 4500
    tcp_port: Port = 4500
    tls_port: Port = 443
    tls_ca: AuthorityCertificates | None = None

    @model_validator(mode="after")
    def _knows_where(self) -> Self:
        if Carrier.WEBSOCKET in self.carriers and self.websocket_path is None:
            raise wrong("websocket_path, or carriers without ws")
        return self


class Client(Reach):
    """A client of a gateway, and what it needs besides."""

    dns: bool = True
    data_plane: DataPlaneName = "auto"
    bare_esp: bool = False
    tcp_in_kernel: bool = False
    control_socket: FileName
    state_directory: FileName

    @model_validator(mode="after")
    def _sends_bare_esp(self) -> Self:
        check_bare(self.data_plane, bare_esp=self.bare_esp)
        return self


class ClientConnection(Connection):
    """The gateway as a peer."""

    requests_ipv4: bool = True
    requests_ipv6: bool = True
    follows_redirects: bool = True
    child: ClientChild = ClientChild()


class ClientFile(Section):
    """The configuration of ``tunnelwrap connect``."""

    client: Client = Field(description="a table with the gateway to connect to")
    connection: ClientConnection = Field(description="a table with local, peer and their proofs")

    @model_validator(mode="after")
    def _carries_ah(self) -> Self:
        if self.connection.child.ah and self.client.carriers != (Carrier.UDP,):
            raise wrong('client.carriers = ["udp"] beside ah', "no stream can carry AH")
        return self

    @model_validator(mode="after")
    def _has_one_address_for_beet(self) -> Self:
        connection, child = self.connection, self.connection.child
        if child.mode != "beet":
            return self
        if self.client.carriers != (Carrier.UDP,):
            raise wrong('client.carriers = ["udp"] beside mode = "beet"', "no stream can carry it")
        for key, texts in (("local_ts", child.local_ts), ("peer_ts", child.peer_ts)):
            if texts and not is_one_host([parse_selector(text) for text in texts]):
                raise wrong(f'connection.child.{key} of one address beside mode = "beet"')
        if not child.local_ts and connection.requests_ipv4 and connection.requests_ipv6:
            expected = 'connection.requests_ipv4 or requests_ipv6 = false beside mode = "beet"'
            raise wrong(expected, "it is for one address")
        return self
