"""A second way for a connection of another daemon: its configuration, and the wrapper's unit.

Flow: the wrapper's configuration and what people say of the connection -> ``Fallback`` -> both
files, or neither.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import TypeAdapter, ValidationError, model_validator

from tunnelwrap.auth.identity import Identity
from tunnelwrap.config.fields import Context, IdentityText, Many, Network, Section, Some, wrong
from tunnelwrap.config.load import in_words, load_wrap
from tunnelwrap.config.placement import PRIVATE, PUBLIC, all_or_nothing, check_absent, write
from tunnelwrap.errors import ConfigError
from tunnelwrap.iana import IdType
from tunnelwrap.profile import Fallback
from tunnelwrap.profile.libreswan import ipsec_conf
from tunnelwrap.profile.strongswan import nmconnection, swanctl_conf
from tunnelwrap.profile.unit import wrap_unit
from tunnelwrap.profile.windows import powershell

DAEMONS: Final = ("strongswan", "libreswan", "windows", "networkmanager")

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_PLAIN: Final = re.compile(r"[\w@.:/\\ ,=+*()-]*")


class Wish(Section):
    """What people say of the connection."""

    local_id: IdentityText
    remote_id: IdentityText
    auth: Literal["psk", "certificate"] = "psk"
    certificate: str | None = None
    key: str | None = None
    local_ts: Many[Network] = ()
    remote_ts: Some[Network]

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        for option in ("local_id", "remote_id"):
            kind = Identity.parse(getattr(self, option)).type
            if kind in (IdType.IPV4_ADDR, IdType.IPV6_ADDR, IdType.NULL):
                raise wrong(f"a name for --{_option(option)}, as addresses change on the way")
        for option in ("local_id", "remote_id", "certificate", "key"):
            if not _PLAIN.fullmatch(getattr(self, option) or ""):
                raise wrong(f"no quotes and the like in --{_option(option)}")
        if self.auth == "psk" and (self.certificate or self.key):
            raise wrong("--auth certificate, where there is a certificate or key")
        return self


@dataclass(frozen=True, slots=True)
class Exported:
    """The new files."""

    configuration: Path
    unit: Path


def export(
    daemon: str, file: Path, directory: Path, options: Mapping[str, object], wall_now: datetime
) -> Exported:
    """Write both files.

    Args:
        daemon: one of ``DAEMONS``.
        file: the wrapper's configuration, whose name is the connection's.
        directory: made if it does not exist.
        options: values by the names of the fields of ``Wish``, as people write them.
        wall_now: now, with its time zone.

    Raises:
        ConfigError: something is wrong with any of them, or exists already.
    """
    fallback = _fallback(file, _checked(options, Context(directory, wall_now)), wall_now)
    _check_name(file)
    write_for, suffix, problems = _DAEMONS[daemon]
    found = [f"{file}: {problem}" for problem in problems(fallback)]
    if found:
        raise ConfigError(found)
    names = f"{fallback.name}{suffix}", f"tunnelwrap-{fallback.name}.service"
    check_absent([directory / name for name in names])
    with all_or_nothing(directory) as aside:
        mode = PRIVATE if daemon == "networkmanager" else PUBLIC  # it takes no other
        write(aside / names[0], write_for(fallback), mode)
        write(aside / names[1], wrap_unit(fallback, file.absolute()), PUBLIC)
    return Exported(*(directory / name for name in names))


def _checked(options: Mapping[str, object], context: Context) -> Wish:
    given = {name: value for name, value in options.items() if value not in (None, ())}
    try:
        return TypeAdapter(Wish).validate_python(given, context=context)
    except ValidationError as error:
        lines = in_words(error, Wish, "--")
        raise ConfigError([re.sub(r"^--\w+", _dashed, line) for line in lines]) from None


def _dashed(found: re.Match[str]) -> str:
    return _option(found[0])


def _option(name: str) -> str:
    return name.replace("_", "-")


def _check_name(file: Path) -> None:
    if not _NAME.fullmatch(file.stem):
        expected = "a letter, then letters, digits, hyphens and underscores, 32 at most"
        raise ConfigError([f"{file}: its name is the connection's; expected {expected}"])


def _fallback(file: Path, wish: Wish, wall_now: datetime) -> Fallback:
    return Fallback(
        name=file.stem,
        wrap=load_wrap(file, wall_now).wrap,
        local_id=wish.local_id,
        remote_id=wish.remote_id,
        local_ts=tuple(map(str, wish.local_ts)),
        remote_ts=tuple(map(str, wish.remote_ts)),
        uses_certificate=wish.auth == "certificate",
        certificate=wish.certificate,
        key=wish.key,
    )


# --- what each daemon cannot ------------------------------------------------------------------


def _for_strongswan(fallback: Fallback) -> list[str]:
    wrap, problems = fallback.wrap, []
    if fallback.is_local and 500 in (wrap.ike_port, wrap.nat_port):
        problems.append("wrap.ike_port: found 500, expected another, as strongSwan here has it")
    if fallback.is_local and 4500 in (wrap.ike_port, wrap.nat_port):
        problems.append("wrap.nat_port: found 4500, expected another, as strongSwan here has it")
    return problems


def _for_libreswan(fallback: Fallback) -> list[str]:
    problems = []
    if not fallback.has_usual_ports:
        why = "libreswan asks no others, and leaves those of 127.0.0.2 alone"
        problems.append(f"wrap: expected ike_port = 500 and nat_port = 4500 ({why})")
    if fallback.uses_certificate and fallback.certificate is None:
        problems.append("libreswan needs --certificate, its nickname in the NSS database")
    return problems


def _for_windows(fallback: Fallback) -> list[str]:
    problems = []
    if fallback.is_local:
        why = "Windows has these ports itself, so that tunnelwrap must be on another host"
        problems.append(f"wrap.listen: expected an address that Windows reaches ({why})")
    if not fallback.has_usual_ports:
        problems.append(
            "wrap: expected ike_port = 500 and nat_port = 4500, as Windows has no others"
        )
    if not fallback.uses_certificate:
        problems.append("Windows needs --auth certificate, as it knows no pre-shared key for IKEv2")
    if Identity.parse(fallback.remote_id).type != IdType.FQDN:
        problems.append(
            "Windows needs a host name as --remote-id: it looks that up, and compares it"
        )
    if fallback.local_ts:
        problems.append("Windows takes no --local-ts: its side is the address that it is given")
    return problems


def _for_networkmanager(fallback: Fallback) -> list[str]:
    problems = []
    if fallback.uses_certificate and not (fallback.certificate and fallback.key):
        problems.append("NetworkManager needs --certificate and --key, both names of files")
    if fallback.local_ts:
        problems.append("NetworkManager takes no --local-ts: its side is the address it is given")
    return problems


_DAEMONS: Final[
    dict[str, tuple[Callable[[Fallback], str], str, Callable[[Fallback], list[str]]]]
] = {
    "strongswan": (swanctl_conf, ".conf", _for_strongswan),
    "libreswan": (ipsec_conf, ".conf", _for_libreswan),
    "windows": (powershell, ".ps1", _for_windows),
    "networkmanager": (nmconnection, ".nmconnection", _for_networkmanager),
}
