"""Filling buckets that have no value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


def fill(
    out: Float64s,
    columns: Sequence[int],
    edges: Int64s,
    present: npt.NDArray[np.bool_],
    last: Float64s,
    last_ts: Int64s,
    straight: npt.NDArray[np.bool_],
    max_gap_us: int,
) -> None:
    """Fill some columns of empty buckets, in place.

    Args:
        out: float64 [series, buckets, columns].
        columns: which to fill.
        present: bool [series, buckets], whether a bucket has a value.
        last: float64 [series, buckets + 1], last value of each bucket, with the one before the range in front.
        last_ts: int64 likewise, their event times; empty buckets may hold anything.
        straight: bool [series], lines between the buckets on either side; else the last value before is held.
        max_gap_us: longest gap filled; 0 = no limit.
    """
    limit = max_gap_us or 1 << 62
    starts = edges[:-1]
    buckets = len(starts)
    # Place 0 is before the range; where nothing is there its value is NaN, which fills nothing.
    source = np.where(present, np.arange(1, buckets + 1), 0)
    np.maximum.accumulate(source, axis=1, out=source)
    held = np.take_along_axis(last, source, axis=1)
    age = starts - np.take_along_axis(last_ts, source, axis=1)
    hold = ~present & ~straight[:, None] & (age <= limit)
    for column in columns:
        out[:, :, column] = np.where(hold, held, out[:, :, column])
    for place in np.flatnonzero(straight & ~present.all(axis=1)).tolist():
        known = np.flatnonzero(present[place])
        empty = np.flatnonzero(~present[place])
        right = known.searchsorted(empty)
        inside = (right > 0) & (right < len(known))
        empty, right = empty[inside], right[inside]
        near = starts[known[right]] - starts[known[right - 1]] <= limit
        empty = empty[near]
        if len(empty):
            for column in columns:
                out[place, empty, column] = np.interp(starts[empty], starts[known], out[place, known, column])
