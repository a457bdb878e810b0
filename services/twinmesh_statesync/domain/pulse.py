"""One wake-up for many: whoever waits is told at most once per tick that something is new."""

from __future__ import annotations

import asyncio


class Pulse:
    """Wakes all waiters at once, at most every `tick_s`; the first touch after a pause at once.

    So a lone change is told without delay, and under load many changes make one frame.

    Args:
        tick_s: least time between two wake-ups.
    """

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._event = asyncio.Event()
        self._last_s = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def touch(self) -> None:
        """Note that something is new; must be called on the event loop."""
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        due_s = self._last_s + self._tick_s
        if due_s <= loop.time():
            self._fire()
        else:
            self._timer = loop.call_at(due_s, self._fire)

    def next(self) -> asyncio.Event:
        """Return the event that the next wake-up sets; take it before looking, then wait."""
        return self._event

    def _fire(self) -> None:
        self._timer = None
        self._last_s = asyncio.get_running_loop().time()
        fired, self._event = self._event, asyncio.Event()
        fired.set()
