"""What we change on the host, so that it can be undone: also after a crash.

Contract: a Change is a frozen value that can be written to the journal as JSON, applied, and
undone. ``undo`` is safe when the change was never made or is gone already.
"""

from typing import Protocol


class Change(Protocol):
    """One reversible change of the host's network."""

    def apply(self) -> None:
        """Make it.

        Raises:
            HostNetError: the host refuses; nothing of this change is left behind.
        """

    def undo(self) -> None:
        """Take it back; no error when there is nothing to take back."""

    def to_json(self) -> dict[str, object]:
        """The change as plain JSON, with ``kind`` naming its class."""

    def __str__(self) -> str:
        """What is changed, for people."""
