"""Run a command under a Linux kernel of its own, one that has ESP.

    python -m tests.kit.kernel [--kernel KIND] [--mem 512M] [--timeout S] [--env NAME[=VALUE]]...
                               -- COMMAND...

The kernel is Debian's user-mode-linux, an ordinary program; of the KIND ``interface`` it has xfrm
interfaces besides, and ``whole`` is another kernel, with ESP in TCP, too (``kernel_build``).

Its root file system is this host's "/", writable, so that the command sees the same programs and
files and leaves what it writes; /proc, /sys, /dev and /run are the guest's own, and so are devices,
addresses and namespaces.

The command runs as root in the caller's directory, with the caller's PATH and the variables that
``--env`` names; ``IN_TEST_KERNEL`` is set. Its standard input is empty; what it writes comes out
here, byte for byte. The status is the command's, 124 when the time was over, 125 when the kernel
died (its last words are on standard error then). One processor, slow system calls: 25 to 50 us.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from tests.kit.kernel_build import KERNEL, interface_module, whole_kernel

IN_GUEST: Final = "IN_TEST_KERNEL"
"""Set there, to the kind of kernel."""

DEBIAN, INTERFACE, WHOLE = "debian", "interface", "whole"
TIMED_OUT: Final = 124
GUEST_DIED: Final = 125

BOOT: Final = ("rootfstype=hostfs", "rootflags=/", "rw", "quiet", "con=null", "ssl=null")
"""The kernel's arguments for a root file system that is the folder it sees as "/"."""

MOUNTS: Final = """\
mount -t proc none /proc
mount -t sysfs none /sys
mountpoint -q /dev || mount -t devtmpfs none /dev
mount -t tmpfs -o mode=755 none /run
"""

# Modules are loaded on demand (IPv6 at once, as a host has it), by a modprobe that looks for them
# where the package has them: the host's /lib/modules stays as it is. A console's stty waits until
# all is written to it, and the status file is there only when whole.
_INIT: Final = """#!/bin/bash
export PATH={path}
{mounts}mkdir -p /dev/pts /dev/shm /dev/net /run/netns /run/lock
mount -t devpts -o mode=620,ptmxmode=666 none /dev/pts
mount -t tmpfs -o mode=1777 none /dev/shm
echo {here}/modprobe >/proc/sys/kernel/modprobe
echo test-kernel >/proc/sys/kernel/hostname
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
{here}/modprobe ipv6
{modules}ip link set lo up
stty -F /dev/tty1 raw -echo
stty -F /dev/tty2 raw -echo
cd {directory}
setsid env -i {environment} {command} </dev/null >/dev/tty1 2>/dev/tty2
echo $? >{here}/status.part
stty -F /dev/tty1 raw
stty -F /dev/tty2 raw
mv {here}/status.part {here}/status
echo o >/proc/sysrq-trigger
sleep 10
"""

# The module stands alone: the others that it asks for are told.
_INTERFACES: Final = "{here}/modprobe -a xfrm4_tunnel xfrm6_tunnel && insmod {module}\n"

# A cipher in a mode is made of modules and never is one: the kernel asks all the same, often.
_MODPROBE: Final = """#!/bin/sh
case "$*" in *"("*) exit 1 ;; esac
exec /sbin/modprobe -d {here} "$@"
"""


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = (DEBIAN, INTERFACE, WHOLE)
    parser.add_argument(
        "--kernel", choices=kinds, default=DEBIAN, metavar="KIND", help="%(default)s"
    )
    parser.add_argument("--mem", default="512M", help="memory of the guest (%(default)s)")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="%(default)s")
    parser.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and end the guest
    environment = dict(map(_variable, options.env))
    return run(options.command, environment, options.mem, options.timeout, options.kernel)


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    mem: str,
    timeout_s: float,
    kind: str = DEBIAN,
) -> int:
    """Boot, run a command to its end, and give back its status."""
    if not os.access(KERNEL, os.X_OK):
        print(f"no {KERNEL}: apt install user-mode-linux", file=sys.stderr)
        return GUEST_DIED
    module = interface_module() if kind == INTERFACE else None
    kernel = KERNEL if kind == DEBIAN or module else str(whole_kernel())
    with tempfile.TemporaryDirectory(prefix="test-kernel.", dir="/var/tmp") as folder:
        here = Path(folder)
        _prepare(here, command, {IN_GUEST: kind, **environment}, module)
        with (here / "console").open("wb") as console:
            was_in_time = _boot(here, kernel, mem, timeout_s, console)
        status = here / "status"
        if status.exists():
            return int(status.read_text())
        print(f"the guest {'died' if was_in_time else 'took too long'}:", file=sys.stderr)
        print((here / "console").read_text(errors="replace")[-4000:], file=sys.stderr)
        return GUEST_DIED if was_in_time else TIMED_OUT


def _variable(text: str) -> tuple[str, str]:
    name, is_given, value = text.partition("=")
    return name, value if is_given else os.environ.get(name, "")


def _prepare(
    here: Path, command: Sequence[str], environment: Mapping[str, str], module: Path | None
) -> None:
    """Write the guest's first program, and what it needs."""
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    variables = {
        "PATH": path,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",  # the outputs are consoles there, but who knows what reads them here
        **environment,
    }
    (here / "lib").mkdir()
    (here / "lib/modules").symlink_to("/usr/lib/uml/modules")
    _write_program(here / "modprobe", _MODPROBE.format(here=here))
    init = _INIT.format(
        here=here,
        path=shlex.quote(path),
        mounts=MOUNTS,
        modules=_INTERFACES.format(here=here, module=module) if module else "",
        directory=shlex.quote(str(Path.cwd())),
        environment=shlex.join(f"{name}={value}" for name, value in variables.items()),
        command=shlex.join(command),
    )
    _write_program(here / "init", init)


def _write_program(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


def _boot(here: Path, kernel: str, mem: str, timeout_s: float, console: BinaryIO) -> bool:
    """Run the kernel until it is halted, handing on both outputs; whether that was in time."""
    (out_end, out), (err_end, err) = os.pipe(), os.pipe()
    arguments = [
        *(kernel, f"mem={mem}", *BOOT, "panic=-1", f"init={here}/init", f"uml_dir={here}/"),
        *(f"con0=null,fd:{console.fileno()}", f"con1=null,fd:{out}", f"con2=null,fd:{err}"),
    ]
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=console,
        pass_fds=(out, err, console.fileno()),
        start_new_session=True,  # the kernel's and those of the guest's processes
    )
    os.close(out)
    os.close(err)
    with ThreadPoolExecutor(2) as pool:
        pool.submit(_pump, out_end, sys.stdout.buffer)
        pool.submit(_pump, err_end, sys.stderr.buffer)
        return _await(process, timeout_s)


def _await(process: "subprocess.Popen[bytes]", timeout_s: float) -> bool:
    """Wait for the kernel's end, or make it; whether it came by itself."""
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return True


def _pump(source: int, sink: BinaryIO) -> None:
    """Hand on what comes until its end, or until nobody wants it."""
    with os.fdopen(source, "rb", buffering=0) as octets, suppress(BrokenPipeError):
        while part := octets.read(65536):
            sink.write(part)
            sink.flush()


if __name__ == "__main__":
    sys.exit(main())
