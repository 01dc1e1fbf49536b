"""``python -m tests.interop.wraps FILE...``: many wrappers in one process, which starts sooner."""

import asyncio
import signal
import sys
from pathlib import Path

from tunnelwrap.config.load import load_wrap
from tunnelwrap.daemon.log import set_up
from tunnelwrap.daemon.wrap import Wrap


async def main() -> None:
    """Run all until told to end."""
    set_up()
    files = [Path(name) for name in sys.argv[1:]]
    wraps = [Wrap(load_wrap(file), file.stem, None) for file in files]

    def stop() -> None:
        for wrap in wraps:
            wrap.stop()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    await asyncio.gather(*(wrap.run() for wrap in wraps))


if __name__ == "__main__":
    asyncio.run(main())
