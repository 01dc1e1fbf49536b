"""The demo's visitor: a program on the client's host that uses the web site and measures it.

``python -m tunnelwrap.daemon.demo_visitor ACTION ADDRESS PORT [OCTETS]`` prints JSON lines:

    first     {"event": "ready"} once it runs, then tries until a TCP connection to the site is
              answered: {"event": "answered", "at": monotonic seconds}
    download  {"event": "progress", "octets"}..., {"event": "done", "octets", "seconds", "sha256"}
    upload    the same, and {"event": "received", "octets", "sha256"} as the site counted it
"""

import hashlib
import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Final

FIRST_TIMEOUT_S: Final = 60.0
_TRY_S: Final = 0.02  # between two tries
_TRIES: Final = 100  # under way at a time
_BLOCK: Final = 1 << 18
_PROGRESS_S: Final = 0.1
_IDLE_S: Final = 30.0  # a transfer that stands still for so long has failed


def main() -> None:
    """Do what the command line says."""
    action, address, port = sys.argv[1:4]
    if action == "first":
        first(address, int(port))
    elif action == "download":
        download(address, int(port))
    else:
        upload(address, int(port), int(sys.argv[4]))


def first(address: str, port: int) -> None:
    """Try again and again until the site answers a connection."""
    _say(event="ready")
    deadline = time.monotonic() + FIRST_TIMEOUT_S
    tries: list[socket.socket] = []
    while not _answered(tries):
        if time.monotonic() > deadline:
            sys.exit(f"{address} port {port} did not answer within {FIRST_TIMEOUT_S:.0f} s")
        if len(tries) == _TRIES:
            tries.pop(0).close()
        tries.append(_knock(address, port))
    _say(event="answered", at=time.monotonic())
    for sock in tries:
        sock.close()


def _knock(address: str, port: int) -> socket.socket:
    """A connection under way, by a fresh socket: the source address may have changed."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((address, port))
    return sock


def _answered(tries: list[socket.socket]) -> bool:
    """Wait a moment; whether one of the tries is connected."""
    time.sleep(_TRY_S)
    for sock in tries:
        try:
            sock.getpeername()
        except OSError:
            continue
        return True
    return False


def download(address: str, port: int) -> None:
    """Fetch the file and hash it."""
    meter, digest = _Meter(), hashlib.sha256()
    connection = http.client.HTTPConnection(address, port, timeout=_IDLE_S)
    connection.request("GET", "/file")
    response = connection.getresponse()
    buffer = bytearray(_BLOCK)
    while count := response.readinto(buffer):
        digest.update(memoryview(buffer)[:count])
        meter.add(count)
    meter.done(digest.hexdigest())
    connection.close()


def upload(address: str, port: int, octets: int) -> None:
    """Send random octets, and say what the site received."""
    data = os.urandom(octets)
    digest = hashlib.sha256(data).hexdigest()
    meter = _Meter()

    def blocks() -> Iterator[memoryview]:
        for start in range(0, octets, _BLOCK):
            block = memoryview(data)[start : start + _BLOCK]
            yield block
            meter.add(len(block))

    connection = http.client.HTTPConnection(address, port, timeout=_IDLE_S)
    connection.request("POST", "/upload", blocks(), {"Content-Length": str(octets)})
    answer = json.loads(connection.getresponse().read())
    meter.done(digest)
    _say(event="received", **answer)
    connection.close()


class _Meter:
    """Counts octets from now on, and tells them now and then."""

    def __init__(self) -> None:
        self._start = self._told_at = time.monotonic()
        self._octets = 0

    def add(self, octets: int) -> None:
        self._octets += octets
        now = time.monotonic()
        if now - self._told_at >= _PROGRESS_S:
            self._told_at = now
            _say(event="progress", octets=self._octets)

    def done(self, sha256: str) -> None:
        seconds = time.monotonic() - self._start
        _say(event="done", octets=self._octets, seconds=seconds, sha256=sha256)


def _say(**values: str | float) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201 - the program's answer


if __name__ == "__main__":
    main()
