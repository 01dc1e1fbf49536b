"""Could a prober tell the cover from nginx? Both are asked the same questions."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.kit.cover_stand import TIME_S, stand
from tests.kit.probes import Probe, probes, slow_probes

pytestmark = pytest.mark.root
SERVERS = ("files", "https")


async def test_some_questions(tmp_path: Path) -> None:
    await alike(tmp_path, [replace(each, quiet_s=0.4) for each in probes()[::9]])


@pytest.mark.slow
async def test_all_questions(tmp_path: Path) -> None:
    await alike(tmp_path, [*probes(), *slow_probes(TIME_S + 2)])


async def alike(folder: Path, asked: list[Probe]) -> None:
    async with stand(folder) as servers:
        found = await servers.differences(asked, SERVERS)
    assert found == {server: {} for server in SERVERS}
