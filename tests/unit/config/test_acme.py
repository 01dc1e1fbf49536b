"""A certificate by ACME: what a gateway's file may say of it."""

from pathlib import Path

import pytest

from tests.unit.config.writing import GATEWAY, WHEN, changed, write_credentials, written
from tunnelwrap.config.effective import effective
from tunnelwrap.config.load import load_gateway
from tunnelwrap.errors import ConfigError

ACME = """
[gateway.acme]
directory = "https://acme.example/directory"
terms_agreed = true
"""
WEBSOCKET = """
[gateway.websocket]
path = "/OiChohXah5ziehae3ooK"
ports = [80]
"""
BOUND = """eab_key_id = "kid-1"
eab_key = "hunter2-is-not-to-be-seen"
"""
ROUTE = """
[[gateway.routes]]
{}
backend = "127.0.0.1:8443"
"""


def gateway_with(text: str, ports: str = "") -> str:
    return changed(GATEWAY, "tls_ports = []", ports) + text


def problem_of(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_gateway(written(directory, text), WHEN)
    (problem,) = caught.value.problems
    return problem


def test_it_stands_for_the_files_and_is_for_the_gateways_name(tmp_path: Path) -> None:
    gateway = load_gateway(written(tmp_path, gateway_with(ACME)), WHEN).gateway

    assert gateway.tls is None
    assert gateway.acme is not None
    assert (gateway.acme.challenge, gateway.acme.http_port) == ("tls-alpn-01", 80)
    assert gateway.certified == ("vpn.example.org",)


def test_names_of_ones_choice(tmp_path: Path) -> None:
    names = 'names = ["VPN.example.org.", "www.example.org"]'
    gateway = load_gateway(written(tmp_path, gateway_with(ACME + names)), WHEN).gateway

    assert gateway.certified == ("vpn.example.org", "www.example.org")
    assert gateway.names == {"vpn.example.org", "www.example.org"}


def test_the_key_of_an_account_is_not_shown(tmp_path: Path) -> None:
    shown = effective(load_gateway(written(tmp_path, gateway_with(ACME + BOUND)), WHEN))
    assert "hunter2" not in shown
    assert 'eab_key = "(hidden)"' in shown

    problem = problem_of(tmp_path, gateway_with(ACME + BOUND.replace("hunter2-", "hunter2 ")))
    assert "hunter2" not in problem
    assert "base64url" in problem


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("https://acme.example/directory", "http://acme.example/", "a URL that begins with https"),
        ("https://acme.example/directory", "https://a b/", "a URL that begins with https"),
        ("terms_agreed = true", "", "terms_agreed = true, once you have read the terms"),
        ("terms_agreed = true", "terms_agreed = true\nemail = 'me'", "a mail address such as"),
        ("terms_agreed = true", "terms_agreed = true\nnames = ['*.example.org']", "without *."),
        ("terms_agreed = true", "terms_agreed = true\nnames = ['192.0.2.1']", "a host name"),
        ("terms_agreed = true", "terms_agreed = true\neab_key_id = 'a'", "eab_key_id and eab_key"),
        (
            "terms_agreed = true",
            "terms_agreed = true\nchallenge = 'http-01'\nhttp_port = 4500",
            "an http_port of its own (4500 is another port already)",
        ),
        (
            "terms_agreed = true",
            f"terms_agreed = true\nchallenge = 'http-01'\n{WEBSOCKET}",
            "an http_port of its own (80 is another port already)",
        ),
        ("terms_agreed = true", "terms_agreed = true\nchallenge = 'dns-01'", "'tls-alpn-01' or"),
    ],
)
def test_what_will_not_do(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in problem_of(tmp_path, gateway_with(changed(ACME, old, new)))


def test_it_is_for_tls_ports_without_files(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    files = "\n[gateway.tls]\ncertificate = 'gateway.pem'\nkey = 'gateway.key'\n"
    expected = "one of [gateway.tls] and [gateway.acme], and tls_ports"

    assert expected in problem_of(tmp_path, gateway_with(ACME + files))
    assert expected in problem_of(tmp_path, gateway_with(ACME, "tls_ports = []"))


def test_an_address_is_no_name(tmp_path: Path) -> None:
    text = changed(gateway_with(ACME), 'name = "vpn.example.org"', 'name = "192.0.2.1"')

    assert "acme.names (the gateway's name is an address)" in problem_of(tmp_path, text)
    named = text.replace("terms_agreed", "names = ['vpn.example.org']\nterms_agreed")
    assert load_gateway(written(tmp_path, named), WHEN).gateway.certified == ("vpn.example.org",)


def test_routes_do_not_take_what_proves_the_names(tmp_path: Path) -> None:
    elsewhere = ROUTE.format('alpn = ["acme-tls/1"]')
    other_name = 'names = ["vpn.example.org", "www.example.org"]'
    to_own = ROUTE.format('sni = ["www.example.org"]')

    assert "no route for acme-tls/1" in problem_of(tmp_path, gateway_with(ACME + elsewhere))
    assert "other names than the" in problem_of(tmp_path, gateway_with(ACME + other_name + to_own))
    by_http = ACME + "challenge = 'http-01'" + elsewhere
    assert load_gateway(written(tmp_path, gateway_with(by_http)), WHEN)
