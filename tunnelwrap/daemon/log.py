"""Logging for a daemon: a few lines that tell the story, on standard error.

The journal of systemd adds the time itself; elsewhere each line begins with it.
"""

import logging
import os
import sys
from typing import Final

_FORMAT: Final = "%(message)s"
_TIMED: Final = "%(asctime)s %(levelname).1s %(message)s"
_CLOCK: Final = "%H:%M:%S"


def set_up(*, is_debug: bool = False, is_quiet: bool = False) -> None:
    """Send the package's log to standard error.

    Args:
        is_debug: one line for each message, too.
        is_quiet: only what needs a human.
    """
    handler = logging.StreamHandler(sys.stderr)
    is_timed = "JOURNAL_STREAM" not in os.environ
    handler.setFormatter(logging.Formatter(_TIMED if is_timed else _FORMAT, _CLOCK))
    package = logging.getLogger("tunnelwrap")
    package.handlers[:] = [handler]
    package.propagate = False
    level = logging.WARNING if is_quiet else logging.INFO
    package.setLevel(logging.DEBUG if is_debug else level)
