"""A certificate of one's own on a TLS port: files that someone else renews, while clients come."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from tests.kit.certs import BEGIN, Entity, authority, entity
from tests.unit.demux.gateway import Gateway, gateway, until
from tunnelwrap.daemon.certificates import FileKeeper, Times
from tunnelwrap.errors import ConfigError

NAME = "vpn.example.org"
OFTEN, NEVER = Times(poll_s=0.05), Times(poll_s=3600)
REQUEST = b"GET / HTTP/1.1\r\nHost: vpn.example.org\r\n\r\n"
CA = authority("CN=Web CA")


def own(number: int, *sans: str) -> Entity:
    return entity("CN=web", CA, number=number, sans=sans or (NAME,))


FIRST, OTHER = own(1), own(2)


class Files:
    """The certificate and its key."""

    def __init__(self, folder: Path, certificate: Path | None = None) -> None:
        self.certificate, self.key = certificate or folder / "web.pem", folder / "web.key"

    def write(self, new: Entity) -> None:
        """Put others in their place, as such programs do: whole files, one after the other."""
        for path, octets in ((self.certificate, new.pem), (self.key, new.key_pem)):
            draft = path.with_suffix(".new")
            draft.write_bytes(octets)
            draft.replace(path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.write(FIRST)
    return made


@asynccontextmanager
async def kept(files: Files, times: Times = OFTEN) -> AsyncIterator[tuple[FileKeeper, Gateway]]:
    keeper = FileKeeper(NAME, files.certificate, files.key, times)
    async with gateway(shown=keeper.shown) as gate:
        running = asyncio.get_running_loop().create_task(keeper.run())
        try:
            yield keeper, gate
        finally:
            running.cancel()


def connect(gate: Gateway) -> ssl.SSLSocket:
    context = ssl.create_default_context(cadata=CA.pem.decode())
    sock = socket.create_connection(("127.0.0.1", gate.port), timeout=10)
    return context.wrap_socket(sock, server_hostname=NAME)


def seen(client: ssl.SSLSocket) -> x509.Certificate:
    der = client.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def ask(client: ssl.SSLSocket) -> bytes:
    client.sendall(REQUEST)
    return client.recv(4000)


async def test_new_files_while_a_connection_is_open(files: Files) -> None:
    async with kept(files) as (keeper, gate):
        with await asyncio.to_thread(connect, gate) as client:
            assert seen(client) == FIRST.certificate
            assert b"200 OK" in await asyncio.to_thread(ask, client)
            before = keeper.shown.context
            files.write(OTHER)
            await until(lambda: keeper.shown.context is not before)
            assert b"200 OK" in await asyncio.to_thread(ask, client)
            with await asyncio.to_thread(connect, gate) as later:
                assert seen(later) == OTHER.certificate
        assert keeper.status()["problem"] is None


async def test_at_once_when_told(files: Files) -> None:
    async with kept(files, NEVER) as (keeper, gate):
        await asyncio.sleep(0)
        files.write(OTHER)
        keeper.reload()
        before = keeper.shown.context
        await until(lambda: keeper.shown.context is not before)
        with await asyncio.to_thread(connect, gate) as client:
            assert seen(client) == OTHER.certificate


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda files: files.certificate.write_bytes(b"half a"), "web.pem"),
        (lambda files: files.certificate.unlink(), "No such file"),
        (lambda files: files.key.write_bytes(own(3).key_pem), "key values mismatch"),
        (lambda files: files.write(expired()), "not valid at this time"),
    ],
)
async def test_what_will_not_do_is_not_taken(
    files: Files, spoil: object, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(spoil)
    async with kept(files) as (keeper, gate):
        spoil(files)
        await until(lambda: why in str(keeper.status()["problem"]))
        line = caplog.messages[-1]
        assert line.startswith("no new certificate: ")
        assert why in line
        assert "the one in use is good until 20" in line
        with await asyncio.to_thread(connect, gate) as client:
            assert seen(client) == FIRST.certificate

        files.write(OTHER)
        await until(lambda: keeper.status()["problem"] is None)
        with await asyncio.to_thread(connect, gate) as client:
            assert seen(client) == OTHER.certificate


def expired() -> Entity:
    end = datetime.now(UTC) - timedelta(days=1)
    return entity("CN=web", CA, number=4, sans=(NAME,), valid=(BEGIN, end))


def test_files_that_will_not_do_from_the_beginning(files: Files) -> None:
    files.key.unlink()
    with pytest.raises(ConfigError, match=r"web\.key: No such file"):
        FileKeeper(NAME, files.certificate, files.key)


@pytest.mark.parametrize(
    ("sans", "fits"),
    [
        (("VPN.example.org",), True),
        (("*.example.org", "example.org"), True),
        (("*.vpn.example.org", "example.org", "*.org"), False),
        (("vpn.example.com", "192.0.2.1"), False),
    ],
)
def test_a_certificate_for_others(
    files: Files, caplog: pytest.LogCaptureFixture, sans: tuple[str, ...], *, fits: bool
) -> None:
    files.write(own(5, *sans))
    FileKeeper(NAME, files.certificate, files.key)
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    if fits:
        assert warnings == []
    else:
        (warning,) = warnings
        assert f"names {', '.join(sans)}, and not {NAME}" in warning
        assert "gateway.name must be one that it has" in warning


def test_an_address_is_found_however_it_is_written(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    files.write(own(5, "2001:db8::1"))
    FileKeeper("2001:DB8:0::1", files.certificate, files.key)
    assert caplog.messages == []


async def test_links_are_followed(files: Files, tmp_path: Path) -> None:
    """As certbot has them: the link changes, and the files never do."""
    link = tmp_path / "live.pem"
    link.symlink_to(files.certificate)
    async with kept(Files(tmp_path, link)) as (keeper, _):
        before = keeper.shown.context
        (tmp_path / "other.pem").write_bytes(OTHER.pem)
        files.key.write_bytes(OTHER.key_pem)
        link.unlink()
        link.symlink_to(tmp_path / "other.pem")
        await until(lambda: keeper.shown.context is not before)
