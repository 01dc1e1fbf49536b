"""Types of single values: what a human may write, checked at once, with what is expected in words.

A value that is wrong raises ``wrong``; ``config.load`` prints it beside file, key and what was
found. File names are relative to the configuration file, whose directory is in the Context.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from typing import Annotated, Final, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from tunnelwrap.auth.identity import Identity, IdentityPattern
from tunnelwrap.config.selectors import parse_selector
from tunnelwrap.config.suites import parse_ah, parse_esp, parse_ike
from tunnelwrap.demux.routing import Backend
from tunnelwrap.errors import ConfigError
from tunnelwrap.path import Carrier

WRONG: Final = "wrong"
"""Type of the errors made here; their context is ``expected``, and ``why`` where that helps."""

PEM: Final = "-----BEGIN"
"""A text with this is a certificate or a key itself, not the name of a file."""

DYNAMIC: Final = "dynamic"
"""As traffic selector: the address of that side, whichever it is."""

_CARRIERS: Final = {carrier.value: carrier for carrier in Carrier}
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")

_DEVICE: Final = re.compile(r"[A-Za-z0-9._@-]{1,15}")  # IFNAMSIZ less its final zero
_HTTPS_URL: Final = re.compile(r"https://[!-~]+")

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Context:
    """What values are judged by: where the file is, the time, pools, environment."""

    directory: Path
    wall_now: datetime
    pools: frozenset[str] = frozenset()
    environment: dict[str, str] = field(default_factory=dict, repr=False)


Info = ValidationInfo[Context]


def context_of(info: Info) -> Context:
    """The context of a validation; ``config.load`` always gives one."""
    assert info.context is not None
    return info.context


def wrong(expected: str, why: str = "") -> PydanticCustomError:
    """The error to raise for a value: what is expected in its place, and why it will not do."""
    return PydanticCustomError(WRONG, "expected {expected}", {"expected": expected, "why": why})


def text_of(value: object, expected: str) -> str:
    """A value that must be a text with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise wrong(expected)
    return value.strip()


def file_of(value: object, info: Info, expected: str) -> Path:
    """A value that must name a file, relative to the directory of the configuration."""
    text = text_of(value, expected)
    if not text.isprintable():  # no use in a name, and perhaps the key itself
        raise wrong(expected, "there are control characters in it")
    return context_of(info).directory / text


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True
    )


# --- names, addresses, networks --------------------------------------------------------------


def _host(value: object) -> str:
    expected = "a host name or an IP address"
    text = text_of(value, expected)
    labels = text.removesuffix(".").split(".")
    looks_like_address = labels[-1].isdecimal()  # RFC 1123 §2.1: no such top-level domain
    is_name = all(_LABEL.fullmatch(label) for label in labels) and not looks_like_address
    if not is_name and not is_address(text):
        raise wrong(expected)
    return text


def is_address(text: str) -> bool:
    """Whether it is an IP address, not a name."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _address(value: object) -> IPv4Address | IPv6Address:
    expected = "an IP address such as 192.0.2.1 or 2001:db8::1"
    try:
        return ip_address(text_of(value, expected))
    except ValueError:
        raise wrong(expected) from None


def _network(value: object) -> IPv4Network | IPv6Network:
    expected = "a network such as 10.20.0.0/24 or fd00:20::/64"
    text = text_of(value, expected)
    try:
        network = ip_network(text, strict=False)
        first = ip_address(text.partition("/")[0])
    except ValueError:
        raise wrong(expected) from None
    if network.network_address != first:
        raise wrong(expected, f"did you mean {network}?")
    return network


def _carrier(value: object) -> Carrier:
    carrier = _CARRIERS.get(value) if isinstance(value, str) else None
    if carrier is None:
        raise wrong(f"one of {', '.join(_CARRIERS)}")
    return carrier


def _pool(value: object, info: Info) -> str:
    pools = context_of(info).pools
    name = text_of(value, "the name of a pool")
    if name not in pools:
        listed = ", ".join(sorted(pools)) or "there is none"
        raise wrong("the name of a pool, as in [pools.NAME]", f"pools: {listed}")
    return name


def _ppk_name(value: object) -> str:
    expected = "the name of a post-quantum preshared key, in ASCII without blanks"
    text = text_of(value, expected)
    if not text.isascii() or not text.isprintable() or " " in text:
        raise wrong(expected)
    return text


def _backend(value: object) -> Backend:
    expected = "HOST:PORT, such as 127.0.0.1:8443 or [::1]:22"
    host, _, port = text_of(value, expected).rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise wrong(expected)
    if (":" in bare) != is_bracketed or "[" in bare:
        raise wrong(expected)
    try:
        return Backend(_host(bare), int(port))
    except PydanticCustomError:
        raise wrong(expected) from None


def _server_name(value: object) -> str:
    """A name as it stands in a ClientHello, in lower case, or ``*.`` with all below one."""
    expected = "a host name, or *.domain for all names below a domain"
    text = text_of(value, expected).lower().removesuffix(".")
    labels = text.removeprefix("*.").split(".")
    if labels[-1].isdecimal() or not all(_LABEL.fullmatch(label) for label in labels):
        raise wrong(expected)
    return text


def _device(value: object) -> str:
    expected = "a network device, such as br-lan or eth1.10"
    text = text_of(value, expected)
    if not _DEVICE.fullmatch(text):
        raise wrong(expected)
    return text


def _protocol(value: object) -> str:
    expected = "the name of a protocol, such as h2"
    text = text_of(value, expected)
    if not text.isascii() or len(text) > 255:
        raise wrong(expected)
    return text


def _https_url(value: object) -> str:
    expected = "a URL that begins with https://"
    text = text_of(value, expected)
    if not _HTTPS_URL.fullmatch(text):
        raise wrong(expected)
    return text


def _mail_address(value: object) -> str:
    expected = "a mail address such as admin@example.org"
    user, _, domain = text_of(value, expected).rpartition("@")
    if not user.isprintable() or not user or any(each in user for each in " ,?"):
        raise wrong(expected)
    return f"{user}@{_host(domain)}"


def _path(value: object, info: Info) -> Path:
    return file_of(value, info, "a file name")


def _directory(value: object, info: Info) -> Path:
    expected = "the name of a directory that exists"
    path = file_of(value, info, expected)
    if not path.is_dir():
        raise wrong(expected, f"{path} is none")
    return path


@dataclass(frozen=True, slots=True)
class WebServer:
    """A web server, and whether it speaks TLS."""

    backend: Backend
    is_tls: bool

    def __str__(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.backend}"


def _web_server(value: object) -> WebServer:
    expected = "http://HOST:PORT or https://HOST:PORT, such as https://127.0.0.1:8443"
    scheme, mark, place = text_of(value, expected).removesuffix("/").partition("://")
    if not mark or scheme not in ("http", "https"):
        raise wrong(expected)
    try:
        return WebServer(_backend(place), scheme == "https")
    except PydanticCustomError:
        raise wrong(expected) from None


Host = Annotated[str, PlainValidator(_host)]
Address = Annotated[IPv4Address | IPv6Address, PlainValidator(_address)]
Network = Annotated[IPv4Network | IPv6Network, PlainValidator(_network)]
CarrierName = Annotated[Carrier, PlainValidator(_carrier)]
PoolName = Annotated[str, PlainValidator(_pool)]
PpkName = Annotated[str, PlainValidator(_ppk_name)]
BackendAddress = Annotated[Backend, PlainValidator(_backend)]
ServerName = Annotated[str, PlainValidator(_server_name)]
DeviceName = Annotated[str, PlainValidator(_device)]
ProtocolName = Annotated[str, PlainValidator(_protocol)]
HttpsUrl = Annotated[str, PlainValidator(_https_url)]
MailAddress = Annotated[str, PlainValidator(_mail_address)]
FileName = Annotated[Path, PlainValidator(_path)]
Directory = Annotated[Path, PlainValidator(_directory)]
SiteAddress = Annotated[WebServer, PlainValidator(_web_server)]
Port = Annotated[int, Field(ge=1, le=65535)]

# --- texts that other modules parse ----------------------------------------------------------


def _parsed_by(parse: Callable[[str], object], expected: str) -> Callable[[object], str]:
    """A check that a text can be parsed; the text itself stays the value."""

    def check(value: object) -> str:
        text = text_of(value, expected)
        try:
            parse(text)
        except ConfigError as error:
            raise wrong(expected, "; ".join(error.problems)) from None
        return text

    return check


_check_identity = _parsed_by(Identity.parse, "a name, mail address, IP address or DN")
_check_pattern = _parsed_by(IdentityPattern.parse, "%any, *.domain, *@domain or an identity")
_check_ike = _parsed_by(parse_ike, "an IKE suite such as aes256gcm16-prfsha384-ecp384")
_check_esp = _parsed_by(parse_esp, "an ESP suite such as aes256gcm16-x25519")
_check_ah = _parsed_by(parse_ah, "an AH suite such as sha256-x25519")
_check_selector = _parsed_by(parse_selector, "a network such as 10.20.0.0/24")

IdentityText = Annotated[str, PlainValidator(_check_identity)]
PatternText = Annotated[str, PlainValidator(_check_pattern)]
IkeSuiteText = Annotated[str, PlainValidator(_check_ike)]
EspSuiteText = Annotated[str, PlainValidator(_check_esp)]
AhSuiteText = Annotated[str, PlainValidator(_check_ah)]
SelectorText = Annotated[str, PlainValidator(_check_selector)]

# --- lists -----------------------------------------------------------------------------------


def _at_least_one(values: tuple[object, ...]) -> tuple[object, ...]:
    if not values:
        raise wrong("at least one entry")
    if len(set(values)) != len(values):
        raise wrong("each entry once")
    return values


Many = Annotated[tuple[ItemT, ...], Strict(strict=False)]
"""Any number of values; a TOML array is a Python list, which strict mode would refuse."""

Some = Annotated[tuple[ItemT, ...], Strict(strict=False), AfterValidator(_at_least_one)]
"""One value at least, none twice."""


def _dynamic(value: object) -> object:
    return [] if value in (DYNAMIC, [DYNAMIC]) else value


Selectors = Annotated[tuple[SelectorText, ...], Strict(strict=False), BeforeValidator(_dynamic)]
"""Traffic selectors; none of them is "dynamic"."""
