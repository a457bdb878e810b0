"""Datasets: long matrices of twins cut into windows, in time order, so that no part sees another's answers.

::

    |<------------- fit ------------->| purge |<---- calibration ---->| purge |<------ held-out tail ------>|
    targets end before the purge gap            targets end before       origins from the tail's start on;
    origins start after one whole context       the purge gap            their windows may reach back into a gap

An origin `t` is a step edge: its window is the `context_steps` steps before it, its truth the `horizon_steps` steps
from it on. A purge gap is one window long, so no step that a later part reads is an answer of an earlier part.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.calendar import calendar_features
from twinmesh_core.errors import FailedPrecondition, Reason
from twinmesh_training.domain.values import TrainingSpec

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Origins = npt.NDArray[np.int64]
"""int64 [n, 2]: index of the history, index of the origin's step; ordered by time, then history."""

MAX_TARGET_MISSING: Final = 0.3
"""Largest share of missing steps of the target in a window; windows above it are dropped, and counted."""
MAX_WINDOW_MISSING: Final = 0.5
"""Largest share of missing cells of a whole window."""
MAX_TRUTH_MISSING: Final = 0.25
"""Largest share of missing steps in a truth."""
CALIBRATION_SHARE: Final = 0.2
"""Share of what precedes the held-out tail that calibrates intervals and selects the winner."""
MIN_FIT_WINDOWS: Final = 32
MIN_CALIBRATION_WINDOWS: Final = 16
MAX_FIT_WINDOWS: Final = 40_000
MAX_CALIBRATION_WINDOWS: Final = 4_000
MAX_EVALUATION_ROWS: Final = 100_000
_HOUR_US: Final = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One twin's past on the run's grid.

    Attributes:
        twin_id: whose.
        time_zone: IANA zone of its calendar.
        values: float64 [steps, channels], canonical units, NaN = missing; row i covers one step from
            ``start_us + i * step_us`` on.
        start_us: begin of row 0, microseconds since the Unix epoch; the same for all twins of a run.
    """

    twin_id: str
    time_zone: str
    values: Float64
    start_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Windows with their truths.

    Attributes:
        window: float32 [n, context, channels], NaN = missing.
        calendar: float32 [n, 4], `twinmesh_core.calendar.calendar_features` of the origin.
        future: float32 [n, horizon, controls]; for FORECAST no columns.
        truth: float64 [n, horizon], target units, NaN = missing.
    """

    window: Float32
    calendar: Float32
    future: Float32
    truth: Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What a run learns from and is judged by; see the module's picture.

    Attributes:
        spec: what is asked for.
        histories: the past of each twin.
        calendars: float32 [steps + 1, 4] per history: the calendar at each step's edge.
        fit, calibration, holdout: origins of the three parts, each thinned evenly to its bound.
        fit_end: first step whose truth no fit window may see (before the purge gap).
        holdout_start: step at which the held-out tail starts.
        dropped: windows left out of all parts because too much of them is missing.
    """

    spec: TrainingSpec
    histories: tuple[History, ...]
    calendars: tuple[Float32, ...]
    fit: Origins
    calibration: Origins
    holdout: Origins
    fit_end: int
    holdout_start: int
    dropped: int

    def batch(self, origins: Origins) -> Batch:
        """Return the windows of these origins; the caller bounds how many it takes at once."""
        spec = self.spec
        channels = spec.channels
        target = channels.index(spec.target)
        controls = [channels.index(c) for c in spec.controls]
        n, context, horizon = len(origins), spec.context_steps, spec.horizon_steps
        window = np.empty((n, context, len(channels)), np.float32)
        calendar = np.empty((n, 4), np.float32)
        future = np.empty((n, horizon, len(controls)), np.float32)
        truth = np.empty((n, horizon), np.float64)
        back, ahead = np.arange(-context, 0), np.arange(horizon)
        for index, history in enumerate(self.histories):
            rows = np.flatnonzero(origins[:, 0] == index)
            if not rows.size:
                continue
            at = origins[rows, 1]
            window[rows] = history.values[at[:, None] + back]
            calendar[rows] = self.calendars[index][at]
            coming = at[:, None] + ahead
            truth[rows] = history.values[coming, target]
            if controls:
                future[rows] = history.values[coming][:, :, controls]
        return Batch(window=window, calendar=calendar, future=future, truth=truth)

    def origin_time_us(self, origins: Origins) -> npt.NDArray[np.int64]:
        """Return the time of each origin: int64 [n], microseconds since the Unix epoch."""
        return self.histories[0].start_us + origins[:, 1] * self.spec.step_us

    def digest(self) -> str:
        """Return the sha256 (hex) of the matrices with their place in time: equal data give equal digests."""
        state = sha256()
        for history in self.histories:
            shape = f"{history.twin_id}\0{history.time_zone}\0{history.start_us}\0{history.values.shape}\0"
            state.update(shape.encode())
            # One bit pattern for every NaN, whatever path it came by.
            state.update(np.where(np.isnan(history.values), np.nan, history.values).astype("<f8").tobytes())
        return state.hexdigest()


def build_dataset(spec: TrainingSpec, histories: tuple[History, ...]) -> Dataset:
    """Cut histories that share one grid into the three parts.

    Raises:
        FailedPrecondition: NOT_ENOUGH_HISTORY, with the steps needed and available.
    """
    steps = len(histories[0].values)
    context, horizon = spec.context_steps, spec.horizon_steps
    holdout = round(spec.holdout_us / spec.step_us) if spec.holdout_us else steps // 3
    holdout_start = steps - holdout
    calibration = max(round((holdout_start - context) * CALIBRATION_SHARE), horizon + MIN_CALIBRATION_WINDOWS)
    calibration_end = holdout_start - context
    calibration_start = calibration_end - calibration
    fit_end = calibration_start - context
    if fit_end < context + horizon + MIN_FIT_WINDOWS or holdout < horizon:
        raise _not_enough(spec, steps, holdout)

    usable = tuple(_usable(spec, history) for history in histories)
    total = sum(max(0, len(mask) - context - horizon + 1) for mask in usable)
    kept = sum(int(mask.sum()) for mask in usable)
    fit = _origins(usable, context, fit_end - horizon)
    judged = _origins(usable, calibration_start, calibration_end - horizon)
    tail = _tail_origins(spec, usable, holdout_start, steps - horizon)
    if len(fit) < MIN_FIT_WINDOWS or len(judged) < MIN_CALIBRATION_WINDOWS or not len(tail):
        raise _not_enough(spec, steps, holdout, gaps=total - kept)
    return Dataset(
        spec=spec,
        histories=histories,
        calendars=tuple(_calendar(spec, history) for history in histories),
        fit=thin(fit, MAX_FIT_WINDOWS),
        calibration=thin(judged, MAX_CALIBRATION_WINDOWS),
        holdout=thin(tail, MAX_EVALUATION_ROWS),
        fit_end=fit_end,
        holdout_start=holdout_start,
        dropped=total - kept,
    )


def thin(origins: Origins, limit: int) -> Origins:
    """Return at most `limit` origins, evenly spread."""
    if len(origins) <= limit:
        return origins
    return origins[np.linspace(0, len(origins) - 1, limit).round().astype(np.int64)]


def needed_steps(spec: TrainingSpec, holdout: int) -> int:
    """Return the least number of steps of history with which a run of this shape can work."""
    context, horizon = spec.context_steps, spec.horizon_steps
    tail = max(holdout, horizon)
    fitted = 2 * context + horizon + MIN_FIT_WINDOWS
    # The calibration part is a share of what precedes the tail, but never shorter than its least.
    calibrated = context + fitted + horizon + MIN_CALIBRATION_WINDOWS
    before = max(calibrated, context + -(-fitted * 100 // round(100 * (1 - CALIBRATION_SHARE)))) + 1
    return tail + before if spec.holdout_us else max(tail + before, -(-before * 3 // 2))


def _not_enough(spec: TrainingSpec, steps: int, holdout: int, gaps: int = 0) -> FailedPrecondition:
    needed = needed_steps(spec, holdout)
    if gaps and steps >= needed:
        text = (
            f"{gaps:,} windows have too many missing values, and too few are left to learn from and to judge by. Take a"
            " longer step, fewer inputs or a longer stretch of history."
        )
    else:
        text = (
            f"There are {steps:,} steps of history and at least {needed:,} are needed for this context, horizon and"
            " held-out tail. Shorten them, take a shorter step, or start earlier."
        )
    return FailedPrecondition(
        text,
        reason=Reason.NOT_ENOUGH_HISTORY,
        metadata={"needed": str(needed), "available": str(steps), "dropped_windows": str(gaps)},
    )


def _usable(spec: TrainingSpec, history: History) -> npt.NDArray[np.bool_]:
    """bool [steps + 1]: whether an origin at this step has enough of its window and truth."""
    missing = np.isnan(history.values)
    target = spec.channels.index(spec.target)
    context, horizon, steps = spec.context_steps, spec.horizon_steps, len(missing)
    total = np.concatenate(([0], np.cumsum(missing.sum(axis=1))))
    of_target = np.concatenate(([0], np.cumsum(missing[:, target])))
    usable = np.zeros(steps + 1, np.bool_)
    at = np.arange(context, steps - horizon + 1)
    if at.size:
        in_window = (total[at] - total[at - context]) / (context * missing.shape[1])
        in_target = (of_target[at] - of_target[at - context]) / context
        in_truth = (of_target[at + horizon] - of_target[at]) / horizon
        usable[at] = (
            (in_window <= MAX_WINDOW_MISSING) & (in_target <= MAX_TARGET_MISSING) & (in_truth <= MAX_TRUTH_MISSING)
        )
    return usable


def _origins(usable: tuple[npt.NDArray[np.bool_], ...], first: int, last: int, stride: int = 1) -> Origins:
    """Usable origins in [first, last], ordered by time, then history."""
    found = []
    for index, mask in enumerate(usable):
        at = np.arange(first, last + 1, stride)
        at = at[mask[at]]
        found.append(np.stack((np.full(len(at), index), at), axis=1))
    together = np.concatenate(found).astype(np.int64)
    return together[np.lexsort((together[:, 0], together[:, 1]))]


def _tail_origins(spec: TrainingSpec, usable: tuple[npt.NDArray[np.bool_], ...], first: int, last: int) -> Origins:
    """Rolling origins of the held-out tail: as many as asked for, else hourly and at least 100 where it allows."""
    span = last - first + 1
    if spec.origins:
        stride = max(1, span // spec.origins)
    else:
        stride = max(1, min(round(_HOUR_US / spec.step_us), span // 100))
    return _origins(usable, first, last, stride)


def _calendar(spec: TrainingSpec, history: History) -> Float32:
    edges = history.start_us + np.arange(len(history.values) + 1, dtype=np.int64) * spec.step_us
    return calendar_features(edges, history.time_zone)


def seasonal_naive(dataset: Dataset, origins: Origins) -> Float64:
    """Return the value one season before each step of the horizon: float64 [n, horizon].

    Only steps before the origin are used: a horizon longer than a season repeats the last whole season. Where that
    value is missing, the last known one of the window stands in; NaN only if the window knows none.
    """
    spec = dataset.spec
    target = spec.channels.index(spec.target)
    season = spec.season_steps
    ahead = np.arange(spec.horizon_steps)
    answer = np.empty((len(origins), spec.horizon_steps))
    for index, history in enumerate(dataset.histories):
        rows = np.flatnonzero(origins[:, 0] == index)
        at = origins[rows, 1]
        series = history.values[:, target]
        source = at[:, None] + ahead - season * (ahead // season + 1)
        value = np.where(source >= 0, series[np.maximum(source, 0)], np.nan)
        known = last_known(series)[at - 1]
        answer[rows] = np.where(np.isnan(value), known[:, None], value)
    return answer


def last_known(series: Float64) -> Float64:
    """Return, for each step, the newest value up to it that is not NaN: float64 [n]; NaN before the first."""
    index = np.where(np.isnan(series), -1, np.arange(len(series)))
    newest = np.maximum.accumulate(index)
    return np.where(newest >= 0, series[np.maximum(newest, 0)], np.nan)


def filled(truth: Float64) -> Float64:
    """Return truths [n, horizon] to fit: a missing step takes its neighbour's value, from within the same truth."""
    missing = np.isnan(truth)
    if not missing.any():
        return truth
    steps = np.arange(truth.shape[1])
    before = np.maximum.accumulate(np.where(missing, -1, steps), axis=1)
    after = np.minimum.accumulate(np.where(missing, truth.shape[1], steps)[:, ::-1], axis=1)[:, ::-1]
    source = np.where(before >= 0, before, np.minimum(after, truth.shape[1] - 1))
    return np.take_along_axis(truth, source, axis=1)
