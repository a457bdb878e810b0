"""In which partition a block lies: width classes follow the cell, so that no class gets more than some hundred.

A partition's width is a multiple of every cell of its class, so a block never crosses an edge, and data older than a
time can be dropped partition by partition.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from twinmesh_core.time import US_PER_DAY, US_PER_HOUR, US_PER_MINUTE, floor_to

REST: Final = 0
"""The class without ranges: blocks from before there were partitions, and those that no range was made for."""
MOST_PARTITIONS: Final = 600
"""Partitions of one class; beyond them (event times all over the calendar) blocks go to `REST`: read alike, dropped
row by row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """A class of series whose cells are at most `max_cell_us` wide; its partitions are `width_us` wide."""

    number: int
    max_cell_us: int
    width_us: int


WIDTHS: Final = (
    Width(number=1, max_cell_us=10 * US_PER_MINUTE, width_us=7 * US_PER_DAY),
    Width(number=2, max_cell_us=6 * US_PER_HOUR, width_us=28 * US_PER_DAY),
    Width(number=3, max_cell_us=7 * US_PER_DAY, width_us=336 * US_PER_DAY),
    Width(number=4, max_cell_us=2016 * US_PER_DAY, width_us=2016 * US_PER_DAY),
)


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One range partition: event times with start <= t0 < end."""

    width: int
    index: int

    @property
    def start(self) -> int:
        """First event time."""
        return self.index * WIDTHS[self.width - 1].width_us

    @property
    def end(self) -> int:
        """First event time that is not in it any more."""
        return self.start + WIDTHS[self.width - 1].width_us

    @property
    def name(self) -> str:
        """Its table."""
        return f"block_{self.width}_{self.index}".replace("-", "m")


@lru_cache(maxsize=4_096)
def width_of(cell_us: int) -> Width:
    """Return the class of series with this cell."""
    return next(width for width in WIDTHS if cell_us <= width.max_cell_us)


def partition_of(cell_us: int, time_unix_us: int) -> Partition:
    """Return where a block that begins at this event time lies."""
    width = width_of(cell_us)
    return Partition(width.number, floor_to(time_unix_us, width.width_us) // width.width_us)
