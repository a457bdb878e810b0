"""Blocks: the readable rows of one series over a span of time, packed, with statistics beside them.

Blocks of a series never overlap and hold one row per event time. A block stays within its series' *cell* (a fixed
span that follows the expected interval), so that history can later be partitioned and dropped by time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.quality import Quality
from twinmesh_storage.domain import columns
from twinmesh_storage.domain.parts import Statistics
from twinmesh_storage.domain.rows import Lane, Rows
from twinmesh_storage.domain.series import Series

MAX_BLOCK_ROWS: Final = 4096
"""Most rows of one block: what a read of a single value has to unpack."""
SMALL_BLOCK_ROWS: Final = 1024
"""A block with fewer rows is to be merged with its neighbours, sooner or later (see `merging`)."""

SeriesOf = Callable[[int], Series]
"""Finds the series of an id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block row; a `Part`.

    Attributes:
        t0: first event time, microseconds since the Unix epoch.
        t1: last event time, included.
        counts: rows by quality GOOD, UNCERTAIN, BAD.
        max_offset: highest offset of its rows.
        statistics: of GOOD numeric values; None = there is none.
        ts, val, quality, log_offset: packed columns (see `columns`).
    """

    tenant: str
    series_id: int
    t0: int
    t1: int
    n: int
    counts: tuple[int, int, int]
    max_offset: int
    statistics: Statistics | None
    ts: bytes
    val: bytes
    quality: bytes
    log_offset: bytes

    @property
    def key(self) -> tuple[str, int, int]:
        """Its primary key."""
        return self.tenant, self.series_id, self.t0

    @property
    def lane(self) -> Lane:
        """The lane of its rows."""
        return Lane.TEXT if self.val[0] == columns.TEXT else Lane.NUMERIC

    @property
    def size(self) -> int:
        """Bytes of its packed columns."""
        return len(self.ts) + len(self.val) + len(self.quality) + len(self.log_offset)

    def rows(self) -> Rows:
        """Unpack its rows, by event time."""
        n = self.n
        return Rows(
            series=np.full(n, self.series_id, np.int64),
            ts=columns.decode_ints(self.ts, n),
            value=decode_values(self.val, n),
            quality=columns.decode_bytes(self.quality, n),
            offset=columns.decode_ints(self.log_offset, n),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpan:
    """Where new rows of a series fall within one cell.

    Attributes:
        first: first event time.
        last: last event time, included.
        n: number of rows.
        small: blocks right before the span with fewer rows than this are merged with it.
    """

    tenant: str
    series_id: int
    cell_start: int
    first: int
    last: int
    n: int
    small: int = 0


def spans_of(rows: Rows, series_of: SeriesOf) -> list[BlockSpan]:
    """Return, of rows sorted by (series, event time), where they fall: one span per series and cell."""
    if not len(rows):
        return []
    cells, edges = _cut(rows, series_of, max_rows=None)
    firsts, lasts = rows.ts[edges[:-1]].tolist(), rows.ts[edges[1:] - 1].tolist()
    starts = edges[:-1]
    columns = (rows.series[starts].tolist(), cells[starts].tolist(), firsts, lasts, np.diff(edges).tolist())
    return [
        BlockSpan(tenant=series_of(series_id).tenant, series_id=series_id, cell_start=cell, first=first, last=last, n=n)
        for series_id, cell, first, last, n in zip(*columns, strict=True)
    ]


def build_blocks(rows: Rows, lane: Lane, series_of: SeriesOf, max_rows: int = MAX_BLOCK_ROWS) -> list[Block]:
    """Pack readable rows, sorted by (series, event time) and without doubles, into blocks."""
    if not len(rows):
        return []
    _, edges = _cut(rows, series_of, max_rows=max_rows)
    starts = edges[:-1]
    counts = np.stack([_count(rows.quality == q, starts) for q in (Quality.GOOD, Quality.UNCERTAIN, Quality.BAD)])
    max_offsets = np.maximum.reduceat(rows.offset, starts).tolist()
    statistics = _statistics(rows, edges, counts[0], series_of) if lane is Lane.NUMERIC else [None] * len(starts)
    even, step, one_quality, one_offset = (column.tolist() for column in _simple(rows, edges))
    blocks = []
    bounds = edges.tolist()
    for i, (start, end) in enumerate(pairwise(bounds)):
        part = rows.take(slice(start, end))
        series = series_of(int(part.series[0]))
        t0 = int(part.ts[0])
        blocks.append(
            Block(
                tenant=series.tenant,
                series_id=series.series_id,
                t0=t0,
                t1=int(part.ts[-1]),
                n=end - start,
                counts=(int(counts[0, i]), int(counts[1, i]), int(counts[2, i])),
                max_offset=max_offsets[i],
                statistics=statistics[i],
                ts=columns.even_times(t0, step[i]) if even[i] else columns.encode_times(part.ts),
                val=encode_values(part.value, series),
                quality=columns.constant_byte(int(part.quality[0]))
                if one_quality[i]
                else columns.encode_bytes(part.quality),
                log_offset=columns.constant_int(max_offsets[i]) if one_offset[i] else columns.encode_ints(part.offset),
            )
        )
    return blocks


def _simple(rows: Rows, edges: npt.NDArray[np.intp]) -> tuple[npt.NDArray[Any], ...]:
    """Return per block: whether its times are even and by which step, and whether it has one quality, one offset.

    Most blocks of live series are so in all three, which is seen for all blocks at once.
    """
    starts, ends = edges[:-1], edges[1:]
    steps = np.zeros(len(rows), np.int64)
    steps[:-1] = rows.ts[1:] - rows.ts[:-1]
    step = steps[starts]
    steps[ends - 1] = step  # what lies between two blocks is no step of either
    several = ends - starts > 1
    even = several & (np.minimum.reduceat(steps, starts) == np.maximum.reduceat(steps, starts))
    one_quality = np.minimum.reduceat(rows.quality, starts) == np.maximum.reduceat(rows.quality, starts)
    one_offset = np.minimum.reduceat(rows.offset, starts) == np.maximum.reduceat(rows.offset, starts)
    return even, step, one_quality, one_offset


def encode_values(value: npt.NDArray[Any], series: Series) -> bytes:
    """Pack the values of rows of one series."""
    if Lane.of(series.kind) is Lane.TEXT:
        return columns.encode_texts(value)
    return columns.encode_doubles(value) if series.kind.has_unit else columns.encode_ints(value)


def decode_values(data: bytes, n: int) -> npt.NDArray[Any]:
    """Unpack values: int64 bits or object [n]."""
    return columns.decode_texts(data, n) if data[0] == columns.TEXT else columns.decode_ints(data, n)


def cut_by_cell(rows: Rows, series_of: SeriesOf) -> npt.NDArray[np.intp]:
    """Return the edges, 0, ..., n, of pieces of rows by (series, event time) that a block could hold each."""
    return _cut(rows, series_of, max_rows=MAX_BLOCK_ROWS)[1]


def _cut(rows: Rows, series_of: SeriesOf, max_rows: int | None) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
    """Return each row's cell start, and the edges between groups: 0, ..., n."""
    n = len(rows)
    series_starts = np.flatnonzero(np.concatenate(([True], rows.series[1:] != rows.series[:-1])))
    spans = np.array([series_of(s).cell_us for s in rows.series[series_starts].tolist()], np.int64)
    cell_us = np.repeat(spans, np.diff(np.append(series_starts, n)))
    cells = rows.ts - rows.ts % cell_us
    new = np.concatenate(([True], (rows.series[1:] != rows.series[:-1]) | (cells[1:] != cells[:-1])))
    if max_rows is not None:
        starts = np.flatnonzero(new)
        rank = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
        new |= rank % max_rows == 0
    return cells, np.append(np.flatnonzero(new), n)


def _count(mask: npt.NDArray[np.bool_], starts: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    return np.add.reduceat(mask.astype(np.int64), starts)


def _statistics(
    rows: Rows, edges: npt.NDArray[np.intp], good_counts: npt.NDArray[np.int64], series_of: SeriesOf
) -> list[Statistics | None]:
    starts = edges[:-1]
    sizes = np.diff(edges)
    values = float_values(rows, starts, series_of)
    good = rows.quality == Quality.GOOD
    low = np.minimum.reduceat(np.where(good, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(good, values, -np.inf), starts)
    with np.errstate(over="ignore", invalid="ignore"):  # the sum of huge values may be infinite; that is its value
        total = np.add.reduceat(np.where(good, values, 0.0), starts)
        mean = np.repeat(total / np.maximum(good_counts, 1), sizes)
        m2 = np.add.reduceat(np.where(good, (values - mean) ** 2, 0.0), starts)
    numbers = np.arange(len(rows))
    first = np.minimum.reduceat(np.where(good, numbers, len(rows) - 1), starts)
    last = np.maximum.reduceat(np.where(good, numbers, 0), starts)
    return [
        Statistics(
            minimum=float(low[i]),
            maximum=float(high[i]),
            sum=float(total[i]),
            m2=float(m2[i]),
            first=float(values[first[i]]),
            last=float(values[last[i]]),
        )
        if good_counts[i]
        else None
        for i in range(len(starts))
    ]


def float_values(
    rows: Rows, starts: Sequence[int] | npt.NDArray[np.intp], series_of: SeriesOf
) -> npt.NDArray[np.float64]:
    """Return the numeric values of rows, float64 [n]; within each group that begins at `starts` the series is one."""
    doubles = np.array([series_of(s).kind.has_unit for s in rows.series[starts].tolist()], np.bool_)
    is_double = np.repeat(doubles, np.diff(np.append(starts, len(rows))))
    if is_double.all():
        return as_float64_bits(rows.value)
    return np.where(is_double, as_float64_bits(rows.value), rows.value.astype(np.float64))


def as_float64_bits(bits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the float64 values of these bits (a view where the array allows it)."""
    return np.ascontiguousarray(bits).view(np.float64)
