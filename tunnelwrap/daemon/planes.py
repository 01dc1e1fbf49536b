"""Which data plane a daemon has: what the kernel can do is tried out, not guessed.

auto       the kernel if it has all suites asked for, userspace for what it cannot have
kernel     the same, and an error where it has not
userspace  this process, with any kernel
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from tunnelwrap.crypto.suite import AhSuite, ChildSuite, EspSuite
from tunnelwrap.daemon.control import Answer
from tunnelwrap.dataplane import DataPlane, ElsewhereCallback, ExpireCallback
from tunnelwrap.dataplane.mixed import MixedPlane
from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.dataplane.userspace import UserspacePlane
from tunnelwrap.dataplane.xfrm import KernelPlane, MappingCallback
from tunnelwrap.dataplane.xfrm_tags import tag_of
from tunnelwrap.dataplane.xfrm_trial import why_not, why_uncompressed
from tunnelwrap.errors import ControlError, Unsupported
from tunnelwrap.iana import ProtocolId, TransformType
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.wire.proposal import Proposal

logger = logging.getLogger(__name__)

_NO_STREAMS: Final = "userspace for streams"


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who hears of what a data plane sees."""

    on_expire: ExpireCallback
    on_elsewhere: ElsewhereCallback | None
    on_mapping: MappingCallback


@dataclass(frozen=True, slots=True)
class Chosen:
    """A data plane."""

    plane: DataPlane
    name: str  # as people call it
    remark: str  # why, or what for
    kernel_esp: bool  # ESP over UDP is the kernel's affair
    compresses: bool = False  # what comes by UDP, where that is agreed. RFC 3173
    for_streams: MixedPlane | None = None  # whose bridge is to be opened, by LOOPBACK_SYSCTLS
    is_demanded: bool = False  # the kernel or nothing
    kernel: KernelPlane | None = None

    def without_streams(self) -> "Chosen":
        """The same where the bridge cannot be opened."""
        return replace(self, remark=f"{self.remark}; {_NO_STREAMS}", for_streams=None)

    def __str__(self) -> str:
        return f"data plane: {self.name} ({self.remark})"

    async def report(self) -> Answer:
        """What the kernel has of ours, beside what we think it has; a command.

        Raises:
            ControlError: it has no part in this.
        """
        if self.kernel is None:
            raise ControlError(f"nothing is in the kernel: {self}")
        return self.kernel.report()


def choose_plane(  # noqa: PLR0913 -- each is a fact of its own
    wanted: str,
    tun: Tun,
    inner_mtu: int,
    listeners: Listeners,
    policies: Sequence[ConnectionPolicy],
    instance: str,
    *,
    bridges_streams: bool = False,
) -> Chosen:
    """Make the data plane that a configuration asks for.

    Args:
        wanted: auto, kernel or userspace.
        tun: belongs to the plane from now on.
        inner_mtu: MTU of the TUN device, in octets.
        listeners: hear of what it sees.
        policies: whose suites it must know.
        instance: marks what is left in the kernel.
        bridges_streams: whether the kernel is meant for streams, too.

    Raises:
        Unsupported: the kernel is asked for, or AH, and it cannot.
        DataPlaneError: the kernel refuses.
    """
    loop = asyncio.get_running_loop()
    suites = suites_of(policies)
    why = "as configured" if wanted == "userspace" else why_not(suites)
    if why is not None and any(isinstance(suite, AhSuite) for suite in suites):
        raise Unsupported(f"AH needs the kernel's data plane, which is not to be had: {why}")
    if why is not None and wanted == "kernel":
        raise Unsupported(f'data_plane = "kernel" cannot be had: {why}')
    userspace = UserspacePlane(tun, loop, listeners.on_expire, inner_mtu, listeners.on_elsewhere)
    if why is not None:
        return Chosen(userspace, "userspace", why, kernel_esp=False)
    kernel = KernelPlane(tag_of(instance), loop, listeners.on_expire, listeners.on_mapping)
    mixed = MixedPlane(kernel, userspace)
    is_demanded = wanted == "kernel"
    chosen = Chosen(
        mixed,
        "kernel",
        "as configured" if is_demanded else "it has all suites",
        kernel_esp=True,
        compresses=_compresses(policies),
        for_streams=mixed,
        is_demanded=is_demanded,
        kernel=kernel,
    )
    return chosen if bridges_streams else chosen.without_streams()


def _compresses(policies: Iterable[ConnectionPolicy]) -> bool:
    """Whether the kernel has IPComp, if anybody wants it."""
    if not any(policy.child.ipcomp for policy in policies):
        return False
    why = why_uncompressed()
    if why is not None:
        logger.warning("nothing is compressed: %s", why)
    return why is None


def suites_of(policies: Iterable[ConnectionPolicy]) -> list[ChildSuite]:
    """Every encryption with every integrity that may come out of the proposals, once."""
    found = (
        suite
        for policy in policies
        for each in policy.child.proposals
        for suite in _suites_of(each)
    )
    return list(dict.fromkeys(found))


def _suites_of(proposal: Proposal) -> Iterator[ChildSuite]:
    ids = [(each.type, each.id, each.key_bits) for each in proposal.transforms]
    integs: list[int | None] = [
        number for kind, number, _ in ids if kind == TransformType.INTEG and number
    ]
    if proposal.protocol == ProtocolId.AH:
        yield from (AhSuite(integ, None, uses_esn=True) for integ in integs if integ)
        return
    encrs = [(number, bits) for kind, number, bits in ids if kind == TransformType.ENCR]
    for (encr, bits), integ in product(encrs, integs or [None]):
        yield EspSuite(encr, bits, integ, None, uses_esn=True)
