"""The compactor: folds the tail into blocks, a generation at a time, while this process holds the lease.

One transaction writes the blocks and moves the fold offset, and it checks the lease epoch. So a fold happened wholly
or not at all, a second compactor cannot interfere, and after a kill at any point the next one folds the same rows
again from the log to the same blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.time import Clock
from twinmesh_storage.domain.blocks import (
    SMALL_BLOCK_ROWS,
    Block,
    BlockSpan,
    SeriesOf,
    block_lane,
    build_blocks,
    decode_block,
    spans_of,
)
from twinmesh_storage.domain.entries import Lease
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import BlockStore, LeaseLost
from twinmesh_storage.domain.rows import Lane, merge
from twinmesh_storage.domain.sequencer import Report
from twinmesh_storage.domain.series import Catalogue, Series
from twinmesh_storage.domain.tail import Generation, Run, winners_by_lane

_LOOK_S: Final = 0.1
_RETRY_S: Final = 1.0
_IDLE_ENTRIES: Final = 1_000  # entries without rows after which the fold offset moves all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """What one fold wrote.

    Attributes:
        incarnation: of the log that was folded.
        after: entries up to here were in blocks before.
        offset: entries up to here are in blocks now.
        rows: rows of the tail that went in.
        blocks: blocks written.
        series: int64, the series touched.
        seconds: how long it took.
    """

    incarnation: str
    after: int
    offset: int
    rows: int
    blocks: int
    series: np.ndarray[tuple[int], np.dtype[np.int64]]
    seconds: float


class Compactor:
    """Folds whenever enough rows wait, or the oldest have waited long enough.

    Args:
        lease: tells the lease while this process leads, else None.
        fold_rows: rows that are folded without waiting.
        fold_after_s: longest time that rows wait.
        folded: told after each fold.
    """

    def __init__(
        self,
        *,
        view: LogView,
        blocks: BlockStore,
        catalogue: Catalogue,
        lease: Callable[[], Lease | None],
        fold_rows: int,
        fold_after_s: float,
        clock: Clock,
        report: Report,
        folded: Callable[[Fold], Awaitable[None]],
    ) -> None:
        self._view = view
        self._blocks = blocks
        self._catalogue = catalogue
        self._lease = lease
        self._fold_rows = fold_rows
        self._fold_after_s = fold_after_s
        self._clock = clock
        self._report = report
        self._folded = folded

    async def run(self) -> None:
        """Fold for ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                while self._is_due():
                    await self.fold_once()
            except LeaseLost:
                self._report("fold_fenced")
                await asyncio.sleep(_RETRY_S)
            except TwinmeshError as error:
                self._report("fold_failed", reason=error.reason)
                await asyncio.sleep(_RETRY_S)

    def _is_due(self) -> bool:
        if self._lease() is None:
            return False
        oldest = self._view.tail.oldest()
        if oldest is None:
            return self._view.tail.head - self._view.tail.base >= _IDLE_ENTRIES
        return (
            oldest.closed
            or oldest.row_count >= self._fold_rows
            or self._clock.monotonic_s() - oldest.opened_s >= self._fold_after_s
        )

    async def fold_once(self) -> Fold | None:
        """Fold the oldest generation; None = this process does not lead, or nothing waits.

        Raises:
            LeaseLost: another process leads now; nothing was written.
            Unavailable: the database is away; whether the fold was committed shows at the next one, which repeats it.
        """
        lease = self._lease()
        if lease is None:
            return None
        started = self._clock.monotonic_s()
        tail = self._view.tail
        generation = tail.oldest()
        after, incarnation = tail.base, self._view.incarnation
        if generation is None:
            head = tail.head
            await self._blocks.replace(lease, head, (), ())
            tail.drop_through(head)
            none = np.empty(0, np.int64)
            await self._folded(
                Fold(incarnation=incarnation, after=after, offset=head, rows=0, blocks=0, series=none, seconds=0.0)
            )
            return None
        if not generation.closed:
            tail.seal()
        await self._view.tail_view()
        fresh = await asyncio.to_thread(winners_by_lane, generation.runs)
        fold = await self._fold(lease, generation, fresh, incarnation, after, started)
        # No await from here on: whoever reads sees the rows in the tail or in what was unpacked from blocks.
        tail.drop_through(generation.last)
        self._view.hot.absorb(fresh)
        await self._folded(fold)
        return fold

    async def _fold(
        self,
        lease: Lease,
        generation: Generation,
        fresh: dict[Lane, Run],
        incarnation: str,
        after: int,
        started: float,
    ) -> Fold:
        spans = await asyncio.to_thread(_spans, fresh, self._series_of)
        touched = await self._blocks.read_touched(spans, SMALL_BLOCK_ROWS)
        added = await asyncio.to_thread(fold_blocks, fresh, touched, self._series_of)
        await self._blocks.replace(lease, generation.last, touched, added)
        series = np.concatenate([run.keys for run in fresh.values()])
        return Fold(
            incarnation=incarnation,
            after=after,
            offset=generation.last,
            rows=generation.row_count,
            blocks=len(added),
            series=series,
            seconds=self._clock.monotonic_s() - started,
        )

    def _series_of(self, series_id: int) -> Series:
        series = self._catalogue.by_id(series_id)
        if series is None:
            raise AssertionError(f"series {series_id} was appended without being known")
        return series


def _spans(fresh: dict[Lane, Run], series_of: SeriesOf) -> list[BlockSpan]:
    return [span for run in fresh.values() for span in spans_of(run.rows, series_of)]


def fold_blocks(fresh: dict[Lane, Run], touched: Sequence[Block], series_of: SeriesOf) -> list[Block]:
    """Return the blocks that replace `touched` once the fresh rows are merged in."""
    added = []
    for lane, run in fresh.items():
        old = [decode_block(block) for block in touched if block_lane(block) is lane]
        added.extend(build_blocks(merge([*old, run.rows]), lane, series_of))
    return added
