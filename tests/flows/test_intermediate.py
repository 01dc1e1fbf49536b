"""IKE_INTERMEDIATE and the key exchanges in it: what AUTH proves, repetitions, refusals.

RFC 9242; RFC 9370 §2.2.2. The formulas are written out here once more, with hmac alone.
"""

import hmac
import itertools
from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator, ScriptedResponder, clear
from tests.kit.pair import Pair, Wire
from tests.kit.policies import CLIENT, PSK, client, gateway, quiet
from tunnelwrap.config.suites import DEFAULT_ESP, DEFAULT_IKE, parse_esp, parse_ike
from tunnelwrap.crypto.ke import initiate
from tunnelwrap.crypto.keymat import IkeKeys
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.iana import AuthMethod, ExchangeType, KeMethod, NotifyType, PayloadType
from tunnelwrap.ike import sa_init
from tunnelwrap.ike.ike_auth import IkeAuth
from tunnelwrap.ike.intermediate import use_next_keys
from tunnelwrap.ike.outputs import Closed, Established
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.ike.protect import Protection
from tunnelwrap.path import Carrier
from tunnelwrap.wire.message import HEADER_LENGTH, IkeHeader, Message, encode_outer
from tunnelwrap.wire.payloads import Auth, IdPayload, KeyExchange, Notify, Payload

CLASSICAL = "aes128gcm16-prfsha256-x25519"
ONE = f"{CLASSICAL}-ke1_ecp256"
TWO = f"{ONE}-ke4_mlkem768"  # a gap between the types means nothing


def prf(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def prf_plus(key: bytes, seed: bytes, length: int) -> bytes:
    material, block = b"", b""
    for counter in range(1, length // 32 + 2):
        block = prf(key, block + seed + bytes([counter]))
        material += block
    return material[:length]


def keys_of(seed: bytes, nonces: bytes, spis: bytes) -> IkeKeys:
    """SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr of AES-128-GCM and HMAC-SHA-256."""
    material = prf_plus(seed, nonces + spis, 32 + 20 + 20 + 32 + 32)
    cuts = (0, 32, 32, 32, 52, 72, 104, 136)
    return IkeKeys(*(Secret(material[a:b]) for a, b in itertools.pairwise(cuts)))


def content_of(octets: bytes, method: int, public: bytes) -> bytes:
    """IntAuth_*A | IntAuth_*P: nothing of what encryption adds, and both lengths without it."""
    ke = method.to_bytes(2, "big") + bytes(2) + public
    inner = bytes([0, 0]) + (4 + len(ke)).to_bytes(2, "big") + ke
    header = octets[: HEADER_LENGTH - 4] + (HEADER_LENGTH + 4 + len(inner)).to_bytes(4, "big")
    return header + octets[28:30] + (4 + len(inner)).to_bytes(2, "big") + inner


def psk_auth(octets: bytes) -> bytes:
    return prf(prf(PSK.reveal(), b"Key Pad for IKEv2"), octets)


@pytest.mark.rfc("9370", "2.2.3")
@pytest.mark.rfc("9242", "3.3.2")
@pytest.mark.rfc("9370", "2.2.2")
def test_auth_proves_every_intermediate_exchange_and_each_changes_the_keys() -> None:
    peer = ScriptedInitiator(client(TWO), gateway(TWO))
    peer.init()
    sa = peer.sa
    assert sa.handshake is not None
    n_i, n_r, keys = sa.handshake.n_i, sa.handshake.n_r, sa.agreed[1]
    auth_i = auth_r = b""
    for method in (KeMethod.ECP_256, KeMethod.ML_KEM_768):
        key = initiate(method, sa.context.random)
        request = peer.request(ExchangeType.IKE_INTERMEDIATE, KeyExchange(method, key.public))
        (response,) = peer.deliver(request)
        ke = peer.open(response).find(KeyExchange)
        assert ke is not None
        content_i = content_of(request, method, key.public)
        content_r = content_of(response, method, ke.data)
        auth_i = prf(keys.sk_pi.reveal(), auth_i + content_i)
        auth_r = prf(keys.sk_pr.reveal(), auth_r + content_r)
        seed = prf(keys.sk_d.reveal(), key.shared(ke.data).reveal() + n_i + n_r)
        keys = sa.keys = keys_of(seed, n_i + n_r, sa.spi_i + sa.spi_r)
        sa.protection = Protection(sa.agreed[0], keys, is_initiator=True, random=sa.context.random)
    int_auth = auth_i + auth_r + (3).to_bytes(4, "big")
    payloads = list(IkeAuth().request(sa, peer.now) or ())
    identity = next(p for p in payloads if isinstance(p, IdPayload))
    assert identity.data == CLIENT.encode()
    maced = prf(keys.sk_pi.reveal(), identity.encode())
    ours = psk_auth(sa.handshake.request + n_r + maced + int_auth)
    payloads = [Auth(p.method, ours) if isinstance(p, Auth) else p for p in payloads]
    answer = peer.ask(ExchangeType.IKE_AUTH, *payloads)
    assert answer is not None
    theirs, identity_r = answer.find(Auth), answer.find(IdPayload)
    assert theirs is not None
    assert identity_r is not None
    maced = prf(keys.sk_pr.reveal(), identity_r.encode())
    assert theirs.method == AuthMethod.SHARED_KEY
    assert theirs.data == psk_auth(sa.handshake.response + n_i + maced + int_auth)
    assert peer.fact(Established) is not None


@pytest.mark.rfc("9370", "2.2.3")
@pytest.mark.rfc("9242", "3.3.2")
def test_an_auth_that_does_not_prove_the_intermediate_exchanges_is_refused() -> None:
    peer = ScriptedInitiator(client(ONE), gateway(ONE))
    peer.init()
    peer.exchange_keys()
    peer.sa.intermediate = None
    payloads = IkeAuth().request(peer.sa, peer.now)
    response = peer.ask(ExchangeType.IKE_AUTH, *(payloads or ()))
    assert response is not None
    assert response.notify(NotifyType.AUTHENTICATION_FAILED) is not None


@pytest.mark.rfc("9242", "3.2")
@pytest.mark.parametrize("carrier", [Carrier.UDP, Carrier.TLS])
@pytest.mark.parametrize(("ike", "count"), [(ONE, 1), (TWO, 2)])
def test_each_additional_key_exchange_takes_a_round_trip(
    ike: str, count: int, carrier: Carrier
) -> None:
    pair = Pair(client(ike), gateway(ike), carrier=carrier)
    pair.connect()
    heads = [IkeHeader.decode(datagram.octets) for datagram in pair.i.sent]
    exchanges = dict.fromkeys((head.message_id, head.exchange) for head in heads)  # not fragments
    between = [ExchangeType.IKE_INTERMEDIATE] * count
    assert list(exchanges) == list(
        enumerate([ExchangeType.IKE_SA_INIT, *between, ExchangeType.IKE_AUTH])
    )
    assert pair.agreed()
    established = pair.r.fact(Established)
    assert established is not None
    assert established.ike_suite == ike


@pytest.mark.rfc("9242", "3.3.2")
@pytest.mark.parametrize("size", [256, 576, 1280])
@pytest.mark.parametrize("loss", [0.0, 0.15])
def test_auth_proves_the_whole_of_what_came_in_fragments(size: int, loss: float) -> None:
    """The responder splits otherwise than the initiator, and both again where nothing comes."""
    ours = replace(quiet(client(f"{CLASSICAL}-ke1_mlkem1024")), fragment_size=size)
    theirs = replace(quiet(gateway(f"{CLASSICAL}-ke1_mlkem1024")), fragment_size=1280)
    pair = Pair(ours, theirs, Wire(loss=loss, duplication=loss, jitter=loss, seed=size))
    pair.connect(until=60.0)
    assert pair.agreed()
    sent = [datagram.octets for datagram in pair.i.sent]
    parts = {o for o in sent if IkeHeader.decode(o).exchange == ExchangeType.IKE_INTERMEDIATE}
    assert len(parts) > 1
    assert max(map(len, parts)) <= size


def test_a_fragment_of_a_repeated_request_brings_the_response_though_the_keys_are_newer() -> None:
    suite = f"{CLASSICAL}-ke1_mlkem1024"
    pair = Pair(quiet(client(suite)), quiet(gateway(suite)))
    waits = {"r"}
    pair.wire.filter = lambda sender, header, octets: (
        sender not in waits or header.exchange != ExchangeType.IKE_INTERMEDIATE
    )
    pair.connect(until=1.0)
    sent = [datagram.octets for datagram in pair.r.sent]
    waits.clear()
    pair.run(10.0)
    again = [datagram.octets for datagram in pair.r.sent][len(sent) :]
    assert again[0] in sent
    assert pair.agreed()
    assert pair.r.fact(Established) is not None


@pytest.mark.rfc("9242", "3.2")
@pytest.mark.parametrize("seed", range(12))
def test_any_message_may_be_lost_come_twice_or_late(seed: int) -> None:
    wire = Wire(loss=0.25, duplication=0.3, jitter=0.8, seed=seed)
    pair = Pair(quiet(client(TWO)), quiet(gateway(TWO)), wire, seed=seed)
    pair.connect(until=60.0)
    assert pair.agreed()
    assert pair.i.fact(Established) is not None
    assert pair.i.fact(Closed) is None


@pytest.mark.rfc("9242", "3.3.1")
def test_a_repeated_request_is_answered_though_the_keys_are_newer() -> None:
    pair = Pair(quiet(client(ONE)), quiet(gateway(ONE)))
    lost: list[bytes] = []

    def first_response_is_lost(sender: str, header: IkeHeader, octets: bytes) -> bool:
        is_it = sender == "r" and header.exchange == ExchangeType.IKE_INTERMEDIATE
        if is_it and not lost:
            lost.append(octets)
            return False
        return True

    pair.wire.filter = first_response_is_lost
    pair.connect()
    assert pair.agreed()
    again = [datagram.octets for datagram in pair.r.sent]
    assert again.count(lost[0]) == 2, "and octet for octet as before"
    request = pair.i.sent[1].octets
    assert IkeHeader.decode(request).exchange == ExchangeType.IKE_INTERMEDIATE
    pair.inject(pair.r, request)
    assert pair.r.endpoint.counters["dropped_integrity"] == 1, "once IKE_AUTH is there it is over"


def test_our_default_ike_sa_init_is_no_more_than_any_path_carries() -> None:
    ike, esp = map(parse_ike, DEFAULT_IKE), map(parse_esp, DEFAULT_ESP)
    ours, theirs = client(), gateway()
    ours = replace(ours, proposals=tuple(ike), child=replace(ours.child, proposals=tuple(esp)))
    theirs = replace(
        theirs,
        proposals=ours.proposals,
        child=replace(theirs.child, proposals=ours.child.proposals),
    )
    pair = Pair(ours, theirs)
    pair.connect()
    assert pair.agreed()
    established = pair.i.fact(Established)
    assert established is not None
    assert established.ike_suite.endswith("x25519-ke1_mlkem768")
    assert len(pair.i.sent[0].octets) < 1200
    auth = next(d.octets for d in pair.i.sent if IkeHeader.decode(d.octets).exchange == 35)
    assert len(auth) < 1200


def without_intermediate(payloads: list[Payload]) -> list[Payload]:
    kinds = {NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED}
    return [p for p in payloads if not (isinstance(p, Notify) and p.notify in kinds)]


def two_ways(policy: ConnectionPolicy) -> ConnectionPolicy:
    return replace(policy, proposals=(parse_ike(ONE), parse_ike(CLASSICAL)))


@pytest.mark.rfc("9242", "3.1")
@pytest.mark.rfc("9370", "2.2.1")
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [((ONE, CLASSICAL), CLASSICAL), ((f"{ONE}-ke1_none",), CLASSICAL), ((ONE,), None)],
)
def test_without_ike_intermediate_there_is_no_additional_key_exchange(
    offered: tuple[str, ...], chosen: str | None
) -> None:
    policy = replace(client(), proposals=tuple(map(parse_ike, offered)))
    ours = replace(gateway(), proposals=policy.proposals)
    peer = ScriptedInitiator(policy, ours)
    _, request = peer.init_request(without_intermediate)
    (octets,) = peer.deliver(request)
    response = clear(octets)
    refused = response.notify(NotifyType.NO_PROPOSAL_CHOSEN) is not None
    assert refused is (chosen is None)
    if chosen is not None:
        peer.init(without_intermediate)
        assert str(peer.sa.agreed[0]) == chosen
        assert response.notify(NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED) is None


@pytest.mark.rfc("9242", "3.1")
def test_a_responder_that_chooses_what_it_does_not_know_is_left() -> None:
    peer = ScriptedResponder(two_ways(client()), two_ways(gateway()))
    octets = sa_init.answer(peer.sa, clear(peer.first), peer.first)
    response = clear(octets)
    response = replace(response, payloads=tuple(without_intermediate(list(response.payloads))))
    peer.deliver(response.encode())
    peer.wait(5.0)
    closed = peer.fact(Closed)
    assert closed is not None
    assert "does not know IKE_INTERMEDIATE" in closed.reason


def refused_with_syntax(peer: ScriptedInitiator, response: Message | None, why: str) -> None:
    assert response is not None
    assert response.notify(NotifyType.INVALID_SYNTAX) is not None
    closed = peer.fact(Closed)
    assert closed is not None
    assert why in closed.reason


@pytest.mark.rfc("9242", "3.2")
def test_ike_auth_before_its_time() -> None:
    peer = ScriptedInitiator(client(ONE), gateway(ONE))
    peer.init()
    payloads = IkeAuth().request(peer.sa, peer.now)
    response = peer.ask(ExchangeType.IKE_AUTH, *(payloads or ()))
    refused_with_syntax(peer, response, "IKE_AUTH before the key exchange ECP_256")


@pytest.mark.rfc("9242", "5")
def test_a_key_exchange_that_nobody_has_agreed_on() -> None:
    peer = ScriptedInitiator(client(), gateway())
    peer.init()
    public = initiate(KeMethod.ECP_256, peer.sa.context.random).public
    response = peer.ask(ExchangeType.IKE_INTERMEDIATE, KeyExchange(KeMethod.ECP_256, public))
    refused_with_syntax(peer, response, "no additional key exchange is due")


@pytest.mark.rfc("9370", "2.2.2")
@pytest.mark.parametrize(
    ("payloads", "why"),
    [
        ([], "0 KE payloads"),
        ([KeyExchange(KeMethod.ECP_384, bytes(96))], "KE payload is ECP_384, ECP_256 is due"),
        ([KeyExchange(KeMethod.ECP_256, bytes(64))], "not on the curve"),
        ([KeyExchange(KeMethod.ECP_256, bytes(63))], "expected 64"),
    ],
)
def test_a_key_exchange_that_makes_no_sense(payloads: list[Payload], why: str) -> None:
    peer = ScriptedInitiator(client(ONE), gateway(ONE))
    peer.init()
    refused_with_syntax(peer, peer.ask(ExchangeType.IKE_INTERMEDIATE, *payloads), why)


@pytest.mark.parametrize(
    ("payloads", "why"),
    [
        ([Notify.of(NotifyType.INVALID_SYNTAX)], "peer answered INVALID_SYNTAX"),
        ([], "0 KE payloads"),
        ([KeyExchange(KeMethod.ECP_384, bytes(96))], "KE payload is ECP_384, ECP_256 is due"),
        ([KeyExchange(KeMethod.ECP_256, bytes(64))], "not on the curve"),
    ],
)
def test_an_answer_that_makes_no_sense(payloads: list[Payload], why: str) -> None:
    peer = ScriptedResponder(client(ONE), gateway(ONE))
    request = peer.answer_init()
    assert IkeHeader.decode(request).exchange == ExchangeType.IKE_INTERMEDIATE
    peer.respond(request, *payloads)
    closed = peer.fact(Closed)
    assert closed is not None
    assert why in closed.reason


@pytest.mark.rfc("9242", "3.2")
def test_the_responder_begins_no_intermediate_exchange() -> None:
    peer = ScriptedResponder(client(ONE), gateway(ONE))
    peer.answer_init()
    ke = KeyExchange(KeMethod.ECP_256, initiate(KeMethod.ECP_256, peer.sa.context.random).public)
    assert peer.ask(ExchangeType.IKE_INTERMEDIATE, ke) is None
    assert peer.endpoint.counters["dropped_illegal_exchange"] == 1


@pytest.mark.rfc("9242", "3.3.2")
def test_what_is_proved_is_what_was_sent_also_where_we_would_write_it_otherwise() -> None:
    peer = ScriptedInitiator(client(ONE), gateway(ONE))
    peer.init()
    sa = peer.sa
    assert sa.intermediate is not None
    key = initiate(KeMethod.ECP_256, sa.context.random)
    ke = KeMethod.ECP_256.to_bytes(2, "big") + b"\xff\xff" + key.public  # reserved bits are set
    inner = bytes([0, 0x7F]) + (4 + len(ke)).to_bytes(2, "big") + ke
    message = sa.message(ExchangeType.IKE_INTERMEDIATE, 1, ())
    content = encode_outer(message, PayloadType.KE, len(inner)) + inner
    _, keys, _ = sa.agreed
    response = peer.ask_raw(ExchangeType.IKE_INTERMEDIATE, PayloadType.KE, inner)
    assert response is not None
    theirs = response.find(KeyExchange)
    assert theirs is not None
    sa.intermediate.completed(keys, content, sa.intermediate.opened, key.shared(theirs.data))
    use_next_keys(sa)
    payloads = IkeAuth().request(sa, peer.now)
    assert peer.ask(ExchangeType.IKE_AUTH, *(payloads or ())) is not None
    assert peer.fact(Established) is not None
