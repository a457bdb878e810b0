"""Places at which a fold stands still for a moment, so that somebody can look at it as of exactly there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Hold:
    """One wish to hold the fold at an offset; `reached` is set once it is there, or had to begin anew."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.reached = asyncio.Event()
        self.released = asyncio.Event()


class Holds:
    """The wishes of now; whoever folds asks before each step."""

    def __init__(self) -> None:
        self._wanted: list[Hold] = []

    def __bool__(self) -> bool:
        return bool(self._wanted)

    @contextmanager
    def at(self, offset: int, present: int) -> Iterator[Hold]:
        """Want a fold, which is at `present`, held at an offset not behind that, until the block ends."""
        hold = Hold(offset)
        if offset == present:
            hold.reached.set()
        self._wanted.append(hold)
        try:
            yield hold
        finally:
            self._wanted.remove(hold)
            hold.released.set()

    def reach(self, offset: int | None) -> None:
        """Tell those whose place is reached; None = the log began anew, and everybody has to look for themselves."""
        for hold in self._wanted:
            if offset is None or hold.offset <= offset:
                hold.reached.set()

    async def stop_before(self, offset: int, go_to: Callable[[int], None]) -> None:
        """Stop at every place before an offset, for as long as somebody wants it; `go_to` takes the fold there."""
        while here := [hold for hold in self._wanted if hold.offset < offset]:
            place = min(hold.offset for hold in here)
            go_to(place)
            for hold in here:
                if hold.offset == place:
                    await hold.released.wait()
