"""Message IDs, retransmission and cached responses."""

import pytest

from tunnelwrap.ike.policy import Retransmission
from tunnelwrap.ike.window import FAREWELLS, Farewells, RequestWindow, ResponseWindow, Verdict

POLICY = Retransmission(timeout_s=0.5, factor=2.0, tries=3, reliable_timeout_s=60.0)


@pytest.mark.rfc("7296", "2.3")
def test_requests_of_the_peer_come_one_after_another() -> None:
    window = ResponseWindow()
    assert window.judge(0) is Verdict.NEW
    assert window.judge(1) is Verdict.OUTSIDE
    window.begin()
    assert window.judge(0) is Verdict.PENDING
    window.answered(b"response 0")
    assert window.judge(0) is Verdict.DUPLICATE
    assert window.response == (b"response 0",)
    assert window.judge(1) is Verdict.NEW
    window.begin()
    assert window.judge(0) is Verdict.DUPLICATE, "while the next one is being answered"
    window.answered(b"response 1")
    assert window.judge(0) is Verdict.OUTSIDE


def test_before_the_first_response_there_is_no_duplicate() -> None:
    assert ResponseWindow().judge(0xFFFFFFFF) is Verdict.OUTSIDE


@pytest.mark.rfc("7296", "2.1")
def test_a_request_is_repeated_with_growing_pauses_and_then_given_up() -> None:
    window = RequestWindow(POLICY)
    assert window.due() is None
    window.sent((b"request",), 100.0, is_reliable=False)
    pauses, now = [], 100.0
    while True:
        due = window.due()
        assert due is not None
        pauses.append(due - now)
        now = due
        octets = window.expire(now, is_reliable=False)
        if not octets:
            break
        assert octets == (b"request",)
    assert pauses == [0.5, 1.0, 2.0, 4.0]
    assert window.waited(now) == 7.5


@pytest.mark.rfc("9329", "6.2")
def test_on_a_stream_there_is_only_the_overall_timeout() -> None:
    window = RequestWindow(POLICY)
    window.sent((b"request",), 100.0, is_reliable=True)
    assert window.due() == 160.0
    assert window.expire(160.0, is_reliable=True) == ()


def test_another_path_gives_the_request_new_time() -> None:
    window = RequestWindow(POLICY)
    window.sent((b"request",), 100.0, is_reliable=False)
    window.expire(100.5, is_reliable=False)
    window.resent((b"request",), 130.0, is_reliable=True)
    assert window.due() == 190.0
    window.resent((b"request",), 140.0, is_reliable=False)
    assert window.due() == 140.5


@pytest.mark.rfc("7296", "2.2")
def test_message_ids_grow_with_responses_only() -> None:
    window = RequestWindow(POLICY)
    window.sent((b"first",), 0.0, is_reliable=False)
    window.withdraw()
    assert (window.next_id, window.due()) == (0, None)
    window.sent((b"again",), 0.0, is_reliable=False)
    window.completed()
    assert (window.next_id, window.due()) == (1, None)


def test_of_too_many_farewells_the_oldest_makes_room() -> None:
    farewells = Farewells()
    for number in range(FAREWELLS + 1):
        window = ResponseWindow()
        window.heard(0, b"request %d" % number)
        window.begin()
        window.answered(b"response %d" % number)
        farewells.keep(number.to_bytes(8, "big"), window, 100.0, is_reliable=False)

    def again(number: int) -> tuple[bytes, ...]:
        spi = number.to_bytes(8, "big")
        return farewells.again(spi, b"request %d" % number, 101.0, is_reliable=False)

    assert again(0) == ()
    assert again(1) == (b"response 1",)
    assert again(FAREWELLS) == (b"response %d" % FAREWELLS,)
