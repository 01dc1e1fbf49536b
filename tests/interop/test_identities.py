"""A PSK with strongSwan under identities of every type, in both roles."""

from dataclasses import replace

import pytest

from tests.interop.lan import ping
from tests.interop.pair import PSK, Pair
from tests.interop.settings import Proof, Settings

pytestmark = [pytest.mark.root, pytest.mark.interop]

IDENTITIES = {
    "fqdn": ("client.example.org", "gateway.example.org"),
    "rfc822-addr": ("client@example.org", "gateway@example.org"),
    "ipv4-addr": ("192.0.2.1", "192.0.2.2"),
    "ipv4-addr-of-nobody": ("198.51.100.7", "203.0.113.7"),
    "ipv6-addr": ("2001:db8::1", "2001:db8::2"),
    "der-asn1-dn": ("C=CH, O=Interop, CN=client", "C=CH, O=Interop, CN=gateway"),
    "key-id": ("@#c0ffee01", "@#c0ffee02"),
}
"""The initiator's and the responder's, in the words of both daemons."""


@pytest.mark.rfc("7296", "3.5")
@pytest.mark.parametrize("kind", IDENTITIES)
def test_identity_of_type(pair: Pair, kind: str) -> None:
    client, gateway = IDENTITIES[kind]
    initiator, responder = Proof(client, gateway, psk=PSK), Proof(gateway, client, psk=PSK)

    assert pair.start(Settings(initiator), Settings(responder)), pair.tunnelwrap.log

    assert ping(pair.lan)
    ours = as_strongswan_prints(client if pair.tunnelwrap_initiates else gateway)
    assert pair.strongswan.logged(f"authentication of '{ours}' with pre-shared key successful")


@pytest.mark.rfc("7296", "3.5")
def test_equal_text_of_another_type_is_another_identity(pair: Pair) -> None:
    client, gateway = IDENTITIES["ipv4-addr"]
    initiator, responder = Proof(client, gateway, psk=PSK), Proof(gateway, client, psk=PSK)
    if pair.tunnelwrap_initiates:
        responder = replace(responder, local_id=f"fqdn:{gateway}")
    else:
        initiator = replace(initiator, local_id=f"fqdn:{client}")

    assert not pair.start(Settings(initiator), Settings(responder))


def as_strongswan_prints(identity: str) -> str:
    """What its log says; an octet string has colons there."""
    if not identity.startswith("@#"):
        return identity
    return bytes.fromhex(identity[2:]).hex(":")
