"""The deadband: which rows add so little to the value stored before them that they need not be stored.

A row is measured against the last one that *was* stored, so each verdict depends on those before it. Long stretches are
cut where a row is stored whatever came before (a jump, a flag, a pause); the pieces are walked side by side, one row of
each at a time, and what is left of a few long ones by a plain loop: never slower than about 0.2 us a row.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_ingestion.domain.checks import Floats, Indices, Int64s, Mask, Runs
from twinmesh_ingestion.domain.memory import NEVER, SeriesMemory

_SIDE_BY_SIDE: Final = 256
"""Pieces from which on one numpy step for all costs less than a Python step for each."""
_MORE_THAN_TWICE: Final = 2.000001


def redundant(runs: Runs, plain: Mask, band: Floats, silence_us: Int64s, counter: Mask, memory: SeriesMemory) -> Mask:
    """Return which rows need not be stored.

    Args:
        runs: the rows that would be stored; `carried` is not used.
        plain: bool [n], GOOD rows that may be dropped; the others, and the rows after them, are stored.
        band: float64 [n], distance within which a value is close, in the channel's unit.
        silence_us: int64 [n], longest time between two stored rows of a series.
        counter: bool [n], a counter's fall is a reset, and stored however small.
        memory: the value stored before the first row of each series; moved on to the last one stored here.
    """
    stored = memory.stored_time[runs.slot]
    carried = (runs.slot >= 0) & (stored != NEVER) & (stored <= runs.time[runs.start])
    certain = np.ones(len(runs.value), np.bool_)
    with np.errstate(over="ignore", invalid="ignore"):  # the greatest numbers: their distance is infinite
        certain[1:] = np.abs(np.diff(runs.value)) > _MORE_THAN_TWICE * band[1:]
        certain[1:] |= np.diff(runs.time) >= silence_us[1:]
    certain[1:] |= ~plain[:-1]
    certain |= ~plain
    certain[runs.start] = ~carried | ~plain[runs.start]
    dropped = np.zeros(len(runs.value), np.bool_)
    walk = _Walk(runs, carried, certain, memory)
    walk.all(dropped, band, silence_us, counter)
    _remember(runs, plain, dropped, memory)
    return dropped


class _Walk:
    """Pieces of runs, longest first: each with the value stored before its first row that is in question.

    Attributes:
        first: int [p], that row.
        length: int [p], rows in question; at least one.
        value, time: [p], the value stored last, and its event time.
    """

    def __init__(self, runs: Runs, carried: Mask, certain: Mask, memory: SeriesMemory) -> None:
        from_memory = runs.start[carried & ~certain[runs.start]]
        begins = np.union1d(np.flatnonzero(certain), from_memory)
        ends = np.append(begins[1:], len(certain))
        self._runs = runs
        value, time = runs.value[begins], runs.time[begins]
        itself = certain[begins]
        slot = runs.slot[np.searchsorted(runs.start, begins[~itself])]
        value[~itself], time[~itself] = memory.stored_value[slot], memory.stored_time[slot]
        # A value that is not GOOD is no measure: the row after it is stored, whatever it is.
        unlike = np.zeros(len(begins), np.bool_)
        unlike[~itself] = ~memory.stored_good[slot]
        value[unlike] = np.nan
        first = begins + itself
        length = ends - first
        order = np.argsort(-length, kind="stable")
        order = order[: int((length > 0).sum())]
        self.first, self.length, self.value, self.time = first[order], length[order], value[order], time[order]

    def all(self, dropped: Mask, band: Floats, silence_us: Int64s, counter: Mask) -> None:
        """Decide every row in question, in `dropped`."""
        active, step = len(self.first), 0
        while active >= _SIDE_BY_SIDE:
            rows = self.first[:active] + step
            value, time = self._runs.value[rows], self._runs.time[rows]
            last, since = self.value[:active], time - self.time[:active]
            with np.errstate(over="ignore", invalid="ignore"):
                close = np.abs(value - last) <= band[rows]
            close &= (since > 0) & (since < silence_us[rows])
            close &= ~counter[rows] | (value >= last)
            dropped[rows] = close
            self.value[:active] = np.where(close, last, value)
            self.time[:active] = np.where(close, self.time[:active], time)
            step += 1
            active = int(np.searchsorted(-self.length, -step))
        for piece in range(active):
            self._one(piece, step, dropped, band, silence_us, counter)

    def _one(self, piece: int, step: int, dropped: Mask, band: Floats, silence_us: Int64s, counter: Mask) -> None:
        start, stop = int(self.first[piece]) + step, int(self.first[piece] + self.length[piece])
        last, at = float(self.value[piece]), int(self.time[piece])
        near, longest, counts = float(band[start]), int(silence_us[start]), bool(counter[start])
        verdicts = []
        values, times = self._runs.value[start:stop].tolist(), self._runs.time[start:stop].tolist()
        for value, time in zip(values, times, strict=True):
            change = value - last
            if -near <= change <= near and 0 < time - at < longest and not (counts and change < 0.0):
                verdicts.append(True)
            else:
                verdicts.append(False)
                last, at = value, time
        dropped[start:stop] = verdicts


def _remember(runs: Runs, plain: Mask, dropped: Mask, memory: SeriesMemory) -> None:
    row: npt.NDArray[np.intp] = np.arange(len(dropped))
    last: Indices = np.maximum.accumulate(np.where(dropped, -1, row))[runs.stop - 1]
    moved = (last >= runs.start) & (runs.slot >= 0)
    moved[moved] = memory.stored_time[runs.slot[moved]] <= runs.time[last[moved]]
    slot, last = runs.slot[moved], last[moved]
    memory.stored_time[slot] = runs.time[last]
    memory.stored_value[slot] = runs.value[last]
    memory.stored_good[slot] = plain[last]
