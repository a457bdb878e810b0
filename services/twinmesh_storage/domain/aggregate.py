"""Aggregates of series per bucket of time: from the statistics of blocks where they suffice, else from every value.

Both ways give the same result (a property test holds them together) under any division of the rows into blocks, tail
and superseded rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.kinds import ChannelKind
from twinmesh_storage.domain.division import Piece, Whole, counts, divide
from twinmesh_storage.domain.filling import fill
from twinmesh_storage.domain.history import MAX_TIME, MIN_TIME, TRUSTED, History, Seen
from twinmesh_storage.domain.partials import COMBINABLE, Function, Partials
from twinmesh_storage.domain.rows import Rows, as_float64
from twinmesh_storage.domain.series import Series
from twinmesh_storage.domain.timelines import Holding, Quantiles, Rises
from twinmesh_storage.domain.window import GapPolicy

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
MAX_VALUES: Final = 8_000_000
"""Most values of one answer."""

_FILLED: Final = (Function.MIN, Function.MAX, Function.MEAN, Function.FIRST, Function.LAST)
_RISES: Final = frozenset((Function.INCREASE, Function.RATE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of each bucket: functions, then quantiles, then seconds per state, a column each.

    Attributes:
        quantiles: levels, 0 to 1.
        states: values whose time is asked.
        max_gap_us: longest gap filled, and how long a value holds; 0 = no limit.
    """

    functions: tuple[Function, ...] = ()
    quantiles: tuple[float, ...] = ()
    states: tuple[float, ...] = ()
    seen: Seen = TRUSTED
    gap_policy: GapPolicy = GapPolicy.NONE
    max_gap_us: int = 0

    @property
    def columns(self) -> int:
        """Number of columns."""
        return len(self.functions) + len(self.quantiles) + len(self.states)

    @property
    def rises(self) -> bool:
        """Whether rises of counters are asked."""
        return not _RISES.isdisjoint(self.functions)

    @property
    def holds(self) -> bool:
        """Whether it matters how long values hold."""
        return bool(self.states) or Function.TIME_WEIGHTED_MEAN in self.functions

    @property
    def needs_every_value(self) -> bool:
        """Whether statistics of blocks do not suffice."""
        return bool(self.quantiles) or self.rises or self.holds

    @property
    def fills(self) -> bool:
        """Whether empty buckets are filled."""
        return self.gap_policy in (GapPolicy.HOLD, GapPolicy.LINEAR)

    @property
    def needs_before(self) -> bool:
        """Whether the newest value before the range matters."""
        return self.rises or self.holds or self.fills


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many rows of each series a read sees, and the event times of the first and the last; count 0 = none."""

    count: Int64s
    first: Int64s
    last: Int64s


class Aggregator:
    """Aggregates series over buckets."""

    def __init__(self, *, history: History) -> None:
        self._history = history

    async def read(self, tenant: str, series: Sequence[Series], edges: Int64s, question: Question) -> Float64s:
        """Return float64 [series, bucket, column]; NaN = no value (COUNT: 0).

        Raises:
            InvalidArgument: too many values in one bucket for quantiles.
        """
        before: dict[int, Rows] = {}
        if question.needs_before:
            wanted = [(one, int(edges[0])) for one in series]
            before = await self._history.newest(tenant, wanted, 1, question.seen)
        if question.needs_every_value:
            partials, columns = await self._from_values(tenant, series, edges, question, before)
        else:
            partials = Partials(len(series) * (len(edges) - 1))
            columns = {}
            await self._from_blocks(tenant, series, edges, question, partials)
        return _table(series, edges, question, partials, columns, before)

    async def tally(
        self, tenant: str, series: Sequence[Series], seen: Seen, start: int = MIN_TIME, end: int = MAX_TIME
    ) -> Tally:
        """Count the rows of series of any kind, within a range of event time; blocks are not unpacked for it."""
        count = np.zeros(len(series), np.int64)
        first, last = np.full(len(series), MAX_TIME), np.full(len(series), MIN_TIME)
        edges = np.array([start, end], np.int64)
        pieces = divide(self._history, tenant, series, edges, seen, all_rows_count=True, values_matter=False)
        async for piece in pieces:
            if isinstance(piece, Whole):
                np.add.at(count, piece.place, counts(piece.blocks, seen))
                np.minimum.at(first, piece.place, piece.blocks["t0"])
                np.maximum.at(last, piece.place, piece.blocks["t1"])
                continue
            for part in piece:
                count[part.place] += len(part.rows)
                first[part.place] = min(first[part.place], part.rows.ts[0])
                last[part.place] = max(last[part.place], part.rows.ts[-1])
        return Tally(count=count, first=first, last=last)

    async def _from_blocks(
        self, tenant: str, series: Sequence[Series], edges: Int64s, question: Question, into: Partials
    ) -> None:
        buckets = len(edges) - 1
        # Only filling asks when the last value was: the end of a block may be a row that is not trusted.
        pieces = divide(self._history, tenant, series, edges, question.seen, all_rows_count=question.fills)
        async for piece in pieces:
            if isinstance(piece, Whole):
                into.add_summaries(
                    piece.place * buckets + edges.searchsorted(piece.blocks["t0"], "right") - 1, piece.blocks
                )
            else:
                _add_parts(into, piece, series, edges)

    async def _from_values(
        self, tenant: str, series: Sequence[Series], edges: Int64s, question: Question, before: dict[int, Rows]
    ) -> tuple[Partials, dict[str, Float64s]]:
        """Return the partial results, and what comes of values in order: float64 [series, buckets, ...] by name."""
        partials = Partials(len(series) * (len(edges) - 1))
        lines = [_Line(one, edges, question, before.get(one.series_id)) for one in series]
        places = {one.series_id: place for place, one in enumerate(series)}
        async for parts in self._history.stream(tenant, series, int(edges[0]), int(edges[-1]), question.seen):
            found = [Piece(place=places[p.series.series_id], rows=p.rows) for p in parts if len(p.rows)]
            _add_parts(partials, found, series, edges)
            for part in found:
                lines[part.place].add(part.rows)
        for line in lines:
            line.finish()
        return partials, {
            "rise": np.stack([line.rises.rise for line in lines]),
            "span_us": np.stack([line.rises.span_us for line in lines]),
            "held": np.stack([line.holding.mean() for line in lines]),
            "states": np.stack([line.holding.states_s() for line in lines]),
            "quantiles": np.stack([line.quantiles.values for line in lines]),
        }


class _Line:
    """The values of one series in order, with the one before the range in front."""

    def __init__(self, series: Series, edges: Int64s, question: Question, before: Rows | None) -> None:
        self._kind = series.kind
        self._question = question
        self._until = int(edges[-1])
        self.rises = Rises(edges)
        self.holding = Holding(edges, question.states, question.max_gap_us)
        self.quantiles = Quantiles(edges, question.quantiles)
        has_before = before is not None and len(before) > 0
        self._last_ts = before.ts[-1:] if before is not None and has_before else np.empty(0, np.int64)
        self._last = as_float64(before.value[-1:], series.kind) if before is not None and has_before else np.empty(0)

    def add(self, rows: Rows) -> None:
        """Add rows that follow."""
        values = as_float64(np.ascontiguousarray(rows.value), self._kind)
        if self._question.quantiles:
            self.quantiles.add(rows.ts, values)
        if self._question.rises or self._question.holds:
            ts, values = np.append(self._last_ts, rows.ts), np.append(self._last, values)
            if self._question.rises:
                self.rises.add(ts, values)
            if self._question.holds:
                self.holding.add(ts[:-1], values[:-1], int(ts[-1]))
            self._last_ts, self._last = ts[-1:], values[-1:]

    def finish(self) -> None:
        """Take it that nothing follows."""
        self.quantiles.finish()
        if self._question.holds:
            self.holding.add(self._last_ts, self._last, self._until)


def _add_parts(into: Partials, parts: Sequence[Piece], series: Sequence[Series], edges: Int64s) -> None:
    if not parts:
        return
    ts = np.concatenate([part.rows.ts for part in parts])
    values = np.concatenate([as_float64(_contiguous(part.rows), series[part.place].kind) for part in parts])
    places = np.repeat([part.place for part in parts], [len(part.rows) for part in parts])
    cells = places * (len(edges) - 1) + edges.searchsorted(ts, "right") - 1
    into.add_rows(cells, ts, values)


def _contiguous(rows: Rows) -> Int64s:
    return np.ascontiguousarray(rows.value)


def _table(
    series: Sequence[Series],
    edges: Int64s,
    question: Question,
    partials: Partials,
    lines: dict[str, Float64s],
    before: dict[int, Rows],
) -> Float64s:
    """Return the columns side by side, empty buckets filled."""
    shape = (len(series), len(edges) - 1)
    count = partials.count.reshape(shape)
    out = np.empty((*shape, question.columns))
    filled = []
    for column, function in enumerate(question.functions):
        if function in COMBINABLE:
            out[:, :, column] = partials.column(function).reshape(shape)
            if function in _FILLED:
                filled.append(column)
        elif function is Function.TIME_WEIGHTED_MEAN:
            out[:, :, column] = lines["held"]
        elif function is Function.INCREASE:
            out[:, :, column] = np.where(count > 0, lines["rise"], np.nan)
        else:
            spans = lines["span_us"]
            out[:, :, column] = np.where(spans > 0, lines["rise"] / np.maximum(spans, 1) * 1e6, np.nan)
    at = len(question.functions)
    if question.quantiles:
        out[:, :, at : at + len(question.quantiles)] = lines["quantiles"]
        filled += range(at, at + len(question.quantiles))
    if question.states:
        out[:, :, at + len(question.quantiles) :] = lines["states"]
    if question.fills and filled:
        last, last_ts = _with_before(series, partials, shape, before)
        lines_allowed = np.array([one.kind in (ChannelKind.GAUGE, ChannelKind.COUNTER) for one in series])
        straight = lines_allowed & (question.gap_policy is GapPolicy.LINEAR)
        fill(out, filled, edges, count > 0, last, last_ts, straight, question.max_gap_us)
    return out


def _with_before(
    series: Sequence[Series], partials: Partials, shape: tuple[int, int], before: dict[int, Rows]
) -> tuple[Float64s, Int64s]:
    """Return last value and its event time of each bucket, that of before the range in front: [series, buckets + 1]."""
    last = np.full((shape[0], shape[1] + 1), np.nan)
    last_ts = np.full((shape[0], shape[1] + 1), MIN_TIME, np.int64)
    last[:, 1:], last_ts[:, 1:] = partials.last.reshape(shape), partials.last_ts.reshape(shape)
    for place, one in enumerate(series):
        rows = before.get(one.series_id)
        if rows is not None and len(rows):
            last[place, 0], last_ts[place, 0] = as_float64(_contiguous(rows), one.kind)[-1], rows.ts[-1]
    return last, last_ts
