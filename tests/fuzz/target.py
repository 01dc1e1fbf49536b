"""Target: a function that takes octets and has one invariant, with octets to begin from."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tunnelwrap.errors import WireError

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Args:
        name: on the command line and of the corpus file.
        run: raises WireError or nothing.
        samples: well-formed inputs.
    """

    name: str
    run: Callable[[bytes], None]
    samples: Callable[[], Iterable[bytes]]

    def __call__(self, octets: bytes) -> None:
        """Run one input; whatever this raises is a finding."""
        with suppress(WireError):
            self.run(octets)

    @property
    def corpus(self) -> Path:
        """One input a line, in hexadecimal: what was found once, and what reaches far."""
        return CORPUS / f"{self.name}.hex"

    def seeds(self) -> list[bytes]:
        """The samples, then the corpus."""
        lines = self.corpus.read_text().splitlines() if self.corpus.exists() else []
        return [*self.samples(), *map(bytes.fromhex, lines)]
