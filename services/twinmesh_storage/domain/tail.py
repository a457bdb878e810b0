"""The tail: rows of the log that are not folded into blocks yet, found by series.

Appending costs nothing but a reference; rows are sorted when somebody reads, or when they are folded, and then only
once: fresh segments become a sorted *run*, and small runs are merged. Runs are gathered into *generations* of
consecutive offsets, and a generation leaves as a whole once its last offset is folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_storage.domain.entries import LogEntry
from twinmesh_storage.domain.folding import Hide, uncovered, without
from twinmesh_storage.domain.rows import Lane, Rows, Segment, concat, from_segments, merge, sort_rows

GENERATION_ROWS: Final = 2_000_000
"""A generation is closed at this many rows: the most that one fold takes, and one sort handles.

While folds keep up they take less. One that lags gets more rows of each series at once, which costs less per row."""
_MAX_RUNS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """Rows sorted by (series, event time, offset), and where each series begins.

    Attributes:
        keys: int64 [k], the series that occur, ascending.
        starts: intp [k + 1], first row of each, and the row count.
    """

    lane: Lane
    rows: Rows
    keys: npt.NDArray[np.int64]
    starts: npt.NDArray[np.intp]

    @classmethod
    def of(cls, lane: Lane, rows: Rows) -> Run:
        """Sort rows into a run."""
        ordered = sort_rows(rows)
        if not len(ordered):
            return cls(lane=lane, rows=ordered, keys=ordered.series, starts=np.zeros(1, np.intp))
        starts = np.flatnonzero(np.concatenate(([True], ordered.series[1:] != ordered.series[:-1])))
        return cls(
            lane=lane, rows=ordered, keys=ordered.series[starts], starts=np.append(starts, len(ordered)).astype(np.intp)
        )

    def find(self, series: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return the first row and the row after the last of each series asked for; equal = none."""
        at = np.searchsorted(self.keys, series)
        inside = np.minimum(at, len(self.keys) - 1)
        found = self.keys[inside] == series
        return np.where(found, self.starts[inside], 0), np.where(found, self.starts[inside + 1], 0)

    def select(self, series_id: int, start: int, end: int) -> Rows | None:
        """Return the rows of a series with start <= event time < end; None = none."""
        at = int(np.searchsorted(self.keys, series_id))
        if at == len(self.keys) or self.keys[at] != series_id:
            return None
        first, last = int(self.starts[at]), int(self.starts[at + 1])
        low, high = np.searchsorted(self.rows.ts[first:last], (start, end)).tolist()
        return self.rows.take(slice(first + low, first + high)) if high > low else None


@dataclass(slots=True)
class Generation:
    """Entries with first <= offset <= last: sorted runs, and segments that are not sorted yet.

    Attributes:
        commits: (first offset, commit time) of each commit that its entries came with, in order.
        hides: its deletions, in order.
    """

    first: int
    last: int
    opened_s: float
    row_count: int = 0
    closed: bool = False
    runs: tuple[Run, ...] = ()
    pending: list[tuple[int, Segment]] = field(default_factory=list)
    commits: list[tuple[int, int]] = field(default_factory=list)
    hides: list[Hide] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """What sorting a generation's pending segments gave: the `fresh` runs, and all runs after merging."""

    generation: Generation
    taken: int
    fresh: tuple[Run, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TailView:
    """The tail at one moment: every row with base < offset <= head is in the runs.

    Attributes:
        hides: deletions that are not folded yet: what they cover may be in the runs and in what is folded alike, so
            every reader passes its rows through `visible` once it has merged them.
    """

    base: int
    head: int
    runs: tuple[Run, ...]
    hides: tuple[Hide, ...] = ()

    def hides_of(self, series_id: int, start: int, end: int) -> list[Hide]:
        """Return the deletions that concern a series between two event times."""
        return [h for h in self.hides if series_id in h.series_ids and h.start < end and h.end > start]

    def visible(self, series_id: int, rows: Rows, as_of_offset: int = 0) -> Rows:
        """Return the rows of one series that no deletion hides; as of an offset (0 = now) later ones do not count."""
        for hide in self.hides:
            if series_id in hide.series_ids and len(rows) and (not as_of_offset or hide.offset <= as_of_offset):
                rows = without(rows, hide)
        return rows

    def row_count(self) -> int:
        """Return how many rows it holds, superseded ones included."""
        return sum(len(run.rows) for run in self.runs)

    def series(self) -> npt.NDArray[np.int64]:
        """Return the series that occur, ascending."""
        return np.unique(np.concatenate([run.keys for run in self.runs])) if self.runs else np.empty(0, np.int64)

    def select(self, series_id: int, start: int, end: int) -> list[Rows]:
        """Return the rows of a series with start <= event time < end, one part per run."""
        parts = (run.select(series_id, start, end) for run in self.runs)
        return [part for part in parts if part is not None]


class Tail:
    """Uncompacted rows of all tenants; not thread-safe, except that `index` may run in a thread (see there)."""

    def __init__(self, base: int = 0) -> None:
        self._base = base
        self._head = base
        self._rows = 0
        self._generations: list[Generation] = []

    @property
    def row_count(self) -> int:
        """Rows held."""
        return self._rows

    @property
    def head(self) -> int:
        """Offset of the newest entry appended."""
        return self._head

    @property
    def base(self) -> int:
        """Entries after this offset are in the tail."""
        return self._base

    def reset(self, base: int) -> None:
        """Forget everything; the next entry appended is base + 1."""
        self._base = self._head = base
        self._rows = 0
        self._generations.clear()

    def append(self, entry: LogEntry, now_s: float, hide: Hide | None = None) -> None:
        """Add the next entry, with what it hides; `entry.segments` must be there (none for a control entry)."""
        segments = entry.segments or ()
        self._head = entry.offset
        if not segments and hide is None:
            if self._generations and not self._generations[-1].closed:
                self._generations[-1].last = entry.offset
            return
        if not self._generations or self._generations[-1].closed:
            self._generations.append(Generation(entry.offset, entry.offset, now_s))
        generation = self._generations[-1]
        generation.last = entry.offset
        if not generation.commits or generation.commits[-1][1] != entry.commit_time_unix_us:
            generation.commits.append((entry.offset, entry.commit_time_unix_us))
        if hide is not None:
            generation.hides.append(hide)
        for segment in segments:
            generation.pending.append((entry.offset, segment))
            generation.row_count += len(segment)
            self._rows += len(segment)
        generation.closed = generation.row_count >= GENERATION_ROWS

    def unindexed_rows(self) -> int:
        """Return how many rows `index` would sort now."""
        return sum(len(segment) for generation in self._generations for _, segment in generation.pending)

    def take_pending(self) -> list[tuple[Generation, list[tuple[int, Segment]]]]:
        """Return the segments to be sorted; on the owner's thread, followed by `sort_pending` and `put_sorted`."""
        return [(g, list(g.pending)) for g in self._generations if g.pending]

    @staticmethod
    def sort_pending(
        work: Sequence[tuple[Generation, list[tuple[int, Segment]]]],
    ) -> list[Sorted]:
        """Sort segments into runs and merge small runs; pure, on any thread."""
        done: list[Sorted] = []
        for generation, pending in work:
            fresh = []
            for lane in Lane:
                parts = [(offset, s) for offset, s in pending if s.lane is lane]
                if parts:
                    fresh.append(Run.of(lane, from_segments(parts)))
            runs = merge_runs((*generation.runs, *fresh))
            done.append(Sorted(generation=generation, taken=len(pending), fresh=tuple(fresh), runs=runs))
        return done

    def put_sorted(self, done: Sequence[Sorted]) -> None:
        """Install sorted runs; on the owner's thread. Segments appended meanwhile stay pending."""
        for one in done:
            one.generation.runs = one.runs
            del one.generation.pending[: one.taken]

    def view(self) -> TailView:
        """Return the sorted rows; the caller has indexed everything up to the head it relies on."""
        head = self._head
        for generation in self._generations:
            if generation.pending:
                head = generation.pending[0][0] - 1
                break
        return TailView(
            base=self._base,
            head=head,
            runs=tuple(run for g in self._generations for run in g.runs),
            hides=self.hides(),
        )

    def hides(self) -> tuple[Hide, ...]:
        """Return the deletions that are not folded yet."""
        return tuple(hide for g in self._generations for hide in g.hides)

    def oldest(self) -> Generation | None:
        """Return the generation to be folded next, None = there is none."""
        return self._generations[0] if self._generations else None

    def generation_count(self) -> int:
        """Return how many generations there are."""
        return len(self._generations)

    def leaving(self, fold_offset: int) -> tuple[list[Run], list[Hide]]:
        """Return the sorted rows, and the deletions, that `drop_through` would forget."""
        gone = [g for g in self._generations if g.last <= fold_offset]
        return [run for g in gone for run in g.runs], [hide for g in gone for hide in g.hides]

    def drop_through(self, fold_offset: int) -> None:
        """Forget generations that lie wholly in blocks."""
        while self._generations and self._generations[0].last <= fold_offset:
            gone = self._generations.pop(0)
            self._rows -= gone.row_count
        # A generation folded in part stays whole; its rows are then in blocks too, which merging does not mind.
        first = self._generations[0].first - 1 if self._generations else min(fold_offset, self._head)
        self._base = max(self._base, min(first, fold_offset))

    def seal(self) -> None:
        """Close the open generation, so that it can be folded while new rows gather in the next one."""
        if self._generations:
            self._generations[-1].closed = True


def merge_runs(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Keep the number of runs per lane small, at the price of sorting each row a few times at most."""
    kept: list[Run] = []
    for lane in Lane:
        of_lane = [run for run in runs if run.lane is lane]
        while len(of_lane) > 1 and (len(of_lane) > _MAX_RUNS or len(of_lane[-2].rows) <= 2 * len(of_lane[-1].rows)):
            last, before = of_lane.pop(), of_lane.pop()
            of_lane.append(Run.of(lane, concat([before.rows, last.rows])))
        kept.extend(of_lane)
    return tuple(kept)


def winners_by_lane(runs: Sequence[Run], hides: Sequence[Hide]) -> dict[Lane, Run]:
    """Return the readable rows of runs, by lane: what a fold puts into history."""
    return {
        lane: Run.of(lane, uncovered(merge([run.rows for run in runs if run.lane is lane]), hides))
        for lane in Lane
        if any(run.lane is lane for run in runs)
    }
