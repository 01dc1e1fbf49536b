"""Target: a function that takes octets and has one invariant, with octets to begin from."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutation import Mutation, mutated
from tunnelwrap.errors import WireError

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Args:
        name: on the command line and of the corpus file.
        run: raises WireError or nothing.
        samples: well-formed inputs.
        mutate: makes an input of seeds.
    """

    name: str
    run: Callable[[bytes], None]
    samples: Callable[[], Iterable[bytes]]
    mutate: Mutation = mutated

    def __call__(self, octets: bytes) -> None:
        """Run one input; whatever this raises is a finding."""
        self.refuses(octets)

    def refuses(self, octets: bytes) -> bool:
        """Run one input; True where it was refused by a WireError."""
        try:
            self.run(octets)
        except WireError:
            return True
        return False

    @property
    def corpus(self) -> Path:
        """One input a line, in hexadecimal: what was found once, and what reaches far."""
        return CORPUS / f"{self.name}.hex"

    def seeds(self) -> list[bytes]:
        """The samples, then the corpus."""
        lines = self.corpus.read_text().splitlines() if self.corpus.exists() else []
        return [*self.samples(), *map(bytes.fromhex, lines)]
