"""Kernel parameters of this network namespace, and what the kernel changes along with them."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tunnelwrap.errors import HostNetError
from tunnelwrap.hostnet.values import to_json

logger = logging.getLogger(__name__)

_ROOT: Final = Path("/proc/sys")
_IPV4: Final = "net/ipv4/conf"
_IPV6: Final = "net/ipv6/conf"


@dataclass(frozen=True, slots=True)
class SysctlChange:
    """A parameter has a value. ``former`` is what comes back, in this order."""

    key: str  # with slashes: net/ipv4/ip_forward
    value: str
    former: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, key: str, value: str, drags: Iterable[str] = ()) -> Self:
        """The change from what is set now.

        Args:
            key: the parameter, with slashes.
            value: what it gets.
            drags: other parameters that the kernel sets along with it.

        Raises:
            HostNetError: this kernel has no such parameter.
        """
        return cls(key, value, tuple((name, read(name)) for name in (key, *drags)))

    def apply(self) -> None:
        """Set it."""
        _write(self.key, self.value)

    def undo(self) -> None:
        """Set what was there before, where it differs; a device may be gone with its parameters."""
        for key, value in self.former:
            if (_ROOT / key).exists() and read(key) != value:
                _write(key, value)

    def to_json(self) -> dict[str, object]:
        """The change as plain JSON."""
        return to_json(self)

    def __str__(self) -> str:
        return f"sysctl {self.key} = {self.value}"


def forwarding_changes(version: int) -> list[SysctlChange]:
    """What makes this host forward packets of an IP version; nothing where it does so already.

    Raises:
        HostNetError: the kernel has no such IP version.
    """
    return _forward_ipv4() if version == 4 else _forward_ipv6()


def has_ipv6(device: str) -> bool:
    """Whether a device may have IPv6 addresses."""
    try:
        return read(f"{_IPV6}/{device}/disable_ipv6") == "0"
    except HostNetError:
        return False


def read(key: str) -> str:
    """The value of a parameter.

    Raises:
        HostNetError: this kernel has no such parameter.
    """
    try:
        return (_ROOT / key).read_text().strip()
    except OSError as error:
        raise HostNetError(f"sysctl {key}: {error.strerror}") from error


def _forward_ipv4() -> list[SysctlChange]:
    key = "net/ipv4/ip_forward"
    if read(key) == "1":
        return []
    # The kernel makes a router of each device, and flips the default for ICMP redirects.
    drags = [f"{_IPV4}/all/accept_redirects", *_each(_IPV4, "forwarding")]
    return [SysctlChange.of(key, "1", drags)]


def _forward_ipv6() -> list[SysctlChange]:
    key = f"{_IPV6}/all/forwarding"
    if read(key) == "1":
        return []
    # A router takes no router advertisements, and the kernel would drop the default route that it
    # has from one: 2 goes on taking them.
    listening = [name for name in _each(_IPV6, "accept_ra") if read(name) == "1"]
    keep = [SysctlChange.of(name, "2") for name in listening if name.split("/")[3] not in _NO_RA]
    others = [name for name in _each(_IPV6, "forwarding") if name != key]
    return [*keep, SysctlChange.of(key, "1", others)]


_NO_RA: Final = ("all", "default", "lo")


def _each(folder: str, name: str) -> list[str]:
    return [f"{folder}/{device.name}/{name}" for device in sorted((_ROOT / folder).iterdir())]


def _write(key: str, value: str) -> None:
    try:
        (_ROOT / key).write_text(value)
    except OSError as error:
        raise HostNetError(
            f"sysctl {key} = {value}: {error.strerror} (in a container it must be set from outside)"
        ) from error
