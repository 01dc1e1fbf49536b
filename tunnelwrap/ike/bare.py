"""AH travels bare, as an IP protocol of its own: nothing can stand around it. RFC 4302 §2.

No NAT may be in between, for what a NAT changes AH protects (RFC 3715 §2.1), and UDP can carry ESP
alone (RFC 7296 §2.23); so can a stream (RFC 9329 §3.2).
"""

from tunnelwrap.errors import NoProposalChosen
from tunnelwrap.iana import ProtocolId
from tunnelwrap.ike.policy import ChildPolicy
from tunnelwrap.ike.sa import Nat
from tunnelwrap.path import Path


def check_policy(policy: ChildPolicy, path: Path, nat: Nat) -> None:
    """See that what we want can travel.

    Raises:
        NoProposalChosen: it is AH, and it cannot.
    """
    if policy.has_ah:
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
