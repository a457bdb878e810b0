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
from twinmesh_storage.domain import column_sets, columns
from twinmesh_storage.domain.parts import Statistics
from twinmesh_storage.domain.rows import Int64s, Lane, Rows
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
    columns = (rows.series[starts].tolist(), cells.tolist(), firsts, lasts, np.diff(edges).tolist())
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
    counts = _counts(rows.quality, edges)
    max_offsets = np.maximum.reduceat(rows.offset, starts).tolist()
    statistics = _statistics(rows, edges, counts[0], series_of) if lane is Lane.NUMERIC else [None] * len(starts)
    ids = rows.series[starts].tolist()
    packed = zip(
        column_sets.pack_times(rows.ts, edges),
        _pack_values(rows, lane, edges, [series_of(series_id) for series_id in ids]),
        column_sets.pack_bytes(rows.quality, edges),
        column_sets.pack_ints(rows.offset, edges),
        strict=True,
    )
    firsts, lasts, sizes = rows.ts[starts].tolist(), rows.ts[edges[1:] - 1].tolist(), np.diff(edges).tolist()
    of_each = zip(ids, firsts, lasts, sizes, counts.T.tolist(), max_offsets, statistics, packed, strict=True)
    return [
        Block(
            tenant=series_of(series_id).tenant,
            series_id=series_id,
            t0=first,
            t1=last,
            n=n,
            counts=(count[0], count[1], count[2]),
            max_offset=max_offset,
            statistics=statistic,
            ts=ts,
            val=val,
            quality=quality,
            log_offset=log_offset,
        )
        for series_id, first, last, n, count, max_offset, statistic, (ts, val, quality, log_offset) in of_each
    ]


def _pack_values(rows: Rows, lane: Lane, edges: npt.NDArray[np.intp], series: Sequence[Series]) -> list[bytes]:
    """Return the packed values of each block; those of one type are packed at once."""
    if lane is Lane.TEXT:
        return [columns.encode_texts(rows.value[start:end]) for start, end in pairwise(edges.tolist())]
    doubles = np.array([one.kind.has_unit for one in series], np.bool_)
    if doubles.all():
        return column_sets.pack_doubles(rows.value, edges)
    if not doubles.any():
        return column_sets.pack_ints(rows.value, edges)
    of_row = np.repeat(doubles, np.diff(edges))
    found = [b""] * len(series)
    for mine, is_mine, pack in (
        (doubles, of_row, column_sets.pack_doubles),
        (~doubles, ~of_row, column_sets.pack_ints),
    ):
        sizes = np.diff(edges)[mine]
        packed = pack(rows.value[is_mine], np.append(0, np.cumsum(sizes)))
        for block, column in zip(np.flatnonzero(mine).tolist(), packed, strict=True):
            found[block] = column
    return found


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


def _cut(rows: Rows, series_of: SeriesOf, max_rows: int | None) -> tuple[Int64s, npt.NDArray[np.intp]]:
    """Return the cell start of each group of rows, and the edges between groups: 0, ..., n."""
    n = len(rows)
    new = np.concatenate(([True], rows.series[1:] != rows.series[:-1]))
    first = np.flatnonzero(new)
    sizes = np.diff(np.append(first, n))
    cell_us = np.array([series_of(s).cell_us for s in rows.series[first].tolist()], np.int64)
    # A fold mostly brings a series rows of one cell, which its first and last row tell.
    several = rows.ts[first] // cell_us != rows.ts[first + sizes - 1] // cell_us
    if several.any():
        mine = np.flatnonzero(np.repeat(several, sizes))
        cells = rows.ts[mine] // np.repeat(cell_us[several], sizes[several])
        new[mine[1:][cells[1:] != cells[:-1]]] = True
    starts = np.flatnonzero(new)
    if max_rows is not None:
        ends = np.append(starts[1:], n)
        long = np.flatnonzero(ends - starts > max_rows).tolist()
        starts = np.sort(np.concatenate([starts, *(np.arange(starts[i] + max_rows, ends[i], max_rows) for i in long)]))
    times, cell_us = rows.ts[starts], cell_us[np.searchsorted(first, starts, "right") - 1]
    return times - times % cell_us, np.append(starts, n)


def _counts(quality: npt.NDArray[np.uint8], edges: npt.NDArray[np.intp]) -> Int64s:
    """Return how many rows of each group are GOOD, UNCERTAIN and BAD, int64 [3, groups]."""
    if (quality == Quality.GOOD).all():
        sizes = np.diff(edges)
        return np.stack([sizes, np.zeros_like(sizes), np.zeros_like(sizes)])
    each = (quality == q for q in (Quality.GOOD, Quality.UNCERTAIN, Quality.BAD))
    return np.stack([np.add.reduceat(mask.astype(np.int64), edges[:-1]) for mask in each])


def _statistics(
    rows: Rows, edges: npt.NDArray[np.intp], good_counts: npt.NDArray[np.int64], series_of: SeriesOf
) -> list[Statistics | None]:
    starts = edges[:-1]
    sizes = np.diff(edges)
    values = float_values(rows, starts, series_of)
    good = rows.quality == Quality.GOOD
    if good.all():
        return _of_good(values, edges)
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


def _of_good(values: npt.NDArray[np.float64], edges: npt.NDArray[np.intp]) -> list[Statistics | None]:
    """Return the statistics of groups whose rows are all GOOD."""
    starts, sizes = edges[:-1], np.diff(edges)
    with np.errstate(over="ignore", invalid="ignore"):  # as with those that are not
        total = np.add.reduceat(values, starts)
        apart = values - np.repeat(total / sizes, sizes)
        apart *= apart
        m2 = np.add.reduceat(apart, starts)
    columns = (
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
        total,
        m2,
        values[starts],
        values[edges[1:] - 1],
    )
    return [
        Statistics(minimum=low, maximum=high, sum=sum_, m2=m2, first=first, last=last)
        for low, high, sum_, m2, first, last in zip(*(column.tolist() for column in columns), strict=True)
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
