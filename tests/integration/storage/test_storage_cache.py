"""The cache may be absent, flushed, stale, hung, or full of garbage: every answer is the same."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np
import pytest
import redis
from tests.integration.storage.mesh import T0, S, Storage, collect, doubles, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh_storage.adapters.redis import RedisLatestCache

PREFIX = "twinmesh:storage:latest:"


async def fill(store: Storage, count: int = 50) -> dict[str, list]:
    """Append three values of each channel over two folds; returns the newest of each."""
    channels = [f"c{i}" for i in range(count)]
    keys = await store.series("t1", channels)
    handles = np.arange(count)
    for round_ in range(3):
        await store.append(doubles(keys, T0 + handles + round_ * S, handles + round_ * 1000.0, handles))
        await asyncio.sleep(0.35)
    return {f"t1/{c}": [(T0 + i + 2 * S, i + 2000.0, 1)] for i, c in enumerate(channels)}


async def newest(store: Storage) -> dict[str, list]:
    answer = await store.ask("ReadLatest", storage_pb2.ReadLatestRequest(twin_ids=["t1"]))
    found: dict = {}
    collect(answer.batch, found)
    return found


async def test_a_restarted_process_takes_latest_values_from_the_cache(database_url, redis_url):
    async with storage(database_url, redis_url=redis_url, fold_after_s=0.1) as store:
        expected = await fill(store)
        await asyncio.sleep(0.3)
    client: Any = redis.Redis.from_url(redis_url)
    manifest = json.loads(client.get(f"{PREFIX}manifest"))
    assert manifest["fold_offset"] == 3
    cache = RedisLatestCache(url=redis_url, timeout_s=1.0, prefix="storage")
    assert list(await cache.load(manifest["incarnation"], 3)) == [0]
    assert not await cache.load(manifest["incarnation"], 4), "older than the tail's beginning"
    assert not await cache.load("another", 3)
    await cache.close()
    async with storage(database_url, redis_url=redis_url) as store:
        assert await newest(store) == expected
    client.close()


@pytest.mark.parametrize("harm", ["flushed", "garbage", "flipped", "stale chunk", "stale manifest", "wrong type"])
async def test_a_harmed_cache_changes_no_answer(database_url, redis_url, harm):
    client: Any = redis.Redis.from_url(redis_url)
    async with storage(database_url, redis_url=redis_url, fold_after_s=0.1) as store:
        await fill(store, 5)
        await asyncio.sleep(0.2)
        old = {key: client.get(key) for key in client.keys(f"{PREFIX}*")}
        assert len(old) == 2
        keys = await store.series("t1", [f"c{i}" for i in range(5)])
        handles = np.arange(5, dtype=np.uint32)
        await store.append(doubles(keys, np.full(5, T0 + 9 * S), np.full(5, 9.0), handles))
        await asyncio.sleep(0.4)
    if harm == "flushed":
        client.flushall()
    for key, value in old.items():
        is_manifest = key.endswith(b"manifest")
        if harm == "garbage":
            client.set(key, b"\x80garbage" * 9)
        elif harm == "flipped" and not is_manifest:
            client.setrange(key, 60, b"\xff\xff")
        elif (harm == "stale chunk" and not is_manifest) or (harm == "stale manifest" and is_manifest):
            client.set(key, value)
        elif harm == "wrong type":
            client.delete(key)
            client.lpush(key, "x")
    async with storage(database_url, redis_url=redis_url, fold_after_s=0.1) as store:
        assert await newest(store) == {f"t1/c{i}": [(T0 + 9 * S, 9.0, 1)] for i in range(5)}
    client.close()


async def test_a_cache_that_never_answers_costs_one_short_wait(database_url):
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    hung = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = hung.sockets[0].getsockname()[1]
    url = f"redis://127.0.0.1:{port}/0"
    async with storage(database_url, redis_url=url, fold_after_s=0.1, redis_timeout_ms=50) as store:
        expected = await fill(store, 5)
        started = time.monotonic()
        assert await newest(store) == expected
        assert time.monotonic() - started < 2.0
    hung.close()


async def test_an_absent_cache_server_changes_nothing(database_url):
    async with storage(database_url, redis_url="redis://127.0.0.1:1/0", fold_after_s=0.1) as store:
        expected = await fill(store, 5)
        assert await newest(store) == expected
