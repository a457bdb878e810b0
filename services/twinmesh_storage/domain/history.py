"""Readable history: what is folded and the tail, merged into one answer.

The tail is looked at before the store. What was folded in between is then in both, which merging does not mind; what
lies in neither cannot be: the tail gives up rows only after their fold is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from twinmesh_core.observations import (
    BYTE,
    ObservationBatch,
    Section,
    SeriesKey,
    TextSection,
    text_section,
)
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.parts import Part
from twinmesh_storage.domain.ports import HistoryStore
from twinmesh_storage.domain.rows import Lane, Rows, concat, merge, no_rows
from twinmesh_storage.domain.series import Series
from twinmesh_storage.domain.tail import TailView

MIN_TIME: Final = -(1 << 62)
MAX_TIME: Final = 1 << 62
"""A range that every event time lies in."""
_THREAD_ROWS: Final = 20_000  # merging more takes over about 2 ms, too long for the event loop
_PAGE_ROWS: Final = 400_000
_PAGE_SERIES: Final = 256
_ANSWER_ROWS: Final = 100_000
_ANSWER_TEXT_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesRows:
    """Readable rows of one series, by event time."""

    series: Series
    rows: Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Parts that overlap [start, end) of some series, and the tail as it was before they were read."""

    series: tuple[Series, ...]
    parts: tuple[Part, ...]
    tail: TailView
    start: int
    end: int


class History:
    """Reads series over ranges of event time."""

    def __init__(self, *, store: HistoryStore, view: LogView) -> None:
        self._store = store
        self._view = view

    async def stream(
        self, tenant: str, series: Sequence[Series], start: int, end: int, max_quality: int = 3
    ) -> AsyncIterator[list[SeriesRows]]:
        """Yield the readable rows with start <= event time < end, by series in the order asked, then by event time.

        A series that has more than one page of rows comes in several parts, consecutively. Memory is bounded by a page.

        Args:
            max_quality: rows with a greater quality number (less trust) are left out.
        """
        async for page in self.pages(tenant, series, start, end):
            yield await self._merge(page, max_quality)

    async def pages(self, tenant: str, series: Sequence[Series], start: int, end: int) -> AsyncIterator[Page]:
        """Yield what is folded and the tail, so many of the series and so much of the time that it fits in memory."""
        remaining = list(series)
        lower = start
        while remaining:
            # A series that goes on from its last page has a lower bound of its own.
            group = remaining[:_PAGE_SERIES] if lower == start else remaining[:1]
            tail = await self._view.tail_view()
            page = await self._store.read(tenant, group, lower, end, _PAGE_ROWS)
            upper = end if page.done else page.until
            yield Page(
                series=tuple(group[: max(page.done, 1)]), parts=tuple(page.parts), tail=tail, start=lower, end=upper
            )
            if page.done:
                remaining = remaining[page.done :]
                lower = start
            else:
                lower = upper

    async def _merge(self, page: Page, max_quality: int) -> list[SeriesRows]:
        if sum(part.n for part in page.parts) > _THREAD_ROWS or page.tail.row_count() > _THREAD_ROWS:
            merged = await asyncio.to_thread(merge_page, page)
        else:
            merged = merge_page(page)
        if max_quality >= 3:
            return merged
        return [SeriesRows(series=m.series, rows=m.rows.take(m.rows.quality <= max_quality)) for m in merged]


def merge_page(page: Page) -> list[SeriesRows]:
    """Merge what store and tail have of each series of a page."""
    by_series: dict[int, list[Part]] = {}
    for part in page.parts:
        by_series.setdefault(part.series_id, []).append(part)
    merged = []
    for one in page.series:
        stored = [cut(part.rows(), page.start, page.end) for part in by_series.get(one.series_id, ())]
        fresh = page.tail.select(one.series_id, page.start, page.end)
        if not fresh and stored:
            rows = concat(stored)  # parts do not overlap and come in order
        else:
            rows = merge([*stored, *fresh] or [no_rows(Lane.of(one.kind))])
        merged.append(SeriesRows(series=one, rows=page.tail.visible(one.series_id, rows)))
    return merged


def cut(rows: Rows, start: int, end: int) -> Rows:
    """Return the rows of one series with start <= event time < end; rows are by event time."""
    if not len(rows) or (rows.ts[0] >= start and rows.ts[-1] < end):
        return rows
    low, high = np.searchsorted(rows.ts, (start, end)).tolist()
    return rows.take(slice(low, high))


def answers(parts: Sequence[SeriesRows]) -> Iterator[ObservationBatch]:
    """Cut rows into batches of at most 100,000 rows and some MB of text; a batch's dictionary holds only its series."""
    gathered: list[SeriesRows] = []
    room = _ANSWER_ROWS
    for part in parts:
        rows = part.rows
        at = 0
        while at < len(rows):
            take = min(room, _fitting(rows, at, room))
            gathered.append(SeriesRows(series=part.series, rows=rows.take(slice(at, at + take))))
            at += take
            room = 0 if Lane.of(part.series.kind) is Lane.TEXT and at < len(rows) else room - take
            if room <= 0:
                yield to_batch(gathered)
                gathered, room = [], _ANSWER_ROWS
    if gathered:
        yield to_batch(gathered)


def _fitting(rows: Rows, at: int, room: int) -> int:
    """Return how many rows from `at` on fit one answer by their text; at least one."""
    if rows.value.dtype != object:
        return room
    size = 0
    for count, value in enumerate(rows.value[at : at + room]):
        size += len(value)
        if count and size > _ANSWER_TEXT_BYTES:
            return count
    return room


def to_batch(parts: Sequence[SeriesRows]) -> ObservationBatch:
    """Return rows of several series as one batch; its dictionary is the series in order, rows keep theirs."""
    handles: dict[int, int] = {}
    series: list[SeriesKey] = []
    by_section: dict[str, list[tuple[int, Rows]]] = {}
    for part in parts:
        if part.series.series_id not in handles:
            handles[part.series.series_id] = len(series)
            series.append(series_key(part.series))
        by_section.setdefault(_SECTION_OF[part.series.kind.name], []).append(
            (handles[part.series.series_id], part.rows)
        )
    sections: dict[str, Any] = {name: _section(name, rows) for name, rows in by_section.items()}
    return ObservationBatch(series=tuple(series), **sections)


def series_key(series: Series) -> SeriesKey:
    """Return the dictionary entry of a series."""
    return SeriesKey(
        twin_id=series.twin_id,
        channel=series.channel,
        unit=series.unit,
        series_id=series.series_id,
        kind=series.kind,
    )


_SECTION_OF: Final = {
    "GAUGE": "doubles",
    "COUNTER": "doubles",
    "STATE": "int64s",
    "BOOL": "bools",
    "TEXT": "texts",
    "JSON": "jsons",
}


def _section(name: str, parts: Sequence[tuple[int, Rows]]) -> Section | TextSection:
    rows = concat([r for _, r in parts])
    handles = np.repeat(np.array([h for h, _ in parts], np.uint32), [len(r) for _, r in parts])
    if name in ("texts", "jsons"):
        return text_section(handles, rows.ts, rows.value.tolist(), rows.quality)
    bits = np.ascontiguousarray(rows.value)
    values = bits.view(np.float64) if name == "doubles" else bits.astype(BYTE) if name == "bools" else bits
    return Section(series=handles, time_unix_us=rows.ts, quality=rows.quality, values=values)
