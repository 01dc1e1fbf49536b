"""A network device that can do ESP is asked to: netdevsim, which keeps a list of such SAs.

It takes AES-GCM alone, and no sequence numbers of 64. What it sends is in clear all the
same, so that nothing is sent here.
"""

import asyncio
import logging
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address
from pathlib import Path as FilePath

import pytest

from tests.kernel.iproute import ip
from tests.kit.carriers import MemoryTransport
from tests.unit.dataplane.samples import child_of
from tunnelwrap.dataplane.xfrm import KernelPlane
from tunnelwrap.dataplane.xfrm_tags import tag_of
from tunnelwrap.path import Carrier, Path, SocketAddress

pytestmark = pytest.mark.kernel

BUS = FilePath("/sys/bus/netdevsim")
DEBUG = FilePath("/sys/kernel/debug")
LIST = DEBUG / "netdevsim/netdevsim1/ports/0/ipsec"
NEAR, SECOND, FAR = "192.0.2.1", "192.0.2.11", "192.0.2.2"
HERE, THERE = 0x1000, 0x1001  # the SPIs of child_of
KNOWN = {"suite": "aes128gcm16", "uses_esn": False, "is_bare": True}


@pytest.fixture(scope="module")
def device() -> Iterator[str]:
    """A device that leads to the far end."""
    if not DEBUG.joinpath("netdevsim").exists():
        subprocess.run(["mount", "-t", "debugfs", "none", DEBUG], check=True)
    (BUS / "new_device").write_text("1 1")
    (name,) = (each.name for each in (BUS / "devices/netdevsim1/net").iterdir())
    ip(f"address add {NEAR}/24 dev {name}")
    ip(f"address add {SECOND}/24 dev {name}")
    ip(f"link set {name} up")
    yield name
    (BUS / "del_device").write_text("1")


@pytest.fixture
async def plane(device: str) -> AsyncIterator[KernelPlane]:
    del device
    loop = asyncio.get_running_loop()
    made = KernelPlane(tag_of("test"), loop, lambda _spi, _is_hard: None, lambda _spi, _peer: None)
    yield made
    made.close()
    assert offloaded() == {}


def way(local: str = NEAR) -> MemoryTransport:
    ends = (SocketAddress(ip_address(each), 4500) for each in (local, FAR))
    return MemoryTransport(Path(*ends, Carrier.UDP))


def offloaded() -> dict[int, str]:
    """The direction of each SA that the device has, by SPI."""
    printed = LIST.read_text()
    directions = re.findall(r"sa\[\d+\] (rx|tx) ipaddr", printed)
    spis = re.findall(r"spi=0x(\w+)", printed)
    return {int(spi, 16): each for spi, each in zip(spis, directions, strict=True)}


def told(plane: KernelPlane) -> dict[int, object]:
    """What ``status --kernel`` shows of it."""
    sas = plane.report()["sas"]
    assert isinstance(sas, list)
    return {int(each["spi"], 16): each["offloaded_to"] for each in sas}


async def test_bare_esp_is_the_devices(plane: KernelPlane, device: str) -> None:
    plane.install(child_of(**KNOWN), way(), use_outbound=True)

    assert offloaded() == {HERE: "rx", THERE: "tx"}
    assert told(plane) == {HERE: device, THERE: device}
    assert plane.report()["differences"] == []
    plane.remove(HERE)
    assert offloaded() == {}


async def test_so_it_is_where_the_spi_was_reserved(plane: KernelPlane) -> None:
    assert plane.reserve_spi(HERE, way().path)
    plane.install(child_of(**KNOWN), way(), use_outbound=True)

    assert offloaded() == {HERE: "rx", THERE: "tx"}


async def test_in_udp_nobody_is_asked(plane: KernelPlane, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    plane.install(child_of(**{**KNOWN, "is_bare": False}), way(), use_outbound=True)

    assert offloaded() == {}
    assert told(plane) == {HERE: None, THERE: None}
    assert caplog.messages == []


@pytest.mark.parametrize("refused", [{"uses_esn": True}, {"suite": "aes128-sha256"}])
async def test_what_the_device_refuses_the_kernel_does(
    plane: KernelPlane, caplog: pytest.LogCaptureFixture, refused: dict[str, object]
) -> None:
    """That is told once for a device."""
    caplog.set_level(logging.INFO)
    plane.install(child_of(**{**KNOWN, **refused}), way(), use_outbound=True)
    plane.install(child_of(**{**KNOWN, **refused}, spi=0x2000), way(), use_outbound=True)

    assert offloaded() == {}
    assert told(plane) == dict.fromkeys((HERE, THERE, 0x2000, 0x2001))
    (line,) = caplog.messages
    assert re.fullmatch(rf"no device does the ESP of {NEAR}: .+", line), line


async def test_it_follows_a_move(plane: KernelPlane) -> None:
    plane.install(child_of(**KNOWN), way(), use_outbound=True)

    plane.move(HERE, way(SECOND), is_bare=True)
    assert offloaded() == {HERE: "rx", THERE: "tx"}
    plane.move(HERE, way(SECOND), is_bare=False)  # behind a NAT
    assert offloaded() == {}
    plane.move(HERE, way(NEAR), is_bare=False)
    assert offloaded() == {}
    plane.move(HERE, way(NEAR), is_bare=True)
    assert offloaded() == {HERE: "rx", THERE: "tx"}
