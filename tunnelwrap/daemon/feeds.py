"""By which feed the kernel gets what comes by streams: tried out, not guessed.

The bridge has policies rule the loopback device: where others have policies those would be asked
there, too, and where a parameter cannot be set it cannot be had.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from tunnelwrap.daemon.host import Host
from tunnelwrap.daemon.planes import BRIDGE, Chosen
from tunnelwrap.dataplane.bridge import LOOPBACK_SYSCTLS, Bridge
from tunnelwrap.dataplane.feed import Feed
from tunnelwrap.dataplane.mixed import MixedPlane
from tunnelwrap.errors import DataPlaneError, HostNetError
from tunnelwrap.hostnet.sysctl import SysctlChange

logger = logging.getLogger(__name__)


def open_feed(chosen: Chosen, host: Host) -> Chosen:
    """Let the kernel have what comes by streams, too, if it can; before any other change.

    Raises:
        DataPlaneError: it cannot, and was demanded.
    """
    mixed = chosen.for_streams
    if mixed is None:
        return chosen
    problems: list[str] = []
    for name, opener in _FEEDS.items():
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


_Opener = Callable[[MixedPlane, Host], Feed]

_FEEDS: Final[dict[str, _Opener]] = {BRIDGE: _open_bridge}
