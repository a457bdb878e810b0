"""The cache of latest values in Valkey or Redis: whole chunks of packed records, believed only if they prove fit.

A chunk names the incarnation and the fold offset it is as of, and has a checksum. A manifest says which fold offset
each chunk should have and how far the folds had come when it was written; a chunk that an old copy, a lost write or a
foreign hand left behind does not match and is a miss. Every call has a short deadline, and after a failure the cache
is left alone for a while, so a hung server costs one deadline and not one per read.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from twinmesh_runtime.telemetry import counter
from twinmesh_storage.domain.latest import open_chunk, seal_chunk

_PAUSE_S: Final = 2.0
_CHUNKS_AT_ONCE: Final = 64
_T = TypeVar("_T")


class RedisLatestCache:
    """`LatestCache` on one Valkey or Redis.

    Args:
        url: of the server.
        timeout_s: bound of each call.
        prefix: begins every key, so that several logs can share a server.
    """

    def __init__(self, *, url: str, timeout_s: float, prefix: str) -> None:
        self._client: Redis = Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=None, max_connections=4
        )
        self._timeout_s = timeout_s
        self._prefix = f"twinmesh:{prefix}:latest"
        self._paused_until_s = 0.0
        self._written: dict[int, int] | None = None

    @property
    def enabled(self) -> bool:
        """See `LatestCache.enabled`."""
        return time.monotonic() >= self._paused_until_s

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def load(self, incarnation: str, oldest_fold: int) -> dict[int, bytes]:
        """See `LatestCache.load`."""
        manifest = _manifest(await self._try("load", lambda: self._client.get(self._key("manifest"))), incarnation)
        if manifest is None or manifest[0] < oldest_fold:
            return {}
        fold_offset, chunks = manifest
        loaded: dict[int, bytes] = {}
        numbers = sorted(chunks)
        for at in range(0, len(numbers), _CHUNKS_AT_ONCE):
            part = numbers[at : at + _CHUNKS_AT_ONCE]
            get = partial(self._client.mget, [self._key(str(n)) for n in part])
            values = await self._try("load", get)
            for number, value in zip(part, values if isinstance(values, list) else (), strict=False):
                opened = open_chunk(value, incarnation) if isinstance(value, bytes) else None
                if opened is not None and opened[0] == chunks[number] <= fold_offset:
                    loaded[number] = opened[1]
        counter("storage", "cache_chunks_loaded", "Chunks of latest values taken from the cache.").inc(len(loaded))
        return loaded

    async def store(self, incarnation: str, fold_offset: int, chunks: dict[int, bytes]) -> None:
        """See `LatestCache.store`."""
        if self._written is None:
            # What an earlier process wrote is not known to be complete: begin a manifest of our own.
            self._written = {}
        written = {**self._written, **dict.fromkeys(chunks, fold_offset)}
        manifest = {"incarnation": incarnation, "fold_offset": fold_offset, "chunks": written}

        async def put() -> bool:
            async with self._client.pipeline(transaction=True) as pipe:
                for number, body in chunks.items():
                    pipe.set(self._key(str(number)), seal_chunk(body, fold_offset, incarnation))
                pipe.set(self._key("manifest"), json.dumps(manifest))
                await pipe.execute()
            return True

        if await self._try("store", put):
            self._written = written
        else:
            # Chunks may be missing now, so nothing written before may be vouched for again.
            self._written = None

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    async def _try(self, what: str, call: Callable[[], Awaitable[_T]]) -> _T | None:
        """Return what the server answers, None for whatever goes wrong."""
        if time.monotonic() < self._paused_until_s:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call()
        except (RedisError, OSError, TimeoutError, ValueError, UnicodeDecodeError):
            self._paused_until_s = time.monotonic() + _PAUSE_S
            counter("storage", "cache_failures", "Cache calls that failed or timed out.", ("call",)).labels(what).inc()
            return None


def _manifest(data: Any, incarnation: str) -> tuple[int, dict[int, int]] | None:
    """Return fold offset and chunk offsets of a manifest; None = there is none that can be believed."""
    if not isinstance(data, bytes):
        return None
    try:
        manifest = json.loads(data)
        if manifest["incarnation"] != incarnation:
            return None
        return int(manifest["fold_offset"]), {int(n): int(o) for n, o in manifest["chunks"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
