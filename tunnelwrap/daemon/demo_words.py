"""What the demo's processes say: JSON lines on standard output, written to a file and followed.

A file and not a pipe, so that a process that is kept alive can go on speaking when we are gone.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from tunnelwrap.daemon.demo_network import Program
from tunnelwrap.daemon.events import Attempt, Closed, Established, Event, Lost
from tunnelwrap.errors import TunnelwrapError

_POLL_S: Final = 0.01
_EXCERPT_LINES: Final = 5


class Ready(Event):
    """A process runs; the site tells its file's digest."""

    event: Literal["ready"]
    sha256: str = ""


class Answered(Event):
    """The site answered for the first time, at this monotonic instant (seconds)."""

    event: Literal["answered"]
    at: float


class Progress(Event):
    """A transfer goes on."""

    event: Literal["progress"]
    octets: int


class Done(Event):
    """A transfer is complete, as the visitor counts it."""

    event: Literal["done"]
    octets: int
    seconds: float
    sha256: str


class Received(Event):
    """An upload is complete, as the site counts it."""

    event: Literal["received"]
    octets: int
    sha256: str


Word = Ready | Answered | Progress | Done | Received | Attempt | Established | Lost | Closed
_WORD: Final = TypeAdapter[Word](Annotated[Word, Field(discriminator="event")])
Wanted = TypeVar("Wanted", bound=Word)


class Words:
    """What one program says, from the first word on."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._read = 0

    async def next(
        self, kind: type[Wanted], timeout_s: float, see: Callable[[Word], None] | None = None
    ) -> Wanted:
        """Wait for the next word of a kind; others before it go to ``see``.

        Raises:
            TunnelwrapError: the process ended before, or said nothing in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    word = await self._next_word()
                    if isinstance(word, kind):
                        return word
                    if see is not None:
                        see(word)
        except TimeoutError:
            wanted = kind.__name__.lower()
            raise TunnelwrapError(
                f"{self.program.name}: not {wanted} within {timeout_s:.0f} s{self._excerpt()}"
            ) from None

    async def _next_word(self) -> Word:
        while True:
            has_ended = self.program.process.poll() is not None
            line = self._next_line()
            if line is not None:
                return self._parse(line)
            if has_ended:
                raise TunnelwrapError(
                    f"{self.program.name}: ended with status {self.program.process.returncode}"
                    f"{self._excerpt()}"
                )
            await asyncio.sleep(_POLL_S)

    def _next_line(self) -> bytes | None:
        with self.program.output.open("rb") as file:
            file.seek(self._read)
            line = file.readline()
        if not line.endswith(b"\n"):
            return None
        self._read += len(line)
        return line

    def _parse(self, line: bytes) -> Word:
        try:
            return _WORD.validate_json(line)
        except ValidationError as error:
            raise TunnelwrapError(f"{self.program.name}: said {line!r}") from error

    def _excerpt(self) -> str:
        """The last lines of the log, for the reader of an error."""
        lines = self.program.log.read_text(errors="replace").splitlines()
        return "".join(f"\n    {line}" for line in lines[-_EXCERPT_LINES:])
