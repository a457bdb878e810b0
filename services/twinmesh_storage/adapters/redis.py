"""Records in Valkey or Redis: every call has a short deadline, and a server that fails is left alone for a while.

A hung server so costs one deadline now and then, and not one per read: after a failure everybody is told "nothing
there" until, a moment later, one caller tries again. Records expire, are fetched no further than they may be long, and
are dropped by the server when its memory is full; nothing here is needed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from twinmesh_runtime.telemetry import counter

_PAUSE_S: Final = 2.0
_CONNECTIONS: Final = 4
_PUT_BYTES: Final = 1 << 20
_DROP_NAMES: Final = 1_000
_T = TypeVar("_T")


class RedisRecords:
    """`RecordStore` on one Valkey or Redis.

    Args:
        url: of the server.
        timeout_s: bound of each call.
        prefix: begins every key, so that several logs can share a server.
        keep_s: how long a record is kept.
    """

    def __init__(self, *, url: str, timeout_s: float, prefix: str, keep_s: float) -> None:
        self._client: Redis = Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=None, max_connections=_CONNECTIONS
        )
        self._timeout_s = timeout_s
        self._prefix = f"twinmesh:{prefix}:"
        self._keep_ms = int(keep_s * 1000)
        self._paused_until_s = 0.0
        self._room = asyncio.Semaphore(_CONNECTIONS)

    @property
    def enabled(self) -> bool:
        """See `RecordStore.enabled`."""
        return time.monotonic() >= self._paused_until_s

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def get(self, names: Sequence[str], most: Sequence[int]) -> list[bytes | None]:
        """See `RecordStore.get`; one byte more than `most` is fetched, so that a longer value does not look whole."""
        if not names:
            return []

        async def ask() -> list[object]:
            async with self._client.pipeline(transaction=False) as pipe:
                for name, size in zip(names, most, strict=True):
                    pipe.getrange(self._prefix + name, 0, size)
                return list(await pipe.execute(raise_on_error=False))

        answers = await self._try("get", ask) or [None] * len(names)
        # A missing key reads as empty, one of another type as an error; both are nothing.
        return [answer if isinstance(answer, bytes) and answer else None for answer in answers]

    async def put(self, records: Mapping[str, bytes]) -> bool:
        """See `RecordStore.put`."""
        for part in _parts(records):

            async def store(part: Mapping[str, bytes] = part) -> bool:
                async with self._client.pipeline(transaction=False) as pipe:
                    for name, data in part.items():
                        pipe.set(self._prefix + name, data, px=self._keep_ms)
                    await pipe.execute()
                return True

            if not await self._try("put", store):
                return False
        return True

    async def drop(self, names: Collection[str]) -> bool:
        """See `RecordStore.drop`."""
        keys = [self._prefix + name for name in names]
        for at in range(0, len(keys), _DROP_NAMES):
            part = keys[at : at + _DROP_NAMES]

            async def delete(part: Sequence[str] = part) -> bool:
                await self._client.delete(*part)
                return True

            if not await self._try("drop", delete):
                return False
        return True

    async def _try(self, what: str, call: Callable[[], Awaitable[_T]]) -> _T | None:
        """Return what the server answers, None for whatever goes wrong."""
        now_s = time.monotonic()
        if now_s < self._paused_until_s:
            return None
        if self._paused_until_s:
            # The one who looks whether the server is back; the others go on without it until that is known.
            self._paused_until_s = now_s + _PAUSE_S
        try:
            async with asyncio.timeout(self._timeout_s), self._room:
                answer = await call()
        except (RedisError, OSError, TimeoutError, ValueError):
            self._paused_until_s = time.monotonic() + _PAUSE_S
            counter("storage", "cache_failures", "Cache calls that failed or timed out.", ("call",)).labels(what).inc()
            return None
        self._paused_until_s = 0.0
        return answer


def _parts(records: Mapping[str, bytes]) -> list[dict[str, bytes]]:
    """Cut records into parts that fit one call's deadline."""
    parts: list[dict[str, bytes]] = []
    room = 0
    for name, data in records.items():
        if room <= 0:
            parts.append({})
            room = _PUT_BYTES
        parts[-1][name] = data
        room -= len(data)
    return parts
