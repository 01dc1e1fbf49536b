"""TOML files into configurations; everything that is wrong with one is reported at once.

Each problem is a line ``FILE: KEY: found ..., expected ...``; values of secrets are never shown.
"""

import logging
import os
import stat
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tunnelwrap.config.client import ClientFile
from tunnelwrap.config.fields import PEM, WRONG, Context
from tunnelwrap.config.model import GatewayFile
from tunnelwrap.config.wrapper import RelayFile, WrapFile
from tunnelwrap.errors import ConfigError

Table = dict[str, object]
File = GatewayFile | ClientFile | RelayFile | WrapFile
FileT = TypeVar("FileT", bound=File)

_log = logging.getLogger(__name__)

_ROLES: Final[dict[str, type[File]]] = {
    "gateway": GatewayFile,
    "client": ClientFile,
    "relay": RelayFile,
    "wrap": WrapFile,
}
_STATELESS: Final = frozenset({"relay"})
_SECRET_KEYS: Final = frozenset({"psk", "ppk", "key", "path", "websocket_path", "eab_key", "word"})
_OWN_SECRETS: Final = frozenset({"psk", "ppk", "eab_key", "word"})
"""Those that stand in the file itself."""
_EXPECTED: Final = {
    "string_type": "a text in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list in square brackets",
    "dict_type": "a table",
    "model_type": "a table",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "finite_number": "a finite number",
    "too_short": "at least {min_length} entry in it",
    "literal_error": "{expected}",
}
_FOUND_LENGTH: Final = 60


def load(path: Path, wall_now: datetime | None = None) -> File:
    """The configuration of a file, which tells by its tables whether it is a gateway's.

    Args:
        path: of the file; names of files in it are relative to its directory.
        wall_now: the time to judge our own certificates by; None: now.

    Raises:
        ConfigError: something is wrong with it, or with a file that it names.
    """
    document = _read(path)
    role = _role(document, path)
    model = _ROLES[role]
    complete = _with_places(document, role, path.stem)
    context = _context(document, path, wall_now or datetime.now(UTC))
    _warn_of_readers(document, path)
    try:
        return TypeAdapter(model).validate_python(complete, context=context)
    except ValidationError as error:
        problems = [f"{path}: {line}" for line in in_words(error, model)]
        raise ConfigError(problems) from None  # the cause would show secrets


def load_gateway(path: Path, wall_now: datetime | None = None) -> GatewayFile:
    """The configuration of a gateway.

    Raises:
        ConfigError: something is wrong with it, or it is another kind's.
    """
    return _load_as(GatewayFile, path, wall_now)


def load_client(path: Path, wall_now: datetime | None = None) -> ClientFile:
    """The configuration of a client.

    Raises:
        ConfigError: something is wrong with it, or it is another kind's.
    """
    return _load_as(ClientFile, path, wall_now)


def load_relay(path: Path, wall_now: datetime | None = None) -> RelayFile:
    """The configuration of a relay.

    Raises:
        ConfigError: something is wrong with it, or it is another kind's.
    """
    return _load_as(RelayFile, path, wall_now)


def load_wrap(path: Path, wall_now: datetime | None = None) -> WrapFile:
    """The configuration of a wrapper.

    Raises:
        ConfigError: something is wrong with it, or it is another kind's.
    """
    return _load_as(WrapFile, path, wall_now)


def _load_as(model: type[FileT], path: Path, wall_now: datetime | None) -> FileT:
    file = load(path, wall_now)
    if not isinstance(file, model):
        found, expected = (
            next(role for role, kind in _ROLES.items() if kind is each)
            for each in (type(file), model)
        )
        raise ConfigError([f"{path}: found a table [{found}], expected a table [{expected}]"])
    return file


def control_socket(path: Path) -> Path:
    """Where the daemon of a configuration listens, whatever else may be wrong with it meanwhile.

    Raises:
        ConfigError: the file cannot be read, or is no configuration.
    """
    document = _read(path)
    role = _role(document, path)
    section = _with_places(document, role, path.stem)[role]
    socket = section.get("control_socket") if isinstance(section, dict) else None
    if not isinstance(socket, str):
        raise ConfigError([f"{path}: {role}.control_socket: expected a file name"])
    return path.parent.absolute() / socket


def _role(document: Table, path: Path) -> str:
    roles = [role for role in _ROLES if role in document]
    if len(roles) != 1:
        found = " and ".join(f"[{role}]" for role in roles) or "none of them"
        expected = "a table [gateway], [client], [relay] or [wrap]"
        raise ConfigError([f"{path}: found {found}, expected {expected}"])
    return roles[0]


def _read(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}, expected a configuration file"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: octet {error.start} is not UTF-8, expected TOML"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: {error}, expected TOML"]) from None


def _warn_of_readers(document: Table, path: Path) -> None:
    """Say so where others may read secrets, which is no reason not to start."""
    mode = path.stat().st_mode
    if mode & stat.S_IROTH and not _OWN_SECRETS.isdisjoint(_keys(document)):
        _log.warning("%s has secrets in it, and every user can read it: chmod 600 it", path)


def _keys(value: object) -> Iterator[str]:
    """Every key of a table and of the tables in it."""
    if isinstance(value, list):
        yield from chain.from_iterable(map(_keys, value))
    elif isinstance(value, dict):
        yield from value
        yield from chain.from_iterable(map(_keys, value.values()))


def _context(document: Table, path: Path, wall_now: datetime) -> Context:
    pools = document.get("pools")
    names = frozenset(pools) if isinstance(pools, dict) else frozenset[str]()
    return Context(path.parent.absolute(), wall_now, names, dict(os.environ))


def _with_places(document: Table, role: str, name: str) -> Table:
    """The document with the default places of socket and state, which depend on the file's name.

    The variables are those that systemd sets for RuntimeDirectory= and StateDirectory=.
    """
    section = document[role]
    if not isinstance(section, dict):
        return document
    runtime = Path(os.environ.get("RUNTIME_DIRECTORY", "/run/tunnelwrap"))
    state = Path(os.environ.get("STATE_DIRECTORY", "/var/lib/tunnelwrap"))
    places = {"control_socket": f"{runtime / name}.sock"}
    if role not in _STATELESS:
        places["state_directory"] = f"{state / name}"
    return {**document, role: {**places, **section}}


# --- errors in plain words -------------------------------------------------------------------


def in_words(error: ValidationError, model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """What is wrong with the values of a model, for people: one line for each.

    A line begins with prefix and key, unless it is about all of the model.
    """
    for detail in error.errors(include_url=False):
        if detail["type"] != "default_factory_not_called":  # only says that there are others
            where = f"{prefix}{_key(detail)}: " if detail["loc"] else ""
            yield f"{where}{_problem(detail, model)}"


def _key(detail: ErrorDetails) -> str:
    key = ""
    for part in detail["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> str:
    kind, names = detail["type"], detail["loc"]
    if kind == "extra_forbidden":
        return _unknown(str(names[-1]), list(_fields(model, names[:-1])))
    if kind == "missing":
        description = _fields(model, names[:-1])[str(names[-1])]
        return f"found nothing, expected {description or 'a value'}"
    context = detail.get("ctx", {})
    why = f" ({context['why']})" if context.get("why") else ""
    if kind == WRONG:
        expected = str(context["expected"])
    else:
        expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else detail["msg"]
    return f"{_found(detail)}expected {expected}{why}"


def _unknown(key: str, known: list[str]) -> str:
    near = get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    return f"found an unknown key, {hint}"


def _found(detail: ErrorDetails) -> str:
    """What was found, for people; nothing of a secret, nor of a whole table that may hold one."""
    value: object = detail["input"]
    is_table = isinstance(value, dict | BaseModel)
    if is_table and detail["type"] == WRONG:
        return ""
    if is_table or isinstance(value, list):
        return "found a table, " if is_table else "found a list, "
    if any(part in _SECRET_KEYS for part in detail["loc"]):
        return "found a value that is not shown, "
    if isinstance(value, str) and ("\n" in value or PEM in value):  # perhaps a key, misplaced
        return "found a text that is not shown, "
    if isinstance(value, bool):
        return f"found {str(value).lower()}, "
    text = repr(value) if isinstance(value, str | int | float) else str(value)
    return f"found {text if len(text) <= _FOUND_LENGTH else text[:_FOUND_LENGTH] + '...'}, "


def _fields(model: type[BaseModel], names: tuple[int | str, ...]) -> dict[str, str | None]:
    """The keys of the table at a place, with their descriptions."""
    for name in names:
        field = model.model_fields.get(str(name))
        if field is not None:  # else a name of the user's, as in [pools.NAME]
            model = next(_models(field.annotation), model)
    return {name: field.description for name, field in model.model_fields.items()}


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """The tables that occur in the type of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
