"""What a gateway's file may say, and what it shares with a client's: one class for each table.

Keys carry their unit (``_s`` seconds, ``_octets``, ``_packets``); 0 as a lifetime means never. The
descriptions are printed where a key is missing. Unknown keys are errors. A client's own part is in
``client``, those of wrapper and relay in ``wrapper``.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import combinations
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from tunnelwrap.auth.identity import NOBODY, Identity
from tunnelwrap.config.credentials import (
    AuthorityCertificates,
    ExternalKey,
    OwnCertificates,
    OwnKey,
    PresharedKey,
    Psk,
    PskFile,
    PskVariable,
    WebPath,
    check_identity,
    check_key,
)
from tunnelwrap.config.fields import (
    Address,
    AhSuiteText,
    BackendAddress,
    EspSuiteText,
    FileName,
    Host,
    HttpsUrl,
    IdentityText,
    IkeSuiteText,
    MailAddress,
    Many,
    Network,
    PatternText,
    PoolName,
    Port,
    PpkName,
    ProtocolName,
    Section,
    Selectors,
    ServerName,
    Some,
    is_address,
    wrong,
)
from tunnelwrap.config.site import Cover, Gate
from tunnelwrap.config.suites import DEFAULT_ESP, DEFAULT_IKE
from tunnelwrap.demux.listener import Limits as StreamLimits
from tunnelwrap.demux.routing import Backend, Routing
from tunnelwrap.demux.shown import ACME_PROTOCOL
from tunnelwrap.ike.policy import ChildLifetime, Limits, Retransmission

ALL_ADDRESSES: Final = ("0.0.0.0/0", "::/0")
"""Traffic selectors for everything."""

ANY_ADDRESS: Final = (IPv4Address(0), IPv6Address(0))
"""Where a gateway listens by default: on all its addresses."""

LOOPBACK: Final = (IPv4Address("127.0.0.1"),)
"""Where a gateway listens for a reverse proxy by default: on the same host."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Lifetime = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Amount = Annotated[int, Field(ge=0)]

GRACE: Final = 1.2
"""When an SA ends where nothing is said of it, in times of its rekey; at least a minute later."""

MIN_GRACE_S: Final = 60.0

# What the core does by default, said there.
_CHILD_LIFETIME: Final = ChildLifetime()
_RETRANSMISSION: Final = Retransmission()
_LIMITS: Final = Limits()
_STREAMS: Final = StreamLimits()
_ROUTING: Final = Routing()


def hard_after(values: Mapping[str, object]) -> float:
    """When an SA ends that says nothing of it: some time after its rekey was due."""
    rekey_s = values["rekey_s"]
    assert isinstance(rekey_s, float | int)
    return max(rekey_s * GRACE, rekey_s + MIN_GRACE_S) if rekey_s else 0


def esp_unless_ah(values: Mapping[str, object]) -> tuple[str, ...] | None:
    """What is offered where nothing is said of ESP: nothing of it beside AH."""
    return None if values["ah"] else DEFAULT_ESP


# --- both roles ------------------------------------------------------------------------------


class Local(Section):
    """Who we are, and our certificate if we prove it by one."""

    id: IdentityText = Field(description="our identity, such as vpn.example.org")
    certificate: OwnCertificates | None = None
    key: OwnKey | None = None

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        check_key(self.certificate, self.key)
        if self.certificate is not None and Identity.parse(self.id) == NOBODY:
            raise wrong("no certificate, or another id than %null")
        if self.certificate is not None:
            check_identity(self.certificate, self.id)
        return self


class Peer(Section):
    """Whom we expect, and the authorities that may certify it."""

    id: PatternText = Field(description="the peer's identity: exact, *.domain, *@domain or %any")
    ca: Many[AuthorityCertificates] = ()
    null_authentication: bool = False


class Child(Section):
    """The Child SA: what the tunnel carries, and how long its keys last."""

    ah: Some[AhSuiteText] | None = None
    esp: Some[EspSuiteText] | None = Field(default_factory=esp_unless_ah)
    mode: Literal["tunnel", "transport", "beet"] = "tunnel"
    ipcomp: bool = False
    rekey_s: Lifetime = _CHILD_LIFETIME.rekey_s or 0.0
    hard_s: Lifetime = Field(default_factory=hard_after)
    rekey_octets: Amount = _CHILD_LIFETIME.rekey_octets or 0
    hard_octets: Amount = _CHILD_LIFETIME.hard_octets or 0
    rekey_packets: Amount = _CHILD_LIFETIME.rekey_packets or 0
    hard_packets: Amount = _CHILD_LIFETIME.hard_packets or 0
    replay_window_packets: Annotated[int, Field(ge=32, le=65536)] = 1024
    idle_s: Lifetime = 0.0

    @model_validator(mode="after")
    def _has_one_protocol(self) -> Self:
        if self.ah and self.esp:
            raise wrong("one of esp, ah", "there are both")
        return self

    @model_validator(mode="after")
    def _has_beet_for_esp_alone(self) -> Self:
        if self.mode == "beet" and (self.ah or self.ipcomp):
            raise wrong('neither ah nor ipcomp beside mode = "beet"', "it is for ESP alone")
        return self

    @model_validator(mode="after")
    def _ends_after_rekey(self) -> Self:
        for unit in ("s", "octets", "packets"):
            rekey, hard = getattr(self, f"rekey_{unit}"), getattr(self, f"hard_{unit}")
            check_lifetime(unit, rekey, hard)
        return self


class GatewayChild(Child):
    """A gateway opens everything, to the address that the peer is given."""

    local_ts: Selectors = ALL_ADDRESSES
    peer_ts: Selectors = ()
    single_pair: bool = False


class ClientChild(Child):
    """A client asks for everything, from the address that it is given."""

    local_ts: Selectors = ()
    peer_ts: Selectors = ALL_ADDRESSES
    start: Literal["now", "on-demand"] = "now"

    @model_validator(mode="after")
    def _comes_back(self) -> Self:
        if self.idle_s and self.start == "now":
            raise wrong('start = "on-demand" beside idle_s', "it would not come back")
        return self


class RetransmissionTimes(Section):
    """Back-off of unanswered requests."""

    timeout_s: Positive = _RETRANSMISSION.timeout_s
    factor: Annotated[float, Field(ge=1, le=10)] = _RETRANSMISSION.factor
    tries: Annotated[int, Field(ge=0, le=50)] = _RETRANSMISSION.tries
    reliable_timeout_s: Positive = _RETRANSMISSION.reliable_timeout_s


DataPlaneName = Literal["auto", "kernel", "userspace"]


def check_bare(data_plane: str, *, bare_esp: bool) -> None:
    """Check that ESP without UDP is left to the kernel."""
    if bare_esp and data_plane == "userspace":
        raise wrong('data_plane = "kernel" or "auto" beside bare_esp', "only the kernel sends it")


class Connection(Section):
    """One peer, or one kind of peer."""

    ike: Some[IkeSuiteText] = DEFAULT_IKE
    psk: Psk | None = None
    psk_file: PskFile | None = None
    psk_env: PskVariable | None = None
    ppk_id: PpkName | None = None
    ppk: Psk | None = None
    ppk_file: PskFile | None = None
    ppk_env: PskVariable | None = None
    ppk_required: bool = False
    rekey_s: Lifetime = 14400.0
    hard_s: Lifetime = Field(default_factory=hard_after)
    liveness_s: Lifetime = 30.0
    fragment_size: Annotated[int, Field(ge=256, le=65535)] = 1280
    reauth_s: Lifetime = 0.0
    unique: Literal["replace", "keep", "never"] = "replace"
    resumption: bool = True
    childless: Literal["never", "accept", "require"] = "accept"
    local: Local = Field(description="a table with our id")
    peer: Peer = Field(description="a table with the peer's id")
    retransmission: RetransmissionTimes = RetransmissionTimes()

    @property
    def preshared_key(self) -> PresharedKey | None:
        """The pre-shared key, wherever it is kept."""
        return self.psk or self.psk_file or self.psk_env

    @property
    def postquantum_key(self) -> PresharedKey | None:
        """The post-quantum preshared key, wherever it is kept."""
        return self.ppk or self.ppk_file or self.ppk_env

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        check_lifetime("s", self.rekey_s, self.hard_s)
        kept = [key for key in (self.psk, self.psk_file, self.psk_env) if key is not None]
        if len(kept) > 1:
            raise wrong("one of psk, psk_file, psk_env", "there are several")
        is_nobody = Identity.parse(self.local.id) == NOBODY
        if self.local.certificate is None and not kept and not is_nobody:
            raise wrong("local.certificate with local.key, or psk, psk_file or psk_env")
        if not self.peer.ca and not kept and not self.peer.null_authentication:
            raise wrong("peer.ca, or psk, psk_file or psk_env")
        return self

    @model_validator(mode="after")
    def _has_a_whole_ppk(self) -> Self:
        kept = [key for key in (self.ppk, self.ppk_file, self.ppk_env) if key is not None]
        if len(kept) > 1:
            raise wrong("one of ppk, ppk_file, ppk_env", "there are several")
        if bool(kept) != (self.ppk_id is not None):
            raise wrong("ppk_id with ppk, ppk_file or ppk_env")
        if self.ppk_required and not kept:
            raise wrong("ppk_id with ppk, ppk_file or ppk_env, or ppk_required = false")
        if kept and self.peer.null_authentication and not self.ppk_required:  # RFC 8784 §5.2.3
            raise wrong("ppk_required = true beside null_authentication = true")
        return self


def check_lifetime(unit: str, rekey: float, hard: float) -> None:
    """Check that an SA is rekeyed before it ends."""
    if hard and rekey >= hard:
        why = f"rekey_{unit} is {rekey:g}, hard_{unit} is {hard:g}"
        raise wrong(f"hard_{unit} above rekey_{unit}", why)


# --- gateway ---------------------------------------------------------------------------------


class Tls(Section):
    """The certificate that is shown on the TLS ports."""

    certificate: OwnCertificates = Field(description="the file name of a certificate")
    key: OwnKey = Field(description="the file name of its private key")

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        check_key(self.certificate, self.key)
        if self.certificate.file is None or self.key.file is None:
            raise wrong("file names for certificate and key of TLS", "they stand in this file")
        return self


class Acme(Section):
    """From whom the certificate for the TLS ports is had instead, and how. RFC 8555."""

    directory: HttpsUrl = Field(description="the URL of the ACME server's directory")
    terms_agreed: bool = False
    email: MailAddress | None = None
    challenge: Literal["tls-alpn-01", "http-01"] = "tls-alpn-01"
    http_port: Port = 80
    names: Many[ServerName] = ()
    eab_key_id: str | None = None
    eab_key: ExternalKey | None = None
    ca: AuthorityCertificates | None = None

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if not self.terms_agreed:
            raise wrong("terms_agreed = true, once you have read the terms of the ACME server")
        if any(name.startswith("*.") for name in self.names):
            raise wrong(
                "names without *.", "no challenge that we know proves all names of a domain"
            )
        if (self.eab_key_id is None) != (self.eab_key is None):
            raise wrong("eab_key_id and eab_key together")
        if self.ca is not None and self.ca.file is None:
            raise wrong("a file name for ca", "it stands in this file")
        return self


class WebSocket(Section):
    """Where IKE streams can be had in a WebSocket: on the TLS ports, and for reverse proxies."""

    path: WebPath = Field(description="the secret path, as clients have it: websocket_path")
    ports: Many[Port] = ()
    listen: Some[Address] = LOOPBACK


class ForwardingRoute(Section):
    """Visitors of a stream port who are sent on to a server behind the gateway."""

    begins_with: Literal["tls", "ssh", "openvpn", "http", "other", "silent"] = "tls"
    sni: Many[ServerName] = ()
    alpn: Many[ProtocolName] = ()
    backend: BackendAddress = Field(description="the server's HOST:PORT, such as 127.0.0.1:8443")
    send_proxy: Literal["v1", "v2"] | None = None

    @model_validator(mode="after")
    def _has_names_of_tls_only(self) -> Self:
        if self.begins_with != "tls" and (self.sni or self.alpn):
            raise wrong('begins_with = "tls" beside sni and alpn', f"it is {self.begins_with}")
        return self


class StreamPorts(Section):
    """Where streams are accepted, and what becomes of all who come there."""

    TABLE: ClassVar[str]

    name: Host = Field(description="the name that clients connect to, such as vpn.example.org")
    listen: Some[Address] = ANY_ADDRESS
    tcp_ports: Many[Port] = (4500,)
    tls_ports: Many[Port] = (443,)
    tls: Tls | None = None
    cover: Cover | None = None
    gate: Gate | None = None
    websocket: WebSocket | None = None
    routes: Many[ForwardingRoute] = ()
    route_silence_s: Annotated[float, Field(gt=0, lt=_STREAMS.deadline_s)] = _ROUTING.silence_s
    route_idle_s: Lifetime = _ROUTING.idle_s
    proxies: Many[Network] = ()
    strangers: Annotated[int, Field(ge=1)] = _STREAMS.strangers
    strangers_per_address: Annotated[int, Field(ge=1)] = _STREAMS.strangers_per_origin

    @property
    def names(self) -> frozenset[str]:
        """Names whose TLS ends here, in lower case: its own one, and those of its certificate."""
        return frozenset(self.certified) | {self.name.lower().removesuffix(".")}

    @property
    def certified(self) -> tuple[str, ...]:
        """Names that a certificate by ACME has."""
        return ()

    @model_validator(mode="after")
    def _has_certificate(self) -> Self:
        if self.tls_ports and self.tls is None and not self.certified:
            expected = f"a table [{self.TABLE}.tls] with certificate and key, or tls_ports = []"
            raise wrong(expected)
        return self

    def _stream_ports(self) -> tuple[int, ...]:
        return (*self.tcp_ports, *self.tls_ports)

    @model_validator(mode="after")
    def _listens_once_on_a_port(self) -> Self:
        lists = {"tcp_ports": self.tcp_ports, "tls_ports": self.tls_ports}
        lists["websocket.ports"] = self.websocket.ports if self.websocket else ()
        for (one, ports), (other, others) in combinations(lists.items(), 2):
            if both := set(ports) & set(others):
                raise wrong(f"other ports in {one} than in {other}", f"{min(both)} is in both")
        return self

    @model_validator(mode="after")
    def _keeps_its_own_visitors(self) -> Self:
        for number, route in enumerate(self.routes):
            where = f"routes[{number}]"
            if not self.names.isdisjoint(route.sni) and not route.alpn:
                expected = f"other names than the {self.TABLE}'s, or alpn beside it"
                raise wrong(expected, f"sni of {where}")
            if self._is_own(route.backend):
                expected = f"another backend than the {self.TABLE} itself"
                raise wrong(expected, f"backend of {where}")
        return self

    @model_validator(mode="after")
    def _has_a_site_of_its_own(self) -> Self:
        server = self.cover.proxy if self.cover else None
        if server is not None and self._is_own(server.backend):
            raise wrong(f"another server for cover.proxy than the {self.TABLE} itself")
        paths = self.websocket and self.gate and self.gate.path
        if paths and self.websocket and paths == self.websocket.path:
            raise wrong("other paths in gate than in websocket", "it is the same one")
        return self

    def _is_own(self, backend: Backend) -> bool:
        """Whether that is a stream port of ours, as far as can be seen here."""
        listening = [(self.listen, self._stream_ports())]
        if self.websocket:
            listening.append((self.websocket.listen, self.websocket.ports))
        return any(
            backend.port in ports and backend.host in self._names_of(addresses)
            for addresses, ports in listening
        )

    def _names_of(self, addresses: Iterable[IPv4Address | IPv6Address]) -> set[str]:
        """What reaches us there."""
        names = {str(address) for address in addresses}
        if names & {str(address) for address in ANY_ADDRESS}:
            names |= {self.name, "localhost", "127.0.0.1", "::1"}
        return names


class Gateway(StreamPorts):
    """Where a gateway listens, and what it needs besides."""

    TABLE = "gateway"

    acme: Acme | None = None
    udp_ike_port: Port = 500
    udp_nat_port: Port = 4500
    half_open: Annotated[int, Field(ge=1)] = _LIMITS.half_open
    half_open_s: Positive = _LIMITS.half_open_s
    half_open_per_address: Annotated[int, Field(ge=1)] = _LIMITS.half_open_per_address
    cookie_threshold: Amount = _LIMITS.cookie_threshold
    child_sas: Annotated[int, Field(ge=1)] = _LIMITS.child_sas
    redirect_to: Host | None = None
    data_plane: DataPlaneName = "auto"
    bare_esp: bool = False
    tcp_in_kernel: bool = False
    control_socket: FileName
    state_directory: FileName

    @property
    def certified(self) -> tuple[str, ...]:
        """Names that a certificate by ACME has."""
        own = (self.name.lower().removesuffix("."),)
        return () if self.acme is None else self.acme.names or own

    @model_validator(mode="after")
    def _can_have_certificate(self) -> Self:
        if self.acme is None:
            return self
        if self.tls is not None or not self.tls_ports:
            raise wrong("one of [gateway.tls] and [gateway.acme], and tls_ports")
        if not self.acme.names and is_address(self.name):
            raise wrong("acme.names", "the gateway's name is an address")
        is_asked_elsewhere = any(ACME_PROTOCOL in route.alpn for route in self.routes)
        if self.acme.challenge == "tls-alpn-01" and is_asked_elsewhere:
            raise wrong('challenge = "http-01", or no route for acme-tls/1')
        web = self.websocket.ports if self.websocket else ()
        others = {*self._stream_ports(), *web}
        if self.acme.challenge == "http-01" and self.acme.http_port in others:
            raise wrong("an http_port of its own", f"{self.acme.http_port} is another port already")
        return self

    @model_validator(mode="after")
    def _sends_bare_esp(self) -> Self:
        check_bare(self.data_plane, bare_esp=self.bare_esp)
        return self

    @model_validator(mode="after")
    def _has_two_udp_ports(self) -> Self:
        if self.udp_ike_port == self.udp_nat_port:
            raise wrong("another udp_nat_port than udp_ike_port", f"both are {self.udp_nat_port}")
        return self


class Pool(Section):
    """Addresses for clients, and what else they are told."""

    networks: Some[Network] = Field(description='a list of networks, such as ["10.20.0.0/24"]')
    dns: Many[Address] = ()
    domains: Many[Host] = ()
    masquerade: bool = True


class GatewayConnection(Connection):
    """Clients that may connect."""

    pool: PoolName | None = None
    redirect_to: Host | None = None
    child: GatewayChild = GatewayChild()


class GatewayFile(Section):
    """The configuration of ``tunnelwrap serve``."""

    gateway: Gateway = Field(description="a table with the gateway's name")
    pools: dict[str, Pool] = Field(default_factory=dict)
    connections: Annotated[dict[str, GatewayConnection], Field(min_length=1)] = Field(
        description="a table [connections.NAME] for each kind of client"
    )

    @model_validator(mode="after")
    def _gives_an_address_once(self) -> Self:
        check_networks(network for pool in self.pools.values() for network in pool.networks)
        return self


def check_networks(networks: Iterable[IPv4Network | IPv6Network]) -> None:
    """Check that no address is in two networks of pools; two clients could have it then."""
    for one, other in combinations(networks, 2):
        if one.version == other.version and one.overlaps(other):
            raise wrong("networks without a common address", f"{one} and {other} overlap")
