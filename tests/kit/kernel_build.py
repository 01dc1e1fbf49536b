"""What Debian's user-mode-linux leaves out, built from Debian's own source of the kernel.

    python -m tests.kit.kernel_build interface   its module of xfrm interfaces; two minutes
    python -m tests.kit.kernel_build whole       a kernel with that, ESP in TCP (espintcp) and a
                                                 simulated device that does ESP (netdevsim); eight

Each is built once, in the user's cache, and found there by ``tests.kit.kernel``, which builds what
is missing. It takes root, for apt, and two processors.
"""

import argparse
import fcntl
import gzip
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

KERNEL: Final = "/usr/bin/linux.uml"
"""Debian's, of the package user-mode-linux."""

SOURCE: Final = "linux-source-6.1"
TOOLS: Final = ("bc", "bison", "flex", "gcc", "libc6-dev", "make", "xz-utils")
DEBIAN_CONFIGURATION: Final = Path("/usr/share/doc/user-mode-linux/config.gz")

CONFIGURATION: Final = Path(__file__).parent.resolve() / "kernel.config"
# A module needs of these what its configuration reads.
_UNREAD: Final = ("drivers/*.[ch]", "sound/*.[ch]", "fs/*.[ch]", "Documentation/*/*", "tools/*/*.c")


def main() -> int:
    """Build one of them, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["interface", "whole"])
    wants_module = parser.parse_args().what == "interface"
    print((wants_module and interface_module()) or whole_kernel())
    return 0


def interface_module() -> Path | None:
    """xfrm_interface.ko for Debian's user-mode-linux, from the source of that very release.

    None: apt offers that source no more, for the two packages are not always of one release.
    """
    command = [KERNEL, "--version"]
    release = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    file = _cache() / f"xfrm_interface-{release}.ko"
    with _locked():
        if not file.exists():
            versions = [each for each in _versions() if each.startswith(f"{release}-")]
            if not versions:
                return None
            _build_module(versions[0], file)
    return file


def whole_kernel() -> Path:
    """A kernel of the newest source, with all of ``CONFIGURATION`` built in."""
    version = _versions()[0]
    file = _cache() / f"linux.uml-{version}"
    with _locked():
        if not file.exists():
            _build_kernel(version, file)
    return file


def _build_module(version: str, file: Path) -> None:
    with _source(version, _UNREAD) as tree:
        configuration = gzip.decompress(DEBIAN_CONFIGURATION.read_bytes()).decode()
        (tree / ".config").write_text(f"{configuration}CONFIG_XFRM_INTERFACE=m\n")
        _tell("compiling a module")
        for target in ("olddefconfig", "modules_prepare"):
            _make(tree, target)
        module = "net/xfrm/xfrm_interface.ko"
        _make(tree, "KBUILD_MODPOST_WARN=1", module)  # the kernel's own symbols are not built
        _keep(tree / module, file)


def _build_kernel(version: str, file: Path) -> None:
    with _source(version) as tree:
        _make(tree, f"KCONFIG_ALLCONFIG={CONFIGURATION}", "allnoconfig")
        _check((tree / ".config").read_text())
        _tell("compiling a kernel, which takes some minutes")
        _make(tree, f"-j{os.cpu_count()}", "linux")
        _keep(tree / "linux", file)


def _check(configuration: str) -> None:
    """See that nothing asked for was dropped for what it depends on."""
    wanted = {line for line in CONFIGURATION.read_text().splitlines() if line.startswith("CONFIG_")}
    missing = sorted(wanted.difference(configuration.splitlines()))
    assert not missing, f"the kernel's source does not take {', '.join(missing)}"


def _versions() -> list[str]:
    """The versions of the source that apt offers, the newest first."""
    command = ["apt-cache", "madison", SOURCE]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines, f"apt knows no {SOURCE}: run apt-get update"
    return [line.split("|")[1].strip() for line in lines]


@contextmanager
def _source(version: str, without: Sequence[str] = ()) -> Iterator[Path]:
    """The kernel's source, unpacked for as long as it is needed."""
    _apt("install", "-y", "--no-install-recommends", *TOOLS)
    with tempfile.TemporaryDirectory(prefix="kernel.", dir="/var/tmp") as folder:
        here = Path(folder)
        here.chmod(0o755)  # apt fetches as somebody else
        _apt("download", f"{SOURCE}={version}", directory=here)
        subprocess.run(["dpkg", "-x", next(here.glob("*.deb")), here], check=True)
        _tell("unpacking")
        excluded = [f"--exclude={SOURCE}/{pattern}" for pattern in without]
        archive = here / f"usr/src/{SOURCE}.tar.xz"
        subprocess.run(["tar", "-xf", archive, "-C", here, *excluded], check=True)
        yield here / SOURCE


def _apt(*arguments: str, directory: Path | None = None) -> None:
    _tell(f"apt-get {' '.join(arguments)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(
        ["apt-get", "-qq", *arguments],
        check=True,
        cwd=directory,
        env=environment,
        stdout=subprocess.DEVNULL,
    )


def _make(tree: Path, *targets: str) -> None:
    """Run make; what it says is shown only if it fails."""
    done = subprocess.run(
        ["make", "-C", tree, "ARCH=um", *targets],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\nmake {' '.join(targets)} failed"


def _keep(made: Path, file: Path) -> None:
    """Put it into the cache when it is whole, without what only a debugger reads."""
    part = file.with_suffix(".part")
    subprocess.run(["strip", "--strip-debug", "-o", part, made], check=True)
    part.rename(file)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tunnelwrap/kernels"


@contextmanager
def _locked() -> Iterator[None]:
    """Two processes build one."""
    _cache().mkdir(parents=True, exist_ok=True)
    with (_cache() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tell(what: str) -> None:
    print(f"== {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
