"""Which data plane a daemon has: what the kernel can do is tried out, not guessed.

auto       the kernel if it has all suites asked for, userspace for what it cannot have
kernel     the same, and an error where it has not
userspace  this process, with any kernel

Where the kernel has xfrm interfaces, one leads into its IPsec, for streams, too; elsewhere, and for
what no route can lead to, policies rule all devices.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from tunnelwrap.crypto.suite import AhSuite, ChildSuite, EspSuite
from tunnelwrap.daemon.control import Answer
from tunnelwrap.daemon.host import Host
from tunnelwrap.dataplane import DataPlane, ElsewhereCallback, ExpireCallback
from tunnelwrap.dataplane.bridge import Bridge
from tunnelwrap.dataplane.mixed import MixedPlane
from tunnelwrap.dataplane.userspace import UserspacePlane
from tunnelwrap.dataplane.xfrm import KernelPlane, MappingCallback
from tunnelwrap.dataplane.xfrm_espintcp import why_no_espintcp
from tunnelwrap.dataplane.xfrm_tags import TAG_SHIFT, tag_of
from tunnelwrap.dataplane.xfrm_trial import why_not, why_uncompressed
from tunnelwrap.errors import ControlError, DataPlaneError, Unsupported
from tunnelwrap.iana import ProtocolId, TransformType
from tunnelwrap.ike.child_sa import Mode
from tunnelwrap.ike.policy import ConnectionPolicy
from tunnelwrap.wire.proposal import Proposal

logger = logging.getLogger(__name__)

BRIDGE: Final = "the loopback device"
"""How people call the bridge."""


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
    has_beet: bool = False  # BEET mode, likewise
    for_streams: MixedPlane | None = None  # which is to have a feed (``daemon.feeds``)
    is_demanded: bool = False  # the kernel or nothing
    streams: str = "userspace"  # where their ESP is, and how it gets there
    kernel: KernelPlane | None = None
    tcp_in_kernel: bool = False  # it takes bare TCP streams itself

    @property
    def if_id(self) -> int:
        """Of the xfrm interface that leads into it; 0: there is none."""
        return self.kernel.if_id if self.kernel is not None else 0

    @property
    def has_policies(self) -> bool:
        """Whether the kernel's policies take packets from any device into the tunnel."""
        return self.kernel_esp and not self.if_id

    def with_feed(self, name: str) -> "Chosen":
        """The same with streams, which go into the kernel that way."""
        remark = f"{self.remark}; streams by {name}"
        return replace(self, remark=remark, streams=f"kernel by {name}", for_streams=None)

    def without_streams(self) -> "Chosen":
        """The same where no feed can be had."""
        return replace(self, remark=f"{self.remark}; userspace for streams", for_streams=None)

    def forces_encapsulation(self, *, bare_esp: bool) -> bool:
        """Whether ESP must be in UDP where no NAT asks for it; only the kernel sends it bare."""
        if bare_esp and not self.kernel_esp:
            logger.warning("ESP stays in UDP: bare_esp needs the kernel's data plane")
        return not (bare_esp and self.kernel_esp)

    def __str__(self) -> str:
        tcp = "; bare TCP in the kernel" if self.tcp_in_kernel else ""
        return f"data plane: {self.name} ({self.remark}{tcp})"

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
    host: Host,
    inner_mtu: int,
    listeners: Listeners,
    policies: Sequence[ConnectionPolicy],
    instance: str,
    *,
    bridges_streams: bool = False,
    tcp_in_kernel: bool = False,
) -> Chosen:
    """Make the data plane that a configuration asks for.

    Args:
        wanted: auto, kernel or userspace.
        host: has the device that leads into it.
        inner_mtu: MTU of that device, in octets.
        listeners: hear of what it sees.
        policies: whose suites it must know.
        instance: marks what is left in the kernel.
        bridges_streams: whether the kernel is meant for streams, too, if that takes a sysctl.
        tcp_in_kernel: whether it is to take bare TCP streams itself.

    Raises:
        Unsupported: the kernel is asked for, or AH, BEET mode or bare TCP there, and it cannot.
        DataPlaneError: the kernel refuses.
    """
    why = "as configured" if wanted == "userspace" else why_not(suites_of(policies))
    if tcp_in_kernel:
        _check_espintcp(why, policies)
    if why is not None:
        _check_optional(wanted, policies, why)
        userspace = _userspace(host, inner_mtu, listeners)
        return Chosen(userspace, "userspace", why, kernel_esp=False)
    kernel = _kernel_plane(
        *(host, policies, tag_of(instance), listeners), tcp_in_kernel=tcp_in_kernel
    )
    chosen = Chosen(
        kernel,
        "kernel",
        "as configured" if wanted == "kernel" else "it has all suites",
        kernel_esp=True,
        compresses=_compresses(policies),
        has_beet=_has_beet(policies),
        is_demanded=wanted == "kernel",
        kernel=kernel,
        tcp_in_kernel=tcp_in_kernel,
    )
    if kernel.if_id:
        remark = f"{chosen.remark}; xfrm interface {host.device}"
        return replace(chosen, remark=remark, streams=f"kernel by {BRIDGE}")
    mixed = MixedPlane(kernel, _userspace(host, inner_mtu, listeners))
    chosen = replace(chosen, plane=mixed, for_streams=mixed)
    return chosen if bridges_streams else chosen.without_streams()


def _check_optional(wanted: str, policies: Sequence[ConnectionPolicy], why: str) -> None:
    """See that we can do without the kernel's plane.

    Raises:
        Unsupported: we cannot.
    """
    if any(isinstance(suite, AhSuite) for suite in suites_of(policies)):
        raise Unsupported(f"AH needs the kernel's data plane, which is not to be had: {why}")
    if any(policy.child.mode is Mode.BEET for policy in policies):
        raise Unsupported(f"BEET mode needs the kernel's data plane, which is not to be had: {why}")
    if wanted == "kernel":
        raise Unsupported(f'data_plane = "kernel" cannot be had: {why}')


def _userspace(host: Host, inner_mtu: int, listeners: Listeners) -> UserspacePlane:
    return UserspacePlane(
        host.open_tun(),
        asyncio.get_running_loop(),
        listeners.on_expire,
        inner_mtu,
        listeners.on_elsewhere,
    )


def _kernel_plane(
    host: Host,
    policies: Sequence[ConnectionPolicy],
    tag: int,
    listeners: Listeners,
    *,
    tcp_in_kernel: bool,
) -> KernelPlane:
    """Tied to an xfrm interface, with its bridge for streams, or by policies alone.

    Raises:
        Unsupported: there is no interface, which ``tcp_in_kernel`` needs: see ``hostnet.parting``.
    """
    heard = asyncio.get_running_loop(), listeners.on_expire, listeners.on_mapping
    if_id = tag << TAG_SHIFT
    why = _why_by_policies(policies) or host.why_no_interface(if_id)
    if why is None:
        kernel = KernelPlane(tag, *heard, if_id)
        try:
            kernel.open_feed(Bridge.create(heard[0], is_guarded=True))
        except DataPlaneError as error:
            kernel.close()
            why = str(error)
        else:
            return kernel
    if tcp_in_kernel:
        raise _no_espintcp(
            f"it needs an xfrm interface, which is not to be had ({why}): change that"
        )
    logger.debug("no xfrm interface: %s", why)
    return KernelPlane(tag, *heard)


def _why_by_policies(policies: Iterable[ConnectionPolicy]) -> str | None:
    """What a route into a device cannot have; None: nothing of that is wanted.

    To the address that ESP goes to there are two routes then; BEET mode, like transport mode, has
    no fragments, which are made before a device; and packets do not wait at an interface until a
    Child SA is there.
    """
    for policy in policies:
        child = policy.child
        if child.mode is not Mode.TUNNEL:
            return f"{policy.name} is in {child.mode.value} mode"
        if not child.ts_peer and policy.pool is None:
            return f"{policy.name} is for packets of the peer's own address"
        if child.on_demand:
            return f"{policy.name} is made on demand"
    return None


def _check_espintcp(why: str | None, policies: Iterable[ConnectionPolicy]) -> None:
    """See whether the kernel can have bare TCP streams; ``why`` it is not even the data plane.

    Raises:
        Unsupported: it cannot.
    """
    if why is not None:
        why = f"it needs the kernel's data plane, which is not to be had ({why}): change that"
    else:
        why = why_no_espintcp(suites_of(policies))
    if why is not None:
        raise _no_espintcp(why)


def _no_espintcp(why: str) -> Unsupported:
    return Unsupported(f"tcp_in_kernel = true cannot be had: {why}, or take tcp_in_kernel out")


def _compresses(policies: Iterable[ConnectionPolicy]) -> bool:
    """Whether the kernel has IPComp, if anybody wants it."""
    if not any(policy.child.ipcomp for policy in policies):
        return False
    why = why_uncompressed()
    if why is not None:
        logger.warning("nothing is compressed: %s", why)
    return why is None


def _has_beet(policies: Iterable[ConnectionPolicy]) -> bool:
    """Whether the kernel has BEET mode, if anybody wants it."""
    wishes = [policy for policy in policies if policy.child.mode is Mode.BEET]
    why = why_not(suites_of(wishes), Mode.BEET)
    if why is not None:
        logger.warning("tunnel mode in place of BEET mode: %s", why)
    return bool(wishes) and why is None


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
