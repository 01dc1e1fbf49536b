"""Changes as plain JSON and back: the fields of a frozen dataclass under their names."""

from collections.abc import Mapping
from dataclasses import Field
from typing import ClassVar, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError


class _Fields(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[object]]]


T = TypeVar("T")


def to_json(value: _Fields) -> dict[str, object]:
    """The fields as JSON's types, with ``kind`` naming the class."""
    fields: dict[str, object] = TypeAdapter(type(value)).dump_python(value, mode="json")
    return {"kind": type(value).__name__, **fields}


def from_json(kind: type[T], fields: Mapping[str, object]) -> T:
    """The value that ``to_json`` made plain.

    Raises:
        ValueError: the fields are not those of the class.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(fields))
    except ValidationError as error:
        raise ValueError(f"{kind.__name__}: {error.error_count()} wrong fields") from error
