"""Aggregates per bucket of time, from rows or, where a part lies within one bucket, from its statistics.

Values that are not BAD count. Both ways give the same result (a property test holds them together), since a partial
result of any part of the rows can be combined with that of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.calendar import local_time_us
from twinmesh_core.errors import invalid_field
from twinmesh_core.quality import Quality
from twinmesh_core.time import US_PER_DAY, ceil_to, floor_to
from twinmesh_storage.domain.history import History, Page, cut
from twinmesh_storage.domain.parts import Part, Statistics
from twinmesh_storage.domain.rows import Rows, as_float64, merge
from twinmesh_storage.domain.series import Series

Float64s = npt.NDArray[np.float64]
MAX_VALUES: Final = 8_000_000


class Function(IntEnum):
    """A function over the values of a bucket; numbers equal ``twinmesh.storage.v1.AggregateFunction``."""

    COUNT = 1
    MIN = 2
    MAX = 3
    MEAN = 4
    SUM = 5
    FIRST = 6
    LAST = 7
    STDDEV = 8


@dataclass(slots=True)
class Partials:
    """Partial results of some rows of one series, one element per bucket; parts are added in the order of time."""

    count: npt.NDArray[np.int64]
    sum: Float64s
    m2: Float64s
    minimum: Float64s
    maximum: Float64s
    first: Float64s
    last: Float64s

    @classmethod
    def empty(cls, buckets: int) -> Partials:
        """Return the partials of no rows."""
        return cls(
            count=np.zeros(buckets, np.int64),
            sum=np.zeros(buckets),
            m2=np.zeros(buckets),
            minimum=np.full(buckets, np.inf),
            maximum=np.full(buckets, -np.inf),
            first=np.full(buckets, np.nan),
            last=np.full(buckets, np.nan),
        )

    def add_rows(self, rows: Rows, values: Float64s, edges: npt.NDArray[np.int64]) -> None:
        """Add rows of one series, by event time, all within the edges and not BAD."""
        if not len(rows):
            return
        bucket = np.searchsorted(edges, rows.ts, "right") - 1
        first = np.flatnonzero(np.concatenate(([True], bucket[1:] != bucket[:-1])))
        ends = np.append(first[1:], len(bucket))
        count = ends - first
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.add.reduceat(values, first)
            mean = np.repeat(total / count, count)
            m2 = np.add.reduceat((values - mean) ** 2, first)
        self._add(
            bucket[first],
            count,
            total,
            m2,
            np.minimum.reduceat(values, first),
            np.maximum.reduceat(values, first),
            values[first],
            values[ends - 1],
        )

    def add_statistics(self, s: Statistics, count: int, bucket: int) -> None:
        """Add a part that lies wholly within a bucket and whose values that count are all GOOD."""
        at = np.array([bucket])
        self._add(
            at,
            np.array([count]),
            np.array([s.sum]),
            np.array([s.m2]),
            np.array([s.minimum]),
            np.array([s.maximum]),
            np.array([s.first]),
            np.array([s.last]),
        )

    def _add(
        self,
        at: npt.NDArray[np.intp],
        count: npt.NDArray[np.int64],
        total: Float64s,
        m2: Float64s,
        minimum: Float64s,
        maximum: Float64s,
        first: Float64s,
        last: Float64s,
    ) -> None:
        had = self.count[at]
        with np.errstate(over="ignore", invalid="ignore"):
            # Source: Chan, Golub and LeVeque (1979), equation for combining two samples.
            delta = total / count - self.sum[at] / np.maximum(had, 1)
            self.m2[at] += m2 + np.where(had > 0, delta**2 * had * count / (had + count), 0.0)
            self.sum[at] += total
        self.first[at] = np.where(had > 0, self.first[at], first)
        self.last[at] = last
        self.minimum[at] = np.minimum(self.minimum[at], minimum)
        self.maximum[at] = np.maximum(self.maximum[at], maximum)
        self.count[at] += count

    def result(self, functions: Sequence[Function]) -> Float64s:
        """Return float64 [bucket, function]; NaN = no value (COUNT: 0)."""
        none = self.count == 0
        count = np.maximum(self.count, 1)
        columns = {
            Function.COUNT: self.count.astype(np.float64),
            Function.MIN: np.where(none, np.nan, self.minimum),
            Function.MAX: np.where(none, np.nan, self.maximum),
            Function.MEAN: np.where(none, np.nan, self.sum / count),
            Function.SUM: np.where(none, np.nan, self.sum),
            Function.FIRST: self.first,
            Function.LAST: self.last,
            Function.STDDEV: np.where(self.count > 1, np.sqrt(self.m2 / np.maximum(count - 1, 1)), np.nan),
        }
        return np.stack([columns[f] for f in functions], axis=1)


def bucket_edges(start: int, end: int, bucket_us: int, time_zone: str, most: int) -> npt.NDArray[np.int64]:
    """Return the edges of the buckets that cover [start, end): int64 [buckets + 1].

    Buckets are aligned to the epoch; those of whole days to midnights of the zone, so that a day has 23 to 25 hours.

    Raises:
        InvalidArgument: more than `most` buckets, no such zone, or an end that is not after the start.
    """
    if end <= start:
        raise invalid_field("end_time", "must be after start_time")
    if (end - start) // bucket_us > most:
        raise invalid_field("bucket", f"gives more than {most} buckets; take a longer one or a shorter range")
    if bucket_us % US_PER_DAY or not time_zone:
        return np.arange(floor_to(start, bucket_us), ceil_to(end, bucket_us) + 1, bucket_us, dtype=np.int64)
    bounds = local_time_us(np.array([start, end - 1], np.int64), time_zone)
    first = floor_to(int(bounds[0]), bucket_us)
    last = floor_to(int(bounds[1]), bucket_us) + bucket_us
    return _from_local(np.arange(first, last + 1, bucket_us, dtype=np.int64), time_zone)


def _from_local(local: npt.NDArray[np.int64], time_zone: str) -> npt.NDArray[np.int64]:
    """Return the first moments at which clocks at the place show at least these times."""
    low, high = local - 2 * US_PER_DAY, local + 2 * US_PER_DAY
    while (high - low > 1).any():
        middle: npt.NDArray[np.int64] = (low + high) // 2
        reached = local_time_us(middle, time_zone) >= local
        high = np.where(reached, middle, high)
        low = np.where(reached, low, middle)
    return high


class Aggregator:
    """Aggregates series over buckets."""

    def __init__(self, *, history: History) -> None:
        self._history = history

    async def read(
        self, tenant: str, series: Sequence[Series], edges: npt.NDArray[np.int64], functions: Sequence[Function]
    ) -> Float64s:
        """Return float64 [series, bucket, function]; NaN = no value (COUNT: 0)."""
        partials = {s.series_id: Partials.empty(len(edges) - 1) for s in series}
        async for page in self._history.pages(tenant, series, int(edges[0]), int(edges[-1])):
            add_page(page, edges, partials)
        return np.stack([partials[s.series_id].result(functions) for s in series])


def add_page(page: Page, edges: npt.NDArray[np.int64], partials: dict[int, Partials]) -> None:
    """Add what store and tail of a page hold; a part within one bucket and untouched by the tail is not unpacked."""
    by_series: dict[int, list[Part]] = {}
    for part in page.parts:
        by_series.setdefault(part.series_id, []).append(part)
    for one in page.series:
        into = partials[one.series_id]
        parts = by_series.get(one.series_id, [])
        fresh = page.tail.select(one.series_id, page.start, page.end)
        if fresh or (parts and page.tail.hides_of(one.series_id, page.start, page.end)):
            # Corrections and deletions may lie anywhere: merge row by row.
            rows = merge([*(cut(p.rows(), page.start, page.end) for p in parts), *fresh])
            _add_rows(into, one, page.tail.visible(one.series_id, rows), edges)
            continue
        for part in parts:
            bucket = int(np.searchsorted(edges, part.t0, "right")) - 1
            whole = page.start <= part.t0 and part.t1 < page.end and part.counts[1] == 0
            if part.statistics is not None and whole and part.t1 < edges[bucket + 1]:
                into.add_statistics(part.statistics, part.counts[0], bucket)
            else:
                _add_rows(into, one, cut(part.rows(), page.start, page.end), edges)


def _add_rows(into: Partials, series: Series, rows: Rows, edges: npt.NDArray[np.int64]) -> None:
    usable = rows.take(rows.quality < Quality.BAD)
    into.add_rows(usable, as_float64(usable.value, series.kind), edges)
