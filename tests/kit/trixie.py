"""Debian 13 (trixie) in a folder: peers that are newer than this machine's own packages.

``trixie()`` makes the folder once per package list, in ${TUNNELWRAP_TRIXIE} or the user's cache:
debootstrap fetches and verifies the packages from the mirror that this machine's apt uses, and they
are unpacked, not installed. So no maintainer script runs, and strongSwan and libreswan, which
conflict as packages, live side by side. ``Trixie.command`` runs a program in it:

    root = trixie()
    subprocess.run(root.command("swanctl", "--version"))
    subprocess.Popen(root.command("charon-systemd", namespace="host", folders=[tmp_path]))

Each program gets mounts of its own, which the kernel forgets when it ends: this machine's /dev,
/proc and /sys, an empty /run and /tmp, and the given folders under their own names.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUITE = "trixie"
PACKAGES = (
    "charon-systemd",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libcharon-extra-plugins",
    "libreswan",
    "libstrongswan-extra-plugins",
    "libstrongswan-standard-plugins",
    "strongswan-swanctl",
    "user-mode-linux",
)

# Counted up when a root is made in another way.
RECIPE = 1

# Arguments: the root, the folders, a lone "--", the command. Every step is an exec or ends before
# it, so that the process that was started is the program itself in the end.
_ENTER = """
set -e
root=$0
for folder in /dev /proc /sys; do mount --rbind "$folder" "$root$folder"; done
for folder in /run /tmp; do mount -t tmpfs -o mode=1777 none "$root$folder"; done
while [ "$1" != -- ]; do mkdir -p "$root$1"; mount --bind "$1" "$root$1"; shift; done
shift
exec chroot "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class Trixie:
    """The folder with the programs of Debian 13."""

    root: Path

    def command(
        self, *command: str, namespace: str | None = None, folders: Sequence[Path] = ()
    ) -> list[str]:
        """The command line that runs a program in it; the process is the program, for signals.

        Args:
            command: The program, found as in a login of root, and its arguments.
            namespace: The network namespace to run it in, by its name.
            folders: What it sees of this machine's files, at the same paths and writable.
        """
        enter = ["unshare", "--mount", "sh", "-c", _ENTER, str(self.root), *map(str, folders), "--"]
        host = [] if namespace is None else ["ip", "netns", "exec", namespace]
        return [*host, *enter, *command]


def trixie() -> Trixie:
    """The root, made if this machine has none yet of these packages; two processes make one."""
    stamp = hashlib.sha256(repr((SUITE, PACKAGES, RECIPE)).encode()).hexdigest()[:16]
    root = _cache() / f"root-{stamp}"
    if not root.exists():
        _cache().mkdir(parents=True, exist_ok=True)
        with _locked(_cache() / "lock"):
            if not root.exists():
                _make(root)
    return Trixie(root)


def _cache() -> Path:
    own = os.environ.get("TUNNELWRAP_TRIXIE")
    if own is not None:
        return Path(own).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tunnelwrap/trixie"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(root: Path) -> None:
    """Make a root beside its place and move it there when it is whole."""
    for half_made in root.parent.glob("making-*"):  # its maker is dead: the lock is ours
        shutil.rmtree(half_made)
    with tempfile.TemporaryDirectory(prefix="making-", dir=root.parent) as folder:
        packages, making = Path(folder, "packages"), Path(folder, "root")
        _download(packages)
        making.mkdir()
        archives = sorted(packages.glob("var/cache/apt/archives/*.deb"))
        # First base-files: in it /bin and its like are links into /usr.
        for archive in sorted(archives, key=lambda one: not one.name.startswith("base-files_")):
            subprocess.run(["dpkg-deb", "--extract", archive, making], check=True)
        _settle(making)
        making.rename(root)


def _download(packages: Path) -> None:
    """Fetch the packages with all that they depend on; the archive's signature is verified."""
    wanted = ["--download-only", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    done = subprocess.run(
        ["debootstrap", *wanted, SUITE, str(packages), debian_mirror()],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"debootstrap: {done.stdout[-3000:]}"


def debian_mirror() -> str:
    """The mirror of Debian that this machine's apt uses."""
    wanted = ["Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main"]
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted],
        check=True,
        capture_output=True,
        text=True,
    )
    mirrors = done.stdout.split()
    assert mirrors, "apt has no index of Debian's main archive: run apt-get update"
    return mirrors[0]


def _settle(root: Path) -> None:
    """Do what maintainer scripts would have done and our programs need."""
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (root / "etc/resolv.conf").touch()
    (root / "usr/bin/awk").symlink_to("mawk")
    (root / "usr/lib/modules").symlink_to("uml/modules")
