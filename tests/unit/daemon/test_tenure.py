"""Which stream has a client's way: the rule, case by case."""

from tunnelwrap.daemon.headers import Esp, Ike
from tunnelwrap.daemon.tenure import MAX_CHALLENGERS, MAX_IKE_SAS, Tenure
from tunnelwrap.iana import ExchangeType

ESP = Esp(b"espx")


def request(message_id: int, spi_i: bytes = b"initiatr") -> Ike:
    return Ike(spi_i, b"responde", False, True, message_id, ExchangeType.INFORMATIONAL)


def response(message_id: int, spi_i: bytes = b"initiatr", *, protected: bool = True) -> Ike:
    return Ike(spi_i, b"responde", True, protected, message_id, ExchangeType.INFORMATIONAL)


def held() -> Tenure[str]:
    """By ``old``, whose request 1 has been answered."""
    tenure: Tenure[str] = Tenure()
    assert not tenure.hear("old", request(1), 0)
    assert tenure.answer(response(1), 0) == ["old"]
    return tenure


def test_nobody_gets_anything_before_somebody_is_there() -> None:
    assert Tenure[str]().answer(request(0), 0) == []


def test_a_newcomer_challenges_once() -> None:
    tenure = held()

    assert tenure.hear("new", ESP, 1)
    assert not tenure.hear("new", ESP, 2)
    assert tenure.challengers == {"new": 1}
    assert tenure.holder == "old"


def test_a_new_request_that_is_answered_takes_the_way() -> None:
    tenure = held()
    tenure.hear("new", request(2), 1)

    assert tenure.answer(response(2), 5) == ["new"]

    assert tenure.holder == "new"
    assert tenure.challengers == {"old": 5}


def test_neither_an_old_request_nor_one_of_both_nor_an_open_answer_takes_it() -> None:
    for asked, answer in (
        (1, response(1)),
        (2, response(2, protected=False)),
        (9, response(2)),
    ):
        tenure = held()
        tenure.hear("new", request(asked), 1)
        tenure.answer(answer, 1)
        assert tenure.holder == "old"

    both = held()
    both.hear("new", request(2), 1)
    both.hear("old", request(2), 1)
    assert both.answer(response(2), 1) == ["old", "new"]
    assert both.holder == "old"


def test_requests_of_the_daemon_are_for_the_holder() -> None:
    tenure = held()
    tenure.hear("new", request(2), 1)

    assert tenure.answer(request(2), 1) == ["old"]
    assert tenure.holder == "old"


def test_the_challenger_heard_last_follows() -> None:
    tenure = held()
    for caller in ("a", "b", "a"):
        tenure.hear(caller, ESP, 1)

    tenure.leave("old")
    assert tenure.holder == "a"
    tenure.leave("a")
    tenure.leave("b")
    assert tenure.holder is None
    assert not tenure.hear("c", ESP, 2)
    assert tenure.holder == "c"


def test_who_has_left_is_sent_nothing() -> None:
    tenure = held()
    tenure.hear("new", request(2), 1)
    tenure.leave("new")

    assert tenure.answer(response(2), 1) == ["old"]


def test_challengers_have_their_time_and_are_few() -> None:
    tenure = held()
    for at in range(MAX_CHALLENGERS + 2):
        tenure.hear(f"{at}", ESP, at)

    assert tenure.turned_away(begun_before=0) == ["0", "1"]
    assert tenure.turned_away(begun_before=3) == ["0", "1", "2"]


def test_only_so_many_ike_sas_are_remembered() -> None:
    tenure = held()
    for number in range(MAX_IKE_SAS):
        tenure.hear("old", request(0, number.to_bytes(8, "big")), 0)
        tenure.answer(response(0, number.to_bytes(8, "big")), 0)

    tenure.hear("new", request(1), 0)
    tenure.answer(response(1), 0)
    assert tenure.holder == "new"
