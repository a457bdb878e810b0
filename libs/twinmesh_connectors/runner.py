"""Keeps connectors running while sources and the mesh come and go, and ends them without losing what they read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from twinmesh_client.acks import WriteAck
from twinmesh_client.aio.writer import Writer
from twinmesh_connectors.connector import Connector, SourceError
from twinmesh_connectors.status import State, Status
from twinmesh_core.errors import InvalidArgument, TwinmeshError

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
STEADY_S: Final = 60.0
"""A connector that ran for so long before it failed starts again after the first pause."""
GRACE_S: Final = 10.0
"""How long a stop waits for acknowledgements of what is not on disk."""

OpenWriter = Callable[[Callable[[WriteAck], None]], AbstractAsyncContextManager[Writer]]
"""Opens the producer session of one connector; it is told what to call after each acknowledgement."""


class Runner:
    """Runs one connector: a source that fails is opened again after a pause that grows.

    Args:
        connector: what to run.
        open_writer: opens its producer session, which outlives failures of the source.
        say: where lines for people go: failures of the source, and that it is back.
        first_pause_s: before the first restart; doubled for each that follows.
        longest_pause_s: bound of the pauses.
        grace_s: how long the end waits for acknowledgements.
    """

    def __init__(
        self,
        connector: Connector,
        open_writer: OpenWriter,
        *,
        say: Callable[[str], None] = lambda _: None,
        first_pause_s: float = FIRST_PAUSE_S,
        longest_pause_s: float = LONGEST_PAUSE_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._connector = connector
        self._open_writer = open_writer
        self._say = say
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._grace_s = grace_s
        self._stop = asyncio.Event()
        self.status = Status(name=connector.name)

    def stop(self) -> None:
        """Ask it to end: the source is closed, what was read is delivered or stays in the spool."""
        self._stop.set()

    async def run(self) -> None:
        """Run until the source has ended, or `stop`.

        Raises:
            TwinmeshError: the configuration can never work, or the producer session ended for good.
        """
        try:
            async with self._open_writer(self._acknowledged) as writer:
                self.status.watch(writer)
                await self._until_stopped(writer)
                self.status.state = State.STOPPING
                await self._settle(writer)
            self.status.state = State.STOPPED
        except asyncio.CancelledError:
            self.status.state = State.STOPPED
            raise
        except Exception as error:
            self.status.state = State.FAILED
            self.status.last_error = _said(error)
            raise

    async def _until_stopped(self, writer: Writer) -> None:
        source = asyncio.create_task(self._keep_source(writer), name=f"connector-{self._connector.name}")
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({source, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if source.done():
                source.result()
        finally:
            source.cancel()
            stopped.cancel()
            await asyncio.gather(source, stopped, return_exceptions=True)

    async def _keep_source(self, writer: Writer) -> None:
        loop = asyncio.get_running_loop()
        pause_s = self._first_pause_s
        while True:
            started_s = loop.time()
            self.status.state = State.RUNNING
            try:
                await self._connector.run(writer, self.status)
                return
            except InvalidArgument:
                raise
            except Exception as error:
                # Whatever a source's library raises, the source is opened anew; only a dead session ends it.
                if writer.failure is not None:
                    raise
                self.status.last_error = _said(error)
            if loop.time() - started_s > STEADY_S:
                pause_s = self._first_pause_s
            self.status.state = State.WAITING
            self.status.restarts += 1
            # Full jitter: many connectors of one broker must not come back in one instant.
            waited_s = pause_s * random.uniform(0.5, 1.0)  # noqa: S311  not a secret
            self._say(f"{self.status.name}: {self.status.last_error}; again in {waited_s:.1f} s")
            await asyncio.sleep(waited_s)
            pause_s = min(2 * pause_s, self._longest_pause_s)

    async def _settle(self, writer: Writer) -> None:
        """Deliver what was read; what is in a spool may wait for the next start."""
        try:
            async with asyncio.timeout(self._grace_s):
                await writer.flush()
        except TimeoutError:
            if writer.spooled:
                return
            writer.abandon()
            self._say(f"{self.status.name}: the mesh is away; what it had not acknowledged is lost")

    def _acknowledged(self, ack: WriteAck) -> None:
        self.status.rows_durable += ack.sent
        self.status.rows_quarantined += ack.quarantined


def _said(error: Exception) -> str:
    if isinstance(error, TwinmeshError | SourceError):
        return error.message
    return f"{type(error).__name__}: {error}"[:300]
