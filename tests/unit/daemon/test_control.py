"""Who is behind a control socket, and whether anybody is."""

import socket
from pathlib import Path
from threading import Timer

import pytest

from tunnelwrap.daemon.control import check_free, is_served, wait_for_end
from tunnelwrap.errors import ControlError


def listener(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    return listening


def test_nobody_is_there(tmp_path: Path) -> None:
    check_free(tmp_path / "socket")
    wait_for_end(tmp_path / "socket", 0)


def test_a_socket_that_was_left_is_free(tmp_path: Path) -> None:
    listener(tmp_path / "socket").close()

    assert not is_served(tmp_path / "socket")
    check_free(tmp_path / "socket")


def test_a_running_daemon_is_named(tmp_path: Path) -> None:
    with listener(tmp_path / "socket"):
        assert is_served(tmp_path / "socket")
        with pytest.raises(ControlError, match=f"is running .at {tmp_path}/socket"):
            check_free(tmp_path / "socket")


def test_the_end_of_a_daemon_is_waited_for(tmp_path: Path) -> None:
    with listener(tmp_path / "socket") as listening:
        end = Timer(0.1, listening.close)
        end.start()
        wait_for_end(tmp_path / "socket", 5)
        end.join()
        assert listening.fileno() < 0


def test_a_daemon_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    with listener(tmp_path / "socket"), pytest.raises(ControlError, match="has not ended within"):
        wait_for_end(tmp_path / "socket", 0.05)


def test_a_path_that_no_socket_can_have_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ControlError, match="Not a directory"):
        check_free(tmp_path / "file" / "socket")
