"""Residuals: how a model's predictions compare with the facts that arrive.

Of each step of a prediction, [at + i * step, at + (i + 1) * step), the GOOD fact nearest to the middle of the step
counts; of two as near the later; of two at the same time the one that came last. What counts is therefore the same
however facts are ordered, repeated or cut into batches while the prediction is the newest of its model.

    residual = reported - median(step)
    mean = sum(residual) / n      mae = sum(|residual|) / n      rmse = sqrt(sum(residual^2) / n)
    covered = lowest level <= reported <= highest level

Where no level is 0.5 the median is interpolated linearly between the levels around it, or is the nearest level.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import fsum, sqrt
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.quality import Quality
from twinmesh_statesync.domain.events import Prediction

MAX_STEPS: Final = 1_000
"""Steps of one prediction that are followed."""
MAX_STEP_US: Final = 10**15
MAX_NUMBER: Final = 1e150
"""Beyond these a sum of squares, or of times, would leave its type: such predictions and facts are not compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """How a model did on one channel since `since_offset`; numbers in the channel's unit, times in microseconds.

    Attributes:
        channel: the channel.
        model_id: the model.
        model_version: its version; another one begins anew.
        since_offset: offset of the first prediction that counts.
        count: steps compared.
        mean: of the residuals.
        mae: mean of their absolute values.
        rmse: root of the mean of their squares.
        interval_count: steps that had an interval.
        covered_count: steps whose fact lay within it.
        nominal_coverage: what the interval promises; 0 = there is none.
        last_time_unix_us: event time of the newest fact that counts; None = none yet.
        last_step_unix_us: start of its step.
        last_lead_us: how far ahead it was predicted.
        last_predicted: the median of its step.
        last_reported: what it was.
    """

    channel: str
    model_id: str
    model_version: int
    since_offset: int
    count: int = 0
    mean: float = 0.0
    mae: float = 0.0
    rmse: float = 0.0
    interval_count: int = 0
    covered_count: int = 0
    nominal_coverage: float = 0.0
    last_time_unix_us: int | None = None
    last_step_unix_us: int = 0
    last_lead_us: int = 0
    last_predicted: float = 0.0
    last_reported: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Sums over steps of predictions that were replaced."""

    count: int = 0
    error: float = 0.0
    absolute: float = 0.0
    square: float = 0.0
    interval_count: int = 0
    covered_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFact:
    """The fact that counts for a step of the present prediction."""

    step: int
    time_unix_us: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackRecord:
    """A track as a checkpoint keeps it; its prediction is the one that the replica holds."""

    channel: str
    model_id: str
    model_version: int
    since_offset: int
    closed: Sums
    steps: tuple[StepFact, ...]


class Track:
    """Follows the predictions of one model of one channel."""

    __slots__ = ("closed", "prediction", "since_offset", "steps")

    def __init__(self, prediction: Prediction, since_offset: int) -> None:
        self.prediction = prediction
        self.since_offset = since_offset
        self.closed = Sums()
        self.steps: dict[int, StepFact] = {}

    def record(self) -> TrackRecord:
        """Return what a checkpoint keeps."""
        return TrackRecord(
            channel=self.prediction.channel,
            model_id=self.prediction.model_id,
            model_version=self.prediction.model_version,
            since_offset=self.since_offset,
            closed=self.closed,
            steps=tuple(self.steps[step] for step in sorted(self.steps)),
        )

    @classmethod
    def from_record(cls, record: TrackRecord, prediction: Prediction) -> Track:
        """Go on from a checkpoint."""
        track = cls(prediction, record.since_offset)
        track.closed = record.closed
        track.steps = {fact.step: fact for fact in record.steps}
        return track

    def follow(self, prediction: Prediction) -> None:
        """Go on with the next prediction of the same version."""
        self.closed = self._sums()
        self.prediction = prediction
        self.steps = {}

    def take(self, times: npt.NDArray[np.int64], values: npt.NDArray[Any], qualities: npt.NDArray[np.uint8]) -> bool:
        """Take rows of the channel, in order of arrival; returns whether any of them counts."""
        prediction = self.prediction
        ahead = times - prediction.at_unix_us
        steps = ahead // prediction.step_us
        within = (steps >= 0) & (steps < min(prediction.step_count, MAX_STEPS))
        if not within.any():
            return False
        rows = np.flatnonzero(within)
        # By step the nearest to its middle comes last, of two as near the later, of two at once the last to arrive.
        distance = np.abs(2 * ahead[rows] - (2 * steps[rows] + 1) * prediction.step_us)
        order = rows[np.lexsort((times[rows], -distance, steps[rows]))]
        changed = False
        for row in order.tolist():
            changed |= self._take(int(steps[row]), int(times[row]), float(values[row]), int(qualities[row]))
        return changed

    def summary(self) -> Residual:
        """Return how the model did."""
        prediction, sums = self.prediction, self._sums()
        found = Residual(
            channel=prediction.channel,
            model_id=prediction.model_id,
            model_version=prediction.model_version,
            since_offset=self.since_offset,
            nominal_coverage=prediction.quantile_levels[-1] - prediction.quantile_levels[0],
        )
        if not sums.count:
            return found
        return replace(
            found,
            count=sums.count,
            mean=sums.error / sums.count,
            mae=sums.absolute / sums.count,
            rmse=sqrt(sums.square / sums.count),
            interval_count=sums.interval_count,
            covered_count=sums.covered_count,
        )

    def newest(self, before: Residual | None) -> Residual:
        """Return the summary with the newest fact that counts, which may be one of a prediction before."""
        found = self.summary()
        if not self.steps:
            same = before is not None and before.since_offset == self.since_offset
            if not same or before is None:
                return found
            return replace(
                found,
                last_time_unix_us=before.last_time_unix_us,
                last_step_unix_us=before.last_step_unix_us,
                last_lead_us=before.last_lead_us,
                last_predicted=before.last_predicted,
                last_reported=before.last_reported,
            )
        fact = self.steps[max(self.steps)]
        return replace(
            found,
            last_time_unix_us=fact.time_unix_us,
            last_step_unix_us=self.prediction.at_unix_us + fact.step * self.prediction.step_us,
            last_lead_us=fact.time_unix_us - self.prediction.at_unix_us,
            last_predicted=median(self.prediction, fact.step),
            last_reported=fact.value,
        )

    def _take(self, step: int, time_unix_us: int, value: float, quality: int) -> bool:
        known = self.steps.get(step)
        if known is not None and known.time_unix_us == time_unix_us:
            if quality not in _GOOD:
                # It was taken back; the one that was second is not known any more.
                del self.steps[step]
                return True
            if known.value == value:
                return False
        elif known is not None and not self._nearer(step, time_unix_us, known.time_unix_us):
            return False
        if quality not in _GOOD or abs(value) > MAX_NUMBER:
            return False
        self.steps[step] = StepFact(step=step, time_unix_us=time_unix_us, value=value)
        return True

    def _nearer(self, step: int, time_unix_us: int, known_unix_us: int) -> bool:
        middle = 2 * self.prediction.at_unix_us + (2 * step + 1) * self.prediction.step_us
        new, old = abs(2 * time_unix_us - middle), abs(2 * known_unix_us - middle)
        return new < old or (new == old and time_unix_us > known_unix_us)

    def _sums(self) -> Sums:
        prediction, closed = self.prediction, self.closed
        facts = [self.steps[step] for step in sorted(self.steps)]
        errors = [fact.value - median(prediction, fact.step) for fact in facts]
        levels = len(prediction.quantile_levels)
        covered = sum(_within(prediction, fact) for fact in facts) if levels > 1 else 0
        return Sums(
            count=closed.count + len(facts),
            error=closed.error + fsum(errors),
            absolute=closed.absolute + fsum(map(abs, errors)),
            square=closed.square + fsum(error * error for error in errors),
            interval_count=closed.interval_count + (len(facts) if levels > 1 else 0),
            covered_count=closed.covered_count + covered,
        )


_GOOD: Final = (int(Quality.UNSPECIFIED), int(Quality.GOOD))
"""A sender who states no quality means GOOD."""


def median(prediction: Prediction, step: int) -> float:
    """Return what is predicted of a step: its median, see the module."""
    levels = prediction.quantile_levels
    values = prediction.values[step * len(levels) : (step + 1) * len(levels)]
    at = bisect_left(levels, 0.5)
    if at < len(levels) and levels[at] == 0.5:
        return values[at]
    if at in (0, len(levels)):
        return values[min(at, len(levels) - 1)]
    share = (0.5 - levels[at - 1]) / (levels[at] - levels[at - 1])
    return values[at - 1] + share * (values[at] - values[at - 1])


def _within(prediction: Prediction, fact: StepFact) -> bool:
    levels = len(prediction.quantile_levels)
    first = fact.step * levels
    return prediction.values[first] <= fact.value <= prediction.values[first + levels - 1]


def tracks_of(
    records: Iterable[TrackRecord], predictions: dict[tuple[str, str], Prediction]
) -> dict[tuple[str, str], Track]:
    """Return the tracks that a checkpoint keeps, by channel and model; without its prediction a track means nothing."""
    return {
        key: Track.from_record(record, predictions[key])
        for record in records
        if (key := (record.channel, record.model_id)) in predictions
    }
