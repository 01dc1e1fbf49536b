"""The table of due times."""

from tunnelwrap.ike.timers import Timer, Timers


def test_due_timers_come_in_order_and_once() -> None:
    timers = Timers()
    assert timers.next() is None
    timers.arm(Timer.LIVENESS, 30.0)
    timers.arm(Timer.REKEY_IKE, 10.0)
    timers.arm(Timer.REKEY_CHILD, 20.0, 7)
    assert timers.next() == 10.0
    assert timers.take_due(5.0) == []
    assert timers.take_due(25.0) == [(Timer.REKEY_IKE, 0), (Timer.REKEY_CHILD, 7)]
    assert timers.take_due(25.0) == []
    assert timers.next() == 30.0


def test_a_timer_is_due_at_its_very_time() -> None:
    timers = Timers()
    timers.arm(Timer.LIVENESS, 0.1 + 0.2)
    assert timers.take_due(timers.next() or 0.0) == [(Timer.LIVENESS, 0)]


def test_arming_again_replaces_and_none_stops() -> None:
    timers = Timers()
    timers.arm(Timer.LIVENESS, 30.0)
    timers.arm(Timer.LIVENESS, 40.0)
    assert timers.next() == 40.0
    timers.arm(Timer.LIVENESS, None)
    timers.arm(Timer.LIVENESS, None)
    assert timers.next() is None


def test_all_timers_of_a_key_stop_together() -> None:
    timers = Timers()
    for key in (1, 2):
        timers.arm(Timer.REKEY_CHILD, 10.0 * key, key)
        timers.arm(Timer.EXPIRE_CHILD, 15.0 * key, key)
    timers.stop_all(1)
    assert timers.next() == 20.0
    timers.stop_all()
    assert timers.next() is None
