"""The demo as a whole: the real commands in four namespaces, whatever the firewall drops.

client -------------- firewall -------------- gateway -------------- site
          inside               outside (captured)
"""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.kit.captures import Capture, tshark
from tunnelwrap.cli.demo import demo
from tunnelwrap.daemon.demo import Built, News, Outcome, Stage, Wish, run_demo
from tunnelwrap.daemon.demo_network import Block

pytestmark = pytest.mark.root

OCTETS = 4 << 20
NOBODY = 65534
IKE_SA_INIT, IKE_INTERMEDIATE, IKE_AUTH = "34", "43", "35"
OPTIONAL = {"error"}
DEMO_HOST = re.compile(r"tw-[0-9a-f]{4}-(client|firewall|gateway|site)\b")


class Watch:
    """Captures what passes between firewall and gateway, from the first packet on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.news: list[News] = []
        self._capture: Capture | None = None

    def tell(self, news: News) -> None:
        self.news.append(news)
        if isinstance(news, Built):
            self._capture = Capture(news.namespaces["firewall"], "outside", self.file)
            self._capture.start()

    def stop(self) -> None:
        if self._capture is not None:
            self._capture.stop()


async def show(wish: Wish, directory: Path) -> tuple[Outcome, Watch]:
    watch = Watch(directory / "outside.pcap")
    try:
        outcome = await run_demo(wish, watch.tell)
    finally:
        watch.stop()
    return outcome, watch


def assert_all_worked(outcome: Outcome, carrier: str, octets: int) -> None:
    assert outcome.error is None, outcome.error
    assert outcome.is_success
    assert outcome.carrier == carrier
    assert outcome.bytes == octets
    assert outcome.attempts[-1].carrier == carrier


@pytest.mark.parametrize(
    ("block", "carrier", "winner"),
    [
        (Block.NONE, "auto", "udp"),
        (Block.UDP, "auto", "tcp"),
        (Block.NONE, "udp", "udp"),
        (Block.NONE, "tcp", "tcp"),
        (Block.NONE, "tls", "tls"),
    ],
)
async def test_the_ladder_ends_where_it_should(
    block: Block, carrier: str, winner: str, tmp_path: Path
) -> None:
    outcome, watch = await show(Wish(block, carrier, octets=OCTETS), tmp_path)

    assert_all_worked(outcome, winner, OCTETS)
    # What carries the file carries nearly all octets on the wire.
    flows = {"udp": "udp.port == 4500", "tcp": "tcp.port == 4500", "tls": "tcp.port == 443"}
    lengths = tshark(watch.file, display=flows[winner], fields=["frame.len"])
    assert sum(int(length) for (length,) in lengths) > 2 * OCTETS
    assert not tshark(watch.file, display="ip.addr == 10.66.0.0/24"), "inner packets in clear"


async def test_only_tcp_443_passes_and_it_is_iketcp_inside_tls(tmp_path: Path) -> None:
    keylog = tmp_path / "keys"
    wish = Wish(Block.ALL_BUT_443, octets=OCTETS, tls_keylog=keylog)

    outcome, watch = await show(wish, tmp_path)

    assert_all_worked(outcome, "tls", OCTETS)
    lost = {attempt.carrier for attempt in outcome.attempts[:-1]}
    assert lost == {"udp", "tcp"}
    assert not tshark(watch.file, display="(ip || ipv6) && !icmpv6 && !(tcp.port == 443)")
    assert not tshark(watch.file, display="ikev2_stream || isakmp"), "readable without the keys"
    prefixes = tshark(
        watch.file,
        display="ikev2_stream.prefix",
        fields=["ip.src", "ikev2_stream.prefix"],
        keylog=keylog,
    )
    assert prefixes == [["198.51.100.2", "IKETCP"]]
    rows = tshark(watch.file, display="isakmp", fields=["isakmp.exchangetype"], keylog=keylog)
    exchanges = [exchange for (cell,) in rows for exchange in cell.split(",")]
    in_order = (IKE_SA_INIT, IKE_INTERMEDIATE, IKE_AUTH)
    assert exchanges[:6] == [exchange for exchange in in_order for _ in range(2)]
    esp = tshark(watch.file, display='ikev2_stream.kind == "esp"', keylog=keylog)
    assert len(esp) > 100


async def test_a_carrier_that_the_firewall_drops_is_an_error(tmp_path: Path) -> None:
    outcome, watch = await show(Wish(Block.ALL_BUT_443, "udp", octets=OCTETS), tmp_path)

    assert not outcome.is_success
    assert outcome.error is not None
    assert "udp" in outcome.error
    built = next(news for news in watch.news if isinstance(news, Built))
    assert not built.directory.exists()
    assert not [name for name in built.namespaces.values() if (Path("/run/netns") / name).exists()]
    assert Stage("connecting") in watch.news


def test_the_command_prints_one_object() -> None:
    command = [sys.executable, "-m", "tunnelwrap", "demo", "--block", "all-but-443", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert set(result) == set(Outcome.__dataclass_fields__) - OPTIONAL
    assert result["carrier"] == "tls"
    assert result["sha256_match"] is True
    assert result["bytes"] == 64 << 20
    assert [attempt["carrier"] for attempt in result["attempts"]] == ["udp", "tcp", "tls"]
    assert set(result["attempts"][0]) == {"carrier", "result", "seconds"}
    assert result["first_packet_seconds"] >= result["connect_seconds"] / 2
    assert result["download_mbps"] > 0
    assert result["upload_mbps"] > 0


def test_an_interrupt_leaves_nothing_behind() -> None:
    before = _namespaces()
    command = [sys.executable, "-m", "tunnelwrap", "demo", "--block", "udp"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(2)
    process.send_signal(2)

    assert process.wait(30) != 0
    assert _namespaces() == before


def test_without_root_it_says_so() -> None:
    os.seteuid(NOBODY)
    try:
        done = CliRunner().invoke(demo, ["--json"])
    finally:
        os.seteuid(0)

    assert done.exit_code == 1
    assert "root" in done.output


def _namespaces() -> set[str]:
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines() if DEMO_HOST.match(line)}
