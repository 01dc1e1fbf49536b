"""The two implementations behind one face, so that a scenario reads the same in both roles.

A ``Settings`` says what one end is to do; ``StrongSwanSide`` and ``TunnelwrapSide`` write it in
their own configuration language, start the daemon, and answer a few questions about it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from tests.interop.lan import INNER_NETWORK, POOL, RESPONDER, Lan
from tests.interop.settings import Proof, Role, Settings
from tests.interop.tunnelwrap_toml import client_toml, gateway_toml
from tests.kit.strongswan import StrongSwan, Tree, initiator, responder, wait_until
from tests.kit.trixie import Trixie

READY_S = 15.0
CONNECT_S = 30.0


class Side(Protocol):
    """One end, whichever daemon it is."""

    @property
    def log(self) -> str:
        """All that the daemon has logged so far."""

    def start(self, settings: Settings) -> None:
        """Start the daemon; a responder is ready for its peer then."""

    def connect(self) -> bool:
        """As initiator: bring the tunnel up; whether it is."""

    def has_tunnel(self) -> bool:
        """Whether an IKE SA with a Child SA is established."""

    def disconnect(self) -> None:
        """Delete the IKE SA."""

    def stop(self) -> None:
        """End the daemon."""

    def kill(self) -> None:
        """End it without a word to its peer."""


class StrongSwanSide:
    """strongSwan as one end; ``peer`` is its connection, ``net`` its Child SA."""

    def __init__(self, lan: Lan, role: Role, directory: Path, root: Trixie | None = None) -> None:
        own = directory / f"strongswan-{role.value}"
        self.daemon = StrongSwan(getattr(lan, role.value), own, root=root)
        self._role = role

    @property
    def log(self) -> str:
        return self.daemon.log

    def start(self, settings: Settings) -> None:
        wishes = {
            "fragment_size": settings.fragment_size,
            "cookie_threshold": settings.cookie_threshold,
        }
        own = {key: str(value) for key, value in wishes.items() if value}
        self.daemon.settings = {**settings.strongswan.charon, **own}
        self.daemon.levels = settings.strongswan.levels
        self.daemon.start()
        sides, secrets = self._proof(settings.proof)
        child = dict(settings.strongswan.child)
        if settings.rekey_child_s is not None:
            child |= {"rekey_time": f"{settings.rekey_child_s}s", "life_time": "60s"}
            child["rand_time"] = "0s"
        # By so much earlier than AUTH_LIFETIME says does it authenticate again.
        more = {"over_time": "1s", **settings.strongswan.connection}
        if settings.rekey_ike_s is not None:
            more |= {"rekey_time": f"{settings.rekey_ike_s}s", "over_time": "60s"}
            more["rand_time"] = "0s"
        if settings.reauth_s is not None:
            more |= {"reauth_time": f"{settings.reauth_s}s", "over_time": "30s"}
            more["rand_time"] = "0s"
        if settings.childless is not None:
            more["childless"] = {"accept": "allow", "require": "force"}[settings.childless]
        if self._role is Role.INITIATOR:
            tree = initiator(
                sides,
                peer=RESPONDER,
                network=INNER_NETWORK,
                ike=settings.ike,
                esp=settings.esp,
                more=more,
                child=child,
            )
        else:
            tree = responder(
                sides,
                address=RESPONDER,
                pool=POOL,
                network=INNER_NETWORK,
                ike=settings.ike,
                esp=settings.esp,
                more=more,
                child=child,
            )
        self.daemon.load({**tree, "secrets": {**settings.strongswan.secrets, **secrets}})

    def connect(self) -> bool:
        return self.daemon.initiate("net").returncode == 0

    def has_tunnel(self) -> bool:
        sas = self.daemon.sas()
        return "ESTABLISHED" in sas and "INSTALLED" in sas

    def disconnect(self) -> None:
        self.daemon.delete_ike("peer")

    def stop(self) -> None:
        self.daemon.stop()

    def kill(self) -> None:
        self.daemon.kill()

    def _proof(self, proof: Proof) -> tuple[tuple[Tree, Tree], Tree]:
        # In quotes, because # begins a comment.
        local: dict[str, str | Tree] = {"id": f'"{proof.local_id}"'}
        remote: dict[str, str | Tree] = {"id": f'"{proof.peer_id}"'}
        if proof.authority is not None:
            self.daemon.add_authority("authority", proof.authority.pem)
        if proof.certificate is not None:
            local["auth"] = "pubkey"
            local["certs"] = self.daemon.add_certificate("own", proof.certificate.pem)
            self.daemon.add_key("own", proof.certificate.key_pem)
            for number, each in enumerate(proof.certificate.intermediates):
                self.daemon.add_authority(f"intermediate-{number}", each.pem)
        else:
            local["auth"] = "psk"
        remote["auth"] = "psk" if proof.authority is None else "pubkey"
        secret: Tree = {"secret": f'"{proof.psk}"'}
        return (local, remote), {"ike-1": secret} if proof.psk else {}


class TunnelwrapSide:
    """tunnelwrap as one end: ``connect`` over one carrier only, or ``serve``."""

    def __init__(self, lan: Lan, role: Role, directory: Path, *, carrier: str = "udp") -> None:
        self._carrier = carrier
        self._prefix = ["ip", "netns", "exec", getattr(lan, role.value)]
        self._prefix += [sys.executable, "-m", "tunnelwrap"]
        self._role = role
        self._directory = directory / f"tunnelwrap-{role.value}"
        self._directory.mkdir()
        self._file = self._directory / "tunnelwrap.toml"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return "".join(
            file.read_text(errors="replace") for file in (self._log, self._events) if file.exists()
        )

    def start(self, settings: Settings) -> None:
        self._file.touch(0o600)
        if self._role is Role.INITIATOR:
            self._file.write_text(client_toml(settings, self._directory))
            return
        self._file.write_text(gateway_toml(settings, self._directory))
        self._run("serve", str(self._file))
        wait_until(lambda: self._has_said("ready"), READY_S, "the gateway is ready", self._evidence)

    def connect(self) -> bool:
        self._run("connect", str(self._file), "--carrier", self._carrier, "--json")
        wait_until(
            lambda: self._has_said('"established"') or not self._is_alive(),
            CONNECT_S,
            "established, or given up",
            self._evidence,
        )
        return self._has_said('"established"') and not self._has_said('"closed"')

    def has_tunnel(self) -> bool:
        done = self._command("status", "--json", str(self._file))
        return done.returncode == 0 and "INSTALLED" in done.stdout

    def counters(self) -> dict[str, int]:
        """What it has counted so far, by cause."""
        done = self._command("status", "--json", str(self._file))
        counted: dict[str, int] = json.loads(done.stdout)["counters"]
        return counted

    def disconnect(self) -> None:
        done = self._command("disconnect", str(self._file))
        assert done.returncode == 0, done.stdout + done.stderr

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            finally:
                self._process.kill()
            self._process = None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    @property
    def _log(self) -> Path:
        return self._directory / "log"

    @property
    def _events(self) -> Path:
        return self._directory / "events"

    def _run(self, *arguments: str) -> None:
        with self._log.open("wb") as log, self._events.open("wb") as events:
            self._process = subprocess.Popen(
                [*self._prefix, *arguments], stdin=subprocess.DEVNULL, stdout=events, stderr=log
            )

    def _command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._prefix, *arguments], capture_output=True, text=True, check=False, timeout=30
        )

    def _is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _has_said(self, text: str) -> bool:
        return text in self.log

    def _evidence(self) -> str:
        return self.log
