"""Files into configurations, and mistakes into lines that say what to do about them."""

from contextlib import suppress
from pathlib import Path

import pytest

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
from tunnelwrap.config.client import ClientFile
from tunnelwrap.config.effective import effective
from tunnelwrap.config.load import control_socket, load, load_client, load_gateway
from tunnelwrap.config.model import GatewayFile
from tunnelwrap.errors import ConfigError
from tunnelwrap.path import Carrier


def problems_of(path: Path) -> list[str]:
    """What is said about a file that is wrong, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        load(path, WHEN)
    assert all(line.startswith(f"{path}: ") for line in caught.value.problems)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems]


# --- what is right ---------------------------------------------------------------------------


def test_the_tables_tell_the_role(tmp_path: Path) -> None:
    gateway, client = written(tmp_path, GATEWAY, "g.toml"), written(tmp_path, CLIENT, "c.toml")

    assert isinstance(load(gateway), GatewayFile)
    assert load_gateway(gateway).gateway.name == "vpn.example.org"
    assert isinstance(load(client), ClientFile)
    assert load_client(client).client.carriers == (Carrier.UDP, Carrier.TCP, Carrier.TLS)


@pytest.mark.parametrize(("mode", "is_told"), [(0o644, True), (0o640, False), (0o600, False)])
def test_secrets_that_every_user_can_read_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, *, is_told: bool
) -> None:
    file = written(tmp_path, CLIENT)
    file.chmod(mode)
    load(file)
    assert [record.getMessage() for record in caplog.records] == (
        [f"{file} has secrets in it, and every user can read it: chmod 600 it"] if is_told else []
    )


def test_a_file_without_secrets_may_be_read_by_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_credentials(tmp_path)
    file = written(tmp_path, CERTIFIED_CLIENT)
    file.chmod(0o644)
    load(file, WHEN)
    assert caplog.records == []


def test_the_other_role_is_refused(tmp_path: Path) -> None:
    gateway, client = written(tmp_path, GATEWAY, "g.toml"), written(tmp_path, CLIENT, "c.toml")

    with pytest.raises(
        ConfigError, match=r"g\.toml: found a table \[gateway\], expected a table \[c"
    ):
        load_client(gateway)
    with pytest.raises(
        ConfigError, match=r"c\.toml: found a table \[client\], expected a table \[g"
    ):
        load_gateway(client)


@pytest.mark.parametrize(
    ("environment", "socket", "state"),
    [
        ({}, "/run/tunnelwrap/home.sock", "/var/lib/tunnelwrap/home"),
        (
            {"RUNTIME_DIRECTORY": "/run/elsewhere", "STATE_DIRECTORY": "/srv/state"},
            "/run/elsewhere/home.sock",
            "/srv/state/home",
        ),
    ],
)
def test_places_follow_the_name_of_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    socket: str,
    state: str,
) -> None:
    for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    client = load_client(written(tmp_path, CLIENT, "home.toml")).client

    assert (client.control_socket, client.state_directory) == (Path(socket), Path(state))


def test_places_may_be_chosen_beside_the_file(tmp_path: Path) -> None:
    text = changed(CLIENT, "[client]", '[client]\ncontrol_socket = "c.sock"')

    assert load_client(written(tmp_path, text)).client.control_socket == tmp_path / "c.sock"


@pytest.mark.parametrize(
    ("rekey", "hard"),
    [("", 17280), ("rekey_s = 3\n", 63), ("rekey_s = 1000\n", 1200), ("rekey_s = 0\n", 0)],
)
def test_an_sa_ends_some_time_after_its_rekey(tmp_path: Path, rekey: str, hard: float) -> None:
    text = changed(CLIENT, "[connection]\n", f"[connection]\n{rekey}")

    assert load_client(written(tmp_path, text)).connection.hard_s == hard


@pytest.mark.parametrize("value", ['"dynamic"', '["dynamic"]', "[]"])
def test_selectors_may_be_dynamic(tmp_path: Path, value: str) -> None:
    text = f"{CLIENT}[connection.child]\npeer_ts = {value}\n"

    assert load_client(written(tmp_path, text)).connection.child.peer_ts == ()


@pytest.mark.parametrize(
    "host",
    [
        "vpn",
        "vpn.example.org",
        "vpn.example.org.",
        "192.0.2.1",
        "2001:db8::1",
        "xn--bcher-kva.example",
    ],
)
def test_hosts(tmp_path: Path, host: str) -> None:
    text = changed(CLIENT, 'gateway = "vpn.example.org"', f'gateway = "{host}"')

    assert load_client(written(tmp_path, text)).client.gateway == host


def test_a_number_need_not_have_a_point(tmp_path: Path) -> None:
    text = changed(CLIENT, "[connection]\n", "[connection]\nliveness_s = 7\n")

    assert load_client(written(tmp_path, text)).connection.liveness_s == 7.0


def test_the_control_socket_is_found_whatever_else_is_wrong(tmp_path: Path) -> None:
    wrong = changed(CLIENT, 'gateway = "vpn.example.org"', "gateway = 3")
    placed = changed(wrong, "[client]", "[client]\ncontrol_socket = 'c.sock'")

    by_default = load_client(written(tmp_path, CLIENT)).client.control_socket
    assert control_socket(written(tmp_path, wrong)) == by_default
    assert control_socket(written(tmp_path, placed)) == tmp_path / "c.sock"


@pytest.mark.parametrize("text", ["", "client = 3", "[client]\ncontrol_socket = 3"])
def test_a_file_without_a_control_socket(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"tunnelwrap\.toml: .*expected a "):
        control_socket(written(tmp_path, text))


# --- what is wrong with a file ---------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "none.toml") == [
        "No such file or directory, expected a configuration file"
    ]


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    path = written(tmp_path, f"[client]\npsk = {SECRET}\n")

    (line,) = problems_of(path)
    assert "line 2" in line
    assert line.endswith("expected TOML")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"# \xff\n")

    assert problems_of(path) == ["octet 2 is not UTF-8, expected TOML"]


@pytest.mark.parametrize(
    ("text", "found"), [("", "none of them"), ("[client]\n[gateway]\n", "[gateway] and [client]")]
)
def test_a_file_for_nobody(tmp_path: Path, text: str, found: str) -> None:
    expected = [f"found {found}, expected a table [gateway], [client], [relay] or [wrap]"]

    assert problems_of(written(tmp_path, text)) == expected


@pytest.mark.parametrize("text", ["client = 3", "client = []", 'gateway = "vpn.example.org"'])
def test_a_role_that_is_no_table(tmp_path: Path, text: str) -> None:
    lines = problems_of(written(tmp_path, text))

    assert any("expected a table" in line for line in lines), lines


# --- what is wrong with a value --------------------------------------------------------------

# By what is changed in the client's file, and into what: the one line that is printed.
WRONG = {
    'gateway = "vpn.example.org"': {
        "": "client.gateway: found nothing, expected host name or address of the gateway",
        'gateway = "no spaces"': "client.gateway: found 'no spaces', expected a host name or an IP"
        " address",
        'gateway = "192.0.2.300"': "client.gateway: found '192.0.2.300', expected a host name or an"
        " IP address",
        'gateway = ""': "client.gateway: found '', expected a host name or an IP address",
        "gateway = 3": "client.gateway: found 3, expected a host name or an IP address",
        "gateway = true": "client.gateway: found true, expected a host name or an IP address",
        "gateway = ['a']": "client.gateway: found a list, expected a host name or an IP address",
        f"gateway = '{'a' * 80}'": f"client.gateway: found '{'a' * 59}..., expected a host name or"
        " an IP address",
        "gateway = 2026-06-01": "client.gateway: found 2026-06-01, expected a host name or an IP"
        " address",
        'gatway = "vpn.example.org"\ngateway = "a"': "client.gatway: found an unknown key, did you"
        " mean gateway?",
        'gateway = "a"\nxyz = 1': "client.xyz: found an unknown key, expected one of gateway,"
        " server_name, websocket_path, "
        "gate, carriers, udp_ike_port, udp_nat_port, tcp_port, tls_port,"
        " tls_ca, dns, data_plane, bare_esp, tcp_in_kernel,"
        " control_socket, state_directory",
        'gateway = "a"\nbare_esp = true\ndata_plane = "userspace"': "client: expected data_plane ="
        ' "kernel" or "auto" beside bare_esp (only the kernel sends it)',
        'gateway = "a"\ncarriers = ["udp", "pigeon"]': "client.carriers[1]: found 'pigeon',"
        " expected one of udp, tcp, tls, ws",
        'gateway = "a"\ncarriers = ["ws"]': "client: expected websocket_path, or carriers without"
        " ws",
        'gateway = "a"\nwebsocket_path = "/short"': "client.websocket_path: found a value that is"
        " not shown, expected a path that nobody guesses, such as /Ahdai7eiPhai0ahx: a slash and 8"
        " more",
        'gateway = "a"\nwebsocket_path = "/long-enough?but=no"': "client.websocket_path: found a"
        " value that is not shown, expected a path that nobody guesses, such as /Ahdai7eiPhai0ahx:"
        " a slash and 8 more",
        'gateway = "a"\ncarriers = []': "client.carriers: found a list, expected at least one"
        " entry",
        'gateway = "a"\ncarriers = ["udp", "udp"]': "client.carriers: found a list, expected each"
        " entry once",
        'gateway = "a"\ncarriers = "udp"': "client.carriers: found 'udp', expected a list in square"
        " brackets",
        'gateway = "a"\ntls_port = 65536': "client.tls_port: found 65536, expected at most 65535",
        'gateway = "a"\ntls_port = 0': "client.tls_port: found 0, expected at least 1",
        'gateway = "a"\ntls_port = "443"': "client.tls_port: found '443', expected a whole number",
        'gateway = "a"\ntls_port = 443.5': "client.tls_port: found 443.5, expected a whole number",
        'gateway = "a"\ndns = "yes"': "client.dns: found 'yes', expected true or false",
        'gateway = "a"\ncontrol_socket = 1': "client.control_socket: found 1, expected a file name",
        'gateway = "a"\ncontrol_socket = "a\\u0000b"': "client.control_socket: found 'a\\x00b',"
        " expected a file name (there are control characters in it)",
    },
    "[connection]": {
        "[connection]\nliveness_s = -1": "connection.liveness_s: found -1, expected at least 0",
        "[connection]\nliveness_s = nan": "connection.liveness_s: found nan, expected a finite"
        " number",
        "[connection]\nliveness_s = inf": "connection.liveness_s: found inf, expected a finite"
        " number",
        '[connection]\nliveness_s = "1"': "connection.liveness_s: found '1', expected a number",
        "[connection]\nrekey_s = 100\nhard_s = 100": "connection: expected hard_s above rekey_s"
        " (rekey_s is 100, hard_s is 100)",
        "[connection]\nrekey_s = 'soon'": "connection.rekey_s: found 'soon', expected a number",
        '[connection]\nike = ["aes256gcm16-x25519"]': "connection.ike[0]: found"
        " 'aes256gcm16-x25519', expected an IKE suite such as aes256gcm16-prfsha384-ecp384"
        " ('aes256gcm16-x25519' has no PRF, add for example prfsha256)",
        "[connection]\npsk_env = 'TUNNELWRAP_TEST'": "connection.psk_env: found 'TUNNELWRAP_TEST',"
        " expected the name of an environment variable that holds the pre-shared key"
        " (TUNNELWRAP_TEST is not set)",
        "[connection]\nretransmission = 5": "connection.retransmission: found 5, expected a table",
        "[connection]\nretransmission = {timeout_s = 0}": "connection.retransmission.timeout_s:"
        " found 0, expected more than 0",
        "[connection]\nchild = {idle_s = 60}": 'connection.child: expected start = "on-demand"'
        " beside idle_s (it would not come back)",
        '[connection]\nchild = {mode = "bound"}': "connection.child.mode: found 'bound', expected"
        " 'tunnel', 'transport' or 'beet'",
        '[connection]\nchild = {mode = "beet", ipcomp = true}': "connection.child: expected neither"
        ' ah nor ipcomp beside mode = "beet" (it is for ESP alone)',
        '[connection]\nchild = {mode = "beet", ah = ["sha256"]}': "connection.child: expected"
        ' neither ah nor ipcomp beside mode = "beet" (it is for ESP alone)',
        '[connection]\nchild = {mode = "beet"}': 'expected client.carriers = ["udp"] beside mode ='
        ' "beet" (no stream can carry it)',
        "[connection]\nchild = {rekey_octets = 7, hard_octets = 5}": "connection.child: expected"
        " hard_octets above rekey_octets (rekey_octets is 7, hard_octets is 5)",
        '[connection]\nchild = {esp = ["aes256"]}': "connection.child.esp[0]: found 'aes256',"
        " expected an ESP suite such as aes256gcm16-x25519 ('aes256' has no integrity, add for"
        " example sha256)",
        '[connection]\nchild = {ah = ["aes256-sha256"]}': "connection.child.ah[0]: found"
        " 'aes256-sha256', expected an AH suite such as sha256-x25519 (unknown algorithm 'aes256'"
        " in 'aes256-sha256', did you mean sha256?)",
        '[connection]\nchild = {ah = ["sha256"], esp = ["aes256gcm16"]}': "connection.child:"
        " expected one of esp, ah (there are both)",
        '[connection]\nchild = {ah = ["sha256"]}': 'expected client.carriers = ["udp"] beside ah'
        " (no stream can carry AH)",
        '[connection]\nchild = {peer_ts = ["10.1.2.3/8"]}': "connection.child.peer_ts[0]: found"
        " '10.1.2.3/8', expected a network such as 10.20.0.0/24 ('10.1.2.3/8': 10.1.2.3/8 has host"
        " bits set)",
        "[connection]\nchild = {replay_window_packets = 31}": "connection.child."
        "replay_window_packets: found 31, expected at least 32",
    },
    'id = "alice@example.org"': {
        'id = "two words"': "connection.local.id: found 'two words', expected a name, mail address,"
        " IP address or DN ('two words' is no identity)",
        "": "connection.local.id: found nothing, expected our identity, such as vpn.example.org",
    },
    'id = "vpn.example.org"': {
        'id = "*vpn"': "connection.peer.id: found '*vpn', expected %any, *.domain, *@domain or an"
        " identity ('*vpn': a wildcard can only be *.domain or *@domain)",
        "id = 1": "connection.peer.id: found 1, expected %any, *.domain, *@domain or an identity",
    },
    f'psk = "{SECRET}"': {
        "": "connection: expected local.certificate with local.key, or psk, psk_file or psk_env",
        'psk = ""': "connection.psk: found a value that is not shown, expected a pre-shared key",
        "psk = 12345": "connection.psk: found a value that is not shown, expected a pre-shared key",
        f"psk = ['{SECRET}']": "connection.psk: found a list, expected a pre-shared key",
        f"psk = {{a = '{SECRET}'}}": "connection.psk: expected a pre-shared key",
        f'pks = "{SECRET}"\npsk = "{SECRET}"': "connection.pks: found an unknown key, did you mean"
        " psk?",
        f"ike = '''-----BEGIN {SECRET}'''\npsk = 'a'": "connection.ike: found a text that is not"
        " shown, expected a list in square brackets",
        f"liveness_s = '''\na\n{SECRET}'''\npsk = 'a'": "connection.liveness_s: found a text that"
        " is not shown, expected a number",
    },
}


CASES = [(old, new, line) for old, changes in WRONG.items() for new, line in changes.items()]


@pytest.mark.parametrize(("old", "new", "line"), CASES)
def test_a_wrong_value(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert problems_of(written(tmp_path, changed(CLIENT, old, new))) == [line]


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = changed(CLIENT, 'gateway = "vpn.example.org"', 'gateway = "-"\ntls_port = 0')
    text = changed(text, 'id = "alice@example.org"', "")
    text += "[connection.child]\nrekey_s = 'a'\nhard_packets = -1\n"

    assert [line.partition(":")[0] for line in problems_of(written(tmp_path, text))] == [
        "client.gateway",
        "client.tls_port",
        "connection.local.id",
        "connection.child.rekey_s",
        "connection.child.hard_packets",
    ]


def test_two_psks_are_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "psk").write_text(f"{SECRET}\n")
    text = changed(CLIENT, "[connection]", "[connection]\npsk_file = 'psk'")

    assert problems_of(written(tmp_path, text)) == [
        "connection: expected one of psk, psk_file, psk_env (there are several)"
    ]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (f"ppk = '{SECRET}'", "ppk_id with ppk, ppk_file or ppk_env"),
        ("ppk_id = 'a'", "ppk_id with ppk, ppk_file or ppk_env"),
        (
            "ppk_required = true",
            "ppk_id with ppk, ppk_file or ppk_env, or ppk_required = false",
        ),
        (
            f"ppk_id = 'a'\nppk = '{SECRET}'\nppk_file = 'psk'",
            "one of ppk, ppk_file, ppk_env (there are several)",
        ),
    ],
)
def test_half_a_ppk(tmp_path: Path, lines: str, problem: str) -> None:
    (tmp_path / "psk").write_text(f"{SECRET}\n")
    text = changed(CLIENT, "[connection]", f"[connection]\n{lines}")

    assert problems_of(written(tmp_path, text)) == [f"connection: expected {problem}"]


@pytest.mark.rfc("8784", "5.2.3")
def test_a_peer_that_proves_nothing_needs_the_ppk(tmp_path: Path) -> None:
    lines = f"[connection]\nppk_id = 'a'\nppk = '{SECRET}'"
    text = changed(CLIENT, "[connection]", lines)
    text = changed(text, "[connection.peer]", "[connection.peer]\nnull_authentication = true")

    assert problems_of(written(tmp_path, text)) == [
        "connection: expected ppk_required = true beside null_authentication = true"
    ]
    text = changed(text, lines, f"{lines}\nppk_required = true")
    assert load(written(tmp_path, text), WHEN)


@pytest.mark.parametrize("name", ["two words", "schlüssel", "", "a\tb"])
def test_the_name_of_a_ppk_is_plain(tmp_path: Path, name: str) -> None:
    text = changed(CLIENT, "[connection]", f"[connection]\nppk_id = '{name}'\nppk = '{SECRET}'")
    (problem,) = problems_of(written(tmp_path, text))

    assert "expected the name of a post-quantum preshared key" in problem


def test_a_ppk_is_not_shown(tmp_path: Path) -> None:
    text = changed(CLIENT, "[connection]", f"[connection]\nppk_id = 'a'\nppk = ['{SECRET}']")
    (problem,) = problems_of(written(tmp_path, text))
    assert SECRET not in problem

    text = changed(CLIENT, "[connection]", f"[connection]\nppk_id = 'a'\nppk = '{SECRET}'")
    shown = effective(load(written(tmp_path, text), WHEN))
    assert SECRET not in shown
    assert 'ppk = "(hidden)"' in shown


def test_a_peer_needs_a_proof_too(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    text = changed(CERTIFIED_CLIENT, 'ca = ["ca.pem"]', "")

    assert problems_of(written(tmp_path, text)) == [
        "connection: expected peer.ca, or psk, psk_file or psk_env"
    ]


# --- what is wrong with a gateway ------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "tls_ports = []",
            "",
            "gateway: expected a table [gateway.tls] with certificate and key, or tls_ports = []",
        ),
        (
            "tls_ports = []",
            "tls_ports = []\nudp_ike_port = 4500",
            "gateway: expected another udp_nat_port than udp_ike_port (both are 4500)",
        ),
        (
            "tls_ports = []",
            'tls_ports = []\nlisten = ["192.0.2"]',
            (
                "gateway.listen[0]: found '192.0.2', expected an IP address such as 192.0.2.1 or"
                " 2001:db8::1"
            ),
        ),
        (
            "[connections.office]\n",
            "[connections.office]\npool = 'none'\n",
            (
                "connections.office.pool: found 'none', expected the name of a pool, as in"
                " [pools.NAME] (pools: there is none)"
            ),
        ),
        (
            "[connections.office]\n",
            (
                "[pools.a]\nnetworks = []\n[pools.b]\nnetworks = ['10.0.0.0/8']\n"
                "[connections.office]\npool = 'c'\n"
            ),
            (
                "connections.office.pool: found 'c', expected the name of a pool, as in"
                " [pools.NAME] (pools: a, b)"
            ),
        ),
        (
            "[connections.office]\n",
            "[pools.a]\nnetworks = ['10.0.1.0/8']\n[connections.office]\n",
            (
                "pools.a.networks[0]: found '10.0.1.0/8', expected a network such as 10.20.0.0/24"
                " or fd00:20::/64 (did you mean 10.0.0.0/8?)"
            ),
        ),
        (
            "[connections.office]\n",
            "[pools.a]\nnetworks = ['ten']\n[connections.office]\n",
            (
                "pools.a.networks[0]: found 'ten', expected a network such as 10.20.0.0/24 or"
                " fd00:20::/64"
            ),
        ),
        (
            "[connections.office]\n",
            "[pools.a]\nnetwork = ['10.0.0.0/8']\n[connections.office]\n",
            "pools.a.network: found an unknown key, did you mean networks?",
        ),
        (
            "[connections.office]\n",
            "[pools.a]\n[connections.office]\n",
            (
                "pools.a.networks: found nothing, expected a list of networks, such as"
                ' ["10.20.0.0/24"]'
            ),
        ),
        (
            'id = "%any"\n',
            "",
            (
                "connections.office.peer.id: found nothing, expected the peer's identity: exact,"
                " *.domain, *@domain or %any"
            ),
        ),
    ],
)
def test_a_wrong_gateway(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert line in problems_of(written(tmp_path, changed(GATEWAY, old, new)))


def test_a_port_is_for_tcp_or_tls(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    tls = "tls_ports = [443, 4500]\n[gateway.tls]\ncertificate = 'gateway.pem'\nkey = 'gateway.key'"

    assert problems_of(written(tmp_path, changed(GATEWAY, "tls_ports = []", tls))) == [
        "gateway: expected other ports in tcp_ports than in tls_ports (4500 is in both)"
    ]
    web = "tls_ports = []\n[gateway.websocket]\npath = '/long-enough'\nports = [8080, 4500]"
    assert problems_of(written(tmp_path, changed(GATEWAY, "tls_ports = []", web))) == [
        "gateway: expected other ports in tcp_ports than in websocket.ports (4500 is in both)"
    ]


def test_pools_must_not_overlap(tmp_path: Path) -> None:
    pools = (
        "[pools.a]\nnetworks = ['10.0.0.0/8', 'fd00::/64']\n[pools.b]\nnetworks = ['10.9.0.0/16']\n"
    )

    assert problems_of(written(tmp_path, pools + GATEWAY)) == [
        "expected networks without a common address (10.0.0.0/8 and 10.9.0.0/16 overlap)"
    ]


def test_a_gateway_needs_connections(tmp_path: Path) -> None:
    alone = GATEWAY.partition("[connections")[0]

    assert problems_of(written(tmp_path, alone)) == [
        "connections: found nothing, expected a table [connections.NAME] for each kind of client"
    ]
    assert problems_of(written(tmp_path, "connections = {}\n" + alone)) == [
        "connections: found a table, expected at least 1 entry in it"
    ]


# --- whatever people write -------------------------------------------------------------------


def test_no_value_makes_anything_but_a_configuration_or_lines(tmp_path: Path) -> None:
    """Each value of a file that is right is replaced by each of some odd ones."""
    odd = ["1", "1.5", "nan", "true", '""', '"a"', '"\\u0000"', "'''a\nb'''", "[]", "[[]]", "{}"]
    odd += ["07:32:00", "{a = 1}", '["a", 1]', '"-----BEGIN"']
    lines = CERTIFIED_CLIENT.splitlines()
    for index, line in enumerate(lines):
        key, equals, _ = line.partition(" = ")
        for value in odd if equals else []:
            text = "\n".join([*lines[:index], f"{key} = {value}", *lines[index + 1 :]])
            with suppress(ConfigError):
                load(written(tmp_path, text), WHEN)
