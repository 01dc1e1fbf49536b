"""A checked configuration into the settings that the core obeys."""

import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.unit.config.writing import (
    CERTIFIED_CLIENT,
    CLIENT,
    GATEWAY,
    SECRET,
    WHEN,
    changed,
    write_credentials,
    written,
)
from tunnelwrap.auth.identity import NOBODY, Identity, IdentityPattern
from tunnelwrap.config.compose import connection_policies, limits
from tunnelwrap.config.load import load, load_gateway
from tunnelwrap.config.selectors import parse_selector
from tunnelwrap.config.suites import DEFAULT_ESP, DEFAULT_IKE, parse_ah, parse_esp, parse_ike
from tunnelwrap.crypto.secret import Secret
from tunnelwrap.errors import ConfigError
from tunnelwrap.ike.child_sa import Mode
from tunnelwrap.ike.policy import (
    CertificateCredential,
    Childless,
    ChildLifetime,
    ConnectionPolicy,
    Limits,
    LocalAuthentication,
    NoCredential,
    Ppk,
    Retransmission,
    Unique,
)

EVERYTHING = (parse_selector("0.0.0.0/0"), parse_selector("::/0"))


def policies_of(directory: Path, text: str) -> tuple[ConnectionPolicy, ...]:
    return connection_policies(load(written(directory, text), WHEN))


def test_a_client_by_default(tmp_path: Path) -> None:
    (policy,) = policies_of(tmp_path, CLIENT)

    assert policy.name == policy.child.name == "vpn.example.org"
    assert policy.proposals == tuple(parse_ike(text) for text in DEFAULT_IKE)
    assert (policy.requests_ipv4, policy.requests_ipv6, policy.pool) == (True, True, None)
    assert policy.local.identity == Identity.parse("alice@example.org")
    assert policy.local.credential == Secret(SECRET.encode())
    assert policy.peer.identity == IdentityPattern.parse("vpn.example.org")
    assert (policy.peer.psk, policy.peer.trust) == (Secret(SECRET.encode()), None)
    child = policy.child
    assert child.proposals == tuple(parse_esp(text) for text in DEFAULT_ESP)
    assert (child.ts_local, child.ts_peer) == ((), EVERYTHING)
    assert child.mode is Mode.TUNNEL


def test_a_ppk(tmp_path: Path) -> None:
    (tmp_path / "ppk").write_text(f"{SECRET}\n")
    lines = "ppk_id = 'office-1'\nppk_file = 'ppk'\nppk_required = true"
    text = changed(CLIENT, "[connection]", f"[connection]\n{lines}")
    (policy,) = policies_of(tmp_path, text)

    assert policy.ppk == Ppk(b"office-1", Secret(SECRET.encode()), is_required=True)


def test_defaults_are_those_of_the_core(tmp_path: Path) -> None:
    (policy,) = policies_of(tmp_path, CLIENT)
    bare = ConnectionPolicy(policy.name, policy.proposals, policy.local, policy.peer, policy.child)

    assert policy.child.lifetime == ChildLifetime()
    assert policy.retransmission == Retransmission()
    assert (policy.rekey_s, policy.hard_s) == (bare.rekey_s, bare.hard_s)
    assert policy.liveness_s == bare.liveness_s
    assert policy.fragment_size == bare.fragment_size
    assert policy.child.replay_window == 1024
    assert limits(load_gateway(written(tmp_path, GATEWAY)).gateway) == Limits()


def test_a_gateway_has_a_policy_for_each_connection_in_order(tmp_path: Path) -> None:
    pools = "[pools.guests]\nnetworks = ['10.1.0.0/16']\n"
    first = GATEWAY.partition("[connections")[2]
    second = f"[connections{first}".replace("office", "guests")
    second = changed(second, "[connections.guests]\n", "[connections.guests]\npool = 'guests'\n")

    office, guests = policies_of(tmp_path, pools + GATEWAY + second)

    assert (office.name, office.pool) == ("office", None)
    assert (guests.name, guests.pool) == ("guests", "guests")
    assert not office.requests_ipv4
    assert (office.child.ts_local, office.child.ts_peer) == (EVERYTHING, ())
    assert office.peer.identity == IdentityPattern.parse("%any")


def test_certificates(tmp_path: Path) -> None:
    write_credentials(tmp_path)

    (policy,) = policies_of(tmp_path, CERTIFIED_CLIENT)

    credential = policy.local.credential
    assert isinstance(credential, CertificateCredential)
    assert policy.peer.psk is None
    assert policy.peer.trust is not None
    end_entity = policy.peer.trust.validate(credential.chain, WHEN)
    assert end_entity.public_bytes(Encoding.DER) == credential.chain[0]
    assert end_entity.public_key() == credential.key.public_key()


def test_a_certificate_beside_a_psk_proves_us_and_either_proves_the_peer(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    text = changed(
        CERTIFIED_CLIENT,
        "[connection.local]",
        f'[connection]\npsk = "{SECRET}"\n[connection.local]',
    )

    (policy,) = policies_of(tmp_path, text)

    assert isinstance(policy.local.credential, CertificateCredential)
    assert policy.peer.psk == Secret(SECRET.encode())
    assert policy.peer.trust is not None


def test_what_is_written_is_obeyed(tmp_path: Path) -> None:
    text = changed(
        CLIENT,
        "[connection]\n",
        """[connection]
ike = ["aes256-sha256-modp2048"]
rekey_s = 100
hard_s = 200
liveness_s = 5.5
reauth_s = 900
unique = "keep"
childless = "require"
requests_ipv6 = false
""",
    )
    text += """
[connection.retransmission]
timeout_s = 0.25
factor = 2
tries = 3
reliable_timeout_s = 10

[connection.child]
esp = ["aes128gcm16"]
mode = "transport"
local_ts = ["10.1.0.0/16"]
peer_ts = ["10.2.0.0/16", "10.3.0.1[tcp/443]"]
rekey_s = 10
hard_s = 20
rekey_octets = 1000
hard_octets = 2000
rekey_packets = 30
hard_packets = 40
replay_window_packets = 64
ipcomp = true
"""

    (policy,) = policies_of(tmp_path, text)

    assert policy.proposals == (parse_ike("aes256-sha256-modp2048"),)
    assert (policy.rekey_s, policy.hard_s, policy.liveness_s) == (100, 200, 5.5)
    assert (policy.reauth_s, policy.unique) == (900, Unique.KEEP)
    assert policy.childless is Childless.REQUIRE
    assert (policy.requests_ipv4, policy.requests_ipv6) == (True, False)
    assert policy.retransmission == Retransmission(0.25, 2, 3, 10)
    child = policy.child
    assert child.proposals == (parse_esp("aes128gcm16"),)
    assert child.mode is Mode.TRANSPORT
    assert child.ts_local == (parse_selector("10.1.0.0/16"),)
    assert child.ts_peer == (parse_selector("10.2.0.0/16"), parse_selector("10.3.0.1[tcp/443]"))
    assert child.lifetime == ChildLifetime(10, 20, 1000, 2000, 30, 40)
    assert (child.replay_window, child.ipcomp) == (64, True)


def test_a_child_sa_on_demand(tmp_path: Path) -> None:
    (policy,) = policies_of(tmp_path, CLIENT)
    assert (policy.child.on_demand, policy.child.idle_s) == (False, None)

    child = '\n[connection.child]\nstart = "on-demand"\nidle_s = 60'
    (policy,) = policies_of(tmp_path, CLIENT + child)
    assert (policy.child.on_demand, policy.child.idle_s) == (True, 60.0)


def test_a_gateway_ends_what_is_idle(tmp_path: Path) -> None:
    text = GATEWAY + "\n[connections.office.child]\nidle_s = 60"
    policy = policies_of(tmp_path, text)[0]

    assert (policy.child.on_demand, policy.child.idle_s) == (False, 60.0)


@pytest.mark.parametrize(
    ("keys", "child", "problem"),
    [
        ("", "peer_ts = ['10.2.0.1']", "requests_ipv4 or requests_ipv6 = false"),
        ("requests_ipv6 = false", "", "connection.child.peer_ts of one address"),
        ("requests_ipv6 = false", "peer_ts = ['10.2.0.0/31']", "child.peer_ts of one address"),
        ("", "peer_ts = ['10.2.0.1']\nlocal_ts = ['10.1.0.0/24']", "child.local_ts of one address"),
        ("", "peer_ts = ['10.2.0.1', '10.2.0.2']", "child.peer_ts of one address"),
        ("requests_ipv6 = false", "peer_ts = ['10.2.0.1/32']", None),
        ("requests_ipv6 = false", "peer_ts = ['10.2.0.1[tcp/80]', '10.2.0.1[udp]']", None),
        ("requests_ipv4 = false", "peer_ts = 'dynamic'", None),
        ("", "peer_ts = ['10.2.0.1']\nlocal_ts = ['10.1.0.1']", None),
    ],
)
def test_beet_mode_is_between_two_addresses(
    tmp_path: Path, keys: str, child: str, problem: str | None
) -> None:
    text = changed(CLIENT, "[client]\n", '[client]\ncarriers = ["udp"]\n')
    text = changed(text, "[connection]\n", f"[connection]\n{keys}\n")
    text += f'\n[connection.child]\nmode = "beet"\n{child}\n'

    if problem is not None:
        with pytest.raises(ConfigError, match=re.escape(problem)):
            policies_of(tmp_path, text)
        return
    (policy,) = policies_of(tmp_path, text)
    assert policy.child.mode is Mode.BEET


def test_ah_takes_the_place_of_esp(tmp_path: Path) -> None:
    text = changed(CLIENT, "[connection]\n", '[connection]\nchild = {ah = ["sha256-x25519"]}\n')
    text = changed(text, "[client]\n", '[client]\ncarriers = ["udp"]\n')

    (policy,) = policies_of(tmp_path, text)

    assert policy.child.proposals == (parse_ah("sha256-x25519"),)


def test_zero_is_never(tmp_path: Path) -> None:
    text = changed(CLIENT, "[connection]\n", "[connection]\nrekey_s = 0\nliveness_s = 0\n")
    text += "[connection.child]\nrekey_s = 0\n"

    (policy,) = policies_of(tmp_path, text)

    assert (policy.rekey_s, policy.hard_s, policy.liveness_s) == (None, None, None)
    assert policy.child.lifetime == ChildLifetime(None, None)


def test_limits(tmp_path: Path) -> None:
    keys = "half_open = 7\nhalf_open_s = 2.5\nchild_sas = 4\n"
    keys += "half_open_per_address = 3\ncookie_threshold = 0"
    text = changed(GATEWAY, "tls_ports = []", f"tls_ports = []\n{keys}")

    expected = Limits(7, 2.5, 4, half_open_per_address=3, cookie_threshold=0)
    assert limits(load_gateway(written(tmp_path, text)).gateway) == expected


def test_fragments(tmp_path: Path) -> None:
    (policy,) = policies_of(
        tmp_path, changed(CLIENT, "[connection]\n", "[connection]\nfragment_size = 400\n")
    )

    assert policy.fragment_size == 400


def test_nobody_proves_nothing_and_may_be_let_in(tmp_path: Path) -> None:
    text = changed(CLIENT, 'id = "alice@example.org"', 'id = "%null"')

    (policy,) = policies_of(tmp_path, text)

    assert policy.local == LocalAuthentication(NOBODY, NoCredential())
    assert not policy.peer.accepts_null


def test_a_gateway_lets_nobody_in_where_it_says_so(tmp_path: Path) -> None:
    text = changed(GATEWAY, 'id = "%any"', 'id = "*@example.org"\nnull_authentication = true')

    (policy,) = policies_of(tmp_path, text)

    assert policy.peer.accepts_null
