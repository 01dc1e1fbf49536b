"""IKE_AUTH that ends well and badly: keys, names, certificates; and what each side's log says."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address

import pytest

from tests.flows.scripted import ScriptedInitiator
from tests.kit import certs
from tests.kit.certs import Entity, authority, entity
from tests.kit.pair import Pair, address
from tests.kit.policies import client, gateway, psk_local, psk_peer, road_warrior
from tunnelwrap.auth.identity import NOBODY, Identity, IdentityPattern
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.x509 import TrustStore
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.outputs import AskLease, Closed, Established, Lease
from tunnelwrap.ike.policy import (
    CertificateCredential,
    ConnectionPolicy,
    LocalAuthentication,
    NoCredential,
    PeerAuthentication,
)
from tunnelwrap.path import Carrier
from tunnelwrap.wire.payloads import Auth, Notify, Payload

ROOT, OTHER_ROOT = authority("Root"), authority("Other", number=101)
GATEWAY = entity("CN=gateway", ROOT, number=1, sans=["vpn.example.org"])
CLIENT = entity("CN=client", ROOT, number=2, sans=["client@example.org"])
ANYBODY = IdentityPattern.parse("%any")
LATER = certs.END + timedelta(days=1)


def shows(policy: ConnectionPolicy, who: Entity) -> ConnectionPolicy:
    credential = CertificateCredential(who.chain, who.key)
    return replace(policy, local=LocalAuthentication(policy.local.identity, credential))


def trusts(policy: ConnectionPolicy, *roots: Entity, name: str | None = None) -> ConnectionPolicy:
    pattern = policy.peer.identity if name is None else IdentityPattern.parse(name)
    store = TrustStore([root.certificate for root in roots])
    return replace(policy, peer=PeerAuthentication(pattern, None, store))


def pair_of(
    client_entity: Entity = CLIENT, gateway_entity: Entity = GATEWAY, **options: object
) -> Pair:
    ours = trusts(shows(client(), client_entity), ROOT)
    theirs = trusts(shows(gateway(), gateway_entity), ROOT)
    return Pair(ours, theirs, **options)


@pytest.mark.rfc("7427", "3")
@pytest.mark.parametrize("kind", certs.KINDS)
def test_both_sides_show_certificates(kind: str) -> None:
    mine = entity("CN=client", ROOT, kind=kind, sans=["client@example.org"])
    pair = pair_of(client_entity=mine)
    pair.connect()
    assert pair.agreed()
    assert pair.i.fact(Established) is not None


@pytest.mark.rfc("7296", "3.6")
def test_intermediates_travel_along() -> None:
    middle = authority("Middle", issuer=ROOT, number=102)
    pair = pair_of(client_entity=entity("CN=client", middle, sans=["client@example.org"]))
    pair.connect()
    assert pair.agreed()


def test_a_certificate_on_one_side_and_a_pre_shared_key_on_the_other() -> None:
    ours = replace(trusts(client(), ROOT))
    theirs = shows(gateway(), GATEWAY)
    pair = Pair(ours, theirs)
    pair.connect()
    assert pair.agreed()


EXPIRED = entity(
    "CN=client", ROOT, sans=["client@example.org"], valid=(certs.BEGIN, certs.BEGIN + timedelta(1))
)
FUTURE = entity(
    "CN=client", ROOT, sans=["client@example.org"], valid=(certs.END - timedelta(1), certs.END)
)
UNTRUSTED = entity("CN=client", OTHER_ROOT, sans=["client@example.org"])
NAMELESS = entity("CN=client", ROOT, sans=["someone@example.org"])


@pytest.mark.rfc("7296", "2.21.2")
@pytest.mark.parametrize("carrier", [Carrier.UDP, Carrier.TLS])
@pytest.mark.parametrize(
    ("mine", "cause"),
    [
        (EXPIRED, "expired on"),
        (FUTURE, "not valid before"),
        (UNTRUSTED, "Other"),
        (NAMELESS, "is not for client@example.org"),
    ],
    ids=["expired", "future", "untrusted", "nameless"],
)
def test_a_bad_certificate_of_the_initiator_is_refused_and_named(
    mine: Entity, cause: str, carrier: Carrier
) -> None:
    pair = pair_of(client_entity=mine, carrier=carrier)
    pair.connect()
    ours, theirs = pair.i.fact(Closed), pair.r.fact(Closed)
    assert ours is not None
    assert theirs is not None
    assert ours.notify == theirs.notify == NotifyType.AUTHENTICATION_FAILED
    assert "the peer's log has the cause" in ours.hint
    assert f"client@example.org at {carrier.value} 192.0.2.1:4500" in theirs.reason
    assert cause in theirs.reason
    assert not theirs.was_established
    assert theirs.is_failure


@pytest.mark.rfc("7296", "2.21.2")
@pytest.mark.parametrize(
    ("theirs", "cause"),
    [
        (entity("CN=gateway", OTHER_ROOT, sans=["vpn.example.org"]), "Other"),
        (entity("CN=gateway", ROOT, sans=["other.example.org"]), "is not for vpn.example.org"),
        (
            entity(
                "CN=gateway",
                ROOT,
                sans=["vpn.example.org"],
                valid=(certs.BEGIN, certs.BEGIN + timedelta(1)),
            ),
            "expired on",
        ),
    ],
    ids=["untrusted", "nameless", "expired"],
)
def test_a_bad_certificate_of_the_responder_is_refused_and_told(theirs: Entity, cause: str) -> None:
    pair = pair_of(gateway_entity=theirs)
    pair.connect()
    ours, there = pair.i.fact(Closed), pair.r.fact(Closed)
    assert ours is not None
    assert there is not None
    assert cause in ours.reason
    assert "peer says AUTHENTICATION_FAILED" in there.reason
    assert not pair.r.plane.installed


def wrong_psk(policy: ConnectionPolicy) -> ConnectionPolicy:
    return replace(policy, local=psk_local(str(policy.local.identity), Secret(b"wrong")))


def signing_with_the_key_of_another(policy: ConnectionPolicy) -> ConnectionPolicy:
    stolen = Entity(CLIENT.certificate, certs.key("p256", 77), ROOT)
    return shows(policy, stolen)


CAUSES: list[tuple[str, Callable[[ConnectionPolicy], ConnectionPolicy], ConnectionPolicy, str]] = [
    ("wrong psk", wrong_psk, gateway(), "the pre-shared keys differ"),
    (
        "stranger",
        lambda p: replace(p, local=psk_local("stranger@example.net")),
        gateway(),
        "no connection is for a peer called stranger@example.net",
    ),
    (
        "other name asked for",
        lambda p: replace(p, peer=psk_peer("other.example.org")),
        gateway(),
        "asks for other.example.org, we are vpn.example.org",
    ),
    (
        "psk for certificate",
        lambda p: p,
        trusts(gateway(), ROOT),
        "used a pre-shared key, a certificate is expected",
    ),
    (
        "certificate for psk",
        lambda p: shows(p, CLIENT),
        gateway(),
        "used a certificate, a pre-shared key is expected",
    ),
    (
        "foreign key",
        signing_with_the_key_of_another,
        trusts(gateway(), ROOT),
        "does not verify",
    ),
    (
        "no certificate",
        lambda p: shows(p, Entity(CLIENT.certificate, CLIENT.key, None)),
        trusts(gateway(), ROOT),
        "sent no certificate",
    ),
]


@pytest.mark.parametrize(
    ("change", "responder", "cause"), [c[1:] for c in CAUSES], ids=[c[0] for c in CAUSES]
)
def test_every_refusal_of_ike_auth_names_its_cause_and_the_peer(
    change: Callable[[ConnectionPolicy], ConnectionPolicy],
    responder: ConnectionPolicy,
    cause: str,
) -> None:
    pair = Pair(change(client()), responder)
    pair.connect()
    ours, theirs = pair.i.fact(Closed), pair.r.fact(Closed)
    assert ours is not None
    assert theirs is not None
    assert ours.notify == NotifyType.AUTHENTICATION_FAILED
    assert cause in theirs.reason
    assert "AUTHENTICATION_FAILED" in theirs.reason
    assert "@example" in theirs.reason
    assert "192.0.2.1:4500" in theirs.reason
    assert not theirs.was_established
    assert not pair.r.facts[:-1], "nothing else was said about it"


def test_a_responder_with_the_wrong_key_is_told_so() -> None:
    pair = Pair(client(), wrong_psk(gateway()))
    pair.connect()
    closed, there = pair.i.fact(Closed), pair.r.fact(Closed)
    assert closed is not None
    assert there is not None
    assert "pre-shared keys differ" in closed.reason
    assert there.was_established, "it had accepted us already"
    assert "client@example.org" in there.reason
    assert not pair.i.plane.installed
    assert not pair.r.plane.installed


def test_a_responder_with_another_name_is_not_accepted() -> None:
    ours = replace(client(), peer=psk_peer("*.example.com"))
    pair = Pair(ours, replace(gateway(), local=psk_local("other.example.org")))
    pair.connect()
    closed = pair.i.fact(Closed)
    assert closed is not None
    assert "the peer is other.example.org, expected *.example.com" in closed.reason


def test_the_connection_is_found_by_the_identity() -> None:
    other = replace(gateway(), name="others", peer=psk_peer("*@example.net", Secret(b"theirs")))
    pair = Pair(client(), [other, gateway()])
    pair.connect()
    established = pair.r.fact(Established)
    assert established is not None
    assert established.connection == "clients"


def test_among_equal_identities_the_connection_that_can_judge_is_taken() -> None:
    by_certificate = replace(trusts(gateway(), ROOT), name="certificates")
    pair = Pair(client(), [by_certificate, gateway()])
    pair.connect()
    established = pair.r.fact(Established)
    assert established is not None
    assert established.connection == "clients"


def test_a_suite_of_another_connection_does_not_count() -> None:
    """IKE_SA_INIT cannot know yet for whom it is; IKE_AUTH holds it against the connection."""
    weak = replace(gateway("aes128-sha256-modp2048"), name="old", peer=psk_peer("*@example.net"))
    pair = Pair(client("aes128-sha256-modp2048"), [weak, gateway()])
    pair.connect()
    closed = pair.r.fact(Closed)
    assert closed is not None
    assert "is not a proposal of clients" in closed.reason
    assert pair.r.fact(Established) is None


def test_names_differ_by_more_than_case() -> None:
    ours = replace(client(), peer=psk_peer("VPN.Example.ORG"))
    pair = Pair(ours, gateway())
    pair.connect()
    assert pair.agreed()


def test_a_half_open_ike_sa_is_told_as_such() -> None:
    pair = Pair(client(), gateway())
    pair.i.authenticates = False
    pair.connect(until=40.0)
    closed = pair.r.fact(Closed)
    assert closed is not None
    assert not closed.was_established
    assert closed.reason == "a peer at udp 192.0.2.1:4500 did not authenticate itself within 30 s"


def test_identities_that_print_badly_cannot_forge_log_lines() -> None:
    nasty = replace(client(), local=replace(client().local, identity=Identity(2, b"x\nroot: ok")))
    pair = Pair(nasty, gateway())
    pair.connect()
    closed = pair.r.fact(Closed)
    assert closed is not None
    assert "\n" not in closed.reason
    assert str(address("192.0.2.1")) in closed.reason


@pytest.mark.rfc("8420", "2")
def test_a_responder_that_cannot_sign_for_this_peer_says_so_also_after_a_lease() -> None:
    """An Ed25519 key needs RFC 7427, which this initiator does not know."""
    mine = entity("CN=gateway", ROOT, kind="ed25519", sans=["vpn.example.org"])
    _, outside = road_warrior()
    lease = Lease((ip_address("10.9.0.2"),))
    for policy in (shows(gateway(), mine), shows(outside, mine)):
        peer = ScriptedInitiator(replace(client(), requests_ipv4=True), policy)
        init = peer.connect(change_init=without_hashes)
        if init is None:
            ask = peer.fact(AskLease)
            assert ask is not None
            peer.endpoint.answer(ask, lease, peer.now)
            (octets,) = peer.drain()
            init = peer.open(octets)
        assert init.notify(NotifyType.AUTHENTICATION_FAILED) is not None
        closed = peer.fact(Closed)
        assert closed is not None
        assert "cannot verify an Ed25519 key" in closed.reason
        assert "client@example.org" in closed.reason
        assert closed.lease == (lease if policy.pool else None)


def without_hashes(payloads: list[Payload]) -> list[Payload]:
    return [
        p
        for p in payloads
        if not (isinstance(p, Notify) and p.notify == NotifyType.SIGNATURE_HASH_ALGORITHMS)
    ]


# --- no authentication at all -----------------------------------------------------------------


def anonymous(policy: ConnectionPolicy) -> ConnectionPolicy:
    return replace(policy, local=LocalAuthentication(NOBODY, NoCredential()))


def open_to_all(policy: ConnectionPolicy) -> ConnectionPolicy:
    return replace(policy, peer=replace(policy.peer, accepts_null=True))


@pytest.mark.rfc("7619", "2.4")
@pytest.mark.rfc("7619", "2.1")
def test_a_peer_that_proves_nothing_is_taken_where_the_policy_says_so() -> None:
    pair = Pair(anonymous(client()), open_to_all(gateway()))
    pair.connect()
    assert pair.agreed()
    theirs, ours = pair.r.fact(Established), pair.i.fact(Established)
    assert theirs is not None
    assert ours is not None
    assert theirs.peer_identity == ours.local_identity == "%null"
    assert ours.peer_identity == "vpn.example.org"


@pytest.mark.rfc("7619", "2.1")
def test_neither_need_prove_anything() -> None:
    pair = Pair(open_to_all(anonymous(client())), open_to_all(anonymous(gateway())))
    pair.policy = replace(pair.policy, peer=replace(pair.policy.peer, identity=ANYBODY))
    pair.connect()
    assert pair.agreed()


def test_who_has_a_name_must_still_prove_it() -> None:
    pair = Pair(wrong_psk(client()), open_to_all(gateway()))
    pair.connect()
    closed = pair.r.fact(Closed)
    assert closed is not None
    assert "the pre-shared keys differ" in closed.reason


def under_a_name(policy: ConnectionPolicy) -> ConnectionPolicy:
    return replace(policy, local=replace(policy.local, credential=NoCredential()))


@pytest.mark.rfc("7619", "2")
@pytest.mark.rfc("7619", "2.4")
@pytest.mark.rfc("7619", "2.2")
@pytest.mark.parametrize(
    ("mine", "theirs", "cause"),
    [
        (anonymous(client()), gateway(), "no connection is for a peer called %null"),
        (
            anonymous(client()),
            replace(gateway(), peer=replace(gateway().peer, identity=ANYBODY)),
            "the peer proves nothing, and must",
        ),
        (under_a_name(client()), open_to_all(gateway()), "has a name and proves nothing"),
        (under_a_name(client()), gateway(), "the peer proves nothing, and must"),
    ],
    ids=["no policy", "any name is a name", "a name without proof", "neither"],
)
def test_otherwise_who_proves_nothing_is_refused(
    mine: ConnectionPolicy, theirs: ConnectionPolicy, cause: str
) -> None:
    pair = Pair(mine, theirs)
    pair.connect()
    closed = pair.r.fact(Closed)
    assert closed is not None
    assert cause in closed.reason
    assert pair.r.fact(Established) is None
    told = pair.i.fact(Closed)
    assert told is not None
    assert told.notify == NotifyType.AUTHENTICATION_FAILED


def test_a_null_proof_is_bound_to_the_messages() -> None:
    peer = ScriptedInitiator(anonymous(client()), open_to_all(gateway()))
    answer = peer.connect(
        lambda payloads: [Auth(p.method, bytes(32)) if isinstance(p, Auth) else p for p in payloads]
    )
    assert answer is not None
    assert answer.notify(NotifyType.AUTHENTICATION_FAILED) is not None


@pytest.mark.rfc("7619", "3.3")
@pytest.mark.rfc("7619", "2.3")
def test_nobody_is_not_the_same_as_nobody() -> None:
    """Whoever comes without a name replaces no one, whatever it says."""

    def with_initial_contact(payloads: list[Payload]) -> list[Payload]:
        assert Notify.of(NotifyType.INITIAL_CONTACT) not in payloads
        return [*payloads, Notify.of(NotifyType.INITIAL_CONTACT)]

    pair = Pair(anonymous(client()), open_to_all(gateway()))
    pair.connect()
    pair.connect(until=10.0)
    assert len(pair.r.plane.installed) == 2
    peer = ScriptedInitiator(anonymous(client()), open_to_all(gateway()))
    assert peer.connect(with_initial_contact) is not None
    assert peer.fact(Established) is not None
