"""The checks that look at neighbours in time: rate of change, stuck sensor, spikes; each vectorised over all series.

They take rows ordered by series, then event time, and say for each row whether it fails. What came before the batch is
given by the series' memory; a batch older than that is judged by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.time import US_PER_S
from twinmesh_ingestion.domain.memory import NEVER, TAIL, SeriesMemory

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

HAMPEL_WINDOW: Final = TAIL + 1
"""Values in the window of the spike test: the row and ten before it, or five on each side."""
_HAMPEL_LEAST: Final = 7
_MAD_TO_SIGMA: Final = 1.4826  # of a normal distribution
_MEAN_AD_TO_SIGMA: Final = 1.2533  # likewise; used where more than half of a window is one value and the MAD is 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """Rows of several series, ordered by series, then event time; k runs of one series each.

    Attributes:
        time: int64 [n], event time, microseconds.
        value: float64 [n], in the channel's unit.
        begins: bool [n], whether the row is the first of its run.
        start: int [k], row at which a run starts.
        stop: int [k], row after the last of a run.
        slot: int [k], slot of the series in the memory; -1 = none.
        carried: bool [k], whether the memory holds a value that is not newer than the run's first row.
    """

    time: Int64s
    value: Floats
    begins: Mask
    start: Indices
    stop: Indices
    slot: Indices
    carried: Mask

    def spread(self, by_run: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a column by run as a column by row."""
        return np.repeat(by_run, self.stop - self.start)


def runs_of(
    handle: npt.NDArray[np.unsignedinteger[Any]], time: Int64s, value: Floats, slots: Indices, memory: SeriesMemory
) -> Runs:
    """Describe ordered rows, at least one; `slots` is the memory's slot by landed handle."""
    begins = np.ones(len(handle), np.bool_)
    np.not_equal(handle[1:], handle[:-1], out=begins[1:])
    start = np.flatnonzero(begins)
    slot = slots.take(handle[start])
    # "Not seen" (NEVER) is older than everything, so it needs a test of its own.
    seen = memory.time[slot]
    return Runs(
        time=time,
        value=value,
        begins=begins,
        start=start,
        stop=np.append(start[1:], len(handle)),
        slot=slot,
        carried=(slot >= 0) & (seen != NEVER) & (seen <= time[start]),
    )


def any_faster(runs: Runs, rate: float, memory: SeriesMemory) -> bool:
    """Return whether any row changed faster than `rate` per second: if none, `too_fast` finds none of a higher bound.

    One bound for all rows costs half of what a bound for each does.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        faster = np.abs(np.diff(runs.value)) > (rate / US_PER_S) * _SLACK * np.diff(runs.time)
        if (faster & ~runs.begins[1:]).any():
            return True
        first, slot = runs.start[runs.carried], runs.slot[runs.carried]
        elapsed = runs.time[first] - memory.time[slot]
        return bool((np.abs(runs.value[first] - memory.value[slot]) > (rate / US_PER_S) * _SLACK * elapsed).any())


_SLACK: Final = 1 - 1e-12
"""Rounding differs from that of `too_fast`; a row in doubt is looked at there."""


def too_fast(runs: Runs, max_rate: Floats, falls_are_resets: Mask | None, memory: SeriesMemory) -> Mask:
    """Return which rows changed faster than allowed since the row before.

    Args:
        runs: the rows.
        max_rate: float64 [n], highest change per second of each row's channel; infinite = any.
        falls_are_resets: bool [n], whether the channel is a counter, which starts again from zero; None = none is.
        memory: where the row before the first is found.
    """
    failing = np.zeros(len(runs.value), np.bool_)
    with np.errstate(over="ignore", invalid="ignore"):  # the greatest numbers, and no bound times no time
        change, elapsed = np.diff(runs.value), np.diff(runs.time)
        if falls_are_resets is not None:
            _count_from_zero(change, runs.value[1:], falls_are_resets[1:])
        np.greater(np.abs(change) * US_PER_S, max_rate[1:] * elapsed, out=failing[1:])
        # Corrections of one moment (elapsed 0) have no rate; between two series it means nothing.
        failing[1:] &= elapsed > 0
        failing[runs.start] = False
        first = runs.start[runs.carried]
        slot = runs.slot[runs.carried]
        change = runs.value[first] - memory.value[slot]
        if falls_are_resets is not None:
            _count_from_zero(change, runs.value[first], falls_are_resets[first])
        elapsed = runs.time[first] - memory.time[slot]
        failing[first] = (np.abs(change) * US_PER_S > max_rate[first] * elapsed) & (elapsed > 0)
    return failing


def _count_from_zero(change: Floats, value: Floats, falls_are_resets: Mask) -> None:
    """A counter that falls was reset: it has since risen from zero, so its value is the change."""
    fell = (change < 0) & falls_are_resets
    if fell.any():
        change[fell] = np.maximum(value[fell], 0.0)


def stuck(runs: Runs, stuck_us: Int64s, memory: SeriesMemory) -> tuple[Mask, Int64s]:
    """Return which rows hold a value unchanged for longer than allowed, and since when each row's value stands.

    Args:
        runs: the rows.
        stuck_us: int64 [n], longest time unchanged, microseconds.
        memory: since when the value before the first row stood.
    """
    changes = runs.begins.copy()
    changes[1:] |= runs.value[1:] != runs.value[:-1]
    stretch = np.flatnonzero(changes)
    since_by_stretch = runs.time[stretch]
    goes_on = runs.carried.copy()
    goes_on[goes_on] = memory.value[runs.slot[goes_on]] == runs.value[runs.start[goes_on]]
    # The first stretch of a run goes on from the memory where the value is the same.
    since_by_stretch[np.searchsorted(stretch, runs.start[goes_on])] = memory.since[runs.slot[goes_on]]
    since = np.repeat(since_by_stretch, np.diff(np.append(stretch, len(changes))))
    return runs.time - since > stuck_us, since


def spikes(runs: Runs, threshold: Floats, memory: SeriesMemory, *, centred: bool) -> Mask:
    """Return which rows lie further than `threshold` scaled deviations from the median of their neighbours.

    Live rows are judged by those before them, so that the verdict does not depend on where a sender cuts its batches.
    In recorded history the window is centred where the batch reaches far enough, which tells a spike from a new level.
    Fewer than 7 values decide nothing.

    Source: Hampel identifier; R. K. Pearson, *Outliers in process modeling and identification*, IEEE TCST 10 (2002).

    Args:
        runs: the rows.
        threshold: float64 [n]; infinite = not tested.
        memory: the values before the first row of each series.
        centred: judge by the rows after it too.
    """
    tested = np.flatnonzero(np.isfinite(threshold))
    window = _windows(runs, tested, memory, centred=centred)
    count = HAMPEL_WINDOW - np.isnan(window).sum(axis=0)
    enough = count >= _HAMPEL_LEAST
    if not enough.all():
        window, tested, count = window[:, enough], tested[enough], count[enough]
    out = np.zeros(len(runs.value), np.bool_)
    if not len(tested):
        return out
    with np.errstate(over="ignore", invalid="ignore"):  # the greatest numbers: their distances are infinite
        middle = _median(window, count)
        distance = np.abs(window - middle)
        sigma = _MAD_TO_SIGMA * _median(distance, count)
        flat = sigma == 0
        if flat.any():
            sigma[flat] = _MEAN_AD_TO_SIGMA * np.nansum(distance[:, flat], axis=0) / count[flat]
        out[tested] = np.abs(runs.value[tested] - middle) > threshold[tested] * sigma
    return out


def remember(runs: Runs, since: Int64s | None, memory: SeriesMemory, *, tails: bool) -> None:
    """Keep what the next batch needs: each series' newest values, unless the memory holds newer ones.

    Args:
        runs: the rows.
        since: int64 [n], since when each row's value stands; None = nobody asks.
        memory: moved on.
        tails: whether the values before the newest are wanted too.
    """
    last = runs.stop - 1
    newer = (runs.slot >= 0) & (memory.time[runs.slot] <= runs.time[last])
    start, last, slot = runs.start[newer], last[newer], runs.slot[newer]
    if not len(last):
        return
    if tails:
        fresh = np.minimum(last - start + 1, TAIL)[:, None]
        steps = np.arange(TAIL)
        # Column j of the new tail: the newest `fresh` values come from the batch, those before from the old tail.
        from_batch = runs.value[np.clip(last[:, None] - (TAIL - 1 - steps), 0, None)]
        kept = np.take_along_axis(memory.tail[slot], np.clip(steps + fresh, 0, TAIL - 1), axis=1)
        memory.tail[slot] = np.where(steps >= TAIL - fresh, from_batch, kept)
    memory.time[slot] = runs.time[last]
    memory.value[slot] = runs.value[last]
    memory.since[slot] = runs.time[last] if since is None else since[last]


def _windows(runs: Runs, tested: Indices, memory: SeriesMemory, *, centred: bool) -> Floats:
    """Return float64 [HAMPEL_WINDOW, tested]: the values around each row, from the memory where the batch has none."""
    run_of = (np.cumsum(runs.begins) - 1)[tested]
    start, stop, carried = runs.start[run_of], runs.stop[run_of], runs.carried[run_of]
    newest = tested
    if centred:
        half = HAMPEL_WINDOW // 2
        # A series that begins here has no row before: its first rows are judged by those after them.
        reach = np.where(carried, tested + half, np.maximum(tested + half, start + HAMPEL_WINDOW - 1))
        newest = np.minimum(reach, stop - 1)
    window = np.empty((HAMPEL_WINDOW, len(tested)))
    for back in range(HAMPEL_WINDOW):
        rows = newest - back
        before = rows - start  # negative: that many rows before the run's first
        inside = before >= 0
        window[back] = runs.value[np.where(inside, rows, 0)]
        outside = np.flatnonzero(~inside)
        if len(outside):
            column = TAIL + before[outside]
            known = carried[outside] & (column >= 0)
            old = memory.tail[np.clip(runs.slot[run_of[outside]], 0, None), np.clip(column, 0, None)]
            window[back, outside] = np.where(known, old, np.nan)
    return window


def _median(window: Floats, count: npt.NDArray[np.intp]) -> Floats:
    """Return the median of each column of `count` numbers; the others are NaN."""
    if int(count.min()) == HAMPEL_WINDOW:
        return _median_of_11(window)
    ordered = np.sort(window, axis=0)  # NaN sorts to the end
    columns = np.arange(window.shape[1])
    middle: Floats = (ordered[(count - 1) // 2, columns] + ordered[count // 2, columns]) / 2
    return middle


def _median_of_11(window: Floats) -> Floats:
    """Return the median of each full column: a sorting network over whole rows, ten times faster than many sorts."""
    rows: list[Floats] = list(window.copy())
    for low, high in _NETWORK_11:
        smaller = np.minimum(rows[low], rows[high])
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low] = smaller
    return rows[5]


# Source: the 35-comparator network for 11 inputs; D. E. Knuth, The Art of Computer Programming 3, section 5.3.4.
_NETWORK_11: Final = (
    (0, 9), (1, 6), (2, 4), (3, 7), (5, 8), (0, 1), (3, 5), (4, 10), (6, 9), (7, 8),
    (1, 3), (2, 5), (4, 7), (8, 10), (0, 4), (1, 2), (3, 7), (5, 9), (6, 8),
    (0, 1), (2, 6), (4, 5), (7, 8), (9, 10), (2, 4), (3, 6), (5, 7), (8, 9),
    (1, 2), (3, 4), (5, 6), (7, 8), (2, 3), (4, 5), (6, 7),
)  # fmt: skip
