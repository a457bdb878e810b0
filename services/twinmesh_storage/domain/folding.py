"""What a fold does to rows, whatever form they are kept in: which stay readable, and which are moved aside.

Per (series, event time) the highest offset is readable. A row that loses to a newer one, or that a hide covers, is
*superseded*: it was readable from its own offset on, until the offset that superseded it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_storage.domain.rows import Int64s, Lane, Rows, concat, sort_rows

_NEVER: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Hide:
    """A deletion at `offset`: rows of these series with start <= event time < end and a lower offset disappear.

    Attributes:
        erases: it begins an erasure: bodies kept in memory must go as well.
        drops: the rows were kept long enough: they are removed, and not moved aside.
    """

    tenant: str
    series_ids: frozenset[int]
    start: int
    end: int
    offset: int
    erases: bool = False
    drops: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CommitTimes:
    """When the entries of a fold were committed.

    Attributes:
        offsets: int64 [k], ascending: the first offset of each commit.
        times: int64 [k], microseconds since the Unix epoch.
    """

    offsets: Int64s
    times: Int64s

    @classmethod
    def of(cls, commits: Sequence[tuple[int, int]]) -> CommitTimes:
        """Return the times of (first offset, commit time) pairs, in order."""
        pairs = np.array(commits, np.int64).reshape(-1, 2)
        return cls(offsets=pairs[:, 0], times=pairs[:, 1])

    def at(self, offsets: Int64s) -> Int64s:
        """Return the commit time of each offset; those before the first commit known get its time."""
        return self.times[np.maximum(np.searchsorted(self.offsets, offsets, "right") - 1, 0)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldWork:
    """What is to be folded: entries up to `fold_offset` that are not folded yet.

    Attributes:
        fresh: their rows by lane, losers included, by (series, event time, offset). Rows that lie at or below the
            stored fold offset are ignored.
        hides: their deletions.
        commit_times: of the entries.
    """

    fold_offset: int
    fresh: Mapping[Lane, Rows]
    hides: Sequence[Hide] = ()
    commit_times: CommitTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldResult:
    """What a fold wrote.

    Attributes:
        parts: blocks or batches written.
        rows_written: rows in them, those that had been folded before included; over the fresh rows it is the write
            amplification.
        bytes_written: of their packed columns; 0 where the form does not tell.
        superseded: rows moved aside.
        repeated: the fold offset had been reached before; nothing was written.
    """

    parts: int = 0
    rows_written: int = 0
    bytes_written: int = 0
    superseded: int = 0
    repeated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Superseded:
    """Rows moved aside, by (series, event time, offset).

    Attributes:
        by_offset: int64 [n], the offset from which on each is not readable any more; greater than its own.
    """

    rows: Rows
    by_offset: Int64s

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: slice | npt.NDArray[np.bool_]) -> Superseded:
        """Return the rows that a slice or mask selects."""
        return Superseded(rows=self.rows.take(rows), by_offset=self.by_offset[rows])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settled:
    """Rows after a fold: the readable ones by (series, event time), and those that it moved aside."""

    readable: Rows
    superseded: Superseded


def settle(parts: Sequence[Rows], hides: Sequence[Hide]) -> Settled:
    """Decide about all rows of the series and event times that a fold touches; at least one part, all of one lane.

    Rows that never were readable (a later row of the same entry has the same event time) are dropped.
    """
    rows = sort_rows(concat(parts))
    until = np.full(len(rows), _NEVER, np.int64)
    if len(rows) > 1:
        beaten = (rows.series[1:] == rows.series[:-1]) & (rows.ts[1:] == rows.ts[:-1])
        until[:-1][beaten] = rows.offset[1:][beaten]
    for hide in hides:
        covered = hidden_by(rows, hide)
        until[covered] = np.minimum(until[covered], hide.offset)
    stays = until == _NEVER
    if stays.all():
        return Settled(readable=rows, superseded=Superseded(rows=rows.take(slice(0, 0)), by_offset=until[:0]))
    aside = ~stays & (until > rows.offset)
    return Settled(readable=rows.take(stays), superseded=Superseded(rows=rows.take(aside), by_offset=until[aside]))


def hidden_by(rows: Rows, hide: Hide) -> npt.NDArray[np.bool_]:
    """Return which rows a hide covers."""
    return (
        np.isin(rows.series, list(hide.series_ids))
        & (rows.ts >= hide.start)
        & (rows.ts < hide.end)
        & (rows.offset < hide.offset)
    )


def without(rows: Rows, hide: Hide) -> Rows:
    """Return the rows of series that a hide names, without those that it covers."""
    covered = (rows.ts >= hide.start) & (rows.ts < hide.end) & (rows.offset < hide.offset)
    return rows.take(~covered) if covered.any() else rows


def uncovered(rows: Rows, hides: Sequence[Hide]) -> Rows:
    """Return the rows, of any series, that no hide covers."""
    for hide in hides:
        covered = hidden_by(rows, hide)
        if covered.any():
            rows = rows.take(~covered)
    return rows
