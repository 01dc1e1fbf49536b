"""The demo's web site: one random file to download, and a place to upload to.

A program of its own, ``python -m tunnelwrap.daemon.demo_site ADDRESS PORT FILE OCTETS``: writes the
file, prints one JSON line with its SHA-256 when it listens, and serves until it is told to end.
"""

import asyncio
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Final

from aiohttp import web

_BLOCK: Final = 1 << 20


def main() -> None:
    """Serve what the command line says."""
    address, port, file, octets = sys.argv[1:]
    asyncio.run(serve(address, int(port), Path(file), int(octets)))


async def serve(address: str, port: int, file: Path, octets: int) -> None:
    """Write the file, listen, say so on standard output, and serve until SIGTERM or SIGINT."""
    digest = write_random_file(file, octets)
    runner = web.AppRunner(application(file))
    await runner.setup()
    await web.TCPSite(runner, address, port).start()
    print(json.dumps({"event": "ready", "sha256": digest}), flush=True)  # noqa: T201 - its answer
    await _told_to_end()
    await runner.cleanup()


def application(file: Path) -> web.Application:
    """The site: ``GET /file`` sends the file, ``POST /upload`` says what arrived."""

    async def download(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(file)

    async def upload(request: web.Request) -> web.Response:
        digest, octets = hashlib.sha256(), 0
        async for block in request.content.iter_any():
            digest.update(block)
            octets += len(block)
        return web.json_response({"octets": octets, "sha256": digest.hexdigest()})

    app = web.Application(client_max_size=1 << 32)
    app.add_routes([web.get("/file", download), web.post("/upload", upload)])
    return app


def write_random_file(file: Path, octets: int) -> str:
    """Fill a file with random octets; give back its SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for start in range(0, octets, _BLOCK):
            block = os.urandom(min(_BLOCK, octets - start))
            digest.update(block)
            out.write(block)
    return digest.hexdigest()


async def _told_to_end() -> None:
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()


if __name__ == "__main__":
    main()
