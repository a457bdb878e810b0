"""What every form of history has in PostgreSQL: the fold offset with its fence, superseded rows, and counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from psycopg import AsyncConnection

from twinmesh_core.time import from_datetime, to_datetime
from twinmesh_runtime.postgres import Pool, connection
from twinmesh_storage.adapters.postgres.copying import (
    bytea_head,
    copy_rows,
    copy_statement,
    int4,
    int8,
    row_head,
    text,
    timestamptz,
)
from twinmesh_storage.domain import columns
from twinmesh_storage.domain.blocks import SeriesOf, cut_by_cell, decode_values, encode_values
from twinmesh_storage.domain.entries import Lease
from twinmesh_storage.domain.folding import CommitTimes, Superseded
from twinmesh_storage.domain.parts import PartPage, RowsPart
from twinmesh_storage.domain.ports import LeaseLost, SupersededPruned
from twinmesh_storage.domain.rows import Int64s, Rows, merge
from twinmesh_storage.domain.series import Series

Connection = AsyncConnection[Any]
_SUPERSEDED_COLUMNS: Final = (
    "tenant",
    "series_id",
    "t0",
    "t1",
    "n",
    "min_offset",
    "max_by_offset",
    "superseded_time",
    "ts",
    "val",
    "quality",
    "log_offset",
    "by_offset",
)
_COPY_SUPERSEDED: Final = copy_statement("superseded", _SUPERSEDED_COLUMNS)

_LOCK_FOLD: Final = "select fold_offset from fold_state where partition_id = 0 for update"
_EPOCH: Final = "select lease_epoch from partition_state where partition_id = 0"
_STATE: Final = """
select fold_offset, lease_epoch from fold_state f join partition_state p using (partition_id) where partition_id = 0
"""
# A process that is frozen while it holds the fold lock must not hold up its successor for long.
_SHORT_IDLE: Final = "set local idle_in_transaction_session_timeout = '10s'"
MOVE_FOLD: Final = "update fold_state set fold_offset = %s where partition_id = 0"

_READ_SUPERSEDED: Final = """
select series_id, n, ts, val, quality, log_offset, by_offset, t0, total from (
    select *, sum(n) over (order by rank, t0, superseded_id) as total from (
        select s.rank, x.* from unnest(%(series)s::bigint[]) with ordinality as s (id, rank)
        join superseded x on x.tenant = %(tenant)s and x.series_id = s.id
            and x.t0 < %(end)s and x.t1 >= %(start)s
            and x.min_offset <= %(as_of)s and x.max_by_offset > %(as_of)s
        order by s.rank, x.t0, x.superseded_id limit %(limit)s) first_ones) counted
where total - n < %(max_rows)s
order by total
"""
_FLOOR: Final = "select superseded_floor from fold_state where partition_id = 0"
_PRUNE: Final = """
with gone as (
    delete from superseded where superseded_id in (
        select superseded_id from superseded where superseded_time < %(before)s
        order by superseded_time limit %(limit)s)
    returning n, max_by_offset),
total as (select coalesce(sum(n), 0) as n, coalesce(max(max_by_offset), 0) as floor from gone),
moved as (update fold_state set superseded_floor = greatest(superseded_floor, total.floor) from total
          where partition_id = 0)
select n from total
"""
_ERASE: Final = "delete from superseded where tenant = %(tenant)s and series_id = any(%(series)s)"
_DROP_BEFORE: Final = f"{_ERASE} and t1 < %(time)s"
_READ_STRADDLING: Final = """
delete from superseded where tenant = %(tenant)s and series_id = any(%(series)s)
  and t0 < %(time)s and t1 >= %(time)s
returning series_id, n, ts, val, quality, log_offset, by_offset, superseded_time
"""

COUNTS: Final = """
select
    (select count(*) from log where tenant = %(tenant)s)
        + coalesce((select entry_count from trimmed where tenant = %(tenant)s), 0),
    (select coalesce(sum(point_count), 0) from log where tenant = %(tenant)s)
        + coalesce((select point_count from trimmed where tenant = %(tenant)s), 0),
    (select count(*) from series where tenant = %(tenant)s and (%(twin)s = '' or twin_id = %(twin)s)),
    (select count(*) from quarantine
     where tenant = %(tenant)s and state = 1 and (%(twin)s = '' or twin_id = %(twin)s)),
    (select sum(pg_total_relation_size(c.oid)) from pg_class c
     where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r'),
    (select fold_offset from fold_state where partition_id = 0),
    (select trim_offset from trim_state where partition_id = 0)
"""
"""To be completed by the form's own counts, in the same statement or snapshot."""


class Moved(Exception):  # noqa: N818 -- an outcome that the fold repeats on
    """What a fold had read was changed by somebody before it could write; nothing was written."""


async def fold_state(conn: Connection, lease: Lease) -> int:
    """Return the fold offset, if the lease is current.

    Raises:
        LeaseLost: it is not.
    """
    row = await (await conn.execute(_STATE)).fetchone()
    if row is None or row[1] != lease.epoch:
        raise LeaseLost
    return int(row[0])


async def lock_fold(conn: Connection, lease: Lease | None = None, expected: int | None = None) -> None:
    """Hold the fold lock until the transaction ends: whoever changes folded rows does so one after the other.

    The lease is looked at after the lock is held. So of two processes that both believe to lead, the older one has
    either committed before, or finds out here.

    Raises:
        LeaseLost: the lease is not current.
        Moved: the fold offset is not the expected one.
    """
    await conn.execute(_SHORT_IDLE)
    row = await (await conn.execute(_LOCK_FOLD)).fetchone()
    if lease is not None:
        epoch = await (await conn.execute(_EPOCH)).fetchone()
        if epoch is None or epoch[0] != lease.epoch:
            raise LeaseLost
    if row is None or (expected is not None and row[0] != expected):
        raise Moved


class SupersededRows:
    """The superseded rows, which every form keeps alike."""

    def __init__(self, *, pool: Pool, timeout_s: float, series_of: SeriesOf) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._series_of = series_of

    async def write(self, conn: Connection, aside: Superseded, commit_times: CommitTimes) -> None:
        """Add rows, inside the caller's transaction."""
        await copy_rows(conn, _COPY_SUPERSEDED, self._pieces(aside, commit_times))

    def _pieces(self, aside: Superseded, commit_times: CommitTimes) -> Iterator[bytes]:
        edges = cut_by_cell(aside.rows, self._series_of).tolist()
        for start, end in pairwise(edges):
            part = aside.take(slice(start, end))
            by = int(part.by_offset.max())
            yield self._piece(part, int(commit_times.at(np.array([by]))[0]))

    def _piece(self, part: Superseded, time_unix_us: int) -> bytes:
        rows = part.rows
        series = self._series_of(int(rows.series[0]))
        packed = (
            columns.encode_times(rows.ts),
            encode_values(rows.value, series),
            columns.encode_bytes(rows.quality),
            columns.encode_ints(rows.offset),
            columns.encode_ints(part.by_offset),
        )
        return b"".join(
            (
                row_head(len(_SUPERSEDED_COLUMNS)),
                text(series.tenant),
                int8(series.series_id),
                int8(int(rows.ts[0])),
                int8(int(rows.ts[-1])),
                int4(len(rows)),
                int8(int(rows.offset.min())),
                int8(int(part.by_offset.max())),
                timestamptz(time_unix_us),
                *(piece for column in packed for piece in (bytea_head(len(column)), column)),
            )
        )

    async def read(
        self, tenant: str, series: Sequence[Series], start: int, end: int, as_of_offset: int, max_rows: int
    ) -> PartPage:
        """See `HistoryStore.read_superseded`."""
        ids = [s.series_id for s in series]
        limit = 2_048
        while True:
            arguments = {
                "tenant": tenant,
                "series": ids,
                "start": start,
                "end": end,
                "as_of": as_of_offset,
                "max_rows": max_rows,
                "limit": limit,
            }
            async with connection(self._pool, timeout_s=self._timeout_s) as conn, conn.cursor(binary=True) as cursor:
                await cursor.execute(_READ_SUPERSEDED, arguments)
                found = await cursor.fetchall()
                # After the rows: whoever prunes moves the floor in the same transaction.
                floor = await (await conn.execute(_FLOOR)).fetchone()
            if floor is not None and as_of_offset < floor[0]:
                raise SupersededPruned(floor[0])
            truncated = bool(found) and (len(found) >= limit or found[-1][8] >= max_rows)
            if not truncated or found[-1][0] != ids[0] or found[-1][7] > start:
                return _as_page(found, ids, end, as_of_offset, truncated=truncated)
            # So many pieces reach into the range that no progress could be made: take more at once.
            limit, max_rows = 4 * limit, 4 * max_rows

    async def floor(self) -> int:
        """See `HistoryStore.superseded_floor`."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            row = await (await conn.execute(_FLOOR)).fetchone()
        return int(row[0]) if row else 0

    async def prune(self, before_unix_us: int, limit: int) -> int:
        """See `HistoryStore.prune_superseded`."""
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            arguments = {"before": to_datetime(before_unix_us), "limit": limit}
            row = await (await conn.execute(_PRUNE, arguments)).fetchone()
        return int(row[0]) if row else 0

    async def erase(self, conn: Connection, tenant: str, ids: Sequence[int]) -> None:
        """Forget the rows of series, inside the caller's transaction."""
        await conn.execute(_ERASE, {"tenant": tenant, "series": list(ids)})

    async def drop_before(self, conn: Connection, tenant: str, ids: Sequence[int], time_unix_us: int) -> None:
        """Forget the rows of series before an event time, inside the caller's transaction."""
        arguments = {"tenant": tenant, "series": list(ids), "time": time_unix_us}
        await conn.execute(_DROP_BEFORE, arguments)
        async with conn.cursor(binary=True) as cursor:
            await cursor.execute(_READ_STRADDLING, arguments)
            straddling = await cursor.fetchall()
        for found in straddling:
            rows, by_offset = unpack(found)
            stays = rows.ts >= time_unix_us
            kept = Superseded(rows=rows.take(stays), by_offset=by_offset[stays])
            time = from_datetime(found[7])
            await self.write(conn, kept, CommitTimes.of([(0, time)]))


def _as_page(found: Sequence[Any], ids: Sequence[int], end: int, as_of: int, *, truncated: bool) -> PartPage:
    done, until = len(ids), end
    if truncated:
        done = ids.index(found[-1][0])
        until = end if done else found[-1][7]
    by_series: dict[int, list[Rows]] = {}
    for piece in found:
        rows, by_offset = unpack(piece)
        readable = (rows.offset <= as_of) & (by_offset > as_of)
        if truncated and not done:
            readable &= rows.ts < until
        if readable.any():
            by_series.setdefault(piece[0], []).append(rows.take(readable))
    wanted = ids[: max(done, 1)]
    parts = [RowsPart(unpacked=merge(by_series[i])) for i in wanted if i in by_series]
    return PartPage(parts=parts, done=done, until=until if not done else 0)


def unpack(piece: Sequence[Any]) -> tuple[Rows, Int64s]:
    """Return the rows of a piece, and the offsets that superseded them, from its columns series_id to by_offset."""
    series_id, n, ts, val, quality, log_offset, by_offset = piece[:7]
    rows = Rows(
        series=np.full(n, series_id, np.int64),
        ts=columns.decode_ints(ts, n),
        value=decode_values(val, n),
        quality=columns.decode_bytes(quality, n),
        offset=columns.decode_ints(log_offset, n),
    )
    return rows, columns.decode_ints(by_offset, n)
