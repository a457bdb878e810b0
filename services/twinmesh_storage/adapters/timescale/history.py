"""History as hypertables of TimescaleDB, in its columnstore.

Rows that a fold supersedes are taken out before the new ones are copied in, so a row per (series, event time) is there
and no unique constraint is needed, which direct compress would not allow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from psycopg import AsyncConnection

from twinmesh_core.time import from_datetime, to_datetime
from twinmesh_runtime.postgres import Pool, connection
from twinmesh_storage.adapters.postgres.copying import copy_rows
from twinmesh_storage.adapters.postgres.folds import MOVE_FOLD, SupersededRows, fold_state, lock_fold
from twinmesh_storage.adapters.timescale import sql
from twinmesh_storage.adapters.timescale.packed import copy_into, pieces, unpack
from twinmesh_storage.adapters.timescale.tables import TABLES, Table, table_of
from twinmesh_storage.domain.blocks import SeriesOf
from twinmesh_storage.domain.entries import Lease
from twinmesh_storage.domain.folding import FoldResult, FoldWork, Hide, Superseded, settle
from twinmesh_storage.domain.parts import Part, PartPage, PartSummaries, RowsPart
from twinmesh_storage.domain.ports import HistoryCounts, SeriesSpan
from twinmesh_storage.domain.rows import Lane, Rows
from twinmesh_storage.domain.series import Series

_BEFORE_ROWS: Final = 1_000
_HIDE_ROWS: Final = 200_000
_DIRECT_ROWS: Final = 500
"""Direct compress makes batches of what a COPY brings of a series: below about this many rows each, the columnstore
policy makes better ones later."""
_LOW, _HIGH = from_datetime(to_datetime(-62_135_596_800_000_000)), 253_402_300_800_000_000 - 1
"""Event times are within the calendar; bounds of a range need not be."""

Connection = AsyncConnection[Any]


class TimescaleHistory:
    """`HistoryStore` as hypertables.

    Args:
        timeout_s: bound of each read; folding and dropping may take ten times as long.
        series_of: finds the series of rows to be folded.
    """

    form: Final = "hypertable"

    def __init__(self, *, pool: Pool, timeout_s: float, series_of: SeriesOf) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._series_of = series_of
        self._superseded = SupersededRows(pool=pool, timeout_s=timeout_s, series_of=series_of)
        # The newest event time of series, as of the fold offset beside it: whether another process folded shows there.
        self._newest: dict[int, int] = {}
        self._newest_as_of = -1

    # --- reads ---

    async def read(self, tenant: str, series: Sequence[Series], start: int, end: int, max_rows: int) -> PartPage:
        """See `HistoryStore.read`."""
        found: dict[int, Rows] = {}
        whole = {s.series_id for s in series}
        limit = max_rows + 1
        for table, some in _by_table(series).items():
            arguments = {
                "tenant": tenant,
                "series": [s.series_id for s in some],
                "start": _moment(start),
                "end": _moment(end),
                "limit": limit,
            }
            mine = await self._fetch(sql.READ, table, arguments)
            found |= mine
            if sum(len(rows) for rows in mine.values()) >= limit:
                last = list(mine)[-1]
                at = [s.series_id for s in some].index(last)
                whole -= {s.series_id for s in some[at:]}
        done = next((i for i, s in enumerate(series) if s.series_id not in whole), len(series))
        if done == 0:
            rows = found[series[0].series_id]
            cut = rows.take(slice(0, len(rows) - 1))
            return PartPage(parts=[RowsPart(unpacked=cut)], done=0, until=int(rows.ts[-1]))
        parts = [RowsPart(unpacked=found[s.series_id]) for s in series[:done] if s.series_id in found]
        return PartPage(parts=parts, done=done)

    async def summaries(
        self, tenant: str, series: Sequence[Series], start: int, end: int, limit: int
    ) -> PartSummaries | None:
        """See `HistoryStore.summaries`; this form keeps none."""
        return None

    async def read_last(self, tenant: str, series: Sequence[Series]) -> list[Part]:
        """See `HistoryStore.read_last`."""
        parts: list[Part] = []
        for table, some in _by_table(series).items():
            arguments = {"tenant": tenant, "series": [s.series_id for s in some]}
            found = await self._fetch(sql.READ_LAST, table, arguments)
            parts += [RowsPart(unpacked=rows) for rows in found.values()]
        return parts

    async def read_before(self, tenant: str, series: Sequence[Series], before: Sequence[int]) -> list[Part]:
        """See `HistoryStore.read_before`."""
        moments = dict(zip((s.series_id for s in series), before, strict=True))
        parts: list[Part] = []
        for table, some in _by_table(series).items():
            ids = [s.series_id for s in some]
            mine = [_moment(moments[i]) for i in ids]
            arguments = {"tenant": tenant, "series": ids, "before": mine, "limit": _BEFORE_ROWS}
            found = await self._fetch(sql.READ_BEFORE, table, arguments)
            parts += [RowsPart(unpacked=rows) for rows in found.values()]
        return parts

    async def read_superseded(
        self, tenant: str, series: Sequence[Series], start: int, end: int, as_of_offset: int, max_rows: int
    ) -> PartPage:
        """See `HistoryStore.read_superseded`."""
        return await self._superseded.read(tenant, series, start, end, as_of_offset, max_rows)

    async def superseded_floor(self) -> int:
        """See `HistoryStore.superseded_floor`."""
        return await self._superseded.floor()

    async def spans(self, tenant: str, series: Sequence[Series]) -> dict[int, SeriesSpan]:
        """See `HistoryStore.spans`."""
        spans = {}
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            for table, some in _by_table(series).items():
                arguments = {"tenant": tenant, "series": [s.series_id for s in some]}
                rows = await (await conn.execute(sql.SPANS.format(table=table.identifier), arguments)).fetchall()
                for series_id, n, first, last in rows:
                    spans[series_id] = SeriesSpan(
                        point_count=n, first_time_unix_us=from_datetime(first), last_time_unix_us=from_datetime(last)
                    )
        return spans

    async def counts(self, tenant: str, twin_id: str) -> HistoryCounts:
        """See `HistoryStore.counts`."""
        arguments = {"tenant": tenant, "twin": twin_id}
        by_quality = [0, 0, 0, 0]
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            await conn.execute("set transaction isolation level repeatable read")
            await conn.execute(sql.WITH_EXTENSION)
            row = await (await conn.execute(sql.COUNTS, arguments)).fetchone()
            disk = 0
            for table in TABLES:
                found = await conn.execute(sql.QUALITIES.format(table=table.identifier), arguments)
                for quality, n in await found.fetchall():
                    by_quality[quality] += n
                size = await (await conn.execute("select hypertable_size(%s)", (table.name,))).fetchone()
                disk += int(size[0] or 0) if size else 0
        entries, landed, series, quarantined, others, fold, trim = row or (0,) * 7
        return HistoryCounts(
            entry_count=int(entries),
            landed_point_count=int(landed),
            folded_points=(by_quality[1], by_quality[2], by_quality[3]),
            series_count=int(series),
            quarantined_count=int(quarantined),
            disk_bytes=int(others) + disk,
            fold_offset=int(fold),
            trim_offset=int(trim),
        )

    async def _fetch(self, statement: Any, table: Table, arguments: dict[str, Any]) -> dict[int, Rows]:
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            return await _packed(conn, statement, table, arguments)

    # --- changes ---

    async def fold(self, lease: Lease, work: FoldWork) -> FoldResult:
        """See `HistoryStore.fold`."""
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            folded = await fold_state(conn, lease)
            if work.fold_offset <= folded:
                return FoldResult(repeated=True)
            await lock_fold(conn, lease, folded)
            await conn.execute(sql.ANY_NUMBER)
            if self._newest_as_of != folded:
                self._newest.clear()
            aside: list[Superseded] = []
            written = copies = 0
            hides = sorted(work.hides, key=lambda hide: hide.offset)
            for table, fresh in self._by_table(work.fresh, folded).items():
                late = await self._late(conn, table, fresh)
                stored = await self._take_out(conn, table, fresh.take(late))
                settled = await asyncio.to_thread(settle, [fresh, *stored], hides)
                aside.append(settled.superseded)
                written += len(settled.readable)
                copies += await self._copy(conn, table, settled.readable, sorted_after=not late.any())
            for hide in hides:
                aside += await self._hide(conn, hide)
            for part in aside:
                if len(part):
                    await self._superseded.write(conn, part, work.commit_times)
            await conn.execute(MOVE_FOLD, (work.fold_offset,))
        self._newest_as_of = work.fold_offset
        return FoldResult(parts=copies, rows_written=written, superseded=sum(len(part) for part in aside))

    def _by_table(self, fresh: Mapping[Lane, Rows], folded: int) -> dict[Table, Rows]:
        """Return the rows that are not folded yet, by hypertable."""
        by_table: dict[Table, Rows] = {}
        for rows in fresh.values():
            mine = rows.take(rows.offset > folded)
            ids, at = np.unique(mine.series, return_inverse=True)
            tables = [table_of(self._series_of(series_id)) for series_id in ids.tolist()]
            for table in dict.fromkeys(tables):
                by_table[table] = mine.take(np.array([t == table for t in tables], np.bool_)[at])
        return by_table

    async def _late(self, conn: Connection, table: Table, rows: Rows) -> Any:
        """Return which rows are not after everything stored of their series, and remember the newest times."""
        starts = np.flatnonzero(np.concatenate(([True], rows.series[1:] != rows.series[:-1])))
        ids = rows.series[starts]
        unknown = [i for i in ids.tolist() if i not in self._newest]
        if unknown:
            arguments = {"tenant": [self._series_of(i).tenant for i in unknown], "series": unknown}
            found = await conn.execute(sql.NEWEST.format(table=table.identifier), arguments)
            known = {series_id: from_datetime(time) for series_id, time in await found.fetchall()}
            self._newest |= {i: known.get(i, _LOW - 1) for i in unknown}
        before = np.array([self._newest[i] for i in ids.tolist()], np.int64)
        edges = np.append(starts, len(rows))
        for series_id, last, newest in zip(ids.tolist(), rows.ts[edges[1:] - 1].tolist(), before.tolist(), strict=True):
            self._newest[series_id] = max(last, newest)
        return rows.ts <= np.repeat(before, np.diff(edges))

    async def _take_out(self, conn: Connection, table: Table, late: Rows) -> list[Rows]:
        """Remove and return the stored rows at the same series and event times."""
        stored: list[Rows] = []
        for series_id in np.unique(late.series).tolist():
            times = np.unique(late.ts[late.series == series_id]).tolist()
            arguments = {
                "tenant": self._series_of(series_id).tenant,
                "series": series_id,
                "first": to_datetime(times[0]),
                "last": to_datetime(times[-1]),
                "times": [to_datetime(time) for time in times],
            }
            found = await _packed(conn, sql.READ_AT, table, arguments)
            if found:
                stored += found.values()
                await conn.execute(sql.DELETE_AT.format(table=table.identifier), arguments)
        return stored

    async def _copy(self, conn: Connection, table: Table, rows: Rows, *, sorted_after: bool) -> int:
        if not len(rows):
            return 0
        direct = len(rows) >= _DIRECT_ROWS * len(np.unique(rows.series))
        # Only what follows everything stored may be called sorted: the planner then relies on the order of batches.
        await conn.execute(sql.DIRECT, [_on_off(direct), _on_off(direct and sorted_after)])
        await copy_rows(conn, copy_into(table), pieces(table, rows, self._series_of))
        return 1

    async def _hide(self, conn: Connection, hide: Hide) -> list[Superseded]:
        """Take out the stored rows that a hide covers, a bounded number at a time."""
        aside: list[Superseded] = []
        for series in sorted((self._series_of(i) for i in hide.series_ids), key=lambda s: s.series_id):
            if series.tenant != hide.tenant:
                continue
            table, start = table_of(series), hide.start
            while True:
                arguments = {
                    "tenant": hide.tenant,
                    "series": [series.series_id],
                    "start": _moment(start),
                    "end": _moment(hide.end),
                    "limit": _HIDE_ROWS,
                }
                rows = (await _packed(conn, sql.READ, table, arguments)).get(series.series_id)
                if rows is None:
                    break
                settled = await asyncio.to_thread(settle, [rows], [hide])
                aside.append(settled.superseded)
                span = arguments | {"series": series.series_id, "end": _moment(int(rows.ts[-1]) + 1)}
                await conn.execute(sql.DELETE_RANGE.format(table=table.identifier), span)
                await self._copy(conn, table, settled.readable, sorted_after=False)
                start = int(rows.ts[-1]) + 1
        return aside

    async def prune_superseded(self, before_unix_us: int, limit: int) -> int:
        """See `HistoryStore.prune_superseded`."""
        return await self._superseded.prune(before_unix_us, limit)

    async def erase(self, tenant: str, series: Sequence[Series]) -> int:
        """See `HistoryStore.erase`."""
        gone = 0
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            await lock_fold(conn)
            await conn.execute(sql.ANY_NUMBER)
            await self._superseded.erase(conn, tenant, [s.series_id for s in series])
            for table, some in _by_table(series).items():
                arguments = {"tenant": tenant, "series": [s.series_id for s in some], "time": _moment(_HIGH + 1)}
                count = await (
                    await conn.execute(sql.COUNT_BEFORE.format(table=table.identifier), arguments)
                ).fetchone()
                gone += count[0] if count else 0
                await conn.execute(sql.ERASE.format(table=table.identifier), arguments)
        self._newest_as_of = -1
        return gone

    async def drop_before(self, tenant: str, series: Sequence[Series], time_unix_us: int) -> int:
        """See `HistoryStore.drop_before`."""
        gone = 0
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            await lock_fold(conn)
            await conn.execute(sql.ANY_NUMBER)
            await conn.execute(sql.WITH_EXTENSION)
            await self._superseded.drop_before(conn, tenant, [s.series_id for s in series], time_unix_us)
            for table, some in _by_table(series).items():
                time = _moment(time_unix_us)
                arguments = {"tenant": tenant, "series": [s.series_id for s in some], "time": time}
                count = await (
                    await conn.execute(sql.COUNT_BEFORE.format(table=table.identifier), arguments)
                ).fetchone()
                if count is None or not count[0]:
                    continue
                gone += count[0]
                if not count[1]:
                    await conn.execute(sql.DROP_CHUNKS, (table.name, time))
                await conn.execute(sql.DELETE_BEFORE.format(table=table.identifier), arguments)
        self._newest_as_of = -1
        return gone


def _by_table(series: Sequence[Series]) -> dict[Table, list[Series]]:
    found: dict[Table, list[Series]] = {}
    for one in series:
        found.setdefault(table_of(one), []).append(one)
    return found


def _on_off(value: bool) -> str:
    return "on" if value else "off"


def _moment(time_unix_us: int) -> Any:
    """Return a bound of a range as the database takes it."""
    return to_datetime(min(max(time_unix_us, _LOW), _HIGH))


async def _packed(conn: Connection, statement: Any, table: Table, arguments: dict[str, Any]) -> dict[int, Rows]:
    packed = sql.PACKED[table.lane]
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(statement.format(table=table.identifier, packed=packed), arguments)
        return {row[0]: unpack(row, table.lane) for row in await cursor.fetchall() if row[1]}
