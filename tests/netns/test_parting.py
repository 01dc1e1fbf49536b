"""The program that parts packets: the kernel takes it, and passes packets on as before.

What it is for takes a kernel with ESP in TCP: see tests/kernel/whole.
"""

import pytest

from tests.kit.netns import Namespace, wire
from tunnelwrap.errors import HostNetError
from tunnelwrap.hostnet.netlink import Device
from tunnelwrap.hostnet.parting import part_packets

pytestmark = pytest.mark.root


def test_packets_pass_a_device_that_parts_them() -> None:
    with Namespace("near") as near, Namespace("far") as far:
        wire(near, "eth0", ["192.0.2.1/24"], far, "eth0", ["192.0.2.2/24", "2001:db8::2/64"])
        near.address("eth0", "2001:db8::1/64")
        with far.entered():
            part_packets(Device.find("eth0"))
            with pytest.raises(HostNetError, match="packets of eth0 are parted"):
                part_packets(Device.find("eth0"))
        assert "tunnelwrap" in far.run("tc", "filter", "show", "dev", "eth0", "ingress")
        for address in ("192.0.2.2", "2001:db8::2"):
            near.run("ping", "-c1", "-s1400", address)
