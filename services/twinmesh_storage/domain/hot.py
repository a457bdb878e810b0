"""Hot rows: recent folded history kept unpacked per series, so that windows need neither database nor decoding.

For each series it holds, this has *all* folded rows from `since` on. Folds are merged in at once, those of another
process with the rows that leave the tail here; only when the tail begins anew is everything forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_storage.domain.rows import Lane, Rows, concat, merge
from twinmesh_storage.domain.tail import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class HotSeries:
    """All folded rows of a series with event time >= since, by event time."""

    since: int
    rows: Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Even:
    """How the rows of a series lie in time where they are evenly spaced, as telemetry at its own interval is.

    Attributes:
        start: first event time.
        step: between two rows, microseconds.
        worst: greatest quality number (least trust) of any row.
        value: int64 [n], the values (64 bits each).
    """

    start: int
    step: int
    worst: int
    value: npt.NDArray[np.int64] = field(compare=False)

    @classmethod
    def of(cls, rows: Rows) -> Even | None:
        """Return how rows lie, None = not evenly, or fewer than two."""
        if len(rows) < 2:
            return None
        steps = rows.ts[1:] - rows.ts[:-1]
        step = int(steps[0])
        if not (steps == step).all():
            return None
        return cls(start=int(rows.ts[0]), step=step, worst=int(rows.quality.max()), value=rows.value)


_UNKNOWN: Final = Even(start=0, step=0, worst=0, value=np.empty(0, np.int64))


class HotRows:
    """A bounded set of series, the longest unused ones leaving first.

    Args:
        max_rows: bound over all series.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._rows = 0
        self._series: OrderedDict[int, HotSeries] = OrderedDict()
        self._even: dict[int, Even | None] = {}  # of series that are here, since their rows last changed
        self._version = 0

    @property
    def version(self) -> int:
        """Changes whenever a fold was merged in; see `put`."""
        return self._version

    def get(self, series_id: int, since: int) -> Rows | None:
        """Return the folded rows of a series from at most `since` on; None = not here."""
        hot = self._series.get(series_id)
        if hot is None or hot.since > since:
            return None
        self._series.move_to_end(series_id)
        return hot.rows

    def even(self, series_id: int, since: int) -> Even | None:
        """Return how the rows of a series lie; None = not here from `since` on, or not evenly spaced."""
        return self.evens((series_id,), since)[0]

    def evens(self, series_ids: Iterable[int], since: int) -> list[Even | None]:
        """Return `even` of each of the series: windows ask for hundreds at once."""
        get, known, touch = self._series.get, self._even.get, self._series.move_to_end
        found: list[Even | None] = []
        for series_id in series_ids:
            hot = get(series_id)
            even = None
            if hot is not None and hot.since <= since:
                even = known(series_id, _UNKNOWN)
                if even is _UNKNOWN:
                    even = self._even[series_id] = Even.of(hot.rows)
                if even is not None:
                    touch(series_id)
            found.append(even)
        return found

    def peek(self, series_id: int) -> HotSeries | None:
        """Return what is here of a series, without counting it as used."""
        return self._series.get(series_id)

    def newest_used(self) -> Iterator[int]:
        """Yield the series held, the last used first."""
        return reversed(self._series)

    def forget(self, series: Iterable[int]) -> None:
        """Forget series: their folded rows are not what they were."""
        self._version += 1
        for series_id in series:
            self._remove(series_id)

    def put(self, series_id: int, hot: HotSeries, version: int) -> None:
        """Keep what was read from blocks since `version`; ignored if a fold happened meanwhile, which it may lack."""
        if version != self._version or len(hot.rows) > self._max_rows:
            return
        self._remove(series_id)
        self._series[series_id] = hot
        self._rows += len(hot.rows)
        while self._rows > self._max_rows:
            self._remove(next(iter(self._series)))

    def absorb(self, fresh: Mapping[Lane, Run]) -> None:
        """Merge in what a fold put into blocks: readable rows, by lane."""
        self._version += 1
        for run in fresh.values():
            for at in np.flatnonzero(np.isin(run.keys, list(self._series))).tolist():
                series_id = int(run.keys[at])
                hot = self._series[series_id]
                rows = run.rows.take(slice(int(run.starts[at]), int(run.starts[at + 1])))
                rows = rows.take(rows.ts >= hot.since)
                if not len(rows):
                    continue
                later = not len(hot.rows) or rows.ts[0] > hot.rows.ts[-1]
                merged = concat([hot.rows, rows]) if later else merge([hot.rows, rows])
                self._rows += len(merged) - len(hot.rows)
                self._series[series_id] = HotSeries(since=hot.since, rows=merged)
                self._even.pop(series_id, None)

    def clear(self) -> None:
        """Forget everything."""
        self._version += 1
        self._series.clear()
        self._even.clear()
        self._rows = 0

    def _remove(self, series_id: int) -> None:
        gone = self._series.pop(series_id, None)
        self._even.pop(series_id, None)
        self._rows -= len(gone.rows) if gone is not None else 0
