"""Loading, and the validation of chains: each way in which one can be wrong, by its name."""

import hashlib
import re
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.kit.certs import BEGIN, CA, END, KINDS, NOW, Entity, Usage, authority, entity, key
from tests.kit.crypto_vectors import load
from tunnelwrap.crypto.x509 import (
    TrustStore,
    load_certificates,
    load_private_key,
    names_of,
    public_key_of,
)
from tunnelwrap.errors import AuthenticationFailed, ConfigError
from tunnelwrap.iana import IdType

ROOT = authority("Root")
INTERMEDIATE = authority("Intermediate", number=101, issuer=ROOT)
LEAF = entity("gateway", INTERMEDIATE, sans=["gw.example.org"])
PAST = (BEGIN, NOW - timedelta(days=1))
FUTURE = (NOW + timedelta(days=1), END)


def refused(chain: tuple[bytes, ...], *roots: Entity) -> str:
    """The cause that is named when a chain is refused."""
    store = TrustStore([root.certificate for root in roots or (ROOT,)])
    with pytest.raises(AuthenticationFailed) as caught:
        store.validate(chain, NOW)
    return str(caught.value)


def accepted(chain: tuple[bytes, ...], *roots: Entity) -> bool:
    store = TrustStore([root.certificate for root in roots or (ROOT,)])
    return store.validate(chain, NOW) == x509.load_der_x509_certificate(chain[0])


# --- good chains ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_key(kind: str) -> None:
    root = authority("Root", kind, number=7)
    assert accepted(entity("gateway", root, kind=kind).chain, root)


def test_chain_with_intermediates_in_any_order() -> None:
    lower = authority("Lower", number=102, issuer=INTERMEDIATE)
    leaf = entity("gateway", lower)
    assert accepted((leaf.der, lower.der, INTERMEDIATE.der))
    assert accepted((leaf.der, INTERMEDIATE.der, lower.der))
    assert accepted((leaf.der, ROOT.der, INTERMEDIATE.der, lower.der))


def test_unrelated_and_repeated_certificates_do_no_harm() -> None:
    stranger = authority("Stranger", number=103)
    namesake = authority("Intermediate", number=104, issuer=stranger)
    assert accepted((LEAF.der, stranger.der, namesake.der, LEAF.der, INTERMEDIATE.der))
    assert accepted((LEAF.der, INTERMEDIATE.der, namesake.der))


def test_a_trusted_intermediate_is_enough() -> None:
    assert accepted((LEAF.der,), INTERMEDIATE)


def test_two_roots_of_one_name() -> None:
    """A root renewed with a new key, both trusted."""
    assert accepted(LEAF.chain, authority("Root", number=105), ROOT)
    assert accepted(LEAF.chain, ROOT, authority("Root", number=105))


def test_cross_signed_intermediate() -> None:
    other = authority("Other root", number=106)
    crossed = authority("Intermediate", number=101, issuer=other)
    assert accepted((LEAF.der, INTERMEDIATE.der, crossed.der), other)
    assert accepted((LEAF.der, crossed.der, INTERMEDIATE.der), ROOT)


def test_self_signed_gateway_that_is_trusted_itself() -> None:
    own = authority("gateway", number=107, usage=Usage(ca=True, key_usage=None))
    assert accepted((own.der,), own)


@pytest.mark.rfc("4945", "5.1.3.12")
@pytest.mark.parametrize(
    "purposes",
    [
        None,
        [ExtendedKeyUsageOID.SERVER_AUTH],
        [ExtendedKeyUsageOID.CLIENT_AUTH],
        [ExtendedKeyUsageOID.IPSEC_IKE],
        [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE],
        [ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.SERVER_AUTH],
    ],
)
def test_extended_key_usage_for_ike(purposes: list[x509.ObjectIdentifier] | None) -> None:
    assert accepted(entity("gateway", ROOT, usage=Usage(purposes=purposes)).chain)


@pytest.mark.rfc("4945", "5.1.3.2")
@pytest.mark.parametrize("usage", [None, ["digital_signature"], ["content_commitment"]])
def test_key_usage_for_ike(usage: list[str] | None) -> None:
    assert accepted(entity("gateway", ROOT, usage=Usage(key_usage=usage)).chain)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_path_length_that_suffices(depth: int) -> None:
    root = authority("Root", usage=Usage(ca=True, path_length=depth, key_usage=None))
    assert accepted(below(root, depth).chain, root)


def below(root: Entity, depth: int) -> Entity:
    """An end entity under so many intermediates."""
    issuer = root
    for level in range(depth):
        issuer = authority(f"Level {level}", number=110 + level, issuer=issuer)
    return entity("gateway", issuer)


# --- bad chains -----------------------------------------------------------------------------


def test_nothing() -> None:
    assert "no certificate" in refused(())


def test_garbage() -> None:
    assert "cannot be read" in refused((b"\x30\x03abc",))
    assert "cannot be read" in refused((LEAF.der, b""))
    assert "cannot be read" in refused((LEAF.der[:-1],))


def test_expired() -> None:
    cause = refused(entity("gateway", ROOT, valid=PAST).chain)
    assert "CN=gateway" in cause
    assert "expired on 2026-05-31" in cause
    assert "now 2026-06-01" in cause


def test_not_yet_valid() -> None:
    assert "not valid before 2026-06-02" in refused(entity("gateway", ROOT, valid=FUTURE).chain)


def test_expired_intermediate() -> None:
    old = authority("Old", number=120, issuer=ROOT, valid=PAST)
    assert "CN=Old' expired" in refused(entity("gateway", old).chain)


def test_expired_root() -> None:
    old = authority("Old root", number=121, valid=PAST)
    assert "CN=Old root' expired" in refused(entity("gateway", old).chain, old)


def test_validity_is_inclusive() -> None:
    store = TrustStore([ROOT.certificate])
    leaf = entity("gateway", ROOT, valid=(NOW, NOW + timedelta(hours=1)))
    store.validate(leaf.chain, NOW)
    store.validate(leaf.chain, NOW + timedelta(hours=1))
    with pytest.raises(AuthenticationFailed, match="expired"):
        store.validate(leaf.chain, NOW + timedelta(hours=1, seconds=1))
    with pytest.raises(AuthenticationFailed, match="not valid before"):
        store.validate(leaf.chain, NOW - timedelta(seconds=1))


def test_untrusted() -> None:
    stranger = authority("Stranger", number=103)
    assert "issuer 'CN=Stranger' is not trusted" in refused(entity("gateway", stranger).chain)
    sent = (*entity("gateway", stranger).chain, stranger.der)
    assert "issuer 'CN=Stranger' is not trusted" in refused(sent)
    assert "not trusted" in refused(LEAF.chain, stranger)


def test_no_authority_at_all() -> None:
    with pytest.raises(AuthenticationFailed, match="not trusted"):
        TrustStore([]).validate(LEAF.chain, NOW)


def test_self_signed() -> None:
    assert "not trusted" in refused((entity("gateway", None).der,))


def test_missing_intermediate() -> None:
    assert "issuer 'CN=Intermediate' is not trusted" in refused((LEAF.der,))


def test_root_of_the_same_name_and_another_key() -> None:
    impostor = authority("Root", number=122)
    cause = refused(entity("gateway", ROOT).chain, impostor)
    assert "signature on 'CN=gateway' by 'CN=Root' does not verify" in cause


def test_forged_signature() -> None:
    forged = entity("gateway", ROOT, signer=key("p256", 123))
    assert "does not verify" in refused(forged.chain)


@pytest.mark.parametrize("ca", [False, None], ids=["CA:FALSE", "no constraints"])
def test_end_entity_as_issuer(ca: bool | None) -> None:  # noqa: FBT001  # a column of the table
    usage = Usage(ca=ca, key_usage=("digital_signature", "key_cert_sign"))
    user = entity("user", ROOT, number=124, usage=usage)
    assert "'CN=user' is not that of an authority" in refused(entity("gateway", user).chain)


def test_issuer_without_the_right_to_issue() -> None:
    usage = Usage(ca=True, key_usage=("crl_sign", "digital_signature"))
    weak = authority("Weak", number=125, issuer=ROOT, usage=usage)
    assert "'CN=Weak' forbids issuing" in refused(entity("gateway", weak).chain)


@pytest.mark.rfc("5280", "6.1.4")
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_path_too_long(depth: int) -> None:
    usage = Usage(ca=True, path_length=depth - 1, key_usage=None)
    root = authority("Root", usage=usage)
    assert f"path length {depth} under 'CN=Root'" in refused(below(root, depth).chain, root)


def test_path_length_of_an_intermediate() -> None:
    usage = Usage(ca=True, path_length=0, key_usage=None)
    first = authority("First", number=126, issuer=ROOT, usage=usage)
    second = authority("Second", number=127, issuer=first)
    assert "path length 1 under 'CN=First'" in refused(entity("gateway", second).chain)


def test_path_of_nine() -> None:
    assert "more than 8 certificates" in refused(below(ROOT, 8).chain)


def test_key_usage_without_signatures() -> None:
    leaf = entity("gateway", ROOT, usage=Usage(key_usage=("key_encipherment",)))
    assert "key usage of certificate 'CN=gateway' forbids signatures" in refused(leaf.chain)


def test_extended_key_usage_for_something_else() -> None:
    usage = Usage(purposes=[ExtendedKeyUsageOID.CODE_SIGNING])
    assert "extended key usage" in refused(entity("gateway", ROOT, usage=usage).chain)


@pytest.mark.rfc("8247", "3.1.1")
def test_small_rsa() -> None:
    assert "RSA of 1024 bits" in refused(entity("gateway", ROOT, kind="rsa1024").chain)
    weak = authority("Weak", "rsa1024", issuer=ROOT)
    assert "'CN=Weak': key is RSA of 1024" in refused(entity("gateway", weak).chain)


def test_strange_curve() -> None:
    assert "secp256k1" in refused(entity("gateway", ROOT, kind="p256k1").chain)


def test_weak_signature_hash() -> None:
    (case,) = load("sha1_certificate")
    store = TrustStore([x509.load_der_x509_certificate(case["root"])])
    with pytest.raises(AuthenticationFailed, match="CN=gateway' by 'CN=Root' uses sha1"):
        store.validate([case["end_entity"]], datetime(2030, 1, 1, tzinfo=UTC))


def test_unknown_critical_extension() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    leaf = entity("gateway", ROOT, usage=Usage(extra=[(unknown, True)]))
    assert "unknown critical extension 1.2.3.4" in refused(leaf.chain)
    assert accepted(entity("gateway", ROOT, usage=Usage(extra=[(unknown, False)])).chain)


def test_name_constraints_are_not_ignored() -> None:
    constraints = x509.NameConstraints([x509.DNSName("example.org")], None)
    usage = Usage(ca=True, key_usage=None, extra=[(constraints, True)])
    root = authority("Root", usage=usage)
    assert "unknown critical extension 2.5.29.30" in refused(entity("gateway", root).chain, root)


def test_what_a_peer_writes_into_names_stays_on_its_line() -> None:
    assert "\n" not in refused(entity("gate\nway", ROOT, valid=PAST).chain)


def test_a_web_of_authorities_ends() -> None:
    """Sixteen authorities of one name and one key, each a possible issuer of each."""
    web = [authority("Web", number=128, usage=CA) for _ in range(16)]
    chain = (entity("gateway", web[0]).der, *(each.der for each in web))
    assert re.search("not trusted|more than 8", refused(chain))


# --- the rest -------------------------------------------------------------------------------


@pytest.mark.rfc("7296", "3.7")
def test_key_hashes() -> None:
    public = ROOT.key.public_key()
    info = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha1(info, usedforsecurity=False).digest()
    store = TrustStore([ROOT.certificate, INTERMEDIATE.certificate])
    assert store.key_hashes()[:20] == digest
    assert len(store.key_hashes()) == 40


def test_names() -> None:
    sans = ["gw.example.org", "alice@example.org", "192.0.2.1", "2001:db8::1"]
    leaf = entity("C=CH, O=Acme, CN=gateway", ROOT, sans=sans)
    assert names_of(leaf.certificate) == [
        (IdType.FQDN, b"gw.example.org"),
        (IdType.RFC822_ADDR, b"alice@example.org"),
        (IdType.IPV4_ADDR, bytes((192, 0, 2, 1))),
        (IdType.IPV6_ADDR, bytes.fromhex("20010db8000000000000000000000001")),
        (IdType.DER_ASN1_DN, leaf.certificate.subject.public_bytes()),
    ]
    assert [kind for kind, _ in names_of(ROOT.certificate)] == [IdType.DER_ASN1_DN]


def test_names_of_other_kinds_are_left_out() -> None:
    other = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("https://example.org")])
    leaf = entity("gateway", ROOT, usage=Usage(extra=[(other, False)]))
    assert [kind for kind, _ in names_of(leaf.certificate)] == [IdType.DER_ASN1_DN]


def test_a_key_of_another_kind() -> None:
    leaf = entity("gateway", ROOT, kind="x25519")
    assert "'CN=gateway' is not RSA, ECDSA or EdDSA" in refused(leaf.chain)


def test_load_certificates() -> None:
    assert load_certificates(LEAF.pem + ROOT.pem) == [LEAF.certificate, ROOT.certificate]
    assert load_certificates(LEAF.der) == [LEAF.certificate]
    for text in (b"", b"hello", b"-----BEGIN CERTIFICATE-----\nhello\n", LEAF.key_pem):
        with pytest.raises(ConfigError):
            load_certificates(text)


@pytest.mark.parametrize("kind", KINDS)
def test_load_private_key(kind: str) -> None:
    private = key(kind)
    plain = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    loaded = load_private_key(plain, None)
    assert loaded.public_key() == private.public_key()
    assert public_key_of(entity("x", ROOT, kind=kind).certificate) == private.public_key()


def test_load_encrypted_private_key() -> None:
    locked = key("p256").private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    assert load_private_key(locked, b"secret").public_key() == key("p256").public_key()
    for passphrase in (None, b"wrong"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_private_key(locked, passphrase)
    plain = key("p256").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(ConfigError, match="cannot be read"):
        load_private_key(plain, b"needless")


@pytest.mark.parametrize(("kind", "cause"), [("rsa1024", "1024 bits"), ("p256k1", "secp256k1")])
def test_weak_private_keys_are_refused(kind: str, cause: str) -> None:
    plain = key(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(ConfigError, match=cause):
        load_private_key(plain, None)


def test_private_keys_of_other_kinds_are_refused() -> None:
    plain = X25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with pytest.raises(ConfigError, match="neither RSA nor ECDSA nor EdDSA"):
        load_private_key(plain, None)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_private_key(b"hello", None)
