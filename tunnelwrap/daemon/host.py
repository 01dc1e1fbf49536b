"""The host's network as a daemon uses it: a TUN device, and changes that are always taken back.

Owns: the journal. The TUN device belongs to the data plane that is made on it.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tunnelwrap.dataplane.tun import Tun
from tunnelwrap.hostnet import Change
from tunnelwrap.hostnet.journal import Journal, recover

logger = logging.getLogger(__name__)

_MAX_DEVICE: Final = 15  # IFNAMSIZ less its final zero


class Host:
    """One instance's hold on the host's network.

    Args:
        name: of the instance; names device and tables.
        state_directory: where the journal is.

    Raises:
        HostNetError: another process runs under this name.
        DataPlaneError: there is no TUN device to be had.
    """

    def __init__(self, name: str, state_directory: Path) -> None:
        self.name = re.sub(r"[^A-Za-z0-9_]", "_", name)
        path = state_directory / "journal"
        self._clean_up(path)
        self._journal = Journal(path)
        self._changes: list[Change] = []
        self.tun = Tun.open(f"tw-{self.name}"[:_MAX_DEVICE])

    def change_to(self, changes: Sequence[Change]) -> None:
        """Make these changes in place of those made before.

        Raises:
            HostNetError: the host refuses one; then none of them is left.
        """
        if list(changes) == self._changes:
            return
        self.undo()
        self._journal.apply_all(changes)
        self._changes = list(changes)
        for change in changes:
            logger.debug("= %s", change)

    def undo(self) -> None:
        """Take everything back; calling twice is fine."""
        self._changes = []
        for problem in self._journal.undo_all():
            logger.warning("not undone (the next start tries again): %s", problem)

    def _clean_up(self, path: Path) -> None:
        """Undo what a killed run has left."""
        recovery = recover(path)
        for problem in recovery.problems:
            logger.warning("left by a former run, and not undone: %s", problem)
        if recovery.undone:
            logger.info("undone what a former run left: %s", "; ".join(recovery.undone))
