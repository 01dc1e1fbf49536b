"""Who is sent on to a server behind us, by the first octets and by what a ClientHello asks for.

The first route that fits counts. Nothing is read here, and nothing is known of sockets.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from tunnelwrap.demux.sniff import Verdict
from tunnelwrap.path import IpAddress
from tunnelwrap.wire.tls import ClientHello


@dataclass(frozen=True, slots=True)
class Backend:
    """A server behind us, and whether it is told who comes, by a PROXY header of that version."""

    host: str
    port: int
    send_proxy: Literal["v1", "v2"] | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Route:
    """Where visitors of one kind go.

    Args:
        first: what they begin with.
        backend: where they go.
        sni: of TLS, the server names: as they are, or with a ``*.`` in front for all below; none:
            every name, and none.
        alpn: of TLS, the protocols of which one must be offered; none: any.
    """

    first: Verdict
    backend: Backend
    sni: tuple[str, ...] = ()
    alpn: tuple[str, ...] = ()

    def takes(self, hello: ClientHello, own_names: frozenset[str]) -> bool:
        """Whether it fits. Our own names are left here, unless the route asks for a protocol.

        Names are compared without regard to case. RFC 6066 §3.
        """
        name = (hello.sni or "").lower().removesuffix(".")
        if name in own_names and not self.alpn:
            return False
        has_protocol = not self.alpn or not set(self.alpn).isdisjoint(hello.alpn)
        return has_protocol and (not self.sni or any(_fits(name, each) for each in self.sni))


def _fits(name: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) >= len(pattern)
    return name == pattern


@dataclass(frozen=True, slots=True)
class Routing:
    """All routes, and what it takes to find one.

    Args:
        routes: in the order in which they are tried; names in them are in lower case.
        own_names: whose TLS ends here; in lower case.
        proxies: whose connections begin with a PROXY header, which is believed; no one else's may.
        silence_s: how long a visitor may say nothing until the route for silent ones is taken.
        idle_s: how long nobody may say anything on a connection that was sent on; 0: for ever.
    """

    routes: tuple[Route, ...] = ()
    own_names: frozenset[str] = frozenset()
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    silence_s: float = 3.0
    idle_s: float = 600.0

    @property
    def asked(self) -> frozenset[Verdict]:
        """What makes a difference in the first octets."""
        proxy = {Verdict.PROXY} if self.proxies else set[Verdict]()
        return frozenset({route.first for route in self.routes} | proxy)

    def trusts(self, ip: IpAddress) -> bool:
        """Whether it is one of our proxies."""
        return any(ip in network for network in self.proxies)

    def backend_of(self, first: Verdict) -> Backend | None:
        """Who serves those who begin so, and not with TLS."""
        return next((route.backend for route in self._of(first)), None)

    def backend_for(self, hello: ClientHello) -> Backend | None:
        """Who serves a TLS client; None: we do."""
        fitting = (each for each in self._of(Verdict.TLS) if each.takes(hello, self.own_names))
        return next((route.backend for route in fitting), None)

    def _of(self, first: Verdict) -> Iterator[Route]:
        return (route for route in self.routes if route.first is first)
