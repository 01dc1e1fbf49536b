"""Post-quantum preshared keys, in both roles: what is derived, and every row of who needs one.

RFC 8784 §3. The formulas are written out here once more, with hmac alone.
"""

import hmac
from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator, ScriptedResponder, clear
from tests.kit.pair import Pair, Wire
from tests.kit.policies import PSK, client, gateway, psk_peer, quiet
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.iana import ExchangeType, NotifyType
from tunnelwrap.ike import ike_auth, sa_init
from tunnelwrap.ike.ike_auth import IkeAuth
from tunnelwrap.ike.outputs import Closed, Established, InstallChildSa, Rekeyed
from tunnelwrap.ike.policy import ConnectionPolicy, Ppk
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Auth, IdPayload, Notify, Payload

SECRET = Secret(bytes(range(32)))
HYBRID = "aes128gcm16-prfsha256-x25519-ke1_ecp256"
AUTH_FAILED = NotifyType.AUTHENTICATION_FAILED


def prf(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def mixed(key: Secret) -> bytes:
    """SK = prf+(PPK, SK'), of which one block is enough."""
    return prf(SECRET.reveal(), key.reveal() + b"\x01")


def ppk(name: bytes = b"shared", secret: Secret = SECRET, *, required: bool = False) -> Ppk:
    return Ppk(name, secret, required)


def having(policy: ConnectionPolicy, key: Ppk | None) -> ConnectionPolicy:
    return replace(quiet(policy), ppk=key)


def notifies(message: Message, kind: int) -> list[bytes]:
    return [n.data for n in message.all(Notify) if n.notify == kind]


def without(kind: int, payloads: list[Payload]) -> list[Payload]:
    return [p for p in payloads if not (isinstance(p, Notify) and p.notify == kind)]


@pytest.mark.rfc("8784", "3")
@pytest.mark.parametrize("suite", ["aes128gcm16-prfsha256-x25519", HYBRID])
def test_what_the_ppk_is_mixed_into(suite: str) -> None:
    """SK_d, SK_pi and SK_pr, after the last key exchange; and no other key."""
    peer = ScriptedInitiator(having(client(suite), ppk()), having(gateway(suite), ppk()))
    peer.init()
    peer.exchange_keys()
    sa = peer.sa
    plain, int_auth = sa.agreed[1], sa.intermediate.int_auth if sa.intermediate else b""
    assert sa.handshake is not None
    payloads = list(IkeAuth().request(sa, peer.now) or ())
    keys = sa.agreed[1]
    assert keys.sk_d == Secret(mixed(plain.sk_d))
    assert (keys.sk_ei, keys.sk_ai) == (plain.sk_ei, plain.sk_ai)
    assert (keys.sk_er, keys.sk_ar) == (plain.sk_er, plain.sk_ar)
    message = sa.message(ExchangeType.IKE_AUTH, 1, payloads)
    identity, auth = message.find(IdPayload), message.find(Auth)
    assert identity is not None
    assert auth is not None
    assert notifies(message, NotifyType.PPK_IDENTITY) == [b"\x02shared"]
    base = sa.handshake.request + sa.handshake.n_r
    for sk_p, data in (
        (mixed(plain.sk_pi), auth.data),
        (plain.sk_pi.reveal(), notifies(message, NotifyType.NO_PPK_AUTH)[0]),
    ):
        signed = base + prf(sk_p, identity.encode()) + int_auth
        assert data == prf(prf(PSK.reveal(), b"Key Pad for IKEv2"), signed)
    answer = peer.ask(ExchangeType.IKE_AUTH, *payloads)
    assert answer is not None
    assert notifies(answer, NotifyType.PPK_IDENTITY) == [b""]
    identity, auth = answer.find(IdPayload), answer.find(Auth)
    assert identity is not None
    assert auth is not None
    signed = sa.handshake.response + sa.handshake.n_i
    signed += prf(mixed(plain.sk_pr), identity.encode()) + int_auth
    assert auth.data == prf(prf(PSK.reveal(), b"Key Pad for IKEv2"), signed)
    child = peer.fact(InstallChildSa)
    assert child is not None
    seed = sa.handshake.n_i + sa.handshake.n_r
    block = prf(keys.sk_d.reveal(), seed + b"\x01")
    assert child.child.keys_in.encryption == Secret(block[:20])


OTHER = Secret(bytes(32))

# ours as initiator, the responder's; is there an IKE SA, and has it a PPK?
PAIRS = {
    "nobody has one": (None, None, True, False),
    "both have it": (ppk(), ppk(), True, True),
    "both need it": (ppk(required=True), ppk(required=True), True, True),
    "the initiator needs it": (ppk(required=True), ppk(), True, True),
    "the responder needs it": (ppk(), ppk(required=True), True, True),
    "only the initiator has one": (ppk(), None, True, False),
    "only the responder has one": (None, ppk(), True, False),
    "the initiator needs one in vain": (ppk(required=True), None, False, False),
    "the responder needs one in vain": (None, ppk(required=True), False, False),
    "they have different ones": (ppk(), ppk(b"another"), True, False),
    "the initiator needs that one": (ppk(required=True), ppk(b"another"), False, False),
    "the responder needs the other": (ppk(), ppk(b"another", required=True), False, False),
    "the secrets differ": (ppk(), ppk(secret=OTHER), False, False),
}


@pytest.mark.rfc("8784", "3")
@pytest.mark.parametrize("suite", ["aes128gcm16-prfsha256-x25519", HYBRID])
@pytest.mark.parametrize(("ours", "theirs", "is_up", "is_used"), PAIRS.values(), ids=PAIRS)
def test_who_has_and_who_needs_one(
    ours: Ppk | None,
    theirs: Ppk | None,
    suite: str,
    is_up: bool,  # noqa: FBT001 (a row of the table)
    is_used: bool,  # noqa: FBT001 (a row of the table)
) -> None:
    pair = Pair(having(client(suite), ours), having(gateway(suite), theirs))
    pair.connect(until=40.0)
    for host in (pair.i, pair.r):
        established = host.fact(Established)
        assert (established is not None) is is_up
        if established is not None:
            assert established.uses_ppk is is_used
    assert pair.agreed()
    sending, heard = pair.i.plane.sending, pair.r.plane.sending
    assert (sending is not None) is is_up
    if sending is not None and heard is not None:
        assert sending.keys_out == heard.keys_in
    closed = pair.i.fact(Closed)
    assert (closed is None) is is_up
    assert SECRET.reveal().hex() not in repr(pair.i.facts) + pair.i.text() + pair.r.text()


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        (ppk(required=True), None, "the peer uses no PPK, and our policy requires one"),
        (ppk(required=True), ppk(b"another"), "peer answered AUTHENTICATION_FAILED"),
    ],
)
def test_the_initiator_says_why(ours: Ppk, theirs: Ppk | None, why: str) -> None:
    pair = Pair(having(client(), ours), having(gateway(), theirs))
    pair.connect()
    closed = pair.i.fact(Closed)
    assert closed is not None
    assert why in closed.reason


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        (None, ppk(required=True), "the peer uses no PPK, and clients requires one"),
        (ppk(), ppk(b"another", required=True), "b'shared' is not known, and clients requires"),
        (ppk(required=True), ppk(b"another"), "b'shared' is not known, and the peer requires it"),
    ],
)
def test_the_responder_says_why(ours: Ppk | None, theirs: Ppk, why: str) -> None:
    pair = Pair(having(client(), ours), having(gateway(), theirs))
    pair.connect()
    closed = pair.r.fact(Closed)
    assert closed is not None
    assert why in closed.reason


def test_a_ppk_of_another_connection_is_not_for_this_peer() -> None:
    """USE_PPK is answered before it is known who asks: the identity decides. RFC 8784 §3."""
    other = replace(gateway(), name="others", peer=psk_peer("other@example.org"))
    connections = [having(other, ppk()), having(gateway(), None)]
    pair = Pair(having(client(), ppk()), connections)
    pair.connect()
    established = pair.r.fact(Established)
    assert established is not None
    assert not established.uses_ppk
    pair = Pair(having(client(), ppk(required=True)), connections)
    pair.connect()
    assert pair.r.fact(Established) is None


# --- peers that do not keep to it -------------------------------------------------------------


def asked(
    initiator: Ppk, responder: Ppk, *, leave_out: int = 0, spoil: bool = False
) -> tuple[ScriptedInitiator, Message]:
    """IKE_AUTH with a Notify left out, or with a NO_PPK_AUTH that proves nothing."""
    peer = ScriptedInitiator(having(client(), initiator), having(gateway(), responder))
    peer.init()
    payloads = without(leave_out, list(IkeAuth().request(peer.sa, peer.now) or ()))
    if spoil:
        payloads = [
            Notify.of(p.notify, bytes(32))
            if isinstance(p, Notify) and p.notify == NotifyType.NO_PPK_AUTH
            else p
            for p in payloads
        ]
    response = peer.ask(ExchangeType.IKE_AUTH, *payloads)
    assert response is not None
    return peer, response


@pytest.mark.rfc("8784", "3")
def test_an_initiator_that_names_no_ppk_is_refused() -> None:
    peer, response = asked(ppk(), ppk(), leave_out=NotifyType.PPK_IDENTITY)
    assert response.notify(AUTH_FAILED) is not None
    closed = peer.fact(Closed)
    assert closed is not None
    assert "names no PPK" in closed.reason


@pytest.mark.parametrize("theirs", [ppk(), ppk(b"another")], ids=["known", "unknown"])
def test_what_stands_in_for_auth_is_proved_too(theirs: Ppk) -> None:
    _, response = asked(ppk(), theirs, spoil=True)
    is_used = theirs.identity == b"shared"
    assert (response.notify(AUTH_FAILED) is None) is is_used


def test_an_opaque_ppk_id_is_another_one() -> None:
    peer = ScriptedInitiator(having(client(), ppk()), having(gateway(), ppk()))
    peer.init()
    payloads = [
        Notify.of(p.notify, b"\x01shared")
        if isinstance(p, Notify) and p.notify == NotifyType.PPK_IDENTITY
        else p
        for p in IkeAuth().request(peer.sa, peer.now) or ()
    ]
    response = peer.ask(ExchangeType.IKE_AUTH, *payloads)
    assert response is not None
    assert response.find(Auth) is not None
    assert response.notify(NotifyType.PPK_IDENTITY) is None


def answered(
    ours: Ppk, *, uses_ppk: bool, data: bytes = b"", confirms: bool = True
) -> tuple[ScriptedResponder, list[bytes]]:
    """A responder that has a PPK and uses it or not, and says so or not."""
    theirs = having(gateway(), ppk(b"shared" if uses_ppk else b"another"))
    peer = ScriptedResponder(having(client(), ours), theirs)
    request = peer.open(peer.answer_init())
    if not uses_ppk and ours.is_required:
        # it goes on without being allowed to: by the keys that the initiator has given up
        auth = request.find(Auth)
        assert auth is not None
        payloads = forced(peer.sa, request)
    else:
        payloads = list(ike_auth.answer(peer.sa, request, peer.now) or [])
    payloads = without(NotifyType.PPK_IDENTITY, payloads)
    if confirms:
        payloads.append(Notify.of(NotifyType.PPK_IDENTITY, data))
    sealed = peer.sa.agreed[2].seal(peer.sa.reply(ExchangeType.IKE_AUTH, 1, payloads))
    return peer, peer.deliver(sealed)


def forced(sa: IkeSa, request: Message) -> list[Payload]:
    sa.policy, sa.auth_request = sa.connections[0], request
    return ike_auth.resume(sa, None, 1000.0)


def test_what_the_confirmation_holds_is_ignored() -> None:
    peer, _ = answered(ppk(), uses_ppk=True, data=b"whatever")
    established = peer.fact(Established)
    assert established is not None
    assert established.uses_ppk


def test_a_responder_that_does_not_use_the_ppk_that_we_need_is_told() -> None:
    peer, sent = answered(ppk(required=True), uses_ppk=False, confirms=False)
    (told,) = sent
    message = peer.open(told)
    assert message.exchange == ExchangeType.INFORMATIONAL
    assert message.notify(AUTH_FAILED) is not None
    closed = peer.fact(Closed)
    assert closed is not None
    assert "does not use the PPK that our policy requires" in closed.reason


@pytest.mark.parametrize(("uses_ppk", "confirms"), [(True, False), (False, True)])
def test_a_confirmation_that_is_not_true_proves_nothing(
    uses_ppk: bool,  # noqa: FBT001 (a row of the table)
    confirms: bool,  # noqa: FBT001 (a row of the table)
) -> None:
    peer, _ = answered(ppk(), uses_ppk=uses_ppk, confirms=confirms)
    assert peer.fact(Established) is None
    closed = peer.fact(Closed)
    assert closed is not None
    assert "pre-shared keys differ" in closed.reason


def test_use_ppk_is_answered_by_those_who_have_one() -> None:
    for key, is_answered in ((ppk(), True), (None, False)):
        peer = ScriptedInitiator(having(client(), ppk()), having(gateway(), key))
        _, request = peer.init_request()
        assert clear(request).notify(NotifyType.USE_PPK) is not None
        (response,) = peer.deliver(request)
        assert (clear(response).notify(NotifyType.USE_PPK) is not None) is is_answered


@pytest.mark.rfc("8784", "6")
def test_an_answer_without_use_ppk_does_not_keep_a_better_one_from_us() -> None:
    """By UDP anyone can send one: a later answer with it counts. RFC 7296 §2.21.1."""
    needs = having(client(), ppk(required=True))
    peer = ScriptedResponder(needs, having(gateway(), ppk()))
    response = sa_init.answer(peer.sa, clear(peer.first), peer.first)
    message = clear(response)
    kept = tuple(without(NotifyType.USE_PPK, list(message.payloads)))
    assert peer.deliver(replace(message, payloads=kept).encode()) == []
    assert peer.fact(Closed) is None
    peer.deliver(response)
    peer.endpoint.authenticate(peer.name, peer.now)
    (request,) = peer.drain()
    assert notifies(peer.open(request), NotifyType.PPK_IDENTITY) == [b"\x02shared"]


# --- afterwards -------------------------------------------------------------------------------


@pytest.mark.rfc("8784", "3")
def test_a_rekey_mixes_in_no_ppk_again_and_keeps_what_it_gave() -> None:
    pair = Pair(having(client(HYBRID), ppk()), having(gateway(HYBRID), ppk()))
    pair.connect()
    pair.do(pair.i, lambda e, sa, now: e.rekey(sa, now))
    pair.run(1.0)
    assert pair.i.fact(Rekeyed) is not None
    child = pair.i.plane.sending
    assert child is not None
    pair.do(pair.r, lambda e, sa, now: e.limit_reached(sa, child.spi_out, now, is_hard=False))
    pair.run(30.0)
    assert pair.agreed()
    ours, theirs = pair.i.plane.sending, pair.r.plane.sending
    assert ours is not None
    assert theirs is not None
    assert ours.spi_in != child.spi_in
    assert ours.keys_out == theirs.keys_in


@pytest.mark.parametrize("seed", range(6))
def test_any_message_may_be_lost_come_twice_or_late(seed: int) -> None:
    wire = Wire(loss=0.25, duplication=0.3, jitter=0.8, seed=seed)
    pair = Pair(having(client(), ppk()), having(gateway(), ppk(b"another")), wire, seed=seed)
    pair.connect(until=60.0)
    assert pair.agreed()
    assert pair.i.fact(Established) is not None
