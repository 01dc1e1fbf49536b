"""A short flood of IKE_SA_INIT from forged addresses (needs root): see ``tests.bench.flood``."""

from pathlib import Path

import pytest

from tests.bench.flood import flood, serve
from tests.kit.daemons import Issued, hosts

pytestmark = pytest.mark.root

COUNT, RATE = 500, 200
THRESHOLD = 32
SOON_S = 2.0  # a second on a machine that has nothing else to do
GROWTH_KB = 16 << 10


def test_a_client_connects_in_the_middle_of_a_flood(tmp_path: Path) -> None:
    with hosts(Issued.by_init(tmp_path), tmp_path) as net:
        served = serve(net)

        figures = flood(net, served, COUNT, RATE)

        assert figures.client_s < SOON_S, figures
        assert COUNT - THRESHOLD <= figures.cookies_asked <= COUNT + 2, figures
        assert figures.cookies_returned >= 1, "the client proved its address"
        assert figures.memory_after_kb - figures.memory_before_kb < GROWTH_KB, figures
        assert served.status["counters"].get("internal_errors", 0) == 0
