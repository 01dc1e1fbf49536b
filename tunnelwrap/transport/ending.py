"""How a stream ends: by us, by the peer, or by what became of the network between."""

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from tunnelwrap.errors import PathClosed

if TYPE_CHECKING:
    from tunnelwrap.transport import ClosedCallback, Transport


class Ending(ABC):
    """What streams have in common when they end; whose they are hears of it once, and later.

    Args:
        on_closed: told of an end that is not our own, with a PathClosed.
        loop: from which everything is called.
    """

    def __init__(self, on_closed: "ClosedCallback", loop: asyncio.AbstractEventLoop) -> None:
        self._on_closed = on_closed
        self._loop = loop
        self._is_open = True
        self._is_closed_by_us = False
        self._write_error: PathClosed | None = None

    @property
    def _can_write(self) -> bool:
        return self._is_open and self._write_error is None

    def _stop_writing(self, error: PathClosed) -> None:
        """Read what the peer said before it went (an error notify perhaps), then end."""
        self._write_error = error
        self._forget_unsent()
        self._loop.call_soon(self._read_last, error)

    def _read_last(self, error: PathClosed) -> None:
        self._on_readable()
        self._lose(error)

    def _lose(self, error: PathClosed) -> None:
        if self._is_open:
            self._shut()
            self._loop.call_soon(self._tell, error)

    def _tell(self, error: PathClosed) -> None:
        if not self._is_closed_by_us:
            self._on_closed(self._told_as(), error)

    @abstractmethod
    def _told_as(self) -> "Transport":
        """The transport that has ended."""

    @abstractmethod
    def _on_readable(self) -> None:
        """Hand on what has come."""

    @abstractmethod
    def _forget_unsent(self) -> None:
        """Nothing is written any more."""

    @abstractmethod
    def _shut(self) -> None:
        """Close the socket in good order."""
