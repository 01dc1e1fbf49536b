"""By which feed the kernel gets what comes by streams: tried out, not guessed.

The bridge is the fastest way of all, but has policies rule the loopback device: where others have
policies those would be asked there, too, and where a parameter cannot be set it cannot be had. The
TUN device concerns nobody, but for a system call for each packet it is no faster than ESP in this
process (``python -m tests.bench.kernel``): it is for who insists on the kernel.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Network
from typing import Final

from tunnelwrap.daemon.host import Host
from tunnelwrap.daemon.planes import BRIDGE, Chosen
from tunnelwrap.dataplane.bridge import LOOPBACK_SYSCTLS, Bridge
from tunnelwrap.dataplane.feed import Feed
from tunnelwrap.dataplane.mixed import MixedPlane
from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.dataplane.tun_feed import BLOCKS, MTU, TunFeed, network_of
from tunnelwrap.errors import DataPlaneError, HostNetError
from tunnelwrap.hostnet.links import feed_changes
from tunnelwrap.hostnet.sysctl import SysctlChange

logger = logging.getLogger(__name__)

_INNER, _OUTER = "tw-", "tf-"  # what names of devices begin with


def open_feed(chosen: Chosen, host: Host) -> Chosen:
    """Let the kernel have what comes by streams, too, if it can; before any other change.

    Raises:
        DataPlaneError: it cannot, and was demanded.
    """
    mixed = chosen.for_streams
    if mixed is None:
        return chosen
    problems: list[str] = []
    for name, opener in (_FEEDS if chosen.is_demanded else _FEEDS_UNASKED).items():
        try:
            mixed.open_feed(opener(mixed, host))
        except (DataPlaneError, HostNetError) as error:
            host.undo()
            problems.append(str(error))
            logger.info("streams cannot go into the kernel by %s: %s", name, error)
        else:
            return chosen.with_feed(name)
    if chosen.is_demanded:
        raise DataPlaneError(f"streams cannot go into the kernel: {'; '.join(problems)}")
    return chosen.without_streams()


def _open_bridge(mixed: MixedPlane, host: Host) -> Feed:
    mixed.check_alone()
    host.apply([SysctlChange.of(key, value) for key, value in LOOPBACK_SYSCTLS])
    return Bridge.create(asyncio.get_running_loop())


def _open_tun(_mixed: MixedPlane, host: Host) -> Feed:
    tun = Tun.open(host.device.replace(_INNER, _OUTER, 1), has_header=False)
    try:
        return TunFeed.create(asyncio.get_running_loop(), tun, _lead_to(tun, host))
    except (DataPlaneError, HostNetError):
        tun.close()
        raise


def _lead_to(tun: Tun, host: Host) -> IPv4Network:
    """Have addresses lead to a device: the first that no other instance has.

    Raises:
        HostNetError: the host refuses them all.
    """
    *networks, last = map(network_of, BLOCKS)
    for network in networks:
        with suppress(HostNetError):
            host.apply(feed_changes(tun.name, MTU, network))
            return network
    host.apply(feed_changes(tun.name, MTU, last))
    return last


_Opener = Callable[[MixedPlane, Host], Feed]

_FEEDS_UNASKED: Final[dict[str, _Opener]] = {BRIDGE: _open_bridge}
_FEEDS: Final[dict[str, _Opener]] = {**_FEEDS_UNASKED, "a TUN device": _open_tun}
