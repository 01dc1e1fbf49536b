"""The configuration payload: asking for and giving addresses and DNS. RFC 7296 §2.19, §3.15."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tunnelwrap.iana import CfgAttribute, CfgType
from tunnelwrap.ike.outputs import Lease
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.path import IpAddress
from tunnelwrap.wire.payloads import Configuration, ConfigurationAttribute, Payload

_ADDRESSES = (CfgAttribute.INTERNAL_IP4_ADDRESS, CfgAttribute.INTERNAL_IP6_ADDRESS)
_SERVERS = (CfgAttribute.INTERNAL_IP4_DNS, CfgAttribute.INTERNAL_IP6_DNS)
_IPV6_PREFIX = 128


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a CFG_REQUEST asks for."""

    wants_ipv4: bool
    wants_ipv6: bool
    addresses: tuple[IpAddress, ...]


def request_of(policy: ConnectionPolicy, held: tuple[IpAddress, ...] = ()) -> list[Payload]:
    """Our CFG_REQUEST, if the policy wants addresses; those that we hold are asked for again."""
    kept = {address.version: _address_attribute(address) for address in held}
    attributes: list[ConfigurationAttribute] = []
    if policy.requests_ipv4:
        attributes += [
            kept.get(4, ConfigurationAttribute(CfgAttribute.INTERNAL_IP4_ADDRESS, b"")),
            ConfigurationAttribute(CfgAttribute.INTERNAL_IP4_DNS, b""),
        ]
    if policy.requests_ipv6:
        attributes += [
            kept.get(6, ConfigurationAttribute(CfgAttribute.INTERNAL_IP6_ADDRESS, b"")),
            ConfigurationAttribute(CfgAttribute.INTERNAL_IP6_DNS, b""),
        ]
    if not attributes:
        return []
    attributes.append(ConfigurationAttribute(CfgAttribute.INTERNAL_DNS_DOMAIN, b""))
    return [Configuration(CfgType.REQUEST, tuple(attributes))]


def requested(configuration: Configuration | None) -> Wishes | None:
    """What the peer's CFG_REQUEST asks for; None when it sent none."""
    if configuration is None or configuration.cfg_type != CfgType.REQUEST:
        return None
    kinds = {attribute.type for attribute in configuration.attributes}
    return Wishes(
        CfgAttribute.INTERNAL_IP4_ADDRESS in kinds,
        CfgAttribute.INTERNAL_IP6_ADDRESS in kinds,
        tuple(a for a in _addresses(configuration, _ADDRESSES) if int(a)),
    )


def reply_of(lease: Lease | None) -> list[Payload]:
    """Our CFG_REPLY for a lease."""
    if lease is None:
        return []
    attributes = [
        *(_address_attribute(address) for address in lease.addresses),
        *(_server_attribute(address) for address in lease.dns),
        *(
            ConfigurationAttribute(CfgAttribute.INTERNAL_DNS_DOMAIN, domain.encode("idna"))
            for domain in lease.domains
        ),
    ]
    return [Configuration(CfgType.REPLY, tuple(attributes))]


def lease_of(configuration: Configuration) -> Lease:
    """What a CFG_REPLY assigns to us; attributes that make no sense are passed over."""
    domains = (
        attribute.value.decode("ascii", "replace")
        for attribute in configuration.attributes
        if attribute.type == CfgAttribute.INTERNAL_DNS_DOMAIN and attribute.value
    )
    return Lease(
        _addresses(configuration, _ADDRESSES), _addresses(configuration, _SERVERS), tuple(domains)
    )


def _addresses(
    configuration: Configuration, kinds: tuple[CfgAttribute, CfgAttribute]
) -> tuple[IpAddress, ...]:
    ipv4, ipv6 = kinds
    found: list[IpAddress] = []
    for attribute in configuration.attributes:
        if attribute.type == ipv4 and len(attribute.value) == 4:
            found.append(IPv4Address(attribute.value))
        elif attribute.type == ipv6 and len(attribute.value) in (16, 17):
            found.append(IPv6Address(attribute.value[:16]))  # a prefix length may follow
    return tuple(found)


def _address_attribute(address: IpAddress) -> ConfigurationAttribute:
    if isinstance(address, IPv4Address):
        return ConfigurationAttribute(CfgAttribute.INTERNAL_IP4_ADDRESS, address.packed)
    value = address.packed + bytes([_IPV6_PREFIX])
    return ConfigurationAttribute(CfgAttribute.INTERNAL_IP6_ADDRESS, value)


def _server_attribute(address: IpAddress) -> ConfigurationAttribute:
    kind = (
        CfgAttribute.INTERNAL_IP4_DNS
        if isinstance(address, IPv4Address)
        else CfgAttribute.INTERNAL_IP6_DNS
    )
    return ConfigurationAttribute(kind, address.packed)
