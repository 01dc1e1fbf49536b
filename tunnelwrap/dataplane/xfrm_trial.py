"""What this kernel's IPsec can do: it is asked to take an SA that leads nowhere."""

import os
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_network
from typing import Final

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import ChildSuite
from tunnelwrap.dataplane.netlink import XfrmSocket
from tunnelwrap.dataplane.xfrm_pairs import MODES, PROTOS
from tunnelwrap.dataplane.xfrm_suite import DEFLATE, child_algorithms
from tunnelwrap.dataplane.xfrm_values import (
    Encapsulation,
    KernelSa,
    Proto,
    Replay,
    SaId,
    Selector,
    XfrmMode,
)
from tunnelwrap.errors import DataPlaneError, KernelRefused, Unsupported
from tunnelwrap.ike.child_sa import Mode, SaKeys
from tunnelwrap.path import IpAddress

_NOWHERE: Final = IPv4Address("192.0.2.254")  # TEST-NET-1, RFC 5737
_ITSELF: Final = ip_network(_NOWHERE)
_TRIAL_CPI: Final = 0xF000  # for private use. RFC 3173 §3.3
_HIGH_SPI: Final = 0x8000_0000
_WIDE_WINDOW: Final = 1024


def why_not(suites: Iterable[ChildSuite], mode: Mode = Mode.TUNNEL) -> str | None:
    """Why the kernel cannot be the data plane for all of these suites in a mode; None: it can.

    It is asked to take an SA of each, which leads nowhere and is deleted at once.
    """
    try:
        with XfrmSocket() as xfrm:
            for suite in suites:
                _try_out(xfrm, suite, mode)
    except DataPlaneError as error:
        return str(error)
    return None


def why_not_around(suite: ChildSuite, encapsulation: Encapsulation, end: IpAddress) -> str | None:
    """Why the kernel cannot have that around ESP at such an address; None: it can."""
    try:
        with XfrmSocket() as xfrm:
            _try_out(xfrm, suite, Mode.TUNNEL, encapsulation, end)
    except DataPlaneError as error:
        return str(error)
    return None


def why_uncompressed() -> str | None:
    """Why the kernel cannot do IPComp; None: it can.

    Beside DEFLATE it must take an SA in transport mode for both IP versions (since Linux 6.3).
    """
    sa = KernelSa(
        id=SaId(_NOWHERE, _TRIAL_CPI, Proto.COMP),
        source=_NOWHERE,
        mode=XfrmMode.TRANSPORT,
        algorithms=DEFLATE,
    )
    try:
        with XfrmSocket() as xfrm:
            xfrm.delete_sa(sa.id)
            xfrm.add_sa(sa)
            xfrm.delete_sa(sa.id)
    except DataPlaneError as error:
        return str(error)
    return None


def _try_out(
    xfrm: XfrmSocket,
    suite: ChildSuite,
    mode: Mode,
    encapsulation: Encapsulation | None = None,
    end: IpAddress = _NOWHERE,
) -> None:
    keys = SaKeys(
        Secret(os.urandom(suite.encryption_key_length)),
        Secret(os.urandom(suite.integrity_key_length)),
    )
    spi = int.from_bytes(os.urandom(4)) | _HIGH_SPI
    sa = KernelSa(
        id=SaId(end, spi, PROTOS[suite.PROTOCOL]),
        source=end,
        mode=MODES[mode],
        algorithms=child_algorithms(suite, keys),
        replay=Replay(_WIDE_WINDOW, suite.uses_esn),
        selector=None if mode is Mode.TUNNEL else Selector(_ITSELF, _ITSELF),
        encapsulation=encapsulation,
    )
    try:
        xfrm.add_sa(sa)
    except KernelRefused as error:
        raise Unsupported(f"{suite}: {error}") from error
    xfrm.delete_sa(sa.id)
