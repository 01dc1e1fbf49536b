"""A tunnelwrap and its peer on two hosts, and the credentials that they share."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from tests.interop.lan import Lan
from tests.interop.settings import CLIENT, GATEWAY, Proof, Role, Settings
from tests.interop.sides import Side, StrongSwanSide, TunnelwrapSide
from tests.kit.certs import authority, entity
from tests.kit.strongswan import StrongSwan
from tests.kit.trixie import Trixie

PSK = "correct horse battery staple"

Peer = TypeVar("Peer", bound=Side)


class PairWith(Generic[Peer]):
    """Both ends of one scenario; ``role`` is tunnelwrap's, and ``peer`` makes the other end."""

    def __init__(
        self, lan: Lan, directory: Path, role: Role, peer: Callable[[Lan, Role, Path], Peer]
    ) -> None:
        self.lan = lan
        self.directory = directory
        self.tunnelwrap = TunnelwrapSide(lan, role, directory)
        other = Role.RESPONDER if role is Role.INITIATOR else Role.INITIATOR
        self.peer = peer(lan, other, directory)
        sides: list[Side] = [self.tunnelwrap, self.peer]
        self.initiator, self.responder = sides if role is Role.INITIATOR else sides[::-1]

    @property
    def tunnelwrap_initiates(self) -> bool:
        """Whether tunnelwrap is the initiator."""
        return self.initiator is self.tunnelwrap

    def start(self, initiator: Settings, responder: Settings) -> bool:
        """Start both daemons, the responder first, and connect; whether there is a tunnel."""
        self.responder.start(responder)
        self.initiator.start(initiator)
        return self.initiator.connect()

    def crash_initiator(self) -> None:
        """End the initiator without a word to its peer."""
        self.initiator.kill()

    def stop(self) -> None:
        """End both daemons, the initiator first."""
        self.initiator.stop()
        self.responder.stop()


class Pair(PairWith[StrongSwanSide]):
    """A tunnelwrap and a strongSwan: this machine's, or that of a ``root``."""

    def __init__(self, lan: Lan, directory: Path, role: Role, root: Trixie | None = None) -> None:
        super().__init__(lan, directory, role, partial(StrongSwanSide, root=root))

    @property
    def strongswan(self) -> StrongSwan:
        """strongSwan's daemon, to command it and to read its log."""
        return self.peer.daemon


def psk_proofs() -> tuple[Proof, Proof]:
    """The initiator's and the responder's proof with one PSK."""
    return (
        Proof(CLIENT, GATEWAY, psk=PSK),
        Proof(GATEWAY, CLIENT, psk=PSK),
    )


def certificate_proofs(kind: str) -> tuple[Proof, Proof]:
    """The initiator's and the responder's proof with certificates of one authority."""
    root = authority("C=CH, O=Interop, CN=Interop Root", kind)
    client = entity(f"CN={CLIENT}", root, kind=kind, number=1, sans=[CLIENT])
    gateway = entity(f"CN={GATEWAY}", root, kind=kind, number=2, sans=[GATEWAY])
    return (
        Proof(CLIENT, GATEWAY, certificate=client, authority=root),
        Proof(GATEWAY, CLIENT, certificate=gateway, authority=root),
    )
