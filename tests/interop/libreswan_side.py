"""libreswan behind the face of ``tests.interop.sides``."""

import re
import subprocess
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from tests.interop.lan import INITIATOR, INNER_HOST, INNER_NETWORK, RESPONDER, Lan
from tests.interop.settings import Proof, Role, Settings
from tests.kit.libreswan import Libreswan
from tests.kit.trixie import Trixie

POOL_RANGE = "10.71.0.1-10.71.0.254"

_WORDS = {
    "aes128gcm16": "aes_gcm128",
    "aes256gcm16": "aes_gcm256",
    "chacha20poly1305": "chacha20_poly1305",
    "prfsha256": "sha2_256",
    "prfsha384": "sha2_384",
    "sha256": "sha2_256",
    "sha384": "sha2_384",
    "modp2048": "dh14",
    "modp3072": "dh15",
    "ecp256": "dh19",
    "ecp384": "dh20",
    "x25519": "dh31",
}
"""strongSwan's words for algorithms in libreswan's, where they differ."""


class LibreswanSide:
    """libreswan as one end, over UDP; its host is a guest on the wire, not the namespace."""

    def __init__(self, lan: Lan, role: Role, directory: Path, root: Trixie) -> None:
        self._namespace: str = getattr(lan, role.value)
        self._role = role
        self.daemon = Libreswan(
            root, self._namespace, "wire", directory / f"libreswan-{role.value}"
        )

    @property
    def log(self) -> str:
        return self.daemon.log

    def start(self, settings: Settings) -> None:
        # The guest has the addresses from now on.
        subprocess.run(["ip", "-n", self._namespace, "addr", "flush", "dev", "wire"], check=True)
        initiates = self._role is Role.INITIATOR
        local, peer = (INITIATOR, RESPONDER) if initiates else (RESPONDER, INITIATOR)
        network = f"ip addr add {local}/24 dev vec0; ip link set vec0 up\n"
        network += f"ip route add default via {peer}\n"
        if not initiates:
            network += f"ip addr add {INNER_HOST}/24 dev lo\n"
        proof = self._proof(settings.proof)
        self.daemon.start(network, secrets=_secrets(settings.proof))
        self.daemon.load(
            "peer",
            {
                "left": local,
                "right": peer,
                **proof,
                "ike": _ike(settings.ike),
                "esp": _esp(settings.esp),
                "encapsulation": "yes",
                "mobike": "no",
                **(_ASKS if initiates else _GIVES),
                **_rekey(settings),
                **settings.libreswan,
            },
        )

    def connect(self) -> bool:
        done = self.daemon.whack("--initiate --name peer")
        return done.returncode == 0 and "established Child SA" in done.stdout

    def has_tunnel(self) -> bool:
        return (
            re.search('"peer".*type=ESP', self.daemon.whack("--trafficstatus").stdout) is not None
        )

    def disconnect(self) -> None:
        self.daemon.whack("--terminate --name peer")

    def ping(self, count: int = 3) -> bool:
        """Whether the inner host answers every one of a few pings from here."""
        done = self.daemon.guest.run(f"ping -n -q -i 0.05 -W 2 -c {count} {INNER_HOST}")
        return done.returncode == 0

    def stop(self) -> None:
        self.daemon.stop()

    def kill(self) -> None:
        self.daemon.stop()

    def _proof(self, proof: Proof) -> dict[str, str]:
        options = {"leftid": f"@{proof.local_id}", "rightid": f"@{proof.peer_id}"}
        if proof.authority is not None:
            self.daemon.add_authority("authority", proof.authority.pem)
        if proof.certificate is None:
            return {**options, "authby": "secret"}
        self.daemon.add_certificate("own", proof.certificate.pem, proof.certificate.key_pem)
        # Left alone it prefers RSA, also with a key that is none.
        method = "ecdsa" if isinstance(proof.certificate.key, EllipticCurvePrivateKey) else "rsa"
        return {**options, "authby": method, "leftcert": "own", "leftsendcert": "always"}


_ASKS = {
    "leftsubnet": "0.0.0.0/0",
    "rightsubnet": INNER_NETWORK,
    "leftmodecfgclient": "yes",
    "rightmodecfgserver": "yes",
    "narrowing": "yes",
}
"""An initiator that asks for an address and reaches the responder's inner network."""

_GIVES = {
    "leftsubnet": INNER_NETWORK,
    "rightaddresspool": POOL_RANGE,
    "leftmodecfgserver": "yes",
    "rightmodecfgclient": "yes",
}
"""A responder that gives addresses and opens its inner network."""


def _secrets(proof: Proof) -> str:
    if proof.psk is None:
        return ""
    return f'@{proof.local_id} @{proof.peer_id} : PSK "{proof.psk}"\n'


def _rekey(settings: Settings) -> dict[str, str]:
    """Rekey times; libreswan counts back from the lifetime by ``rekeymargin``."""
    options: dict[str, str] = {}
    if settings.rekey_ike_s is not None:
        options["ikelifetime"] = f"{settings.rekey_ike_s + 5}s"
    if settings.rekey_child_s is not None:
        options["salifetime"] = f"{settings.rekey_child_s + 5}s"
    return {**options, "rekeymargin": "5s", "rekeyfuzz": "0%"} if options else {}


def _ike(suite: str) -> str:
    return "-".join(_WORDS.get(word, word) for word in suite.split("-"))


def _esp(suite: str) -> str:
    words = [_WORDS.get(word, word) for word in suite.split("-")]
    groups = [word for word in words if word.startswith("dh")]
    return ";".join(["-".join(word for word in words if word not in groups), *groups])
