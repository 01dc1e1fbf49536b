"""ESP on bare TCP streams by the kernel itself (espintcp), and whether it can be trusted with that.

SAs of such a stream name TCP as what is around ESP, with the connection's addresses and ports; the
kernel finds the connection by them for each packet. They are there before it has the stream.

Nothing that the kernel does, short of an attack, tells whether its espintcp is mended; so its
version must. Three flaws of 2026 count. By CVE-2026-46300 ("Fragnesia") anybody on the host becomes
root, whoever uses espintcp; by CVE-2026-52935 and CVE-2026-72041 what we are to send on a stream
whose peer takes nothing damages the kernel's memory, which needs no more than a peer. FIXED has the
stable release of each series that mends the last of them. A distributor's kernel that mends them
under an older number is not known to, and refused.
"""

import os
import re
import socket
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from ipaddress import ip_address
from struct import Struct
from typing import Final

from tunnelwrap.crypto.suite import ChildSuite, EspSuite
from tunnelwrap.dataplane.xfrm_trial import why_not_around
from tunnelwrap.dataplane.xfrm_values import EncapKind, Encapsulation
from tunnelwrap.errors import TransportError, Unsupported
from tunnelwrap.transport import Transport
from tunnelwrap.transport.kernel_stream import ESPINTCP, TCP_ULP, KernelStream
from tunnelwrap.transport.sockets import reason_of
from tunnelwrap.wire.esp import HEADER_LENGTH

FIXED: Final = {(6, 1): 184, (6, 6): 145, (6, 12): 97, (6, 18): 40, (7, 1): 5}
FIRST_FIXED: Final = (7, 2)  # from its first release on
FLAWS: Final = "CVE-2026-46300, CVE-2026-52935 and CVE-2026-72041"

_NOWHERE: Final = (ip_address("192.0.2.254"), ip_address("2001:db8::fe"))  # RFC 5737, RFC 3849
_OF_RELEASE: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)(?!\d|[-.\w]*-rc\d)")
_OF_DEBIAN: Final = re.compile(r"\bDebian (\d+)\.(\d+)\.(\d+)-")
_spi = Struct(">I").unpack_from


class EarlyEsp:
    """ESP for the kernel that came before the kernel had its stream: there is no way to give it.

    The peer is one whose stream has broken, and who has said nothing yet on the new one.
    """

    __slots__ = ("drops",)

    def __init__(self) -> None:
        self.drops: Counter[str] = Counter()

    def sift(self, batch: Sequence[memoryview], spis: Container[int]) -> list[memoryview]:
        """Drop what is for one of these SPIs; give back the rest."""
        rest = [each for each in batch if len(each) < HEADER_LENGTH or _spi(each)[0] not in spis]
        if len(rest) < len(batch):
            self.drops["before-hand-over"] += len(batch) - len(rest)
        return rest


def needs_feed(transport: Transport) -> bool:
    """Whether the kernel can have its ESP by a feed only."""
    return transport.path.carrier.is_reliable and not isinstance(transport, KernelStream)


def hand_over(transport: Transport) -> None:
    """Let the kernel have a stream whose SAs it has, if it is one for that.

    Raises:
        Unsupported: it will not.
    """
    if isinstance(transport, KernelStream):
        try:
            transport.hand_over()
        except TransportError as error:
            raise Unsupported(f"the kernel does not take the stream: {error}") from error


def why_no_espintcp(suites: Iterable[ChildSuite]) -> str | None:
    """Why no stream is left to this kernel, and what helps; None: nothing is against it.

    Args:
        suites: that the kernel has; the first of ESP is tried out in TCP.
    """
    why = _why_absent([suite for suite in suites if isinstance(suite, EspSuite)][:1])
    if why is not None:
        return (
            f"this kernel has no espintcp ({why}): run one that is built with INET_ESPINTCP and"
            " INET6_ESPINTCP"
        )
    uname = os.uname()
    return why_distrusted(uname.release, uname.version)


def why_distrusted(release: str, version: str) -> str | None:
    """Why a kernel is not known to be mended, and which ones are; None: it is.

    Args:
        release: as ``uname -r`` says.
        version: as ``uname -v`` says, where Debian's kernels name their release of Linux.
    """
    found = _OF_DEBIAN.search(version) or _OF_RELEASE.match(release)
    if found is not None:
        major, minor, patch = map(int, found.groups())
        least = FIXED.get((major, minor))
        if (major, minor) >= FIRST_FIXED or (least is not None and patch >= least):
            return None
    name = ".".join(found.groups()) if found is not None else release
    mended = ", ".join(f"{major}.{minor}.{patch}" for (major, minor), patch in FIXED.items())
    return (
        f"Linux {name} is not known to be free of {FLAWS}: run at least {mended} or"
        f" {'.'.join(map(str, FIRST_FIXED))}"
    )


def _why_absent(suites: Iterable[ChildSuite]) -> str | None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.IPPROTO_TCP, TCP_ULP, ESPINTCP)
    except OSError as error:
        return reason_of(error)
    around = Encapsulation(4500, 4500, EncapKind.TCP)
    trials = (why_not_around(suite, around, end) for suite in suites for end in _NOWHERE)
    return next(filter(None, trials), None)
