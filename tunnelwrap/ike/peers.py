"""Peers: which IKE SAs are established with whom.

Owns: the table, in which an IKE SA stands from the moment its peer has proved who it is to its end;
a rekey puts the successor in its place. RFC 7296 §2.4.
"""

from typing import TYPE_CHECKING

from tunnelwrap.auth.identity import Identity, IdentityPattern
from tunnelwrap.iana import IdType

if TYPE_CHECKING:
    from tunnelwrap.ike.sa import IkeSa

Key = tuple[Identity, Identity]


class Peers:
    """Established IKE SAs by name, and by the two identities."""

    __slots__ = ("_by_id", "_by_key")

    def __init__(self) -> None:
        self._by_id: dict[int, IkeSa] = {}
        self._by_key: dict[Key, dict[int, IkeSa]] = {}

    def enter(self, sa: "IkeSa") -> None:
        """Its peer has proved who it is; or it takes over from the IKE SA of the same name."""
        self._by_id[sa.id] = sa
        key = _key_of(sa)
        if key is not None:
            self._by_key.setdefault(key, {})[sa.id] = sa

    def leave(self, sa: "IkeSa") -> None:
        """It ends; one that another has taken over from is not there any more."""
        if self._by_id.get(sa.id) is not sa:
            return
        del self._by_id[sa.id]
        key = _key_of(sa)
        if key is None:
            return
        del self._by_key[key][sa.id]
        if not self._by_key[key]:
            del self._by_key[key]

    def named(self, sa_id: int) -> "IkeSa | None":
        """The IKE SA that now has this name."""
        return self._by_id.get(sa_id)

    def others(self, sa: "IkeSa") -> "list[IkeSa]":
        """Other IKE SAs between the same two identities, the oldest first; some may be ending."""
        key = _key_of(sa)
        if key is None:
            return []
        return [other for other in self._by_key.get(key, {}).values() if other.id != sa.id]

    def has(self, local: Identity, peer: IdentityPattern) -> bool:
        """True where there is one between us under this identity and such a peer."""
        return any(
            sa.chosen_policy.local.identity == local
            and sa.peer_identity is not None
            and peer.matches(sa.peer_identity)
            for sa in self._by_id.values()
        )


def _key_of(sa: "IkeSa") -> Key | None:
    """None where the peer is nobody: such peers are not the same. RFC 7619 §2.1."""
    peer = sa.peer_identity
    if peer is None or peer.type == IdType.NULL:
        return None
    return sa.chosen_policy.local.identity.canonical(), peer.canonical()
