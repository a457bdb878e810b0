"""History as blocks in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from psycopg import AsyncConnection

from twinmesh_core.time import to_datetime
from twinmesh_runtime.postgres import Pool, connection
from twinmesh_storage.adapters.postgres import blocks_sql as sql
from twinmesh_storage.adapters.postgres.copying import (
    NULL,
    bytea_head,
    copy_rows,
    float8,
    int4,
    int8,
    row_head,
    text,
)
from twinmesh_storage.adapters.postgres.folds import (
    MOVE_FOLD,
    Moved,
    SupersededRows,
    fold_state,
    lock_fold,
)
from twinmesh_storage.domain import columns
from twinmesh_storage.domain.blocks import (
    SMALL_BLOCK_ROWS,
    Block,
    BlockSpan,
    SeriesOf,
    build_blocks,
    spans_of,
)
from twinmesh_storage.domain.entries import Lease
from twinmesh_storage.domain.folding import FoldResult, FoldWork, Hide, Superseded, settle
from twinmesh_storage.domain.parts import Part, PartPage, Statistics, page_of
from twinmesh_storage.domain.ports import HistoryCounts, SeriesSpan
from twinmesh_storage.domain.rows import Lane, Rows
from twinmesh_storage.domain.series import Series

_PAGE_BLOCKS: Final = 2_048
_FOLD_ATTEMPTS: Final = 5


class BlockHistory:
    """`HistoryStore` as blocks in PostgreSQL.

    Args:
        timeout_s: bound of each read; folding and dropping may take ten times as long.
        series_of: finds the series of rows to be folded.
    """

    form: Final = "blocks"

    def __init__(self, *, pool: Pool, timeout_s: float, series_of: SeriesOf) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._series_of = series_of
        self._superseded = SupersededRows(pool=pool, timeout_s=timeout_s, series_of=series_of)

    # --- reads ---

    async def read(self, tenant: str, series: Sequence[Series], start: int, end: int, max_rows: int) -> PartPage:
        """See `HistoryStore.read`."""
        arguments = {
            "tenant": tenant,
            "series": _ids(series),
            "start": start,
            "end": end,
            "max_rows": max_rows,
            "limit": _PAGE_BLOCKS,
        }
        found = await self._fetch(sql.READ, arguments, self._timeout_s)
        truncated = len(found) > 1 and (len(found) >= _PAGE_BLOCKS or found[-1][-1] >= max_rows)
        return page_of([_block(row) for row in found], series, truncated=truncated)

    async def read_last(self, tenant: str, series: Sequence[Series]) -> list[Part]:
        """See `HistoryStore.read_last`."""
        arguments = {"tenant": tenant, "series": _ids(series)}
        return [_block(row) for row in await self._fetch(sql.READ_LAST, arguments, self._timeout_s)]

    async def read_before(self, tenant: str, series: Sequence[Series], before: Sequence[int]) -> list[Part]:
        """See `HistoryStore.read_before`."""
        arguments = {"tenant": tenant, "series": _ids(series), "before": list(before)}
        return [_block(row) for row in await self._fetch(sql.READ_BEFORE, arguments, self._timeout_s)]

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
        found = await self._fetch(sql.SPANS, {"tenant": tenant, "series": _ids(series)}, self._timeout_s)
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
        for _ in range(_FOLD_ATTEMPTS):
            try:
                return await self._fold(lease, work)
            except Moved:
                continue  # rows were erased or dropped between reading and writing: look again
        return await self._fold(lease, work)

    async def _fold(self, lease: Lease, work: FoldWork) -> FoldResult:
        hides = sorted(work.hides, key=lambda hide: hide.offset)
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            folded = await fold_state(conn, lease)
            if work.fold_offset <= folded:
                return FoldResult(repeated=True)
            fresh = {lane: rows.take(rows.offset > folded) for lane, rows in work.fresh.items()}
            spans = await asyncio.to_thread(_spans, fresh, self._series_of)
            touched = await _touched(conn, spans, hides)
        written = await asyncio.to_thread(_rewrite, fresh, touched, hides, self._series_of)
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            await lock_fold(conn, lease, folded)
            if touched:
                await _delete(conn, touched)
            for hide in hides:
                await conn.execute(sql.MOVE_HIDDEN, _hidden(hide, work))
            if written.blocks:
                await _copy_blocks(conn, written.blocks)
            for aside in written.superseded:
                await self._superseded.write(conn, aside, work.commit_times)
            await conn.execute(MOVE_FOLD, (work.fold_offset,))
        return FoldResult(
            parts=len(written.blocks),
            rows_written=sum(block.n for block in written.blocks),
            bytes_written=sum(block.size for block in written.blocks),
            superseded=sum(len(aside) for aside in written.superseded),
        )

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
        arguments = {"tenant": tenant, "series": _ids(series), "time": time_unix_us}
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            await lock_fold(conn)
            await self._superseded.drop_before(conn, tenant, _ids(series), time_unix_us)
            row = await (await conn.execute(sql.DROP_BEFORE, arguments)).fetchone()
            async with conn.cursor(binary=True) as cursor:
                await cursor.execute(sql.DROP_STRADDLING, arguments)
                cut = [_block(found) for found in await cursor.fetchall()]
            kept = await asyncio.to_thread(_since, cut, time_unix_us, self._series_of)
            if kept:
                await _copy_blocks(conn, kept)
        return int(row[0] if row else 0) + sum(block.n for block in cut) - sum(block.n for block in kept)


def _ids(series: Sequence[Series]) -> list[int]:
    return [s.series_id for s in series]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What a fold puts in the place of the blocks that it touched."""

    blocks: list[Block]
    superseded: list[Superseded]


def _spans(fresh: dict[Lane, Rows], series_of: SeriesOf) -> list[BlockSpan]:
    return [span for rows in fresh.values() for span in spans_of(rows, series_of)]


async def _touched(conn: AsyncConnection[Any], spans: Sequence[BlockSpan], hides: Sequence[Hide]) -> list[Block]:
    """Return the blocks that must be merged with fresh rows, or that a hide cuts in two."""
    touched: dict[tuple[str, int, int], Block] = {}
    async with conn.cursor(binary=True) as cursor:
        if spans:
            arguments = {
                "tenant": [s.tenant for s in spans],
                "series": [s.series_id for s in spans],
                "cell": [s.cell_start for s in spans],
                "first": [s.first for s in spans],
                "last": [s.last for s in spans],
                "small": SMALL_BLOCK_ROWS,
            }
            await cursor.execute(sql.READ_TOUCHED, arguments)
            touched = {block.key: block for block in map(_block, await cursor.fetchall())}
        for hide in hides:
            cut = {"tenant": hide.tenant, "series": sorted(hide.series_ids), "start": hide.start, "end": hide.end}
            await cursor.execute(sql.READ_CUT, cut)
            touched |= {block.key: block for block in map(_block, await cursor.fetchall())}
    return list(touched.values())


def _rewrite(fresh: dict[Lane, Rows], touched: Sequence[Block], hides: Sequence[Hide], series_of: SeriesOf) -> _Written:
    written = _Written(blocks=[], superseded=[])
    for lane in Lane:
        parts = [block.rows() for block in touched if block.lane is lane]
        if lane in fresh:
            parts.append(fresh[lane])
        if not parts:
            continue
        settled = settle(parts, hides)
        written.blocks.extend(build_blocks(settled.readable, lane, series_of))
        if len(settled.superseded):
            written.superseded.append(settled.superseded)
    return written


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


async def _delete(conn: AsyncConnection[Any], blocks: Sequence[Block]) -> None:
    """Delete blocks by key.

    Raises:
        Moved: some are not there any more. Whoever changes a block deletes its key, so the others are as read.
    """
    keys = [block.key for block in blocks]
    cursor = await conn.execute(sql.DELETE, ([k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys]))
    if cursor.rowcount != len(keys):
        raise Moved


async def _copy_blocks(conn: AsyncConnection[Any], blocks: Sequence[Block]) -> None:
    await copy_rows(conn, sql.COPY_BLOCKS, (_piece(block) for block in blocks))


def _piece(block: Block) -> bytes:
    s = block.statistics
    numbers = (
        NULL * 6 if s is None else b"".join(float8(v) for v in (s.minimum, s.maximum, s.sum, s.m2, s.first, s.last))
    )
    columns = (block.ts, block.val, block.quality, block.log_offset)
    return b"".join(
        (
            row_head(len(sql.COLUMNS)),
            text(block.tenant),
            int8(block.series_id),
            int8(block.t0),
            int8(block.t1),
            int4(block.n),
            *(int4(count) for count in block.counts),
            int8(block.max_offset),
            numbers,
            *(part for column in columns for part in (bytea_head(len(column)), column)),
        )
    )


def _block(row: tuple[Any, ...]) -> Block:
    return Block(
        tenant=row[0],
        series_id=row[1],
        t0=row[2],
        t1=row[3],
        n=row[4],
        counts=(row[5], row[6], row[7]),
        max_offset=row[8],
        statistics=None
        if row[9] is None
        else Statistics(minimum=row[9], maximum=row[10], sum=row[11], m2=row[12], first=row[13], last=row[14]),
        ts=row[15],
        val=row[16],
        quality=row[17],
        log_offset=row[18],
    )
