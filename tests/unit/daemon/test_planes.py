"""Which data plane is chosen, where there is nothing to choose. In a kernel: tests/kernel."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.kit.policies import client
from tunnelwrap.config.suites import parse_ah
from tunnelwrap.daemon.host import Host
from tunnelwrap.daemon.planes import Listeners, choose_plane
from tunnelwrap.errors import Unsupported
from tunnelwrap.ike.child_sa import Mode

NOBODY = Listeners(lambda _spi, _is_hard: None, None, lambda _spi, _peer: None)


async def test_who_wants_ah_is_told_that_it_is_not_to_be_had_in_userspace(
    tmp_path: Path,
) -> None:
    ah = replace(client().child, proposals=(parse_ah("sha256"),))
    with pytest.raises(Unsupported, match=r"AH needs .*: as configured"):
        choose_plane(
            *("userspace", Host("test", tmp_path), 1400, NOBODY),
            *([client(), replace(client(), child=ah)], "test"),
        )


async def test_so_is_who_wants_beet_mode(tmp_path: Path) -> None:
    beet = replace(client().child, mode=Mode.BEET)
    host = Host("test", tmp_path)
    with pytest.raises(Unsupported, match=r"BEET mode needs .*: as configured"):
        choose_plane(*("userspace", host, 1400, NOBODY), [replace(client(), child=beet)], "test")


async def test_who_wants_bare_tcp_in_the_kernel_is_told_that_userspace_is_none(
    tmp_path: Path,
) -> None:
    with pytest.raises(Unsupported) as refused:
        choose_plane(
            *("userspace", Host("test", tmp_path), 1400, NOBODY, [client()], "test"),
            tcp_in_kernel=True,
        )
    assert str(refused.value) == (
        "tcp_in_kernel = true cannot be had: it needs the kernel's data plane, which is not to be"
        " had (as configured): change that, or take tcp_in_kernel out"
    )
