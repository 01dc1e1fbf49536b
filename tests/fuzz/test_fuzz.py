"""The fuzz targets in small: every sample and corpus line, some mutations, and what stays behind.

``python -m tests.fuzz`` runs them in large.
"""

import gc
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import pytest

from tests.fuzz import stands
from tests.fuzz.snapshot import Snapshot
from tests.fuzz.stands import Stand
from tests.fuzz.target import CORPUS, Target
from tests.fuzz.targets import TARGETS

SECONDS_WORTH = {"endpoint": 300, "other": 600}  # inputs that take some 0.2 s
MANY, MORE = 400, 1200
STANDS = {
    stands.gateway_of_strangers: "endpoint_strangers",
    stands.client_in_init: "endpoint_client_in_init",
    stands.gateway_in_auth: "endpoint_gateway_in_auth",
    stands.client_in_auth: "endpoint_client_in_auth",
    stands.gateway_established: "endpoint_gateway_established",
    stands.client_established: "endpoint_client_established",
}
GROWTH = 200_000  # octets; a leak of one object for each input would be more


def inputs(target: Target, count: int, seed: int = 1) -> list[bytes]:
    rng, seeds = random.Random(seed), target.seeds()
    return [target.mutate(rng, seeds) for _ in range(count)]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_samples_and_corpus(target: Target) -> None:
    for octets in target.seeds():
        target(octets)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_mutations(target: Target) -> None:
    kind = "endpoint" if target.name.startswith("endpoint") else "other"
    for octets in inputs(target, SECONDS_WORTH[kind]):
        target(octets)


@pytest.mark.parametrize("name", ["message", "framing", "endpoint_strangers"])
def test_inputs_leave_nothing_behind(name: str) -> None:
    target = TARGETS[name]
    many, more = inputs(target, MANY), inputs(target, MORE, seed=2)
    for octets in many:
        target(octets)
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for octets in more:
            target(octets)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < GROWTH


@pytest.mark.parametrize("make", STANDS, ids=STANDS.values())
def test_a_copy_of_a_stand_does_what_the_stand_does_and_leaves_the_next_copy_alone(
    make: Callable[[], Stand],
) -> None:
    target, first = TARGETS[STANDS[make]], make()
    copy, probes = Snapshot(first, first.peer), target.seeds()[::12]

    before = [copy().deliver(octets) for octets in probes]
    for octets in filter(None, inputs(target, 100)):
        copy().deliver(octets)

    assert [make().deliver(octets) for octets in probes] == before
    assert [copy().deliver(octets) for octets in probes] == before


def test_a_target_notices_what_is_wrong() -> None:
    broken = Target("broken", lambda octets: octets[1000], lambda: [b""])

    with pytest.raises(IndexError):
        broken(b"short")


def test_every_corpus_file_belongs_to_a_target() -> None:
    assert {file.stem for file in CORPUS.glob("*.hex")} <= set(TARGETS)


def test_the_command_runs_a_target() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--runs", "200", "sniff"]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "sniff: 200 inputs without a finding" in done.stdout
