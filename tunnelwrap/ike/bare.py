"""AH travels bare, as an IP protocol of its own: nothing can stand around it. RFC 4302 §2.

No NAT may be in between, for what a NAT changes AH protects (RFC 3715 §2.1), and UDP can carry ESP
alone (RFC 7296 §2.23); so can a stream (RFC 9329 §3.2).
"""

from tunnelwrap.errors import NoProposalChosen
from tunnelwrap.iana import ProtocolId
from tunnelwrap.ike.policy import ChildPolicy
from tunnelwrap.ike.sa import IkeSa, Nat
from tunnelwrap.path import Path


def forces_encapsulation(sa: IkeSa) -> bool:
    """Whether ESP must be in UDP where no NAT asks for it; to force it is to feign a NAT.

    Where AH may be wanted, what is said of NATs must be true.
    """
    return sa.context.forces_encapsulation and not any(_has_ah(c.child) for c in sa.connections)


def check_policy(policy: ChildPolicy, path: Path, nat: Nat) -> None:
    """See that what we want can travel.

    Raises:
        NoProposalChosen: it is AH, and it cannot.
    """
    if _has_ah(policy):
        check_way(ProtocolId.AH, path, nat)


def check_way(protocol: int, path: Path, nat: Nat) -> None:
    """See that packets of a Child SA can travel.

    Raises:
        NoProposalChosen: they are of AH, and cannot.
    """
    if protocol != ProtocolId.AH:
        return
    if path.carrier.is_reliable:
        raise NoProposalChosen(f"AH cannot be carried by {path.carrier.value}")
    if nat.local or nat.peer:
        who = "we are" if nat.local else "the peer is"
        raise NoProposalChosen(f"AH does not pass a NAT, and {who} behind one")


def _has_ah(policy: ChildPolicy) -> bool:
    return any(proposal.protocol == ProtocolId.AH for proposal in policy.proposals)
