"""Connections for tests: the same facts from both sides, each test changes what it is about."""

from dataclasses import replace
from ipaddress import ip_network

from tunnelwrap.auth.identity import Identity, IdentityPattern
from tunnelwrap.config.suites import parse_esp, parse_ike
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.ike.policy import (
    ChildLifetime,
    ChildPolicy,
    ConnectionPolicy,
    LocalAuthentication,
    PeerAuthentication,
)
from tunnelwrap.wire.payloads import TrafficSelector

CLIENT, GATEWAY = "client@example.org", "vpn.example.org"
IKE, ESP = "aes128gcm16-prfsha256-x25519", "aes128gcm16"
NEVER = ChildLifetime(rekey_s=None, hard_s=None)
PSK = Secret(b"a pre-shared key of some length")


def selectors(*networks: str) -> tuple[TrafficSelector, ...]:
    return tuple(TrafficSelector.from_network(ip_network(network)) for network in networks)


def psk_local(identity: str, psk: Secret = PSK) -> LocalAuthentication:
    return LocalAuthentication(Identity.parse(identity), psk)


def psk_peer(identity: str, psk: Secret = PSK) -> PeerAuthentication:
    return PeerAuthentication(IdentityPattern.parse(identity), psk, None)


def client(ike: str = IKE, esp: str = ESP) -> ConnectionPolicy:
    """A client between 10.1.0.0/24 and the gateway's 10.2.0.0/24."""
    child = ChildPolicy(
        "net", (parse_esp(esp),), selectors("10.1.0.0/24"), selectors("10.2.0.0/24")
    )
    return ConnectionPolicy("home", (parse_ike(ike),), psk_local(CLIENT), psk_peer(GATEWAY), child)


def gateway(ike: str = IKE, esp: str = ESP) -> ConnectionPolicy:
    """The gateway's side of ``client``."""
    child = ChildPolicy(
        "net", (parse_esp(esp),), selectors("10.2.0.0/24"), selectors("10.1.0.0/24")
    )
    return ConnectionPolicy(
        "clients", (parse_ike(ike),), psk_local(GATEWAY), psk_peer(CLIENT), child
    )


def quiet(policy: ConnectionPolicy, lifetime: ChildLifetime = NEVER) -> ConnectionPolicy:
    """A connection that does nothing of its own accord."""
    child = replace(policy.child, lifetime=lifetime)
    return replace(policy, rekey_s=None, hard_s=None, liveness_s=None, child=child)


def road_warrior() -> tuple[ConnectionPolicy, ConnectionPolicy]:
    """A client that asks for an IPv4 address, and the gateway that has a pool."""
    inside = replace(client().child, ts_local=(), ts_peer=selectors("0.0.0.0/0"))
    outside = replace(gateway().child, ts_local=selectors("0.0.0.0/0"), ts_peer=())
    return (
        replace(client(), child=inside, requests_ipv4=True),
        replace(gateway(), child=outside, pool="office"),
    )
