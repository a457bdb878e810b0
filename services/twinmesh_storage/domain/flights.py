"""Fills of caches, one per key and few at a time: a cold cache is no stampede on the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Flights:
    """Lets through one holder per key, and `most` holders in all; whoever waited finds what the one before it filled.

    Args:
        most: holders at once.
    """

    def __init__(self, most: int) -> None:
        self._room = asyncio.Semaphore(most)
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def one(self, key: Hashable) -> AsyncIterator[None]:
        """Hold the key; a caller that is cancelled while it waits leaves nothing behind."""
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock, self._room:
                yield
        finally:
            users = self._locks[key][1] - 1
            if users:
                self._locks[key] = (lock, users)
            else:
                del self._locks[key]
