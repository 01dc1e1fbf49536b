"""CREATE_CHILD_SA requests: a new Child SA, a rekey of one, or a rekey of the IKE SA.

RFC 7296 §1.3, §2.25.
"""

from tunnelwrap.errors import TemporaryFailure
from tunnelwrap.iana import NotifyType
from tunnelwrap.ike import new_child, rekey_child, rekey_ike
from tunnelwrap.ike.follow_up import under_way
from tunnelwrap.ike.rekey_ike import RekeyIke
from tunnelwrap.ike.rules import IkeState, check_occurrence
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Payload, TrafficSelectors


def answer(sa: IkeSa, message: Message, now: float) -> list[Payload]:
    """Answer a CREATE_CHILD_SA request of any kind.

    Raises:
        Refusal: no; the IKE SA lives on.
    """
    check_occurrence(message)
    if sa.state is not IkeState.ESTABLISHED:
        raise TemporaryFailure("the IKE SA is being replaced or deleted")
    if message.find(TrafficSelectors) is None:
        return rekey_ike.answer(sa, message, now)
    if isinstance(under_way(sa), RekeyIke):
        raise TemporaryFailure("the IKE SA is being rekeyed")
    notify = message.notify(NotifyType.REKEY_SA)
    if notify is None:
        return new_child.answer(sa, message, now)
    return rekey_child.answer(sa, message, notify, now)
