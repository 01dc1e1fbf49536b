"""What one end of a scenario is to do, whichever daemon it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from tests.kit.certs import Entity
from tests.kit.strongswan import Tree

CLIENT, GATEWAY = "client.example.org", "gateway.example.org"
IKE = "aes256gcm16-prfsha256-x25519"
ESP = "aes256gcm16-x25519"


class Role(Enum):
    """Which end of the first exchange."""

    INITIATOR = "initiator"
    RESPONDER = "responder"


@dataclass(frozen=True, slots=True)
class Proof:
    """Who one end says it is, whom it expects, and what proves it: a PSK, or certificates."""

    local_id: str
    peer_id: str
    psk: str | None = None
    certificate: Entity | None = None
    authority: Entity | None = None


@dataclass(frozen=True, slots=True)
class StrongSwanMore:
    """What only strongSwan is told, in sections of its own configuration; rekey times come later.

    A PPK, say, is ``connection={"ppk_id": "key", "ppk_required": "yes"}`` with
    ``secrets={"ppk-1": {"id-1": "key", "secret": "..."}}``, and smaller fragments are
    ``charon={"fragment_size": "300"}``.
    """

    connection: Tree = field(default_factory=dict)
    child: Tree = field(default_factory=dict)
    secrets: Tree = field(default_factory=dict)
    charon: Tree = field(default_factory=dict)  # of strongswan.conf; at the daemon's start
    levels: Tree = field(default_factory=dict)  # of its log, by group; likewise


@dataclass(frozen=True, slots=True)
class Settings:
    """What one end is to do; suites in strongSwan's words, which are tunnelwrap's too.

    Several suites are joined by commas.
    """

    proof: Proof
    ike: str = IKE
    esp: str = ESP
    rekey_child_s: float | None = None
    rekey_ike_s: float | None = None
    fragment_size: int | None = None
    cookie_threshold: int | None = None
    tunnelwrap: tuple[str, ...] = ()  # more lines of the connection's table
    strongswan: StrongSwanMore = field(default_factory=StrongSwanMore)
    libreswan: Mapping[str, str] = field(default_factory=dict)  # more options of ipsec.conf
    reauth_s: int | None = None
    childless: str | None = None  # as tunnelwrap writes it; strongSwan gets its own word
