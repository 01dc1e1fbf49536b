"""Messages that break the rules, from peers with true keys and from strangers."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.flows.scripted import Change, Scripted, ScriptedInitiator, ScriptedResponder, clear
from tests.kit.policies import client, gateway, selectors
from tunnelwrap.iana import ExchangeType, NotifyType, PayloadType, ProtocolId
from tunnelwrap.ike import create_child, sa_init
from tunnelwrap.ike.new_child import CreateChild
from tunnelwrap.ike.outputs import ChildRefused, Closed, Established, InstallChildSa
from tunnelwrap.ike.policy import Limits
from tunnelwrap.ike.rekey_ike import RekeyIke
from tunnelwrap.wire.message import VERSION_OFFSET, IkeHeader, Message
from tunnelwrap.wire.payloads import (
    Auth,
    Delete,
    IdPayload,
    KeyExchange,
    Nonce,
    Notify,
    Payload,
    TrafficSelectors,
    UnknownPayload,
)
from tunnelwrap.wire.proposal import SaPayload

CRITICAL = bytes([0, 0x80, 0, 4])  # a last payload with its critical bit set and no body
TOO_LONG = bytes([0, 0, 0, 99])


def initiator() -> ScriptedInitiator:
    peer = ScriptedInitiator(client(), gateway())
    peer.connect()
    assert peer.fact(Established) is not None
    return peer


def responder() -> ScriptedResponder:
    peer = ScriptedResponder(client(), gateway())
    peer.connect()
    assert peer.fact(Established) is not None
    return peer


def notifies(message: Message | None) -> list[int]:
    assert message is not None
    return [notify.notify for notify in message.all(Notify)]


def closed(peer: Scripted) -> Closed:
    fact = peer.fact(Closed)
    assert fact is not None
    return fact


@pytest.mark.rfc("9329", "6.1")
@pytest.mark.rfc("7296", "2.21.3")
def test_c14_a_syntax_error_in_a_request_is_answered_and_ends_the_ike_sa() -> None:
    peer = initiator()
    answer = peer.ask_raw(ExchangeType.INFORMATIONAL, PayloadType.NOTIFY, TOO_LONG)
    assert notifies(answer) == [NotifyType.INVALID_SYNTAX]
    assert closed(peer).notify == NotifyType.INVALID_SYNTAX
    assert "client@example.org at udp 192.0.2.1:4500" in closed(peer).reason


@pytest.mark.rfc("9329", "6.1")
def test_c14_a_syntax_error_in_a_response_is_told_and_ends_the_ike_sa() -> None:
    peer = initiator()
    (check,) = peer.wait(30.0)
    (told,) = peer.respond_raw(check, PayloadType.NOTIFY, TOO_LONG)
    assert notifies(peer.open(told)) == [NotifyType.INVALID_SYNTAX]
    assert closed(peer).notify == NotifyType.INVALID_SYNTAX


@pytest.mark.rfc("7296", "2.5")
def test_an_unknown_critical_payload_is_refused_and_the_ike_sa_lives_on() -> None:
    peer = initiator()
    answer = peer.ask_raw(ExchangeType.INFORMATIONAL, 200, CRITICAL)
    assert answer is not None
    (notify,) = answer.all(Notify)
    assert notify.notify == NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD
    assert notify.data == bytes([200])
    assert peer.fact(Closed) is None
    assert peer.ask(ExchangeType.INFORMATIONAL) is not None


@pytest.mark.rfc("7296", "2.5")
def test_an_unknown_critical_payload_in_ike_auth_ends_it() -> None:
    peer = ScriptedInitiator(client(), gateway())
    peer.init()
    answer = peer.ask_raw(ExchangeType.IKE_AUTH, 200, CRITICAL)
    assert notifies(answer) == [NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD]
    assert not closed(peer).was_established


@pytest.mark.rfc("7296", "3.10.1")
@pytest.mark.rfc("7296", "2.5")
def test_unknown_payloads_and_status_notifies_are_passed_over() -> None:
    peer = initiator()
    answer = peer.ask(ExchangeType.INFORMATIONAL, UnknownPayload(200, b"new"), Notify.of(50000))
    assert answer is not None
    assert answer.payloads == ()


def test_an_unreadable_duplicate_says_nothing_more() -> None:
    peer = initiator()
    peer.ask_raw(ExchangeType.INFORMATIONAL, 200, CRITICAL)
    peer.next_id -= 1
    assert peer.ask_raw(ExchangeType.INFORMATIONAL, 200, CRITICAL) is None


def test_an_unreadable_response_to_nothing_is_dropped() -> None:
    peer = initiator()
    (check,) = peer.wait(30.0)
    peer.respond(check)
    assert peer.respond_raw(check, PayloadType.NOTIFY, TOO_LONG) == []
    assert peer.fact(Closed) is None


def without(*kinds: type) -> Change:
    return lambda payloads: [p for p in payloads if not isinstance(p, kinds)]


def swapped(old: type, make: Callable[[Payload], Payload]) -> Change:
    return lambda payloads: [make(p) if isinstance(p, old) else p for p in payloads]


@pytest.mark.rfc("7296", "2.16")
@pytest.mark.rfc("7296", "1.2")
def test_ike_auth_without_auth_asks_for_eap_which_is_refused_by_name() -> None:
    peer = ScriptedInitiator(client(), gateway())
    answer = peer.connect(without(Auth))
    assert notifies(answer) == [NotifyType.AUTHENTICATION_FAILED]
    assert "client@example.org" in closed(peer).reason
    assert "EAP" in closed(peer).reason


@pytest.mark.rfc("7296", "1.2")
def test_ike_auth_without_identity_is_no_syntax() -> None:
    peer = ScriptedInitiator(client(), gateway())
    answer = peer.connect(without(IdPayload))
    assert notifies(answer) == [NotifyType.INVALID_SYNTAX]
    assert "a peer at udp 192.0.2.1:4500" in closed(peer).reason


def test_payloads_that_may_stand_once_stand_once() -> None:
    peer = ScriptedInitiator(client(), gateway())
    answer = peer.connect(lambda payloads: [*payloads, *payloads[-1:]])
    assert notifies(answer) == [NotifyType.INVALID_SYNTAX]
    assert "2 TS_R payloads" in closed(peer).reason


def test_an_initiator_serves_no_ike_auth() -> None:
    """A responder that has proved nothing cannot turn the roles round."""
    peer = ScriptedResponder(client(), gateway())
    peer.answer_init()
    assert peer.ask(ExchangeType.IKE_AUTH) is None
    assert peer.endpoint.counters["dropped_illegal_exchange"] == 1
    assert peer.fact(Closed) is None


@pytest.mark.parametrize("exchange", [ExchangeType.IKE_AUTH, 77])
def test_exchanges_out_of_place_are_dropped(exchange: int) -> None:
    peer = initiator()
    assert peer.ask(exchange) is None
    assert peer.endpoint.counters["dropped_illegal_exchange"] == 1


@pytest.mark.rfc("7296", "2.2")
@pytest.mark.rfc("7296", "2.3")
def test_message_ids_outside_the_window_are_dropped() -> None:
    peer = initiator()
    peer.next_id += 1
    assert peer.ask(ExchangeType.INFORMATIONAL) is None
    peer.next_id = 0
    assert peer.ask(ExchangeType.INFORMATIONAL) is None
    assert peer.endpoint.counters["dropped_request_outside"] == 2
    peer.next_id = 2
    assert peer.ask(ExchangeType.INFORMATIONAL) is not None


def test_a_response_that_nobody_waits_for_is_dropped() -> None:
    peer = initiator()
    message = peer.sa.reply(ExchangeType.INFORMATIONAL, 0, ())
    peer.deliver(peer.sa.agreed[2].seal(message))
    assert peer.endpoint.counters["dropped_unexpected_response"] == 1


def test_our_own_messages_reflected_are_dropped() -> None:
    peer = initiator()
    peer.deliver(peer.sent[-1])
    assert peer.endpoint.counters["dropped_unknown_spi"] == 1
    (check,) = peer.wait(30.0)
    spoiled = bytearray(check)
    spoiled[:16] = check[8:16] + check[8:16]
    peer.deliver(bytes(spoiled))
    assert peer.endpoint.counters["dropped_reflected"] == 1


@pytest.mark.rfc("7296", "2.21.2")
def test_a_responder_that_is_told_authentication_failed_closes() -> None:
    peer = initiator()
    peer.ask(ExchangeType.INFORMATIONAL, Notify.of(NotifyType.AUTHENTICATION_FAILED))
    assert "peer says AUTHENTICATION_FAILED" in closed(peer).reason
    assert "client@example.org" in closed(peer).reason
    assert closed(peer).was_established


@pytest.mark.rfc("7296", "1.4.1")
def test_deletes_of_unknown_child_sas_are_answered_without_one() -> None:
    peer = initiator()
    answer = peer.ask(ExchangeType.INFORMATIONAL, Delete(ProtocolId.ESP, (b"none",)))
    assert answer is not None
    assert answer.payloads == ()


@pytest.mark.rfc("7296", "2.25")
def test_a_rekey_of_no_child_sa_names_what_was_not_found() -> None:
    peer = initiator()
    rekey = Notify.of(NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=b"none")
    answer = peer.ask(ExchangeType.CREATE_CHILD_SA, rekey, *child_payloads(peer))
    assert answer is not None
    (notify,) = answer.all(Notify)
    assert notify.notify == NotifyType.CHILD_SA_NOT_FOUND
    assert (notify.protocol, notify.spi) == (ProtocolId.ESP, b"none")


def child_payloads(peer: Scripted) -> list[Payload]:
    """SA, Ni, TSi, TSr of a Child SA as the policy has it."""
    payloads = CreateChild(peer.policy.child).request(peer.sa, peer.now)
    assert payloads is not None
    return list(payloads)


@pytest.mark.rfc("7296", "1.3")
def test_too_many_child_sas_are_refused() -> None:
    peer = ScriptedInitiator(client(), gateway(), Limits(child_sas=2))
    peer.connect()
    answer = peer.ask(ExchangeType.CREATE_CHILD_SA, *child_payloads(peer))
    assert answer is not None
    assert answer.find(SaPayload) is not None
    answer = peer.ask(ExchangeType.CREATE_CHILD_SA, *child_payloads(peer))
    assert notifies(answer) == [NotifyType.NO_ADDITIONAL_SAS]


@pytest.mark.parametrize("missing", [SaPayload, Nonce, TrafficSelectors])
def test_a_child_sa_needs_all_its_payloads(missing: type) -> None:
    peer = initiator()
    payloads = [p for p in child_payloads(peer) if not isinstance(p, missing)]
    answer = peer.ask(ExchangeType.CREATE_CHILD_SA, *payloads)
    assert notifies(answer) == [NotifyType.INVALID_SYNTAX]
    assert closed(peer).was_established


@pytest.mark.parametrize("spi", [bytes(4), b"eightoct"])
def test_a_child_sa_needs_a_proper_spi(spi: bytes) -> None:
    peer = initiator()
    payloads = [with_spi(p, spi) for p in child_payloads(peer)]
    answer = peer.ask(ExchangeType.CREATE_CHILD_SA, *payloads)
    assert notifies(answer) == [NotifyType.INVALID_SYNTAX]


@pytest.mark.parametrize("spi", [bytes(8), b"four"])
def test_a_new_ike_sa_needs_a_proper_spi(spi: bytes) -> None:
    peer = initiator()
    payloads = [with_spi(p, spi) for p in rekey_payloads(peer)]
    answer = peer.ask(ExchangeType.CREATE_CHILD_SA, *payloads)
    assert notifies(answer) == [NotifyType.INVALID_SYNTAX]


@pytest.mark.rfc("7296", "1.3")
def test_a_rekey_of_the_ike_sa_with_another_method_is_told_which() -> None:
    peer = initiator()
    payloads = [
        replace(p, method=19) if isinstance(p, KeyExchange) else p for p in rekey_payloads(peer)
    ]
    answer = peer.ask(ExchangeType.CREATE_CHILD_SA, *payloads)
    assert answer is not None
    (notify,) = answer.all(Notify)
    assert (notify.notify, notify.data) == (NotifyType.INVALID_KE_PAYLOAD, b"\0\x1f")


def test_a_rekey_of_the_ike_sa_with_an_impossible_public_value() -> None:
    peer = initiator()
    payloads = [
        replace(p, data=bytes(32)) if isinstance(p, KeyExchange) else p
        for p in rekey_payloads(peer)
    ]
    answer = peer.ask(ExchangeType.CREATE_CHILD_SA, *payloads)
    assert notifies(answer) == [NotifyType.INVALID_SYNTAX]


def test_a_rekey_of_the_ike_sa_without_key_exchange() -> None:
    peer = initiator()
    payloads = [p for p in rekey_payloads(peer) if not isinstance(p, KeyExchange)]
    answer = peer.ask(ExchangeType.CREATE_CHILD_SA, *payloads)
    assert notifies(answer) == [NotifyType.INVALID_SYNTAX]


# --- responses that are none to what was asked ------------------------------------------------


def test_more_than_was_asked_for_is_cut_down() -> None:
    """A responder may narrow traffic selectors only; what it adds does not count."""
    peer = ScriptedResponder(client(), gateway())
    widened = swapped(TrafficSelectors, lambda p: replace(p, selectors=selectors("10.0.0.0/8")))
    assert peer.connect(widened) == []
    install = peer.fact(InstallChildSa)
    assert install is not None
    assert install.child.ts_local == selectors("10.1.0.0/24")
    assert install.child.ts_peer == selectors("10.2.0.0/24")


@pytest.mark.parametrize(
    "change",
    [
        swapped(TrafficSelectors, lambda p: replace(p, selectors=selectors("172.16.0.0/12"))),
        swapped(SaPayload, lambda p: replace(p, proposals=p.proposals * 2)),
        swapped(SaPayload, lambda p: replace(p, proposals=(replace(p.proposals[0], number=9),))),
        swapped(SaPayload, lambda p: with_spi(p, bytes(4))),
        without(TrafficSelectors),
    ],
    ids=["selectors", "two proposals", "number", "spi", "no selectors"],
)
def test_a_child_sa_that_was_not_asked_for_ends_ike_auth_on_both_sides(change: Change) -> None:
    peer = ScriptedResponder(client(), gateway())
    (told,) = peer.connect(change)
    assert notifies(peer.open(told)) == [NotifyType.INVALID_SYNTAX]
    assert closed(peer).notify == NotifyType.INVALID_SYNTAX
    assert peer.fact(Established) is None


def test_an_ike_auth_response_without_child_sa_and_without_reason() -> None:
    peer = ScriptedResponder(client(), gateway())
    peer.connect(without(SaPayload, TrafficSelectors))
    assert peer.fact(Established) is not None
    refused = peer.fact(ChildRefused)
    assert refused is not None
    assert "neither" in refused.reason


@pytest.mark.parametrize("missing", [IdPayload, Auth])
def test_an_ike_auth_response_without_proof(missing: type) -> None:
    peer = ScriptedResponder(client(), gateway())
    peer.connect(without(missing))
    assert peer.fact(Established) is None
    assert not closed(peer).was_established


@pytest.mark.parametrize(
    "change",
    [
        without(Nonce),
        without(KeyExchange),
        swapped(SaPayload, lambda p: with_spi(p, bytes(8))),
        without(SaPayload),
        swapped(KeyExchange, lambda p: replace(p, method=19)),
        swapped(KeyExchange, lambda p: replace(p, data=bytes(32))),
    ],
    ids=["nonce", "ke", "spi", "sa", "method", "public"],
)
def test_a_new_ike_sa_that_was_not_asked_for_ends_the_old_one(change: Change) -> None:
    peer = responder()
    peer.endpoint.rekey(peer.name, peer.now)
    (request,) = peer.drain()
    payloads = create_child.answer(peer.sa, peer.open(request), peer.now)
    (told,) = peer.respond(request, *change(payloads))
    assert notifies(peer.open(told)) == [NotifyType.INVALID_SYNTAX]
    assert closed(peer).was_established


@pytest.mark.parametrize(
    "change",
    [
        swapped(KeyExchange, lambda p: replace(p, method=19)),
        swapped(KeyExchange, lambda p: replace(p, data=bytes(32))),
        swapped(SaPayload, lambda p: replace(p, proposals=(replace(p.proposals[0], number=9),))),
    ],
    ids=["method", "public", "number"],
)
def test_ike_sa_init_answers_that_make_no_sense_are_waited_out_on_udp(change: Change) -> None:
    """Nobody is authenticated yet: the true answer may follow."""
    peer = ScriptedResponder(client(), gateway())
    true = sa_init.answer(peer.sa, clear(peer.first), peer.first)
    message = clear(true)
    peer.deliver(replace(message, payloads=tuple(change(list(message.payloads)))).encode())
    assert peer.fact(Closed) is None
    peer.deliver(true)
    peer.endpoint.authenticate(peer.name, peer.now)
    (request,) = peer.drain()
    assert IkeHeader.decode(request).exchange == ExchangeType.IKE_AUTH
    peer.wait(5.0)
    assert peer.fact(Closed) is None


@pytest.mark.parametrize("missing", [Nonce, KeyExchange, SaPayload])
def test_ike_sa_init_requests_that_lack_something_are_refused(missing: type) -> None:
    peer = ScriptedInitiator(client(), gateway())
    _, request = peer.init_request(without(missing))
    (reply,) = peer.deliver(request)
    assert notifies(clear(reply)) == [NotifyType.INVALID_SYNTAX]
    assert clear(reply).spi_r == bytes(8), "no state is kept"
    assert peer.endpoint.next_timeout() is None


def test_an_ike_sa_init_request_with_an_impossible_public_value_is_refused() -> None:
    peer = ScriptedInitiator(client(), gateway())
    _, request = peer.init_request(swapped(KeyExchange, lambda p: replace(p, data=bytes(32))))
    (reply,) = peer.deliver(request)
    assert notifies(clear(reply)) == [NotifyType.INVALID_SYNTAX]


@pytest.mark.parametrize("data", [bytes(31), bytes(32)])
def test_a_child_sa_with_an_impossible_public_value_ends_the_ike_sa(data: bytes) -> None:
    esp = "aes128gcm16-x25519"
    peer = ScriptedInitiator(client(esp=esp), gateway(esp=esp))
    peer.connect()
    spoil = swapped(KeyExchange, lambda p: replace(p, data=data))
    answer = peer.ask(ExchangeType.CREATE_CHILD_SA, *spoil(child_payloads(peer)))
    assert notifies(answer) == [NotifyType.INVALID_SYNTAX]


@pytest.mark.parametrize(
    "change",
    [
        swapped(KeyExchange, lambda p: replace(p, data=bytes(32))),
        swapped(KeyExchange, lambda p: replace(p, method=19)),
        without(KeyExchange),
        without(Nonce),
    ],
    ids=["public", "method", "ke", "nonce"],
)
def test_a_child_sa_with_another_key_exchange_than_asked_for_ends_the_ike_sa(
    change: Change,
) -> None:
    esp = "aes128gcm16-x25519"
    peer = ScriptedResponder(client(esp=esp), gateway(esp=esp))
    peer.connect()
    peer.endpoint.create_child(peer.name, client(esp=esp).child, peer.now)
    (request,) = peer.drain()
    peer.sa.exchange = None
    payloads = create_child.answer(peer.sa, peer.open(request), peer.now)
    (told,) = peer.respond(request, *change(payloads))
    assert notifies(peer.open(told)) == [NotifyType.INVALID_SYNTAX]
    assert closed(peer).was_established


def test_a_message_in_clear_on_a_keyed_ike_sa_is_dropped() -> None:
    peer = initiator()
    peer.deliver(peer.sa.message(ExchangeType.INFORMATIONAL, peer.next_id, ()).encode())
    assert peer.endpoint.counters["dropped_malformed"] == 1


def test_a_late_ike_sa_init_response_is_dropped() -> None:
    peer = ScriptedResponder(client(), gateway())
    response = sa_init.answer(peer.sa, clear(peer.first), peer.first)
    peer.deliver(response)
    peer.deliver(response)
    assert peer.endpoint.counters["dropped_unexpected"] == 1
    assert peer.fact(Closed) is None


# --- cookies ----------------------------------------------------------------------------------


@pytest.mark.rfc("7296", "2.6")
@pytest.mark.rfc("9329", "6.3")
def test_r8_a_cookie_is_given_back_in_front_of_the_same_request() -> None:
    peer = ScriptedResponder(client(), gateway())
    first = clear(peer.first)
    for cookie in (b"first cookie", b"second cookie"):
        peer.sa.spi_i = first.spi_i
        answer = peer.sa.reply(ExchangeType.IKE_SA_INIT, 0, [Notify.of(NotifyType.COOKIE, cookie)])
        (again,) = peer.deliver(answer.encode())
        assert clear(again).payloads == (Notify.of(NotifyType.COOKIE, cookie), *first.payloads)
        assert clear(again).message_id == 0
    peer.first = again
    assert peer.connect() == []
    assert peer.fact(Established) is not None


def test_a_responder_that_wants_cookies_for_ever_is_left() -> None:
    peer = ScriptedResponder(client(), gateway())
    peer.sa.spi_i = clear(peer.first).spi_i

    def ask(cookie: bytes) -> int:
        notify = Notify.of(NotifyType.COOKIE, cookie)
        return len(peer.deliver(peer.sa.reply(ExchangeType.IKE_SA_INIT, 0, [notify]).encode()))

    assert [ask(bytes([number])) for number in range(6)] == [1, 1, 1, 1, 0, 0]
    peer.wait(5.0)
    assert closed(peer).is_failure
    assert "yet another cookie" in closed(peer).reason


@pytest.mark.rfc("7296", "2.21.1")
def test_each_error_has_its_own_time_for_something_better() -> None:
    peer = ScriptedResponder(client(), gateway())
    peer.sa.spi_i = clear(peer.first).spi_i

    def say(notify: Notify) -> int:
        return len(peer.deliver(peer.sa.reply(ExchangeType.IKE_SA_INIT, 0, [notify]).encode()))

    assert say(Notify.of(NotifyType.NO_PROPOSAL_CHOSEN)) == 0
    assert say(Notify.of(NotifyType.COOKIE, b"go on")) == 1, "that is better"
    peer.wait(3.0)
    assert peer.fact(Closed) is None
    assert say(Notify.of(NotifyType.NO_PROPOSAL_CHOSEN)) == 0
    peer.wait(3.0)
    assert closed(peer).notify == NotifyType.NO_PROPOSAL_CHOSEN


# --- strangers --------------------------------------------------------------------------------


@pytest.mark.rfc("7296", "1.5")
@pytest.mark.rfc("7296", "2.5")
def test_a_later_major_version_is_told_ours() -> None:
    peer = ScriptedInitiator(client(), gateway())
    later = bytearray(peer.sa.message(ExchangeType.IKE_SA_INIT, 0, ()).encode())
    later[VERSION_OFFSET] = 0x30
    (reply,) = peer.deliver(bytes(later))
    message = clear(reply)
    assert message.is_response
    (notify,) = message.all(Notify)
    assert (notify.notify, notify.data) == (NotifyType.INVALID_MAJOR_VERSION, b"\x02")
    later[19] |= 0x20
    assert peer.deliver(bytes(later)) == [], "a response is not answered"
    assert peer.deliver(bytes(later[:20])) == []


@pytest.mark.parametrize("length", [0, 1, 17, 18, 27, 28, 40])
def test_cut_messages_are_dropped(length: int) -> None:
    peer = ScriptedResponder(client(), gateway())
    other = ScriptedInitiator(client(), gateway())
    assert other.deliver(peer.first[:length]) == []


def test_an_ike_sa_init_request_that_is_garbage_is_dropped() -> None:
    peer = ScriptedResponder(client(), gateway())
    other = ScriptedInitiator(client(), gateway())
    spoiled = bytearray(peer.first)
    spoiled[30] = 0xFF
    assert other.deliver(bytes(spoiled)) == []
    assert other.endpoint.counters["dropped_malformed"] == 1


def test_an_endpoint_without_connections_answers_nobody() -> None:
    peer = ScriptedResponder(client(), gateway())
    assert peer.deliver(peer.first) == []
    assert peer.endpoint.counters["dropped_initial"] == 1


def with_spi(payload: Payload, spi: bytes) -> Payload:
    if not isinstance(payload, SaPayload):
        return payload
    return replace(payload, proposals=tuple(replace(p, spi=spi) for p in payload.proposals))


def rekey_payloads(peer: Scripted) -> list[Payload]:
    """SA, Ni, KEi of a rekey of the IKE SA."""
    payloads = RekeyIke(peer.sa).request(peer.sa, peer.now)
    assert payloads is not None
    return list(payloads)
