"""Fuzzing by hand: ``python -m tests.fuzz --runs 1000000 TARGET`` (or ``all``).

With atheris (``pip install tunnelwrap[fuzz]``) the first inputs of a target follow coverage, for
so many seconds as --guided says and at most half of all: tracing makes each ten times as slow.
The others are blind mutations of the seeds and of what the first ones found; without atheris all
are. A finding is an exception other than WireError, or memory that grows. An input that fails is
printed: its hexadecimal belongs into the target's corpus file.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.targets import TARGETS

_HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


class FindingError(Exception):
    """What a worker has found."""


def main() -> None:
    """Run targets, and end with status 1 if one failed."""
    options = _options()
    names = list(TARGETS) if options.targets == ["all"] else options.targets
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        sys.exit(f"no target {', '.join(unknown)}; there are: all {' '.join(TARGETS)}")
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda name: _run(name, options), names))
    sys.exit(0 if all(results) else 1)


def _options() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("tests.fuzz", description=__doc__, formatter_class=layout)
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="or: all")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target")
    parser.add_argument("--guided", type=int, default=30, help="seconds that follow coverage")
    parser.add_argument("--seconds", type=int, default=0, help="of blind ones at most; 0: no limit")
    parser.add_argument("--jobs", type=int, default=1, help="targets at the same time")
    parser.add_argument("--keep", type=Path, help="directory for what reaches new code")
    return parser.parse_args()


def _run(name: str, options: argparse.Namespace) -> bool:
    """One target; tells what came of it."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep / name if options.keep else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            told = _parts(name, options, folder)
        except FindingError as finding:
            print(f"{name}: FAILED\n{finding}", flush=True)
            return False
    print(f"{name}: {told}, {time.monotonic() - started:.0f} s", flush=True)
    return True


def _parts(name: str, options: argparse.Namespace, folder: Path) -> str:
    guided, coverage = 0, "?"
    if options.guided and _HAS_ATHERIS:
        output = _worker("guided", name, folder, options.runs // 2, options.guided)
        guided = int(re.findall(r"Done (\d+) runs", output)[-1])
        coverage = (re.findall(r"cov: (\d+)", output) or [coverage])[-1]
    output = _worker("blind", name, folder, options.runs - guided, options.seconds)
    blind, rest = output.split(maxsplit=1)
    told = f"{guided + int(blind)} inputs without a finding"
    return f"{told}, {guided} of them guided to coverage {coverage}, the others {rest.strip()}"


def _worker(kind: str, name: str, folder: Path, runs: int, seconds: int) -> str:
    """A part in a process of its own; gives what it printed."""
    command = [sys.executable, "-m", "tests.fuzz.worker", kind, name, str(folder)]
    command += [str(runs), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FindingError((done.stdout + done.stderr)[-6000:])
    return done.stderr if kind == "guided" else done.stdout


if __name__ == "__main__":
    main()
