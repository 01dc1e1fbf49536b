"""What one end of a scenario is to do, whichever daemon it is."""

from dataclasses import dataclass
from enum import Enum

from tests.kit.certs import Entity

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
class Settings:
    """What one end is to do."""

    proof: Proof
    ike: str = IKE
    esp: str = ESP
    rekey_child_s: int | None = None
    rekey_ike_s: int | None = None
