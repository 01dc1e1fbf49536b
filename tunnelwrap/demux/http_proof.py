"""A small web server that proves to an ACME server that a name is ours. RFC 8555 §8.3."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

from tunnelwrap.demux.decoy import MAX_HEAD, answer_to
from tunnelwrap.errors import TransportError
from tunnelwrap.path import IpAddress

_PLACE: Final = b"/.well-known/acme-challenge/"
_DEADLINE_S: Final = 10.0
_END_OF_HEAD: Final = b"\r\n\r\n"


@asynccontextmanager
async def proving(
    addresses: Sequence[IpAddress], port: int, proofs: Mapping[str, str]
) -> AsyncIterator[None]:
    """Serve proofs by their tokens; all else is answered as strangers are.

    Raises:
        TransportError: the port cannot be had.
    """
    answer = partial(_serve, {token.encode(): text.encode() for token, text in proofs.items()})
    hosts = [str(address) for address in addresses]
    try:
        server = await asyncio.start_server(answer, hosts, port, limit=MAX_HEAD)
    except OSError as error:
        raise TransportError(f"cannot listen on TCP port {port}: {error.strerror}") from error
    try:
        yield
    finally:
        server.close()


async def _serve(
    proofs: Mapping[bytes, bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One request."""
    with suppress(OSError, EOFError, asyncio.LimitOverrunError):
        async with asyncio.timeout(_DEADLINE_S):
            head = await reader.readuntil(_END_OF_HEAD)
            writer.write(_answer(proofs, head.removesuffix(_END_OF_HEAD)))
            await writer.drain()
    writer.close()


def _answer(proofs: Mapping[bytes, bytes], head: bytes) -> bytes:
    method, _, rest = head.partition(b" ")
    target = rest.partition(b" ")[0]
    proof = proofs.get(target.removeprefix(_PLACE)) if target.startswith(_PLACE) else None
    if method != b"GET" or proof is None:
        return answer_to(head, is_last=True).encode()
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(proof), proof)
    )
