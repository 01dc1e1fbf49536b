"""IKE_SA_INIT and IKE_AUTH with strongSwan where they take more than two round trips of one packet.

Cookies, another key exchange, and certificates that need IKE fragments; in both roles.
"""

import subprocess
import sys
from dataclasses import replace

import pytest

from tests.flows.scripted import ScriptedInitiator
from tests.interop.lan import RESPONDER, Lan, ping
from tests.interop.pair import Pair, psk_proofs
from tests.interop.settings import CLIENT, GATEWAY, Proof, Settings
from tests.kit.certs import Entity, authority, entity
from tests.kit.policies import client, gateway

pytestmark = [pytest.mark.root, pytest.mark.interop]

COOKIE = r"(generating|parsed) IKE_SA_INIT response 0 \[ N\(COOKIE\) \]"
WITH_COOKIE = r"(generating|parsed) IKE_SA_INIT request 0 \[ N\(COOKIE\) SA KE No "
INVALID_KE = r"(generating|parsed) IKE_SA_INIT response 0 \[ N\(INVAL_KE\) \]"
FRAGMENT = r"{} IKE_AUTH {} 1 \[ EF\((\d+)/(\d+)\) \]"
FRAGMENT_SIZE = 400
DEPTH = 3

_KNOCK = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(5)
    sock.sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 500))
    sock.recv(65535)
"""


def leave_one_half_open(lan: Lan, ike: str) -> None:
    """strongSwan asks for cookies only while some IKE SA is half open."""
    _, request = ScriptedInitiator(client(ike), gateway(ike)).init_request()
    command = ["ip", "netns", "exec", lan.initiator, sys.executable, "-c", _KNOCK, RESPONDER]
    subprocess.run([*command, request.hex()], check=True, timeout=20)


def chain(name: str, number: int, root: Entity) -> Entity:
    """A certificate under three intermediates with large keys."""
    issuer = root
    for level in range(DEPTH):
        subject = f"C=CH, O=Interop, CN=Intermediate {level} of {name}"
        issuer = authority(subject, "rsa4096", number=level, issuer=issuer)
    return entity(f"CN={name}", issuer, kind="rsa", number=number, sans=[name])


def deep_proofs() -> tuple[Proof, Proof]:
    root = authority("C=CH, O=Interop, CN=Interop Root", "rsa")
    ours, theirs = chain(CLIENT, 1, root), chain(GATEWAY, 2, root)
    return (
        Proof(CLIENT, GATEWAY, certificate=ours, authority=root),
        Proof(GATEWAY, CLIENT, certificate=theirs, authority=root),
    )


def with_cookies(pair: Pair, settings: Settings) -> Settings:
    """The responder's settings that make it ask everyone for a cookie."""
    return replace(settings, cookie_threshold=1 if pair.tunnelwrap_initiates else 0)


def start(pair: Pair, initiator: Settings, responder: Settings) -> None:
    pair.responder.start(responder)
    if pair.tunnelwrap_initiates and responder.cookie_threshold is not None:
        leave_one_half_open(pair.lan, responder.ike)
    pair.initiator.start(initiator)
    assert pair.initiator.connect(), pair.tunnelwrap.log + pair.strongswan.log[-4000:]


def test_cookies(pair: Pair) -> None:
    initiator, responder = (Settings(proof) for proof in psk_proofs())

    start(pair, initiator, with_cookies(pair, responder))

    assert ping(pair.lan)
    assert len(pair.strongswan.logged(COOKIE)) == 1
    assert len(pair.strongswan.logged(WITH_COOKIE)) == 1


@pytest.mark.parametrize("asks", ["no-cookies", "cookies"])
def test_another_key_exchange(pair: Pair, asks: str) -> None:
    """RFC 7296 §2.6.1: with cookies too it takes one further round trip and no second cookie."""
    initiator, responder = (Settings(proof) for proof in psk_proofs())
    initiator = replace(initiator, ike="aes256gcm16-prfsha256-x25519-ecp384")
    responder = replace(responder, ike="aes256gcm16-prfsha256-ecp384")

    start(pair, initiator, with_cookies(pair, responder) if asks == "cookies" else responder)

    assert ping(pair.lan)
    assert len(pair.strongswan.logged(INVALID_KE)) == 1
    assert len(pair.strongswan.logged(COOKIE)) == (1 if asks == "cookies" else 0)
    assert "ECP_384" in pair.strongswan.sas()


def test_fragments(pair: Pair) -> None:
    settings = [Settings(proof, fragment_size=FRAGMENT_SIZE) for proof in deep_proofs()]

    start(pair, *settings)

    assert ping(pair.lan)
    theirs, ours = ("response", "request") if pair.tunnelwrap_initiates else ("request", "response")
    for verb, kind in (("parsed", ours), ("generating", theirs)):
        places = pair.strongswan.logged(FRAGMENT.format(verb, kind))
        assert len(places) >= 10, pair.strongswan.log
    assert not pair.strongswan.logged(r"retransmit \d+ of request")
