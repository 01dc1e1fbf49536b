"""Identities: parse, print, match, as tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.certs import name
from tunnelwrap.auth.identity import Identity, IdentityPattern
from tunnelwrap.errors import ConfigError
from tunnelwrap.iana import IdType

DN = "C=CH, O=Acme, CN=gw"


@pytest.mark.rfc("7296", "3.5")
@pytest.mark.parametrize(
    ("text", "kind", "data", "printed"),
    [
        ("192.0.2.1", IdType.IPV4_ADDR, bytes((192, 0, 2, 1)), None),
        ("2001:db8::1", IdType.IPV6_ADDR, bytes.fromhex("20010db8" + "0" * 23 + "1"), None),
        ("gw.example.org", IdType.FQDN, b"gw.example.org", None),
        (" gw.example.org ", IdType.FQDN, b"gw.example.org", "gw.example.org"),
        ("@gw.example.org", IdType.FQDN, b"gw.example.org", "gw.example.org"),
        ("@192.0.2.1", IdType.FQDN, b"192.0.2.1", "192.0.2.1"),
        ("alice@example.org", IdType.RFC822_ADDR, b"alice@example.org", None),
        ("@@alice@example.org", IdType.RFC822_ADDR, b"alice@example.org", "alice@example.org"),
        ("@#0a0b0c", IdType.KEY_ID, b"\x0a\x0b\x0c", None),
        ("@#0A 0b", IdType.KEY_ID, b"\x0a\x0b", "@#0a0b"),
        (DN, IdType.DER_ASN1_DN, name(DN).public_bytes(), None),
        ("C=CH,O=Acme,CN=gw", IdType.DER_ASN1_DN, name(DN).public_bytes(), DN),
        ("/C=CH/O=Acme/CN=gw", IdType.DER_ASN1_DN, name(DN).public_bytes(), DN),
        ("c=CH, o=Acme, cn=gw", IdType.DER_ASN1_DN, name(DN).public_bytes(), DN),
    ],
)
def test_parse_and_print(text: str, kind: int, data: bytes, printed: str | None) -> None:
    identity = Identity.parse(text)
    assert identity == Identity(kind, data)
    assert str(identity) == (printed or text)


@pytest.mark.parametrize(
    "text",
    ["", "@", "@@", "@#xyz", "two words", "XX=1", "CN=gw, XX", "C=Switzerland"],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        Identity.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        r"O=Acme\, Inc, CN=gw",
        r"CN=a\/b",
        r"CN=back\\slash",
        "CN=a=b",
        "E=a@example.org",
        "DC=org, DC=example",
        "1.2.3.4=value",
        "CN=Zürich",
        "C=CH, ST=Bern, L=Bern, O=A, OU=B, CN=C, UID=d, serialNumber=5",
    ],
)
def test_distinguished_names_come_back(text: str) -> None:
    assert str(Identity.parse(text)) == text


@pytest.mark.parametrize(
    ("identity", "printed"),
    [
        (Identity(IdType.IPV4_ADDR, b"123"), "IPV4_ADDR:313233"),
        (Identity(IdType.IPV6_ADDR, b""), "IPV6_ADDR:"),
        (Identity(IdType.FQDN, b"\xff"), "FQDN:ff"),
        (Identity(IdType.FQDN, b"a\nb"), "FQDN:610a62"),
        (Identity(IdType.RFC822_ADDR, b"\x1b[2J"), "RFC822_ADDR:1b5b324a"),
        (Identity(IdType.DER_ASN1_DN, b"\x30\x05"), "DER_ASN1_DN:3005"),
        (Identity(IdType.DER_ASN1_DN, name("a\nb").public_bytes()), None),
        (Identity(IdType.DER_ASN1_GN, b"\x01"), "DER_ASN1_GN:01"),
        (Identity(IdType.NULL, b""), "%null"),
        (Identity(IdType.NULL, b"x"), "NULL:78"),
        (Identity(77, b"\x01"), "77:01"),
    ],
)
def test_printing_is_total(identity: Identity, printed: str | None) -> None:
    assert str(identity) == (printed or f"DER_ASN1_DN:{identity.data.hex()}")


@given(st.integers(0, 255), st.binary(max_size=60))
def test_whatever_a_peer_sends_can_be_printed_and_compared(kind: int, data: bytes) -> None:
    identity = Identity(kind, data)
    assert str(identity).isprintable()
    assert identity.canonical() == identity.canonical().canonical()
    assert IdentityPattern.parse("%any").matches(identity)


@given(st.binary(max_size=60))
def test_any_mangled_name_can_be_printed(tail: bytes) -> None:
    whole = name(DN).public_bytes()
    for data in (b"\x30" + tail, whole[:5] + tail, bytes((0x30, len(tail))) + tail):
        identity = Identity(IdType.DER_ASN1_DN, data)
        assert str(identity).isprintable()
        assert identity.canonical() == Identity(IdType.DER_ASN1_DN, data).canonical()


@pytest.mark.parametrize(
    ("pattern", "identity", "is_match"),
    [
        ("%any", "gw.example.org", True),
        ("%any", "192.0.2.1", True),
        ("gw.example.org", "gw.example.org", True),
        ("gw.example.org", "GW.Example.ORG", True),
        ("gw.example.org", "gw2.example.org", False),
        ("gw.example.org", "gw.example.org.evil.net", False),
        ("alice@example.org", "Alice@EXAMPLE.org", True),
        ("alice@example.org", "bob@example.org", False),
        ("*.example.org", "gw.example.org", True),
        ("*.example.org", "a.b.example.org", True),
        ("*.Example.org", "gw.EXAMPLE.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", ".example.org", False),
        ("*.example.org", "gwexample.org", False),
        ("*.example.org", "gw@x.example.org", False),
        ("*@example.org", "alice@example.org", True),
        ("*@example.org", "alice@sub.example.org", False),
        ("*@example.org", "alice.example.org", False),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "@192.0.2.1", False),
        ("2001:db8::1", "2001:DB8:0::1", True),
        ("@#0a", "@#0a", True),
        ("@#0a", "@#0A", True),
        ("@#0a", "@#0b", False),
        (DN, DN, True),
        (DN, "C=ch, O=ACME, CN=GW", True),
        (DN, "C=CH, O=Acme, CN=other", False),
        (DN, "CN=gw, O=Acme, C=CH", False),
        (DN, "C=CH, O=Acme, CN=gw, OU=x", False),
    ],
)
def test_matching(pattern: str, identity: str, is_match: bool) -> None:  # noqa: FBT001  # a column
    assert IdentityPattern.parse(pattern).matches(Identity.parse(identity)) is is_match


@pytest.mark.rfc("5280", "7.1")
def test_names_match_whatever_their_string_type() -> None:
    """The same name with PrintableString in place of UTF8String, as others encode it."""
    ours = Identity.parse("CN=gw").data
    theirs = ours.replace(b"\x0c\x02gw", b"\x13\x02gw")
    assert theirs != ours
    assert IdentityPattern.parse("CN=gw").matches(Identity(IdType.DER_ASN1_DN, theirs))


@pytest.mark.parametrize(
    "text", ["*", "*.", "*@", "gw.*.org", "*.*.org", "*example.org", "*@*", ""]
)
def test_patterns_that_do_not_exist(text: str) -> None:
    with pytest.raises(ConfigError):
        IdentityPattern.parse(text)


@pytest.mark.parametrize("text", ["%any", "*.example.org", "*@example.org", "192.0.2.1", DN])
def test_patterns_print_as_written(text: str) -> None:
    assert str(IdentityPattern.parse(text)) == text
