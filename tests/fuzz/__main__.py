"""Fuzzing by hand: ``python -m tests.fuzz --runs 1000000 TARGET`` (or ``all``).

With atheris (``pip install tunnelwrap[fuzz]``) inputs follow coverage; without it they are
mutations of the seeds (``tests.fuzz.mutation``). Each target runs in a process of its own. An
input that fails is printed: its hexadecimal belongs into the target's corpus file.
"""

import argparse
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RSS_LIMIT_MB = 600
_HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


def main() -> None:
    """Run targets, and end with status 1 if one failed."""
    options = _options()
    if options.worker:
        _work(options, Path(options.worker))
        return
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 (a worker instruments it first)

    names = list(TARGETS) if options.targets == ["all"] else options.targets
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        sys.exit(f"no target {', '.join(unknown)}; there are: all {' '.join(TARGETS)}")
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda name: _run(name, options), names))
    sys.exit(0 if all(results) else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="or: all")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target")
    parser.add_argument("--seconds", type=int, default=0, help="at most; 0: no limit")
    parser.add_argument("--jobs", type=int, default=1, help="targets at the same time")
    parser.add_argument("--blind", action="store_true", help="do not follow coverage: faster")
    parser.add_argument("--keep", type=Path, help="directory for what reaches new code")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(name: str, options: argparse.Namespace) -> bool:
    """One target in a process of its own; tells what came of it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep / name if options.keep else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.fuzz", "--worker", str(folder)]
        command += [f"--runs={options.runs}", f"--seconds={options.seconds}", name]
        command += ["--blind"] * options.blind
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    took = time.monotonic() - started
    if done.returncode == 0:
        print(f"{name}: {_summary(output)}, {took:.0f} s", flush=True)
    else:
        print(f"{name}: FAILED\n{output[-6000:]}", flush=True)
    return done.returncode == 0


def _summary(output: str) -> str:
    finished = re.search(r"Done (\d+) runs", output)
    count = finished.group(1) if finished else "?"
    last = re.findall(r"cov: (\d+).*?rss: (\d+)Mb", output)
    reach = f", coverage {last[-1][0]}, {last[-1][1]} MB" if last else ""
    return f"{count} inputs without a finding{reach}"


def _work(options: argparse.Namespace, folder: Path) -> None:
    name, runs, seconds = options.targets[0], options.runs, options.seconds
    if _HAS_ATHERIS and not options.blind:
        _work_guided(name, runs, seconds, folder)
    else:
        _work_blindly(name, runs, seconds)


def _work_guided(name: str, runs: int, seconds: int, folder: Path) -> None:
    import atheris  # noqa: PLC0415 (optional)

    with atheris.instrument_imports(include=["tunnelwrap"]):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415 (instrumented)
    target = TARGETS[name]
    for number, octets in enumerate(target.seeds()):
        (folder / f"seed{number}").write_bytes(octets)
    options = [f"-runs={runs}", f"-rss_limit_mb={RSS_LIMIT_MB}", "-max_len=4096", "-timeout=20"]
    options += [f"-max_total_time={seconds}"] if seconds else []
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={folder}/failed-", str(folder)], target
    )
    atheris.Fuzz()


def _work_blindly(name: str, runs: int, seconds: int) -> None:
    from tests.fuzz.mutation import mutated  # noqa: PLC0415 (as above)
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 (as above)

    target, rng = TARGETS[name], random.Random(time.monotonic_ns())
    seeds, started, count = target.seeds(), time.monotonic(), 0
    while count < runs and (not seconds or time.monotonic() - started < seconds):
        octets = mutated(rng, seeds)
        try:
            target(octets)
        except Exception:
            print(f"failed on {octets.hex()}")
            raise
        count += 1
    print(f"Done {count} runs")


if __name__ == "__main__":
    main()
