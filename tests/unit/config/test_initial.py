"""A gateway made from nothing: it loads, its certificates do what they are for, nothing is lost."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.kit.certs import authority, entity
from tests.unit.config.writing import WHEN, changed
from tunnelwrap.config.compose import connection_policies
from tunnelwrap.config.effective import effective
from tunnelwrap.config.initial import Made, make
from tunnelwrap.config.load import load_client, load_gateway
from tunnelwrap.crypto.x509 import TrustStore
from tunnelwrap.errors import AuthenticationFailed, ConfigError
from tunnelwrap.ike.policy import CertificateCredential, LocalAuthentication, PeerAuthentication
from tunnelwrap.path import Carrier

ADDRESS = "203.0.113.2"
NAME = "vpn.example.org"


def made(directory: Path, client: str = "alice", **options: object) -> Made:
    return make(directory, {"client": client, **options}, WHEN)


def problems_of(directory: Path, **options: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make(directory, {"client": "alice", **options}, WHEN)
    return caught.value.problems


def everything_in(directory: Path) -> dict[str, bytes | None]:
    """All files with their octets, and all directories, hidden ones too."""
    return {
        str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes()
        for path in directory.rglob("*")
    }


# --- what is there ---------------------------------------------------------------------------


def test_everything_is_made(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "gateway"

    result = made(directory, address=ADDRESS)

    names = ["gateway.toml", "gateway.pem", "gateway.key", "ca.pem", "ca.key"]
    assert result.files == tuple(directory / name for name in [*names, "alice/client.toml"])
    assert set(everything_in(directory)) == {*names, "alice", "alice/client.toml"}
    assert result.gateway == directory / "gateway.toml"
    assert result.client == directory / "alice" / "client.toml"
    assert result.is_new_gateway


def test_a_proxy_in_front_of_the_gateway_is_believed(tmp_path: Path) -> None:
    result = made(tmp_path, address=ADDRESS, proxy=("172.30.0.2", "fd00::/64"))

    proxies = load_gateway(result.gateway, WHEN).gateway.proxies
    assert [str(each) for each in proxies] == ["172.30.0.2/32", "fd00::/64"]


def test_behind_a_web_server_that_has_tls(tmp_path: Path) -> None:
    path = "/OiChohXah5ziehae3ooK"
    result = made(
        tmp_path, address=ADDRESS, name=NAME, websocket="127.0.0.1:8080", websocket_path=path
    )

    gateway = load_gateway(result.gateway, WHEN).gateway
    assert (gateway.tls_ports, gateway.tls) == ((), None)
    assert gateway.websocket is not None
    assert gateway.websocket.ports == (8080,)
    assert [str(each) for each in gateway.websocket.listen] == ["127.0.0.1"]
    client = load_client(result.client, WHEN).client
    assert client.carriers == (Carrier.UDP, Carrier.TCP, Carrier.WEBSOCKET)
    assert client.websocket_path is not None
    assert client.websocket_path.path == path
    assert (client.tls_port, client.tls_ca) == (443, None)  # whom the system trusts


def test_only_certificates_can_be_read_by_others(tmp_path: Path) -> None:
    directory = tmp_path / "gateway"
    made(directory, address=ADDRESS)

    open_to_others = {
        path.name
        for path in [directory, *directory.rglob("*")]
        if stat.S_IMODE(path.stat().st_mode) & 0o077
    }

    assert open_to_others <= {"gateway.pem", "ca.pem"}


def test_the_clients_file_is_all_it_needs(tmp_path: Path) -> None:
    result = made(tmp_path / "gateway", address=ADDRESS)
    elsewhere = result.client.rename(tmp_path / "client.toml")

    assert '"(in this file: CN=alice@203.0.113.2)"' in effective(load_client(elsewhere, WHEN))


def test_by_default_everything_goes_through_the_tunnel(tmp_path: Path) -> None:
    result = made(tmp_path, address=ADDRESS)
    gateway, client = load_gateway(result.gateway, WHEN), load_client(result.client, WHEN)

    everything = ("0.0.0.0/0", "::/0")
    assert gateway.connections["clients"].child.local_ts == everything
    assert client.connection.child.peer_ts == everything
    four, six = gateway.pools["clients"].networks
    assert four == IPv4Network("10.20.0.0/24")
    assert six.prefixlen == 64
    assert IPv6Network("fd00::/8").supernet_of(IPv6Network(six))
    assert (client.connection.requests_ipv4, client.connection.requests_ipv6) == (True, True)


def test_ipv6_pools_differ_from_gateway_to_gateway(tmp_path: Path) -> None:
    pools = {
        load_gateway(made(tmp_path / name, address=ADDRESS).gateway, WHEN).pools["clients"].networks
        for name in ("one", "other")
    }

    assert len(pools) == 2


@pytest.mark.parametrize(
    ("networks", "pools", "families"),
    [
        (("10.66.0.0/24",), (), {4}),
        (("fd66::/64",), (), {6}),
        (("10.66.0.0/24", "fd66::/64"), (), {4, 6}),
        ((), ("10.9.0.0/16",), {4}),
        ((), ("fd09::/64",), {6}),
        (("10.66.0.0/24",), ("10.9.0.0/16", "fd09::/64"), {4, 6}),
    ],
)
def test_networks_and_pools_fit(
    tmp_path: Path, networks: tuple[str, ...], pools: tuple[str, ...], families: set[int]
) -> None:
    result = made(tmp_path, address=ADDRESS, network=networks, pool=pools)
    gateway, client = load_gateway(result.gateway, WHEN), load_client(result.client, WHEN)

    given = gateway.pools["clients"].networks
    assert {network.version for network in given} == families
    assert not pools or tuple(str(network) for network in given) == pools
    assert not networks or client.connection.child.peer_ts == networks
    assert client.connection.requests_ipv4 == (4 in families)
    assert client.connection.requests_ipv6 == (6 in families)
    assert ("0.0.0.0/0" in client.connection.child.peer_ts) == (not networks and 4 in families)


def test_name_servers(tmp_path: Path) -> None:
    result = made(tmp_path, address=ADDRESS, dns=("9.9.9.9", "2620:fe::fe"))

    pool = load_gateway(result.gateway, WHEN).pools["clients"]
    assert [str(address) for address in pool.dns] == ["9.9.9.9", "2620:fe::fe"]


# --- who is who ------------------------------------------------------------------------------

# By case: the options, the gateway's identity, and where the client connects to.
LONG = f"{'a' * 63}.{'b' * 63}.example"
NAMINGS: dict[str, tuple[dict[str, object], str, str]] = {
    "address": ({"address": ADDRESS}, ADDRESS, ADDRESS),
    "ipv6": ({"address": "2001:db8::1"}, "2001:db8::1", "2001:db8::1"),
    "name": ({"address": NAME}, NAME, NAME),
    "absolute": ({"address": f"{NAME}."}, NAME, NAME),
    "both": ({"address": ADDRESS, "name": NAME}, NAME, ADDRESS),
    "two-names": ({"address": "dyn.example.net", "name": NAME}, NAME, "dyn.example.net"),
    "long": ({"address": LONG}, LONG, LONG),
}


@pytest.fixture(params=NAMINGS)
def naming(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Made, str, str]:
    """A gateway of each kind of name; its identity, and where its client connects to."""
    options, identity, address = NAMINGS[request.param]
    return make(tmp_path, {"client": "alice", **options}, WHEN), identity, address


def test_the_client_finds_the_gateway(naming: tuple[Made, str, str]) -> None:
    result, identity, address = naming
    client = load_client(result.client, WHEN).client

    assert client.gateway == address
    assert client.server_name == (None if address == identity else identity)


def test_both_prove_who_they_are(naming: tuple[Made, str, str]) -> None:
    result, identity, _ = naming
    (gateway,) = connection_policies(load_gateway(result.gateway, WHEN))
    (client,) = connection_policies(load_client(result.client, WHEN))

    assert str(gateway.local.identity) == identity
    assert str(client.local.identity) == result.client_id
    judge(client.local, gateway.peer)
    judge(gateway.local, client.peer)
    with pytest.raises(AuthenticationFailed):
        judge(client.local, client.peer)


def judge(local: LocalAuthentication, peer: PeerAuthentication) -> None:
    """What a peer checks, save for the signature."""
    assert isinstance(local.credential, CertificateCredential)
    assert peer.trust is not None
    peer.trust.validate(local.credential.chain, WHEN)
    if not peer.identity.matches(local.identity):
        raise AuthenticationFailed("another was expected")


def test_the_gateways_certificate_is_good_for_tls(tmp_path: Path) -> None:
    for number, (options, identity, _) in enumerate(NAMINGS.values()):
        directory = tmp_path / str(number)
        result = make(directory, {"client": "alice", **options}, datetime.now(UTC))
        file = load_client(result.client)
        assert file.client.tls_ca is not None
        (ca,) = file.client.tls_ca.certificates
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(directory / "gateway.pem", directory / "gateway.key")
        client = ssl.create_default_context(cadata=ca.public_bytes(Encoding.PEM).decode())
        client.verify_flags |= ssl.VERIFY_X509_STRICT

        assert shake_hands(client, server, identity)
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(client, server, "other.example.org")


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> bool:
    """Whether both ends complete a handshake in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=name),
        server.wrap_bio(up, down, server_side=True),
    ]
    done = [False, False]
    for _ in range(10):
        for index, end in enumerate(ends):
            try:
                end.do_handshake()
                done[index] = True
            except ssl.SSLWantReadError:
                pass
    return all(done)


def certificates_of(directory: Path) -> dict[str, x509.Certificate]:
    (client,) = connection_policies(load_client(directory / "alice" / "client.toml", WHEN))
    assert isinstance(client.local.credential, CertificateCredential)
    return {
        "ca": x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes()),
        "gateway": x509.load_pem_x509_certificate((directory / "gateway.pem").read_bytes()),
        "alice": x509.load_der_x509_certificate(client.local.credential.chain[0]),
    }


def test_certificates_say_what_they_are_for(tmp_path: Path) -> None:
    made(tmp_path, address=ADDRESS, name=NAME)
    certificates = certificates_of(tmp_path)
    ca = certificates["ca"].extensions
    identifier = ca.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest

    assert ca.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ca.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert len({each.serial_number for each in certificates.values()}) == 3
    purposes = {
        "gateway": ExtendedKeyUsageOID.SERVER_AUTH,
        "alice": ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    for name, purpose in purposes.items():
        certificate, own = certificates[name], certificates[name].extensions
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        usage = own.get_extension_for_class(x509.KeyUsage).value
        issuer = own.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        (granted,) = own.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert not own.get_extension_for_class(x509.BasicConstraints).value.ca
        assert (usage.digital_signature, usage.key_cert_sign) == (True, False)
        assert issuer.key_identifier == identifier
        assert granted == purpose
        assert life == timedelta(days=825)
        assert certificate.not_valid_before_utc < WHEN


def test_authorities_can_be_told_apart(tmp_path: Path) -> None:
    for name in ("one", "other"):
        made(tmp_path / name, address=ADDRESS)
    one, other = (certificates_of(tmp_path / name) for name in ("one", "other"))

    assert one["ca"].subject != other["ca"].subject
    with pytest.raises(AuthenticationFailed):
        TrustStore([one["ca"]]).validate([other["alice"].public_bytes(Encoding.DER)], WHEN)


# --- another client --------------------------------------------------------------------------


def test_another_client_of_the_same_gateway(tmp_path: Path) -> None:
    alice = made(tmp_path, address=ADDRESS, name=NAME, network=("10.66.0.0/24",))
    before = everything_in(tmp_path)

    bob = made(tmp_path, "bob")

    after = everything_in(tmp_path)
    assert bob.files == (tmp_path / "bob" / "client.toml",)
    assert not bob.is_new_gateway
    assert before.items() <= after.items()
    assert set(after) - set(before) == {"bob", "bob/client.toml"}
    (gateway,) = connection_policies(load_gateway(bob.gateway, WHEN))
    files = [load_client(each.client, WHEN) for each in (alice, bob)]
    assert files[0].client.gateway == files[1].client.gateway == ADDRESS
    assert files[1].connection.child.peer_ts == ("10.66.0.0/24",)
    chains = set()
    for file in files:
        (policy,) = connection_policies(file)
        judge(policy.local, gateway.peer)
        assert isinstance(policy.local.credential, CertificateCredential)
        chains.add(policy.local.credential.chain)
    assert len(chains) == 2


def test_another_client_may_connect_to_another_address(tmp_path: Path) -> None:
    made(tmp_path, address=ADDRESS)

    bob = made(tmp_path, "bob", address="198.51.100.7")

    client = load_client(bob.client, WHEN).client
    assert (client.gateway, client.server_name) == ("198.51.100.7", ADDRESS)


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(changed(path.read_text(), old, new))


def test_another_client_follows_what_was_edited(tmp_path: Path) -> None:
    gateway = made(tmp_path, address=NAME).gateway
    ports = "tls_ports = [8443, 443]\ntcp_ports = []\nudp_nat_port = 4501\n"
    edit(gateway, f'name = "{NAME}"\n', f'name = "{NAME}"\n{ports}')
    edit(gateway, 'local_ts = ["0.0.0.0/0", "::/0"]', 'local_ts = "dynamic"')
    edit(gateway, 'pool = "clients"\n', "")

    file = load_client(made(tmp_path, "bob").client, WHEN)

    assert file.client.carriers == (Carrier.UDP, Carrier.TLS, Carrier.WEBSOCKET)
    assert (file.client.tls_port, file.client.udp_nat_port) == (8443, 4501)
    assert file.connection.child.peer_ts == ()
    assert not file.connection.requests_ipv4


def test_all_clients_have_the_gateways_secret_path(tmp_path: Path) -> None:
    gateway = load_gateway(made(tmp_path / "one", address=NAME).gateway, WHEN).gateway
    other = load_gateway(made(tmp_path / "other", address=NAME).gateway, WHEN).gateway
    clients = [
        load_client(path, WHEN).client
        for path in (tmp_path / "one/alice/client.toml", made(tmp_path / "one", "bob").client)
    ]

    assert gateway.websocket is not None
    assert other.websocket is not None
    assert gateway.websocket.path != other.websocket.path
    assert len(gateway.websocket.path.path) == 1 + 24
    assert [client.websocket_path for client in clients] == [gateway.websocket.path] * 2
    assert clients[0].carriers == tuple(Carrier)


@pytest.mark.parametrize(
    ("ports", "is_offered"), [("", False), ("ports = [8080]\n", True)], ids=["none", "proxy"]
)
def test_without_a_web_server_there_is_no_websocket(
    tmp_path: Path, ports: str, *, is_offered: bool
) -> None:
    gateway = made(tmp_path, address=NAME).gateway
    edit(gateway, f'name = "{NAME}"\n', f'name = "{NAME}"\ntls_ports = []\n')
    edit(gateway, "[gateway.websocket]\n", f"[gateway.websocket]\n{ports}")

    client = load_client(made(tmp_path, "bob").client, WHEN).client

    assert (Carrier.WEBSOCKET in client.carriers) == is_offered
    assert (client.websocket_path is not None) == is_offered


def test_a_tls_certificate_of_a_public_authority_is_left_to_the_system(tmp_path: Path) -> None:
    gateway = made(tmp_path, address=NAME).gateway
    public = entity(f"CN={NAME}", authority("CN=Public"), sans=[NAME])
    (tmp_path / "public.pem").write_bytes(public.pem)
    (tmp_path / "public.key").write_bytes(public.key_pem)
    tls = '[gateway.tls]\ncertificate = "{0}.pem"\nkey = "{0}.key"\n'
    edit(gateway, tls.format("gateway"), tls.format("public"))

    assert load_client(made(tmp_path, "bob").client, WHEN).client.tls_ca is None


def test_a_gateway_with_a_psk_has_its_name_for_address(tmp_path: Path) -> None:
    gateway = made(tmp_path, address=ADDRESS, name=NAME).gateway
    edit(gateway, 'pool = "clients"\n', 'pool = "clients"\npsk = "secret"\n')
    local = f'[connections.clients.local]\nid = "{NAME}"\n'
    credential = 'certificate = "gateway.pem"\nkey = "gateway.key"\n'
    edit(gateway, local + credential, local)

    assert load_client(made(tmp_path, "bob").client, WHEN).client.gateway == NAME


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "taken", ["gateway.pem", "gateway.key", "ca.pem", "ca.key", "alice/client.toml", "alice/other"]
)
def test_nothing_is_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text("mine")
    before = everything_in(tmp_path)

    place = tmp_path / taken.partition("/")[0]
    expected = [f"{place}: exists already, and is not overwritten"]
    assert problems_of(tmp_path, address=ADDRESS) == expected
    assert everything_in(tmp_path) == before


def test_all_that_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.key").symlink_to("nowhere")
    (tmp_path / "alice").mkdir()

    names = [problem.partition(":")[0] for problem in problems_of(tmp_path, address=ADDRESS)]

    assert names == [str(tmp_path / "ca.key"), str(tmp_path / "alice")]


def test_the_same_client_twice(tmp_path: Path) -> None:
    made(tmp_path, address=ADDRESS)
    before = everything_in(tmp_path)

    assert problems_of(tmp_path) == [f"{tmp_path}/alice: exists already, and is not overwritten"]
    assert everything_in(tmp_path) == before


def test_a_gateway_twice(tmp_path: Path) -> None:
    made(tmp_path, address=ADDRESS)

    hint = f"{tmp_path}/gateway.toml exists; for another client of it give --client alone"
    options = {"name": NAME, "network": ("10.0.0.0/8",), "pool": ("10.9.0.0/16",), "dns": ("::1",)}
    options["proxy"] = ("10.0.0.9",)
    assert problems_of(tmp_path, address=ADDRESS, **options) == [
        f"--{option}: {hint}" for option in options
    ]


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({}, ["--address: found nothing, expected a host name or an IP address (there is no "]),
        ({"address": "a b"}, ["--address: found 'a b', expected a host name or an IP address"]),
        (
            {"address": "a b", "name": "-", "client": "../up", "dns": ("a",), "pool": ("b",)},
            [
                "--client: found '../up', expected at most 32 letters, digits, hyphens",
                "--address: found 'a b', expected a host name",
                "--name: found '-', expected a host name",
                "--pool[0]: found 'b', expected a network such as",
                "--dns[0]: found 'a', expected an IP address",
            ],
        ),
        (
            {"address": ADDRESS, "network": ("10.1.0.0/8",)},
            ["--network[0]: found '10.1.0.0/8', expected a network such as"],
        ),
        (
            {"address": ADDRESS, "network": ("fd66::/64",), "pool": ("10.9.0.0/16",)},
            ["expected a --pool of IPv6 for --network fd66::/64"],
        ),
        (
            {"address": ADDRESS, "pool": ("10.0.0.0/8", "10.9.0.0/16")},
            ["expected networks without a common address (10.0.0.0/8 and 10.9.0.0/16 overlap)"],
        ),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, object], problems: list[str]) -> None:
    directory = tmp_path / "gateway"

    found = problems_of(directory, **options)

    assert len(found) == len(problems)
    for line, begin in zip(found, problems, strict=True):
        assert line.startswith(begin), line
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("client", ["", ".", "..", "a/b", "a b", "é", "-a", "a" * 33, "a.b"])
def test_a_client_is_called_by_a_plain_name(tmp_path: Path, client: str) -> None:
    (line,) = problems_of(tmp_path, address=ADDRESS, client=client)

    assert line.startswith("--client: found ")


def test_the_authority_must_be_there_for_another_client(tmp_path: Path) -> None:
    made(tmp_path, address=ADDRESS)
    (tmp_path / "ca.key").rename(tmp_path / "kept-elsewhere")
    before = everything_in(tmp_path)

    assert problems_of(tmp_path, client="bob") == [f"{tmp_path}/ca.key: No such file or directory"]
    assert everything_in(tmp_path) == before
    (tmp_path / "ca.key").write_text("rubbish")
    (line,) = problems_of(tmp_path, client="bob")
    assert line.startswith(f"{tmp_path}/ca.pem, ca.key: private key cannot be read")


def test_a_gateway_that_expects_others(tmp_path: Path) -> None:
    gateway = made(tmp_path, address=ADDRESS).gateway
    edit(gateway, f'id = "*@{ADDRESS}"', 'id = "*.example.org"')

    assert problems_of(tmp_path, client="bob") == [
        f"gateway.toml: no connection expects bob@{ADDRESS} certified by ca.pem"
    ]


def test_a_gateway_that_is_wrong_gets_no_client(tmp_path: Path) -> None:
    gateway = made(tmp_path, address=ADDRESS).gateway
    edit(gateway, f'name = "{ADDRESS}"\n', f'name = "{ADDRESS}"\nhalf_open = 0\n')
    before = everything_in(tmp_path)

    assert problems_of(tmp_path, client="bob") == [
        f"{gateway}: gateway.half_open: found 0, expected at least 1"
    ]
    assert everything_in(tmp_path) == before


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    (line,) = problems_of(tmp_path / "file" / "gateway", address=ADDRESS)

    assert line.endswith(": Not a directory")
    assert everything_in(tmp_path) == {"file": b"mine"}
