"""The image of docker/Dockerfile in a folder, made and run without an engine.

``image()`` obeys the Dockerfile's instructions in plain roots that debootstrap makes, and refuses
one that it does not know. The roots are kept in ${TUNNELWRAP_IMAGE} or the user's cache, and made
anew where Dockerfile or dependencies have changed; package and entrypoint are always those of now.

``Image.command`` runs what the image runs as an engine would: as its user, without rights but those
to be had by ``--cap-add``, with a root and /proc/sys that cannot be written to, and in a network
namespace that is there.
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit.trixie import debian_mirror

SOURCE = Path(__file__).parents[2]
SUITES = {"12": "bookworm"}
RIGHTS = ("net_admin", "net_bind_service")
NOT_GIVEN = "--inh-caps=-all"
"""The option of setpriv for rights that are to be had, but are not given yet: Docker's way."""

# Counted up when a root is made in another way.
RECIPE = 1

# Arguments: the root, the command. What a build step sees of this machine; its CA bundle because it
# may be one that leads to the package registries.
_BUILD = """
set -e
root=$0
for folder in /dev /proc /sys; do mount --rbind "$folder" "$root$folder"; done
for folder in /run /tmp; do mount -t tmpfs -o mode=1777 none "$root$folder"; done
for file in /etc/resolv.conf /etc/hosts; do
    touch "$root$file"; mount --bind "$file" "$root$file"
done
if [ -n "$CA" ]; then cat "$CA" > "$root/run/ca.pem"; export PIP_CERT=/run/ca.pem; fi
exec chroot "$root" "$@"
"""

# Arguments: the root, folders as TARGET=SOURCE, a lone "--", the command.
_RUN = """
set -e
root=$0
mount --bind "$root" "$root"
mount --rbind /proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --rbind /sys "$root/sys"
for folder in /dev /tmp /run; do mount -t tmpfs -o mode=0755 none "$root$folder"; done
for device in full null random urandom zero; do
    touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
done
while [ "$1" != -- ]; do
    case $1 in
        /dev/*)
            mkdir -p "$root$(dirname "${1%%=*}")"; touch "$root${1%%=*}";;
        *) mkdir -p "$root${1%%=*}";;
    esac
    mount --bind "${1#*=}" "$root${1%%=*}"; shift
done
shift
mkdir -p "$root/run/tunnelwrap"
mount -t tmpfs -o "uid=$OWNER,gid=$OWNER,mode=0755" none "$root/run/tunnelwrap"
mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
"""


@dataclass
class Image:
    """What a Dockerfile comes to."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)  # by instruction, as they stand there

    @property
    def user(self) -> int:
        """Who runs in it."""
        return int(self.settings["USER"].split(":")[0])

    def words(self, instruction: str) -> list[str]:
        """The command of ENTRYPOINT, CMD or HEALTHCHECK, without its options."""
        text = self.settings[instruction]
        words: list[str] = json.loads(text[text.index("[") :])
        return words

    def command(
        self,
        *command: str,
        namespace: str,
        folders: dict[str, Path],
        rights: Sequence[str] = RIGHTS,
        environment: dict[str, str] | None = None,
        options: Sequence[str] = (NOT_GIVEN,),
    ) -> list[str]:
        """The command line that runs a command in it; the process is that command, for signals.

        Args:
            command: and its arguments; the image's entrypoint is not put before it.
            namespace: the network namespace, by its name.
            folders: volumes and devices by their place in the image.
            rights: those that an engine was told to leave.
            environment: besides that of the image.
            options: of setpriv; by default as Docker does it.
        """
        mounts = [f"{place}={source}" for place, source in folders.items()]
        enter = ["unshare", "--mount", "env", f"OWNER={self.user}", "sh", "-c", _RUN]
        inside = self._as_user(command, rights, environment or {}, options)
        host = ["ip", "netns", "exec", namespace]
        return [*host, *enter, str(self.root), *mounts, "--", *inside]

    def beside(self, pid: int, *command: str) -> list[str]:
        """The command line that runs a command where a process of the image is, as exec does."""
        enter = ["nsenter", "--target", str(pid), "--mount", "--net", "--root", "--wd=/"]
        return [*enter, *self._as_user(command, RIGHTS, {}, (NOT_GIVEN,))]

    def _as_user(
        self,
        command: Sequence[str],
        rights: Sequence[str],
        environment: dict[str, str],
        options: Sequence[str],
    ) -> list[str]:
        owner = str(self.user)
        drop = ["--reuid", owner, "--regid", owner, "--clear-groups", *options]
        drop.append(f"--bounding-set={','.join(['-all', *(f'+{right}' for right in rights)])}")
        variables = {**self.environment, **environment}
        clean = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        return ["setpriv", *drop, *clean, *command]


def image() -> Image:
    """The image, with the package and the entrypoint of now in it."""
    dockerfile = SOURCE / "docker/Dockerfile"
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    parts = repr((dockerfile.read_text(), project["dependencies"], RECIPE))
    stamp = hashlib.sha256(parts.encode()).hexdigest()[:16]
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build = _Build(cache, cache / f"image-{stamp}")
        for instruction, rest in instructions(dockerfile.read_text()):
            build.obey(instruction, rest)
        return build.finish()


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile, each with the rest of its line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            instruction, _, rest = line.partition(" ")
            yield instruction, rest.strip()


class _Build:
    """Stage after stage; where the root is there already, only what is told of it is read."""

    def __init__(self, cache: Path, root: Path) -> None:
        self._cache, self._root = cache, root
        self._is_made = root.exists()
        self._stages: dict[str, Path] = {}
        self._image = Image(root)
        self._stage = root
        self._folder = "/"

    def obey(self, instruction: str, rest: str) -> None:
        match instruction:
            case "FROM":
                self._from(*rest.split(" AS "))
            case "RUN":
                self._run(rest)
            case "WORKDIR":
                self._folder = rest
            case "COPY":
                self._copy(shlex.split(rest))
            case "ENV":
                self._image.environment |= dict(each.split("=", 1) for each in shlex.split(rest))
            case "USER" | "VOLUME" | "EXPOSE" | "STOPSIGNAL" | "HEALTHCHECK" | "ENTRYPOINT" | "CMD":
                self._image.settings[instruction] = rest
            case _:
                raise AssertionError(f"{instruction}: not known here")

    def finish(self) -> Image:
        """Put the last stage in its place, and lay the package of now over it."""
        if not self._is_made:
            self._stage.rename(self._root)
        for stage in self._stages.values():
            shutil.rmtree(stage, ignore_errors=True)
        (package,) = self._root.glob("opt/tunnelwrap/lib/python3*/site-packages/tunnelwrap")
        shutil.rmtree(package)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SOURCE / "tunnelwrap", package, ignore=ignored)
        return self._image

    def _from(self, base: str, name: str = "") -> None:
        self._image.environment, self._image.settings, self._folder = {}, {}, "/"
        self._image.environment["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin"
        if self._is_made:
            return
        found = re.fullmatch(r"debian:(\d+)[.\d]*-slim", base)
        assert found is not None, f"{base}: not a base that can be made here"
        plain = _plain_root(self._cache, SUITES[found[1]])
        self._stage = self._cache / f"making-{name or 'last'}"
        shutil.rmtree(self._stage, ignore_errors=True)
        subprocess.run(["cp", "-a", plain, self._stage], check=True)
        if name:
            self._stages[name] = self._stage

    def _run(self, script: str) -> None:
        if self._is_made:
            return
        variables = [f"{name}={value}" for name, value in self._image.environment.items()]
        certificates = os.environ.get("PIP_CERT", "")
        clean = ["env", "-i", f"CA={certificates}", "HOME=/root", *variables]
        inside = ["sh", "-c", f"mkdir -p {self._folder}; cd {self._folder}; {script}"]
        done = subprocess.run(
            ["unshare", "--mount", *clean, "sh", "-c", _BUILD, str(self._stage), *inside],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"RUN {script}\n{done.stdout[-3000:]}"

    def _copy(self, words: list[str]) -> None:
        options = dict(each[2:].split("=") for each in words if each.startswith("--"))
        *names, place = [each for each in words if not each.startswith("--")]
        source = self._stages.get(options["from"], Path()) if "from" in options else SOURCE
        is_ours = "from" not in options
        if self._is_made and not (is_ours and "chmod" in options):
            return  # but the entrypoint is always that of now
        root = self._root if self._is_made else self._stage
        target = root / (Path(self._folder) / place).relative_to("/")
        for name in names:
            self._lay(source / name.lstrip("/"), target, is_folder=place.endswith("/"))
        if "chmod" in options:
            target.chmod(int(options["chmod"], 8))

    def _lay(self, source: Path, target: Path, *, is_folder: bool) -> None:
        target = target / source.name if is_folder else target
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)


def _cache() -> Path:
    own = os.environ.get("TUNNELWRAP_IMAGE")
    if own is not None:
        return Path(own).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tunnelwrap/image"


def _plain_root(cache: Path, suite: str) -> Path:
    """A minimal Debian, as debootstrap makes it."""
    root, making = cache / suite, cache / f"making-{suite}"
    if not root.exists():
        shutil.rmtree(making, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", suite, str(making), debian_mirror()]
        with _told(cache / "debootstrap.log") as log:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        making.rename(root)
    return root


@contextmanager
def _told(path: Path) -> Iterator[int]:
    """A log that is shown where it led to no good end."""
    with path.open("wb") as log:
        try:
            yield log.fileno()
        except subprocess.CalledProcessError as error:
            raise AssertionError(f"{error}\n{path.read_text()[-3000:]}") from None
