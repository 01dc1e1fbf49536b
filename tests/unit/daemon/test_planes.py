"""Which data plane is chosen, where there is nothing to choose. In a kernel: tests/kernel."""

from dataclasses import replace

import pytest

from tests.kit.policies import client
from tests.unit.dataplane.samples import pair_of_packet_sockets
from tunnelwrap.config.suites import parse_ah
from tunnelwrap.daemon.planes import Listeners, choose_plane
from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.errors import Unsupported

NOBODY = Listeners(lambda _spi, _is_hard: None, None, lambda _spi, _peer: None)


async def test_who_wants_ah_is_told_that_it_is_not_to_be_had_in_userspace() -> None:
    ah = replace(client().child, proposals=(parse_ah("sha256"),))
    end, host = pair_of_packet_sockets()
    tun = Tun(end.detach(), "tun-test")
    with host, pytest.raises(Unsupported, match=r"AH needs .*: as configured"):
        choose_plane(
            *("userspace", tun, 1400, NOBODY),
            *([client(), replace(client(), child=ah)], "test"),
        )
    tun.close()
