"""History as an erasure needs it: rows below an offset are found and removed, in whatever form history is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from twinmesh_core.time import from_datetime
from twinmesh_runtime.postgres import Pool, connection
from twinmesh_storage.adapters.postgres.folds import Connection, SupersededRows, lock_fold, unpack
from twinmesh_storage.domain.blocks import SeriesOf
from twinmesh_storage.domain.folding import CommitTimes, Superseded
from twinmesh_storage.domain.history import MAX_TIME, MIN_TIME
from twinmesh_storage.domain.ports import HistoryStore
from twinmesh_storage.domain.series import Series

_PIECES: Final = 64
_PAGE_ROWS: Final = 400_000

# The lowest offset of a piece is a bound only, so what is found has to be unpacked to be sure.
_FIND: Final = """
select series_id, n, ts, val, quality, log_offset, by_offset, superseded_time, superseded_id from superseded
where tenant = %(tenant)s and series_id = any(%(series)s) and min_offset < %(before)s and superseded_id > %(after)s
order by superseded_id limit %(limit)s
"""
_REMOVE: Final = "delete from superseded where superseded_id = %s"


class PostgresErasableHistory:
    """`ErasableHistory` over any `HistoryStore` whose superseded rows lie in PostgreSQL."""

    def __init__(self, *, store: HistoryStore, pool: Pool, timeout_s: float, series_of: SeriesOf) -> None:
        self._store = store
        self._pool = pool
        self._timeout_s = timeout_s
        self._superseded = SupersededRows(pool=pool, timeout_s=timeout_s, series_of=series_of)

    async def erase(self, tenant: str, series: Sequence[Series], before_offset: int) -> int:
        """See `ErasableHistory.erase`."""
        gone, after = 0, 0
        while True:
            async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
                await lock_fold(conn)
                found, rows_gone = await self._erase_some(conn, tenant, series, before_offset, after)
            gone += rows_gone
            if not found:
                return gone
            after = found

    async def _erase_some(
        self, conn: Connection, tenant: str, series: Sequence[Series], before_offset: int, after: int
    ) -> tuple[int, int]:
        """Erase from the next pieces; return the id of the last one looked at (0 = none) and how many rows went."""
        gone = last = 0
        for piece in await self._find(conn, tenant, series, before_offset, after):
            rows, by_offset = unpack(piece)
            stays = rows.offset >= before_offset
            last = int(piece[8])
            if stays.all():
                continue
            gone += int((~stays).sum())
            await conn.execute(_REMOVE, (last,))
            if stays.any():
                kept = Superseded(rows=rows.take(stays), by_offset=by_offset[stays])
                await self._superseded.write(conn, kept, CommitTimes.of([(0, from_datetime(piece[7]))]))
        return last, gone

    async def remaining(self, tenant: str, series: Sequence[Series], before_offset: int) -> int:
        """See `ErasableHistory.remaining`."""
        count, after = 0, 0
        while True:
            async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
                pieces = await self._find(conn, tenant, series, before_offset, after)
            count += sum(int((unpack(piece)[0].offset < before_offset).sum()) for piece in pieces)
            if not pieces:
                break
            after = int(pieces[-1][8])
        for one in series:
            start = MIN_TIME
            while True:
                page = await self._store.read(tenant, [one], start, MAX_TIME, _PAGE_ROWS)
                for part in page.parts:
                    rows = part.rows()
                    count += int(((rows.offset < before_offset) & (rows.ts >= start)).sum())
                if page.done:
                    break
                start = page.until
        return count

    async def _find(
        self, conn: Connection, tenant: str, series: Sequence[Series], before_offset: int, after: int
    ) -> list[tuple[Any, ...]]:
        arguments = {
            "tenant": tenant,
            "series": [s.series_id for s in series],
            "before": before_offset,
            "after": after,
            "limit": _PIECES,
        }
        async with conn.cursor(binary=True) as cursor:
            await cursor.execute(_FIND, arguments)
            return await cursor.fetchall()
