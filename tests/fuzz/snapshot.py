"""Snapshot: an Endpoint in its state, kept to be copied in a fraction of the time it took to reach.

The copy is by pickle. What cannot change is not copied but shared: frozen values, functions, keys.
"""

import pickle
from dataclasses import is_dataclass
from enum import Enum
from io import BytesIO
from ipaddress import IPv4Address, IPv6Address
from types import FunctionType
from typing import Generic, TypeVar, cast

from tunnelwrap.crypto.secret import Secret

Kept = TypeVar("Kept")
_CONSTANT = (FunctionType, Enum, IPv4Address, IPv6Address, Secret)


class Snapshot(Generic[Kept]):
    """Each call gives one more copy.

    Args:
        value: what is copied.
        shared: what all copies have in common.
    """

    def __init__(self, value: Kept, *shared: object) -> None:
        self._shared: list[object] = []
        buffer = BytesIO()
        _Pickler(buffer, self._shared, shared).dump(value)
        self._octets = buffer.getvalue()

    def __call__(self) -> Kept:
        """One more copy."""
        return cast(Kept, _Unpickler(BytesIO(self._octets), self._shared).load())


class _Pickler(pickle.Pickler):
    def __init__(self, file: BytesIO, found: list[object], shared: tuple[object, ...]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._found, self._shared = found, shared

    def persistent_id(self, value: object) -> int | None:
        is_shared = value is not None and any(value is one for one in self._shared)
        if not is_shared and not _is_constant(value):
            return None
        self._found.append(value)
        return len(self._found) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BytesIO, shared: list[object]) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, number: int) -> object:
        return self._shared[number]


def _is_constant(value: object) -> bool:
    kind = type(value)
    return (
        isinstance(value, _CONSTANT)
        or kind.__module__.startswith("cryptography.")
        or (is_dataclass(kind) and kind.__dataclass_params__.frozen)
    )
