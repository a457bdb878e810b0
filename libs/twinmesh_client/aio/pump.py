"""Rows on their way into batches: gathered by size and time, handed on in order, with the answer for each batch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from twinmesh_client.aio.backlog import copied
from twinmesh_client.gathering import MAX_GATHERED_BYTES, Gatherer
from twinmesh_core.errors import TwinmeshError, Unavailable
from twinmesh_core.observations import ObservationBatch


class Taken:
    """What became of rows that were taken together; one object for all of them."""

    def __init__(self, until_durable: Callable[[int], Awaitable[None]]) -> None:
        self._until_durable = until_durable
        self._number: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # Whoever does not ask is told by the next call instead, not by a warning.
        self._number.add_done_callback(lambda number: number.cancelled() or number.exception())

    async def written(self) -> int:
        """Wait until the rows are written, with a spool: on disk; returns the number of their batch.

        Raises:
            TwinmeshError: they could not be written; they are not taken.
        """
        return await asyncio.shield(self._number)

    async def durable(self) -> None:
        """Wait until the rows are durable in the mesh; raises as `written`, or because the session ended for good."""
        await self._until_durable(await self.written())

    def settle(self, number: int) -> None:
        """They are written."""
        if not self._number.done():
            self._number.set_result(number)

    def fail(self, error: TwinmeshError) -> None:
        """They could not be written."""
        if not self._number.done():
            self._number.set_exception(error)


class Pump:
    """Gathers rows and puts them as one batch when they are many, or the first of them has waited for long.

    A task of its own puts them (`run`), so that a caller who is cancelled takes nobody's rows along.

    Args:
        put: takes one batch and returns its number; waits for room.
        until_durable: waits until the batch of this number is durable.
        rows: a batch is put at so many rows.
        delay_s: or when its first row is so old.
    """

    def __init__(
        self,
        put: Callable[[ObservationBatch], Awaitable[int]],
        until_durable: Callable[[int], Awaitable[None]],
        *,
        rows: int,
        delay_s: float,
    ) -> None:
        self._put = put
        self._until_durable = until_durable
        self._rows = rows
        self._delay_s = delay_s
        self._gathered = Gatherer()
        self._taken: Taken | None = None
        self._in_hand: Taken | None = None
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._failure: TwinmeshError | None = None

    @property
    def rows(self) -> int:
        """Rows that are gathered and not yet put."""
        return self._gathered.rows

    async def room(self) -> None:
        """Wait until rows can be taken; raises what kept rows from being written that were taken before."""
        while not self._room.is_set():
            await self._room.wait()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise copied(failure)

    def add(self, *row: Any, **options: Any) -> Taken:
        """Take one row, as `Gatherer.add`."""
        self._gathered.add(*row, **options)
        return self._note()

    def add_batch(self, batch: ObservationBatch) -> Taken:
        """Take the rows of a batch."""
        self._gathered.add_batch(batch)
        return self._note()

    async def drain(self) -> None:
        """Wait until everything taken so far is put; raises as `room`."""
        if self._taken is not None:
            self._enough.set()
        for taken in (self._in_hand, self._taken):
            if taken is not None:
                with suppress(TwinmeshError):
                    await taken.written()
        await self.room()

    async def run(self) -> None:
        """Put what is gathered, for ever."""
        try:
            while True:
                await self._some.wait()
                await self._until_enough()
                batch, self._in_hand = self._gathered.take(), self._taken
                self._taken = None
                for event in (self._some, self._enough):
                    event.clear()
                self._room.set()
                await self._hand_on(batch)
                self._in_hand = None
        finally:
            closed = Unavailable("The writer was closed.")
            for rest in (self._in_hand, self._taken):
                if rest is not None:
                    rest.fail(closed)
            self._failure = self._failure or closed
            self._room.set()

    def _note(self) -> Taken:
        if self._taken is None:
            self._taken = Taken(self._until_durable)
            self._some.set()
        if self._gathered.rows >= self._rows or self._gathered.bytes >= MAX_GATHERED_BYTES:
            self._enough.set()
            self._room.clear()
        return self._taken

    async def _until_enough(self) -> None:
        if self._enough.is_set():
            return
        try:
            async with asyncio.timeout(self._delay_s):
                await self._enough.wait()
        except TimeoutError:
            return

    async def _hand_on(self, batch: ObservationBatch) -> None:
        taken = self._in_hand
        try:
            number = await self._put(batch)
        except TwinmeshError as error:
            self._failure = error
            if taken is not None:
                taken.fail(error)
            return
        if taken is not None:
            taken.settle(number)
