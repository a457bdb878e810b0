"""The checks that look at neighbours in time: rate of change, stuck sensor, spikes; each vectorised over all series.

They take rows ordered by series, then event time, and say for each row whether it fails. What came before the batch is
given by the series' memory; a batch older than that is judged by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.time import US_PER_S
from twinmesh_ingestion.domain.memory import NEVER, TAIL, SeriesMemory

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

HAMPEL_WINDOW: Final = TAIL + 1
"""Values in the window of the spike test: the row, and five on each side where there are so many."""
_HAMPEL_LEAST: Final = 7
_MAD_TO_SIGMA: Final = 1.4826  # of a normal distribution
_MEAN_AD_TO_SIGMA: Final = 1.2533  # likewise; used where more than half of a window is one value and the MAD is 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """Rows of several series, ordered by series, then event time.

    Attributes:
        handle: int [n], landed handle.
        time: int64 [n], event time, microseconds.
        value: float64 [n], in the channel's unit.
        first: bool [n], whether the row is the first of its series.
        start: int [n], row at which the row's series starts.
        stop: int [n], row after the last of the row's series.
        slot: int [n], slot of the series in the memory; -1 = none.
        carried: bool [n], whether the memory holds a value older than the series' first row here.
    """

    handle: Indices
    time: Int64s
    value: Floats
    first: Mask
    start: Indices
    stop: Indices
    slot: Indices
    carried: Mask


def runs_of(handle: Indices, time: Int64s, value: Floats, slots: Indices, memory: SeriesMemory) -> Runs:
    """Describe ordered rows; `slots` is the memory's slot by landed handle."""
    first = np.ones(len(handle), np.bool_)
    first[1:] = handle[1:] != handle[:-1]
    starts = np.flatnonzero(first)
    lengths = np.diff(np.append(starts, len(handle)))
    slot = slots[handle[starts]]
    # "Not seen" (NEVER) is older than everything, so it needs a test of its own.
    carried = (slot >= 0) & (memory.time[slot] != NEVER) & (memory.time[slot] < time[starts])
    return Runs(
        handle=handle,
        time=time,
        value=value,
        first=first,
        start=np.repeat(starts, lengths),
        stop=np.repeat(starts + lengths, lengths),
        slot=np.repeat(slot, lengths),
        carried=np.repeat(carried, lengths),
    )


def too_fast(runs: Runs, max_rate: Floats, falls_are_resets: Mask, memory: SeriesMemory) -> Mask:
    """Return which rows changed faster than allowed since the row before.

    Args:
        runs: the rows.
        max_rate: float64 [n], highest change per second of each row's channel; infinite = any.
        falls_are_resets: bool [n], whether the channel is a counter, whose falls are not changes.
        memory: where the row before the first is found.
    """
    before_value = np.empty_like(runs.value)
    before_time = np.empty_like(runs.time)
    before_value[1:], before_time[1:] = runs.value[:-1], runs.time[:-1]
    known = ~runs.first | runs.carried
    from_memory = runs.first & runs.carried
    before_value[from_memory] = memory.value[runs.slot[from_memory]]
    before_time[from_memory] = memory.time[runs.slot[from_memory]]
    elapsed = np.subtract(runs.time, before_time, out=np.zeros_like(runs.time), where=known)
    with np.errstate(over="ignore", invalid="ignore"):  # the greatest numbers, and no bound times no time
        change = np.subtract(runs.value, before_value, out=np.zeros_like(runs.value), where=known)
        change[(change < 0) & falls_are_resets] = 0.0
        faster = np.abs(change) * US_PER_S > max_rate * elapsed
    # Corrections of one moment (elapsed 0) have no rate.
    return known & (elapsed > 0) & faster


def stuck(runs: Runs, stuck_us: Int64s, memory: SeriesMemory) -> tuple[Mask, Int64s]:
    """Return which rows hold a value unchanged for longer than allowed, and since when each row's value stands.

    Args:
        runs: the rows.
        stuck_us: int64 [n], longest time unchanged, microseconds.
        memory: since when the value before the first row stood.
    """
    change = runs.first.copy()
    change[1:] |= runs.value[1:] != runs.value[:-1]
    since_row = np.maximum.accumulate(np.where(change, np.arange(len(change)), 0))
    since = runs.time[since_row]
    goes_on = runs.first & runs.carried
    goes_on[goes_on] = memory.value[runs.slot[goes_on]] == runs.value[goes_on]
    if goes_on.any():
        in_first_stretch = (since_row == runs.start) & goes_on[runs.start]
        since[in_first_stretch] = memory.since[runs.slot[in_first_stretch]]
    return runs.time - since > stuck_us, since


def spikes(runs: Runs, threshold: Floats, memory: SeriesMemory) -> Mask:
    """Return which rows lie further than `threshold` scaled deviations from the median of their neighbours.

    The window is centred where the batch reaches far enough and trails at its end, so that live single values are
    judged by those before them. Fewer than 7 values decide nothing.

    Source: Hampel identifier; R. K. Pearson, *Outliers in process modeling and identification*, IEEE TCST 10 (2002).

    Args:
        runs: the rows.
        threshold: float64 [n]; infinite = not tested.
        memory: the values before the first row of each series.
    """
    tested = np.flatnonzero(np.isfinite(threshold))
    window = _windows(runs, tested, memory)
    count = np.sum(~np.isnan(window), axis=1)
    enough = count >= _HAMPEL_LEAST
    window, tested = window[enough], tested[enough]
    out = np.zeros(len(runs.value), np.bool_)
    if not len(tested):
        return out
    with np.errstate(over="ignore", invalid="ignore"):  # the greatest numbers: their distances are infinite
        middle = _median(window)
        distance = np.abs(window - middle[:, None])
        sigma = _MAD_TO_SIGMA * _median(distance)
        flat = sigma == 0
        sigma[flat] = _MEAN_AD_TO_SIGMA * np.nansum(distance[flat], axis=1) / count[enough][flat]
        out[tested] = np.abs(runs.value[tested] - middle) > threshold[tested] * sigma
    return out


def remember(runs: Runs, since: Int64s, memory: SeriesMemory) -> None:
    """Keep what the next batch needs: each series' newest values, unless the memory holds newer ones."""
    last = runs.stop[runs.first] - 1
    slot = runs.slot[last]
    newer = (slot >= 0) & (memory.time[slot] < runs.time[last])
    last, slot = last[newer], slot[newer]
    if not len(last):
        return
    fresh = np.minimum(last - runs.start[last] + 1, TAIL)
    steps = np.arange(TAIL)
    # Column j of the new tail: the newest `fresh` values come from the batch, those before from the old tail.
    from_batch = steps >= (TAIL - fresh)[:, None]
    batch_row = np.clip(last[:, None] - (TAIL - 1 - steps), 0, None)
    old_column = np.clip(steps + fresh[:, None], 0, TAIL - 1)
    kept = np.take_along_axis(memory.tail[slot], old_column, axis=1)
    memory.tail[slot] = np.where(from_batch, runs.value[batch_row], kept)
    memory.time[slot] = runs.time[last]
    memory.value[slot] = runs.value[last]
    memory.since[slot] = since[last]


def _windows(runs: Runs, tested: Indices, memory: SeriesMemory) -> Floats:
    """Return float64 [tested, HAMPEL_WINDOW]: the values around each row, from the memory where the batch has none."""
    start, stop = runs.start[tested], runs.stop[tested]
    half = HAMPEL_WINDOW // 2
    # A series that begins here has no row before: its first rows are judged by those after them.
    reach = np.where(runs.carried[tested], tested + half, np.maximum(tested + half, start + HAMPEL_WINDOW - 1))
    newest = np.minimum(reach, stop - 1)
    rows = newest[:, None] - (HAMPEL_WINDOW - 1 - np.arange(HAMPEL_WINDOW))
    before = rows - start[:, None]  # negative: that many rows before the series' first
    window = runs.value[np.clip(rows, 0, None)]
    missing = before < 0
    if missing.any():
        slot = np.clip(runs.slot[tested], 0, None)[:, None]
        column = np.clip(TAIL + before, 0, TAIL - 1)
        old = np.where(runs.carried[tested][:, None] & (before >= -TAIL), memory.tail[slot, column], np.nan)
        window = np.where(missing, old, window)
    return window


def _median(window: Floats) -> Floats:
    """Return the median of each row, NaN left out; every row has some values."""
    count = np.sum(~np.isnan(window), axis=1)
    ordered = np.sort(window, axis=1)  # NaN sorts to the end
    rows = np.arange(len(window))
    middle: Floats = (ordered[rows, (count - 1) // 2] + ordered[rows, count // 2]) / 2
    return middle
