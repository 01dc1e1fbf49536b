"""What this kernel's IPsec can do: it is asked to take an SA that leads nowhere."""

import os
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Final

from tunnelwrap.crypto.secret import Secret
from tunnelwrap.crypto.suite import ChildSuite
from tunnelwrap.dataplane.netlink import XfrmSocket
from tunnelwrap.dataplane.xfrm_pairs import PROTOS
from tunnelwrap.dataplane.xfrm_suite import DEFLATE, child_algorithms
from tunnelwrap.dataplane.xfrm_values import KernelSa, Proto, Replay, SaId, XfrmMode
from tunnelwrap.errors import DataPlaneError, KernelRefused, Unsupported
from tunnelwrap.ike.child_sa import SaKeys

_NOWHERE: Final = IPv4Address("192.0.2.254")  # TEST-NET-1, RFC 5737
_TRIAL_CPI: Final = 0xF000  # for private use. RFC 3173 §3.3
_HIGH_SPI: Final = 0x8000_0000
_WIDE_WINDOW: Final = 1024


def why_not(suites: Iterable[ChildSuite]) -> str | None:
    """Why the kernel cannot be the data plane for all of these suites; None: it can.

    It is asked to take an SA of each, which leads nowhere and is deleted at once.
    """
    try:
        with XfrmSocket() as xfrm:
            for suite in suites:
                _try_out(xfrm, suite)
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


def _try_out(xfrm: XfrmSocket, suite: ChildSuite) -> None:
    keys = SaKeys(
        Secret(os.urandom(suite.encryption_key_length)),
        Secret(os.urandom(suite.integrity_key_length)),
    )
    spi = int.from_bytes(os.urandom(4)) | _HIGH_SPI
    sa = KernelSa(
        id=SaId(_NOWHERE, spi, PROTOS[suite.PROTOCOL]),
        source=_NOWHERE,
        mode=XfrmMode.TUNNEL,
        algorithms=child_algorithms(suite, keys),
        replay=Replay(_WIDE_WINDOW, suite.uses_esn),
    )
    try:
        xfrm.add_sa(sa)
    except KernelRefused as error:
        raise Unsupported(f"{suite}: {error}") from error
    xfrm.delete_sa(sa.id)
