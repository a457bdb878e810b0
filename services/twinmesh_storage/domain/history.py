"""Readable history: what is folded and the tail, merged into one answer.

The tail is looked at before the store. What was folded in between is then in both, which merging does not mind; what
lies in neither cannot be: the tail gives up rows only after their fold is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from twinmesh_core.errors import OutOfRange, Reason
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.parts import Part, Summaries
from twinmesh_storage.domain.ports import HistoryStore, SupersededPruned
from twinmesh_storage.domain.rows import Lane, Rows, concat, merge, no_rows
from twinmesh_storage.domain.series import Series
from twinmesh_storage.domain.tail import TailView

MIN_TIME: Final = -(1 << 62)
MAX_TIME: Final = 1 << 62
"""A range that every event time lies in."""
_THREAD_ROWS: Final = 20_000  # merging more takes over about 2 ms, too long for the event loop
_PAGE_ROWS: Final = 400_000
_PAGE_SERIES: Final = 256
_PAGE_SUMMARIES: Final = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Which rows a read sees.

    Attributes:
        max_quality: rows with a greater quality number (less trust) are left out, once it is settled which row is
            readable: a row that replaced a better one hides it.
        as_of: rows with a higher offset are not seen, and what they replaced is; 0 = the present.
    """

    max_quality: int = 3
    as_of: int = 0

    def then(self, rows: Rows) -> Rows:
        """Return the rows that were there as of the offset; before merging."""
        if not self.as_of or not len(rows) or int(rows.offset.max()) <= self.as_of:
            return rows
        return rows.take(rows.offset <= self.as_of)

    def usable(self, rows: Rows) -> Rows:
        """Return the rows that are trusted enough; after merging."""
        if self.max_quality >= 3:
            return rows
        keep = rows.quality <= self.max_quality
        return rows if keep.all() else rows.take(keep)


EVERYTHING: Final = Seen()
TRUSTED: Final = Seen(max_quality=2)
"""What calculations use where nothing else is said: all but BAD values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesRows:
    """Readable rows of one series, by event time."""

    series: Series
    rows: Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Parts that overlap [start, end) of some series, and the tail as it was before they were read.

    Attributes:
        seen: what is seen of them.
        superseded: by series id, rows that were readable as of `seen.as_of` and have been replaced or removed since.
    """

    series: tuple[Series, ...]
    parts: tuple[Part, ...]
    tail: TailView
    start: int
    end: int
    seen: Seen = EVERYTHING
    superseded: Mapping[int, Rows] = field(default_factory=dict)

    def loose(self, series_id: int) -> list[Rows]:
        """Return what there is of a series beside its parts: rows of the tail, and superseded ones."""
        found = [self.seen.then(part) for part in self.tail.select(series_id, self.start, self.end)]
        if series_id in self.superseded:
            found.append(cut(self.superseded[series_id], self.start, self.end))
        return [rows for rows in found if len(rows)]

    def settled(self, series_id: int, rows: Rows) -> Rows:
        """Return what is seen of merged rows: not what a deletion hides, and not what is trusted too little."""
        return self.seen.usable(self.tail.visible(series_id, rows, self.seen.as_of))


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryPage:
    """As `Page`, with summaries of the parts in place of the parts; None = the store keeps none: read the rows."""

    page: Page
    records: Summaries | None


class History:
    """Reads series over ranges of event time."""

    def __init__(self, *, store: HistoryStore, view: LogView) -> None:
        self._store = store
        self._view = view

    async def stream(
        self, tenant: str, series: Sequence[Series], start: int, end: int, seen: Seen = EVERYTHING
    ) -> AsyncIterator[list[SeriesRows]]:
        """Yield the rows seen with start <= event time < end, by series in the order asked, then by event time.

        A series that has more than one page of rows comes in several parts, consecutively. Memory is bounded by a page.

        Raises:
            OutOfRange: AS_OF_PRUNED, what was readable as of the offset is not known any more.
        """
        async for page in self.pages(tenant, series, start, end, seen):
            yield await self._merge(page)

    async def pages(
        self, tenant: str, series: Sequence[Series], start: int, end: int, seen: Seen = EVERYTHING
    ) -> AsyncIterator[Page]:
        """Yield what is folded and the tail, so many of the series and so much of the time that it fits in memory."""
        remaining = list(series)
        lower = start
        while remaining:
            # A series that goes on from its last page has a lower bound of its own.
            group = remaining[:_PAGE_SERIES] if lower == start else remaining[:1]
            tail = await self._view.tail_view()
            page = await self._store.read(tenant, group, lower, end, _PAGE_ROWS)
            upper = end if page.done else page.until
            group = group[: max(page.done, 1)]
            yield Page(
                series=tuple(group),
                parts=tuple(page.parts),
                tail=tail,
                start=lower,
                end=upper,
                seen=seen,
                superseded=await self._superseded(tenant, group, lower, upper, seen),
            )
            if page.done:
                remaining = remaining[page.done :]
                lower = start
            else:
                lower = upper

    async def summaries(
        self, tenant: str, series: Sequence[Series], start: int, end: int, seen: Seen = EVERYTHING
    ) -> AsyncIterator[SummaryPage]:
        """Yield what `pages` does, with summaries of the parts only."""
        remaining = list(series)
        lower = start
        while remaining:
            group = remaining if lower == start else remaining[:1]
            tail = await self._view.tail_view()
            found = await self._store.summaries(tenant, group, lower, end, _PAGE_SUMMARIES)
            done = len(group) if found is None else found.done
            upper = end if found is None or done else found.until
            group = group[: max(done, 1)]
            page = Page(
                series=tuple(group),
                parts=(),
                tail=tail,
                start=lower,
                end=upper,
                seen=seen,
                superseded=await self._superseded(tenant, group, lower, upper, seen),
            )
            yield SummaryPage(page=page, records=None if found is None else found.records)
            if done:
                remaining = remaining[done:]
                lower = start
            else:
                lower = upper

    async def newest(
        self, tenant: str, wanted: Sequence[tuple[Series, int]], count: int, seen: Seen = EVERYTHING
    ) -> dict[int, Rows]:
        """Return, of each series, its newest `count` rows seen before a moment, by event time; all there are if fewer.

        Args:
            wanted: series, each with its moment (excluded).

        Raises:
            OutOfRange: AS_OF_PRUNED, what was readable as of the offset is not known any more.
        """
        floors = {one.series_id: before for one, before in wanted}
        found = {one.series_id: no_rows(Lane.of(one.kind)) for one, _ in wanted}
        waiting = [one for one, _ in wanted]
        while waiting:
            tail = await self._view.tail_view()
            parts = await self._store.read_before(tenant, waiting, [floors[s.series_id] for s in waiting])
            older = {part.series_id: part for part in parts}
            bounds = {s.series_id: older[s.series_id].t0 if s.series_id in older else MIN_TIME for s in waiting}
            superseded: dict[int, Rows] = {}
            for with_part in (True, False):
                group = [s for s in waiting if (s.series_id in older) is with_part]
                if group and seen.as_of:
                    lower = min(bounds[s.series_id] for s in group)
                    upper = max(floors[s.series_id] for s in group)
                    superseded |= await self._superseded(tenant, group, lower, upper, seen)
            for one in waiting:
                series_id = one.series_id
                page = Page(
                    series=(one,),
                    parts=(older[series_id],) if series_id in older else (),
                    tail=tail,
                    start=bounds[series_id],
                    end=floors[series_id],
                    seen=seen,
                    superseded=superseded,
                )
                rows = concat([merge_page(page)[0].rows, found[series_id]])
                found[series_id] = rows.take(slice(max(0, len(rows) - count), len(rows)))
                floors[series_id] = page.start
            waiting = [s for s in waiting if s.series_id in older and len(found[s.series_id]) < count]
        return found

    async def _superseded(
        self, tenant: str, series: Sequence[Series], start: int, end: int, seen: Seen
    ) -> Mapping[int, Rows]:
        """Return the superseded rows that a read as of an offset sees, by series.

        They are read after tail and store: what was superseded in between is then in both, and not in neither.
        """
        found: dict[int, list[Rows]] = {}
        remaining, lower = list(series), start
        while seen.as_of and remaining:
            group = remaining if lower == start else remaining[:1]
            try:
                page = await self._store.read_superseded(tenant, group, lower, end, seen.as_of, _PAGE_ROWS)
            except SupersededPruned as pruned:
                raise OutOfRange(
                    f"as_of_offset: what was readable as of {seen.as_of} is not known any more; "
                    f"the earliest offset to read as of is {pruned.floor}.",
                    reason=Reason.AS_OF_PRUNED,
                    metadata={"floor_offset": str(pruned.floor)},
                ) from None
            upper = end if page.done else page.until
            for part in page.parts:
                found.setdefault(part.series_id, []).append(cut(part.rows(), lower, upper))
            remaining, lower = (remaining[page.done :], start) if page.done else (remaining, upper)
        return {series_id: merge(parts) for series_id, parts in found.items()}

    async def _merge(self, page: Page) -> list[SeriesRows]:
        if sum(part.n for part in page.parts) > _THREAD_ROWS or page.tail.row_count() > _THREAD_ROWS:
            return await asyncio.to_thread(merge_page, page)
        return merge_page(page)


def merge_page(page: Page) -> list[SeriesRows]:
    """Merge what store, tail and superseded rows have of each series of a page, and return what is seen of it."""
    by_series: dict[int, list[Part]] = {}
    for part in page.parts:
        by_series.setdefault(part.series_id, []).append(part)
    merged = []
    for one in page.series:
        stored = [page.seen.then(cut(part.rows(), page.start, page.end)) for part in by_series.get(one.series_id, ())]
        loose = page.loose(one.series_id)
        if not loose and stored:
            rows = concat(stored)  # parts do not overlap and come in order
        else:
            rows = merge([*stored, *loose] or [no_rows(Lane.of(one.kind))])
        merged.append(SeriesRows(series=one, rows=page.settled(one.series_id, rows)))
    return merged


def cut(rows: Rows, start: int, end: int) -> Rows:
    """Return the rows of one series with start <= event time < end; rows are by event time."""
    if not len(rows) or (rows.ts[0] >= start and rows.ts[-1] < end):
        return rows
    low, high = np.searchsorted(rows.ts, (start, end)).tolist()
    return rows.take(slice(low, high))
