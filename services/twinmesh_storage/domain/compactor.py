"""The compactor: folds the tail into history, a generation at a time, while this process holds the lease.

One transaction writes the rows and moves the fold offset, and it checks the lease epoch. So a fold happened wholly
or not at all, a second compactor cannot interfere, and after a kill at any point the next one folds the same rows
again from the log to the same history.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.time import Clock
from twinmesh_storage.domain.entries import Lease
from twinmesh_storage.domain.folding import CommitTimes, FoldResult, FoldWork, Hide, uncovered
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import HistoryStore, LeaseLost
from twinmesh_storage.domain.rows import Lane, Rows, concat, sort_rows, winners
from twinmesh_storage.domain.sequencer import Report
from twinmesh_storage.domain.tail import Generation, Run

_LOOK_S: Final = 0.1
_RETRY_S: Final = 1.0
_IDLE_ENTRIES: Final = 1_000  # entries without rows after which the fold offset moves all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """What one fold did.

    Attributes:
        incarnation: of the log that was folded.
        after: entries up to here were in history before.
        offset: entries up to here are in history now.
        rows: rows of the tail that went in.
        result: what that wrote.
        series: int64, the series touched.
        seconds: how long it took.
    """

    incarnation: str
    after: int
    offset: int
    rows: int
    result: FoldResult
    series: np.ndarray[tuple[int], np.dtype[np.int64]]
    seconds: float


async def _nothing_to_prepare(_hide: Hide) -> None:
    return None


class Compactor:
    """Folds whenever enough rows wait, or the oldest have waited long enough.

    Args:
        lease: tells the lease while this process leads, else None.
        fold_rows: rows that are folded without waiting.
        fold_after_s: longest time that rows wait.
        folded: told after each fold.
        prepare: told of each deletion before the fold that has it; removes what it drops.
    """

    def __init__(
        self,
        *,
        view: LogView,
        history: HistoryStore,
        lease: Callable[[], Lease | None],
        fold_rows: int,
        fold_after_s: float,
        clock: Clock,
        report: Report,
        folded: Callable[[Fold], Awaitable[None]],
        prepare: Callable[[Hide], Awaitable[None]] = _nothing_to_prepare,
    ) -> None:
        self._view = view
        self._history = history
        self._lease = lease
        self._fold_rows = fold_rows
        self._fold_after_s = fold_after_s
        self._clock = clock
        self._report = report
        self._folded = folded
        self._prepare = prepare

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
            or bool(oldest.hides)  # readers look twice at what is hidden until it is folded
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
            nothing = FoldWork(fold_offset=head, fresh={}, commit_times=CommitTimes.of(()))
            result = await self._history.fold(lease, nothing)
            tail.drop_through(head)
            none = np.empty(0, np.int64)
            await self._folded(
                Fold(incarnation=incarnation, after=after, offset=head, rows=0, result=result, series=none, seconds=0.0)
            )
            return None
        if not generation.closed:
            tail.seal()
        await self._view.tail_view()
        fresh = await asyncio.to_thread(_by_lane, generation)
        hides = tuple(generation.hides)
        for hide in hides:
            # Before the fold: a kill in between finds the entry unfolded, and prepares again.
            await self._prepare(hide)
        work = FoldWork(
            fold_offset=generation.last, fresh=fresh, hides=hides, commit_times=CommitTimes.of(generation.commits)
        )
        result = await self._history.fold(lease, work)
        runs = await asyncio.to_thread(_readable, fresh, hides)
        # No await from here on: whoever reads sees the rows in the tail or in what was unpacked from history.
        tail.drop_through(generation.last)
        self._view.hot.absorb(runs)
        self._view.forget_hidden(hides)
        hidden = sorted({series_id for hide in hides for series_id in hide.series_ids})
        fold = Fold(
            incarnation=incarnation,
            after=after,
            offset=generation.last,
            rows=generation.row_count,
            result=result,
            series=np.unique(np.concatenate([np.array(hidden, np.int64), *(run.keys for run in runs.values())])),
            seconds=self._clock.monotonic_s() - started,
        )
        await self._folded(fold)
        return fold


def _by_lane(generation: Generation) -> dict[Lane, Rows]:
    """Return all rows of a generation by lane, sorted, losers included."""
    return {
        lane: sort_rows(concat([run.rows for run in generation.runs if run.lane is lane]))
        for lane in Lane
        if any(run.lane is lane for run in generation.runs)
    }


def _readable(fresh: dict[Lane, Rows], hides: Sequence[Hide]) -> dict[Lane, Run]:
    return {lane: Run.of(lane, uncovered(winners(rows), hides)) for lane, rows in fresh.items()}
