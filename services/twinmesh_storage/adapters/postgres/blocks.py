"""History as blocks in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from psycopg import AsyncConnection

from twinmesh_core.errors import Unavailable
from twinmesh_core.time import to_datetime
from twinmesh_runtime.postgres import Pool, connection
from twinmesh_storage.adapters.postgres import blocks_sql as sql
from twinmesh_storage.adapters.postgres.arrays import BigInts
from twinmesh_storage.adapters.postgres.block_rows import block_chunks, copy_chunks, to_block
from twinmesh_storage.adapters.postgres.folds import (
    MOVE_FOLD,
    Moved,
    SupersededRows,
    fold_state,
    lock_fold,
)
from twinmesh_storage.adapters.postgres.partitions import Partitions
from twinmesh_storage.adapters.postgres.rewriting import Deletion, Rewriting
from twinmesh_storage.domain import columns
from twinmesh_storage.domain.blocks import (
    MAX_BLOCK_ROWS,
    SMALL_BLOCK_ROWS,
    Block,
    BlockSpan,
    SeriesOf,
    build_blocks,
)
from twinmesh_storage.domain.entries import Lease
from twinmesh_storage.domain.folding import FoldResult, FoldWork, Hide
from twinmesh_storage.domain.partitions import REST, width_of
from twinmesh_storage.domain.parts import SUMMARY, Part, PartPage, PartSummaries, page_of, summaries_of
from twinmesh_storage.domain.ports import HistoryCounts, SeriesSpan
from twinmesh_storage.domain.series import Series

_PAGE_BLOCKS: Final = 2_048
_FOLD_ATTEMPTS: Final = 5


class BlockHistory:
    """`HistoryStore` as blocks in PostgreSQL.

    Args:
        timeout_s: bound of each read; folding and dropping may take ten times as long.
        series_of: finds the series of rows to be folded.
        small_rows: blocks with fewer rows are merged with what follows (tests choose small ones).
        max_rows: most rows of a block.
    """

    form: Final = "blocks"

    def __init__(
        self,
        *,
        pool: Pool,
        timeout_s: float,
        series_of: SeriesOf,
        small_rows: int = SMALL_BLOCK_ROWS,
        max_rows: int = MAX_BLOCK_ROWS,
    ) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._series_of = series_of
        self._superseded = SupersededRows(pool=pool, timeout_s=timeout_s, series_of=series_of)
        self._rewriting = Rewriting(series_of=series_of, small_rows=small_rows, max_rows=max_rows)
        self._partitions = Partitions()

    # --- reads ---

    async def read(self, tenant: str, series: Sequence[Series], start: int, end: int, max_rows: int) -> PartPage:
        """See `HistoryStore.read`."""
        arguments = {
            "tenant": tenant,
            "series": _keys(series),
            "start": start,
            "end": end,
            "max_rows": max_rows,
            "limit": _PAGE_BLOCKS,
        }
        found = await self._fetch(sql.READ, arguments | _within(series, start), self._timeout_s)
        truncated = len(found) > 1 and (len(found) >= _PAGE_BLOCKS or found[-1][-1] >= max_rows)
        return page_of([to_block(row) for row in found], series, truncated=truncated)

    async def summaries(self, tenant: str, series: Sequence[Series], start: int, end: int, limit: int) -> PartSummaries:
        """See `HistoryStore.summaries`."""
        arguments = {"tenant": tenant, "series": _keys(series), "start": start, "end": end, "limit": limit}
        ((packed,),) = await self._fetch(sql.SUMMARIES, arguments | _within(series, start), self._timeout_s)
        records = np.frombuffer(packed or b"", SUMMARY.newbyteorder(">")).astype(SUMMARY)
        return summaries_of(records, series, truncated=len(records) >= limit)

    async def read_last(self, tenant: str, series: Sequence[Series]) -> list[Part]:
        """See `HistoryStore.read_last`."""
        found: list[Part] = []
        for width, some in _by_width(series).items():
            arguments = {"tenant": tenant, "series": _keys(some), "width": width}
            found += [to_block(row) for row in await self._fetch(sql.READ_LAST, arguments, self._timeout_s)]
        return found

    async def read_before(self, tenant: str, series: Sequence[Series], before: Sequence[int]) -> list[Part]:
        """See `HistoryStore.read_before`."""
        moments = dict(zip(_ids(series), before, strict=True))
        found: list[Part] = []
        for width, some in _by_width(series).items():
            mine = [moments[s.series_id] for s in some]
            arguments = {
                "tenant": tenant,
                "series": _keys(some),
                "before": BigInts(mine),
                "most": max(mine),
                "width": width,
            }
            found += [to_block(row) for row in await self._fetch(sql.READ_BEFORE, arguments, self._timeout_s)]
        return found

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
        found = await self._fetch(sql.SPANS, {"tenant": tenant, "series": _keys(series)}, self._timeout_s)
        return {
            series_id: SeriesSpan(point_count=n, first_time_unix_us=first, last_time_unix_us=last)
            for series_id, n, first, last in found
        }

    async def counts(self, tenant: str, twin_id: str) -> HistoryCounts:
        """See `HistoryStore.counts`."""
        found = await self._fetch(sql.COUNTS, {"tenant": tenant, "twin": twin_id}, 10 * self._timeout_s)
        entries, landed, series, quarantined, disk, fold, trim, good, uncertain, bad = found[0]
        return HistoryCounts(
            entry_count=int(entries),
            landed_point_count=int(landed),
            folded_points=(int(good), int(uncertain), int(bad)),
            series_count=int(series),
            quarantined_count=int(quarantined),
            disk_bytes=int(disk),
            fold_offset=int(fold),
            trim_offset=int(trim),
        )

    async def _fetch(self, statement: str, arguments: dict[str, Any], timeout_s: float) -> list[tuple[Any, ...]]:
        async with connection(self._pool, timeout_s=timeout_s) as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(statement, arguments)
            return await cursor.fetchall()

    # --- changes ---

    async def fold(self, lease: Lease, work: FoldWork) -> FoldResult:
        """See `HistoryStore.fold`."""
        for attempt in range(_FOLD_ATTEMPTS + 1):
            try:
                return await self._fold(lease, work)
            except Moved:
                # Rows were erased or dropped between reading and writing: look again.
                self._partitions.forget()
                if attempt == _FOLD_ATTEMPTS:
                    raise Unavailable("History is being changed too fast; the fold is repeated.") from None
        raise AssertionError

    async def _fold(self, lease: Lease, work: FoldWork) -> FoldResult:
        hides = sorted(work.hides, key=lambda hide: hide.offset)
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            folded = await fold_state(conn, lease)
            if work.fold_offset <= folded:
                return FoldResult(repeated=True)
            fresh = {lane: rows.after(folded) for lane, rows in work.fresh.items()}
            spans, reaches = await asyncio.to_thread(self._rewriting.reach, fresh)
            touched = await self._touched(conn, spans, reaches, hides)
        # Whatever looks at each block is done in threads: appends go on meanwhile on the event loop.
        written = await asyncio.to_thread(self._rewriting.rewrite, fresh, touched, hides)
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            there = await self._partitions.ensure(conn, written.partitions)
        chunks = await asyncio.to_thread(self._rewriting.chunks, written, there)
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            await lock_fold(conn, lease, folded)
            await self._delete(conn, written.replaced)
            hidden = 0
            for hide in hides:
                row = await (await conn.execute(sql.MOVE_HIDDEN, _hidden(hide, work))).fetchone()
                hidden += int(row[0]) if row else 0
            await copy_chunks(conn, chunks)
            for aside in written.superseded:
                await self._superseded.write(conn, aside, work.commit_times)
            await conn.execute(MOVE_FOLD, (work.fold_offset,))
        return FoldResult(
            parts=len(written.blocks),
            rows_written=sum(block.n for block in written.blocks),
            bytes_written=sum(block.size for block in written.blocks),
            superseded=hidden + sum(len(aside) for aside in written.superseded),
        )

    async def _touched(
        self,
        conn: AsyncConnection[Any],
        spans: Sequence[BlockSpan],
        reaches: Sequence[dict[str, Any]],
        hides: Sequence[Hide],
    ) -> list[Block]:
        """Return the blocks that must be merged with fresh rows, or that a hide cuts in two."""
        touched: dict[tuple[str, int, int], Block] = {}
        async with conn.cursor(binary=True) as cursor:
            for arguments in reaches:
                await cursor.execute(sql.READ_TOUCHED, arguments)
                touched |= {block.key: block for block in map(to_block, await cursor.fetchall())}
            _leave_lone(touched, spans)
            for hide in hides:
                cut = {"tenant": hide.tenant, "series": sorted(hide.series_ids), "start": hide.start, "end": hide.end}
                within = _within([self._series_of(i) for i in hide.series_ids], hide.start)
                await cursor.execute(sql.READ_CUT, cut | within)
                touched |= {block.key: block for block in map(to_block, await cursor.fetchall())}
        return list(touched.values())

    async def _delete(self, conn: AsyncConnection[Any], replaced: Sequence[Deletion]) -> None:
        """Delete blocks.

        Raises:
            Moved: some are not there any more. Whoever changes a block deletes its key, so the others are as read.
        """
        for count, arguments in replaced:
            if (await conn.execute(sql.DELETE, arguments)).rowcount != count:
                raise Moved

    async def prune_superseded(self, before_unix_us: int, limit: int) -> int:
        """See `HistoryStore.prune_superseded`."""
        return await self._superseded.prune(before_unix_us, limit)

    async def erase(self, tenant: str, series: Sequence[Series]) -> int:
        """See `HistoryStore.erase`."""
        ids = _ids(series)
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            await lock_fold(conn)
            await self._superseded.erase(conn, tenant, ids)
            row = await (await conn.execute(sql.ERASE, {"tenant": tenant, "series": ids})).fetchone()
        return int(row[0]) if row else 0

    async def drop_before(self, tenant: str, series: Sequence[Series], time_unix_us: int) -> int:
        """See `HistoryStore.drop_before`."""
        arguments = {"tenant": tenant, "series": _ids(series), "time": time_unix_us} | _within(series, time_unix_us)
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            await lock_fold(conn)
            await self._superseded.drop_before(conn, tenant, _ids(series), time_unix_us)
            gone = await self._partitions.drop_before(conn, tenant, _ids(series), time_unix_us)
            row = await (await conn.execute(sql.DROP_BEFORE, arguments)).fetchone()
            async with conn.cursor(binary=True) as cursor:
                await cursor.execute(sql.DROP_STRADDLING, arguments)
                cut = [to_block(found) for found in await cursor.fetchall()]
            kept = await asyncio.to_thread(_since, cut, time_unix_us, self._series_of)
            await copy_chunks(conn, await asyncio.to_thread(block_chunks, kept, [REST] * len(kept)))
        return gone + int(row[0] if row else 0) + sum(block.n for block in cut) - sum(block.n for block in kept)


def _ids(series: Sequence[Series]) -> list[int]:
    return [s.series_id for s in series]


def _keys(series: Sequence[Series]) -> BigInts:
    return BigInts(_ids(series))


def _by_width(series: Sequence[Series]) -> dict[int, list[Series]]:
    """Return the series by width class."""
    found: dict[int, list[Series]] = {}
    for one in series:
        found.setdefault(width_of(one.cell_us).number, []).append(one)
    return found


def _within(series: Sequence[Series], start: int) -> dict[str, Any]:
    """Return the width classes of these series, and before what time no block of theirs begins that reaches a start."""
    cells = {one.cell_us for one in series}
    return {
        "widths": sorted({REST, *(width_of(cell).number for cell in cells)}),
        "low": start - max(cells, default=0),
    }


def _leave_lone(touched: dict[tuple[str, int, int], Block], spans: Sequence[BlockSpan]) -> None:
    """Leave blocks as they are that the end of a cell found nothing to merge with."""
    ends = {(s.tenant, s.series_id): s for s in spans if s.n == 0}
    found: dict[tuple[str, int], list[tuple[str, int, int]]] = {}
    for key in touched:
        end = ends.get(key[:2])
        if end is not None and end.cell_start <= key[2] <= end.last:
            found.setdefault(key[:2], []).append(key)
    for keys in found.values():
        if len(keys) == 1:
            del touched[keys[0]]


def _hidden(hide: Hide, work: FoldWork) -> dict[str, Any]:
    (time_unix_us,) = work.commit_times.at(np.array([hide.offset])).tolist()
    return {
        "tenant": hide.tenant,
        "series": sorted(hide.series_ids),
        "start": hide.start,
        "end": hide.end,
        "offset": hide.offset,
        "time": to_datetime(time_unix_us),
        "by": columns.encode_ints(np.array([hide.offset])),
    }


def _since(blocks: Sequence[Block], time_unix_us: int, series_of: SeriesOf) -> list[Block]:
    """Return what is left of blocks from an event time on."""
    kept: list[Block] = []
    for block in blocks:
        rows = block.rows()
        kept.extend(build_blocks(rows.take(rows.ts >= time_unix_us), block.lane, series_of))
    return kept
