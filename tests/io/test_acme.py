"""Certificates by ACME from a real server (Pebble), shown by a real listener on loopback."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509

from tests.kit.pebble import (
    EAB_KEY,
    EAB_KEY_ID,
    REFUSED,
    Pebble,
    client_context,
    free_port,
    pebble,
)
from tests.unit.config.writing import GATEWAY, changed
from tests.unit.demux.gateway import talk, until, write_identity
from tunnelwrap.config.load import load_gateway
from tunnelwrap.crypto.x509 import load_certificates, server_names
from tunnelwrap.daemon.certificates import Keeper, Times, keeper_of
from tunnelwrap.demux.listener import Limits, Listener, Site
from tunnelwrap.demux.shown import ACME_PROTOCOL

NAME = "vpn.example.org"
QUICK = Times(poll_s=0.1, retry_s=0.3, most_s=0.6)
PATIENT = Limits(deadline_s=60)
LOCALHOST = ip_address("127.0.0.1")
TLS_PORT, HTTP_PORT = free_port(), free_port()
REQUEST = b"GET / HTTP/1.1\r\nHost: vpn.example.org\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pebble]:
    folder = tmp_path_factory.mktemp("pebble")
    with pebble(folder, tls_port=TLS_PORT, http_port=HTTP_PORT) as running:
        yield running


@asynccontextmanager
async def kept(
    folder: Path, server: Pebble, more: str = "", port: int = TLS_PORT
) -> AsyncIterator[Keeper]:
    """A keeper for a configuration, and the TLS port that shows what it has."""
    text = (
        changed(GATEWAY, "tls_ports = []", f"tls_ports = [{port}]\nlisten = ['127.0.0.1']")
        + f"\n[gateway.acme]\ndirectory = '{server.directory}'\nterms_agreed = true\n"
        + f"ca = '{server.ca_file}'\nhttp_port = {HTTP_PORT}\n{more}\n"
    )
    file = folder / "gateway.toml"
    file.write_text(changed(text, "[gateway]", f"[gateway]\nstate_directory = '{folder}/state'"))
    file.chmod(0o600)
    keeper = keeper_of(load_gateway(file).gateway, QUICK)
    assert keeper is not None
    listener = Listener([LOCALHOST], port, lambda *_: None, Site(keeper.shown), PATIENT)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(each.run()) for each in (listener, keeper)]
        try:
            yield keeper
        finally:
            for task in running:
                task.cancel()


async def shown(port: int = TLS_PORT, alpn: str = "http/1.1") -> x509.Certificate | None:
    """The certificate that a TLS client sees; None: its handshake fails."""
    return await asyncio.to_thread(_shown, port, alpn)


def _shown(port: int, alpn: str) -> x509.Certificate | None:
    context = client_context()
    context.set_alpn_protocols([alpn])
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 10) as sock,
            context.wrap_socket(sock, server_hostname=NAME) as tls,
        ):
            der = tls.getpeercert(binary_form=True)
    except ssl.SSLError:
        return None
    assert der is not None
    return x509.load_der_x509_certificate(der)


async def issued(keeper: Keeper) -> None:
    """Wait for a certificate."""
    async with asyncio.timeout(30):
        while keeper.status()["not_after"] is None:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)


@pytest.mark.rfc("8737", "3")
@pytest.mark.rfc("8555", "8.3")
@pytest.mark.parametrize("challenge", ["tls-alpn-01", "http-01"])
async def test_the_first_certificate(tmp_path: Path, server: Pebble, challenge: str) -> None:
    names = f"challenge = '{challenge}'\nnames = ['{NAME}', 'www.example.org']"
    async with kept(tmp_path, server, names) as keeper:
        assert keeper.status()["not_after"] is None
        assert await shown() is None
        await issued(keeper)
        own = await shown()
        assert own is not None
        assert set(server_names(own)) == {NAME, "www.example.org"}
        page = await asyncio.to_thread(talk, TLS_PORT, REQUEST, context=client_context())
        assert page.startswith(b"HTTP/1.1 200 OK")
        with pytest.raises(ConnectionRefusedError):  # it listened for as long as it was asked
            await asyncio.to_thread(talk, HTTP_PORT)
        assert await shown(alpn=ACME_PROTOCOL) is None  # nothing is proven any more
        assert keeper.status()["problem"] is None


async def test_what_is_kept_is_for_its_owner_and_used_again(tmp_path: Path, server: Pebble) -> None:
    async with kept(tmp_path, server) as keeper:
        await issued(keeper)
        first = await shown()
    files = [each for each in (tmp_path / "state").rglob("*") if each.is_file()]
    assert {each.name for each in files} == {"account.key", "certificate.pem"}
    assert {each.stat().st_mode & 0o777 for each in files} == {0o600}
    before = server.orders()

    async with kept(tmp_path, server) as keeper:
        assert await shown() == first
        keeper.reload()
        await asyncio.sleep(3 * QUICK.poll_s)
        assert await shown() == first
    assert server.orders() == before


async def test_what_was_kept_and_is_spoiled_is_had_anew(
    tmp_path: Path, server: Pebble, caplog: pytest.LogCaptureFixture
) -> None:
    async with kept(tmp_path, server) as keeper:
        await issued(keeper)
    (stored,) = (tmp_path / "state").rglob("certificate.pem")
    stored.write_bytes(stored.read_bytes()[:500])

    async with kept(tmp_path, server) as keeper:
        assert "the stored certificate is of no use: " in _warning(caplog)
        await issued(keeper)
        assert await shown() is not None


async def test_another_name_takes_another_certificate(tmp_path: Path, server: Pebble) -> None:
    async with kept(tmp_path, server) as keeper:
        await issued(keeper)
    async with kept(tmp_path, server, f"names = ['{NAME}', 'more.example.org']") as keeper:
        assert keeper.status()["names"] == [NAME]  # it is better than none
        await until(lambda: "more.example.org" in str(keeper.status()["names"]))


async def test_renewal(tmp_path: Path) -> None:
    """At two thirds of the lifetime, while connections stay."""
    port, lifetime_s = free_port(), 18
    with pebble(tmp_path, tls_port=port, lifetime_s=lifetime_s) as server:
        async with kept(tmp_path, server, port=port) as keeper:
            await issued(keeper)
            first = keeper.status()["not_after"]
            renewal = datetime.fromisoformat(str(keeper.status()["renewal"]))
            own = await shown(port)
            assert own is not None
            begin, end = own.not_valid_before_utc, own.not_valid_after_utc
            assert 0.64 < (renewal - begin) / (end - begin) < 0.69
            client = await asyncio.to_thread(_client, port)
            with client:
                async with asyncio.timeout(40):
                    while keeper.status()["not_after"] == first:  # noqa: ASYNC110 - nobody tells
                        await asyncio.sleep(0.05)
                assert renewal < datetime.now(UTC) < datetime.fromisoformat(str(first))
                assert (await asyncio.to_thread(_ask, client)).startswith(b"HTTP/1.1 200 OK")
            (stored,) = (tmp_path / "state").rglob("certificate.pem")
            own = load_certificates(stored.read_bytes())[0]
            assert await shown(port) == own
            assert own.not_valid_after_utc > datetime.fromisoformat(str(first))


def _client(port: int) -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    return client_context().wrap_socket(sock, server_hostname=NAME)


def _ask(client: ssl.SSLSocket) -> bytes:
    client.sendall(REQUEST)
    return client.recv(1000)


async def test_an_account_that_belongs_to_another_one(tmp_path: Path) -> None:
    port = free_port()
    with pebble(tmp_path, tls_port=port, needs_binding=True) as server:
        async with kept(tmp_path, server, port=port) as keeper:
            await fails(keeper, "externalAccountBinding")
        bound = f"eab_key_id = '{EAB_KEY_ID}'\neab_key = '{EAB_KEY}'\nemail = 'me@example.org'"
        async with kept(tmp_path, server, bound, port=port) as keeper:
            await issued(keeper)


async def test_a_spoiled_key_of_an_account_is_named(tmp_path: Path, server: Pebble) -> None:
    async with kept(tmp_path, server) as keeper:
        await issued(keeper)
    (key,) = (tmp_path / "state").rglob("account.key")
    key.write_text("nothing\n")
    key.with_name("certificate.pem").unlink()

    async with kept(tmp_path, server) as keeper:
        await fails(keeper, f"{key}: expected the key of an account")


async def fails(keeper: Keeper, text: str) -> None:
    """Wait until it says why it has no certificate."""

    def says() -> bool:
        return text in str(keeper.status()["problem"])

    await until(says)


async def test_a_server_that_refuses(
    tmp_path: Path, server: Pebble, caplog: pytest.LogCaptureFixture
) -> None:
    async with kept(tmp_path, server, f"names = ['{REFUSED}']") as keeper:
        await fails(keeper, REFUSED)
        assert await shown() is None
    line = _warning(caplog)
    assert line.startswith(f"no new certificate: {server.directory}: ")
    assert "tried again in 0 s, or by SIGHUP" in line
    assert "\n" not in line


async def test_a_proof_that_is_not_seen(
    tmp_path: Path, server: Pebble, caplog: pytest.LogCaptureFixture
) -> None:
    """The server looks at another port than ours."""
    async with kept(tmp_path, server, port=free_port()) as keeper:
        await fails(keeper, f"{NAME} is not proven by tls-alpn-01: ")
    assert "\n" not in _warning(caplog)


async def test_a_port_that_is_taken(tmp_path: Path, server: Pebble) -> None:
    with socket.create_server(("127.0.0.1", HTTP_PORT)):
        async with kept(tmp_path, server, "challenge = 'http-01'") as keeper:
            await fails(keeper, f"cannot listen on TCP port {HTTP_PORT}")


@pytest.mark.parametrize(
    ("directory", "text"),
    [
        ("https://127.0.0.1:9/", "connection refused"),
        ("https://nobody.invalid/", "name"),
        ("{}/none", "404"),
    ],
)
async def test_a_server_that_is_not_there(
    tmp_path: Path,
    server: Pebble,
    directory: str,
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone = replace(server, directory=directory.format(server.directory))
    async with kept(tmp_path, gone) as keeper:
        await fails(keeper, text)
    assert len(_warning(caplog)) < 300


async def test_a_server_that_nobody_certifies(tmp_path: Path, server: Pebble) -> None:
    untrusted = replace(server, ca_file=write_identity(tmp_path)[0])
    async with kept(tmp_path, untrusted) as keeper:
        await fails(keeper, "its TLS certificate: ")


def _warning(caplog: pytest.LogCaptureFixture) -> str:
    """The first one."""
    return next(each.getMessage() for each in caplog.records if each.levelno == logging.WARNING)
