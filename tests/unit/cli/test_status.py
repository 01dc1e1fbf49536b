"""``tunnelwrap status --kernel``, for people and for machines."""

import asyncio
import json
from pathlib import Path

from click.testing import CliRunner, Result

from tunnelwrap.cli.status import status
from tunnelwrap.daemon.control import Answer, ControlServer
from tunnelwrap.errors import ControlError

KERNEL: Answer = {
    "total_sas": 2,
    "total_policies": 1,
    "sas": [
        {
            "spi": "00001000",
            "protocol": "ESP",
            "source": "192.0.2.2",
            "destination": "192.0.2.1",
            "mode": "tunnel",
            "udp_ports": [4500, 14500],
            "offloaded_to": None,
            "octets": 2048,
            "packets": 3,
            "replayed": 1,
            "not_authentic": 0,
        },
        {
            "spi": "00001001",
            "protocol": "ESP",
            "source": "192.0.2.1",
            "destination": "192.0.2.2",
            "mode": "tunnel",
            "udp_ports": None,
            "offloaded_to": "eth0",
            "octets": 0,
            "packets": 0,
            "replayed": 0,
            "not_authentic": 0,
        },
    ],
    "policies": [{"direction": "out", "selector": "A to B", "spis": ["00001001"]}],
    "differences": ["ESP 00001001 to 192.0.2.2 was deleted or changed by somebody else"],
    "dropped": [
        {"counter": "XfrmInNoPols", "packets": 2, "meaning": "a packet was not agreed on"},
    ],
}

SHOWN = """\
in the kernel: SAs 2, policies 1, not as they should be
  difference ESP 00001001 to 192.0.2.2 was deleted or changed by somebody else
  ESP 00001000 from 192.0.2.2 to 192.0.2.1
    tunnel in UDP 4500-14500, 3 packets, 2.0 KiB, 1 replayed
  ESP 00001001 from 192.0.2.1 to 192.0.2.2
    tunnel by eth0, 0 packets, 0 B
  out  A to B by 00001001
  dropped    2 (XfrmInNoPols): a packet was not agreed on
"""


CLIENT: Answer = {"role": "client", "name": "vpn", "ike_sas": []}
WRAP: Answer = {"role": "wrap", "name": "vpn", "ways": []}


async def shown(folder: Path, *options: str, role: Answer = CLIENT) -> Result:
    """What the command prints beside a daemon."""
    file = folder / "vpn.toml"
    file.write_text(f'[{role["role"]}]\ncontrol_socket = "vpn.sock"\n')

    async def kernel() -> Answer:
        return KERNEL

    async def own() -> Answer:
        return role

    commands = {"status": own} | ({"kernel": kernel} if role is CLIENT else {})
    server = ControlServer(folder / "vpn.sock", commands)
    await server.start()
    try:
        command = ["--kernel", *options, str(file)]
        return await asyncio.to_thread(CliRunner().invoke, status, command)
    finally:
        server.close()


async def test_what_the_kernel_has_is_shown_to_people(tmp_path: Path) -> None:
    result = await shown(tmp_path)

    assert (result.exit_code, result.output) == (0, SHOWN)


async def test_what_the_kernel_has_is_one_object_for_machines(tmp_path: Path) -> None:
    assert json.loads((await shown(tmp_path, "--json")).output) == KERNEL


async def test_a_wrapper_has_nothing_in_the_kernel(tmp_path: Path) -> None:
    result = await shown(tmp_path, role=WRAP)

    assert isinstance(result.exception, ControlError)
    assert str(result.exception).startswith("wrap vpn has no SAs, in the kernel or elsewhere;")
