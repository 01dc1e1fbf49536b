"""One IKE SA after another between a client and a gateway: what carries on through it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.daemons import (
    GATEWAY,
    NAME,
    QUICK,
    SITE,
    WORLD,
    Daemon,
    Hosts,
    Issued,
    hosts,
    run_tunnelwrap,
    wait_until,
)

pytestmark = [pytest.mark.root]

SECONDS = 7
PING = ("ping", "-n", "-q", "-W", "2", "-i", "0.01", "-c", str(SECONDS * 100), SITE)
CARRIERS = ("udp", "tcp", "tls")
NO_UDP = "meta l4proto udp drop"


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return Issued.by_init(tmp_path_factory.mktemp("issued"))


@pytest.fixture
def net(issued: Issued, tmp_path: Path) -> Iterator[Hosts]:
    with hosts(issued, tmp_path) as made:
        yield made


def begun(client: Daemon, exchange: str) -> int:
    """How many requests of an exchange it has sent, as its --debug log has it."""
    return len(re.findall(rf"> {exchange} request", client.log))


@pytest.mark.parametrize("carrier", CARRIERS)
def test_authenticating_again_loses_no_packet(net: Hosts, carrier: str) -> None:
    net.serve({"connections": {"clients": {"reauth_s": 3}}})
    client = net.connect({}, "--debug", "--carrier", carrier)

    done = net.client.run(*PING)

    assert " 0% packet loss" in done, done
    assert client.log.count("authenticated again") >= 2
    assert len(client.named("established")) == 1
    assert not client.named("lost")
    wait_until("one IKE SA", lambda: len(client.sas) == 1)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_gateway_that_was_gone_is_met_again_by_ticket(net: Hosts, carrier: str) -> None:
    net.serve()
    client = net.connect({"connection": QUICK}, "--debug", "--carrier", carrier)
    addresses = client.named("established")[0]["addresses"]
    net.block("drop")
    client.tells("lost")
    net.block("")

    assert client.tells("established", 2)["addresses"] == addresses
    assert begun(client, "IKE_SESSION_RESUME") >= 1
    assert begun(client, "IKE_SA_INIT") == 1
    net.client.run("ping", "-c", "1", "-W", "2", SITE)


@pytest.mark.rfc("9329", "7.3")
def test_x2_it_is_met_again_by_udp_though_it_was_lost_on_tcp(net: Hosts) -> None:
    net.serve()
    net.block(NO_UDP)
    client = net.connect({"connection": QUICK}, "--debug")
    assert client.named("established")[0]["carrier"] == "tcp"
    net.block("drop")
    client.tells("lost")
    net.block("")

    assert client.tells("established", 2)["carrier"] == "udp"
    assert begun(client, "IKE_SESSION_RESUME") >= 1


@pytest.mark.rfc("6290", "5")
def test_a_gateway_that_has_lost_its_state_says_so_at_once(net: Hosts) -> None:
    """Its token ends the IKE SA long before retransmission would, and its ticket is refused."""
    gateway = net.serve()
    client = net.connect({}, "--debug", "--carrier", "udp")
    gateway.kill()
    net.serve()

    assert not net.client.succeeds("ping", "-c", "1", "-W", "1", SITE), "ESP for nobody"

    client.tells("established", 2, timeout_s=10.0)
    assert "the peer has lost its state" in client.log
    assert begun(client, "IKE_SESSION_RESUME") == 1
    assert begun(client, "IKE_SA_INIT") == 2
    net.client.run("ping", "-c", "1", "-W", "2", SITE)


@pytest.mark.rfc("5685", "7")
def test_round_in_circles_is_noticed(net: Hosts) -> None:
    net.serve({"gateway": {"redirect_to": GATEWAY}})
    client = net.start_client({}, "--debug", "--carrier", "udp")

    assert client.ends() == 1
    assert "redirected 5 times" in client.log
    assert client.log.count(f"sends us to {GATEWAY}") == 5
    assert NAME not in client.log.partition("redirected 5 times")[2]


@pytest.mark.rfc("5685", "11")
def test_clients_are_sent_away_and_come_back_where_there_is_nobody(net: Hosts) -> None:
    gateway = net.serve()
    client = net.connect({}, "--debug", "--carrier", "udp")

    wrong = run_tunnelwrap(net.gateway, "redirect", gateway.file, "no name")
    assert wrong.stderr == "tunnelwrap: 'no name' is no host name or address\n"
    done = run_tunnelwrap(net.gateway, "redirect", gateway.file, WORLD)

    assert done.stdout == f"told 1 clients to go to {WORLD}\n", done.stderr
    client.says(f"sends us to {WORLD}")
    wait_until("the IKE SA is deleted", lambda: not gateway.sas)
    client.says(f"no way to {WORLD}", timeout_s=30.0)


@pytest.mark.rfc("9329", "7.2")
def test_x1_the_next_gateway_is_tried_by_udp_first_though_this_one_was_met_on_tcp(
    net: Hosts,
) -> None:
    gateway = net.serve()
    net.block(NO_UDP)
    client = net.connect({}, "--debug")
    assert client.named("established")[0]["carrier"] == "tcp"
    net.block("")
    before = len(client.named("attempt"))

    run_tunnelwrap(net.gateway, "redirect", gateway.file, WORLD)

    client.says(f"no way to {WORLD}")
    tried = [attempt["carrier"] for attempt in client.named("attempt")[before:]]
    assert tried[:2] == ["udp", "tcp"]


def test_a_client_that_does_not_follow_is_served(net: Hosts) -> None:
    net.serve({"gateway": {"redirect_to": GATEWAY}})
    net.connect({"connection": {"follows_redirects": False}}, "--carrier", "udp")
    net.client.run("ping", "-c", "1", "-W", "2", SITE)
