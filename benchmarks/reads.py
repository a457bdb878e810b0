"""Reads through storage's API against SQL on the narrow table: ``python -m benchmarks.reads``.

One series over a day at 1 Hz into numpy against fetchall; 10,000 newest values against DISTINCT ON; 50 windows
of 512 steps x 8 channels; and what a point takes on disk. Medians, floor and ours interleaved on one server.
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
from twinmesh_client.transport import call, stream
from twinmesh_core import wire
from twinmesh_core.observations import SeriesKey

DAY = 86_400
DAY_SERIES = 8
WINDOW_TWINS = 50
WINDOW_STEPS = 512
LATEST_SERIES = 10_000
ROUNDS = 5


async def append(store: Storage, keys: tuple[SeriesKey, ...], first_tick: int, ticks: int) -> None:
    """Append one batch."""
    body = wire.encode(batch(keys, first_tick, ticks))
    request = storage_pb2.AppendRequest(observations=body, content_hash=blake2b(body, digest_size=16).digest())
    await call(store.stub.Append, request, timeout_s=60)


async def fill(store: Storage, url: str) -> None:
    """Store the same data with us and in the narrow tables."""
    day = await store.series("day", DAY_SERIES)
    for first in range(0, DAY, 2_000):
        await append(store, day, first, min(2_000, DAY - first))
    for twin in range(WINDOW_TWINS):
        await append(store, await store.series(f"w{twin}", 8), 0, WINDOW_STEPS)
    many = await store.series("many", LATEST_SERIES)
    for tick in range(20):
        await append(store, many, tick, 1)
    with psycopg.connect(url) as conn:
        for name, series, ticks in (("narrow_day", DAY_SERIES, DAY), ("narrow_latest", LATEST_SERIES, 20)):
            create_narrow(conn, name, unique=True)
            copy = narrow_copy(
                np.tile(np.arange(series), ticks),
                T0 + np.repeat(np.arange(ticks), series) * S,
                np.random.default_rng(1).normal(size=series * ticks),
            )
            with conn.cursor() as cursor, cursor.copy(f"copy {name} from stdin (format binary)") as sink:
                sink.write(copy)
        conn.commit()
        conn.autocommit = True
        conn.execute("vacuum analyze")


async def range_read(store: Storage) -> tuple[float, int]:
    """Read one series over a day; returns seconds and rows in numpy."""
    request = storage_pb2.ReadRangeRequest(series=[storage_pb2.SeriesSelector(twin_id="day", channel="c0")])
    started = time.perf_counter()
    rows = 0
    async for part in stream(store.stub.ReadRange, request, timeout_s=60):
        columns = wire.walk(part.batch.SerializeToString())
        assert columns is not None
        rows += len(columns.doubles.values)
    return time.perf_counter() - started, rows


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


async def main() -> None:
    with database() as url:
        async with storage(url, fold_after_s="1") as store:
            await fill(store, url)
            await asyncio.sleep(3)
            figures: dict[str, list[float]] = {k: [] for k in ("range", "fetchall", "latest", "distinct", "window")}
            window = storage_pb2.ReadWindowRequest(
                twin_ids=[f"w{i}" for i in range(WINDOW_TWINS)],
                channels=[f"c{i}" for i in range(8)],
                steps=WINDOW_STEPS,
            )
            window.step.FromSeconds(1)
            latest = storage_pb2.ReadLatestRequest(twin_ids=["many"])
            by_day = "select ts, value from narrow_day where series = 0 order by ts"
            newest = "select distinct on (series) ts, value from narrow_latest order by series, ts desc"
            for _ in range(ROUNDS):
                seconds, rows = await range_read(store)
                assert rows == DAY
                figures["range"].append(seconds)
                figures["fetchall"].append(await asyncio.to_thread(fetchall, url, by_day))
                figures["latest"].append(await timed(store, "ReadLatest", latest))
                figures["distinct"].append(await asyncio.to_thread(fetchall, url, newest))
                figures["window"] += [await timed(store, "ReadWindow", window) for _ in range(5)]
            with psycopg.connect(url) as conn:
                sizes = conn.execute(
                    "select pg_total_relation_size('narrow_day'), pg_total_relation_size('storage.block')"
                ).fetchone()
            counted = await call(store.stub.GetStatistics, storage_pb2.GetStatisticsRequest(), timeout_s=60)
    assert sizes is not None
    median = {name: statistics.median(seconds) for name, seconds in figures.items()}
    narrow_each = sizes[0] / (DAY * DAY_SERIES)
    ours_each = sizes[1] / counted.point_count
    for name, seconds in median.items():
        print(f"{name:<10}{seconds * 1e3:>10.2f} ms")
    print(f"on disk: narrow with its key {narrow_each:.1f} bytes a point, blocks with offsets {ours_each:.2f}")
    print(
        json.dumps(
            {
                "range_read_vs_fetchall": round(median["fetchall"] / median["range"], 1),
                "latest_vs_distinct_on": round(median["distinct"] / median["latest"], 1),
                "window_batch_ms": round(median["window"] * 1e3, 2),
                "bytes_per_point_ratio": round(ours_each / narrow_each, 4),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
