"""The demo as people see it: the ladder's rungs, the transfers, and what it came to."""

from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tunnelwrap.daemon.demo import FirstAnswer, News, Outcome, Stage, Transfer
from tunnelwrap.daemon.demo_network import Block
from tunnelwrap.daemon.events import Attempt, Established

_FIREWALL: Final = {
    Block.NONE: "passes everything",
    Block.UDP: "drops all UDP",
    Block.ALL_BUT_443: "drops all but TCP 443",
}
_ESTABLISHED: Final = "established"


class Picture:
    """A live picture; a context manager, for the terminal is restored at its end."""

    def __init__(self, console: Console, block: Block) -> None:
        self._console = console
        self._firewall = _FIREWALL[block]
        self._stage = "starting"
        self._is_over = False
        self._attempts: list[Attempt] = []
        self._established: Established | None = None
        self._first_answer: FirstAnswer | None = None
        self._transfers = Progress(
            *(TextColumn("  {task.description:9}"), BarColumn(), DownloadColumn()),
            TransferSpeedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=12)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over = True
        self._live.stop()

    def tell(self, news: News) -> None:
        """Take what the demo has to say into the picture."""
        match news:
            case Stage():
                self._stage = news.text
            case Attempt():
                self._attempts.append(news)
            case Established():
                self._established = news
                self._attempts = list(news.attempts)
            case FirstAnswer():
                self._first_answer = news
            case Transfer():
                self._show_transfer(news)
            case _:
                pass

    def sum_up(self, outcome: Outcome) -> None:
        """Print what it came to."""
        if outcome.error is not None:
            self._console.print(Text(f"failed: {outcome.error}", "bold red"))
            return
        rate = f"{outcome.download_mbps:,.0f} Mbit/s down, {outcome.upload_mbps:,.0f} Mbit/s up"
        self._console.print(Text(f"It works: {rate}, the file arrived as it was sent.", "green"))
        self._console.print(
            f"  IKE SA {outcome.ike_suite}, ESP {outcome.esp_suite}", highlight=False
        )
        self._console.print(f"  data plane: {outcome.data_plane}", highlight=False)

    def _show_transfer(self, transfer: Transfer) -> None:
        if transfer.direction not in self._tasks:
            task = self._transfers.add_task(transfer.direction, total=transfer.total)
            self._tasks[transfer.direction] = task
        self._transfers.update(self._tasks[transfer.direction], completed=transfer.octets)

    def _draw(self) -> RenderableType:
        parts: list[RenderableType] = [
            Text("client ── firewall ── gateway ── site", "bold"),
            Text(f"  the firewall {self._firewall}", "dim"),
        ]
        if self._attempts:
            parts.append(self._ladder())
        if self._first_answer is not None:
            parts.append(
                Text(f"  first answer of the site after {self._first_answer.seconds:.2f} s")
            )
        if self._tasks:
            parts.append(self._transfers.get_renderable())
        if not self._is_over:
            parts.append(Spinner("dots", text=self._stage))
        return Group(*parts)

    def _ladder(self) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
        for attempt in self._attempts:
            has_won = attempt.result == _ESTABLISHED
            table.add_row(
                Text("✓" if has_won else "✗", "green" if has_won else "red"),
                attempt.carrier,
                Text(attempt.result, "green" if has_won else "dim"),
                f"{attempt.seconds:.2f} s",
            )
        return table
