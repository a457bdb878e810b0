"""A clock that moves when it is told to, for code that takes its clock as an argument."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime
from typing import Final

START_UNIX_US: Final = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z: where a fake clock starts unless told otherwise."""


class FakeClock:
    """Wall time, monotonic time and sleeping, all advanced by hand.

    Pass `now_unix_us` where a wall clock is asked for, `monotonic` where durations are measured and `sleep` where the
    code waits; nothing sleeps for real.
    """

    def __init__(self, start_unix_us: int = START_UNIX_US) -> None:
        self._start_unix_us = start_unix_us
        self._elapsed_us = 0
        self._order = itertools.count()
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []

    def now_unix_us(self) -> int:
        """Return the wall time, in microseconds since the Unix epoch."""
        return self._start_unix_us + self._elapsed_us

    def now(self) -> datetime:
        """Return the wall time as an aware datetime in UTC."""
        return datetime.fromtimestamp(self.now_unix_us() / 1e6, UTC)

    def monotonic(self) -> float:
        """Return the seconds since this clock was made."""
        return self._elapsed_us / 1e6

    def monotonic_s(self) -> float:
        """Return the same, by the name that `twinmesh_core.time.Clock` gives it."""
        return self.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has moved the clock by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        due_us = self._elapsed_us + round(seconds * 1e6)
        heapq.heappush(self._sleepers, (due_us, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Move the clock by `seconds`, waking every sleeper at its own time and letting it run."""
        end_us = self._elapsed_us + round(seconds * 1e6)
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end_us:
            due_us, _, woken = heapq.heappop(self._sleepers)
            self._elapsed_us = max(self._elapsed_us, due_us)
            if not woken.done():
                woken.set_result(None)
            await self._settle()
        self._elapsed_us = end_us
        await self._settle()

    def jump(self, seconds: float) -> None:
        """Move the clock without waking anybody: for synchronous code."""
        self._elapsed_us += round(seconds * 1e6)

    @staticmethod
    async def _settle() -> None:
        # A few turns of the loop: enough for a woken task to reach its next wait through several layers.
        for _ in range(10):
            await asyncio.sleep(0)
