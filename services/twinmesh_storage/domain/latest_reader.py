"""Newest values: from the in-process table, whose gaps are filled from the cache first and the blocks else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.errors import Unavailable
from twinmesh_core.kinds import ChannelKind
from twinmesh_storage.domain.cache_records import Stamp
from twinmesh_storage.domain.compactor import Fold
from twinmesh_storage.domain.fold_cache import Bounds, FoldCache
from twinmesh_storage.domain.folding import Hide, uncovered
from twinmesh_storage.domain.history import EVERYTHING, MAX_TIME, MIN_TIME, History, Seen, SeriesRows, cut
from twinmesh_storage.domain.latest import CHUNK_SERIES, LatestTable
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.parts import Part, RowsPart
from twinmesh_storage.domain.ports import HistoryStore
from twinmesh_storage.domain.rows import Lane, Rows, concat, no_rows
from twinmesh_storage.domain.series import Catalogue, Series

_BASES_AT_ONCE: Final = 2_000
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Series asked for together, with what is needed of them as arrays.

    Attributes:
        ids: int64 [k], series ids, in the order asked.
        kinds: uint8 [k], `ChannelKind` numbers.
        by_lane: the ids of each lane, in order.
        span: the ids, where they are consecutive and all of numbers; else None.
    """

    series: tuple[Series, ...]
    ids: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]
    by_lane: dict[Lane, npt.NDArray[np.int64]]
    span: slice | None = None

    @classmethod
    def of(cls, series: Sequence[Series]) -> Selection:
        """Return the selection of these series."""
        ids = np.fromiter((s.series_id for s in series), np.int64, len(series))
        kinds = np.fromiter((int(s.kind) for s in series), np.uint8, len(series))
        numeric = kinds <= ChannelKind.BOOL
        return cls(
            series=tuple(series),
            ids=ids,
            kinds=kinds,
            by_lane={Lane.NUMERIC: ids[numeric], Lane.TEXT: ids[~numeric]},
            span=_span(ids) if numeric.all() else None,
        )


class LatestReader:
    """Answers newest values, and keeps the cache up to date after folds.

    What a base may be taken from: a cache record is the newest row *as of a fold offset*, a block read the newest row
    folded so far. Either is complete beside the tail as long as it is not older than the tail's beginning, since the
    tail has everything after that.
    """

    def __init__(
        self, *, view: LogView, history: History, store: HistoryStore, cache: FoldCache, catalogue: Catalogue
    ) -> None:
        self._view = view
        self._history = history
        self._store = store
        self._cache = cache
        self._catalogue = catalogue
        self._asked: tuple[LatestTable, set[int]] = (view.latest, set())
        self._filling = asyncio.Lock()

    async def read(self, tenant: str, series: Sequence[Series]) -> tuple[int, list[SeriesRows]]:
        """Return the offset reflected at least, and the newest row of each series that has one."""
        as_of, by_lane = await self.rows(tenant, Selection.of(series))
        found = {
            series_id: rows.take(slice(row, row + 1))
            for rows in by_lane.values()
            for row, series_id in enumerate(rows.series.tolist())
        }
        return as_of, [SeriesRows(series=s, rows=found[s.series_id]) for s in series if s.series_id in found]

    async def rows(self, tenant: str, selection: Selection) -> tuple[int, dict[Lane, Rows]]:
        """Return the offset reflected at least, and the newest rows by lane, in the order asked.

        Raises:
            Unavailable: other processes fold faster than this one can follow; try again.
        """
        view = self._view
        for _ in range(_ATTEMPTS):
            tail = await view.tail_view()
            table, span = view.latest, selection.span
            if table.complete(span) if span is not None else not len(table.without_base(selection.ids)):
                return tail.head, {lane: table.rows(ids, lane, span) for lane, ids in selection.by_lane.items()}
            async with self._filling:
                await self._fill(tenant, selection.ids)
        raise Unavailable("History moves too fast to be read; try again.", retry_after_s=1.0)

    async def rows_seen(
        self, tenant: str, selection: Selection, seen: Seen, before: int = MAX_TIME
    ) -> tuple[int, dict[Lane, Rows]]:
        """Return, as `rows`, the newest rows that are seen and have an event time before a moment.

        What the table holds is the newest of any quality, as of now; only where that is not seen, history is searched.
        """
        head, by_lane = await self.rows(tenant, selection)
        if seen == EVERYTHING and before >= MAX_TIME:
            return head, by_lane
        out = {}
        by_id = {s.series_id: s for s in selection.series}
        for lane, ids in selection.by_lane.items():
            rows = by_lane[lane]
            kept = rows.take((rows.quality <= seen.max_quality) & (rows.ts < before))
            # A deletion since `as_of` may hide what was newest then, and leave what is not.
            known = no_rows(lane) if seen.as_of else kept
            there = ids if seen.as_of else rows.series
            wanted = there[~np.isin(there, known.series)]
            found = [known]
            for at in range(0, len(wanted), _BASES_AT_ONCE):
                part = [(by_id[i], before) for i in wanted[at : at + _BASES_AT_ONCE].tolist()]
                found += (await self._history.newest(tenant, part, 1, seen)).values()
            out[lane] = _in_order(concat(found), ids)
        return seen.as_of or head, out

    async def newest_time(self, tenant: str, series: Sequence[Series], seen: Seen) -> int | None:
        """Return the newest event time that is seen of any of the series; None = there is no row."""
        _, by_lane = await self.rows_seen(tenant, Selection.of(series), seen)
        return max((int(rows.ts.max()) for rows in by_lane.values() if len(rows)), default=None)

    async def _fill(self, tenant: str, ids: npt.NDArray[np.int64]) -> None:
        """Put in the bases that are missing; in vain if the table is replaced meanwhile."""
        table = self._view.latest
        hides = self._view.tail.hides()
        if not hides:  # a record may hold what is hidden since
            await self._ask_cache(table, table.without_base(ids))
            if self._view.latest is not table:
                return
        missing = table.without_base(ids)
        for at in range(0, len(missing), _BASES_AT_ONCE):
            part = missing[at : at + _BASES_AT_ONCE]
            series = [s for s in map(self._catalogue.by_id, part.tolist()) if s is not None]
            hidden = [s for s in series if any(s.series_id in hide.series_ids for hide in hides)]
            parts = await self._store.read_last(tenant, [s for s in series if s not in hidden] if hidden else series)
            parts += await self._newest_uncovered(tenant, hidden, hides)
            bases = await asyncio.to_thread(_last_rows, parts)
            if self._view.latest is not table:
                return
            for lane, rows in bases.items():
                table.put_base(rows.series, rows, lane)
            table.put_base(part, no_rows(Lane.NUMERIC), Lane.NUMERIC)

    async def _ask_cache(self, table: LatestTable, ids: npt.NDArray[np.int64]) -> None:
        """Put in what the cache has of the chunks of these series; each chunk is asked for once."""
        if self._asked[0] is not table:
            self._asked = (table, set())
        asked = self._asked[1]
        chunks = [n for n in np.unique(ids // CHUNK_SERIES).tolist() if n not in asked]
        if not chunks:
            return
        asked.update(chunks)
        view = self._view
        bounds = Bounds(incarnation=view.incarnation, oldest_fold=view.tail.base, head=view.head)
        for number, body in (await self._cache.load(bounds, chunks)).items():
            table.put_chunk(number, body)

    async def _newest_uncovered(self, tenant: str, series: Sequence[Series], hides: Sequence[Hide]) -> list[Part]:
        """Return, of each series, a part that ends with the newest folded row which no deletion covers."""
        found: list[Part] = []
        waiting = {s.series_id: (s, MAX_TIME) for s in series}
        while waiting:
            wanted = list(waiting.values())
            older = await self._store.read_before(tenant, [s for s, _ in wanted], [before for _, before in wanted])
            by_id = {part.series_id: part for part in older}
            for one, before in wanted:
                del waiting[one.series_id]
                part = by_id.get(one.series_id)
                if part is None:
                    continue
                rows = uncovered(cut(part.rows(), MIN_TIME, before), hides)
                if len(rows):
                    found.append(RowsPart(unpacked=rows))
                    continue
                # Everything folded came before these deletions, so nothing within them needs to be looked at.
                mine = [hide for hide in hides if one.series_id in hide.series_ids and hide.start <= part.t0 < hide.end]
                waiting[one.series_id] = (one, min([part.t0, *(hide.start for hide in mine)]))
        return found

    async def store(self, fold: Fold) -> None:
        """Put the chunks that a fold touched into the cache, as of its offset."""
        view = self._view
        if not self._cache.enabled or fold.incarnation != view.incarnation:
            return
        touched = [s for s in map(self._catalogue.by_id, fold.series.tolist()) if s is not None]
        for tenant in sorted({s.tenant for s in touched}):
            await self._fill(tenant, np.array([s.series_id for s in touched if s.tenant == tenant], np.int64))
        numbers = np.unique(fold.series // CHUNK_SERIES).tolist()
        chunks = {number: view.latest.chunk(number) for number in numbers}
        stamp = Stamp(incarnation=fold.incarnation, fold_offset=fold.offset, reach=view.head)
        await self._cache.store(stamp, fold.after, chunks, chunks)

    async def forget(self, series: Iterable[int]) -> bool:
        """Remove the cache's records of series; False = it could not be reached."""
        return await self._cache.forget({series_id // CHUNK_SERIES for series_id in series})


def _span(ids: npt.NDArray[np.int64]) -> slice | None:
    """Return ids as a slice where they are consecutive, as those of twins created together are."""
    if not len(ids) or (np.diff(ids) != 1).any():
        return None
    return slice(int(ids[0]), int(ids[-1]) + 1)


def _in_order(rows: Rows, ids: npt.NDArray[np.int64]) -> Rows:
    """Return rows, at most one per series, in the order of `ids`."""
    order = np.argsort(ids, kind="stable")
    place = order[ids[order].searchsorted(rows.series)]
    return rows.take(np.argsort(place))


def _last_rows(parts: Sequence[Part]) -> dict[Lane, Rows]:
    """Return the last row of each part, by lane."""
    by_lane: dict[Lane, list[Rows]] = {}
    for part in parts:
        rows = part.rows()
        lane = Lane.TEXT if rows.value.dtype == object else Lane.NUMERIC
        by_lane.setdefault(lane, []).append(rows.take(slice(len(rows) - 1, len(rows))))
    return {lane: concat(lasts) for lane, lasts in by_lane.items()}
