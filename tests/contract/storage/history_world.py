"""A history store beside the log and the catalogue that it needs, and short ways to use them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.time import SystemClock
from twinmesh_runtime.postgres import migrate, open_pool
from twinmesh_storage.adapters.postgres.blocks import BlockHistory
from twinmesh_storage.adapters.postgres.catalogue import PostgresSeries
from twinmesh_storage.adapters.postgres.log import PostgresLog
from twinmesh_storage.adapters.timescale.history import TimescaleHistory
from twinmesh_storage.adapters.timescale.tables import create_tables
from twinmesh_storage.domain.entries import Lease
from twinmesh_storage.domain.folding import CommitTimes, FoldResult, FoldWork, Hide
from twinmesh_storage.domain.parts import PartPage
from twinmesh_storage.domain.ports import HistoryStore, LogStore, SeriesStore
from twinmesh_storage.domain.rows import Lane, Rows, sort_rows
from twinmesh_storage.domain.series import Catalogue, Series, SeriesRequest
from twinmesh_testing.history_fake import FakeHistory
from twinmesh_testing.storage_fakes import FakeDatabase, FakeLog, FakeSeries

S = 1_000_000
T0 = 1_700_000_000 * S
LOW, HIGH = -(1 << 62), 1 << 62
ALL = 10_000_000

Row = tuple[int, Any, int, int]
"""(event time, value, quality, offset)"""


@dataclass(slots=True)
class World:
    """A history store beside the log and the catalogue that it needs, and short ways to use them."""

    store: HistoryStore
    log: LogStore
    series: SeriesStore
    catalogue: Catalogue
    lease: Lease
    tenant: str = "default"

    async def resolve(self, *kinds: ChannelKind, tenant: str = "", interval_us: int = S) -> list[Series]:
        asked = [
            SeriesRequest(twin_id="t", channel=f"c{i}", kind=kind, unit="", expected_interval_us=interval_us)
            for i, kind in enumerate(kinds)
        ]
        found = await self.series.resolve(tenant or self.tenant, asked)
        self.catalogue.add(found)
        return found

    async def fold(self, offset: int, rows: Sequence[tuple[Series, Row]], hides: Sequence[Hide] = ()) -> FoldResult:
        """Fold rows up to an offset; an entry's commit time is its offset in seconds."""
        return await self.store.fold(self.lease, work(offset, rows, hides))

    async def read(self, *series: Series, start: int = LOW, end: int = HIGH) -> list[list[Row]]:
        """Return all readable rows of each series, page by page, however small the pages are."""
        return [await self._all(s, start, end, None) for s in series]

    async def read_as_of(self, series: Series, as_of: int) -> list[Row]:
        """Return what was readable as of an offset: what still is, and what has been superseded since."""
        now = [row for row in await self._all(series, LOW, HIGH, None) if row[3] <= as_of]
        return sorted(now + await self._all(series, LOW, HIGH, as_of))

    async def _all(self, series: Series, start: int, end: int, as_of: int | None) -> list[Row]:
        found: list[Row] = []
        lower = start
        for _ in range(1_000):
            page = await self._page(series, lower, end, as_of)
            upper = end if page.done else page.until
            assert upper > lower, "a page makes no progress"
            for part in page.parts:
                rows = part.rows()
                assert (part.n, part.t0, part.t1) == (len(rows), rows.ts[0], rows.ts[-1])
                assert part.max_offset == rows.offset.max()
                assert sum(part.counts) == part.n
                found += as_rows(rows.take((rows.ts >= lower) & (rows.ts < upper)))
            if page.done:
                times = [row[0] for row in found]
                assert times == sorted(set(times)), "one row per event time, in order"
                return found
            lower = upper
        raise AssertionError("reading never ends")

    async def _page(self, series: Series, start: int, end: int, as_of: int | None) -> PartPage:
        if as_of is None:
            return await self.store.read(series.tenant, [series], start, end, 50)
        return await self.store.read_superseded(series.tenant, [series], start, end, as_of, 50)


def work(offset: int, rows: Sequence[tuple[Series, Row]], hides: Sequence[Hide] = ()) -> FoldWork:
    fresh = {}
    for lane in Lane:
        mine = [(s, row) for s, row in rows if Lane.of(s.kind) is lane]
        if mine:
            fresh[lane] = sort_rows(to_rows(mine, lane))
    times = CommitTimes.of([(o, o * S) for o in range(1, offset + 1)])
    return FoldWork(fold_offset=offset, fresh=fresh, hides=hides, commit_times=times)


def to_rows(rows: Sequence[tuple[Series, Row]], lane: Lane) -> Rows:
    value = np.empty(len(rows), np.int64 if lane is Lane.NUMERIC else object)
    for i, (series, row) in enumerate(rows):
        value[i] = np.float64(row[1]).view(np.int64) if series.kind.has_unit else row[1]
    return Rows(
        series=np.array([s.series_id for s, _ in rows], np.int64),
        ts=np.array([row[0] for _, row in rows], np.int64),
        value=value,
        quality=np.array([row[2] for _, row in rows], np.uint8),
        offset=np.array([row[3] for _, row in rows], np.int64),
    )


def as_rows(rows: Rows) -> list[Row]:
    return list(zip(rows.ts.tolist(), rows.value.tolist(), rows.quality.tolist(), rows.offset.tolist(), strict=True))


def bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


def stored(series: Series, *rows: Row) -> list[Row]:
    """Return rows as they come back: doubles as their bits."""
    return [(ts, bits(value) if series.kind.has_unit else value, q, o) for ts, value, q, o in rows]


async def fake_world() -> World:
    """Return a world in memory."""
    catalogue = Catalogue()
    database = FakeDatabase()
    log = FakeLog(database, SystemClock())
    lease = await log.acquire("me")
    assert lease is not None
    return World(FakeHistory(database, catalogue.require), log, FakeSeries(database), catalogue, lease)


@asynccontextmanager
async def block_world(url: str, **sizes: int) -> AsyncIterator[World]:
    """Give a world of blocks in PostgreSQL."""
    async with AsyncExitStack() as stack:
        await migrate(url, "storage", "twinmesh_storage")
        pool = await stack.enter_async_context(open_pool(url, min_size=1, max_size=3, schema="storage"))
        log = PostgresLog(pool=pool, url=url, schema="storage", lease_s=30, request_keep_s=60, timeout_s=5)
        stack.push_async_callback(log.close)
        lease = await log.acquire("me")
        assert lease is not None
        catalogue = Catalogue()
        store = BlockHistory(pool=pool, timeout_s=5, series_of=catalogue.require, **sizes)
        yield World(store, log, PostgresSeries(pool=pool, timeout_s=5), catalogue, lease)


@asynccontextmanager
async def hypertable_world(url: str) -> AsyncIterator[World]:
    """Give a world of hypertables in TimescaleDB."""
    async with AsyncExitStack() as stack:
        await migrate(url, "storage", "twinmesh_storage")
        pool = await stack.enter_async_context(open_pool(url, min_size=1, max_size=1, schema="storage"))
        await create_tables(pool, 30)
        log = PostgresLog(pool=pool, url=url, schema="storage", lease_s=30, request_keep_s=60, timeout_s=20)
        stack.push_async_callback(log.close)
        lease = await log.acquire("me")
        assert lease is not None
        catalogue = Catalogue()
        store = TimescaleHistory(pool=pool, timeout_s=20, series_of=catalogue.require)
        yield World(store, log, PostgresSeries(pool=pool, timeout_s=20), catalogue, lease)
