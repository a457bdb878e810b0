"""What a fold costs: ``python -m benchmarks.folds``.

Drives the history port on PostgreSQL without the service around it: live series at 1 Hz folded every 5 s, late rows
into a full day, bulk, and ten years of hourly values. Write amplification is rows written over rows that came new;
sizes on disk are compared with a narrow table of the same rows with its unique key.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import psycopg
from benchmarks.storage_bench import T0, S, create_narrow, database, narrow_copy

from twinmesh_core.kinds import ChannelKind
from twinmesh_runtime.postgres import migrate, open_pool
from twinmesh_storage.adapters.postgres.blocks import BlockHistory
from twinmesh_storage.adapters.postgres.catalogue import PostgresSeries
from twinmesh_storage.adapters.postgres.log import PostgresLog
from twinmesh_storage.domain.entries import Lease
from twinmesh_storage.domain.folding import CommitTimes, FoldWork
from twinmesh_storage.domain.rows import Lane, Rows
from twinmesh_storage.domain.series import Catalogue, Series, SeriesRequest

LIVE_SERIES, LIVE_FOLDS = 50, 1_440  # two hours
LATE_FOLDS = 60
BULK_SERIES, BULK_TICKS, BULK_FOLDS = 400, 1_000, 5
YEARS_SERIES, YEARS_POINTS = 8, 87_600

Int64s = npt.NDArray[np.int64]


@dataclass(slots=True)
class Cost:
    """What some folds took and wrote."""

    rows: int = 0
    rows_written: int = 0
    bytes_written: int = 0
    seconds: list[float] = field(default_factory=list)


class Folder:
    """Folds rows into a history store, one offset per fold."""

    def __init__(self, store: BlockHistory, series: PostgresSeries, catalogue: Catalogue, lease: Lease) -> None:
        self._store, self._series, self._catalogue, self._lease = store, series, catalogue, lease
        self._offset = 0

    async def series(self, twin: str, count: int, interval_us: int) -> list[Series]:
        """Create series of one twin."""
        asked = [
            SeriesRequest(
                twin_id=twin, channel=f"c{i}", kind=ChannelKind.GAUGE, unit="", expected_interval_us=interval_us
            )
            for i in range(count)
        ]
        found = await self._series.resolve("default", asked)
        self._catalogue.add(found)
        return found

    async def fold(self, cost: Cost, series: list[Series], ts: Int64s, values: npt.NDArray[np.float64]) -> None:
        """Fold the same times and values, of each series shifted by its number, in one fold."""
        self._offset += 1
        ids = np.array([s.series_id for s in series], np.int64)
        n = len(ts)
        rows = Rows(
            series=np.repeat(ids, n),
            ts=np.tile(ts, len(ids)),
            value=np.round(np.tile(values, len(ids)) + np.repeat(ids % 7, n), 2).view(np.int64),
            quality=np.ones(n * len(ids), np.uint8),
            offset=np.full(n * len(ids), self._offset, np.int64),
        )
        times = CommitTimes.of([(self._offset, T0)])
        started = time.perf_counter()
        work = FoldWork(fold_offset=self._offset, fresh={Lane.NUMERIC: rows}, commit_times=times)
        result = await self._store.fold(self._lease, work)
        cost.seconds.append(time.perf_counter() - started)
        cost.rows += len(rows)
        cost.rows_written += result.rows_written
        cost.bytes_written += result.bytes_written


def wave(ts: Int64s) -> npt.NDArray[np.float64]:
    """Return a slow oscillation with two decimals."""
    return np.round(20 + np.sin(ts / (500 * S)) * 5, 2)


async def main() -> None:
    with database() as url:
        async with AsyncExitStack() as stack:
            await migrate(url, "storage", "twinmesh_storage")
            pool = await stack.enter_async_context(open_pool(url, min_size=1, max_size=2, schema="storage"))
            log = PostgresLog(pool=pool, url=url, schema="storage", lease_s=600, request_keep_s=60, timeout_s=60)
            stack.push_async_callback(log.close)
            lease = await log.acquire("bench")
            assert lease is not None
            catalogue = Catalogue()
            store = BlockHistory(pool=pool, timeout_s=60, series_of=catalogue.require)
            folder = Folder(store, PostgresSeries(pool=pool, timeout_s=60), catalogue, lease)
            figures = await measure(folder, url)
    print(json.dumps(figures))


async def measure(folder: Folder, url: str) -> dict[str, float]:
    """Run the cases and return their figures."""
    live, late, bulk, years = Cost(), Cost(), Cost(), Cost()
    rng = np.random.default_rng(1)
    hz = await folder.series("live", LIVE_SERIES, S)
    for fold in range(LIVE_FOLDS):
        ts = T0 + (fold * 5 + np.arange(5)) * S
        await folder.fold(live, hz, ts, wave(ts))
    blocks = blocks_of(url, "live")
    day = await folder.series("day", LIVE_SERIES, S)
    ts = T0 + np.arange(0, 86_400, 2) * S
    for part in np.array_split(ts, 6):
        await folder.fold(Cost(), day, part, wave(part))
    for _ in range(LATE_FOLDS):
        ts = np.unique(T0 + (2 * rng.integers(0, 43_200, 20) + 1) * S)
        await folder.fold(late, day, ts, wave(ts))
    many = await folder.series("bulk", BULK_SERIES, S)
    for fold in range(BULK_FOLDS):
        ts = T0 + (fold * BULK_TICKS + np.arange(BULK_TICKS)) * S
        await folder.fold(bulk, many, ts, wave(ts))
    before = size(url, "storage.block")
    hourly = await folder.series("years", YEARS_SERIES, 3600 * S)
    ts = T0 + np.arange(YEARS_POINTS) * 3600 * S
    values = 15 + 10 * np.sin(ts / (365.25 * 86_400 * S) * 2 * np.pi) + 5 * np.sin(ts / (86_400 * S) * 2 * np.pi)
    values += rng.normal(scale=0.4, size=len(ts))
    for part in np.array_split(np.arange(len(ts)), 12):
        await folder.fold(years, hourly, ts[part], values[part])
    ours = (size(url, "storage.block") - before) / (YEARS_SERIES * YEARS_POINTS)
    with psycopg.connect(url) as conn:
        create_narrow(conn, "narrow", unique=True)
        with conn.cursor() as cursor, cursor.copy("copy narrow from stdin (format binary)") as sink:
            series = np.repeat(np.arange(YEARS_SERIES), len(ts))
            sink.write(narrow_copy(series, np.tile(ts, YEARS_SERIES), np.tile(values, YEARS_SERIES)))
    narrow = size(url, "narrow") / (YEARS_SERIES * YEARS_POINTS)
    for name, cost in (("live", live), ("late", late), ("bulk", bulk), ("years", years)):
        each = cost.bytes_written / cost.rows_written
        print(
            f"{name:<6}{cost.rows:>10} rows {cost.rows_written / cost.rows:>8.2f} written per row, "
            f"{each:>6.2f} bytes each, {cost.rows / sum(cost.seconds):>12,.0f} rows/s, "
            f"{statistics.median(cost.seconds) * 1e3:>7.1f} ms a fold"
        )
    print(f"live series have {blocks:.1f} blocks each after two hours")
    print(f"ten years of hourly values: {ours:.2f} bytes a point, narrow table {narrow:.1f}")
    return {
        "live_write_amplification": round(live.rows_written / live.rows, 2),
        "late_write_amplification": round(late.rows_written / late.rows, 1),
        "bulk_fold_rows_per_s": round(bulk.rows / sum(bulk.seconds)),
        "ten_years_hourly_bytes_per_point_ratio": round(ours / narrow, 4),
    }


def size(url: str, table: str) -> int:
    """Return the bytes of a table with its partitions and indexes, after vacuum has returned what is dead."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("vacuum")
        row = conn.execute(
            "select sum(pg_total_relation_size(relid)) from pg_partition_tree(%s::regclass)", (table,)
        ).fetchone()
        if row is None or row[0] is None:
            row = conn.execute("select pg_total_relation_size(%s::regclass)", (table,)).fetchone()
    assert row is not None
    return int(row[0])


def blocks_of(url: str, twin: str) -> float:
    """Return the blocks per series of a twin."""
    with psycopg.connect(url) as conn:
        row = conn.execute(
            "select count(*)::float / count(distinct series_id) from storage.block join storage.series "
            "using (tenant, series_id) where twin_id = %s",
            (twin,),
        ).fetchone()
    assert row is not None
    return float(row[0])


if __name__ == "__main__":
    asyncio.run(main())
