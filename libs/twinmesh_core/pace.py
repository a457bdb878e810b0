"""A thread that computes beside an event loop: it leaves the interpreter to the loop now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

WORK_S: Final = 0.001
PAUSE_S: Final = 0.004


class Pace:
    """Pauses in work that nobody waits for.

    Two threads of one interpreter take turns: beside one that computes without end, each thing the event loop does
    waits for a turn, and a hundred watchers are told late for as long as it lasts. With four parts of pause to one of
    work they hardly notice.

    Args:
        longest_s: pauses in all; beyond that the work is so much that it must get done. 0 = none.
        clock: seconds, ascending.
        sleep: takes seconds.
    """

    def __init__(
        self,
        longest_s: float,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._left_s = longest_s
        self._clock = clock
        self._sleep = sleep
        self._since_s = clock()

    def step(self) -> None:
        """Note that a small piece of the work is done; pauses if it is time."""
        if self._left_s < PAUSE_S or self._clock() - self._since_s < WORK_S:
            return
        self._sleep(PAUSE_S)
        self._left_s -= PAUSE_S
        self._since_s = self._clock()
