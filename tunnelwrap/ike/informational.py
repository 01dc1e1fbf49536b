"""INFORMATIONAL in both roles: delete, liveness check, error notifies. RFC 7296 §1.4, §2.4."""

from collections.abc import Sequence
from typing import ClassVar

from tunnelwrap.errors import PeerRefused
from tunnelwrap.iana import ExchangeType, NotifyType, ProtocolId, name_of
from tunnelwrap.ike.rules import ChildState, IkeState, check_occurrence
from tunnelwrap.ike.sa import IkeSa, Next
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Delete, Notify, Payload


class Liveness:
    """An empty INFORMATIONAL: is the peer still there? Also the first word on a new stream."""

    TYPE: ClassVar = ExchangeType.INFORMATIONAL

    __slots__ = ()

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """Nothing in it."""
        return []

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:  # noqa: ARG002 (contract)
        """Any authentic response proves the peer alive."""
        return Next.DONE


class DeleteChild:
    """We end a Child SA."""

    TYPE: ClassVar = ExchangeType.INFORMATIONAL

    __slots__ = ("_spi_in",)

    def __init__(self, spi_in: int) -> None:
        self._spi_in = spi_in

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """D with our inbound SPI; None when it is gone already."""
        child = sa.children.find(self._spi_in)
        if child is None or child.state is ChildState.DELETING:
            return None
        child.become(ChildState.DELETING)
        return [Delete(child.sa.protocol, (self._spi_in.to_bytes(4, "big"),))]

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:  # noqa: ARG002 (contract)
        """The peer has let go of it."""
        child = sa.children.find(self._spi_in)
        if child is not None:
            sa.children.end(child, now)
        return Next.DONE


class CloseIke:
    """We end the IKE SA, with all its Child SAs."""

    TYPE: ClassVar = ExchangeType.INFORMATIONAL

    __slots__ = ("_notify", "reason")

    def __init__(self, reason: str, notify: int | None = None) -> None:
        self.reason = reason
        self._notify = notify

    def request(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:  # noqa: ARG002 (contract)
        """D of the IKE SA, or the error Notify that ends it. RFC 7296 §2.21.2."""
        if sa.state in {IkeState.ESTABLISHED, IkeState.REKEYED}:
            sa.become(IkeState.DELETING)
        return [Delete(ProtocolId.IKE, ()) if self._notify is None else Notify.of(self._notify)]

    def on_response(self, sa: IkeSa, message: Message, now: float) -> Next:  # noqa: ARG002 (contract)
        """It is gone on both sides."""
        sa.close(self.reason, is_failure=False)
        return Next.DONE


def answer(sa: IkeSa, message: Message, now: float) -> list[Payload]:
    """Answer an INFORMATIONAL request; a delete takes effect with it.

    Raises:
        PeerRefused: an error Notify of the peer ends the IKE SA.
    """
    check_occurrence(message)
    for notify in message.all(Notify):
        if notify.notify == NotifyType.AUTHENTICATION_FAILED:
            name = name_of(NotifyType, notify.notify)
            raise PeerRefused(notify.notify, f"peer says {name}")
    return [
        payload
        for delete in message.all(Delete)
        if delete.protocol in {ProtocolId.ESP, ProtocolId.AH}
        for payload in _delete_children(sa, delete, now)
    ]


def deletes_ike(message: Message) -> bool:
    """True where a request deletes the IKE SA itself."""
    return any(delete.protocol == ProtocolId.IKE for delete in message.all(Delete))


def _delete_children(sa: IkeSa, delete: Delete, now: float) -> list[Payload]:
    ours = []
    for octets in delete.spis:
        spi = int.from_bytes(octets, "big")
        child = sa.children.find_outbound(delete.protocol, spi)
        if child is None:  # or not yet: the response that has it may be lost on its way
            sa.ended_early.add((delete.protocol, spi))
            continue
        # where our own delete crosses, each side already names its half. RFC 7296 §1.4.1
        if child.state is not ChildState.DELETING:
            ours.append(child.sa.spi_in.to_bytes(4, "big"))
        sa.children.end(child, now)
    return [Delete(delete.protocol, tuple(ours))] if ours else []
