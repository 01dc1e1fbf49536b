"""An IKE SA that begins without a Child SA; those come by CREATE_CHILD_SA. RFC 6023."""

from collections.abc import Sequence

from tunnelwrap.errors import InvalidSyntax, NoAdditionalSas, PeerRefused
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.policy import Childless, ConnectionPolicy
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Notify, Payload, TrafficSelectors
from tunnelwrap.wire.proposal import SaPayload


def support(connections: Sequence[ConnectionPolicy]) -> list[Payload]:
    """CHILDLESS_IKEV2_SUPPORTED, as responder; whose connection it is comes out later."""
    if all(connection.childless is Childless.NEVER for connection in connections):
        return []
    return [Notify.of(NotifyType.CHILDLESS_IKEV2_SUPPORTED)]


def check_support(policy: ConnectionPolicy, message: Message) -> None:
    """Hold the responder's IKE_SA_INIT against what we require.

    Raises:
        PeerRefused: it cannot do without a Child SA.
    """
    is_supported = message.notify(NotifyType.CHILDLESS_IKEV2_SUPPORTED) is not None
    if policy.childless is Childless.REQUIRE and not is_supported:
        raise PeerRefused(
            NotifyType.NO_PROPOSAL_CHOSEN, "the peer makes no IKE SA without a Child SA"
        )


def is_childless(message: Message) -> bool:
    """True where an IKE_AUTH request asks for no Child SA."""
    return message.find(SaPayload) is None and message.find(TrafficSelectors) is None


def check_request(policy: ConnectionPolicy, message: Message) -> None:
    """Judge an IKE_AUTH request before it is answered.

    Raises:
        InvalidSyntax: it asks for no Child SA, and must.
    """
    if is_childless(message) and policy.childless is Childless.NEVER:
        raise InvalidSyntax(f"{message} asks for no Child SA")


def check_child(policy: ConnectionPolicy) -> None:
    """Judge a Child SA in IKE_AUTH.

    Raises:
        NoAdditionalSas: there it is one too many.
    """
    if policy.childless is Childless.REQUIRE:
        raise NoAdditionalSas(f"{policy.name} makes Child SAs by CREATE_CHILD_SA only")
