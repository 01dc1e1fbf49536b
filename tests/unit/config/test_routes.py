"""Servers behind a gateway, and proxies in front of it: what its file may say of them."""

import tomllib
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.unit.config.writing import GATEWAY, changed, written
from tunnelwrap.config.compose import routing, stream_limits
from tunnelwrap.config.effective import effective
from tunnelwrap.config.load import load, load_gateway
from tunnelwrap.demux.listener import Limits
from tunnelwrap.demux.routing import Backend, Route, Routing
from tunnelwrap.demux.sniff import Verdict
from tunnelwrap.errors import ConfigError

ROUTES = """
[[gateway.routes]]
sni = ["Other.example", "*.example.net"]
alpn = ["h2"]
backend = "127.0.0.1:8443"
send_proxy = "v2"

[[gateway.routes]]
begins_with = "ssh"
backend = "[2001:db8::1]:22"

[[gateway.routes]]
begins_with = "silent"
backend = "mail.example.net:25"
"""
MORE = """tls_ports = []
proxies = ["192.0.2.1", "10.0.0.0/8"]
route_silence_s = 1
route_idle_s = 0
strangers = 10
strangers_per_address = 2
"""
PLENTY = 1 << 20  # of descriptors


def gateway_with(routes: str, more: str = "tls_ports = []") -> str:
    return changed(GATEWAY, "tls_ports = []", more) + routes


def test_none_by_default(tmp_path: Path) -> None:
    gateway = load_gateway(written(tmp_path, GATEWAY)).gateway

    assert routing(gateway) == Routing(own_names=frozenset({"vpn.example.org"}))
    assert stream_limits(gateway, PLENTY) == Limits()


def test_routes_in_their_order(tmp_path: Path) -> None:
    gateway = load_gateway(written(tmp_path, gateway_with(ROUTES, MORE))).gateway

    assert routing(gateway) == Routing(
        (
            Route(
                Verdict.TLS,
                Backend("127.0.0.1", 8443, "v2"),
                ("other.example", "*.example.net"),
                ("h2",),
            ),
            Route(Verdict.SSH, Backend("2001:db8::1", 22)),
            Route(Verdict.SILENT, Backend("mail.example.net", 25)),
        ),
        frozenset({"vpn.example.org"}),
        (ip_network("192.0.2.1/32"), ip_network("10.0.0.0/8")),
        silence_s=1,
        idle_s=0,
    )
    assert stream_limits(gateway, PLENTY) == Limits(strangers=10, strangers_per_origin=2)


def test_whoever_is_sent_on_has_no_more_than_half_of_the_descriptors(tmp_path: Path) -> None:
    gateway = load_gateway(written(tmp_path, GATEWAY)).gateway
    assert len(gateway.tcp_ports) == 1
    allowed = stream_limits(gateway, 1024)
    assert (allowed.forwarded, allowed.forwarded_per_origin) == (256, 128)  # of two each
    assert stream_limits(gateway, 8).forwarded_per_origin == 1

    ports = "tcp_ports = [4500, 4501]\ntls_ports = []"
    gateway = load_gateway(written(tmp_path, gateway_with("", ports))).gateway
    assert stream_limits(gateway, 1024).forwarded == 128

    ports = "tcp_ports = []\ntls_ports = []"
    gateway = load_gateway(written(tmp_path, gateway_with("", ports))).gateway
    assert stream_limits(gateway, 1024).forwarded == 256


def test_strangers_have_no_more_than_an_eighth_of_the_descriptors(tmp_path: Path) -> None:
    gateway = load_gateway(written(tmp_path, GATEWAY)).gateway
    allowed = stream_limits(gateway, 256)
    assert (allowed.strangers, allowed.strangers_per_origin) == (32, 32)
    assert stream_limits(gateway, 4).strangers == 1


def test_they_are_shown_and_what_is_shown_can_be_loaded(tmp_path: Path) -> None:
    text = gateway_with(ROUTES, MORE)
    shown = effective(load(written(tmp_path, text)))
    routes = tomllib.loads(shown)["gateway"]["routes"]

    assert [route["backend"] for route in routes] == [
        *("127.0.0.1:8443", "[2001:db8::1]:22", "mail.example.net:25")
    ]
    assert routes[0]["sni"] == ["other.example", "*.example.net"]
    (tmp_path / "psk").write_text("secret")
    loadable = changed(shown, 'psk = "(hidden)"', 'psk_file = "psk"')
    again = effective(load(written(tmp_path, loadable, "again.toml")))
    assert tomllib.loads(again)["gateway"] == tomllib.loads(shown)["gateway"]


@pytest.mark.parametrize("backend", ["localhost:8443", "127.0.0.1:443", "other.example:4500"])
def test_backends_that_are_not_the_gateway_itself(tmp_path: Path, backend: str) -> None:
    routes = f'[[gateway.routes]]\nbackend = "{backend}"\n'

    assert load_gateway(written(tmp_path, gateway_with(routes))).gateway.routes


HOST_PORT = "expected HOST:PORT, such as 127.0.0.1:8443 or [::1]:22"
NAME = "expected a host name, or *.domain for all names below a domain"


@pytest.mark.parametrize(
    ("route", "line"),
    [
        ("", "[0].backend: found nothing, expected the server's HOST:PORT, such as 127.0.0.1:8443"),
        *(
            (f"backend = {text!r}", f"[0].backend: found {text!r}, {HOST_PORT}")
            for text in (
                *("443", ":443", "host", "host:", "host:0", "host:65536", "host:ssh", "a b:1"),
                *("2001:db8::1:443", "[192.0.2.1]:1", "[::1]", "[::1:1", "host:²", "http://a:1"),
            )
        ),
        ("backend = 443", f"[0].backend: found 443, {HOST_PORT}"),
        *(
            (f'backend = "h:1"\nsni = ["a", {text!r}]', f"[0].sni[1]: found {text!r}, {NAME}")
            for text in ("*", "*.", "a.*.b", "-a", "192.0.2.1", "a..b", "b*.c")
        ),
        (
            'backend = "h:1"\nalpn = ["schlüssel"]',
            "[0].alpn[0]: found 'schlüssel', expected the name of a protocol, such as h2",
        ),
        (
            'backend = "h:1"\nbegins_with = "smtp"',
            (
                "[0].begins_with: found 'smtp', expected 'tls', 'ssh', 'openvpn', 'http', 'other'"
                " or 'silent'"
            ),
        ),
        (
            'backend = "h:1"\nsend_proxy = "v3"',
            "[0].send_proxy: found 'v3', expected 'v1' or 'v2'",
        ),
        (
            'backend = "h:1"\nbegins_with = "ssh"\nsni = ["a"]',
            '[0]: expected begins_with = "tls" beside sni and alpn (it is ssh)',
        ),
        (
            'backend = "h:1"\nserver = "x"',
            (
                "[0].server: found an unknown key, expected one of begins_with, sni, alpn, backend,"
                " send_proxy"
            ),
        ),
    ],
)
def test_a_wrong_route(tmp_path: Path, route: str, line: str) -> None:
    path = written(tmp_path, gateway_with(f"[[gateway.routes]]\n{route}\n"))

    with pytest.raises(ConfigError) as caught:
        load(path)

    assert caught.value.problems == [f"{path}: gateway.routes{line}"]


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        (
            'sni = ["a.example", "VPN.example.org"]\nbackend = "h:1"',
            "other names than the gateway's, or alpn beside it (sni of routes[0])",
        ),
        *(
            (
                f'begins_with = "other"\nbackend = "{host}:4500"',
                "another backend than the gateway itself (backend of routes[0])",
            )
            for host in ("127.0.0.1", "[::1]", "localhost", "vpn.example.org")
        ),
    ],
)
def test_what_would_never_reach_anybody(tmp_path: Path, route: str, problem: str) -> None:
    path = written(tmp_path, gateway_with(f"[[gateway.routes]]\n{route}\n"))

    with pytest.raises(ConfigError) as caught:
        load(path)

    assert caught.value.problems == [f"{path}: gateway: expected {problem}"]


def test_the_port_for_a_reverse_proxy_is_no_server_behind_us(tmp_path: Path) -> None:
    web = "tls_ports = []\nwebsocket = {path = '/long-enough', ports = [8080]}"
    route = '[[gateway.routes]]\nbegins_with = "http"\nbackend = "127.0.0.{}:8080"\n'
    load(written(tmp_path, gateway_with(route.format(2), web)))

    with pytest.raises(ConfigError, match="expected another backend than the gateway itself"):
        load(written(tmp_path, gateway_with(route.format(1), web)))


def test_silence_is_shorter_than_the_deadline(tmp_path: Path) -> None:
    path = written(tmp_path, gateway_with("", "tls_ports = []\nroute_silence_s = 10"))

    with pytest.raises(ConfigError, match=r"route_silence_s: found 10, expected less than 10"):
        load(path)
