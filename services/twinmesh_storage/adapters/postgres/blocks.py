"""Blocks in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from psycopg import AsyncConnection

from twinmesh_runtime.postgres import Pool, connection
from twinmesh_storage.adapters.postgres.copying import (
    NULL,
    bytea_head,
    copy_rows,
    copy_statement,
    float8,
    int4,
    int8,
    row_head,
    text,
)
from twinmesh_storage.domain.blocks import Block, BlockSpan, Statistics
from twinmesh_storage.domain.entries import Lease
from twinmesh_storage.domain.ports import HistoryCounts, LeaseLost

_COLUMNS: Final = (
    "tenant",
    "series_id",
    "t0",
    "t1",
    "n",
    "good_count",
    "uncertain_count",
    "bad_count",
    "max_offset",
    "min_value",
    "max_value",
    "sum_value",
    "m2_value",
    "first_value",
    "last_value",
    "ts",
    "val",
    "quality",
    "log_offset",
)
_COPY_BLOCKS: Final = copy_statement("block", _COLUMNS)
_B: Final = ", ".join(f"b.{column}" for column in _COLUMNS)

# Blocks of a series do not overlap, so only the last one that begins before the range can reach into it.
_READ: Final = f"""
select {_B} from unnest(%(series)s::bigint[]) with ordinality as s (id, rank)
cross join lateral (
    select * from block
    where tenant = %(tenant)s and series_id = s.id and t0 < %(end)s and t1 >= %(start)s
      and t0 >= coalesce((select max(t0) from block
                          where tenant = %(tenant)s and series_id = s.id and t0 <= %(start)s), %(start)s)
    order by t0 limit %(limit)s) b
order by s.rank, b.t0
limit %(limit)s
"""  # noqa: S608 -- constants of this module

_READ_LAST: Final = f"""
select {_B} from unnest(%(series)s::bigint[]) as s (id)
cross join lateral (
    select * from block where tenant = %(tenant)s and series_id = s.id order by t0 desc limit 1) b
"""  # noqa: S608 -- constants of this module

_READ_BEFORE: Final = f"""
select {_B} from unnest(%(series)s::bigint[], %(before)s::bigint[]) as s (id, before)
cross join lateral (
    select * from block where tenant = %(tenant)s and series_id = s.id and t0 < s.before order by t0 desc limit 1) b
"""  # noqa: S608 -- constants of this module

_READ_TOUCHED: Final = f"""
select {_B} from unnest(%(tenant)s::text[], %(series)s::bigint[], %(cell)s::bigint[], %(first)s::bigint[],
                        %(last)s::bigint[]) as s (tenant, id, cell, first, last)
cross join lateral (
    select * from block
    where tenant = s.tenant and series_id = s.id and t0 >= s.cell and t0 <= s.last
      and (t1 >= s.first or n < %(small)s)) b
"""  # noqa: S608 -- constants of this module

# Conflicts with a take-over of the lease, and not with the commits that go on meanwhile.
_FENCE: Final = "select lease_epoch from partition_state where partition_id = 0 for key share"

_DELETE: Final = """
delete from block b using unnest(%s::text[], %s::bigint[], %s::bigint[]) as k (tenant, series_id, t0)
where b.tenant = k.tenant and b.series_id = k.series_id and b.t0 = k.t0
"""

_MOVE_FOLD: Final = "update fold_state set fold_offset = greatest(fold_offset, %s) where partition_id = 0"

_COUNTS: Final = """
with mine as (select series_id from series where tenant = %(tenant)s and (%(twin)s = '' or twin_id = %(twin)s))
select
    (select count(*) from log where tenant = %(tenant)s)
        + coalesce((select entry_count from trimmed where tenant = %(tenant)s), 0),
    (select coalesce(sum(point_count), 0) from log where tenant = %(tenant)s)
        + coalesce((select point_count from trimmed where tenant = %(tenant)s), 0),
    coalesce(sum(b.good_count), 0), coalesce(sum(b.uncertain_count), 0), coalesce(sum(b.bad_count), 0),
    (select count(*) from mine),
    (select count(*) from quarantine
     where tenant = %(tenant)s and state = 1 and (%(twin)s = '' or twin_id = %(twin)s)),
    (select sum(pg_total_relation_size(c.oid)) from pg_class c
     where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r'),
    (select fold_offset from fold_state where partition_id = 0),
    (select trim_offset from trim_state where partition_id = 0)
from block b where b.tenant = %(tenant)s and (%(twin)s = '' or b.series_id in (select series_id from mine))
"""


class PostgresBlocks:
    """`BlockStore` on PostgreSQL.

    Args:
        timeout_s: bound of each read; folding may take ten times as long.
    """

    def __init__(self, *, pool: Pool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    async def read(self, tenant: str, series: Sequence[int], start: int, end: int, limit: int) -> list[Block]:
        """See `BlockStore.read`."""
        arguments = {"tenant": tenant, "series": list(series), "start": start, "end": end, "limit": limit}
        return await self._fetch(_READ, arguments, self._timeout_s)

    async def read_last(self, tenant: str, series: Sequence[int]) -> list[Block]:
        """See `BlockStore.read_last`."""
        return await self._fetch(_READ_LAST, {"tenant": tenant, "series": list(series)}, self._timeout_s)

    async def read_before(self, tenant: str, series: Sequence[int], before: Sequence[int]) -> list[Block]:
        """See `BlockStore.read_before`."""
        arguments = {"tenant": tenant, "series": list(series), "before": list(before)}
        return await self._fetch(_READ_BEFORE, arguments, self._timeout_s)

    async def _fetch(self, statement: str, arguments: dict[str, Any], timeout_s: float) -> list[Block]:
        async with connection(self._pool, timeout_s=timeout_s) as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(statement, arguments)
            return [_block(row) for row in await cursor.fetchall()]

    async def read_touched(self, spans: Sequence[BlockSpan], small: int) -> list[Block]:
        """See `BlockStore.read_touched`."""
        arguments = {
            "tenant": [s.tenant for s in spans],
            "series": [s.series_id for s in spans],
            "cell": [s.cell_start for s in spans],
            "first": [s.first for s in spans],
            "last": [s.last for s in spans],
            "small": small,
        }
        return await self._fetch(_READ_TOUCHED, arguments, 10 * self._timeout_s)

    async def replace(self, lease: Lease, fold_offset: int, removed: Sequence[Block], added: Sequence[Block]) -> None:
        """See `BlockStore.replace`."""
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            fenced = await (await conn.execute(_FENCE)).fetchone()
            if fenced is None or fenced[0] != lease.epoch:
                raise LeaseLost
            if removed:
                keys = [block.key for block in removed]
                await conn.execute(_DELETE, ([k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys]))
            if added:
                await _copy_blocks(conn, added)
            await conn.execute(_MOVE_FOLD, (fold_offset,))

    async def counts(self, tenant: str, twin_id: str) -> HistoryCounts:
        """See `BlockStore.counts`."""
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            row = await (await conn.execute(_COUNTS, {"tenant": tenant, "twin": twin_id})).fetchone()
        entries, landed, good, uncertain, bad, series, quarantined, disk, fold, trim = row or (0,) * 10
        return HistoryCounts(
            entry_count=int(entries),
            landed_point_count=int(landed),
            block_points=(int(good), int(uncertain), int(bad)),
            series_count=int(series),
            quarantined_count=int(quarantined),
            disk_bytes=int(disk),
            fold_offset=int(fold),
            trim_offset=int(trim),
        )


async def _copy_blocks(conn: AsyncConnection[Any], blocks: Sequence[Block]) -> None:
    await copy_rows(conn, _COPY_BLOCKS, (_piece(block) for block in blocks))


def _piece(block: Block) -> bytes:
    s = block.statistics
    numbers = (
        NULL * 6 if s is None else b"".join(float8(v) for v in (s.minimum, s.maximum, s.sum, s.m2, s.first, s.last))
    )
    columns = (block.ts, block.val, block.quality, block.log_offset)
    return b"".join(
        (
            row_head(len(_COLUMNS)),
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
