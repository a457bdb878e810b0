"""Direct-compress COPY against normal COPY into our hypertable: ``python -m benchmarks.timescale``.

On the WebAssembly build of TimescaleDB that the tests use, so absolute figures mean little and ratios something. The
rows are what a fold brings: sorted by series and time, their columns as the compactor writes them.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time

import numpy as np
import psycopg
from benchmarks.storage_bench import T0, S
from tests.timescale.server import install, start

from twinmesh_core.kinds import ChannelKind
from twinmesh_runtime.postgres import migrate, open_pool
from twinmesh_storage.adapters.postgres.copying import HEADER, TRAILER
from twinmesh_storage.adapters.timescale.packed import copy_into, pieces
from twinmesh_storage.adapters.timescale.tables import create_tables, table_of
from twinmesh_storage.domain.rows import Rows
from twinmesh_storage.domain.series import Series

SERIES, TICKS, ROUNDS = 20, 5_000, 5
_DIRECT = "timescaledb.enable_direct_compress_copy"
MODES = {
    "heap": "create table heap (like observation_numeric_2)",
    "normal": f"set {_DIRECT} = off; set {_DIRECT}_client_sorted = off",
    "direct": f"set {_DIRECT} = on; set {_DIRECT}_client_sorted = on",
}


def series_of(series_id: int) -> Series:
    """Return a 1 Hz series."""
    return Series(
        tenant="default",
        series_id=series_id,
        twin_id="t",
        channel=f"c{series_id}",
        kind=ChannelKind.GAUGE,
        unit="",
        expected_interval_us=S,
    )


def rows() -> Rows:
    """Return what a fold of live telemetry brings."""
    tick = np.tile(np.arange(TICKS), SERIES)
    ids = np.repeat(np.arange(1, SERIES + 1), TICKS)
    return Rows(
        series=ids.astype(np.int64),
        ts=T0 + tick * S,
        value=np.round(20 + np.sin(tick / 500 + ids) * 5, 2).view(np.int64),
        quality=np.ones(len(tick), np.uint8),
        offset=1 + tick // 100,
    )


async def create(url: str) -> None:
    """Create the service's schema with its hypertables."""
    await migrate(url, "storage", "twinmesh_storage")
    async with open_pool(url, min_size=1, max_size=1, schema="storage") as pool:
        await create_tables(pool, 60)


def measure(url: str) -> dict[str, tuple[float, int]]:
    """Return the median seconds and the bytes on disk of each mode."""
    table = table_of(series_of(1))
    body = b"".join([HEADER, *pieces(table, rows(), series_of), TRAILER])
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    sizes = dict.fromkeys(MODES, 0)
    with psycopg.connect(url, autocommit=True, prepare_threshold=None, options="-c search_path=storage,public") as conn:
        for _ in range(ROUNDS):
            for mode, statement in MODES.items():
                conn.execute("drop table if exists heap")
                conn.execute(f"truncate {table.name}")
                for part in statement.split("; "):
                    conn.execute(part)
                copy = copy_into(table).as_string(conn)
                if mode == "heap":
                    copy = copy.replace(table.name, "heap")
                started = time.perf_counter()
                with conn.cursor() as cursor, cursor.copy(copy) as sink:
                    sink.write(body)
                seconds[mode].append(time.perf_counter() - started)
                of = "pg_total_relation_size('heap')" if mode == "heap" else f"hypertable_size('{table.name}')"
                size = conn.execute(f"select {of}").fetchone()
                assert size is not None
                sizes[mode] = int(size[0])
    return {mode: (statistics.median(seconds[mode]), sizes[mode]) for mode in MODES}


def main() -> None:
    process, port = start(install())
    try:
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        asyncio.run(create(url))
        found = measure(url)
    finally:
        process.communicate(timeout=10)
    n = SERIES * TICKS
    for mode, (seconds, size) in found.items():
        print(f"{mode:<8}{n / seconds:>12,.0f} rows/s {size / n:>8.1f} bytes a row")
    print(
        json.dumps(
            {
                "direct_vs_normal_copy": round(found["normal"][0] / found["direct"][0], 2),
                "direct_vs_heap_copy": round(found["heap"][0] / found["direct"][0], 2),
                "direct_vs_normal_size": round(found["direct"][1] / found["normal"][1], 4),
            }
        )
    )


if __name__ == "__main__":
    main()
