"""All connectors of one file, run together until a signal ends them."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from twinmesh_client.acks import WriteAck
from twinmesh_client.aio.producer import open_writer_async
from twinmesh_client.aio.writer import Writer
from twinmesh_connectors.config import Config, Entry
from twinmesh_connectors.connector import Prepares
from twinmesh_connectors.runner import Runner
from twinmesh_core.errors import TwinmeshError

STATUS_EVERY_S: Final = 10.0


async def run_all(
    config: Config,
    *,
    target: str | None = None,
    context: str | None = None,
    say: Callable[[str], None],
    every_s: float = STATUS_EVERY_S,
) -> int:
    """Run every connector until each has ended, or SIGINT or SIGTERM; returns how many failed for good.

    Args:
        config: the file.
        target: wins over the file's.
        context: a saved context, where neither names a target.
        say: where lines for people go.
        every_s: time between two rounds of status lines.
    """
    runners = [Runner(e.connector, _opener(config, e, target, context), say=say) for e in config.entries]
    with stopping(*(runner.stop for runner in runners)):
        told = asyncio.create_task(_tell(runners, say, every_s))
        try:
            outcomes = await asyncio.gather(*(runner.run() for runner in runners), return_exceptions=True)
        finally:
            told.cancel()
            await asyncio.gather(told, return_exceptions=True)
    for runner in runners:
        say(runner.status.line())
    failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for failure in failures:
        if not isinstance(failure, TwinmeshError):
            raise failure
    return len(failures)


class stopping:  # noqa: N801  read as a word: ``with stopping(stop):``
    """In this block SIGINT and SIGTERM call the given functions; a second signal interrupts as usual."""

    def __init__(self, *stops: Callable[[], None]) -> None:
        self._stops = stops

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _on_signal(self) -> None:
        self._restore()
        for stop in self._stops:
            stop()

    def _restore(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _opener(
    config: Config, entry: Entry, target: str | None, context: str | None
) -> Callable[[Callable[[WriteAck], None]], AbstractAsyncContextManager[Writer]]:
    return lambda on_ack: open_writer_async(
        entry.producer_id,
        target=target or config.target,
        context=context,
        prepare=entry.connector.prepare if isinstance(entry.connector, Prepares) else None,
        on_ack=on_ack,
        patience_s=math.inf,
        spool=entry.spool,
        spool_max_bytes=config.spool_max_bytes,
        spool_full=config.spool_full,
    )


async def _tell(runners: list[Runner], say: Callable[[str], None], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        for runner in runners:
            say(runner.status.line())
