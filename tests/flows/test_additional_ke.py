"""Additional key exchanges in rekeys, by IKE_FOLLOWUP_KE: alone, crossing, lossy, refused.

RFC 9370 §2.2.4. The formulas are written out here once more, with hmac alone.
"""

import hmac
import random
from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator
from tests.kit.pair import Host, Pair, Wire
from tests.kit.policies import client, gateway, quiet
from tunnelwrap.config.suites import parse_esp
from tunnelwrap.crypto.ke import initiate, respond
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.iana import ExchangeType, KeMethod, NotifyType, ProtocolId
from tunnelwrap.ike import create_child
from tunnelwrap.ike.new_child import CreateChild
from tunnelwrap.ike.outputs import (
    ChildRefused,
    Closed,
    Established,
    InstallChildSa,
    Rekeyed,
    RemoveChildSa,
)
from tunnelwrap.ike.policy import ChildPolicy
from tunnelwrap.ike.rekey_ike import RekeyIke
from tunnelwrap.wire.message import IkeHeader, Message
from tunnelwrap.wire.payloads import Delete, KeyExchange, Nonce, Notify, Payload
from tunnelwrap.wire.proposal import SaPayload

CLASSICAL_IKE, CLASSICAL_ESP = "aes128gcm16-prfsha256-x25519", "aes128gcm16-x25519"
IKE, ESP = f"{CLASSICAL_IKE}-ke1_ecp256", f"{CLASSICAL_ESP}-ke1_ecp256"
LONG_ESP = f"{ESP}-ke2_mlkem768-ke7_ecp384"
LOWEST, HIGHEST = bytes(32), b"\xff" * 32


def prf(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def prf_plus(key: bytes, seed: bytes, length: int) -> bytes:
    material, block = b"", b""
    for counter in range(1, length // 32 + 2):
        block = prf(key, block + seed + bytes([counter]))
        material += block
    return material[:length]


def connected(wire: Wire | None = None, ike: str = IKE, esp: str = ESP, seed: int = 1) -> Pair:
    pair = Pair(quiet(client(ike, esp)), quiet(gateway(ike, esp)), wire, seed=seed)
    pair.connect(until=30.0)
    assert pair.agreed()
    return pair


def host_of(pair: Pair, who: str) -> Host:
    return pair.i if who == "i" else pair.r


def rekey_child(pair: Pair, host: Host) -> None:
    child = host.plane.sending
    assert child is not None
    pair.do(host, lambda e, sa, now: e.limit_reached(sa, child.spi_in, now, is_hard=False))


def rekey_ike(pair: Pair, host: Host) -> None:
    pair.do(host, lambda e, sa, now: e.rekey(sa, now))


def settled(pair: Pair) -> None:
    """All lingers are over, and both sides hold one and the same Child SA."""
    pair.run(90.0)
    assert len(pair.i.plane.installed) == 1
    assert len(pair.r.plane.installed) == 1
    assert pair.agreed()
    assert pair.i.fact(Closed) is None
    assert pair.r.fact(Closed) is None


def requests(host: Host, exchange: int) -> int:
    """How many it has sent, however many fragments each took."""
    heads = [IkeHeader.decode(datagram.octets) for datagram in host.sent]
    return len({h.message_id for h in heads if h.exchange == exchange and not h.is_response})


@pytest.mark.parametrize("who", ["i", "r"])
@pytest.mark.parametrize(("esp", "count"), [(ESP, 1), (LONG_ESP, 3)])
def test_a_child_sa_is_rekeyed_by_either_side(who: str, esp: str, count: int) -> None:
    pair = connected(esp=esp)
    before = pair.i.plane.sending
    host = host_of(pair, who)
    rekey_child(pair, host)
    pair.run(1.0)
    after, peer = pair.i.plane.sending, pair.r.plane.sending
    assert before is not None
    assert after is not None
    assert peer is not None
    assert after.spi_in != before.spi_in
    assert str(after.suite).startswith(esp)
    assert (after.keys_in, after.keys_out) == (peer.keys_out, peer.keys_in)
    assert requests(host, ExchangeType.IKE_FOLLOWUP_KE) == count
    settled(pair)


@pytest.mark.parametrize("who", ["i", "r"])
def test_the_ike_sa_is_rekeyed_by_either_side(who: str) -> None:
    pair = connected(ike=f"{IKE}-ke2_mlkem768")
    rekey_ike(pair, host_of(pair, who))
    pair.run(1.0)
    for host in (pair.i, pair.r):
        assert len([fact for fact in host.facts if isinstance(fact, Rekeyed)]) == 1
    assert requests(host_of(pair, who), ExchangeType.IKE_FOLLOWUP_KE) == 2
    rekey_child(pair, pair.i)
    settled(pair)


@pytest.mark.parametrize("who", ["i", "r"])
def test_a_further_child_sa(who: str) -> None:
    pair = connected()
    policy = quiet((client if who == "i" else gateway)(IKE, LONG_ESP)).child
    pair.do(host_of(pair, who), lambda e, sa, now: e.create_child(sa, policy, now))
    pair.run(1.0)
    # the other side knows only the shorter list, and there is no single proposal in common
    refused = host_of(pair, who).fact(ChildRefused)
    assert refused is not None
    assert "NO_PROPOSAL_CHOSEN" in refused.reason
    policy = quiet((client if who == "i" else gateway)(IKE, ESP)).child
    pair.do(host_of(pair, who), lambda e, sa, now: e.create_child(sa, policy, now))
    pair.run(1.0)
    assert len(pair.i.plane.installed) == 2
    assert pair.agreed()


@pytest.mark.rfc("9370", "2.2.1")
@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [
        (f"{ESP}-ke1_none", CLASSICAL_ESP, CLASSICAL_ESP),
        (CLASSICAL_ESP, f"{ESP}-ke1_none", CLASSICAL_ESP),
        (f"{ESP}-ke1_none", f"{ESP}-ke1_none", ESP),
        (f"{ESP}-ke2_ecp384-ke2_none", ESP, ESP),
        # of each method only one: the second type takes its second choice
        (
            f"{CLASSICAL_ESP}-ke1_x25519-ke1_ecp256-ke2_ecp256-ke2_ecp384",
            f"{CLASSICAL_ESP}-ke1_x25519-ke1_ecp256-ke2_ecp256-ke2_ecp384",
            f"{ESP}-ke2_ecp384",
        ),
    ],
)
def test_what_both_sides_have_in_common(ours: str, theirs: str, chosen: str) -> None:
    pair = Pair(quiet(client(IKE, ours)), quiet(gateway(IKE, theirs)))
    pair.connect()
    rekey_child(pair, pair.i)
    pair.run(1.0)
    child = pair.i.plane.sending
    assert child is not None
    assert str(child.suite).removesuffix("-esn") == chosen
    settled(pair)


@pytest.mark.parametrize("what", ["child", "ike"])
@pytest.mark.parametrize("seed", range(10))
def test_any_message_may_be_lost_come_twice_or_late(seed: int, what: str) -> None:
    wire = Wire(jitter=0.5, seed=seed)
    pair = connected(wire, f"{IKE}-ke2_ecp384", LONG_ESP, seed=seed)
    wire.loss, wire.duplication = 0.25, 0.25
    (rekey_child if what == "child" else rekey_ike)(pair, pair.i if seed % 2 else pair.r)
    pair.run(120.0)
    wire.loss = 0.0
    settled(pair)


# --- a peer whose messages the test writes ----------------------------------------------------


def peer_of(esp: str = ESP) -> tuple[ScriptedInitiator, int]:
    peer = ScriptedInitiator(quiet(client(IKE, esp)), quiet(gateway(IKE, esp)))
    peer.connect()
    established = peer.fact(Established)
    assert established is not None
    return peer, established.sa


def notify_rekey(peer: ScriptedInitiator) -> Notify:
    installed = peer.fact(InstallChildSa)
    assert installed is not None
    spi = installed.child.spi_out.to_bytes(4, "big")
    return Notify.of(NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=spi)


def child_request(peer: ScriptedInitiator) -> list[Payload]:
    return list(CreateChild(peer.policy.child).request(peer.sa, peer.now) or ())


def link_in(message: Message | None) -> Notify:
    assert message is not None
    notify = message.notify(NotifyType.ADDITIONAL_KEY_EXCHANGE)
    assert notify is not None
    return notify


def key_exchange(peer: ScriptedInitiator, method: int) -> KeyExchange:
    return KeyExchange(method, initiate(method, peer.sa.context.random).public)


@pytest.mark.rfc("9370", "2.2.4")
def test_keymat_has_every_secret_behind_the_nonces() -> None:
    peer, _ = peer_of(esp=f"{ESP}-ke3_ecp384")
    rng = random.Random(1)
    first = initiate(KeMethod.CURVE25519, rng.randbytes)
    request = [
        KeyExchange(first.method, first.public) if isinstance(p, KeyExchange) else p
        for p in child_request(peer)
    ]
    response = peer.ask(ExchangeType.CREATE_CHILD_SA, notify_rekey(peer), *request)
    n_i = next(p for p in request if isinstance(p, Nonce)).data
    assert response is not None
    n_r, ke = response.find(Nonce), response.find(KeyExchange)
    assert n_r is not None
    assert ke is not None
    secrets, link = [first.shared(ke.data)], link_in(response)
    for method in (KeMethod.ECP_256, KeMethod.ECP_384):
        assert link is not None
        key = initiate(method, rng.randbytes)
        answer = peer.ask(
            ExchangeType.IKE_FOLLOWUP_KE,
            KeyExchange(method, key.public),
            Notify.of(16441, link.data),
        )
        assert answer is not None
        ke, link = answer.find(KeyExchange), answer.notify(NotifyType.ADDITIONAL_KEY_EXCHANGE)
        assert ke is not None
        secrets.append(key.shared(ke.data))
    assert link is None, "it was the last one"
    installed = peer.fact(InstallChildSa)
    assert installed is not None
    first_secret, *additional = (secret.reveal() for secret in secrets)
    seed = first_secret + n_i + n_r.data + b"".join(additional)
    keymat = prf_plus(peer.sa.agreed[1].sk_d.reveal(), seed, 40)
    assert installed.child.keys_in.encryption == Secret(keymat[:20])
    assert installed.child.keys_out.encryption == Secret(keymat[20:])


@pytest.mark.rfc("9370", "2.2.4")
def test_skeyseed_has_every_secret_behind_the_nonces() -> None:
    peer, name = peer_of()
    old = peer.sa
    peer.endpoint.rekey(name, peer.now)
    (request,) = peer.drain()
    asked = peer.open(request)
    security, ke, n_i = asked.find(SaPayload), asked.find(KeyExchange), asked.find(Nonce)
    assert security is not None
    assert ke is not None
    assert n_i is not None
    rng = random.Random(1)
    public, first = respond(ke.method, ke.data, rng.randbytes)
    offer = security.proposals[0]
    wanted = {t for t in offer.transforms if t.id != KeMethod.NONE or t.type < 6}
    chosen = replace(
        offer, spi=b"ourspi_r", transforms=tuple(t for t in offer.transforms if t in wanted)
    )
    n_r = rng.randbytes(32)
    (follow_up,) = peer.respond(
        request,
        SaPayload((chosen,)),
        Nonce(n_r),
        KeyExchange(ke.method, public),
        Notify.of(16441, b"any octets"),
    )
    asked = peer.open(follow_up)
    assert asked.exchange == ExchangeType.IKE_FOLLOWUP_KE
    assert link_in(asked).data == b"any octets"
    ke = asked.find(KeyExchange)
    assert ke is not None
    public, second = respond(KeMethod.ECP_256, ke.data, rng.randbytes)
    (delete,) = peer.respond(follow_up, KeyExchange(ke.method, public))
    assert peer.open(delete).find(Delete) is not None
    secrets = first.reveal() + n_i.data + n_r + second.reveal()
    seed = prf(old.agreed[1].sk_d.reveal(), secrets)
    spis = offer.spi + b"ourspi_r"
    material = prf_plus(seed, n_i.data + n_r + spis, 32 + 20 + 20)
    peer.endpoint.rekey(name, peer.now)
    (again,) = peer.drain()
    head = IkeHeader.decode(again)
    assert (head.spi_i, head.spi_r) == (offer.spi, b"ourspi_r")
    bound = old.agreed[0].cipher().bind(Secret(material[32:52]), Secret(b""))
    assert bound.open(again[:32], again[32:]), "it is sealed with the new SK_ei"


@pytest.mark.rfc("9370", "2.2.4")
@pytest.mark.parametrize(
    ("in_request", "in_response", "earlier"),
    [
        (LOWEST, HIGHEST, 0),
        (HIGHEST, LOWEST, 0),
        (LOWEST, LOWEST + b"\0", 0),  # a prefix is lower than what it begins
        (LOWEST + b"\0", LOWEST, 0),
        *((HIGHEST, HIGHEST, earlier) for earlier in range(4)),  # then our own nonces decide
    ],
)
@pytest.mark.parametrize("what", ["child", "ike"])
def test_of_two_rekeys_the_one_with_the_lowest_nonce_does_not_go_on(
    what: str, in_request: bytes, in_response: bytes, earlier: int
) -> None:
    peer, name = peer_of()
    old = peer.fact(InstallChildSa)
    assert old is not None
    for _ in range(earlier):  # other random numbers are next
        peer.ask(ExchangeType.CREATE_CHILD_SA, *child_request(peer))
    if what == "child":
        peer.endpoint.limit_reached(name, old.child.spi_in, peer.now, is_hard=False)
    else:
        peer.endpoint.rekey(name, peer.now)
    (request,) = peer.drain()
    theirs = their_rekey(peer, what)
    answered = peer.ask(ExchangeType.CREATE_CHILD_SA, *with_nonce(theirs, in_request))
    link = link_in(answered)
    asked, answers = answer_of(peer, request)
    sent = peer.respond(request, *with_nonce(answers, in_response))
    ours_goes_on = min(nonce_in(asked), in_response) > min(in_request, nonce_in(answered))
    exchanges = [IkeHeader.decode(octets).exchange for octets in sent]
    assert exchanges == [ExchangeType.IKE_FOLLOWUP_KE] * ours_goes_on
    ke = key_exchange(peer, KeMethod.ECP_256)
    response = peer.ask(ExchangeType.IKE_FOLLOWUP_KE, ke, Notify.of(16441, link.data))
    assert response is not None
    is_gone = response.notify(NotifyType.STATE_NOT_FOUND) is not None
    assert is_gone is ours_goes_on, "what the peer had begun is forgotten if ours goes on"
    if what == "ike":
        assert (peer.fact(Rekeyed) is None) is ours_goes_on
    else:
        assert (peer.fact(InstallChildSa) == old) is ours_goes_on
    assert peer.fact(Closed) is None


def their_rekey(peer: ScriptedInitiator, what: str) -> list[Payload]:
    if what == "child":
        return [notify_rekey(peer), *child_request(peer)]
    return list(RekeyIke(peer.sa).request(peer.sa, peer.now) or ())


def answer_of(peer: ScriptedInitiator, request: bytes) -> tuple[Message, list[Payload]]:
    """What the peer would answer; its table has no Child SA that could be rekeyed."""
    asked = peer.open(request)
    kept = tuple(p for p in asked.payloads if not isinstance(p, Notify))
    return asked, create_child.answer(peer.sa, replace(asked, payloads=kept), peer.now)


def nonce_in(message: Message | None) -> bytes:
    assert message is not None
    nonce = message.find(Nonce)
    assert nonce is not None
    return nonce.data


def with_nonce(payloads: list[Payload], nonce: bytes) -> list[Payload]:
    return [Nonce(nonce) if isinstance(p, Nonce) else p for p in payloads]


MIXES = [(ESP, ESP), (ESP, CLASSICAL_ESP), (CLASSICAL_ESP, ESP)]


@pytest.mark.rfc("9370", "2.2.4")
@pytest.mark.parametrize("first_choices", MIXES)
@pytest.mark.parametrize("seed", range(10))
def test_both_rekey_the_same_child_sa_at_once(seed: int, first_choices: tuple[str, str]) -> None:
    """Also where one of them has additional key exchanges and the other one has none."""
    ours, theirs = (
        replace(policy, child=offering(policy.child, first))
        for policy, first in zip((client(), gateway()), first_choices, strict=True)
    )
    pair = Pair(quiet(ours), quiet(theirs), Wire(jitter=0.05, seed=seed), seed=seed * 7)
    pair.connect()
    rekey_child(pair, pair.i)
    rekey_child(pair, pair.r)
    pair.run(2.0)
    assert pair.agreed()
    settled(pair)
    for host in (pair.i, pair.r):
        installs = [fact for fact in host.facts if isinstance(fact, InstallChildSa)]
        assert len(installs) <= 3


def offering(child: ChildPolicy, first: str) -> ChildPolicy:
    """Both suites, one of them preferred: by a responder it is chosen."""
    suites = [first, *({ESP, CLASSICAL_ESP} - {first})]
    return replace(child, proposals=tuple(parse_esp(suite) for suite in suites))


@pytest.mark.rfc("9370", "2.2.4")
@pytest.mark.parametrize("seed", range(12))
def test_both_rekey_the_ike_sa_at_once(seed: int) -> None:
    pair = connected(Wire(jitter=0.05, seed=seed), seed=seed * 7)
    rekey_ike(pair, pair.i)
    rekey_ike(pair, pair.r)
    pair.run(2.0)
    settled(pair)
    for host in (pair.i, pair.r):
        assert [fact for fact in host.facts if isinstance(fact, Rekeyed)]
    rekey_child(pair, pair.i)
    settled(pair)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("who", ["i", "r"])
def test_a_rekey_of_the_ike_sa_meets_one_of_a_child_sa(seed: int, who: str) -> None:
    pair = connected(Wire(jitter=0.08, seed=seed), seed=seed)
    rekey_ike(pair, host_of(pair, who))
    rekey_child(pair, pair.r if who == "i" else pair.i)
    pair.run(2.0)
    settled(pair)
    assert pair.i.fact(Rekeyed) is not None


@pytest.mark.rfc("9370", "2.2.4")
@pytest.mark.parametrize("what", ["child", "ike"])
def test_a_rekey_by_the_peer_is_put_off_while_ours_goes_on(what: str) -> None:
    peer, name = peer_of()
    old = peer.fact(InstallChildSa)
    assert old is not None
    follow_up = begun_by_us(peer, name, old.child.spi_in if what == "child" else None)
    theirs = their_rekey(peer, what)
    response = peer.ask(ExchangeType.CREATE_CHILD_SA, *theirs)
    assert response is not None
    assert response.notify(NotifyType.TEMPORARY_FAILURE) is not None
    assert IkeHeader.decode(follow_up).exchange == ExchangeType.IKE_FOLLOWUP_KE


def begun_by_us(peer: ScriptedInitiator, name: int, spi_in: int | None) -> bytes:
    """Our rekey is answered, and our first IKE_FOLLOWUP_KE on its way."""
    if spi_in is not None:
        peer.endpoint.limit_reached(name, spi_in, peer.now, is_hard=False)
    else:
        peer.endpoint.rekey(name, peer.now)
    (request,) = peer.drain()
    (follow_up,) = peer.respond(request, *answer_of(peer, request)[1])
    return follow_up


@pytest.mark.rfc("9370", "2.2.4")
@pytest.mark.parametrize("wait_s", [0.0, 15.0, 25.0])
def test_what_the_peer_does_not_go_on_with_is_forgotten(wait_s: float) -> None:
    peer, _ = peer_of()
    old = peer.fact(InstallChildSa)
    link = link_in(peer.ask(ExchangeType.CREATE_CHILD_SA, notify_rekey(peer), *child_request(peer)))
    peer.wait(wait_s)
    ke = key_exchange(peer, KeMethod.ECP_256)
    response = peer.ask(ExchangeType.IKE_FOLLOWUP_KE, ke, Notify.of(16441, link.data))
    assert response is not None
    is_late = response.notify(NotifyType.STATE_NOT_FOUND) is not None
    assert is_late is (wait_s > 20.0)
    assert (peer.fact(InstallChildSa) == old) is is_late
    again = peer.ask(ExchangeType.IKE_FOLLOWUP_KE, ke, Notify.of(16441, link.data))
    assert again is not None
    assert again.notify(NotifyType.STATE_NOT_FOUND) is not None, "a link serves once"


@pytest.mark.parametrize("link", [None, b"", b"another"])
def test_a_link_that_we_have_not_given(link: bytes | None) -> None:
    peer, _ = peer_of()
    link_in(peer.ask(ExchangeType.CREATE_CHILD_SA, notify_rekey(peer), *child_request(peer)))
    notifies = [] if link is None else [Notify.of(16441, link)]
    ke = key_exchange(peer, KeMethod.ECP_256)
    response = peer.ask(ExchangeType.IKE_FOLLOWUP_KE, ke, *notifies)
    assert response is not None
    assert response.notify(NotifyType.STATE_NOT_FOUND) is not None
    assert peer.fact(Closed) is None


@pytest.mark.parametrize(
    ("ke", "why"),
    [
        (KeyExchange(KeMethod.ECP_384, bytes(96)), "KE payload is ECP_384, ECP_256 is due"),
        (KeyExchange(KeMethod.ECP_256, bytes(64)), "not on the curve"),
        (None, "0 KE payloads"),
    ],
)
def test_a_follow_up_that_makes_no_sense_ends_the_ike_sa(ke: KeyExchange | None, why: str) -> None:
    peer, _ = peer_of()
    link = link_in(peer.ask(ExchangeType.CREATE_CHILD_SA, notify_rekey(peer), *child_request(peer)))
    payloads: list[Payload] = [Notify.of(16441, link.data), *([] if ke is None else [ke])]
    response = peer.ask(ExchangeType.IKE_FOLLOWUP_KE, *payloads)
    assert response is not None
    assert response.notify(NotifyType.INVALID_SYNTAX) is not None
    closed = peer.fact(Closed)
    assert closed is not None
    assert why in closed.reason


def test_the_child_sa_is_deleted_while_the_peer_rekeys_it() -> None:
    peer, name = peer_of()
    old = peer.fact(InstallChildSa)
    assert old is not None
    link = link_in(peer.ask(ExchangeType.CREATE_CHILD_SA, notify_rekey(peer), *child_request(peer)))
    peer.endpoint.limit_reached(name, old.child.spi_in, peer.now, is_hard=True)
    (delete,) = peer.drain()
    peer.respond(delete)
    assert peer.fact(RemoveChildSa) is not None
    ke = key_exchange(peer, KeMethod.ECP_256)
    response = peer.ask(ExchangeType.IKE_FOLLOWUP_KE, ke, Notify.of(16441, link.data))
    assert response is not None
    assert response.notify(NotifyType.STATE_NOT_FOUND) is not None
    assert peer.fact(InstallChildSa) == old


@pytest.mark.parametrize("what", ["child", "ike"])
def test_a_peer_that_forgets_is_asked_again_three_times(what: str) -> None:
    peer, name = peer_of()
    old = peer.fact(InstallChildSa)
    assert old is not None
    follow_up = begun_by_us(peer, name, old.child.spi_in if what == "child" else None)
    for attempt in range(4):
        sent = peer.respond(follow_up, Notify.of(NotifyType.STATE_NOT_FOUND))
        if attempt == 3:
            break
        assert sent == []
        (request,) = peer.wait(5.5)[:1]
        asked, answers = answer_of(peer, request)
        assert asked.exchange == ExchangeType.CREATE_CHILD_SA
        (follow_up,) = peer.respond(request, *answers)
    (delete,) = sent
    (payload,) = peer.open(delete).all(Delete)
    assert payload.protocol == ProtocolId.IKE


def test_a_response_without_link_makes_no_sense() -> None:
    peer, name = peer_of()
    peer.endpoint.rekey(name, peer.now)
    (request,) = peer.drain()
    answers = create_child.answer(peer.sa, peer.open(request), peer.now)
    kept = [p for p in answers if not isinstance(p, Notify)]
    (told,) = peer.respond(request, *kept)
    assert peer.open(told).notify(NotifyType.INVALID_SYNTAX) is not None
    closed = peer.fact(Closed)
    assert closed is not None
    assert "lacks N(ADDITIONAL_KEY_EXCHANGE)" in closed.reason


def test_a_further_child_sa_is_asked_for_again_when_the_peer_forgets() -> None:
    pair = connected()
    lost = 0

    def breaks(sender: str, header: IkeHeader, octets: bytes) -> bool:
        nonlocal lost
        is_it = sender == "i" and header.exchange == ExchangeType.IKE_FOLLOWUP_KE
        lost += is_it and pair.now < until
        return not (is_it and pair.now < until)

    until = pair.now + 21.0
    pair.wire.filter = breaks
    policy = quiet(client(IKE, ESP)).child
    pair.do(pair.i, lambda e, sa, now: e.create_child(sa, policy, now))
    pair.run(60.0)
    assert lost
    assert len(pair.i.plane.installed) == 2
    assert pair.agreed()


def test_no_more_is_begun_than_there_may_be_child_sas() -> None:
    peer, _ = peer_of()
    for _ in range(31):
        link_in(peer.ask(ExchangeType.CREATE_CHILD_SA, *child_request(peer)))
    response = peer.ask(ExchangeType.CREATE_CHILD_SA, *child_request(peer))
    assert response is not None
    assert response.notify(NotifyType.NO_ADDITIONAL_SAS) is not None
    peer.wait(21.0)
    link_in(peer.ask(ExchangeType.CREATE_CHILD_SA, *child_request(peer)))
