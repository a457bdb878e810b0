"""Windows: aligned matrices (steps x channels) of recent history, the one thing that models eat.

Step i of a window that ends at `at` covers [at - (steps - i) * step, at - (steps - i - 1) * step). Everything here is
pure and vectorised over all series of a request. A window never looks at or beyond `at`, and a step's value does not
depend on where the window begins (except where `max_gap` is unlimited and history ends), so the same moment reads
equal in a training set and when serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from twinmesh_core.kinds import ChannelKind
from twinmesh_storage.domain.rows import Rows, as_float64

Float64s = npt.NDArray[np.float64]


class StepAggregate(IntEnum):
    """How the values within one step become one; numbers equal ``twinmesh.storage.v1.StepAggregate``."""

    DEFAULT = 0
    """MEAN for gauges, LAST for the others."""
    MEAN = 1
    LAST = 2
    MIN = 3
    MAX = 4


class GapPolicy(IntEnum):
    """How steps without a value are filled; numbers equal ``twinmesh.storage.v1.GapPolicy``."""

    UNSPECIFIED = 0
    NONE = 1
    HOLD = 2
    LINEAR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSpec:
    """What a window looks like.

    Attributes:
        step_us: length of a step, microseconds.
        steps: number of steps.
        max_gap_us: longest gap filled; 0 = no limit.
        max_quality: greatest quality number (least trust) used.
        as_of_offset: rows with a higher offset are not seen; 0 = all are.
    """

    step_us: int
    steps: int
    aggregate: StepAggregate = StepAggregate.DEFAULT
    gap_policy: GapPolicy = GapPolicy.NONE
    max_gap_us: int = 0
    max_quality: int = 2
    as_of_offset: int = 0

    @property
    def fills(self) -> bool:
        """Whether empty steps are filled."""
        return self.gap_policy in (GapPolicy.HOLD, GapPolicy.LINEAR)

    @property
    def gap_steps(self) -> int:
        """Longest gap filled, in whole steps; a number beyond every window when there is no limit."""
        return self.max_gap_us // self.step_us if self.max_gap_us else 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The input of one column of a window: rows of one series, in parts whose event times follow one another.

    Attributes:
        kind: of the channel.
        at: end of the window, a multiple of the step.
        parts: rows that may reach beyond the window on both sides.
    """

    kind: ChannelKind
    at: int
    parts: tuple[Rows, ...]


def usable(rows: Rows, spec: WindowSpec) -> Rows:
    """Return the rows that quality and as-of offset let a window see."""
    keep = rows.quality <= spec.max_quality
    if spec.as_of_offset:
        keep &= rows.offset <= spec.as_of_offset
    return rows if keep.all() else rows.take(keep)


def build_windows(columns: Sequence[Column], spec: WindowSpec) -> tuple[Float64s, Float64s]:
    """Return the steps of each column, filled, and the share of steps that had a value before filling.

    Args:
        columns: k columns.

    Returns:
        float64 [k, steps] with NaN = missing, and float64 [k].
    """
    k, steps = len(columns), spec.steps
    starts = np.array([c.at - steps * spec.step_us for c in columns], np.int64)
    values, last_values = _steps(columns, starts, spec)
    coverage: Float64s = np.count_nonzero(~np.isnan(values), axis=1) / steps if k else np.empty(0)
    if not spec.fills:
        return values, coverage
    gaps = np.flatnonzero(np.isnan(values).any(axis=1)).tolist()
    for hold in (True, False):
        rows = [r for r in gaps if (spec.gap_policy is GapPolicy.HOLD or columns[r].kind not in _SMOOTH) is hold]
        if not rows:
            continue
        carried = [_carry(columns[r], int(starts[r]), spec) for r in rows]
        if hold:
            values[rows] = _held(values[rows], last_values[rows], carried, spec)
        else:
            values[rows] = _lines(values[rows], carried, spec)
    return values, coverage


_SMOOTH = (ChannelKind.GAUGE, ChannelKind.COUNTER)


def _steps(columns: Sequence[Column], starts: npt.NDArray[np.int64], spec: WindowSpec) -> tuple[Float64s, Float64s]:
    """Return the aggregate and the last value of each step, float64 [k, steps] each; NaN = no value."""
    out = np.full((len(columns), spec.steps), np.nan)
    pieces: list[tuple[int, Rows, Float64s]] = []
    for number, (column, start) in enumerate(zip(columns, starts.tolist(), strict=True)):
        for part in column.parts:
            low, high = part.ts.searchsorted((start, column.at)).tolist()
            if high > low:
                rows = part if high - low == len(part) else part.take(slice(low, high))
                pieces.append((number, rows, as_float64(rows.value, column.kind)))
    pieces = _place_regular(pieces, starts, spec, out)
    last_out = out.copy() if spec.fills else out
    if not pieces:
        return out, last_out
    sizes = [len(rows) for _, rows, _ in pieces]
    numbers = np.repeat(np.array([n for n, _, _ in pieces], np.int64), sizes)
    ts = np.concatenate([rows.ts for _, rows, _ in pieces])
    values = np.concatenate([v for _, _, v in pieces])
    quality = np.concatenate([rows.quality for _, rows, _ in pieces])
    keep = quality <= spec.max_quality
    if spec.as_of_offset:
        keep &= np.concatenate([rows.offset for _, rows, _ in pieces]) <= spec.as_of_offset
    if not keep.all():
        numbers, ts, values = numbers[keep], ts[keep], values[keep]
        if not len(ts):
            return out, last_out
    # Rows come by column and time, so the rows of one step are neighbours.
    cells = (ts - starts[numbers]) // spec.step_us + numbers * spec.steps
    first = np.flatnonzero(np.concatenate(([True], cells[1:] != cells[:-1])))
    ends = np.append(first[1:], len(cells))
    filled = cells[first]
    lasts = values[ends - 1]
    flat = out.reshape(-1)
    flat[filled] = _aggregated(values, first, ends, lasts, filled // spec.steps, columns, spec)
    if last_out is not out:
        last_out.reshape(-1)[filled] = lasts
    return out, last_out


def _place_regular(
    pieces: Sequence[tuple[int, Rows, Float64s]], starts: npt.NDArray[np.int64], spec: WindowSpec, out: Float64s
) -> list[tuple[int, Rows, Float64s]]:
    """Put columns that have exactly one row in every step straight into `out`; returns the pieces of the others.

    Telemetry read at its own interval is like this, and needs no grouping.
    """
    steps = spec.steps
    whole = [piece for piece in pieces if len(piece[1]) == steps]
    if not whole:
        return list(pieces)
    numbers = np.array([number for number, _, _ in whole], np.int64)
    into = np.concatenate([rows.ts for _, rows, _ in whole]).reshape(len(whole), steps)
    into = into - starts[numbers][:, None]
    into -= np.arange(steps) * spec.step_us
    # As unsigned numbers, times before their step are huge: one comparison tests both bounds.
    regular: npt.NDArray[np.bool_] = np.all(into.view(np.uint64) < spec.step_us, axis=1)
    chosen = [piece for piece, fits in zip(whole, regular.tolist(), strict=True) if fits]
    if chosen:
        values = np.concatenate([v for _, _, v in chosen])
        seen = np.concatenate([rows.quality for _, rows, _ in chosen]) <= spec.max_quality
        if spec.as_of_offset:
            seen &= np.concatenate([rows.offset for _, rows, _ in chosen]) <= spec.as_of_offset
        if not seen.all():
            values = np.where(seen, values, np.nan)
        out[numbers[regular]] = values.reshape(len(chosen), steps)
    placed = set(numbers[regular].tolist())
    return [piece for piece in pieces if piece[0] not in placed]


def _aggregated(
    values: Float64s,
    first: npt.NDArray[np.intp],
    ends: npt.NDArray[np.intp],
    lasts: Float64s,
    numbers: npt.NDArray[np.int64],
    columns: Sequence[Column],
    spec: WindowSpec,
) -> Float64s:
    """Return one value per group of neighbouring rows that `first` and `ends` bound."""
    if len(first) == len(values) or spec.aggregate is StepAggregate.LAST:
        return lasts
    if spec.aggregate is StepAggregate.MIN:
        return np.minimum.reduceat(values, first)
    if spec.aggregate is StepAggregate.MAX:
        return np.maximum.reduceat(values, first)
    means: Float64s = np.add.reduceat(values, first) / (ends - first)
    if spec.aggregate is StepAggregate.MEAN:
        return means
    is_gauge = np.array([c.kind is ChannelKind.GAUGE for c in columns], np.bool_)
    return means if is_gauge.all() else np.where(is_gauge[numbers], means, lasts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Carry:
    """The newest step with a value before a window: its index (negative), its aggregate and its last value."""

    step: int
    value: float
    last: float


def _carry(column: Column, start: int, spec: WindowSpec) -> _Carry | None:
    """Return what a window inherits from before its start, None = nothing."""
    before = [part.take(slice(0, int(part.ts.searchsorted(start)))) for part in column.parts]
    before = [rows for rows in (usable(part, spec) for part in before if len(part)) if len(rows)]
    if not before:
        return None
    newest = int(before[-1].ts[-1])
    step = (newest - start) // spec.step_us
    step_start = start + step * spec.step_us
    if -step > spec.gap_steps:
        return None
    single = WindowSpec(
        step_us=spec.step_us,
        steps=1,
        aggregate=spec.aggregate,
        max_quality=spec.max_quality,
        as_of_offset=spec.as_of_offset,
    )
    end = step_start + spec.step_us
    values, _ = _steps(
        [Column(kind=column.kind, at=end, parts=tuple(before))], np.array([step_start], np.int64), single
    )
    last = as_float64(before[-1].value[-1:], column.kind)
    return _Carry(step=step, value=float(values[0, 0]), last=float(last[0]))


def _held(values: Float64s, lasts: Float64s, carried: Sequence[_Carry | None], spec: WindowSpec) -> Float64s:
    """Return the steps with empty ones filled by the last value before, at most `gap_steps` back."""
    steps = values.shape[1]
    present = ~np.isnan(values)
    index = np.where(present, np.arange(steps), -1)
    np.maximum.accumulate(index, axis=1, out=index)
    source = np.take_along_axis(lasts, np.maximum(index, 0), axis=1)
    from_before = index < 0
    if from_before.any():
        steps_before = np.array([c.step if c else -(1 << 61) for c in carried], np.int64)
        inherited = np.array([c.last if c else np.nan for c in carried])
        index = np.where(from_before, steps_before[:, None], index)
        source = np.where(from_before, inherited[:, None], source)
    age = np.arange(steps) - index
    filled: Float64s = np.where(present, values, np.where(age <= spec.gap_steps, source, np.nan))
    return filled


def _lines(values: Float64s, carried: Sequence[_Carry | None], spec: WindowSpec) -> Float64s:
    """Return the steps with gaps bridged by straight lines between neighbours at most `gap_steps` apart."""
    out = values.copy()
    grid = np.arange(values.shape[1])
    for row, carry in enumerate(carried):
        known = np.flatnonzero(~np.isnan(values[row]))
        if len(known) in (0, len(grid)):
            continue
        heights = values[row, known]
        if carry is not None:
            known = np.concatenate(([carry.step], known))
            heights = np.concatenate(([carry.value], heights))
        empty = grid[np.isnan(values[row]) & (grid > known[0]) & (grid < known[-1])]
        right = known.searchsorted(empty)
        bridged = empty[known[right] - known[right - 1] <= spec.gap_steps]
        out[row, bridged] = np.interp(bridged, known, heights)
    return out
