"""The tests' own kernel: what a command under it writes and comes to arrives here."""

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.root


def under_kernel(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tests.kit.kernel", *arguments]
    return subprocess.run(command, check=False, capture_output=True)


def test_both_outputs_and_the_status_are_the_commands() -> None:
    script = "printf 'a\\r\\n\\0b'; echo \"$WORD in $PWD\" >&2; exit 7"
    done = under_kernel("--env", "WORD=here", "--", "sh", "-c", script)
    directory = subprocess.check_output(["pwd"])
    assert (done.stdout, done.stderr) == (b"a\r\n\0b", b"here in " + directory)
    assert done.returncode == 7


def test_a_command_that_takes_too_long_is_ended() -> None:
    done = under_kernel("--timeout", "4", "--", "sleep", "1000")
    assert b"took too long" in done.stderr
    assert done.returncode == 124


def test_the_last_words_of_a_kernel_that_died_are_told() -> None:
    done = under_kernel("--", "sh", "-c", "echo c >/proc/sysrq-trigger")
    assert b"Kernel panic" in done.stderr
    assert done.returncode == 125


def test_no_guest_outlives_the_kit() -> None:
    command = [sys.executable, "-m", "tests.kit.kernel", "--", "sh", "-c", "echo up; sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as kit:
        assert kit.stdout is not None
        assert kit.stdout.readline() == b"up\n"
        kit.terminate()
        assert kit.wait(20) == 128 + signal.SIGTERM
        assert kit.stdout.read() == b""  # at its end: the guest held it open
