"""Sockets that a service manager hands over, in a process of its own: its descriptors from 3 on."""

import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest

# Arguments: the port to ask for, and the descriptors, which become those from 3 on. One connection
# to the port is answered.
HEIR = """
import asyncio, logging, os, sys
from tunnelwrap.demux.given import given_sockets
from tunnelwrap.demux.listener import Listener
from tunnelwrap.errors import TransportError
from tunnelwrap.path import SocketAddress

logging.basicConfig(format="%(message)s", stream=sys.stdout)
port, *descriptors = map(int, sys.argv[1:])
for number, descriptor in enumerate([os.dup(each) for each in descriptors], 3):
    os.dup2(descriptor, number)
if not os.environ.get("LISTEN_PID"):
    os.environ["LISTEN_PID"] = str(os.getpid())

async def main():
    with given_sockets() as given:
        taken = given.take(port)
        print(*(SocketAddress.of(each.getsockname()) for each in taken))
        print(*(name for name in os.environ if name.startswith("LISTEN_")))
    if not taken:
        return
    arrived = asyncio.get_running_loop().create_future()
    listener = Listener(taken, port, lambda *args: arrived.set_result(args[3]))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listener.run())
        print(await arrived, flush=True)
        listener.close()

try:
    asyncio.run(main())
except TransportError as error:
    print(error)
"""


def inherit(port: int, given: Sequence[socket.socket], **environment: str) -> list[str]:
    """What a process says that is given these sockets, and asked to listen on a port."""
    numbers = [str(each.fileno()) for each in given]
    done = subprocess.run(
        [sys.executable, "-c", HEIR, str(port), *numbers],
        env={"LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": "web", **environment},
        pass_fds=[each.fileno() for each in given],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.stdout.splitlines()


def listening(family: int = socket.AF_INET, host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(family)
    sock.bind((host, 0))
    sock.listen()
    return sock


def test_a_listener_serves_on_a_socket_that_was_given() -> None:
    with listening() as given, socket.create_connection(given.getsockname()) as client:
        client.sendall(b"IKETCP\0\x09\0\0\0\0hello")  # before anybody is there to take it
        port = given.getsockname()[1]

        where, left_in_environment, received = inherit(port, [given])

        assert where == f"127.0.0.1:{port}"
        assert left_in_environment == ""
        assert received == "b''"


def test_the_sockets_of_other_ports_are_closed_and_told_of() -> None:
    with listening() as given, listening() as other:
        taken, _, warning = inherit(1, [given])
        assert taken == ""
        where = f"127.0.0.1:{given.getsockname()[1]}"
        assert warning == f"given a socket for TCP {where}, where nothing is configured"
        assert len(inherit(1, [given, other])) == 4


def test_what_was_given_to_another_process_is_not_ours() -> None:
    with listening() as given:
        assert inherit(given.getsockname()[1], [given], LISTEN_PID="1") == ["", ""]


def test_no_sockets_at_all() -> None:
    assert inherit(443, []) == ["", ""]


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_what_does_not_listen_is_refused(kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as given:
        said = inherit(443, [given])
    assert said == ["given descriptor 3 is no TCP socket that listens"]


def test_one_socket_for_both_ip_versions_is_refused() -> None:
    with listening(socket.AF_INET6, "::") as given:
        given_port = given.getsockname()[1]
        (said,) = inherit(443, [given])
    assert said.startswith(f"given a socket for TCP [::]:{given_port} that takes IPv4 too")


def test_a_descriptor_that_is_no_socket_is_refused() -> None:
    with listening() as given:
        (said,) = inherit(443, [given], LISTEN_FDS="2")
    assert said.startswith("given descriptor 4 is no socket")
