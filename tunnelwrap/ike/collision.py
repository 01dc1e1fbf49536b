"""Two exchanges that cross on the wire: who gives way. Pure. RFC 7296 §2.8.1, §2.8.2, §2.25."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Nonces:
    """The two nonces of one CREATE_CHILD_SA exchange."""

    initiator: bytes
    responder: bytes

    @property
    def lowest(self) -> bytes:
        """The lower one, compared octet by octet; a prefix is lower than what it begins."""
        return min(self.initiator, self.responder)


def ours_is_redundant(ours: Nonces, theirs: Nonces) -> bool:
    """True where the SA that we created must go: it has the lowest of the four nonces."""
    return ours.lowest < theirs.lowest
