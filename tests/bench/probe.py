"""``python -m tests.bench.probe``: could a prober tell our cover from a real nginx with that site?

Asks nginx and our listener the questions of ``tests.kit.probes``, and prints where answers differ:
with files served by ourselves, and with that nginx behind us by https:// and by http://.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from tests.kit.cover_stand import TIME_S, stand
from tests.kit.probes import Probe, probes, slow_probes


def main() -> None:
    """Ask, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the names of probes")
    options = parser.parse_args()
    questions = [*probes(), *slow_probes(TIME_S + 2)]
    chosen = [each for each in questions if options.only in each.name]
    begin = time.monotonic()
    number = asyncio.run(compare(chosen))
    print(f"{len(chosen)} questions, {number} differences, {time.monotonic() - begin:.0f} s")


async def compare(chosen: list[Probe]) -> int:
    """Print differences; how many there are."""
    number = 0
    with tempfile.TemporaryDirectory() as folder:
        async with stand(Path(folder)) as servers:
            found = await servers.differences(chosen, ("files", "https", "http"))
    for server, differing in found.items():
        print(f"\n== {server}: {len(differing)}")
        for name, (theirs, ours) in differing.items():
            print(f"{name}\n    nginx: {theirs}\n    ours:  {ours}")
        number += len(differing)
    return number


if __name__ == "__main__":
    main()
