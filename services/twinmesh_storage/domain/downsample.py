"""Few observations that show the shape of many: chosen ones, never averages.

A series is read from history as a stream, up to three times: once by block statistics to know how many rows there are,
once for the means of buckets, once to choose. So memory is that of a page and of the answer, whatever the range; a
series that fits a page or two is kept and read once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import IntEnum
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.kinds import ChannelKind
from twinmesh_storage.domain.aggregate import Aggregator
from twinmesh_storage.domain.history import History, Seen, SeriesRows
from twinmesh_storage.domain.rows import Lane, Rows, as_float64, concat, no_rows
from twinmesh_storage.domain.series import Series

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

_KEPT_ROWS: Final = 1_000_000
"""Rows of a series that are kept between two passes: 33 MB."""


class Method(IntEnum):
    """How rows are chosen; numbers equal ``twinmesh.storage.v1.DownsampleMethod``."""

    DEFAULT = 0
    LTTB = 1
    MIN_MAX = 2


class Downsampler:
    """Chooses rows of series."""

    def __init__(self, *, history: History, aggregator: Aggregator, kept_rows: int = _KEPT_ROWS) -> None:
        self._history = history
        self._aggregator = aggregator
        self._kept_rows = kept_rows

    async def stream(
        self, tenant: str, series: Sequence[Series], start: int, end: int, method: Method, most: int, seen: Seen
    ) -> AsyncIterator[SeriesRows]:
        """Yield at most `most` (3 or more) rows of each numeric series, by event time; all where there are no more.

        Args:
            seen: as of an offset, so that every pass sees the same rows.
        """
        tally = await self._aggregator.tally(tenant, series, seen, start, end)
        for place, one in enumerate(series):
            count = int(tally.count[place])
            if not count:
                continue
            source = _Source(self._history, tenant, one, start, end, seen, self._kept_rows)
            if count <= most:
                rows = [part async for part in source.read()]
            elif method is Method.MIN_MAX:
                spans = MinMax(int(tally.first[place]), int(tally.last[place]), most // 2, one.kind)
                async for more in source.read():
                    spans.add(more)
                rows = spans.finish()
            else:
                rows = await _lttb(source, count, most, one.kind)
            yield SeriesRows(series=one, rows=concat(rows) if rows else no_rows(Lane.NUMERIC))


class _Source:
    """The rows of one series, to be read several times; from memory after the first time if they are few."""

    def __init__(
        self, history: History, tenant: str, series: Series, start: int, end: int, seen: Seen, kept_rows: int
    ) -> None:
        self._read = partial(history.stream, tenant, [series], start, end, seen)
        self._room = kept_rows
        self._kept: list[Rows] | None = None

    async def read(self) -> AsyncIterator[Rows]:
        """Yield the rows in parts, by event time."""
        if self._kept is not None:
            for rows in self._kept:
                yield rows
            return
        kept: list[Rows] = []
        room = self._room
        async for parts in self._read():
            for part in parts:
                if not len(part.rows):
                    continue
                room -= len(part.rows)
                if room >= 0:
                    kept.append(part.rows)
                else:
                    kept.clear()
                yield part.rows
        if room >= 0:
            self._kept = kept


async def _lttb(source: _Source, count: int, most: int, kind: ChannelKind) -> list[Rows]:
    buckets = LttbBuckets(count, most)
    at = 0
    async for part in source.read():
        buckets.add(at, part.ts, as_float64(np.ascontiguousarray(part.value), kind))
        at += len(part)
    choice = LttbChoice(buckets)
    at = 0
    chosen = []
    async for part in source.read():
        picked = choice.add(at, part, as_float64(np.ascontiguousarray(part.value), kind))
        if picked is not None:
            chosen.append(picked)
        at += len(part)
    last = choice.finish()
    return chosen if last is None else [*chosen, last]


class LttbBuckets:
    """Where the buckets of largest-triangle-three-buckets lie, and the mean of each.

    The first and the last row are buckets of their own; the rows between are divided as evenly as whole rows allow:
    bucket i of the k between begins at row 1 + i * (count - 2) // k.

    Source: S. Steinarsson, "Downsampling Time Series for Visual Representation", MSc thesis, University of Iceland,
    2013, section 4.2.
    """

    def __init__(self, count: int, most: int) -> None:
        inner = most - 2
        self.starts: Int64s = np.concatenate(([0], 1 + np.arange(inner) * (count - 2) // inner, [count - 1]))
        self._count = np.zeros(most)
        self._ts = np.zeros(most)
        self._value = np.zeros(most)
        self.origin: int | None = None

    def bucket(self, at: int, rows: int) -> Int64s:
        """Return the bucket of each of `rows` rows, the first of which is number `at`."""
        return self.starts.searchsorted(np.arange(at, at + rows), "right") - 1

    def add(self, at: int, ts: Int64s, values: Float64s) -> None:
        """Add rows to the means; the first of them is number `at`."""
        if self.origin is None:
            self.origin = int(ts[0])  # far from the epoch, microseconds would not fit the means
        bucket = self.bucket(at, len(ts))
        size = len(self._count)
        self._count += np.bincount(bucket, minlength=size)
        self._ts += np.bincount(bucket, ts - self.origin, size)
        self._value += np.bincount(bucket, values, size)

    def means(self) -> tuple[Float64s, Float64s]:
        """Return mean time since `origin` in microseconds, and mean value, of each bucket."""
        count = np.maximum(self._count, 1)
        return self._ts / count, self._value / count


class LttbChoice:
    """Chooses, of each bucket, the row with the largest triangle; rows come in order, in parts of any size."""

    def __init__(self, buckets: LttbBuckets) -> None:
        self._buckets = buckets
        self._mean_ts, self._mean_value = buckets.means()
        self._bucket = 0
        self._best: tuple[float, Rows, float, float] | None = None  # area, row, time, value
        self._left: tuple[float, float] = (0.0, 0.0)

    def add(self, at: int, part: Rows, values: Float64s) -> Rows | None:
        """Take the next rows; returns the rows chosen from buckets that have ended."""
        bucket = self._buckets.bucket(at, len(part))
        ts = (part.ts - (self._buckets.origin or 0)).astype(np.float64)
        starts = np.flatnonzero(np.concatenate(([True], bucket[1:] != bucket[:-1])))
        ends = np.append(starts[1:], len(part)).tolist()
        chosen = []
        for number, low, high in zip(bucket[starts].tolist(), starts.tolist(), ends, strict=True):
            if number != self._bucket:
                ended = self.finish()
                if ended is not None:
                    chosen.append(ended)
                self._bucket = number
            self._look(number, part, ts[low:high], values[low:high], low)
        return concat(chosen) if chosen else None

    def _look(self, number: int, part: Rows, ts: Float64s, values: Float64s, low: int) -> None:
        if number + 1 < len(self._mean_ts) and number:
            left_ts, left_value = self._left
            across, up = left_ts - self._mean_ts[number + 1], self._mean_value[number + 1] - left_value
            # Twice the area of the triangle (left, row, mean of the next bucket).
            area = np.abs(across * (values - left_value) - (left_ts - ts) * up)
            best = int(area.argmax())
            size = float(area[best])
        else:  # the first and the last row stand for themselves
            best, size = len(ts) - 1, 0.0
        if self._best is None or size > self._best[0]:
            row = part.take(slice(low + best, low + best + 1))
            self._best = (size, row, float(ts[best]), float(values[best]))

    def finish(self) -> Rows | None:
        """Return the row chosen from the bucket that has just ended; None = it had none."""
        if self._best is None:
            return None
        _, row, *self_left = self._best
        self._left = (self_left[0], self_left[1])
        self._best = None
        return row


class MinMax:
    """Chooses the smallest and the largest row of equal spans of time; rows come in order, in parts of any size."""

    def __init__(self, first: int, last: int, spans: int, kind: ChannelKind) -> None:
        length = last - first + 1
        # Python's integers: a span of centuries times the number of spans is beyond 64 bits.
        self._edges = np.array([first - (-number * length // spans) for number in range(spans)], np.int64)
        self._kind = kind
        self._found: list[Rows] = []
        self._open: Rows | None = None  # what is known of the span that goes on

    def add(self, part: Rows) -> None:
        """Take the next rows."""
        rows = part if self._open is None else concat([self._open, part])
        span = self._edges.searchsorted(rows.ts, "right") - 1
        chosen = rows.take(_extremes(span, as_float64(np.ascontiguousarray(rows.value), self._kind)))
        span = self._edges.searchsorted(chosen.ts, "right") - 1
        going_on = span == span[-1]
        self._found.append(chosen.take(~going_on))
        self._open = chosen.take(going_on)

    def finish(self) -> list[Rows]:
        """Return the chosen rows, by event time."""
        return self._found if self._open is None else [*self._found, self._open]


def _extremes(group: npt.NDArray[np.intp], values: Float64s) -> npt.NDArray[np.intp]:
    """Return, ascending, where the first smallest and the first largest value of each group of neighbours is."""
    starts = np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))
    sizes = np.diff(np.append(starts, len(group)))
    numbers = np.arange(len(group))
    found = []
    for extreme in (np.minimum, np.maximum):
        hit = values == np.repeat(extreme.reduceat(values, starts), sizes)
        found.append(np.minimum.reduceat(np.where(hit, numbers, len(group)), starts))
    return np.unique(np.concatenate(found))
