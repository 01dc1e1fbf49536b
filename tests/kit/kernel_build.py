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

WANTED: Final = tuple(
    """
    HOSTFS TMPFS DEVTMPFS PROC_FS SYSFS PROC_SYSCTL DEBUG_FS CONFIGFS_FS BINFMT_ELF
    BINFMT_SCRIPT UNIX98_PTYS TTY STDERR_CONSOLE SSL NULL_CHAN PTY_CHAN TTY_CHAN XTERM_CHAN
    64BIT MCONSOLE MAGIC_SYSRQ PRINTK SYSVIPC POSIX_MQUEUE MULTIUSER FILE_LOCKING
    INOTIFY_USER FANOTIFY FHANDLE NAMESPACES NET_NS UTS_NS IPC_NS PID_NS USER_NS CGROUPS
    SECCOMP HIGH_RES_TIMERS NO_HZ_IDLE BPF_SYSCALL UID16 KALLSYMS IKCONFIG IKCONFIG_PROC
    DEVMEM RANDOM_TRUST_CPU UML_RANDOM HW_RANDOM
    NET PACKET UNIX INET IPV6 IP_ADVANCED_ROUTER IP_MULTIPLE_TABLES IPV6_MULTIPLE_TABLES
    IPV6_SUBTREES SYN_COOKIES IPV6_TUNNEL NET_IPIP IPV6_SIT NETDEVICES NET_CORE DUMMY TUN
    VETH BRIDGE NET_SCHED NET_SCH_NETEM NET_SCH_TBF NET_SCH_INGRESS NET_CLS_ACT NET_CLS_BPF
    NET_ACT_MIRRED PACKET_DIAG UNIX_DIAG INET_DIAG INET_UDP_DIAG NETLINK_DIAG NETFILTER
    NETFILTER_ADVANCED NF_CONNTRACK NF_CT_NETLINK NF_CONNTRACK_MARK NF_TABLES NF_TABLES_INET
    NF_TABLES_IPV4 NF_TABLES_IPV6 NF_TABLES_NETDEV NFT_CT NFT_LIMIT NFT_LOG NFT_MASQ NFT_NAT
    NFT_REDIR NFT_REJECT NFT_HASH NFT_XFRM NFT_FIB_IPV4 NFT_FIB_IPV6 NFT_FIB_INET NFT_SOCKET
    NFT_TPROXY
    XFRM_USER XFRM_INTERFACE XFRM_MIGRATE XFRM_STATISTICS XFRM_SUB_POLICY NET_KEY
    NET_KEY_MIGRATE INET_AH INET_ESP INET_ESP_OFFLOAD INET_ESPINTCP INET_IPCOMP INET6_AH
    INET6_ESP INET6_ESP_OFFLOAD INET6_ESPINTCP INET6_IPCOMP NETDEVSIM PSAMPLE CRYPTO_AES
    CRYPTO_CAMELLIA CRYPTO_DES CRYPTO_CHACHA20POLY1305 CRYPTO_NULL CRYPTO_CBC CRYPTO_CTR
    CRYPTO_ECB CRYPTO_CCM CRYPTO_GCM CRYPTO_CMAC CRYPTO_SEQIV CRYPTO_ECHAINIV CRYPTO_AUTHENC
    CRYPTO_HMAC CRYPTO_XCBC CRYPTO_MD5 CRYPTO_SHA1 CRYPTO_SHA256 CRYPTO_SHA512
    CRYPTO_DEFLATE
    """.split()
)
"""What is switched on; the rest is off, unless one of these wants it."""

CHECKED: Final = ("XFRM_INTERFACE", "INET_ESPINTCP", "INET6_ESPINTCP", "NETDEVSIM", "HOSTFS")

# A module needs of these what its configuration reads.
_UNREAD: Final = ("drivers/*.[ch]", "sound/*.[ch]", "fs/*.[ch]", "Documentation/*/*", "tools/*/*.c")


def main() -> int:
    """Build one of them, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["interface", "whole"])
    print(interface_module() if parser.parse_args().what == "interface" else whole_kernel())
    return 0


def interface_module() -> Path:
    """xfrm_interface.ko for Debian's user-mode-linux, from the source of that very release."""
    command = [KERNEL, "--version"]
    release = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    file = _cache() / f"xfrm_interface-{release}.ko"
    with _locked():
        if not file.exists():
            versions = [each for each in _versions() if each.startswith(f"{release}-")]
            assert versions, f"apt has no {SOURCE} of {release}: {KERNEL} is of another Debian"
            _build_module(versions[0], file)
    return file


def whole_kernel() -> Path:
    """A kernel of the newest source, with all of ``WANTED`` built in."""
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
        wanted = tree / "wanted"
        wanted.write_text("".join(f"CONFIG_{name}=y\n" for name in WANTED))
        _make(tree, f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig")
        _check((tree / ".config").read_text())
        _tell("compiling a kernel, which takes some minutes")
        _make(tree, f"-j{os.cpu_count()}", "linux")
        _keep(tree / "linux", file)


def _check(configuration: str) -> None:
    """See that nothing asked for was dropped for what it depends on."""
    chosen = set(configuration.splitlines())
    missing = [name for name in CHECKED if f"CONFIG_{name}=y" not in chosen]
    assert not missing, f"the kernel's configuration does not take {', '.join(missing)}"


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
