"""The control socket of a running daemon: one line of JSON there, one line back.

A UNIX socket that only its owner may open. A request is ``{"command": NAME}``, for some with an
``"argument": TEXT``; the answer is ``{"result": ...}`` or ``{"error": TEXT}``, and the connection
ends.
Owns: the socket file.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from tunnelwrap.errors import ControlError, TunnelwrapError

logger = logging.getLogger(__name__)

MAX_LINE: Final = 1 << 20
REQUEST_S: Final = 5.0
"""How long a client of the socket may take to say what it wants."""

_POLL_S: Final = 0.05

Answer = Mapping[str, object]
Command = Callable[[], Awaitable[Answer]]
Wish = Callable[[str], Awaitable[Answer]]
"""A command with an argument."""


class ControlServer:
    """Answers commands until it is closed.

    Args:
        path: of the socket; its folder is made if it is missing.
        commands: what can be asked for, by name.
        wishes: what can be asked for with an argument.
    """

    def __init__(
        self, path: Path, commands: Mapping[str, Command], wishes: Mapping[str, Wish] | None = None
    ) -> None:
        self._path = path
        self._commands = dict(commands)
        self._wishes = dict(wishes or {})
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            ControlError: another daemon listens there, or the socket cannot be made.
        """
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _remove_stale(self._path)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=_bound(self._path), limit=MAX_LINE
            )
        except OSError as error:
            raise ControlError(f"control socket {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Stop, and remove the socket; calling twice is fine."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                line = await reader.readline()
            answer = await self._answer(line)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (OSError, TimeoutError, ValueError) as error:
            logger.debug("= control socket: %s", str(error) or "a client was silent")
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            request = json.loads(line)
            name, argument = request["command"], request.get("argument")
        except (ValueError, TypeError, KeyError, AttributeError):
            return {"error": 'expected {"command": NAME}'}
        command = self._commands.get(name) if isinstance(name, str) else None
        try:
            if isinstance(argument, str) and name in self._wishes:
                return {"result": await self._wishes[name](argument)}
            if command is None:
                return {"error": self._unknown(name)}
            return {"result": await command()}
        except TunnelwrapError as error:
            return {"error": str(error)}

    def _unknown(self, name: object) -> str:
        known = ", ".join((*self._commands, *(f"{wish} ARGUMENT" for wish in self._wishes)))
        return f"unknown command {name!r}, there are {known}"


def ask(
    path: Path, command: str, timeout_s: float, argument: str | None = None
) -> dict[str, object]:
    """Have the daemon behind a control socket obey a command; give back its result.

    Raises:
        ControlError: no daemon is there, it does not answer, or it refuses.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            request = {"command": command} | ({} if argument is None else {"argument": argument})
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline(MAX_LINE)
        except OSError as error:
            raise ControlError(_why_not(path, error)) from error
    return _result(line)


def wait_for_end(path: Path, timeout_s: float) -> None:
    """Wait until no daemon is behind a control socket any more: closing it is its last deed.

    Raises:
        ControlError: it still runs.
    """
    deadline = time.monotonic() + timeout_s
    while is_served(path):
        if time.monotonic() > deadline:
            raise ControlError(f"the daemon at {path} has not ended within {timeout_s:g} s")
        time.sleep(_POLL_S)


def check_free(path: Path) -> None:
    """See that no daemon listens at a control socket.

    Raises:
        ControlError: one does, or somebody else's may.
    """
    if is_served(path):
        raise ControlError(f"a tunnelwrap with this configuration is running (at {path})")


def is_served(path: Path) -> bool:
    """Whether a daemon listens at a control socket.

    Raises:
        ControlError: it is not ours to ask.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(REQUEST_S)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as error:
            raise ControlError(_why_not(path, error)) from error
    return True


def _result(line: bytes) -> dict[str, object]:
    try:
        answer = json.loads(line)
    except ValueError:
        raise ControlError("the daemon ended before it answered") from None
    match answer:
        case {"result": dict(result)}:
            return result
        case {"error": str(text)}:
            raise ControlError(text)
        case _:
            raise ControlError(f"the daemon answered {line!r}")


def _why_not(path: Path, error: OSError) -> str:
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            return f"no tunnelwrap is running with this configuration (nobody listens at {path})"
        case PermissionError():
            return f"{path} belongs to another user: try sudo"
        case TimeoutError():
            return f"the daemon at {path} does not answer"
        case _:
            return f"{path}: {error.strerror}"


def _remove_stale(path: Path) -> None:
    """Remove the socket of a daemon that was killed; refuse where one is running."""
    check_free(path)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()


def _bound(path: Path) -> socket.socket:
    """A socket bound to a path that nobody else could ever open."""
    listening = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listening.bind(str(path))
    except OSError:
        with contextlib.suppress(OSError):
            listening.close()
        raise
    finally:
        os.umask(mask)
    return listening
