"""An IKE SA that begins without a Child SA; those come by CREATE_CHILD_SA. RFC 6023."""

from collections.abc import Sequence

from tunnelwrap.errors import InvalidSyntax, NoAdditionalSas, PeerRefused
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike.policy import Childless, ConnectionPolicy
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Notify, Payload, TrafficSelectors
from tunnelwrap.wire.proposal import SaPayload


def support(connections: Sequence[ConnectionPolicy]) -> list[Payload]:
    """CHILDLESS_IKEV2_SUPPORTED, as responder; whose connection it is comes out later."""
    if all(connection.childless is Childless.NEVER for connection in connections):
        return []
    return [Notify.of(NotifyType.CHILDLESS_IKEV2_SUPPORTED)]


def check_support(sa: IkeSa, message: Message) -> None:
    """Learn from the responder's IKE_SA_INIT whether it supports it.

    Raises:
        PeerRefused: it cannot do without a Child SA, and must.
    """
    sa.peer_may_be_childless = message.notify(NotifyType.CHILDLESS_IKEV2_SUPPORTED) is not None
    if sa.chosen_policy.childless is Childless.REQUIRE and not sa.peer_may_be_childless:
        raise PeerRefused(
            NotifyType.NO_PROPOSAL_CHOSEN, "the peer makes no IKE SA without a Child SA"
        )


def begins_so(sa: IkeSa) -> bool:
    """Whether our IKE_AUTH asks for no Child SA: always, or as long as there is no demand."""
    childless = sa.chosen_policy.childless
    if childless is Childless.ACCEPT:
        return sa.peer_may_be_childless and not wants_child(sa)
    return childless is Childless.REQUIRE


def wants_child(sa: IkeSa) -> bool:
    """Whether the first Child SA is to be there from the start.

    One on demand is if the IKE SA that we authenticate again has one: it may be in use.
    """
    old = None if sa.reauthenticates is None else sa.context.peers.named(sa.reauthenticates)
    return not sa.chosen_policy.child.on_demand or bool(old is not None and len(old.children))


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
