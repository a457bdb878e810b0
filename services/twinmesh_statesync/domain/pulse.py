"""One wake-up for many: whoever waits is told at most once per tick that something is new."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_SHORTEST_S: Final = 0.002
_PER_WATCHER_S: Final = 0.000_25


class Pulse:
    """Wakes all waiters at once, at most once per tick; the first touch after a pause at once.

    So a lone change is told without delay, and under load many changes make one frame. The tick grows with the crowd:
    waking one costs about as much as a message, and a hundred woken every 2 ms would leave time for nothing else.

    Args:
        tick_s: longest tick.

    Attributes:
        crowd: watchers now.
    """

    def __init__(self, tick_s: float) -> None:
        self._longest_s = tick_s
        self.crowd = 0
        self._event = asyncio.Event()
        self._last_s = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._listeners: list[Callable[[], None]] = []

    @property
    def tick_s(self) -> float:
        """Least time between two wake-ups, for the crowd as it is."""
        return min(self._longest_s, max(_SHORTEST_S, self.crowd * _PER_WATCHER_S))

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called at each wake-up: for crowds of whom only some are concerned."""
        self._listeners.append(listener)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Count one more watcher for as long as the block lasts."""
        self.crowd += 1
        try:
            yield
        finally:
            self.crowd -= 1

    def touch(self) -> None:
        """Note that something is new; must be called on the event loop."""
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        due_s = self._last_s + self.tick_s
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
        for listener in self._listeners:
            listener()
