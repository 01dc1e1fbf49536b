#!/usr/bin/env python3
"""All gates, in order: ``python3 tests/check.py``.

Prepares what it needs first: as root the Debian packages of the tests, then a virtual environment
in .venv with the package and its test tools. Needs nothing but Python 3.11 before that. Without
root the tests that need it are left out, and the last line says so.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "pyproject.sha256"

PACKAGES = {
    "python3-venv": "the virtual environment",
    "iproute2": "network namespaces, TUN devices and routes",
    "nftables": "the demo's firewall, and NAT on a gateway",
    "procps": "sysctl",
    "iputils-ping": "traffic through tunnels",
    "iperf3": "traffic through tunnels",
    "curl": "a visitor who knows nothing of tunnels",
    "nginx": "a reverse proxy before the gateway",
    "libnginx-mod-stream": "the same for TLS that stays closed",
    "openssl": "a second opinion on TLS",
    "openssh-client": "a visitor for a server behind the gateway",
    "openssh-server": "that server",
    "chromium": "a web browser",
    "haproxy": "a proxy before the gateway, and a second opinion on the PROXY protocol",
    "pebble": "an ACME server",
    "tcpdump": "captures",
    "tshark": "a second opinion on what is captured",
    "user-mode-linux": "a kernel that has ESP",
    "kmod": "its modules",
    "netbase": "the names of protocols, for iproute2",
    "debootstrap": "a newer Debian in a folder, for newer peers",
    "systemd": "a second opinion on the units, and a socket that it hands over",
    "charon-systemd": "strongSwan, as a peer",
    "strongswan-swanctl": "strongSwan's commands",
    "libcharon-extra-plugins": "strongSwan's ESP in userspace",
    "libstrongswan-standard-plugins": "strongSwan's cryptography",
    "libstrongswan-extra-plugins": "strongSwan's Curve25519, GCM and ChaCha20",
}
"""Debian packages that the tests use, and what for."""

NO_ROOT_TESTS = ("tests/unit", "tests/flows", "tests/properties", "tests/fuzz", "tests/io")
ROOT_TESTS = ("tests/netns", "tests/interop")
KERNEL_TESTS = "tests/kernel"
INTERFACE_TESTS = "tests/kernel/interface"
LOSSLESS = "tests/interop/test_rekey.py"
COVERAGE_LEAST = 85
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile")
MORE_SIDE_BY_SIDE = ("-n", "3", "--dist", "loadfile")  # daemons mostly wait
TESTS_FAILED = 1  # pytest's status where it ran to the end
NO_TESTS = 5  # its status where none was chosen
KERNELS = 2
ONCE_MORE = "== once more, those that failed; one that passes now was too sensitive"

Step = tuple[str, Callable[[], None]]


def main() -> None:
    """Run every gate, or those named; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=[name for name, _ in steps()])
    options = parser.parse_args()
    os.chdir(ROOT)
    started = time.monotonic()
    if is_root():
        install_packages()
    make_environment()
    for name, step in steps():
        if options.only is None or name in options.only:
            run_step(name, step)
    print(f"\nall gates passed in {time.monotonic() - started:.0f} s", end="")
    print("" if is_root() else " (without root: no namespaces, no real peers)")


def steps() -> list[Step]:
    """The gates by name."""
    gates: list[Step] = [
        ("format", lambda: tool("ruff", "format", "--check", ".")),
        ("lint", lambda: tool("ruff", "check", ".")),
        ("imports", lambda: tool("lint-imports")),
        ("types", lambda: tool("mypy")),
        ("tests", tests),
        ("coverage", coverage),
    ]
    if is_root():
        gates.append(("root", root_tests))
        gates.append(("kernel", kernel_tests))
    return gates


def tests() -> None:
    """Run what needs no root, under coverage: that would cost the daemons of the rest too much."""
    tool("coverage", "run", "-m", "pytest", *chosen(NO_ROOT_TESTS, "not root"), *SIDE_BY_SIDE)


def root_tests() -> None:
    """Real daemons keep real time: what fails on a busy machine may try once more, and is told.

    But a packet that a rekey loses is lost: those tests have one try.
    """
    tool("pytest", *chosen([LOSSLESS], "root"))
    arguments = [*chosen(ROOT_TESTS, "root"), f"--ignore={LOSSLESS}"]
    status = run_tool("pytest", *arguments, *MORE_SIDE_BY_SIDE)
    if status == TESTS_FAILED:
        print(ONCE_MORE, flush=True)
        status = run_tool("pytest", *arguments, "--last-failed")
    if status != 0:
        sys.exit(status)


def kernel_tests() -> None:
    """Run what needs the kernel's ESP under kernels that have it: two, for each has one processor.

    A kernel's tests are a file; the longest files begin. What is slow as a whole is in a folder,
    and so is what needs another kernel; that with xfrm interfaces is made from its source first.
    """
    files = sorted(Path(KERNEL_TESTS).glob("test_*.py"), key=lambda file: -file.stat().st_size)
    files = [*Path(INTERFACE_TESTS).glob("test_*.py"), *files]
    with ThreadPoolExecutor(KERNELS) as kernels:
        statuses = list(kernels.map(under_kernel, files))
    if not set(statuses) <= {0, NO_TESTS}:
        sys.exit(TESTS_FAILED)


def under_kernel(file: Path) -> int:
    """Run a file's tests under a kernel of their own; what fails may try once more, and is told."""
    kind = "interface" if file.parent == Path(INTERFACE_TESTS) else "debian"
    kit = ["python", "-m", "tests.kit.kernel", "--kernel", kind, "--timeout", "900", "--"]
    arguments = [*kit, "pytest", *chosen([str(file)], "kernel")]
    arguments += ["-o", f"cache_dir=.pytest_cache/{file.stem}"]
    told: list[str] = []
    status = run_tool(*arguments, told=told)
    if status == TESTS_FAILED:
        told.append(ONCE_MORE)
        status = run_tool(*arguments, "--last-failed", told=told)
    print(f"-- {file}", *told, sep="\n", end="", flush=True)
    return status


def chosen(folders: Sequence[str], marked: str) -> list[str]:
    """pytest's arguments for the tests of some folders that belong to the gate."""
    return ["-q", "-m", f"({marked}) and not bench and not slow", *folders]


def coverage() -> None:
    """Add up what all processes covered."""
    tool("coverage", "combine", "--quiet")
    tool("coverage", "report", f"--fail-under={COVERAGE_LEAST}")


def is_root() -> bool:
    """Whether we may install packages and make namespaces."""
    return os.geteuid() == 0


def install_packages() -> None:
    """Install the Debian packages that are missing."""
    if shutil.which("dpkg-query") is None:
        print("no Debian here: the tests need", ", ".join(PACKAGES))
        return
    missing = [name for name in PACKAGES if not is_installed(name)]
    if not missing:
        return
    print("== installing", " ".join(missing), flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-q", "-y", "--no-install-recommends"]
    subprocess.run([*apt, "update"], check=True, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run(
        [*apt, "install", *missing], check=True, env=environment, stdout=subprocess.DEVNULL
    )


def is_installed(package: str) -> bool:
    """Whether dpkg has a package."""
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    done = subprocess.run(query, check=False, capture_output=True, text=True)
    return done.stdout == "installed"


def make_environment() -> None:
    """A virtual environment with the package in place and its test tools; once per pyproject."""
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode())
    if STAMP.exists() and STAMP.read_text() == digest.hexdigest():
        return
    print("== preparing .venv", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    tool("pip", "install", "--quiet", "--disable-pip-version-check", "--editable", ".[test]")
    STAMP.write_text(digest.hexdigest())


def tool(*command: str) -> None:
    """Run a program of the environment; end with its status if it fails."""
    status = run_tool(*command)
    if status != 0:
        sys.exit(status)


def run_tool(name: str, *arguments: str, told: list[str] | None = None) -> int:
    """Run a program of the environment, and give back its status; ``told`` takes what it says."""
    environment = {**os.environ, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # daemons start hundreds of times here
    command = [str(VENV / "bin" / name), *arguments]
    if told is None:
        return subprocess.run(command, check=False, env=environment).returncode
    done = subprocess.run(
        command,
        check=False,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    told.append(done.stdout)
    return done.returncode


def run_step(name: str, step: Callable[[], None]) -> None:
    """Run one gate and say how long it took."""
    print(f"\n== {name}", flush=True)
    started = time.monotonic()
    step()
    print(f"== {name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
