"""``tunnelwrap demo``: four hosts on this machine, a firewall between them, a tunnel through it."""

import asyncio
import json
import os
import signal
import sys
from typing import Final

import click
from rich.console import Console

from tunnelwrap.cli.demo_picture import Picture
from tunnelwrap.daemon.demo import Built, News, Outcome, Tell, Wish, run_demo
from tunnelwrap.daemon.demo_network import Block, missing_programs
from tunnelwrap.path import Carrier

_INTERRUPTED: Final = 130


@click.command()
@click.option(
    "--block",
    type=click.Choice([block.value for block in Block]),
    default=Block.ALL_BUT_443.value,
    show_default=True,
    help="What the firewall between client and gateway drops without a word.",
)
@click.option(
    "--carrier",
    type=click.Choice(["auto", *(carrier.value for carrier in Carrier)]),
    default="auto",
    show_default=True,
    help="Try one carrier only, or the whole ladder.",
)
@click.option("--keep", is_flag=True, help="Leave hosts and tunnel up at the end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a picture.")
def demo(block: str, carrier: str, *, keep: bool, as_json: bool) -> None:
    """Build a client, a firewall, a gateway and a web site here, and tunnel through the firewall.

    The hosts are network namespaces; nothing else on this machine is changed. Needs root.
    """
    _refuse_what_cannot_work()
    wish = Wish(block=Block(block), carrier=carrier, keep=keep)
    kept = _Kept()
    if as_json:
        outcome = _run(wish, kept.tell)
        click.echo(json.dumps(outcome.to_json()))
    else:
        outcome = _run_with_picture(wish, kept)
    if keep and kept.built is not None:
        click.echo(_how_to_enter(kept.built), err=as_json)
    sys.exit(0 if outcome.is_success else 1)


def _refuse_what_cannot_work() -> None:
    if os.geteuid() != 0:
        raise click.ClickException(
            "the demo makes network namespaces, which takes root: try sudo tunnelwrap demo"
        )
    missing = missing_programs()
    if missing:
        raise click.ClickException(
            f"not found: {', '.join(missing)} (Debian: apt install iproute2 nftables procps)"
        )


class _Kept:
    """Remembers what ``--keep`` leaves behind."""

    def __init__(self) -> None:
        self.built: Built | None = None

    def tell(self, news: News) -> None:
        if isinstance(news, Built):
            self.built = news


def _run_with_picture(wish: Wish, kept: _Kept) -> Outcome:
    picture = Picture(Console(), wish.block)

    def tell(news: News) -> None:
        kept.tell(news)
        picture.tell(news)

    with picture:
        outcome = _run(wish, tell)
    picture.sum_up(outcome)
    return outcome


def _run(wish: Wish, tell: Tell) -> Outcome:
    """Run to the end; SIGINT and SIGTERM end it early, and it still cleans up."""

    async def run() -> Outcome:
        task = asyncio.current_task()
        assert task is not None
        told = False

        def end() -> None:
            # Once only: a second Ctrl-C must not cut the cleaning up short.
            nonlocal told
            if not told:
                told = True
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, end)
        return await run_demo(wish, tell)

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        sys.exit(_INTERRUPTED)


def _how_to_enter(built: Built) -> str:
    names = " ".join(built.namespaces.values())
    return (
        f"Kept; logs and configurations are in {built.directory}\n"
        + "".join(
            f"  {host:9} ip netns exec {name} bash\n" for host, name in built.namespaces.items()
        )
        + "To remove all of it:\n"
        f"  for n in {names}; do ip netns pids $n | xargs -r kill; done; sleep 2\n"
        f"  for n in {names}; do ip netns del $n; rm -rf /etc/netns/$n; done;"
        f" rm -rf {built.directory}"
    )
