"""CP payloads: what is asked for, what is given, and what other peers write."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.kit.policies import client
from tunnelwrap.iana import CfgAttribute, CfgType
from tunnelwrap.ike.configuration import lease_of, reply_of, request_of, requested
from tunnelwrap.ike.outputs import Lease
from tunnelwrap.wire.payloads import Configuration, ConfigurationAttribute

LEASE = Lease(
    (ip_address("10.9.0.2"), ip_address("fd00::2")),
    (ip_address("10.9.0.1"), ip_address("fd00::1")),
    ("corp.example", "b\u00fccher.example"),
)


def attribute(kind: CfgAttribute | int, value: bytes = b"") -> ConfigurationAttribute:
    return ConfigurationAttribute(kind, value)


@pytest.mark.rfc("7296", "3.15.1")
@pytest.mark.parametrize("ipv4", [True, False])
@pytest.mark.parametrize("ipv6", [True, False])
def test_a_request_asks_for_what_the_policy_wants(*, ipv4: bool, ipv6: bool) -> None:
    payloads = request_of(replace(client(), requests_ipv4=ipv4, requests_ipv6=ipv6))
    if not (ipv4 or ipv6):
        assert payloads == []
        return
    (payload,) = payloads
    assert isinstance(payload, Configuration)
    wishes = requested(payload)
    assert wishes is not None
    assert (wishes.wants_ipv4, wishes.wants_ipv6, wishes.addresses) == (ipv4, ipv6, ())


@pytest.mark.rfc("7296", "3.15.3")
def test_a_lease_survives_the_wire() -> None:
    (payload,) = reply_of(LEASE)
    assert isinstance(payload, Configuration)
    found = lease_of(payload)
    assert (found.addresses, found.dns) == (LEASE.addresses, LEASE.dns)
    assert found.domains == ("corp.example", "xn--bcher-kva.example")
    assert reply_of(None) == []


def test_wishes_for_known_addresses_are_kept_and_zeros_are_none() -> None:
    wishes = requested(
        Configuration(
            CfgType.REQUEST,
            (
                attribute(CfgAttribute.INTERNAL_IP4_ADDRESS, bytes([10, 9, 0, 7])),
                attribute(CfgAttribute.INTERNAL_IP4_ADDRESS, bytes(4)),
                attribute(CfgAttribute.INTERNAL_IP6_ADDRESS, bytes(17)),
            ),
        )
    )
    assert wishes is not None
    assert wishes.addresses == (ip_address("10.9.0.7"),)
    assert wishes.wants_ipv6


@pytest.mark.parametrize("payload", [None, Configuration(CfgType.REPLY, ())])
def test_without_a_request_there_are_no_wishes(payload: Configuration | None) -> None:
    assert requested(payload) is None


def test_attributes_that_make_no_sense_are_passed_over() -> None:
    reply = Configuration(
        CfgType.REPLY,
        (
            attribute(CfgAttribute.INTERNAL_IP4_ADDRESS, b"abc"),
            attribute(CfgAttribute.INTERNAL_IP6_ADDRESS, bytes(15) + b"\x01"),
            attribute(CfgAttribute.INTERNAL_IP4_DNS, b"abcde"),
            attribute(CfgAttribute.INTERNAL_DNS_DOMAIN, b""),
            attribute(CfgAttribute.INTERNAL_DNS_DOMAIN, b"\xff.example"),
            attribute(999, b"?"),
        ),
    )
    lease = lease_of(reply)
    assert lease.addresses == (ip_address("::1"),)
    assert lease.dns == ()
    assert lease.domains == ("\ufffd.example",)
