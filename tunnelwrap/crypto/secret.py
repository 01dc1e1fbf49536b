"""Secret: key octets that do not print themselves and compare in constant time."""

from hmac import compare_digest
from typing import final


@final
class Secret:
    """Key octets; only ``reveal`` gives them away, so that grep finds every use.

    Not hashable: a hash would make the time of a look-up depend on the octets.
    """

    __slots__ = ("_octets",)
    __hash__ = None  # type: ignore[assignment]  # the language's own way to say "not hashable"

    def __init__(self, octets: bytes) -> None:
        self._octets = bytes(octets)

    def reveal(self) -> bytes:
        """The octets themselves."""
        return self._octets

    def __len__(self) -> int:
        return len(self._octets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and compare_digest(self._octets, other._octets)

    def __repr__(self) -> str:
        return f"Secret({len(self._octets)} octets)"
