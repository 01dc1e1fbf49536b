"""Two peers at random for long: ``python -m tests.properties.two_peers --steps 10000``.

The properties of ``test_two_peers`` with longer scripts, in rounds until so many steps are made. A
step is a wish of one of the peers and the pause after it. What fails is shrunk and printed, with
the seed of its round: ``--seed`` begins there again.
"""

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Callable

from hypothesis import given, seed, settings
from hypothesis import strategies as st

from tests.kit.pair import Pair, Wire
from tests.properties.test_two_peers import (
    Policies,
    Script,
    choices,
    networks,
    on_datagrams,
    on_streams_that_break,
    peers,
    sizes,
    step,
)
from tunnelwrap.ike.outputs import Rekeyed

LONGEST = 40
PAIRS = 20  # of a round

scripts = st.lists(step, min_size=10, max_size=LONGEST)
breaks = st.sets(st.integers(0, LONGEST - 1), max_size=8)


def main() -> None:
    """Make steps, and tell how many; what fails ends it with its traceback."""
    options = _options()
    started = time.monotonic()
    made: Counter[str] = Counter()
    for number in itertools.count(options.seed):
        print(f"seed {number}: {made['steps']} steps", flush=True)
        for property_ in (_datagrams(made), _streams(made)):
            seed(number)(settings(peers, max_examples=PAIRS)(property_))()
        if made["steps"] >= options.steps:
            break
    what = ", ".join(f"{count} {name}" for name, count in made.items())
    print(f"{what}, no disagreement, in {time.monotonic() - started:.0f} s")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests.properties.two_peers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--steps", type=int, default=10_000, help="to make, at least")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    return parser.parse_args()


def _datagrams(made: Counter[str]) -> Callable[[], None]:
    @given(script=scripts, wire=networks, size=sizes, policies=choices)
    def datagrams(script: Script, wire: Wire, size: int, policies: Policies) -> None:
        _count(made, script, on_datagrams(script, wire, size, policies))

    return datagrams


def _streams(made: Counter[str]) -> Callable[[], None]:
    @given(script=scripts, breaks=breaks)
    def streams(script: Script, breaks: set[int]) -> None:
        _count(made, script, on_streams_that_break(script, breaks))

    return streams


def _count(made: Counter[str], script: Script, pair: Pair) -> None:
    made["steps"] += len(script)
    made["pairs"] += 1
    for host in (pair.i, pair.r):
        made["messages"] += len(host.sent)
        made["rekeys of IKE SAs"] += sum(isinstance(fact, Rekeyed) for fact in host.facts)
        made["Child SAs"] += host.plane.history.count("install")


if __name__ == "__main__":
    main()
