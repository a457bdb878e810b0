"""The cache at rest may be absent, old, damaged, foreign or of another life of the log: every answer is the same.

Each harm is done to a copy of what real folds left in a real Valkey. A storage process that may use it is compared
with one that has no cache, in every answer. The canary believes whatever decodes, and the judge must see it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.storage import cached
from tests.integration.storage.cached import PREFIX, Cached, answers, differences, folded, hits, misses
from tests.integration.storage.mesh import T0, S, doubles, storage

from twinmesh_storage import main
from twinmesh_storage.adapters.postgres.blocks import BlockHistory
from twinmesh_storage.adapters.redis import RedisRecords
from twinmesh_storage.domain.cache_records import Stamp, Vouched, decode_manifest, seal, unseal
from twinmesh_storage.domain.fold_cache import Bounds, FoldCache

NO_FOLDS = 60.0
TIMEOUT_MS = 2_000.0
"""Generous, so that a loaded machine does not turn every test into one of an absent cache."""


@dataclass(frozen=True, slots=True)
class World:
    """A log whose folds were cached at two moments, with entries after the last fold, and what is right to answer."""

    url: str
    early: dict[bytes, bytes]
    late: dict[bytes, bytes]
    expected: dict[str, Any]


@pytest.fixture(scope="module")
def world(postgres_server: Any, valkey_server: Any) -> Iterator[World]:
    name = f"test_{uuid4().hex}"
    postgres_server.create_database(name)
    yield asyncio.run(prepare(postgres_server.url(name), valkey_server.url(1)))
    postgres_server.drop_database(name)


async def prepare(url: str, redis_url: str) -> World:
    cache = Cached(redis_url)
    cache.client.flushall()
    copies: list[dict[bytes, bytes]] = []
    settings = {"redis_url": redis_url, "redis_timeout_ms": TIMEOUT_MS}
    async with storage(url, fold_after_s=0.1, **settings) as store:
        for number in range(6):
            await cached.write_round(store, number)
            await folded(store, cache)
            await answers(store)  # what is asked for is what is kept
            if number in (2, 5):
                # The fold that carries the windows just asked for is the next one.
                (key,) = await store.series("t3", ["c5"])
                await store.append(doubles((key,), [T0 - S * number], [float(number)]))
                await folded(store, cache)
                copies.append(cache.dump())
    async with storage(url, fold_after_s=NO_FOLDS) as store:
        await cached.write_round(store, 6)
        expected = await answers(store)
    cache.client.close()
    return World(url, copies[0], copies[1], expected)


async def asked(world: World, redis_url: str, **settings: Any) -> dict[str, Any]:
    """Return the answers of a process that may use the cache, starting now."""
    chosen = {"redis_timeout_ms": TIMEOUT_MS, **settings}
    async with storage(world.url, redis_url=redis_url, fold_after_s=NO_FOLDS, **chosen) as store:
        first, second = await answers(store), await answers(store)
        assert differences(second, first) == []
        return first


def resealed(records: dict[bytes, bytes], change: Callable[[Stamp], Stamp]) -> dict[bytes, bytes]:
    """Return the records with other stamps and right checksums: what another log, or another life, would have left."""
    out = {}
    for key, value in records.items():
        name = key.decode().removeprefix(PREFIX)
        opened = unseal(name, value)
        assert opened is not None
        out[key] = seal(name, change(opened[0]), opened[1])
    return out


def is_manifest(key: bytes) -> bool:
    return key.endswith(b":manifest")


def rotated(world: World) -> dict[bytes, bytes]:
    """Give every record the bytes of another one."""
    keys = sorted(world.late)
    return {key: world.late[keys[(i + 1) % len(keys)]] for i, key in enumerate(keys)}


HARMS: dict[str, Callable[[World], dict[bytes, bytes]]] = {
    "flushed": lambda w: {},
    "garbage": lambda w: dict.fromkeys(w.late, b"\x80garbage" * 9),
    "empty": lambda w: dict.fromkeys(w.late, b"\0"),
    "one bit flipped": lambda w: {k: v[:-30] + bytes([v[-30] ^ 4]) + v[-29:] for k, v in w.late.items()},
    "torn": lambda w: {k: v[: len(v) * 2 // 3] for k, v in w.late.items()},
    "longer than it was": lambda w: {k: v + b"\0" for k, v in w.late.items()},
    "records swapped": rotated,
    "an old copy": lambda w: w.early,
    "old records under the new manifest": lambda w: {k: v if is_manifest(k) else w.early[k] for k, v in w.late.items()},
    "new records under the old manifest": lambda w: {k: w.early[k] if is_manifest(k) else v for k, v in w.late.items()},
    "of another incarnation": lambda w: resealed(w.early, lambda s: replace(s, incarnation=str(uuid4()))),
    "folded ahead of the log": lambda w: resealed(w.early, lambda s: replace(s, fold_offset=10**6, reach=10**6)),
    "reaching beyond the log": lambda w: resealed(w.early, lambda s: replace(s, reach=10**6)),
    "manifest alone": lambda w: {k: v for k, v in w.late.items() if is_manifest(k)},
    "records alone": lambda w: {k: v for k, v in w.late.items() if not is_manifest(k)},
}
REASONS = {
    "flushed": "absent",
    "garbage": "damaged",
    "an old copy": "behind",
    "old records under the new manifest": "stale",
    "of another incarnation": "incarnation",
    "folded ahead of the log": "ahead",
    "manifest alone": "absent",
}


async def test_a_new_process_answers_from_the_cache_without_reading_blocks(world, redis_url, monkeypatch):
    cache = Cached(redis_url)
    cache.restore(world.late)
    before = hits("latest"), hits("windows")
    async with storage(world.url, redis_url=redis_url, redis_timeout_ms=TIMEOUT_MS, fold_after_s=NO_FOLDS) as store:
        reads: list[str] = []
        for name in ("read", "read_last", "read_before"):
            spy(monkeypatch, name, reads)
        assert await cached.window(store) == world.expected["window newest"]
        assert reads == []
        found = await answers(store)
        assert differences(found, world.expected) == []
    assert hits("latest") > before[0]
    assert hits("windows") > before[1]
    assert reads.count("read_last") == 1, "the text, which is not cached"
    cache.client.close()


def spy(monkeypatch: pytest.MonkeyPatch, name: str, calls: list[str]) -> None:
    real = getattr(BlockHistory, name)

    async def counted(self: Any, *args: Any) -> Any:
        calls.append(name)
        return await real(self, *args)

    monkeypatch.setattr(BlockHistory, name, counted)


@pytest.mark.parametrize("harm", HARMS)
async def test_a_harmed_cache_changes_no_answer(world, redis_url, harm):
    cache = Cached(redis_url)
    cache.restore(HARMS[harm](world))
    reason = REASONS.get(harm)
    before = {kind: misses(kind, reason) if reason else 0.0 for kind in ("latest", "windows")}
    assert differences(await asked(world, redis_url), world.expected) == []
    for kind, count in before.items():
        assert reason is None or misses(kind, reason) > count, f"{kind}: not refused as {reason}"
    cache.client.close()


async def test_keys_of_another_type_change_no_answer(world, redis_url):
    cache = Cached(redis_url)
    for key in world.late:
        cache.client.lpush(key, "x")
    assert differences(await asked(world, redis_url), world.expected) == []
    cache.client.close()


class Believer(FoldCache):
    """The canary: takes for right whatever decodes."""

    def _unfit(self, stamp: Stamp, bounds: Bounds) -> str:
        return ""

    def _open(self, name: str, data: bytes | None, vouched: Vouched, bounds: Bounds) -> tuple[bytes | None, str]:
        opened = unseal(name, data) if data is not None else None
        return (opened[1], "") if opened is not None else (None, "absent")


@pytest.mark.parametrize(
    "harm",
    [
        "an old copy",
        "old records under the new manifest",
        "of another incarnation",
        "folded ahead of the log",
        "reaching beyond the log",
    ],
)
async def test_a_cache_that_believes_any_record_is_caught(world, redis_url, harm, monkeypatch):
    monkeypatch.setattr(main, "FoldCache", Believer)
    cache = Cached(redis_url)
    cache.restore(HARMS[harm](world))
    wrong = differences(await asked(world, redis_url), world.expected)
    assert "latest" in wrong or "window newest" in wrong
    assert "range" not in wrong
    cache.client.close()


async def test_a_deletion_makes_older_records_unbelievable(world, redis_url):
    cache = Cached(redis_url)
    cache.restore(world.late)
    stamp = cache.stamp("windows")
    assert stamp is not None
    records = RedisRecords(url=redis_url, timeout_s=5, prefix="storage", keep_s=60)
    told: list[tuple[str, str, int]] = []
    windows = FoldCache(store=records, kind="windows", max_bytes=1 << 20, count=lambda *event: told.append(event))
    bounds = Bounds(incarnation=stamp.incarnation, oldest_fold=stamp.fold_offset, head=stamp.fold_offset)
    manifest = unseal("windows:manifest", world.late[f"{PREFIX}windows:manifest".encode()])
    assert manifest is not None
    slots = list(decode_manifest(manifest[1]) or {})
    assert set(await windows.load(bounds, slots)) == set(slots)
    windows.distrust_before(stamp.fold_offset + 1)
    assert await windows.load(bounds, slots) == {}
    assert ("miss", "deleted", 1) in told
    assert await windows.forget(slots)
    assert not [key for key in cache.dump() if b":windows:" in key and not is_manifest(key)]
    await records.close()
    cache.client.close()
