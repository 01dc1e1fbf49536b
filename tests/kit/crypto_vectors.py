"""Loader of tests/vectors/crypto: JSON whose hexadecimal strings become octets on demand."""

import json
from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "vectors" / "crypto"
_WORDS = frozenset({"name", "source"})


def load(name: str, section: str = "cases") -> list[dict]:
    """The cases of a file, every hexadecimal string as bytes."""
    cases = json.loads((_FOLDER / f"{name}.json").read_text())[section]
    return [{key: _octets(key, value) for key, value in case.items()} for case in cases]


def names(cases: list[dict]) -> list[str]:
    """Names for pytest's ids."""
    return [str(case.get("name") or case.get("method")) for case in cases]


def _octets(key: str, value: object) -> object:
    return bytes.fromhex(value) if isinstance(value, str) and key not in _WORDS else value
