"""Which server behind us a visitor is for."""

import pytest

from tunnelwrap.demux.routing import Backend, Route, Routing
from tunnelwrap.demux.sniff import Verdict
from tunnelwrap.wire.tls import ClientHello

ONE, TWO, REST = (Backend(name, 443) for name in ("one", "two", "rest"))
OURS = "vpn.example.org"


def tls(backend: Backend, *sni: str, alpn: tuple[str, ...] = ()) -> Route:
    return Route(Verdict.TLS, backend, sni, alpn)


def chosen(sni: str | None, *alpn: str, routes: tuple[Route, ...]) -> Backend | None:
    return Routing(routes, frozenset({OURS})).backend_for(ClientHello(sni, alpn))


@pytest.mark.parametrize(
    ("sni", "backend"),
    [
        ("other.example", ONE),
        ("OTHER.Example", ONE),
        ("other.example.", ONE),
        ("a.other.example", None),
        ("other.example.org", None),
        ("a.example.net", TWO),
        ("a.b.example.net", TWO),
        ("example.net", None),
        (".example.net", None),
        ("aexample.net", None),
        (OURS, None),
        (None, None),
    ],
)
def test_by_name(sni: str | None, backend: Backend | None) -> None:
    routes = (tls(ONE, "other.example"), tls(TWO, "third.example", "*.example.net"))
    assert chosen(sni, "h2", routes=routes) is backend


def test_the_first_that_fits_counts() -> None:
    routes = (tls(ONE, "a.example.net"), tls(TWO, "*.example.net"))
    assert chosen("a.example.net", routes=routes) is ONE
    assert chosen("a.example.net", routes=routes[::-1]) is TWO


def test_by_protocol() -> None:
    routes = (tls(ONE, "a.example", alpn=("h2",)), tls(TWO, alpn=("xmpp", "acme-tls/1")))
    assert chosen("a.example", "http/1.1", "h2", routes=routes) is ONE
    assert chosen("a.example", "http/1.1", routes=routes) is None
    assert chosen("a.example", routes=routes) is None
    assert chosen(None, "acme-tls/1", routes=routes) is TWO


def test_our_own_name_stays_here_unless_a_protocol_says_otherwise() -> None:
    everything = (tls(REST),)
    assert chosen(OURS, "h2", routes=everything) is None
    assert chosen("VPN.example.org", routes=everything) is None
    assert chosen(OURS, routes=(tls(ONE, "*.example.org"),)) is None
    assert chosen(OURS, "acme-tls/1", routes=(tls(ONE, alpn=("acme-tls/1",)),)) is ONE


def test_a_route_without_names_takes_all_the_rest() -> None:
    routes = (tls(ONE, "other.example"), tls(REST))
    assert chosen("other.example", routes=routes) is ONE
    assert chosen("unknown.example", routes=routes) is REST
    assert chosen(None, routes=routes) is REST


def test_by_the_first_octets() -> None:
    routing = Routing((Route(Verdict.SSH, ONE), Route(Verdict.SSH, TWO), tls(REST)))
    assert routing.backend_of(Verdict.SSH) is ONE
    assert routing.backend_of(Verdict.HTTP) is None
    assert routing.asked == {Verdict.SSH, Verdict.TLS}
    assert Routing().asked == frozenset()


def test_backends_in_words() -> None:
    assert [str(Backend(host, 22)) for host in ("gw", "192.0.2.1", "2001:db8::1")] == [
        *("gw:22", "192.0.2.1:22", "[2001:db8::1]:22")
    ]
