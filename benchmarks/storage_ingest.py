"""Ingest into storage against COPY: ``python -m benchmarks.storage_ingest [points]``.

Storage alone (batches as ingestion lands them, acknowledged after commit), beside COPY of prebuilt binary rows into
the narrow table with and without its unique index on the same server, interleaved, medians of three.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from hashlib import blake2b

import numpy as np
from benchmarks.storage_bench import Storage, batch, copy_floor, database, narrow_copy, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.transport import call
from twinmesh_core import wire
from twinmesh_core.observations import SeriesKey

SERIES = 1_000
ROWS = 10_000
IN_FLIGHT = 8
ROUNDS = 3


async def append_all(store: Storage, bodies: list[bytes], tag: str) -> float:
    """Append every body once, some at a time; returns the seconds until the last is acknowledged."""
    queue = list(enumerate(bodies))[::-1]

    async def sender() -> None:
        while queue:
            index, body = queue.pop()
            request = storage_pb2.AppendRequest(
                observations=body, request_id=f"{tag}-{index}", content_hash=blake2b(body, digest_size=16).digest()
            )
            await call(store.stub.Append, request, timeout_s=60)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(sender())
    return time.perf_counter() - started


def bodies_of(keys: tuple[SeriesKey, ...], points: int, round_: int) -> list[bytes]:
    """Return prebuilt batches of 10,000 points."""
    ticks = ROWS // SERIES
    first = round_ * points // SERIES
    return [wire.encode(batch(keys, first + i * ticks, ticks)) for i in range(points // ROWS)]


async def main(points: int) -> None:
    figures: dict[str, list[float]] = {"ours": [], "unique": [], "heap": [], "replay": []}
    with database() as url:
        async with storage(url) as store:
            keys = await store.series("bench", SERIES)
            copies = narrow_copy(
                np.tile(np.arange(SERIES), points // SERIES),
                np.repeat(np.arange(points // SERIES), SERIES) * 1_000_000 + 1_700_000_000_000_000,
                np.random.default_rng(1).normal(size=points),
            )
            cpu = 0.0
            for round_ in range(ROUNDS):
                bodies = bodies_of(keys, points, round_)
                before = store.cpu_s()
                figures["ours"].append(await append_all(store, bodies, f"r{round_}"))
                cpu += store.cpu_s() - before
                figures["replay"].append(await append_all(store, bodies, f"r{round_}"))
                await asyncio.sleep(6)
                figures["heap"].append(await asyncio.to_thread(copy_floor, url, "narrow_heap", False, copies))
                figures["unique"].append(await asyncio.to_thread(copy_floor, url, "narrow_unique", True, copies))
            counted = await call(store.stub.GetStatistics, storage_pb2.GetStatisticsRequest(), timeout_s=60)
            peak = store.peak_mib()
    assert counted.point_count == ROUNDS * points, counted
    rate = {name: points / statistics.median(seconds) for name, seconds in figures.items()}
    print(f"storage alone     {rate['ours']:>12,.0f} points/s, {cpu / ROUNDS / points * 1e9:.0f} ns of CPU each")
    print(f"duplicate replay  {rate['replay']:>12,.0f} points/s")
    print(f"COPY, no index    {rate['heap']:>12,.0f} points/s")
    print(f"COPY, unique key  {rate['unique']:>12,.0f} points/s")
    print(
        json.dumps(
            {
                "storage_vs_copy": round(rate["ours"] / rate["unique"], 2),
                "storage_vs_copy_heap": round(rate["ours"] / rate["heap"], 2),
                "replay_vs_first": round(rate["replay"] / rate["ours"], 2),
                "points_per_s": round(rate["ours"]),
                "cpu_ns_per_point": round(cpu / ROUNDS / points * 1e9),
                "peak_mib": round(peak),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
