"""Which identities a certificate binds, as a table."""

import pytest

from tests.kit.certs import authority, entity
from tunnelwrap.auth.certificate import identity_is_bound
from tunnelwrap.auth.identity import Identity
from tunnelwrap.iana import IdType

ROOT = authority("Root")
SANS = ["gw.example.org", "alice@example.org", "192.0.2.1", "2001:db8::1", "*.wild.example.org"]
LEAF = entity("C=CH, O=Acme, CN=other.example.org", ROOT, sans=SANS).certificate
BARE = entity("gw.example.org", ROOT).certificate


@pytest.mark.rfc("4945", "3.1")
@pytest.mark.parametrize(
    ("text", "is_bound"),
    [
        ("gw.example.org", True),
        ("GW.example.org", True),
        ("gw.example.com", False),
        ("alice@example.org", True),
        ("bob@example.org", False),
        ("192.0.2.1", True),
        ("192.0.2.2", False),
        ("2001:db8::1", True),
        ("C=CH, O=Acme, CN=other.example.org", True),
        ("C=ch, O=acme, CN=OTHER.example.org", True),
        ("CN=other.example.org", False),
        ("other.example.org", False),  # a CN is no FQDN
        ("@192.0.2.1", False),  # nor an address written as a name
        ("a.wild.example.org", False),  # nor are wildcards expanded
        ("@#0a0b", False),
    ],
)
def test_table(text: str, is_bound: bool) -> None:  # noqa: FBT001  # a column of the table
    assert identity_is_bound(LEAF, Identity.parse(text)) is is_bound


def test_without_alternative_names_only_the_subject_counts() -> None:
    assert identity_is_bound(BARE, Identity.parse("CN=gw.example.org"))
    assert not identity_is_bound(BARE, Identity.parse("gw.example.org"))


def test_key_ids_are_bound_by_no_certificate() -> None:
    assert not identity_is_bound(BARE, Identity(IdType.KEY_ID, b"gw.example.org"))
