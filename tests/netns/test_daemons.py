"""Gateway and client as they run: what breaks, what ends, what is said, what is left behind.

The hosts are those of ``tests.kit.daemons``.
"""

import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.daemons import (
    GATEWAY,
    NAME,
    PATIENCE_S,
    QUICK,
    Daemon,
    Hosts,
    Issued,
    Toml,
    hosts,
    merged,
    places,
    run_tunnelwrap,
    tunnelwrap,
    wait_until,
)
from tests.kit.tunnel_host import Dump

pytestmark = pytest.mark.root

OCTETS = 48 << 20
SOON_S = 8.0


class Served(NamedTuple):
    """Hosts with a gateway that goes on from test to test, and logs each message."""

    net: Hosts
    gateway: Daemon


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return Issued.by_init(tmp_path_factory.mktemp("issued"))


@pytest.fixture
def net(issued: Issued, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def running(issued: Issued, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with hosts(issued, tmp_path_factory.mktemp("served")) as made:
        yield Served(made, made.serve({}, "--debug"))


@pytest.fixture
def served(running: Served) -> Iterator[Served]:
    running.gateway.forget_log()
    yield running
    running.net.end_clients()
    assert running.gateway.process.poll() is None


def quick(connection: str, **more: object) -> Toml:
    """A configuration that notices soon that the peer is gone."""
    tables: Toml = {**QUICK, **more}
    for name in reversed(connection.split(".")):
        tables = {name: tables}
    return tables


GATEWAY_QUICK = quick("connections.clients")
CLIENT_QUICK = quick("connection")


def spis(daemon: Daemon) -> list[object]:
    """The SPIs of the Child SAs: they tell one tunnel from another."""
    return [(child["spi_in"], child["spi_out"]) for sa in daemon.sas for child in sa["child_sas"]]


def count(daemon: Daemon, exchange: str) -> int:
    """How many messages of an exchange passed, as its --debug log has it."""
    return len(re.findall(rf"[<>] {exchange} ", daemon.log))


def downloads(net: Hosts) -> None:
    """See that the tunnel carries something."""
    net.download(1 << 20).finish()


# --- streams that break ----------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["tcp", "tls", "ws"])
@pytest.mark.parametrize("who", ["client", "gateway"])
def test_a_reset_stream_is_opened_again_and_the_transfer_goes_on(
    served: Served, carrier: str, who: str
) -> None:
    net, gateway = served
    client = net.connect({}, "--debug", "--carrier", carrier)
    before, streams = spis(client), gateway.status["streams"][f"ike_{carrier}"]
    transfer = net.download(OCTETS)
    transfer.has_received(1 << 20)

    port = 4500 if carrier == "tcp" else 443
    side = "dport" if who == "client" else "sport"
    assert transfer.received < OCTETS
    getattr(net, who).run("ss", "-K", "-t", side, "=", str(port))
    transfer.finish()

    assert spis(client) == before
    assert spis(gateway) == [(out, own) for own, out in before]
    assert count(client, "IKE_AUTH") == 2
    assert count(client, "INFORMATIONAL") >= 2  # RFC 9329 §6.1: lets the gateway know
    assert gateway.status["streams"][f"ike_{carrier}"] == streams + 1
    assert len(client.named("established")) == 1
    assert "broke, opening it again" in client.log


def test_a_request_that_waits_goes_out_again_on_the_new_stream(served: Served) -> None:
    net, _ = served
    client = net.connect(quick("connection", liveness_s=0.5), "--debug", "--carrier", "tls")
    before = spis(client)
    net.block("tcp dport 443 drop")
    asked = client.log.count("> INFORMATIONAL")
    wait_until("a liveness check", lambda: client.log.count("> INFORMATIONAL") > asked)

    net.block("")
    net.client.run("ss", "-K", "-t", "dport", "=", "443")
    client.says("> repeats request")

    wait_until("its answer", lambda: client.log.count("< INFORMATIONAL") > asked + 1)
    assert spis(client) == before
    assert not client.named("lost")


@pytest.mark.parametrize("carrier", ["tcp", "tls"])
def test_a_firewall_that_resets_streams_for_a_while(served: Served, carrier: str) -> None:
    net, _ = served
    client = net.connect({}, "--carrier", carrier)
    before = spis(client)
    transfer = net.download(OCTETS)
    transfer.has_received(1 << 20)

    net.block("meta l4proto tcp reject with tcp reset")
    client.says("broke, opening it again")
    assert transfer.received < OCTETS
    net.block("")
    transfer.finish()

    assert spis(client) == before


# --- networks and gateways that are gone -----------------------------------------------------


@pytest.mark.parametrize("carrier", ["udp", "tcp", "tls"])
def test_a_network_that_is_gone_for_some_seconds(served: Served, carrier: str) -> None:
    net, _ = served
    client = net.connect({}, "--carrier", carrier)
    before = spis(client)
    transfer = net.download(OCTETS)
    transfer.has_received(1 << 20)

    net.block("drop")
    stopped_at = transfer.stops_for(2.0)
    net.block("")
    transfer.finish()

    assert stopped_at < OCTETS
    assert spis(client) == before
    assert not client.named("lost")


def test_routers_that_know_no_way_for_a_moment_do_not_end_a_tunnel_over_udp(served: Served) -> None:
    net, _ = served
    client = net.connect(quick("connection", liveness_s=0.3), "--debug", "--carrier", "udp")
    before = spis(client)
    net.block("meta l4proto udp reject with icmpx host-unreachable")
    asked = client.log.count("> INFORMATIONAL")
    wait_until("a liveness check", lambda: client.log.count("> INFORMATIONAL") > asked)

    net.block("")
    answers = client.log.count("< INFORMATIONAL")
    wait_until("answers", lambda: client.log.count("< INFORMATIONAL") >= answers + 2)

    assert spis(client) == before
    assert not client.named("lost")


@pytest.mark.parametrize("carrier", ["udp", "tls"])
def test_a_killed_gateway_is_found_again(net: Hosts, carrier: str) -> None:
    gateway = net.serve(GATEWAY_QUICK)
    client = net.connect(CLIENT_QUICK, "--carrier", carrier)
    before = spis(client)
    gateway.kill()
    client.tells("lost", timeout_s=SOON_S)

    restarted = net.serve(GATEWAY_QUICK)
    client.tells("established", 2)

    assert "undone what a former run left" in restarted.log
    assert spis(client) != before
    downloads(net)
    assert [event["event"] for event in client.events if event["event"] != "attempt"] == [
        "established",
        "lost",
        "established",
    ]


def test_a_gateway_that_ends_tells_its_clients(net: Hosts) -> None:
    gateway = net.serve()
    before = Dump.of(net.client)
    client = net.connect()

    assert gateway.stop() == 0

    assert client.ends(SOON_S) == 1
    assert "tunnelwrap: the gateway ended the tunnel" in client.log
    assert client.events[-1]["event"] == "closed"
    assert Dump.of(net.client) == before


# --- what is left behind ---------------------------------------------------------------------


def test_after_the_end_client_and_gateway_hosts_are_as_before(net: Hosts) -> None:
    before = Dump.of(net.client), Dump.of(net.gateway)
    gateway = net.serve()
    client = net.connect()
    assert (Dump.of(net.client), Dump.of(net.gateway)) != before

    assert client.stop() == 0
    assert Dump.of(net.client) == before[0]
    assert gateway.stop() == 0
    assert Dump.of(net.gateway) == before[1]
    assert not list(net.directory.glob("*/state/*/journal"))
    assert not list(net.directory.glob("*/run/*"))


def test_what_killed_daemons_left_is_undone_at_their_next_start(net: Hosts) -> None:
    before = Dump.of(net.client), Dump.of(net.gateway)
    gateway, client = net.serve(), net.connect()
    client.kill()
    gateway.kill()

    gateway, client = net.serve(), net.connect()
    for daemon in (gateway, client):
        assert "undone what a former run left: " in daemon.log
    downloads(net)

    assert client.stop() == gateway.stop() == 0
    assert (Dump.of(net.client), Dump.of(net.gateway)) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_while_it_connects(served: Served, number: signal.Signals) -> None:
    net, _ = served
    net.block("drop")
    before = Dump.of(net.client)
    client = net.start_client({}, "--debug")
    client.says("IKE_SA_INIT")

    client.send(number)

    assert client.ends(SOON_S) == 0
    assert client.events[-1] == {"event": "closed", "reason": "disconnected"}
    assert Dump.of(net.client) == before


def test_a_host_that_refuses_a_change_is_left_as_it_was(net: Hosts) -> None:
    gateway = net.serve()
    net.client.route("fd66::/64", dev="eth0")
    net.client.route("10.66.0.0/24", via="198.51.100.1")
    before = Dump.of(net.client)
    client = net.start_client()

    assert client.ends() == 1
    assert "tunnelwrap: route 10.66.0.0/24 by tw-client: this host has the same" in client.log
    assert client.events[-1]["event"] == "closed"
    assert Dump.of(net.client) == before
    gateway.says("deleted by the peer")


def test_a_gateway_whose_port_is_taken_says_so(net: Hosts) -> None:
    before = Dump.of(net.gateway)
    net.gateway.popen("python3", "-m", "http.server", "443")
    listening = lambda: ":443" in net.gateway.run("ss", "-Hlnt")  # noqa: E731
    wait_until("a listener", listening)

    gateway = net.start_gateway()

    assert gateway.ends() == 1
    assert "Traceback" not in gateway.log
    assert gateway.log.splitlines()[-1].startswith("tunnelwrap: ")
    assert "443" in gateway.log.splitlines()[-1]
    assert Dump.of(net.gateway) == before


# --- what is said ----------------------------------------------------------------------------


def test_status_for_people_and_disconnect(served: Served) -> None:
    net, gateway = served
    client = net.connect({}, "--carrier", "tls")

    shown = run_tunnelwrap(net.client, "status", client.file)
    assert shown.returncode == 0
    for word in ("client client: 1 peer", "vpn.example.org", "tls", f"{GATEWAY}:443", "10.20.0."):
        assert word in shown.stdout
    shown = run_tunnelwrap(net.gateway, "status", gateway.file)
    for word in ("gateway gateway: 1 peer", "client@vpn.example.org", "198.51.100.2:"):
        assert word in shown.stdout

    shown = run_tunnelwrap(net.gateway, "status", gateway.file, "--kernel")
    assert shown.returncode == 1
    assert "nothing is in the kernel: data plane: userspace" in shown.stderr

    before = run_tunnelwrap(net.client, "disconnect", client.file)
    assert (before.returncode, before.stdout) == (0, "disconnected\n")
    assert client.process.wait(1) == 0
    for command in ("status", "disconnect"):
        done = run_tunnelwrap(net.client, command, client.file)
        assert done.returncode == 1
        assert done.stderr.startswith("tunnelwrap: no tunnelwrap is running")


def test_disconnect_returns_when_the_host_is_as_before(served: Served) -> None:
    net, _ = served
    before = Dump.of(net.client)
    client = net.connect()

    run_tunnelwrap(net.client, "disconnect", client.file)

    assert Dump.of(net.client) == before


def test_a_second_one_with_the_same_configuration_is_refused(served: Served) -> None:
    net, gateway = served
    client = net.connect()
    for daemon, command in ((gateway, "serve"), (client, "connect")):
        done = run_tunnelwrap(daemon.host, command, daemon.file)
        assert done.returncode == 1
        assert "tunnelwrap: a tunnelwrap with this configuration is running" in done.stderr
    downloads(net)


@pytest.mark.parametrize("command", ["connect", "serve"])
def test_without_root_it_says_what_is_missing(net: Hosts, command: str) -> None:
    name = "client" if command == "connect" else "gateway"
    file = net.write(name, getattr(net.issued, name))
    line = tunnelwrap(net.client, command, str(file))
    done = subprocess.run(
        [*line[:4], "setpriv", "--bounding-set=-net_admin", *line[4:]],
        check=False,
        capture_output=True,
        text=True,
        env=places(file),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("tunnelwrap: ")
    assert "CAP_NET_ADMIN" in done.stderr


UNREACHABLE = "203.0.113.77"
PSK = "correct horse battery staple"


def with_psk(identity: str, peer: str) -> Toml:
    """A connection by pre-shared key in place of certificates."""
    return {
        "psk": PSK,
        "local": {"id": identity, "certificate": None, "key": None},
        "peer": {"id": peer, "ca": None},
    }


@pytest.mark.parametrize(
    ("changes", "carrier", "words"),
    [
        (
            {"connection": {"peer": {"id": "other.example.org"}}},
            "auto",
            r"peer answered AUTHENTICATION_FAILED \(.*identit.*\)",
        ),
        ({"client": {"gateway": UNREACHABLE}}, "auto", "udp, tcp, tls, ws: no route to host"),
        (
            {"client": {"server_name": "www.example.org"}},
            "tls",
            "tls: certificate is not for www.example.org",
        ),
        (
            {"client": {"tls_ca": None}},
            "tls",
            "tls: certificate's issuer is not trusted: CN=tunnelwrap .*",
        ),
        (
            {"connection": {"ike": ["aes128-sha512-modp3072"]}},
            "tcp",
            r"tcp: peer answered NO_PROPOSAL_CHOSEN \(.* that we offer: IKE:AES_CBC-128/.*\)",
        ),
        (
            {"connection": {"child": {"peer_ts": ["172.16.0.0/16"]}}},
            "auto",
            "no Child SA: peer answered TS_UNACCEPTABLE; we asked for .* === 172.16.0.0/16",
        ),
    ],
)
def test_no_tunnel_and_one_line_that_says_why(
    served: Served, changes: Toml, carrier: str, words: str
) -> None:
    net, _ = served
    client = net.start_client(changes, "--carrier", carrier)

    assert client.ends() == 1
    (line,) = client.log.splitlines()
    assert re.fullmatch(f"tunnelwrap: {words}", line)
    assert client.events[-1]["event"] == "closed"


def test_a_name_that_nobody_knows(net: Hosts) -> None:
    net.client.resolv_conf("nameserver 192.0.2.53\noptions timeout:1 attempts:1\n")
    client = net.start_client({"client": {"gateway": NAME}})

    assert client.ends() == 1
    assert client.log == f"tunnelwrap: {NAME}: temporary failure in name resolution\n"


def test_a_child_sa_that_this_host_cannot_carry(net: Hosts) -> None:
    mode: Toml = {"child": {"mode": "transport"}}
    net.serve({"connections": {"clients": mode}})
    client = net.start_client({"connection": mode})

    assert client.ends() == 1
    assert "Traceback" not in client.log
    assert client.log.splitlines()[-1].startswith("tunnelwrap: no tunnel: ")


@pytest.mark.rfc("9329", "5")
def test_each_carrier_has_its_reason(served: Served) -> None:
    net, _ = served
    net.block("udp dport 500 drop; tcp dport 4500 reject with tcp reset")
    client = net.start_client({"client": {"tls_ca": None}})

    assert client.ends() == 1
    assert re.fullmatch(
        "tunnelwrap: udp: no answer within 10 s; tcp: connection refused; "
        "tls, ws: certificate's issuer is not trusted: CN=tunnelwrap .*\n",
        client.log,
    )


def test_suites_that_do_not_meet_are_told_apart_on_the_gateway(served: Served) -> None:
    net, gateway = served
    net.start_client({"connection": {"ike": ["aes128gcm16-prfsha512-x448"]}}, "--carrier", "tls")

    gateway.says("differ in KE")
    (line,) = [line for line in gateway.log.splitlines() if "NO_PROPOSAL_CHOSEN:" in line]
    offer, configured = "IKE:AES_GCM_16-128/HMAC_SHA2_512/CURVE448", "IKE:AES_GCM_16-256/"
    assert re.search(f"offered {offer}; configured {configured}.*; nearest: {offer} and", line)


def test_the_log_tells_the_story_in_a_few_lines(net: Hosts) -> None:
    gateway = net.serve()
    client = net.connect()
    client.stop()
    gateway.stop()

    ours = [
        r"Child SA [0-9a-f]{8} \(aes256gcm16-esn\) carries .* === 10.66.0.0/24, fd66::/64",
        r"connected to vpn.example.org over udp in \d+\.\d s",
        "disconnected",
    ]
    theirs = [
        r"data plane: (kernel|userspace) \(.*\)",
        "ready: vpn.example.org on UDP 500 and 4500, TCP 4500, TLS 443",
        "client@vpn.example.org from udp 198.51.100.2:4500 .* established: 10.20.0.*",
        "Child SA .* carries .*",
        "client@vpn.example.org closed: deleted by the peer",
    ]
    for daemon, expected in ((client, ours), (gateway, theirs)):
        lines = daemon.log.splitlines()
        assert len(lines) == len(expected), daemon.log
        for line, words in zip(lines, expected, strict=True):
            assert re.fullmatch(rf"\d\d:\d\d:\d\d I {words}", line)


@pytest.mark.rfc("7296", "5")
def test_no_log_holds_a_secret(net: Hosts) -> None:
    gateway = net.serve({"connections": {"clients": with_psk("gw", "road")}}, "--debug")
    wish = {"connection": {**with_psk("road", "gw"), "child": {"rekey_s": 1}}}
    client = net.connect(wish, "--debug")
    client.says("CREATE_CHILD_SA")
    wrong = net.start_client(
        merged(wish, {"connection": {"psk": "another secret of ours"}}), "--debug", is_other=True
    )
    assert wrong.ends() == 1

    for daemon in (gateway, client, wrong):
        assert "> IKE_AUTH" in daemon.log
        assert PSK not in daemon.log
        assert PSK.encode().hex() not in daemon.log
        assert "another secret" not in daemon.log
        assert not re.search(r"[0-9a-fA-F]{17}|[A-Za-z0-9+/]{40}", daemon.log)  # no key fits in


# --- strangers -------------------------------------------------------------------------------


def test_web_visitors_get_a_page_while_a_tunnel_runs(served: Served) -> None:
    net, _ = served
    net.connect({}, "--carrier", "tls")

    page = net.other.run("curl", "-sk", "--max-time", "5", f"https://{GATEWAY}/")

    assert "Welcome" in page
    downloads(net)


def test_who_speaks_neither_tls_nor_http_hears_what_web_servers_say(served: Served) -> None:
    net, _ = served
    with net.other.entered():
        stranger = socket.create_connection((GATEWAY, 443))
    with stranger:
        stranger.settimeout(SOON_S)
        stranger.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
        with stranger.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_the_gateway_may_open_as_many_files_as_it_can_get(served: Served) -> None:
    _, gateway = served
    limits = Path(f"/proc/{gateway.process.pid}/limits").read_text()
    (soft, hard) = next(
        line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")
    )
    assert soft == hard


def test_silent_strangers_keep_nobody_out_and_are_closed(served: Served) -> None:
    net, gateway = served
    reaped = gateway.status["counters"].get("idle_streams_closed", 0)
    with ExitStack() as stack:
        strangers = []
        for number in range(200):
            with net.other.entered():
                stranger = socket.create_connection((GATEWAY, 443 if number % 2 else 4500))
            strangers.append(stack.enter_context(stranger))
        strangers[0].sendall(b"IKETCP")

        net.connect({}, "--carrier", "tls")

        assert len(net.other.run("ss", "-Hnt", "state", "established").splitlines()) >= 100
        for stranger in strangers[::2]:  # those of 443 get as long as a web server gives them
            stranger.settimeout(PATIENCE_S)
            with suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
    assert gateway.status["counters"]["idle_streams_closed"] == reaped + 1
    downloads(net)


def test_streams_that_come_to_nothing_are_few(served: Served) -> None:
    net, gateway = served

    def shed() -> int:
        streams = gateway.status["streams"]
        assert isinstance(streams, dict)
        return int(streams.get("shed", 0))

    before = shed()
    with ExitStack() as stack:
        for _ in range(70):
            with net.other.entered():
                stranger = socket.create_connection((GATEWAY, 4500))
            stack.enter_context(stranger).sendall(b"IKETCP")
        wait_until("some are shed", lambda: shed() >= before + 6)
        net.connect({}, "--carrier", "tcp")  # from elsewhere
    downloads(net)
