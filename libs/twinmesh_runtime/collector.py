"""Python's cyclic garbage collector in a process that keeps much and must not pause.

References free nearly everything at once; the collector is there for cycles alone. By default it looks at all that is
alive again whenever a quarter has been added: with a million values in memory each look is a pause of tenths of a
second, in which no call is answered. Here whatever outlived a full look is left alone for the next ones, so that a look
costs what has been added since, and not what there is. Now and then everything is looked at: cycles that were in use
when they were left alone are found then.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

THRESHOLDS: Final = (5_000, 10, 10)
"""Objects added before a look at the newest, such looks before one at the middle-aged, and those before a full one: a
full look is at about half a million objects, some 50 ms."""
FULL_LOOKS: Final = 64
"""One of so many full looks is at everything."""
_OLDEST: Final = 2


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep the collector from looking while modules are imported.

    What they make stays; looking at it again and again is a sixth of a service's start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def calm_collector() -> Iterator[None]:
    """Have the collector look at what is new, as long as the block lasts; what there is already is left alone."""
    before = gc.get_threshold()
    looks = 0

    def looked(phase: str, info: dict[str, Any]) -> None:
        nonlocal looks
        if info["generation"] != _OLDEST:
            return
        if phase == "start":
            looks += 1
            if looks % FULL_LOOKS == 0:
                gc.unfreeze()
        else:
            gc.freeze()

    gc.collect()
    gc.freeze()
    gc.callbacks.append(looked)
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(looked)
        gc.unfreeze()
