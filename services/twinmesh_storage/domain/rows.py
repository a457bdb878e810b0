"""Observations inside storage: parallel columns over many series, and how they are merged.

Numeric values of every kind travel as 64 *bits* (the float64's, or the int64 itself; bools 0 and 1), texts and JSON
documents as `bytes` objects, so that merging, cutting and storing know no kinds. There are two *lanes*: rows of one
lane share the dtype of `value` (int64 or object) and are never mixed.

One row per (series, event time) is readable: the one with the highest offset, and within one entry the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, Section, TextSection

Int64s = npt.NDArray[np.int64]
Values = npt.NDArray[Any]


class Lane(IntEnum):
    """Which of the two value representations a series uses."""

    NUMERIC = 0
    TEXT = 1

    @classmethod
    def of(cls, kind: ChannelKind) -> Lane:
        """Return the lane of series of this kind."""
        return cls.NUMERIC if kind.numeric else cls.TEXT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """Rows of one lane of one batch, in the order sent; their offset is the entry's.

    Attributes:
        series: int64 [n], series ids.
        ts: int64 [n], event time, microseconds since the Unix epoch.
        value: int64 bits or object (bytes) [n].
        quality: uint8 [n], 1..3.
    """

    lane: Lane
    series: Int64s
    ts: Int64s
    value: Values
    quality: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.ts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Rows of one lane with their offsets.

    Attributes:
        series: int64 [n], series ids.
        ts: int64 [n], event time, microseconds since the Unix epoch.
        value: int64 bits or object (bytes) [n].
        quality: uint8 [n], 1..3.
        offset: int64 [n], offset of the entry that brought the row.
    """

    series: Int64s
    ts: Int64s
    value: Values
    quality: npt.NDArray[np.uint8]
    offset: Int64s

    def __len__(self) -> int:
        return len(self.ts)

    def after(self, offset: int) -> Rows:
        """Return the rows of later entries than this."""
        later = self.offset > offset
        return self if later.all() else self.take(later)

    def take(self, rows: slice | npt.NDArray[Any]) -> Rows:
        """Return the rows that a slice, a mask or row numbers select."""
        return Rows(
            series=self.series[rows],
            ts=self.ts[rows],
            value=self.value[rows],
            quality=self.quality[rows],
            offset=self.offset[rows],
        )


def no_rows(lane: Lane) -> Rows:
    """Return zero rows of a lane."""
    return Rows(
        series=np.empty(0, np.int64),
        ts=np.empty(0, np.int64),
        value=np.empty(0, np.int64 if lane is Lane.NUMERIC else object),
        quality=np.empty(0, np.uint8),
        offset=np.empty(0, np.int64),
    )


def concat(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts, in order; at least one part, all of one lane."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        series=np.concatenate([p.series for p in parts]),
        ts=np.concatenate([p.ts for p in parts]),
        value=np.concatenate([p.value for p in parts]),
        quality=np.concatenate([p.quality for p in parts]),
        offset=np.concatenate([p.offset for p in parts]),
    )


def from_segments(parts: Sequence[tuple[int, Segment]]) -> Rows:
    """Return the rows of (offset, segment) pairs as one; at least one pair, all of one lane.

    The earliest segment comes first, which leaves less to be sorted; those that begin alike keep their order.
    """
    parts = sorted(parts, key=lambda part: int(part[1].ts[0]) if len(part[1]) else 0)
    return Rows(
        series=np.concatenate([s.series for _, s in parts]),
        ts=np.concatenate([s.ts for _, s in parts]),
        value=np.concatenate([s.value for _, s in parts]),
        quality=np.concatenate([s.quality for _, s in parts]),
        offset=np.repeat([offset for offset, _ in parts], [len(s) for _, s in parts]).astype(np.int64, copy=False),
    )


def sort_rows(rows: Rows) -> Rows:
    """Return the rows by (series, event time, offset); rows equal in all three keep their order."""
    if len(rows) < 2 or _is_sorted(rows):
        return rows
    return rows.take(_order(rows))


def _order(rows: Rows) -> npt.NDArray[np.intp]:
    """Return the order of `sort_rows`; by one key of series and time where both fit in 64 bits.

    Batches arrive in the order of time, so once rows are gathered by series, which counting does, they mostly lie in
    order, and a stable sort of the key has little left to do: several times faster than sorting by three columns.
    """
    least, earliest = int(rows.series.min()), int(rows.ts.min())
    most, span = int(rows.series.max()) - least, int(rows.ts.max()) - earliest + 1
    if (most + 1) * span >= 1 << 63:
        return np.lexsort((rows.offset, rows.ts, rows.series))
    series = rows.series - least
    key = series * span + (rows.ts - earliest)
    order = _by_number(series, most)
    sorted_key = key[order]
    if (sorted_key[1:] < sorted_key[:-1]).any():
        again = np.argsort(sorted_key, kind="stable")
        order, sorted_key = order[again], sorted_key[again]
    same = sorted_key[1:] == sorted_key[:-1]
    if same.any():
        tied = np.zeros(len(order), np.bool_)
        tied[1:] |= same
        tied[:-1] |= same
        few = order[tied]
        order[tied] = few[np.lexsort((rows.offset[few], key[few]))]
    return order


def _by_number(numbers: Int64s, most: int) -> npt.NDArray[np.intp]:
    """Return the stable order of numbers from 0 to `most`; numpy counts those of 16 bits instead of comparing them."""
    order = np.argsort(numbers.astype(np.uint16), kind="stable")  # by the low 16 bits
    shift = 16
    while most >> shift:
        order = order[np.argsort((numbers[order] >> shift).astype(np.uint16), kind="stable")]
        shift += 16
    return order


def _is_sorted(rows: Rows) -> bool:
    series, ts, offset = rows.series, rows.ts, rows.offset
    same_series = series[1:] == series[:-1]
    same_ts = ts[1:] == ts[:-1]
    in_order = (series[1:] > series[:-1]) | (
        same_series & ((ts[1:] > ts[:-1]) | (same_ts & (offset[1:] >= offset[:-1])))
    )
    return bool(in_order.all())


def winners(rows: Rows) -> Rows:
    """Return, of rows in `sort_rows` order, the readable one per (series, event time): the last of each."""
    if len(rows) < 2:
        return rows
    last = np.empty(len(rows), np.bool_)
    last[-1] = True
    np.not_equal(rows.ts[1:], rows.ts[:-1], out=last[:-1])
    last[:-1] |= rows.series[1:] != rows.series[:-1]
    return rows if last.all() else rows.take(last)


def merge(parts: Sequence[Rows]) -> Rows:
    """Return the readable rows of several sets, sorted by (series, event time); at least one part.

    The law that everything rests on: merging is independent of how the rows were divided into parts.
    """
    filled = [p for p in parts if len(p)]
    if not filled:
        return parts[0]
    return winners(sort_rows(concat(filled)))


_DOUBLE_KINDS: Final = (ChannelKind.GAUGE, ChannelKind.COUNTER)


def to_bits(kind_values: Values) -> Int64s:
    """Return float64, int64 or uint8 values as the 64 bits that rows carry."""
    if kind_values.dtype == np.float64:
        return kind_values.view(np.int64)
    return kind_values.astype(np.int64, copy=False)


def as_float64(bits: Int64s, kind: ChannelKind) -> npt.NDArray[np.float64]:
    """Return the numeric values that the bits of a series of this kind stand for."""
    return bits.view(np.float64) if kind in _DOUBLE_KINDS else bits.astype(np.float64)


def segments_of(batch: ObservationBatch, ids: Int64s) -> tuple[Segment, ...]:
    """Return the rows of a landed batch, one segment per filled section.

    A quality that is not stated reads as GOOD.

    Args:
        batch: its handles have been checked.
        ids: int64 [k], the series id of each handle.
    """
    return tuple(
        Segment(
            lane=Lane.TEXT if isinstance(section, TextSection) else Lane.NUMERIC,
            series=ids[section.series],
            ts=section.time_unix_us,
            value=_section_values(section),
            quality=np.maximum(section.quality, 1),
        )
        for _, section in batch.sections()
        if len(section)
    )


def _section_values(section: Section | TextSection) -> Values:
    if isinstance(section, Section):
        return to_bits(section.values)
    texts = np.empty(len(section), object)
    texts[:] = list(section.texts())
    return texts
