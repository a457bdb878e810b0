"""The cache server hangs, restarts, dies in the middle of writes, fills up or is absent, under a storage that folds.

Two storage processes share it while one of them folds; every answer of both equals that of a process without a cache.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.storage import cached
from tests.integration.storage.cached import Cached, answers, differences, folded, hits, until
from tests.integration.storage.mesh import Storage, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh_local.processes import Guardian
from twinmesh_local.valkey import ValkeyServer
from twinmesh_storage.adapters.postgres.blocks import BlockHistory
from twinmesh_storage.adapters.redis import RedisRecords

TIMEOUT_MS = 500.0


@pytest.fixture
def valkey(guardian: Guardian, servers_dir: Path) -> Iterator[ValkeyServer]:
    """A Valkey of this test's own, to be harmed."""
    server = ValkeyServer(guardian, servers_dir, log_dir=servers_dir, name=f"valkey-{uuid4().hex[:8]}")
    server.start()
    yield server
    if server.pid is not None:
        with_signal(server, signal.SIGCONT)
    server.stop()


def with_signal(server: ValkeyServer, number: signal.Signals) -> None:
    """Send a signal, if the server is still there."""
    assert server.pid is not None
    try:
        os.kill(server.pid, number)
    except ProcessLookupError:
        return


def restart(server: ValkeyServer) -> None:
    port = server.port
    server.stop()
    server.start(port=port)


@asynccontextmanager
async def three(database_url: str, url: str) -> AsyncIterator[tuple[Storage, Storage, Storage]]:
    """Run the process that folds, one that shares its cache, and one that has none."""
    async with AsyncExitStack() as stack:
        cache = {"redis_url": url, "redis_timeout_ms": TIMEOUT_MS}
        yield (
            await stack.enter_async_context(storage(database_url, fold_after_s=0.1, **cache)),
            await stack.enter_async_context(storage(database_url, fold_after_s=0.1, **cache)),
            await stack.enter_async_context(storage(database_url, fold_after_s=0.1)),
        )


async def compared(stores: tuple[Storage, ...]) -> None:
    """Hold every answer of all processes equal, once all of them reflect the same head."""
    head = (await stores[0].ask("GetHead", storage_pb2.GetHeadRequest())).position.offset
    for store in stores:
        await store.ask("ReadLatest", storage_pb2.ReadLatestRequest(twin_ids=cached.TWINS, min_offset=head))
    expected = await answers(stores[-1])
    for number, store in enumerate(stores[:-1]):
        assert differences(await answers(store), expected) == [], f"process {number}"


async def test_two_processes_share_the_cache_while_one_folds(database_url, valkey):
    cache = Cached(valkey.url())
    async with three(database_url, valkey.url()) as stores:
        for number in range(4):
            await cached.write_round(stores[0], number)
            if number % 2:
                await folded(stores[0], cache)
            await compared(stores)
        await cached.write_round(stores[0], 4)
        head = await folded(stores[0], cache)
        before = hits("windows")
        # A third life joins late, and takes over what two others have done.
        cache_settings = {"redis_url": valkey.url(), "redis_timeout_ms": TIMEOUT_MS}
        async with storage(database_url, fold_after_s=60, **cache_settings) as late:
            await compared((late, stores[2]))
        assert hits("windows") > before
        assert cache.is_at(head)
    cache.client.close()


HARMS: dict[str, tuple[Callable[[ValkeyServer], None], Callable[[ValkeyServer], None]]] = {
    "hung": (lambda v: with_signal(v, signal.SIGSTOP), lambda v: with_signal(v, signal.SIGCONT)),
    "restarted": (restart, lambda v: None),
    "killed": (lambda v: with_signal(v, signal.SIGKILL), restart),
}


@pytest.mark.faults
@pytest.mark.parametrize("harm", HARMS)
async def test_a_server_that_is_harmed_under_folds_changes_no_answer(database_url, valkey, harm):
    harmed, mended = HARMS[harm]
    async with three(database_url, valkey.url()) as stores:
        await cached.write_round(stores[0], 0)
        await compared(stores)
        # In the middle of writes: rounds are written, folded and stored while the harm is done.
        under_way = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(write_rounds(stores[0], range(1, 4), under_way))
            await under_way.wait()
            harmed(valkey)
        started = time.monotonic()
        await compared(stores)
        assert time.monotonic() - started < 10.0
        mended(valkey)
        cache = Cached(valkey.url())
        for number in range(4, 40):
            await cached.write_round(stores[0], number)
            await compared(stores)
            stamp = cache.stamp("windows")
            if stamp is not None and stamp.fold_offset > 0 and number > 5:
                break
        else:
            raise AssertionError("the cache is not used again after it was mended")
        cache.client.close()


async def write_rounds(store: Storage, numbers: range, under_way: asyncio.Event) -> None:
    for number in numbers:
        await cached.write_round(store, number)
        await answers(store)
        under_way.set()


async def test_a_full_server_that_evicts_nothing_changes_no_answer(database_url, valkey):
    cache = Cached(valkey.url())
    cache.client.config_set("maxmemory-policy", "noeviction")
    cache.client.config_set("maxmemory", "1")
    async with three(database_url, valkey.url()) as stores:
        for number in range(3):
            await cached.write_round(stores[0], number)
            await compared(stores)
        assert cache.dump() == {}
    cache.client.close()


async def test_a_server_that_evicts_changes_no_answer(database_url, valkey):
    cache = Cached(valkey.url())
    async with three(database_url, valkey.url()) as stores:
        for number in range(3):
            await cached.write_round(stores[0], number)
            await folded(stores[0], cache)
            await compared(stores)
        keys = sorted(cache.dump())
        cache.client.delete(*keys[::2])
        cache_settings = {"redis_url": valkey.url(), "redis_timeout_ms": TIMEOUT_MS}
        async with storage(database_url, fold_after_s=60, **cache_settings) as late:
            await compared((late, stores[2]))
    cache.client.close()


async def test_an_absent_server_changes_no_answer(database_url):
    async with three(database_url, "redis://127.0.0.1:1/0") as stores:
        for number in range(2):
            await cached.write_round(stores[0], number)
            await compared(stores)


async def test_a_server_that_never_answers_costs_one_short_wait_now_and_then(database_url, valkey):
    """The breaker: while the server hangs, reads wait for it once, not each time."""
    with_signal(valkey, signal.SIGSTOP)
    records = RedisRecords(url=valkey.url(), timeout_s=0.1, prefix="storage", keep_s=60)
    started = time.monotonic()
    for _ in range(200):
        assert await records.get(["x"], [1]) == [None]
    assert time.monotonic() - started < 1.0
    assert not records.enabled
    with_signal(valkey, signal.SIGCONT)

    async def back() -> bool:
        return await records.put({"x": b"1"})

    await until(back)
    assert records.enabled
    assert await records.get(["x", "y"], [1, 1]) == [b"1", None]
    await records.close()


async def test_records_are_bounded_and_expire(database_url, valkey):
    cache = Cached(valkey.url())
    settings = {"redis_url": valkey.url(), "redis_timeout_ms": TIMEOUT_MS, "cache_window_bytes": 20_000}
    async with storage(database_url, fold_after_s=0.1, **settings) as store:
        for number in range(8):
            await cached.write_round(store, number)
            await folded(store, cache)
            await answers(store)
        found = cache.dump()
        windows = [v for k, v in found.items() if b":windows:" in k and not k.endswith(b"manifest")]
        assert sum(map(len, windows)) <= 20_000
        assert all(0 < cache.client.pttl(key) <= 3_600_000 for key in found)
    cache.client.close()


async def test_many_cold_readers_read_blocks_once(database_url, monkeypatch):
    async with storage(database_url, fold_after_s=0.1) as store:
        await cached.write_round(store, 0)

        async def in_blocks() -> bool:
            request = storage_pb2.ListSeriesRequest(twin_id="t3")
            listed = (await store.ask("ListSeries", request)).series
            return len(listed) == len(cached.CHANNELS) and all(s.point_count >= 10 for s in listed)

        await until(in_blocks)
    async with storage(database_url, fold_after_s=60) as store:
        reads: list[str] = []
        running = most = 0
        real = BlockHistory.read

        async def slow(self: Any, *args: Any) -> Any:
            nonlocal running, most
            reads.append("read")
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.1)
            try:
                return await real(self, *args)
            finally:
                running -= 1

        monkeypatch.setattr(BlockHistory, "read", slow)
        windows = await asyncio.gather(*(cached.window(store) for _ in range(50)))
        assert len(set(windows[0][1])) == 1
        assert all(w == windows[0] for w in windows)
        assert len(reads) == 1
        assert most == 1
