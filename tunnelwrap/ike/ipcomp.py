"""IPComp, agreed with a Child SA: packets get smaller before they are protected.

Each side names the CPI under which it takes DEFLATE (RFC 2394); what does not get smaller goes as
it is. RFC 3173, RFC 7296 §2.22.
"""

from tunnelwrap.errors import InvalidSyntax
from tunnelwrap.iana import IpcompTransform, NotifyType
from tunnelwrap.ike.child_sa import Cpis
from tunnelwrap.ike.context import FIRST_CPI
from tunnelwrap.ike.policy import ChildPolicy
from tunnelwrap.ike.sa import IkeSa
from tunnelwrap.wire.message import Message
from tunnelwrap.wire.payloads import Notify, Payload


def own_cpi(sa: IkeSa, policy: ChildPolicy, spi_in: int) -> int | None:
    """The CPI under which the Child SA takes compressed packets; None: it takes none.

    The kernel alone compresses, and streams do not lead there.
    """
    is_possible = sa.context.compresses and not sa.path.carrier.is_reliable
    return sa.context.allocate_cpi(spi_in) if policy.ipcomp and is_possible else None


def supported(cpi: int | None) -> list[Payload]:
    """IPCOMP_SUPPORTED."""
    if cpi is None:
        return []
    data = cpi.to_bytes(2, "big") + bytes([IpcompTransform.DEFLATE])
    return [Notify.of(NotifyType.IPCOMP_SUPPORTED, data)]


def offered(message: Message) -> int | None:
    """The CPI under which the peer would take DEFLATE."""
    cpis = (
        _cpi_of(notify)
        for notify in message.all(Notify)
        if notify.notify == NotifyType.IPCOMP_SUPPORTED
    )
    return next((cpi for cpi in cpis if cpi is not None), None)


def accepted(message: Message, ours: int | None) -> Cpis | None:
    """What the response makes of our offer.

    Raises:
        InvalidSyntax: the peer has chosen something else.
    """
    notify = message.notify(NotifyType.IPCOMP_SUPPORTED)
    if notify is None:
        return None
    theirs = _cpi_of(notify)
    if ours is None or theirs is None:
        raise InvalidSyntax("the peer chose a compression that was not offered")
    return Cpis(ours, theirs)


def _cpi_of(notify: Notify) -> int | None:
    """The CPI, where it is one for DEFLATE (which has no attributes) that can be negotiated."""
    cpi, transform = int.from_bytes(notify.data[:2], "big"), notify.data[2:]
    is_usable = transform == bytes([IpcompTransform.DEFLATE]) and cpi >= FIRST_CPI
    return cpi if is_usable else None
