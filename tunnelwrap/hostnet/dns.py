"""Name servers of the tunnel: through systemd-resolved where it is in charge, else resolv.conf.

resolved keeps name servers for each link, and can ask the tunnel's for some domains only. A
resolv.conf knows no such thing: the tunnel's name servers take the place of the others.
"""

import contextlib
import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tunnelwrap.errors import HostNetError
from tunnelwrap.hostnet import Change
from tunnelwrap.hostnet.netlink import Device
from tunnelwrap.hostnet.values import to_json
from tunnelwrap.path import IpAddress

logger = logging.getLogger(__name__)

RESOLV_CONF: Final = Path("/etc/resolv.conf")
MAX_SERVERS: Final = 3
"""resolv.conf(5): more are not read."""

_RESOLVED: Final = Path("/run/systemd/resolve")
_STUB: Final = "127.0.0.53"
_TIMEOUT_S: Final = 10.0


def dns_change(
    tun: str,
    servers: Sequence[IpAddress],
    domains: Sequence[str],
    *,
    is_default: bool,
    path: Path = RESOLV_CONF,
) -> Change:
    """What lets this host ask the tunnel's name servers.

    Args:
        tun: the TUN device, which exists.
        servers: at least one.
        domains: names below these belong to the tunnel, and are tried for short names.
        is_default: all other names are asked for through the tunnel too. Without any domain it is
            so anyhow, or the servers would be of no use.
        path: resolv.conf.

    Raises:
        HostNetError: there is no such device, or the file cannot be read.
    """
    device = Device.find(tun)
    if _resolved_owns(path):
        texts = tuple(str(server) for server in servers)
        return ResolvedChange(device, texts, tuple(domains), is_default or not domains)
    return ResolvConfChange.of(path, device, servers, domains)


@dataclass(frozen=True, slots=True)
class ResolvedChange:
    """systemd-resolved knows a link's name servers, for some domains or for all."""

    device: Device
    servers: tuple[str, ...]
    domains: tuple[str, ...]
    is_default: bool

    def apply(self) -> None:
        """Tell it; if it takes only a part, that part is taken back."""
        everything = ("~.",) if self.is_default else ()
        try:
            self._resolvectl("dns", *self.servers)
            self._resolvectl("domain", *self.domains, *everything)
            self._resolvectl("default-route", "yes" if self.is_default else "no")
        except HostNetError:
            with contextlib.suppress(HostNetError):
                self.undo()
            raise

    def undo(self) -> None:
        """Let it forget the link, which it does by itself when the link is gone."""
        if self.device.is_there():
            self._resolvectl("revert")

    def to_json(self) -> dict[str, object]:
        """The change as plain JSON."""
        return to_json(self)

    def __str__(self) -> str:
        return f"name servers {' '.join(self.servers)} of {self.device} in systemd-resolved"

    def _resolvectl(self, command: str, *words: str) -> None:
        line = ["resolvectl", command, self.device.name, *words]
        try:
            done = subprocess.run(  # noqa: S603 - a fixed program; no shell reads its words
                line, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HostNetError(f"{' '.join(line)}: {error}") from error
        if done.returncode != 0:
            raise HostNetError(f"{' '.join(line)}: {done.stderr.strip() or done.returncode}")


@dataclass(frozen=True, slots=True)
class ResolvConfChange:
    """A resolv.conf has our content; ``former`` comes back, None: there was no file."""

    path: str
    content: str
    former: str | None

    @classmethod
    def of(
        cls, path: Path, device: Device, servers: Sequence[IpAddress], domains: Sequence[str]
    ) -> Self:
        """The change from what the file says now; its options and search list are kept.

        Raises:
            HostNetError: the file cannot be read.
        """
        target = path.resolve()  # a link stays one: whoever made it looks for it
        try:
            former = _read(target)
        except OSError as error:
            raise HostNetError(f"{path}: {error.strerror}") from error
        return cls(str(target), _content(device, servers, domains, former or ""), former)

    def apply(self) -> None:
        """Write our content."""
        try:
            _replace(Path(self.path), self.content)
        except OSError as error:
            raise HostNetError(f"{self.path}: {error.strerror}") from error

    def undo(self) -> None:
        """Write the former content, if what stands there is ours and nobody else's."""
        path = Path(self.path)
        try:
            current = _read(path)
            if current is None or current == self.former:
                return
            if not self._is_ours(current):
                logger.info("%s was changed by somebody else: left as it is", path)
            elif self.former is None:
                path.unlink()
            else:
                _replace(path, self.former)
        except OSError as error:
            raise HostNetError(f"{path}: {error.strerror}") from error

    def to_json(self) -> dict[str, object]:
        """The change as plain JSON."""
        return to_json(self)

    def __str__(self) -> str:
        return f"name servers in {self.path}"

    def _is_ours(self, current: str) -> bool:
        """Ours also when a writing in place, there or back, was stopped before the cut."""
        former = self.former or ""
        return current in (
            self.content,
            self.content + former[len(self.content) :],
            former + self.content[len(former) :],
        )


def _resolved_owns(path: Path) -> bool:
    """Whether systemd-resolved runs, and programs that read resolv.conf come to it."""
    if shutil.which("resolvectl") is None or not _RESOLVED.is_dir():
        return False
    if path.resolve().is_relative_to(_RESOLVED):
        return True
    try:
        return f"nameserver {_STUB}" in path.read_text()
    except OSError:
        return False


def _content(
    device: Device, servers: Sequence[IpAddress], domains: Sequence[str], former: str
) -> str:
    lines = [line.split() for line in former.splitlines()]
    search = [word for line in lines if line[:1] in (["search"], ["domain"]) for word in line[1:]]
    options = [" ".join(line) for line in lines if line[:1] == ["options"]]
    names = list(dict.fromkeys([*domains, *search]))
    return "\n".join(
        [
            f"# tunnelwrap's while {device} is up; then the former content returns",
            *(f"nameserver {server}" for server in servers[:MAX_SERVERS]),
            *([f"search {' '.join(names)}"] if names else []),
            *options,
            "",
        ]
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def _replace(path: Path, text: str) -> None:
    """Put a new file in the place of the old one, or write into it where that cannot be.

    ``ip netns exec`` and containers mount a file over resolv.conf: a mount point cannot be renamed
    over (EBUSY), nor can one be in a folder that is read-only.
    """
    octets = text.encode("utf-8", errors="surrogateescape")
    draft = path.with_name(f".{path.name}.tunnelwrap")
    try:
        _write_new(draft, octets, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        if error.errno not in (errno.EBUSY, errno.EROFS, errno.EACCES, errno.EXDEV):
            raise
        _write_over(path, octets)


def _write_new(path: Path, octets: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())


def _write_over(path: Path, octets: bytes) -> None:
    """One write, then the cut: at no time is the file empty."""
    with path.open("r+b", buffering=0) as file:
        file.write(octets)
        file.truncate(len(octets))
        os.fsync(file.fileno())
