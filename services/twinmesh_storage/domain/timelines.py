"""What needs every value in order: rises of counters, how long values hold, quantiles.

Each takes the rows of one series after another, by event time, in parts of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.errors import invalid_field

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

MAX_BUCKET_VALUES: Final = 20_000_000
"""Most values of one bucket that quantiles are taken from: 160 MB."""
_US: Final = 1e6


class Rises:
    """Reset-aware increase of counters, and the time in which they rose.

    Attributes:
        rise: float64 [buckets].
        span_us: float64 [buckets], time between the values that rises were taken from.
    """

    def __init__(self, edges: Int64s) -> None:
        self._edges = edges
        self.rise = np.zeros(len(edges) - 1)
        self.span_us = np.zeros(len(edges) - 1)

    def add(self, ts: Int64s, values: Float64s) -> None:
        """Add the rises between these rows; the first one only tells from where the second rises."""
        if len(ts) < 2:
            return
        bucket = self._edges.searchsorted(ts[1:], "right") - 1
        change = np.diff(values)
        rise = np.where(change < 0, values[1:], change)
        self.rise += np.bincount(bucket, rise, len(self.rise))
        self.span_us += np.bincount(bucket, np.diff(ts), len(self.rise))


class Holding:
    """How long values hold, each until the next one, at most `max_gap_us` (0 = no limit).

    Attributes:
        held_us: float64 [buckets], time in which something is known.
        weighted: float64 [buckets], sum of value times microseconds.
        states_us: float64 [buckets, states], time in which exactly this value held.
    """

    def __init__(self, edges: Int64s, states: Sequence[float], max_gap_us: int) -> None:
        self._edges = edges
        self._states = states
        self._max_gap_us = max_gap_us
        self.held_us = np.zeros(len(edges) - 1)
        self.weighted = np.zeros(len(edges) - 1)
        self.states_us = np.zeros((len(edges) - 1, len(states)))

    def add(self, ts: Int64s, values: Float64s, until: int) -> None:
        """Add rows that follow one another; the last one holds until `until`."""
        if not len(ts):
            return
        edges = self._edges
        start = np.maximum(ts, edges[0])
        end = np.minimum(np.append(ts[1:], until), edges[-1])
        if self._max_gap_us:
            end = np.minimum(end, ts + self._max_gap_us)
        lasting = end > start
        start, end, values = start[lasting], end[lasting], values[lasting]
        first = edges.searchsorted(start, "right") - 1
        pieces = edges.searchsorted(end) - first
        # A value that holds over an edge counts on both sides: cut it into one piece per bucket.
        total = int(pieces.sum())
        within = np.arange(total) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        bucket = np.repeat(first, pieces) + within
        held = np.minimum(np.repeat(end, pieces), edges[bucket + 1]) - np.maximum(
            np.repeat(start, pieces), edges[bucket]
        )
        values = np.repeat(values, pieces)
        buckets = len(self.held_us)
        self.held_us += np.bincount(bucket, held, buckets)
        self.weighted += np.bincount(bucket, held * values, buckets)
        for column, state in enumerate(self._states):
            self.states_us[:, column] += np.bincount(bucket, np.where(values == state, held, 0), buckets)

    def mean(self) -> Float64s:
        """Return the mean over time of each bucket, NaN where nothing holds."""
        with np.errstate(invalid="ignore"):
            return np.where(self.held_us > 0, self.weighted / np.maximum(self.held_us, 1), np.nan)

    def states_s(self) -> Float64s:
        """Return the seconds of each state, float64 [buckets, states], NaN where nothing holds."""
        return np.where(self.held_us[:, None] > 0, self.states_us / _US, np.nan)


class Quantiles:
    """Exact quantiles of each bucket, from all its values.

    Source of the definition: Hyndman and Fan, "Sample Quantiles in Statistical Packages" (1996), type 7.

    Attributes:
        values: float64 [buckets, levels]; NaN = no value. Complete after `finish`.
    """

    def __init__(self, edges: Int64s, levels: Sequence[float]) -> None:
        self._edges = edges
        self._levels = np.array(levels)
        self._open: list[Float64s] = []
        self._open_bucket = -1
        self.values = np.full((len(edges) - 1, len(levels)), np.nan)

    def add(self, ts: Int64s, values: Float64s) -> None:
        """Add rows that follow those added before.

        Raises:
            InvalidArgument: more than `MAX_BUCKET_VALUES` in one bucket.
        """
        if not len(ts):
            return
        bucket = self._edges.searchsorted(ts, "right") - 1
        if bucket[0] != self._open_bucket:
            self.finish()
        # All but the last bucket are complete.
        first = int(bucket.searchsorted(bucket[0], "right"))
        last = int(bucket.searchsorted(bucket[-1]))
        self._open_bucket = int(bucket[0])
        self._open.append(values[:first])
        if last > 0:
            self.finish()
            self._settle(bucket[first:last], values[first:last])
            self._open_bucket = int(bucket[-1])
            self._open = [values[last:]]
        _check_size(sum(map(len, self._open)))

    def finish(self) -> None:
        """Settle the bucket that was not known to be complete."""
        if self._open:
            values = np.concatenate(self._open)
            self._open = []
            self._settle(np.full(len(values), self._open_bucket), values)

    def _settle(self, bucket: npt.NDArray[np.intp], values: Float64s) -> None:
        if not len(values):
            return
        ordered = np.sort(values) if bucket[0] == bucket[-1] else values[np.lexsort((values, bucket))]
        starts = np.flatnonzero(np.concatenate(([True], bucket[1:] != bucket[:-1])))
        sizes = np.diff(np.append(starts, len(bucket)))
        _check_size(int(sizes.max()))
        rank = (sizes - 1)[:, None] * self._levels
        below = rank.astype(np.int64)
        above = np.minimum(below + 1, (sizes - 1)[:, None])
        share = rank - below
        low, high = ordered[starts[:, None] + below], ordered[starts[:, None] + above]
        self.values[bucket[starts]] = np.where(share == 0, low, low * (1 - share) + high * share)


def _check_size(values: int) -> None:
    if values > MAX_BUCKET_VALUES:
        raise invalid_field(
            "quantiles", f"a bucket has over {MAX_BUCKET_VALUES:,} values of one series; take shorter buckets"
        )
