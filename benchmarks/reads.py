"""Reads through storage's API against SQL on the narrow table: ``python -m benchmarks.reads``.

One series over a day at 1 Hz into numpy against fetchall; 10,000 newest values against DISTINCT ON; 50 windows
of 512 steps x 8 channels; hourly aggregates of a day of 100 series against date_bin; and what a point takes on disk,
of a day at 1 Hz and of ten years of hourly values. Medians, floor and ours interleaved on one server; answers are
read as the SDK reads them.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from hashlib import blake2b

import numpy as np
import psycopg
from benchmarks.storage_bench import T0, S, Storage, batch, create_narrow, database, narrow_copy, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.packed_reads import PackedReads, read_answer
from twinmesh_client.transport import call, open_channel, stream
from twinmesh_core import wire
from twinmesh_core.observations import SeriesKey

DAY = 86_400
DAY_SERIES = 100
HOURLY_SERIES = 8
TEN_YEARS = 87_600
WINDOW_TWINS = 50
WINDOW_STEPS = 512
LATEST_SERIES = 10_000
LATEST_EACH = 100
"""Values of each: a million rows in all, as when the target was set."""
ROUNDS = 5


async def append(store: Storage, keys: tuple[SeriesKey, ...], first_tick: int, ticks: int, step_us: int = S) -> None:
    """Append one batch."""
    body = wire.encode(batch(keys, first_tick, ticks, step_us))
    request = storage_pb2.AppendRequest(observations=body, content_hash=blake2b(body, digest_size=16).digest())
    await call(store.stub.Append, request, timeout_s=60)


async def fill_hourly(store: Storage, url: str) -> tuple[float, float]:
    """Store ten years of hourly values in both; returns bytes per point of the narrow table and of blocks."""
    keys = await store.series("hourly", HOURLY_SERIES, interval_us=3_600 * S)
    for first in range(0, TEN_YEARS, 10_000):
        ticks = min(10_000, TEN_YEARS - first)
        await append(store, keys, first, ticks, step_us=3_600 * S)
    await settled(store)
    with psycopg.connect(url) as conn:
        create_narrow(conn, "narrow_hourly", unique=True)
        copy_in(conn, "narrow_hourly", HOURLY_SERIES, TEN_YEARS, 3_600 * S)
    points = HOURLY_SERIES * TEN_YEARS
    return size(url, "narrow_hourly") / points, size(url, "block") / points


async def settled(store: Storage) -> None:
    """Wait until everything is folded."""
    head = (await call(store.stub.GetHead, storage_pb2.GetHeadRequest(), timeout_s=60)).position.offset
    async with asyncio.timeout(120):
        while True:
            counted = await call(store.stub.GetStatistics, storage_pb2.GetStatisticsRequest(), timeout_s=60)
            if counted.fold_offset >= head:
                return
            await asyncio.sleep(0.2)


def copy_in(conn: psycopg.Connection[tuple[object, ...]], name: str, series: int, ticks: int, step_us: int) -> None:
    """COPY values of all series into a narrow table, in parts."""
    with conn.cursor() as cursor, cursor.copy(f"copy {name} from stdin (format binary)") as sink:
        for first in range(0, ticks, 20_000):
            count = min(20_000, ticks - first)
            tick = np.arange(first, first + count)
            copy = narrow_copy(
                np.tile(np.arange(series), count),
                T0 + np.repeat(tick, series) * step_us,
                np.random.default_rng(1).normal(size=series * count),
            )
            head, tail = (0 if first == 0 else 19), (None if first + count == ticks else -2)
            sink.write(copy[head:tail])
    conn.commit()


def size(url: str, table: str) -> int:
    """Return the bytes of a table, its partitions and their indexes."""
    with psycopg.connect(url) as conn:
        found = conn.execute(
            "select sum(pg_total_relation_size(oid)) from pg_class "
            "where relkind = 'r' and (relname = %(name)s or relname like %(name)s || '\\_%%')",
            {"name": table},
        ).fetchone()
    assert found is not None
    return int(str(found[0]))


async def fill(store: Storage, url: str) -> None:
    """Store the same data with us and in the narrow tables."""
    day = await store.series("day", DAY_SERIES)
    for first in range(0, DAY, 1_200):
        await append(store, day, first, min(1_200, DAY - first))
    for twin in range(WINDOW_TWINS):
        await append(store, await store.series(f"w{twin}", 8), 0, WINDOW_STEPS)
    many = await store.series("many", LATEST_SERIES)
    for tick in range(LATEST_EACH):
        await append(store, many, tick, 1)
    with psycopg.connect(url) as conn:
        # The index is built afterwards: quicker to load and smaller than one that grows, which favours the floor.
        create_narrow(conn, "narrow_day", unique=False)
        copy_in(conn, "narrow_day", DAY_SERIES, DAY, S)
        conn.execute("create unique index on narrow_day (series, ts)")
        create_narrow(conn, "narrow_latest", unique=True)
        copy_in(conn, "narrow_latest", LATEST_SERIES, LATEST_EACH, S)
        conn.commit()
        conn.autocommit = True
        conn.execute("vacuum analyze")


async def range_read(packed: PackedReads) -> float:
    """Read one series over a day into numpy; returns seconds."""
    request = storage_pb2.ReadRangeRequest(series=[storage_pb2.SeriesSelector(twin_id="day", channel="c0")])
    started = time.perf_counter()
    rows = 0
    async for data in stream(packed.ReadRange, request, timeout_s=60):
        rows += len(read_answer(data).batch.doubles.values)
    assert rows == DAY
    return time.perf_counter() - started


async def latest_read(packed: PackedReads, known: int) -> tuple[float, int]:
    """Read newest values into numpy; returns seconds and the dictionary's id."""
    request = storage_pb2.ReadLatestRequest(twin_ids=["many"], known_dictionary_id=known)
    started = time.perf_counter()
    answer = read_answer(await call(packed.ReadLatest, request, timeout_s=60))
    assert len(answer.batch.doubles.values) == LATEST_SERIES
    return time.perf_counter() - started, answer.dictionary_id


def fetchall(url: str, statement: str) -> float:
    """Return the seconds of psycopg's fetchall into numpy."""
    with psycopg.connect(url) as conn:
        started = time.perf_counter()
        rows = conn.execute(statement).fetchall()
        times = np.array([row[0].timestamp() for row in rows])
        values = np.array([row[1] for row in rows])
        assert len(times) == len(values) > 0
        return time.perf_counter() - started


async def timed(store: Storage, method: str, request: object) -> float:
    started = time.perf_counter()
    await call(getattr(store.stub, method), request, timeout_s=60)
    return time.perf_counter() - started


def aggregate_request() -> storage_pb2.AggregateRequest:
    """Return what the SQL asks: count, smallest, largest and mean per hour."""
    request = storage_pb2.AggregateRequest(
        series=[storage_pb2.SeriesSelector(twin_id="day", channel=f"c{i}") for i in range(DAY_SERIES)],
        functions=[
            storage_pb2.AGGREGATE_FUNCTION_COUNT,
            storage_pb2.AGGREGATE_FUNCTION_MIN,
            storage_pb2.AGGREGATE_FUNCTION_MAX,
            storage_pb2.AGGREGATE_FUNCTION_MEAN,
        ],
    )
    request.start_time.FromMicroseconds(T0)
    request.end_time.FromMicroseconds(T0 + DAY * S)
    request.bucket.FromSeconds(3_600)
    return request


async def main() -> None:
    figures: dict[str, list[float]] = {
        k: [] for k in ("range", "fetchall", "latest", "latest_whole", "distinct", "window", "aggregate", "date_bin")
    }
    with database() as url:
        async with storage(url, fold_after_s="1") as store, open_channel(store.target) as channel:
            packed = PackedReads(channel)
            hourly = await fill_hourly(store, url)
            before = size(url, "block")
            await fill(store, url)
            await settled(store)
            window = storage_pb2.ReadWindowRequest(
                twin_ids=[f"w{i}" for i in range(WINDOW_TWINS)],
                channels=[f"c{i}" for i in range(8)],
                steps=WINDOW_STEPS,
            )
            window.step.FromSeconds(1)
            by_day = "select ts, value from narrow_day where series = 0 order by ts"
            newest = "select distinct on (series) ts, value from narrow_latest order by series, ts desc"
            hours = (
                "select date_bin('1 hour', ts, '2000-01-01'), count(*)::float8, series, min(value), max(value), "
                "avg(value) from narrow_day group by series, 1"
            )
            _, known = await latest_read(packed, 0)
            for _ in range(ROUNDS):
                figures["range"].append(await range_read(packed))
                figures["fetchall"].append(await asyncio.to_thread(fetchall, url, by_day))
                # Several of each: the first one after a fetchall pays for throwing its million objects away.
                figures["latest"] += [(await latest_read(packed, known))[0] for _ in range(5)]
                figures["latest_whole"] += [(await latest_read(packed, 0))[0] for _ in range(5)]
                figures["distinct"] += [await asyncio.to_thread(fetchall, url, newest) for _ in range(3)]
                figures["window"] += [await timed(store, "ReadWindow", window) for _ in range(5)]
                figures["aggregate"].append(await timed(store, "Aggregate", aggregate_request()))
                figures["date_bin"].append(await asyncio.to_thread(fetchall, url, hours))
            counted = await call(store.stub.GetStatistics, storage_pb2.GetStatisticsRequest(), timeout_s=60)
            narrow_each = size(url, "narrow_day") / (DAY * DAY_SERIES)
            ours_each = (size(url, "block") - before) / (counted.point_count - HOURLY_SERIES * TEN_YEARS)
    median = {name: statistics.median(seconds) for name, seconds in figures.items()}
    for name, seconds in median.items():
        print(f"{name:<14}{seconds * 1e3:>10.2f} ms")
    print(f"on disk: narrow with its key {narrow_each:.1f} bytes a point, blocks with offsets {ours_each:.2f}")
    print(f"ten years of hourly values: {hourly[0]:.1f} and {hourly[1]:.2f}")
    print(
        json.dumps(
            {
                "range_read_vs_fetchall": round(median["fetchall"] / median["range"], 1),
                "latest_vs_distinct_on": round(median["distinct"] / median["latest"], 1),
                "latest_whole_vs_distinct_on": round(median["distinct"] / median["latest_whole"], 1),
                "window_batch_ms": round(median["window"] * 1e3, 2),
                "aggregate_vs_date_bin": round(median["date_bin"] / median["aggregate"], 1),
                "bytes_per_point_ratio": round(ours_each / narrow_each, 4),
                "bytes_per_point_ratio_hourly": round(hourly[1] / hourly[0], 4),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
