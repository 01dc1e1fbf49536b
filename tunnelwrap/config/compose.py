"""A checked configuration into the settings that the core obeys."""

from dataclasses import replace

from cryptography.hazmat.primitives.serialization import Encoding

from tunnelwrap.auth.identity import NOBODY, Identity, IdentityPattern
from tunnelwrap.config.client import ClientFile
from tunnelwrap.config.model import (
    ClientChild,
    Connection,
    Gateway,
    GatewayChild,
    GatewayFile,
    Local,
    Peer,
    StreamPorts,
)
from tunnelwrap.config.selectors import parse_selector
from tunnelwrap.config.suites import parse_ah, parse_esp, parse_ike
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.x509 import TrustStore
from tunnelwrap.demux.listener import Limits as StreamLimits
from tunnelwrap.demux.routing import Route, Routing
from tunnelwrap.demux.sniff import Verdict
from tunnelwrap.ike.child_sa import Mode
from tunnelwrap.ike.policy import (
    CertificateCredential,
    Childless,
    ChildLifetime,
    ChildPolicy,
    ConnectionPolicy,
    Limits,
    LocalAuthentication,
    NoCredential,
    PeerAuthentication,
    Ppk,
    Retransmission,
    Unique,
)


def connection_policies(file: GatewayFile | ClientFile) -> tuple[ConnectionPolicy, ...]:
    """The connections of a configuration; a client has one, named for its gateway."""
    if isinstance(file, ClientFile):
        connection = file.connection
        policy = _policy(file.client.gateway, connection, connection.child)
        wishes = connection.requests_ipv4, connection.requests_ipv6
        return (
            replace(
                policy,
                requests_ipv4=wishes[0],
                requests_ipv6=wishes[1],
                follows_redirects=connection.follows_redirects,
            ),
        )
    return tuple(
        replace(
            _policy(name, connection, connection.child),
            pool=connection.pool,
            redirect_to=connection.redirect_to,
        )
        for name, connection in file.connections.items()
    )


def limits(gateway: Gateway) -> Limits:
    """What strangers may cost a gateway."""
    return Limits(
        gateway.half_open,
        gateway.half_open_s,
        gateway.child_sas,
        half_open_per_address=gateway.half_open_per_address,
        cookie_threshold=gateway.cookie_threshold,
    )


def stream_limits(own: StreamPorts, descriptors: int) -> StreamLimits:
    """What those who come by TCP may cost, on each port.

    Who is sent on to a server has two descriptors: all of them together get half of what there is,
    and those of one address no more than half of that. Strangers get an eighth.
    """
    allowed = StreamLimits(own.strangers, own.strangers_per_address)
    ports = max(len(own.tcp_ports) + len(own.tls_ports), 1)
    forwarded = min(allowed.forwarded, descriptors // 4 // ports)
    per_origin = min(allowed.forwarded_per_origin, max(forwarded // 2, 1))
    strangers = min(allowed.strangers, max(descriptors // 8 // ports, 1))
    return StreamLimits(
        strangers=strangers,
        strangers_per_origin=min(allowed.strangers_per_origin, strangers),
        forwarded=forwarded,
        forwarded_per_origin=per_origin,
    )


def routing(own: StreamPorts) -> Routing:
    """Which of them are for servers behind us."""
    routes = tuple(
        Route(
            Verdict(each.begins_with),
            replace(each.backend, send_proxy=each.send_proxy),
            each.sni,
            each.alpn,
        )
        for each in own.routes
    )
    return Routing(
        routes,
        own_names=own.names,
        proxies=own.proxies,
        silence_s=own.route_silence_s,
        idle_s=own.route_idle_s,
    )


def _policy(
    name: str, connection: Connection, child: GatewayChild | ClientChild
) -> ConnectionPolicy:
    """What both roles have in common."""
    shared = connection.preshared_key
    psk = shared.secret if shared else None
    times = connection.retransmission
    return ConnectionPolicy(
        name=name,
        proposals=tuple(parse_ike(text) for text in connection.ike),
        local=_local(connection.local, psk),
        peer=_peer(connection.peer, psk),
        child=_child(name, child),
        rekey_s=connection.rekey_s or None,
        hard_s=connection.hard_s or None,
        liveness_s=connection.liveness_s or None,
        reauth_s=connection.reauth_s or None,
        unique=Unique(connection.unique),
        childless=Childless(connection.childless),
        resumption=connection.resumption,
        retransmission=Retransmission(
            times.timeout_s, times.factor, times.tries, times.reliable_timeout_s
        ),
        fragment_size=connection.fragment_size,
        ppk=_ppk(connection),
    )


def _ppk(connection: Connection) -> Ppk | None:
    key = connection.postquantum_key
    if key is None or connection.ppk_id is None:
        return None
    return Ppk(connection.ppk_id.encode(), key.secret, connection.ppk_required)


def _local(local: Local, psk: Secret | None) -> LocalAuthentication:
    """A certificate if there is one, else the pre-shared key; nobody has neither."""
    identity = Identity.parse(local.id)
    if local.certificate is not None and local.key is not None:
        chain = tuple(each.public_bytes(Encoding.DER) for each in local.certificate.certificates)
        return LocalAuthentication(identity, CertificateCredential(chain, local.key.key))
    if identity == NOBODY:
        return LocalAuthentication(identity, NoCredential())
    assert psk is not None  # Connection checked that there is a proof
    return LocalAuthentication(identity, psk)


def _peer(peer: Peer, psk: Secret | None) -> PeerAuthentication:
    authorities = [certificate for ca in peer.ca for certificate in ca.certificates]
    trust = TrustStore(authorities) if authorities else None
    pattern = IdentityPattern.parse(peer.id)
    return PeerAuthentication(pattern, psk, trust, accepts_null=peer.null_authentication)


def _child(name: str, child: GatewayChild | ClientChild) -> ChildPolicy:
    return ChildPolicy(
        name=name,
        proposals=(*map(parse_ah, child.ah or ()), *map(parse_esp, child.esp or ())),
        ts_local=tuple(parse_selector(text) for text in child.local_ts),
        ts_peer=tuple(parse_selector(text) for text in child.peer_ts),
        mode=Mode(child.mode),
        lifetime=ChildLifetime(
            rekey_s=child.rekey_s or None,
            hard_s=child.hard_s or None,
            rekey_octets=child.rekey_octets or None,
            hard_octets=child.hard_octets or None,
            rekey_packets=child.rekey_packets or None,
            hard_packets=child.hard_packets or None,
        ),
        replay_window=child.replay_window_packets,
        ipcomp=child.ipcomp,
        single_pair=isinstance(child, GatewayChild) and child.single_pair,
        on_demand=isinstance(child, ClientChild) and child.start == "on-demand",
        idle_s=child.idle_s or None,
    )
