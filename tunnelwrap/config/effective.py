"""The effective configuration as TOML: defaults filled in, secrets hidden."""

import json
import re
from typing import Final

from pydantic import BaseModel

from tunnelwrap.config.credentials import (
    AccountKey,
    Certificates,
    PresharedKey,
    SecretPath,
    SecretWord,
    SigningKey,
)
from tunnelwrap.config.fields import DYNAMIC
from tunnelwrap.config.load import File
from tunnelwrap.path import Carrier

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def effective(file: File) -> str:
    """What a configuration comes to, for people to read; not meant to be loaded again.

    A certificate in the file itself is shown by its subject.
    """
    return "\n".join(_table(file, "")).strip() + "\n"


def toml_text(text: str) -> str:
    """A text as TOML writes it, in quotes on one line."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _table(table: BaseModel, name: str) -> list[str]:
    """The lines of a table: its values, then the tables in it."""
    lines, below = [], []
    for key, value in table:
        if isinstance(value, BaseModel):
            below += _table(value, _joined(name, key))
        elif isinstance(value, dict):
            for each, inner in value.items():
                below += _table(inner, _joined(name, key, each))
        elif isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
            for each in value:
                below += _table(each, f"[{_joined(name, key)}]")
        elif value == () and key.endswith("_ts"):
            lines.append(f"{key} = {toml_text(DYNAMIC)}")
        elif value is not None:
            lines.append(f"{key} = {_value(value)}")
    header = [f"\n[{name}]"] if name and lines else []
    return header + lines + below


def _joined(*names: str) -> str:
    return ".".join(
        name if index == 0 or _BARE_KEY.fullmatch(name) else toml_text(name)
        for index, name in enumerate(names)
        if name
    )


def _value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value:.15g}"
        case tuple():
            return f"[{', '.join(_value(each) for each in value)}]"
        case (
            AccountKey()
            | Certificates()
            | SigningKey()
            | PresharedKey()
            | SecretPath()
            | SecretWord()
        ):
            return toml_text(value.shown)
        case Carrier():
            return toml_text(value.value)
        case _:
            return toml_text(str(value))
