"""The history of the storage service in memory; the contract suite holds it to the forms in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from twinmesh_storage.domain.blocks import SeriesOf
from twinmesh_storage.domain.entries import Lease
from twinmesh_storage.domain.folding import FoldResult, FoldWork, Hide
from twinmesh_storage.domain.parts import Part, PartPage, PartSummaries, RowsPart
from twinmesh_storage.domain.ports import HistoryCounts, LeaseLost, SeriesSpan, SupersededPruned
from twinmesh_storage.domain.rows import Rows
from twinmesh_storage.domain.series import Series
from twinmesh_testing.storage_fakes import FakeDatabase, FakeRow, FakeSuperseded

Stored = tuple[tuple[str, int, int], FakeRow]


class FakeHistory:
    """`HistoryStore` in memory, one row at a time: simple enough to be believed, and without statistics."""

    form: Final = "fake"

    def __init__(self, database: FakeDatabase, series_of: SeriesOf) -> None:
        self._db = database
        self._series_of = series_of

    async def read(self, tenant: str, series: Sequence[Series], start: int, end: int, max_rows: int) -> PartPage:
        """See `HistoryStore.read`."""
        return self._page(self._db.readable.items(), tenant, series, start, end, max_rows)

    async def summaries(
        self, tenant: str, series: Sequence[Series], start: int, end: int, limit: int
    ) -> PartSummaries | None:
        """See `HistoryStore.summaries`; this form keeps none."""
        return None

    async def read_last(self, tenant: str, series: Sequence[Series]) -> list[Part]:
        """See `HistoryStore.read_last`."""
        found = (self._rows(self._db.readable.items(), tenant, s) for s in series)
        return [RowsPart(unpacked=rows.take(slice(len(rows) - 1, len(rows)))) for rows in found if len(rows)]

    async def read_before(self, tenant: str, series: Sequence[Series], before: Sequence[int]) -> list[Part]:
        """See `HistoryStore.read_before`; gives few rows, so that callers have to ask again."""
        found: list[Part] = []
        for one, moment in zip(series, before, strict=True):
            rows = self._rows(self._db.readable.items(), tenant, one)
            rows = rows.take(rows.ts < moment)
            if len(rows):
                found.append(RowsPart(unpacked=rows.take(slice(max(len(rows) - 3, 0), len(rows)))))
        return found

    async def read_superseded(
        self, tenant: str, series: Sequence[Series], start: int, end: int, as_of_offset: int, max_rows: int
    ) -> PartPage:
        """See `HistoryStore.read_superseded`."""
        if as_of_offset < self._db.superseded_floor:
            raise SupersededPruned(self._db.superseded_floor)
        then = [(s.key, s.row) for s in self._db.superseded if s.row.offset <= as_of_offset < s.by_offset]
        return self._page(then, tenant, series, start, end, max_rows)

    def _page(
        self, stored: Iterable[Stored], tenant: str, series: Sequence[Series], start: int, end: int, max_rows: int
    ) -> PartPage:
        stored = list(stored)
        parts: list[Part] = []
        room = max_rows
        for done, one in enumerate(series):
            rows = self._rows(stored, tenant, one)
            rows = rows.take((rows.ts >= start) & (rows.ts < end))
            if len(rows) > room:
                if done:
                    return PartPage(parts=parts, done=done)
                taken = rows.take(slice(0, max_rows))
                return PartPage(parts=[RowsPart(unpacked=taken)], done=0, until=int(rows.ts[max_rows]))
            room -= len(rows)
            if len(rows):
                parts.append(RowsPart(unpacked=rows))
        return PartPage(parts=parts, done=len(series))

    def _rows(self, stored: Iterable[Stored], tenant: str, series: Series) -> Rows:
        """Return the rows of a series, by event time; of several at one time the one with the highest offset."""
        mine = {}
        for key, row in sorted(stored, key=lambda s: s[1].offset):
            if key[:2] == (tenant, series.series_id):
                mine[key[2]] = row
        times = sorted(mine)
        rows = [mine[t] for t in times]
        value = np.empty(len(rows), np.int64 if series.kind.numeric else object)
        value[:] = [row.value for row in rows]
        return Rows(
            series=np.full(len(rows), series.series_id, np.int64),
            ts=np.array(times, np.int64),
            value=value,
            quality=np.array([row.quality for row in rows], np.uint8),
            offset=np.array([row.offset for row in rows], np.int64),
        )

    async def superseded_floor(self) -> int:
        """See `HistoryStore.superseded_floor`."""
        return self._db.superseded_floor

    async def fold(self, lease: Lease, work: FoldWork) -> FoldResult:
        """See `HistoryStore.fold`."""
        db = self._db
        if lease.epoch != db.epoch:
            raise LeaseLost
        if work.fold_offset <= db.fold_offset:
            return FoldResult(repeated=True)
        before = len(db.superseded)
        events: list[tuple[int, int, Any]] = [(hide.offset, 0, hide) for hide in work.hides]
        for rows in work.fresh.values():
            columns = (rows.series, rows.ts, rows.value, rows.quality, rows.offset)
            for series_id, ts, value, quality, offset in zip(*(c.tolist() for c in columns), strict=True):
                if offset > db.fold_offset:
                    key = (self._series_of(series_id).tenant, series_id, ts)
                    events.append((offset, 1, (key, FakeRow(value, quality, offset))))
        written = 0
        for offset, _, event in sorted(events, key=lambda e: e[:2]):
            (time,) = work.commit_times.at(np.array([offset])).tolist()
            if isinstance(event, Hide):
                hidden = [k for k in db.readable if _hides(event, k)]
                for key in hidden:
                    db.superseded.append(FakeSuperseded(key, db.readable.pop(key), offset, time))
                continue
            key, row = event
            old = db.readable.get(key)
            if old is not None and old.offset < offset:
                db.superseded.append(FakeSuperseded(key, old, offset, time))
            db.readable[key] = row
            written += 1
        db.fold_offset = work.fold_offset
        return FoldResult(parts=1, rows_written=written, superseded=len(db.superseded) - before)

    async def prune_superseded(self, before_unix_us: int, limit: int) -> int:
        """See `HistoryStore.prune_superseded`."""
        gone = [s for s in self._db.superseded if s.time_unix_us < before_unix_us][:limit]
        self._db.superseded = [s for s in self._db.superseded if s not in gone]
        self._db.superseded_floor = max([self._db.superseded_floor, *(s.by_offset for s in gone)])
        return len(gone)

    async def erase(self, tenant: str, series: Sequence[Series]) -> int:
        """See `HistoryStore.erase`."""
        return self._forget(tenant, series, 1 << 62)

    async def drop_before(self, tenant: str, series: Sequence[Series], time_unix_us: int) -> int:
        """See `HistoryStore.drop_before`."""
        return self._forget(tenant, series, time_unix_us)

    def _forget(self, tenant: str, series: Sequence[Series], before: int) -> int:
        ids = {s.series_id for s in series}

        def goes(key: tuple[str, int, int]) -> bool:
            return key[0] == tenant and key[1] in ids and key[2] < before

        gone = [key for key in self._db.readable if goes(key)]
        for key in gone:
            del self._db.readable[key]
        self._db.superseded = [s for s in self._db.superseded if not goes(s.key)]
        return len(gone)

    async def spans(self, tenant: str, series: Sequence[Series]) -> dict[int, SeriesSpan]:
        """See `HistoryStore.spans`."""
        found = {s.series_id: self._rows(self._db.readable.items(), tenant, s).ts.tolist() for s in series}
        return {
            series_id: SeriesSpan(point_count=len(ts), first_time_unix_us=ts[0], last_time_unix_us=ts[-1])
            for series_id, ts in found.items()
            if ts
        }

    async def counts(self, tenant: str, twin_id: str) -> HistoryCounts:
        """See `HistoryStore.counts`; quarantine is not part of this fake."""
        series = [s for s in self._db.series if s.tenant == tenant and twin_id in ("", s.twin_id)]
        ids = {s.series_id for s in series}
        qualities = [row.quality for key, row in self._db.readable.items() if key[0] == tenant and key[1] in ids]
        entries = [e for e in self._db.entries if e.tenant == tenant]
        return HistoryCounts(
            entry_count=len(entries),
            landed_point_count=sum(e.point_count for e in entries),
            folded_points=(qualities.count(1), qualities.count(2), qualities.count(3)),
            series_count=len(series),
            quarantined_count=0,
            disk_bytes=sum(len(e.body) for e in entries),
            fold_offset=self._db.fold_offset,
        )


def _hides(hide: Hide, key: tuple[str, int, int]) -> bool:
    tenant, series_id, ts = key
    return tenant == hide.tenant and series_id in hide.series_ids and hide.start <= ts < hide.end
