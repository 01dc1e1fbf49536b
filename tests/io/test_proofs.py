"""What proves to an ACME server that a name is ours, and who gets to see it."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.kit.certs import entity
from tests.kit.pebble import client_context, free_port
from tests.unit.demux.gateway import LOCALHOST, Gateway, gateway, open_client, talk, write_identity
from tunnelwrap.demux.http_proof import proving
from tunnelwrap.demux.shown import ACME_PROTOCOL, Shown, proof_context, server_context
from tunnelwrap.errors import TransportError

NAME, TOKEN, TEXT = "localhost", "DGyRejmCefe7v4NfDGDKfA", "DGyRejmCefe7v4NfDGDKfA.9jg46WB3rR"
PROOF = entity("CN=proof", None, number=11, sans=(NAME,))
PLACE = "/.well-known/acme-challenge"
SMALL = 100


@asynccontextmanager
async def proving_gateway(folder: Path) -> AsyncIterator[Gateway]:
    shown = Shown(server_context(*write_identity(folder)))
    (folder / "proof.pem").write_bytes(PROOF.pem + PROOF.key_pem)
    shown.proofs = {NAME: proof_context(folder / "proof.pem")}
    async with gateway(shown=shown) as gate:
        yield gate


async def sees_proof(gate: Gateway, *protocols: str) -> bool:
    """Whether who offers these protocols gets the proof."""
    context = client_context()
    context.set_alpn_protocols(list(protocols))
    client = await asyncio.to_thread(open_client, gate.port, context)
    with client:
        assert isinstance(client, ssl.SSLSocket)
        is_proof = client.getpeercert(binary_form=True) == PROOF.der
        assert (client.selected_alpn_protocol() == ACME_PROTOCOL) == is_proof
        if is_proof:
            assert await asyncio.to_thread(client.recv, SMALL) == b""  # and nothing else
    return is_proof


@pytest.mark.rfc("8737", "3")
async def test_it_is_for_who_offers_that_protocol_alone(tmp_path: Path) -> None:
    async with proving_gateway(tmp_path) as gate:
        assert await sees_proof(gate, ACME_PROTOCOL)
        assert not await sees_proof(gate, "http/1.1")
        assert not await sees_proof(gate, ACME_PROTOCOL, "http/1.1")
        assert gate.listener.counters["acme"] == 1


async def test_others_get_the_web_site_meanwhile(tmp_path: Path) -> None:
    async with proving_gateway(tmp_path) as gate:
        page = await gate.talk(b"GET / HTTP/1.0\r\n\r\n", context=client_context())
        assert page.startswith(b"HTTP/1.1 200 OK")


async def test_without_a_certificate_every_handshake_fails() -> None:
    async with gateway(shown=Shown()) as gate:
        with pytest.raises(ssl.SSLError, match="handshake failure"):
            await asyncio.to_thread(open_client, gate.port, client_context())
        await gate.counted("tls_failed")
        assert (await gate.talk(b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 400")


# --- by HTTP


@pytest.mark.rfc("8555", "8.3")
async def test_a_text_at_its_place() -> None:
    port = free_port()
    async with proving([LOCALHOST], port, {TOKEN: TEXT}):
        answer = await asked(port, f"GET {PLACE}/{TOKEN} HTTP/1.1\r\nHost: {NAME}\r\n\r\n")
        assert answer.startswith("HTTP/1.1 200 OK\r\n")
        assert "\r\nContent-Type: application/octet-stream\r\n" in answer
        assert answer.endswith(f"\r\n\r\n{TEXT}")
    with pytest.raises(ConnectionRefusedError):
        await asked(port, "")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"GET {PLACE}/other HTTP/1.1\r\nHost: a", "404"),
        (f"GET /{TOKEN} HTTP/1.1\r\nHost: a", "404"),
        (f"POST {PLACE}/{TOKEN} HTTP/1.1\r\nHost: a", "405"),
        ("GET / HTTP/1.1\r\nHost: a", "200"),
        ("nonsense", "400"),
    ],
)
async def test_all_else_is_answered_as_strangers_are(head: str, status: str) -> None:
    port = free_port()
    async with proving([LOCALHOST], port, {TOKEN: TEXT}):
        answer = await asked(port, f"{head}\r\n\r\n")
        assert answer.startswith(f"HTTP/1.1 {status} ")
        assert TEXT not in answer


async def test_a_line_without_end() -> None:
    port = free_port()
    async with proving([LOCALHOST], port, {TOKEN: TEXT}):
        assert (await asked(port, "X" * 20000)).startswith("HTTP/1.1 414 ")


async def test_idle_visitors_from_one_address_are_so_many_and_no_more() -> None:
    port = free_port()
    async with proving([LOCALHOST], port, {TOKEN: TEXT}):
        with ExitStack() as idle:
            for _ in range(64):
                idle.enter_context(await asyncio.to_thread(socket.create_connection, (NAME, port)))
            assert await asked(port, "nonsense\r\n") == ""
        while not (await asked(port, "nonsense\r\n")).startswith("HTTP/1.1 400 "):
            pass


async def test_a_port_that_somebody_has() -> None:
    port = free_port()
    async with proving([LOCALHOST], port, {}):
        with pytest.raises(TransportError, match=f"cannot listen on TCP port {port}: "):
            async with proving([LOCALHOST], port, {}):
                pass


async def asked(port: int, text: str) -> str:
    """What comes for that, to the end."""
    return (await asyncio.to_thread(talk, port, text.encode())).decode()
