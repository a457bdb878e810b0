"""Which parts can be taken by their statistics alone, and which rows must be read one by one.

A part counts whole if it lies within one bucket, nothing beside it (tail, superseded rows, a deletion) falls into its
span, and its statistics are of just the rows that are asked about. Every moment of the range is taken from
exactly one of the two, so a fold that happens in between changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twinmesh_storage.domain.history import History, Page, Seen, SeriesRows, cut
from twinmesh_storage.domain.parts import Summaries
from twinmesh_storage.domain.rows import Rows, merge
from twinmesh_storage.domain.series import Series

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Parts to be taken by their statistics.

    Attributes:
        blocks: their summaries, by series in the order asked, then by time; each has at least one row that counts.
        place: int64, the place of each one's series in the order asked.
    """

    blocks: Summaries
    place: Int64s


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows to be taken one by one, of the series at a place in the order asked; by event time."""

    place: int
    rows: Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    place: int
    start: int
    end: int


async def divide(
    history: History,
    tenant: str,
    series: Sequence[Series],
    edges: Int64s,
    seen: Seen,
    *,
    all_rows_count: bool,
    values_matter: bool = True,
) -> AsyncIterator[Whole | list[Piece]]:
    """Yield everything between the first and the last edge once, as whole parts or as rows that are seen.

    Args:
        all_rows_count: a part with a row that is not trusted enough is read row by row, since only the row tells
            when the last trusted one was.
        values_matter: False = only how many rows there are is asked, which parts tell of every quality.
    """
    places = {one.series_id: place for place, one in enumerate(series)}
    async for found in history.summaries(tenant, series, int(edges[0]), int(edges[-1]), seen):
        page, blocks = found.page, found.records
        if blocks is None:
            spans = [_Span(place=places[s.series_id], start=page.start, end=page.end) for s in page.series]
            async for read in _read(history, tenant, series, spans, seen):
                yield read
            continue
        place = np.array([places[s] for s in blocks["series_id"].tolist()], np.int64)
        loose, touched = _loose(page, blocks, places)
        whole = ~touched & _within(blocks, edges, page)
        whole &= _countable(blocks, seen, all_rows_count=all_rows_count, values_matter=values_matter)
        counted = whole & (counts(blocks, seen) > 0)
        if counted.any():
            yield Whole(blocks=blocks[counted], place=place[counted])
        spans = _spans(blocks, place, np.flatnonzero(~whole), page)
        pieces = [piece for piece in _outside(loose, spans, page) if len(piece.rows)]
        if pieces:
            yield pieces
        async for read in _read(history, tenant, series, spans, seen):
            yield read


def _loose(page: Page, blocks: Summaries, places: dict[int, int]) -> tuple[list[Piece], npt.NDArray[np.bool_]]:
    """Return the rows beside the parts, and in which parts' spans something changes what is readable."""
    touched = np.zeros(len(blocks), np.bool_)
    beside = set(page.tail.series().tolist()).union(page.superseded, *(hide.series_ids for hide in page.tail.hides))
    loose = []
    ids = blocks["series_id"]
    for one in page.series:
        if one.series_id not in beside:
            continue
        mine = np.flatnonzero(ids == one.series_id)
        starts, ends = blocks["t0"][mine], blocks["t1"][mine]
        for hide in page.tail.hides_of(one.series_id, page.start, page.end):
            touched[mine] |= (starts < hide.end) & (ends >= hide.start)
        parts = page.loose(one.series_id)
        if not parts:
            continue
        rows = merge(parts)
        touched[mine] |= rows.ts.searchsorted(ends, "right") > rows.ts.searchsorted(starts)
        loose.append(Piece(place=places[one.series_id], rows=rows))
    return loose, touched


def _within(blocks: Summaries, edges: Int64s, page: Page) -> npt.NDArray[np.bool_]:
    """Return which blocks lie within the page and within one bucket."""
    inside = (blocks["t0"] >= page.start) & (blocks["t1"] < page.end)
    same: npt.NDArray[np.bool_] = edges.searchsorted(blocks["t0"], "right") == edges.searchsorted(blocks["t1"], "right")
    return inside & same


def _countable(blocks: Summaries, seen: Seen, *, all_rows_count: bool, values_matter: bool) -> npt.NDArray[np.bool_]:
    """Return of which blocks the statistics are those of the rows that are seen."""
    countable = np.ones(len(blocks), np.bool_)
    if seen.as_of:
        countable &= blocks["max_offset"] <= seen.as_of
    for name, quality in (("uncertain", 2), ("bad", 3)):
        counts = quality <= seen.max_quality
        # Statistics are of GOOD values only; a row that is not trusted leaves them as they are.
        if (counts and values_matter) or (not counts and all_rows_count):
            countable &= blocks[name] == 0
    return countable


def counts(blocks: Summaries, seen: Seen) -> Int64s:
    """Return how many rows of each block are trusted enough, int64 [blocks]."""
    count: Int64s = blocks["good"].copy()
    if seen.max_quality >= 2:
        count += blocks["uncertain"]
    if seen.max_quality >= 3:
        count += blocks["bad"]
    return count


def _spans(blocks: Summaries, place: Int64s, which: npt.NDArray[np.intp], page: Page) -> list[_Span]:
    """Return the spans of some blocks within the page; those of blocks that follow one another become one."""
    spans: list[_Span] = []
    starts = np.maximum(blocks["t0"][which], page.start).tolist()
    ends = np.minimum(blocks["t1"][which] + 1, page.end).tolist()
    before = -2
    for number, where, start, end in zip(which.tolist(), place[which].tolist(), starts, ends, strict=True):
        last = spans[-1] if spans else None
        if last is not None and last.place == where and number == before + 1:
            spans[-1] = _Span(place=where, start=last.start, end=max(end, last.end))
        else:
            spans.append(_Span(place=where, start=start, end=end))
        before = number
    return spans


def _outside(loose: Sequence[Piece], spans: Sequence[_Span], page: Page) -> list[Piece]:
    """Return the rows that no span will bring, of those that are trusted enough."""
    by_place = _by_place(spans)
    ids = {piece.place: int(piece.rows.series[0]) for piece in loose}
    kept = []
    for part in loose:
        keep = np.ones(len(part.rows), np.bool_)
        for span in by_place.get(part.place, ()):
            low, high = part.rows.ts.searchsorted((span.start, span.end)).tolist()
            keep[low:high] = False
        kept.append(Piece(place=part.place, rows=page.settled(ids[part.place], part.rows.take(keep))))
    return kept


def _by_place(spans: Sequence[_Span]) -> dict[int, list[_Span]]:
    found: dict[int, list[_Span]] = {}
    for span in spans:
        found.setdefault(span.place, []).append(span)
    return found


async def _read(
    history: History, tenant: str, series: Sequence[Series], spans: Sequence[_Span], seen: Seen
) -> AsyncIterator[list[Piece]]:
    """Yield the rows within spans, those that overlap in time read together."""
    for cluster in _clusters(spans):
        mine = _by_place(cluster)
        wanted = [series[place] for place in sorted(mine)]
        places = {series[place].series_id: place for place in mine}
        start, end = min(span.start for span in cluster), max(span.end for span in cluster)
        async for parts in history.stream(tenant, wanted, start, end, seen):
            found = [piece for part in parts for piece in _pieces(part, places, mine)]
            if found:
                yield found


def _pieces(part: SeriesRows, places: dict[int, int], spans: dict[int, list[_Span]]) -> list[Piece]:
    place = places[part.series.series_id]
    pieces = [Piece(place=place, rows=cut(part.rows, span.start, span.end)) for span in spans[place]]
    return [piece for piece in pieces if len(piece.rows)]


def _clusters(spans: Sequence[_Span]) -> list[list[_Span]]:
    clusters: list[list[_Span]] = []
    reach = 0
    for span in sorted(spans, key=lambda s: (s.start, s.place)):
        if not clusters or span.start >= reach:
            clusters.append([])
            reach = span.end
        clusters[-1].append(span)
        reach = max(reach, span.end)
    return clusters
