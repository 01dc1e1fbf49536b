"""The process that fuzzes one target for ``tests.fuzz``: guided by coverage, or blindly.

Arguments: ``guided`` or ``blind``, the target, the folder of what is found, inputs, seconds.
"""

import gc
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from resource import getpagesize
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the guided worker instruments what it imports
    from tests.fuzz.target import Target

RSS_LIMIT_MB = 600  # where libFuzzer gives up
MOST_GROWTH_MB = 16
MOST_BLOCKS = 20_000  # a leak has one for each input, or a million


def guided(name: str, folder: Path, runs: int, seconds: int) -> None:
    """Inputs that follow coverage, by libFuzzer, which ends the process."""
    import atheris  # noqa: PLC0415 (optional)

    with atheris.instrument_imports(include=["tunnelwrap"]):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415 (instrumented)
    target = TARGETS[name]
    for number, octets in enumerate(target.seeds()):
        (folder / f"seed{number}").write_bytes(octets)
    options = [f"-runs={runs}", f"-rss_limit_mb={RSS_LIMIT_MB}", "-max_len=4096", "-timeout=20"]
    options += [f"-max_total_time={seconds}", f"-artifact_prefix={folder}/failed-", str(folder)]
    atheris.Setup([sys.argv[0], *options], target)
    atheris.Fuzz()


def blind(name: str, folder: Path, runs: int, seconds: int) -> None:
    """Mutations of the seeds and of what is in the folder; nothing may pile up."""
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 (as above)

    target, rng = TARGETS[name], random.Random(time.monotonic_ns())
    found = [file.read_bytes() for file in sorted(folder.iterdir())]
    seeds, end = target.seeds() + found, time.monotonic() + (seconds or float("inf"))
    warm = _some(target, rng, seeds, runs // 10, end)
    before = Memory.now()
    hot = _some(target, rng, seeds, runs - runs // 10, end)
    after = Memory.now()
    count, refused = warm[0] + hot[0], warm[1] + hot[1]
    print(f"{count} mutated blindly from {len(seeds)}: {refused} refused, {before} -> {after}")
    if after.exceeds(before):
        sys.exit("memory has grown")


def _some(
    target: "Target", rng: random.Random, seeds: list[bytes], runs: int, end: float
) -> tuple[int, int]:
    """How many inputs there were, and how many of them the target refused."""
    refused = 0
    for count in range(runs):
        if time.monotonic() > end:
            return count, refused
        octets = target.mutate(rng, seeds)
        try:
            refused += target.refuses(octets)
        except Exception:
            print(f"failed on {octets.hex()}")
            raise
    return runs, refused


@dataclass(frozen=True)
class Memory:
    """What the process holds."""

    rss_mb: float
    blocks: int

    @classmethod
    def now(cls) -> "Memory":
        """Without what waits for the collector."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(pages * getpagesize() / 2**20, sys.getallocatedblocks())

    def exceeds(self, before: "Memory") -> bool:
        """True where more than noise has been added."""
        return (
            self.rss_mb - before.rss_mb > MOST_GROWTH_MB
            or self.blocks - before.blocks > MOST_BLOCKS
        )

    def __str__(self) -> str:
        return f"{self.rss_mb:.1f} MB in {self.blocks} blocks"


if __name__ == "__main__":
    kind, target_name, where, *limits = sys.argv[1:]
    run = {"guided": guided, "blind": blind}[kind]
    run(target_name, Path(where), *map(int, limits))
