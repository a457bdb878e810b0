"""Exact counts: what is folded and at rest, plus what the tail adds to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np

from twinmesh_core.errors import Unavailable
from twinmesh_storage.domain.history import MAX_TIME, MIN_TIME, History, cut
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import LogStore
from twinmesh_storage.domain.rows import Lane, Rows, concat, merge, no_rows
from twinmesh_storage.domain.series import Series

_ATTEMPTS: Final = 20
_HIDE_LOOKS: Final = 200
_HIDE_LOOK_S: Final = 0.05
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TailDelta:
    """What the tail adds to what is folded of one series.

    Attributes:
        by_quality: change of the number of readable rows GOOD, UNCERTAIN, BAD (a correction may lower one).
        first: first event time in the tail.
        last: last event time in the tail.
    """

    by_quality: tuple[int, int, int]
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTally:
    """What the log and quarantine held as of an offset; fold and trim offset are the present ones."""

    entry_count: int
    landed_point_count: int
    quarantined_count: int
    fold_offset: int
    trim_offset: int


class LogTallies(Protocol):
    """Counts of the past, of what does not lie in history."""

    async def as_of(self, tenant: str, twin_id: str, offset: int) -> LogTally:
        """Return what was there as of an offset; `twin_id` "" = all, and only quarantine is counted by twin.

        Raises:
            OutOfRange: AS_OF_PRUNED, entries after the offset have left the log.
        """
        ...


class Counting:
    """Counts what is readable, over a fold offset that stood still meanwhile."""

    def __init__(self, *, history: History, log: LogStore, view: LogView) -> None:
        self._history = history
        self._log = log
        self._view = view

    async def steady(self, count: Callable[[], Awaitable[_T]]) -> tuple[int, _T]:
        """Return the offset reflected, and what `count` gives when no fold happens while it runs.

        Raises:
            Unavailable: folds never stood still; try again.
        """
        for _ in range(_ATTEMPTS):
            await self._hides_folded()
            before = await self._log.position()
            tail = await self._view.tail_view()
            if tail.hides:
                continue
            result = await count()
            if (await self._log.position()).fold_offset == before.fold_offset:
                return tail.head, result
        raise Unavailable("History moves too fast to be counted; try again.", retry_after_s=1.0)

    async def _hides_folded(self) -> None:
        """Wait for deletions to be folded, which happens at once: what they take away is counted there."""
        for _ in range(_HIDE_LOOKS):
            if not self._view.tail.hides():
                return
            await asyncio.sleep(_HIDE_LOOK_S)

    async def tail_delta(self, tenant: str, series: Sequence[Series]) -> dict[int, TailDelta]:
        """Return what the tail adds, for those of the series that occur in it."""
        tail = await self._view.tail_view()
        fresh: dict[int, Rows] = {}
        in_tail = set(tail.series().tolist())
        for one in series:
            if one.series_id in in_tail:
                fresh[one.series_id] = merge(tail.select(one.series_id, MIN_TIME, MAX_TIME))
        wanted = [s for s in series if s.series_id in fresh]
        if not wanted:
            return {}
        first = min(int(rows.ts[0]) for rows in fresh.values())
        last = max(int(rows.ts[-1]) for rows in fresh.values())
        deltas = {}
        stored: dict[int, list[Rows]] = {}
        async for page in self._history.pages(tenant, wanted, first, last + 1):
            for part in page.parts:
                rows = fresh[part.series_id]
                low, high = max(page.start, int(rows.ts[0])), min(page.end, int(rows.ts[-1]) + 1)
                stored.setdefault(part.series_id, []).append(cut(part.rows(), low, high))
        for one in wanted:
            rows = fresh[one.series_id]
            parts = [part for part in stored.get(one.series_id, ()) if len(part)]
            before = concat(parts) if parts else no_rows(Lane.of(one.kind))
            change = _by_quality(merge([before, rows])) - _by_quality(before)
            deltas[one.series_id] = TailDelta(
                by_quality=(int(change[0]), int(change[1]), int(change[2])),
                first=int(rows.ts[0]),
                last=int(rows.ts[-1]),
            )
        return deltas


def _by_quality(rows: Rows) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.bincount(rows.quality, minlength=4)[1:4].astype(np.int64)
