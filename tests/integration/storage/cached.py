"""A history worth caching, the questions that a cache could answer wrongly, and the real Valkey to be harmed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import redis
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tests.integration.storage.mesh import T0, S, Storage, collect, doubles

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, text_section
from twinmesh_runtime.telemetry import counter
from twinmesh_storage.domain.cache_records import Stamp, unseal
from twinmesh_storage.domain.latest import CHUNK_SERIES

TWINS = ("t1", "t2", "t3")
CHANNELS = tuple(f"c{i}" for i in range(6))
PREFIX = "twinmesh:storage:"
STEPS = 40


async def write_round(store: Storage, number: int) -> None:
    """Append ten seconds of every channel, a correction of older seconds, and a text."""
    for twin in TWINS:
        keys = await store.series(twin, CHANNELS)
        times = np.tile(T0 + S * (10 * number + np.arange(10)), len(CHANNELS))
        handles = np.repeat(np.arange(len(CHANNELS), dtype=np.uint32), 10)
        await store.append(doubles(keys, times, times % 1009 + handles + 0.25 * number, handles))
        if number:
            # Late: other values for seconds of the round before, which a cache that lags would not have.
            late = T0 + S * (10 * number - np.arange(1, 4))
            await store.append(doubles(keys, late, np.full(3, -1000.0 * number), np.full(3, number % 6, np.uint32)))
    (note,) = await store.series("t1", ["note"], ChannelKind.TEXT, "")
    texts = text_section([0], [T0 + S * number], [f"round {number}".encode()], [1])
    await store.append(ObservationBatch(series=(note,), texts=texts))


async def answers(store: Storage) -> dict[str, Any]:
    """Return latest values, windows and ranges of everything, as comparable values."""
    latest: dict[str, Any] = {}
    collect((await store.ask("ReadLatest", storage_pb2.ReadLatestRequest(twin_ids=TWINS))).batch, latest)
    out: dict[str, Any] = {"latest": latest}
    for name, fields in (
        ("newest", {}),
        ("held", {"gap_policy": storage_pb2.GAP_POLICY_HOLD, "max_gap": Duration(seconds=5)}),
        ("earlier", {"at": Timestamp(seconds=T0 // S + 15)}),
    ):
        out[f"window {name}"] = await window(store, **fields)
    out["range"] = await store.read([(t, c) for t in TWINS for c in CHANNELS] + [("t1", "note")])
    return out


async def window(store: Storage, **fields: Any) -> tuple[bytes, list[int], list[float]]:
    """Return one window of every twin, gaps left empty unless `fields` say otherwise."""
    fields.setdefault("gap_policy", storage_pb2.GAP_POLICY_NONE)
    request = storage_pb2.ReadWindowRequest(
        twin_ids=TWINS, channels=CHANNELS, step=Duration(seconds=1), steps=STEPS, **fields
    )
    answer = await store.ask("ReadWindow", request)
    return answer.values, list(answer.at_unix_us), list(answer.coverage)


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return which answers differ; the judge of every test here."""
    return [name for name, value in expected.items() if found.get(name) != value]


async def until(condition: Callable[[], Awaitable[bool] | bool], timeout_s: float = 20.0) -> None:
    """Wait for a condition."""
    ends = time.monotonic() + timeout_s
    while True:
        held = condition()
        if held if isinstance(held, bool) else await held:
            return
        assert time.monotonic() < ends, "the condition did not come true in time"
        await asyncio.sleep(0.02)


async def folded(store: Storage, cache: Cached) -> int:
    """Wait until everything is folded and the cache told of it; returns the offset."""
    head = (await store.ask("GetHead", storage_pb2.GetHeadRequest())).position.offset
    await until(lambda: cache.is_at(head))
    return int(head)


class Cached:
    """What the cache server holds, seen and harmed from outside."""

    def __init__(self, url: str) -> None:
        self.client: Any = redis.Redis.from_url(url, socket_timeout=5)

    def dump(self) -> dict[bytes, bytes]:
        """Return every record."""
        return {key: self.client.get(key) for key in self.client.keys(f"{PREFIX}*")}

    def restore(self, records: dict[bytes, bytes]) -> None:
        """Hold these records and no other."""
        self.client.flushall()
        for key, value in records.items():
            self.client.set(key, value)

    def stamp(self, kind: str) -> Stamp | None:
        """Return what the manifest of a kind is as of."""
        data = self.client.get(f"{PREFIX}{kind}:manifest")
        opened = unseal(f"{kind}:manifest", data) if data is not None else None
        return opened[0] if opened is not None else None

    def is_at(self, offset: int) -> bool:
        """Whether both manifests are as of this fold."""
        return all((s := self.stamp(kind)) is not None and s.fold_offset == offset for kind in ("latest", "windows"))


def hits(kind: str) -> float:
    """Return how many records were used since this process began."""
    return sample("cache_hits", kind)


def misses(kind: str, reason: str) -> float:
    """Return how many were of no use for a reason."""
    return sample("cache_misses", kind, reason)


def sample(name: str, *labels: str) -> float:
    """Return the value of one of storage's counters."""
    metric = counter("storage", name, "", ("kind", "reason")[: len(labels)])
    value: float = metric.labels(*labels)._value.get()
    return value


assert len(TWINS) * len(CHANNELS) <= CHUNK_SERIES
