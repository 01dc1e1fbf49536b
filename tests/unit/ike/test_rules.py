"""The law's tables: complete, connected, and obeyed by check_occurrence."""

from enum import Enum

import pytest

from tests.unit.wire.samples import PAYLOADS
from tunnelwrap.errors import InvalidSyntax
from tunnelwrap.iana import ExchangeType, NotifyType, PayloadType
from tunnelwrap.ike.rules import (
    CHILD_TRANSITIONS,
    LEGAL,
    OCCURRENCE,
    TRANSITIONS,
    ChildState,
    IkeState,
    check_occurrence,
    is_legal,
)
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Notify, Payload, payload_type_of


@pytest.mark.parametrize(
    ("table", "first", "states"),
    [
        (TRANSITIONS, IkeState.CONNECTING, IkeState),
        (CHILD_TRANSITIONS, ChildState.INSTALLED, ChildState),
    ],
)
def test_every_state_is_reached_and_leads_to_the_end(
    table: dict[Enum, frozenset[Enum]], first: Enum, states: type[Enum]
) -> None:
    assert set(table) == set(states)
    seen, todo = {first}, [first]
    while todo:
        for following in table[todo.pop()] - seen:
            seen.add(following)
            todo.append(following)
    assert seen == set(states)
    closed = states["CLOSED"]
    assert not table[closed]
    assert all(closed in following for state, following in table.items() if state is not closed)


def test_every_state_says_what_is_legal() -> None:
    assert set(LEGAL) == set(IkeState)
    assert not LEGAL[IkeState.CLOSED]


@pytest.mark.parametrize("state", IkeState)
@pytest.mark.parametrize("exchange", ExchangeType)
def test_only_the_initiator_begins_the_initial_exchanges(
    state: IkeState, exchange: ExchangeType
) -> None:
    by_initiator = is_legal(state, exchange, by_initiator=True)
    assert by_initiator is (exchange in LEGAL[state])
    is_initial = exchange in {ExchangeType.IKE_INTERMEDIATE, ExchangeType.IKE_AUTH}
    assert is_legal(state, exchange, by_initiator=False) is (by_initiator and not is_initial)


def message(key: tuple[int, bool], payloads: list[Payload]) -> Message:
    exchange, is_response = key
    flags = {"is_response": is_response, "is_initiator": True, "message_id": 0}
    return Message(bytes(8), bytes(8), exchange, payloads=tuple(payloads), **flags)


def payload_of(payload_type: int) -> Payload:
    return next(p for p in PAYLOADS if payload_type_of(p) == payload_type)


def required(key: tuple[int, bool]) -> list[Payload]:
    return [payload_of(kind) for kind, (least, _) in OCCURRENCE[key].items() if least]


ENTRIES = [
    (key, kind, least, most)
    for key, row in OCCURRENCE.items()
    for kind, (least, most) in row.items()
]


@pytest.mark.rfc("7296", "C")
@pytest.mark.parametrize(("key", "kind", "least", "most"), ENTRIES)
def test_each_entry_allows_its_counts_and_no_others(
    key: tuple[int, bool], kind: PayloadType, least: int, most: int
) -> None:
    others = [p for p in required(key) if payload_type_of(p) != kind]
    for count in (least, most):
        check_occurrence(message(key, others + [payload_of(kind)] * count))
    with pytest.raises(InvalidSyntax, match=f"{most + 1} {kind.name} payloads"):
        check_occurrence(message(key, others + [payload_of(kind)] * (most + 1)))
    if least:
        with pytest.raises(InvalidSyntax, match=f"0 {kind.name} payloads, expected 1"):
            check_occurrence(message(key, others))


@pytest.mark.parametrize("key", OCCURRENCE)
def test_an_error_notify_stands_for_what_is_missing(key: tuple[int, bool]) -> None:
    check_occurrence(message(key, [Notify.of(NotifyType.NO_PROPOSAL_CHOSEN)]))
    if required(key):
        with pytest.raises(InvalidSyntax):
            check_occurrence(message(key, [Notify.of(NotifyType.USE_TRANSPORT_MODE)]))


def test_exchanges_and_payloads_that_the_law_does_not_know_are_no_matter() -> None:
    check_occurrence(message((77, False), list(PAYLOADS)))
    check_occurrence(message((ExchangeType.INFORMATIONAL, False), [payload_of(49)] * 3))
