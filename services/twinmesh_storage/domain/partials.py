"""Partial results per cell, a bucket of a series: of any rows, to be combined with those of any others, in any order.

That they combine is what lets a block's statistics stand for its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_storage.domain.parts import Summaries

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

_NEVER: Final = 1 << 62


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
    INCREASE = 9
    RATE = 10
    TIME_WEIGHTED_MEAN = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Results of groups of rows, one element each; a cell occurs once, and no group is empty."""

    cell: Int64s
    count: Int64s
    total: Float64s
    m2: Float64s
    minimum: Float64s
    maximum: Float64s
    first: Float64s
    first_ts: Int64s
    last: Float64s
    last_ts: Int64s


class Partials:
    """Count, sum, squared deviations, extremes, first and last of each cell.

    Attributes:
        count: int64 [cells].
        last, last_ts: float64 and int64 [cells], the last value and its event time; NaN, and a time before all, where
            there is none.
    """

    def __init__(self, cells: int) -> None:
        self.count = np.zeros(cells, np.int64)
        self._sum = np.zeros(cells)
        self._m2 = np.zeros(cells)
        self._minimum = np.full(cells, np.inf)
        self._maximum = np.full(cells, -np.inf)
        self._first = np.full(cells, np.nan)
        self._first_ts = np.full(cells, _NEVER, np.int64)
        self.last = np.full(cells, np.nan)
        self.last_ts = np.full(cells, -_NEVER, np.int64)

    def add_rows(self, cells: Int64s, ts: Int64s, values: Float64s) -> None:
        """Add values; those of one cell are neighbours and by event time."""
        if not len(cells):
            return
        starts = _starts(cells)
        ends = np.append(starts[1:], len(cells))
        count = ends - starts
        with np.errstate(over="ignore", invalid="ignore"):  # the sum of huge values may be infinite; that is its value
            total = np.add.reduceat(values, starts)
            deviation = values - np.repeat(total / count, count)
            m2 = np.add.reduceat(deviation * deviation, starts)
        self._add(
            Groups(
                cell=cells[starts],
                count=count,
                total=total,
                m2=m2,
                minimum=np.minimum.reduceat(values, starts),
                maximum=np.maximum.reduceat(values, starts),
                first=values[starts],
                first_ts=ts[starts],
                last=values[ends - 1],
                last_ts=ts[ends - 1],
            )
        )

    def add_summaries(self, cells: Int64s, blocks: Summaries) -> None:
        """Add the GOOD values of blocks that have some; those of one cell are neighbours and by event time."""
        if not len(cells):
            return
        starts = _starts(cells)
        ends = np.append(starts[1:], len(cells))
        good: Int64s = blocks["good"]
        count = np.add.reduceat(good, starts)
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.add.reduceat(blocks["sum"], starts)
            # Source: Chan, Golub and LeVeque (1979), as in `_add`.
            deviation = blocks["sum"] / good - np.repeat(total / count, ends - starts)
            m2 = np.add.reduceat(blocks["m2"] + deviation * deviation * good, starts)
        self._add(
            Groups(
                cell=cells[starts],
                count=count,
                total=total,
                m2=m2,
                minimum=np.minimum.reduceat(blocks["minimum"], starts),
                maximum=np.maximum.reduceat(blocks["maximum"], starts),
                first=blocks["first"][starts],
                first_ts=blocks["t0"][starts],
                last=blocks["last"][ends - 1],
                last_ts=blocks["t1"][ends - 1],
            )
        )

    def _add(self, more: Groups) -> None:
        at = more.cell
        had = self.count[at]
        with np.errstate(over="ignore", invalid="ignore"):
            # Source: Chan, Golub and LeVeque (1979), equation for combining two samples.
            delta = more.total / more.count - self._sum[at] / np.maximum(had, 1)
            self._m2[at] += more.m2 + np.where(had > 0, delta**2 * had * more.count / (had + more.count), 0.0)
            self._sum[at] += more.total
        earlier = more.first_ts < self._first_ts[at]
        self._first[at] = np.where(earlier, more.first, self._first[at])
        self._first_ts[at] = np.where(earlier, more.first_ts, self._first_ts[at])
        later = more.last_ts > self.last_ts[at]
        self.last[at] = np.where(later, more.last, self.last[at])
        self.last_ts[at] = np.where(later, more.last_ts, self.last_ts[at])
        self._minimum[at] = np.minimum(self._minimum[at], more.minimum)
        self._maximum[at] = np.maximum(self._maximum[at], more.maximum)
        self.count[at] += more.count

    def column(self, function: Function) -> Float64s:
        """Return one result per cell, float64 [cells]; NaN = no value (COUNT: 0)."""
        none = self.count == 0
        many = np.maximum(self.count, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            match function:
                case Function.COUNT:
                    return self.count.astype(np.float64)
                case Function.MIN:
                    return np.where(none, np.nan, self._minimum)
                case Function.MAX:
                    return np.where(none, np.nan, self._maximum)
                case Function.MEAN:
                    return np.where(none, np.nan, self._sum / many)
                case Function.SUM:
                    return np.where(none, np.nan, self._sum)
                case Function.FIRST:
                    return self._first
                case Function.LAST:
                    return self.last
                case Function.STDDEV:
                    return np.where(self.count > 1, np.sqrt(self._m2 / np.maximum(many - 1, 1)), np.nan)
        raise AssertionError(f"{function.name} is not a partial result")


COMBINABLE: Final = frozenset(range(Function.COUNT, Function.STDDEV + 1))
"""Functions that the statistics of blocks suffice for."""


def _starts(cells: Int64s) -> npt.NDArray[np.intp]:
    return np.flatnonzero(np.concatenate(([True], cells[1:] != cells[:-1])))
