"""What the configuration of a wrapper may say: ``relay`` beside a daemon, ``wrap`` before one."""

from ipaddress import ip_address
from typing import Annotated, Self

from pydantic import Field, model_validator

from tunnelwrap.config.client import Reach
from tunnelwrap.config.fields import (
    Address,
    DeviceName,
    FileName,
    Many,
    Network,
    Port,
    Section,
    wrong,
)
from tunnelwrap.config.model import Positive, StreamPorts
from tunnelwrap.path import IpAddress

Count = Annotated[int, Field(ge=1)]


class Relay(StreamPorts):
    """Where streams are accepted, and which daemon they are for."""

    TABLE = "relay"

    daemon: Address = ip_address("127.0.0.1")
    daemon_port: Port = 4500
    sources: Network | None = None
    clients: Count = 1000
    clients_per_address: Count = 64
    keep_s: Positive = 3600.0
    control_socket: FileName

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if not self.tcp_ports and not self.tls_ports and self.websocket is None:
            raise wrong("a port in tcp_ports or tls_ports")
        if self.sources is not None and self.sources.version != self.daemon.version:
            raise wrong(f"sources of IPv{self.daemon.version}, as daemon is")
        return self


class RelayFile(Section):
    """The configuration of ``tunnelwrap relay``."""

    relay: Relay = Field(description="a table with the name that clients connect to")


class Wrap(Reach):
    """Where the daemon here finds the gateway."""

    listen: Address = ip_address("127.0.0.2")
    ike_port: Port = 500
    nat_port: Port = 4500
    lan: Many[DeviceName] = ()
    control_socket: FileName
    state_directory: FileName

    @property
    def listens_at(self) -> tuple[IpAddress, int, int]:
        """The address, its port for bare IKE, and that for IKE with the marker and ESP."""
        return self.listen, self.ike_port, self.nat_port

    @model_validator(mode="after")
    def _has_two_ports(self) -> Self:
        if self.ike_port == self.nat_port:
            raise wrong("another nat_port than ike_port", f"both are {self.nat_port}")
        return self


class WrapFile(Section):
    """The configuration of ``tunnelwrap wrap``."""

    wrap: Wrap = Field(description="a table with the gateway to wrap the traffic to")
